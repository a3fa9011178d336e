"""report.html: one page that explains a result of test.py, for a browser without a network.

Made of entries of results.json (one for each decision rule), of the scores of the single images,
and of pictures of the worst and the best images, where there are any. What is missing is said on
the page. A results file of a stranger may hold anything: what does not fit is not shown.
"""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.errors import counted, listed, shown
from utils.evaluation.html_page import (
    bar,
    cell,
    class_legend,
    details,
    figure,
    heading,
    note,
    page,
    table,
    text,
)
from utils.evaluation.page_charts import (
    confusion,
    image_strip,
    number,
    reliability,
    risk_curve,
)
from utils.evaluation.results_file import (
    Entry,
    code_of,
    data_of,
    flat_setting,
    protocol_of,
    way_of,
)
from utils.metrics.image_scores import ImageScores
from utils.metrics.meanings import MEANINGS
from utils.metrics.scores import NUMBERS
from utils.metrics.table import percent

MOST_RULES = 12         # columns of the page
MOST_CLASSES = 1000     # rows of a table of classes
LISTED = 100            # of the worst, and of the best images in a table
_LEGEND = 40            # classes; of more, only those in the pictures are named
_OF_IMAGES = {"mIoU_C": "Mean_Class_IoU", "mDice_C": "Mean_Class_Dice"}
# The parts of "regret" (utils.evaluation.regret), and what each says.
_REGRET = {
    "Dice": "what the rule attains",
    "solver": "what the exact mask for independent pixels attains more than the rule",
    "independence": "what a rule for dependent pixels attains more than that",
    "calibration": "what the best threshold of each image attains more than that: what "
                   "calibrated probabilities would gain",
    "network": "what no threshold of these probabilities reaches"}
_OF_CLASSES = {"IoU": "Mean_IoU", "Dice": "Mean_Dice", "Acc": "Mean_Recall",
               "Precision": "Mean_Precision", "IoU_I": "IoU_I", "Dice_I": "Dice_I"}


@dataclass(frozen=True)
class RuleResult:
    """A column of the page: an entry of results.json and the scores of its images.

    images: None if there are none; `missing` says why.
    """

    entry: Entry
    images: ImageScores | None = None
    missing: str = "the result has no scores of single images"


@dataclass(frozen=True)
class ShownImage:
    """An image with its label and predictions; pictures are data URLs (html_page.data_url).

    score: mIoU_I under the first rule. predictions: rule -> picture. classes: ids in them.
    """

    id: str
    score: float
    image: str
    label: str
    predictions: dict[str, str]
    classes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class ShownImages:
    """The pictures of a page. classes: (name, color) by class id. about: said above them."""

    worst: list[ShownImage]
    best: list[ShownImage]
    classes: list[tuple[str, Sequence[int]]]
    about: str = ""


def result_page(results: Sequence[RuleResult], command: str | None = None,
                pictures: ShownImages | str = "they were not asked for") -> str:
    """The page. command: that measured the results, None if it is not known.

    pictures: or the reason why there are none.
    """
    left_out = results[MOST_RULES:]
    results = results[:MOST_RULES]
    titles = _titles([one.entry for one in results])
    entries = dict(zip(titles, (one.entry for one in results), strict=True))
    first = results[0].entry
    name = f"{_checkpoint_name(first)} on {_word(data_of(first))}"
    return page(name, [
        heading(name, 1), _setting(entries, command),
        note(f"The page shows {MOST_RULES} of {MOST_RULES + len(left_out)} results; left out: "
             + listed([_word(one.entry.get("procedure")) for one in left_out], 8) + "."
             if left_out else ""),
        _scores(entries), _class_tables(entries), _confusions(entries), _calibration(entries),
        _risk(entries), _images(titles, results, pictures), _shown(pictures, titles, results),
        _meanings()])


def _word(value: Any) -> str:
    return "" if value is None else shown(value)


def _checkpoint_name(entry):
    networks = _networks(entry)
    if len(networks) > 1:
        return f"Ensemble of {len(networks)}"
    part = (networks or [_part(entry, "predictions")])[0]
    return shown(str(part.get("path", "a result"))).replace("\\", "/").rpartition("/")[2]


def _networks(entry: Mapping) -> list[dict]:
    """What an entry says of its checkpoint, or of each one of an ensemble."""
    several = entry.get("ensemble")
    found = [one for one in several if isinstance(one, dict)] if isinstance(several, list) else []
    return found or [one for one in [_part(entry, "checkpoint")] if one]


def _network_text(one):
    return (f"{_word(one.get('path'))}, sha256 {_word(one.get('sha256'))[:12]}…"
            + (f", epoch {_word(one['epoch'])}" if one.get("epoch") else ""))


def _part(entry: Mapping, key: str) -> dict:
    part = entry.get(key)
    return part if isinstance(part, dict) else {}


def _titles(entries: Sequence[Entry]) -> list[str]:
    """Different names of the columns: the rule, with its protocol or its code where needed."""
    rules = [_word(one.get("procedure")) or "a rule" for one in entries]
    several = len({str(one.get("protocol")) for one in entries}) > 1
    titles = [f"{rule}, {_word(one.get('protocol')) or 'own settings'}" if several else rule
              for rule, one in zip(rules, entries, strict=True)]
    return [title if titles.count(title) == 1 else f"{title} [{code_of(one)}]"
            for title, one in zip(titles, entries, strict=True)]


def _setting(entries: dict[str, Entry], command: str | None) -> str:
    """What was scored and how; the settings of all columns, also the unusual ones, in a table."""
    first = next(iter(entries.values()))
    data = _part(_part(first, "data"), "args")
    versions = _part(first, "versions")
    files = _part(first, "predictions")
    networks = _networks(first)
    facts = {
        **{f"checkpoint {k}" if len(networks) > 1 else "checkpoint": _network_text(one)
           for k, one in enumerate(networks[:20], start=1)},
        "label files": _word(files.get("path")),
        "data": f"{_word(data_of(first))}, {_word(first.get('n_images'))} images"
                + (f", {_word(data['data_dir'])}" if data.get("data_dir") else ""),
        "images are predicted": "" if files else _tried(way_of, first),
        "protocol": "" if files else _tried(protocol_of, first),
        "rules": ", ".join(entries),
        "measured with": ", ".join(f"{key} {_word(value)}" for key, value in versions.items()),
        "command": command or "not known: results.json does not hold it"}
    lines = "".join(f"<dt>{text(key)}</dt><dd>"
                    + (f"<code>{text(value)}</code>" if key == "command" and command
                       else text(value)) + "</dd>"
                    for key, value in facts.items() if value.strip(", "))
    flat = {title: flat_setting(entry) for title, entry in entries.items()}
    keys = list(dict.fromkeys(key for one in flat.values() for key in one))
    differing = [key for key in keys if len({str(one.get(key)) for one in flat.values()}) > 1
                 and key != "procedure"]
    rows = [[cell(key, key, row_head=True),
             *(cell(_setting_text(one.get(key)), _setting_text(one.get(key)), "words")
               for one in flat.values())] for key in keys[:500]]
    parts = [f"<dl>{lines}</dl>"]
    if differing:
        parts.append(heading("What the columns do not have in common", 3)
                     + _settings_table([row for row, key in zip(rows, keys, strict=False)
                                        if key in differing], flat))
    return "".join([*parts, details("all settings", _settings_table(rows, flat))])


def _settings_table(rows, flat):
    return table(["setting", *flat], rows, classes="settings")


def _setting_text(value):
    return "-" if value is None else _word(value)


def _tried(function, entry):
    try:
        return shown(function(entry))
    except (TypeError, ValueError, AttributeError, KeyError):
        return "the file says it in an unknown way"


def _value(entry: Entry, name: str) -> float | None:
    if name in _OF_IMAGES:
        return number(_part(entry, "image_level").get(_OF_IMAGES[name]))
    return number(entry.get(name))


def _term(name: str, words: str = "") -> str:
    """A link to what a number means."""
    meaning = MEANINGS[name]
    return (f'<a href="#means-{name}" title="{text(meaning.words)}">'
            f"{text(words or meaning.title)}</a>")


def _scores(entries: dict[str, Entry]) -> str:
    """One row for each score, one column for each rule; the best of a row is bold."""
    names = [name for name in (*NUMBERS[:-1], *_OF_IMAGES, NUMBERS[-1]) if name in MEANINGS
             and any(_value(entry, name) is not None for entry in entries.values())]
    if not names:
        return heading("Scores") + note("The file holds no scores that this page knows.")
    rows = []
    for name in names:
        values = [_value(entry, name) for entry in entries.values()]
        known = {value for value in values if value is not None}
        best = max(known) if len(known) > 1 and name != "loss" else None
        cells = [cell("", MEANINGS[name].title, inside=_term(name)
                      + " %" * MEANINGS[name].percent, row_head=True)]
        for value, entry in zip(values, entries.values(), strict=True):
            bounds = _part(_part(entry, "intervals"), name)
            low, high = number(bounds.get("low")), number(bounds.get("high"))
            inside = _bounds(low, high)
            is_best = best is not None and value == best
            words = percent(value) if MEANINGS[name].percent or value is None else f"{value:.4f}"
            cells.append(cell(words, value, "best" * is_best, inside))
        rows.append(cells)
    intervals = any(_part(entry, "intervals") for entry in entries.values())
    averaged = {_word(entry.get("Classes_Averaged")) for entry in entries.values()} - {""}
    about = (f"Means over {', '.join(sorted(averaged))} classes. " if averaged else "") + (
        "Small: the 95 % interval for other images of the same kind." if intervals
        else "Too few images for 95 % intervals (60 are needed).")
    published = any(_part(entry, "image_level").get("published") is True
                    for entry in entries.values())
    return (heading("Scores", mark="scores") + table(["score", *entries], rows) + note(about)
            + note("Image-level scores as the RankDice code computes them: not comparable with "
                   "others." if published else "") + _official(entries) + _regret(entries))


def _bounds(low: float | None, high: float | None) -> str:
    """An interval in small letters; empty if it is not known."""
    if low is None or high is None:
        return ""
    return f"<br><small>{percent(low)} .. {percent(high)}</small>"


def _official(entries: dict[str, Entry]) -> str:
    """The scores of a benchmark's own program, where the file has them."""
    parts = []
    for title, entry in entries.items():
        rows = [[cell(key, key, row_head=True), cell(percent(value), value)]
                for key, value in _numbers_in(_part(entry, "official"))][:200]
        if rows:
            parts.append(details(f"official scores, {title}", table(["score, %", "value"], rows)))
    return "".join(parts)


def _numbers_in(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, float]]:
    """(path, number) of every number in nested dicts."""
    found = number(value)
    if isinstance(value, dict) and depth < 6:
        for key, inner in value.items():
            yield from _numbers_in(inner, f"{name} {key}".strip(), depth + 1)
    elif found is not None:
        yield name, found


def _regret(entries: dict[str, Entry]) -> str:
    """Where the Dice of each rule is lost, if `test.py --regret` measured it."""
    known = {title: _part(entry, "regret") for title, entry in entries.items()}
    known = {title: regret for title, regret in known.items() if regret}
    if not known:
        return ""
    rows = []
    for name, about in _REGRET.items():
        cells = [cell(f"{name} %", name, inside=f"<br><small>{text(about)}</small>",
                      row_head=True)]
        for regret in known.values():
            value, low, high = _with_bounds(regret.get(name))
            cells.append(cell(percent(value), value, inside=_bounds(low, high)))
        rows.append(cells)
    classes = details("of the classes", "".join(
        heading(title, 3) + _regret_of_classes(entries[title], regret)
        for title, regret in known.items()))
    return heading("Where the Dice is lost", mark="regret") + table(["part", *known], rows) + note(
        "Dice is mDice_I; it and the four parts add up to 100 %. More: docs/rankdice.md.") + classes


def _regret_of_classes(entry, regret):
    rows = []
    found = regret.get("classes")
    for one, part in zip(_classes_of(entry), found if isinstance(found, list) else [],
                         strict=False):
        values = [_with_bounds(part.get(name) if isinstance(part, dict) else None)[0]
                  for name in _REGRET]
        rows.append([cell(_word(one.get("name")), _word(one.get("name")), row_head=True),
                     *(cell(percent(value), value) for value in values)])
    return table(["class", *((f"{name}, %", about) for name, about in _REGRET.items())],
                 rows[:MOST_CLASSES])


def _with_bounds(part: Any) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) of a number, or of a dict with these."""
    if isinstance(part, dict):
        return number(part.get("value")), number(part.get("low")), number(part.get("high"))
    return number(part), None, None


def _classes_of(entry: Entry) -> list[dict]:
    rows = entry.get("classes")
    return [one for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []


def _class_tables(entries: dict[str, Entry]) -> str:
    """The IoU of the classes under every rule with bars, and every other number of each rule."""
    first = next(iter(entries.values()))
    classes = _classes_of(first)
    if not classes:
        return heading("Classes") + note("The file holds no scores of classes.")
    columns = {title: [number(one.get("IoU")) for one in _classes_of(entry)]
               for title, entry in entries.items()}
    pixels = [number(one.get("pixels")) or 0.0 for one in classes]
    total = sum(pixels) or 1.0
    rows = []
    for k, one in enumerate(classes[:MOST_CLASSES]):
        cells = [cell(_word(one.get("name")), _word(one.get("name")), row_head=True),
                 cell(str(k), k), cell(percent(pixels[k] / total), pixels[k])]
        for values in columns.values():
            value = values[k] if k < len(values) else None
            cells.append(cell(percent(value), value, inside=bar(value or 0.0)))
        rows.append(cells)
    heads = ["class", "id", ("pixels, %", "share of the labeled pixels"),
             *((f"IoU {title}, %" if len(entries) > 1 else "IoU, %",
                MEANINGS["Mean_IoU"].words) for title in columns)]
    left_out = len(classes) - len(rows)
    more = details("all numbers of the classes", "".join(
        heading(title, 3) + _all_of_classes(entry) for title, entry in entries.items()))
    return (heading("Classes", mark="classes") + table(heads, rows)
            + note("\"-\": neither a label nor a prediction has the class. Click a heading to "
                   "sort, or press Enter on it."
                   + (f" {left_out} of {len(classes)} classes are left out; results.json has all."
                      if left_out else "")) + more)


def _all_of_classes(entry: Entry) -> str:
    rows = []
    for k, one in enumerate(_classes_of(entry)[:MOST_CLASSES]):
        pixels = number(one.get("pixels"))
        rows.append([cell(_word(one.get("name")), _word(one.get("name")), row_head=True),
                     cell(str(k), k),
                     *(cell(percent(number(one.get(key))), number(one.get(key)))
                       for key in _OF_CLASSES),
                     cell("-" if pixels is None else f"{pixels:,.0f}", pixels)])
    heads = ["class", "id", *((f"{key}, %", MEANINGS[name].words)
                              for key, name in _OF_CLASSES.items()), "pixels"]
    return table(heads, rows)


def _confusions(entries: dict[str, Entry]) -> str:
    parts, without = [], []
    for title, entry in entries.items():
        if entry.get("confusion"):
            names = [_word(one.get("name")) for one in _classes_of(entry)]
            parts.append(details(title, confusion(entry["confusion"], names), is_open=not parts))
        else:
            without.append(title)
    return (heading("Confusion", mark="confusion") + "".join(parts)
            + note(f"No confusion matrix: {', '.join(without)}. Masks may overlap, so a pixel has "
                   "no single prediction." if without else ""))


def _different(entries: dict[str, Entry], key: str):
    """[(titles, value)]: the columns of one measurement have it once."""
    found: list[tuple[list[str], Any]] = []
    for title, entry in entries.items():
        value = entry.get(key)
        if value:
            same = next((titles for titles, other in found if other == value), None)
            if same is None:
                found.append(([title], value))
            else:
                same.append(title)
    return found


def _calibration(entries: dict[str, Entry]) -> str:
    parts = []
    found = _different(entries, "calibration")
    for titles, stages in found:
        drawn = [reliability(one) for one in stages[:4] if isinstance(one, dict)] \
            if isinstance(stages, list) else []
        parts.append(heading(", ".join(titles), 3) * (len(found) > 1)
                     + f'<div class="curves plots">{"".join(drawn)}</div>')
    head = heading("Calibration", mark="calibration")
    if not parts:
        return head + note("Not measured: test.py --report measures it.")
    return head + f"<p>{_term('ECE')}. The most probable class of every labeled pixel, by its " \
        "probability: bars show how often it was right, orange lines its mean probability; on " \
        "the dashed line both are equal. Below: the pixels of each bin.</p>" + "".join(parts)


def _risk(entries: dict[str, Entry]) -> str:
    head = heading("Risk and coverage", mark="risk")
    parts = []
    found = [(titles, risk) for titles, risk in _different(entries, "risk_coverage")
             if isinstance(risk, dict)]
    for titles, risk in found:
        values = ", ".join(f"{_term(name)} {percent(number(risk.get(name)))} %"
                           for name in ("AURC", "E_AURC", "risk"))
        parts.append(heading(", ".join(titles), 3) * (len(found) > 1)
                     + f'<p>{values}</p><div class="curves plots">{risk_curve(risk)}</div>')
    if not parts:
        return head + note("Not measured: test.py --risk-coverage measures it.")
    return head + "".join(parts) + note(
        "All labeled pixels by falling confidence: the error rate of the most confident ones.")


def _images(titles: list[str], results: Sequence[RuleResult],
            pictures: ShownImages | str) -> str:
    head = heading("Images", mark="images")
    known = [(title, one.images) for title, one in zip(titles, results, strict=True)
             if one.images is not None and one.images.ids]
    lacking = [f"{title}: {one.missing}" for title, one in zip(titles, results, strict=True)
               if one.images is None]
    why = note(f"Not shown: {listed(lacking, 4, '; ')}." if lacking else "")
    if not known:
        return head + why
    tables = [images for _, images in known if images is not None]
    marks = {one.id: k for k, one in enumerate(_all(pictures))}
    return (head + f"<p>{_term('mIoU_I')} of each image.</p>"
            + image_strip([title for title, _ in known], tables, marks)
            + _image_table([title for title, _ in known], tables) + why)


def _image_table(titles, tables):
    first = tables[0]
    order = sorted((k for k in range(len(first.ids)) if first.image[k, 0] == first.image[k, 0]),
                   key=lambda k: first.image[k, 0])
    kept = order if len(order) <= 2 * LISTED else [*order[:LISTED], *order[-LISTED:]]
    others = [dict(zip(one.ids, one.image[:, 0].tolist(), strict=True)) for one in tables]
    rows = []
    for k in kept:
        name = first.ids[k]
        dice, accuracy = (float(value) for value in first.image[k, 1:3])
        rows.append([cell(shown(name), shown(name), row_head=True),
                     *(cell(percent(other.get(name)), _known(other.get(name)))
                       for other in others),
                     cell(percent(dice), _known(dice)), cell(percent(accuracy), _known(accuracy))])
    about = MEANINGS["mIoU_I"].words
    heads = ["image", *((f"mIoU_I {title}, %" if len(titles) > 1 else "mIoU_I, %", about)
                        for title in titles),
             (f"mDice_I {titles[0]}, %", MEANINGS["mDice_I"].words),
             (f"pixel accuracy {titles[0]}, %", MEANINGS["Pixel_Accuracy"].words)]
    left_out = len(first.ids) - len(kept)
    return details(f"table of {counted(len(kept), 'image')}", table(heads, rows) + note(
        f"The {LISTED} worst and the {LISTED} best of {len(first.ids):,} images under "
        f"{titles[0]}; the image scores beside results.json have all." if left_out else ""))


def _known(value: float | None) -> float | None:
    return None if value is None or value != value else value


def _all(pictures: ShownImages | str) -> list[ShownImage]:
    return [] if isinstance(pictures, str) else [*pictures.worst, *pictures.best]


def _shown(pictures: ShownImages | str, titles: list[str],
           results: Sequence[RuleResult]) -> str:
    """The worst and the best images: image, label, and the prediction of each rule."""
    head = heading("Worst and best images", mark="pictures")
    if isinstance(pictures, str):
        return head + note(f"No pictures: {pictures}.")
    drawn = {k for one in _all(pictures) for k in one.classes}
    classes = pictures.classes
    about = pictures.about
    if len(classes) > _LEGEND:
        about += f" Named: {len(drawn)} of {len(classes)} classes, those in the pictures."
        classes = [one for k, one in enumerate(classes) if k in drawn]
    scores = {title: dict(zip(one.images.ids, one.images.image[:, 0].tolist(), strict=True))
              for title, one in zip(titles, results, strict=True) if one.images is not None}
    rules = {_word(one.entry.get("procedure")): title
             for title, one in reversed(list(zip(titles, results, strict=True)))}
    parts = [head, note(about), class_legend(classes)]
    number_of = 0
    for name, group in (("worst", pictures.worst), ("best", pictures.best)):
        parts += [heading(f"{name}: lowest mIoU_I first" if name == "worst" else
                          f"{name}: highest mIoU_I first", 3)] if group else []
        for one in group:
            figures = [figure(one.image, "image"), figure(one.label, "label")]
            for rule, picture in one.predictions.items():
                score = scores.get(rules.get(rule, ""), {}).get(one.id)
                words = f"{rule}: mIoU_I {percent(score)} %" if score is not None else rule
                figures.append(figure(picture, words))
            parts.append(f'<section id="image-{number_of}"><h4>{text(shown(one.id))}</h4>'
                         f'<div class="row">{"".join(figures)}</div></section>')
            number_of += 1
    return "".join(parts)


def _meanings() -> str:
    lines = "".join(f'<dt id="means-{name}">{text(one.title)}</dt><dd>{text(one.words)}</dd>'
                    for name, one in MEANINGS.items())
    return heading("What the numbers mean", mark="meanings") + note(
        "P is the set of pixels that are predicted as a class, T the set that has it; ignored "
        "pixels are in neither. Scores are in %. More: docs/metrics.md.") + f"<dl>{lines}</dl>"
