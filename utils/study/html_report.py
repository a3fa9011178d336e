"""report.html: everything about a study in one file that a browser opens without a network."""
from utils.evaluation.html_page import (
    cell,
    chart_image,
    class_legend,
    figure,
    heading,
    heat_cell,
    note,
    page,
    stroke,
    table,
    text,
)
from utils.metrics.table import p_text, percent
from utils.study import tables
from utils.study.summary import Summary

_WIDE, _HIGH, _LEFT, _BOTTOM = 520, 260, 52, 28

Shown = dict


def html_report(summary: Summary, chart: bytes, shown: Shown) -> str:
    """The page. chart: the picture of the study, PNG. shown: of utils.study.pictures, or {}."""
    return page(summary["name"], [
        heading(summary["name"], 1), note(summary["note"]), _main_table(summary),
        chart_image(chart, "every run a point, means as bars"), _differences(summary),
        _ranks(summary), _problems(summary), _runs(summary), _heat_map(summary), _curves(summary),
        _differing(shown), _worst(shown)])


def _main_table(summary: Summary) -> str:
    heads, rows = ["row", *(["data"] if any(row["data"] for row in summary["rows"]) else [])], []
    with_folds = any(row["folds"] for row in summary["rows"])
    for score in summary["scores"]:
        heads += [tables.score_title(score), "runs"] + ["each fold"] * bool(with_folds)
        heads += ["published", "difference"] * tables.has_published(summary, score)
    for row in summary["rows"]:
        cells = [cell(row["label"], row["label"])]
        cells += [cell(row["data"], row["data"])] if "data" in heads else []
        for score, one in row["scores"].items():
            printed = one["published"]
            cells += [cell(tables.spread(one, score), one["mean"], "best" * one["best"]),
                      cell(", ".join(tables.number(value, score) for value in one["values"]),
                            max(one["values"], default=None), "runs")]
            if with_folds:
                cells.append(cell(", ".join(tables.number(value, score) for value in one["folds"])
                                  or "-", min(filter(None, one["folds"]), default=None), "runs"))
            if tables.has_published(summary, score):
                cells += [cell(tables.published_text(printed, score), printed and printed["mean"]),
                          cell(tables.number(one["difference"], score, True), one["difference"])]
        cells += [cell(tables.scaled(row["parameters"], 1e6), row["parameters"]),
                  cell(tables.scaled(row["flops"], 1e9), row["flops"]),
                  cell(tables.duration(row["seconds"]), row["seconds"])]
        rows.append(cells)
    about = ("Mean ± standard deviation over the runs, then every run. FLOPs are those of one "
             "image as it is tested, two per multiply-add; time is that of a training. Click a "
             "heading to sort.")
    return table([*heads, "parameters M", "GFLOPs", "time"], rows) \
        + note(tables.folds_text(summary)) + note(about)


def _differences(summary: Summary) -> str:
    if not summary["comparisons"] and not summary["not_compared"]:
        return ""
    rows = []
    for one in summary["comparisons"]:
        score, seeds, images = one["score"], one["seeds"], one["images"] or {}
        rows.append([
            cell(one["row"], one["row"]), cell(tables.score_title(score), score),
            cell(tables.number(seeds["value"], score, True), seeds["value"]),
            cell(tables.seeds_text(seeds), seeds["seeds"]),
            cell(tables.bounds(seeds, score), seeds["low"]),
            cell(p_text(seeds["p_holm"]), seeds["p_holm"]),
            cell(tables.images_text(one["images"]), images.get("images")),
            cell(tables.bounds(images, score), images.get("low")),
            cell(p_text(images.get("p_holm")), images.get("p_holm"))])
    heads = ["row", "score", "difference", "seeds", "95 % over seeds", "p (Holm)", "images",
             "95 % over images", "p (Holm)"]
    notes = [tables.differences_text(summary)] if rows else []
    notes += tables.gaps_texts(summary)
    notes += [tables.needed_text(summary)] if summary["seeds_needed"] else []
    return (f"<h2>Differences to {text(summary['baseline'])}</h2>"
            + (table(heads, rows) if rows else "") + "".join(map(note, notes)))


def _ranks(summary: Summary) -> str:
    ranks = summary["ranks"]
    if not ranks:
        return ""
    rows = [[cell(label, label), cell(f"{ranks['mean'][i]:.2f}", ranks["mean"][i]),
             *(cell(f"{one[i]:g}", one[i]) for one in ranks["ranks"])]
            for i, label in enumerate(ranks["labels"])]
    return ("<h2>Ranks over data sets</h2>" + table(["row", "mean rank", *ranks["data"]], rows)
            + note(tables.ranks_text(summary)))


def _problems(summary: Summary) -> str:
    missing = tables.missing_text(summary)
    failed = "".join(note(f"failed: {one['run']}: {one['message']}", "failed")
                     for one in summary["failed"])
    return note(missing) + failed


def _runs(summary: Summary) -> str:
    rows = [[cell(row["title"], row["title"]),
             cell(_seed(run), run["seed"]),
             *(cell(tables.number(value, score), value)
               for score, value in run["scores"].items()),
             cell(tables.duration(run["seconds"]), run["seconds"]),
             cell(run["folder"] or run["place"], run["folder"] or run["place"])]
            for row in summary["rows"] for run in _single(row)]
    heads = ["row", "seed", *map(tables.score_title, summary["scores"]), "time", "folder"]
    return "<h2>Runs</h2>" + table(heads, rows)


def _single(row: dict) -> list[dict]:
    """The trainings of a row: its runs, those of folds each on its own."""
    return [part for run in row["runs"] for part in run["parts"] or [run]]


def _seed(run: dict) -> str:
    seed = "-" if run["seed"] is None else str(run["seed"])
    return f"{seed}, fold {run['fold']}" if run["fold"] else seed


def _heat_map(summary: Summary) -> str:
    """Rows against classes; the darker, the better."""
    groups: dict[tuple[str, ...], list[dict]] = {}
    for row in summary["rows"]:
        if row["classes"]:
            groups.setdefault(tuple(row["classes"]), []).append(row)
    parts = []
    for names, rows in groups.items():
        lines = [[cell(row["title"], row["title"]), *(_heat(row["classes"][name])
                                                       for name in names)] for row in rows]
        parts.append(table(["row", *names], lines))
    return "<h2>IoU of the classes, mean over the runs</h2>" + "\n".join(parts) if parts else ""


def _heat(value: float | None) -> str:
    return heat_cell("-" if value is None else f"{100 * value:.1f}", value)


def _curves(summary: Summary) -> str:
    rows = [row for row in summary["rows"] if any(run["curves"] for run in _single(row))]
    charts = [(title, _chart(rows, key)) for key, title in (
        ("loss", "Training loss"), ("score", "Validation, mean IoU in percent"))]
    charts = [(title, chart) for title, chart in charts if chart]
    if not charts:
        return ""
    legend = "".join(
        f'<label><input type="checkbox" value="{i}" checked> <svg width="30" height="8">'
        f'<line x1="0" y1="4" x2="30" y2="4" {stroke(i)}/></svg> {text(row["title"])}</label>'
        for i, row in enumerate(rows))
    drawn = "".join(f"<div><h3>{title}</h3>{chart}</div>" for title, chart in charts)
    return (f'<h2>Curves</h2><p class="legend">{legend}</p><div class="curves">{drawn}</div>'
            + note("Over the optimizer steps. Every run is a line; point at one for its name."))


def _chart(rows: list[dict], key: str) -> str:
    """An SVG of one line per run; empty without points."""
    lines = [(i, row["title"], _seed(run), run["curves"].get(key) or [])
             for i, row in enumerate(rows) for run in _single(row)]
    points = [(x, y) for *_, line in lines for x, y in line if y is not None]
    if not points:
        return ""
    factor = 100 if key == "score" else 1
    most = max(x for x, _ in points) or 1
    ordered = sorted(y for _, y in points)
    # A few first losses far above all others would press the rest together.
    high = ordered[-1] if key == "score" else ordered[int(0.99 * (len(ordered) - 1))]
    low = min(0.0, ordered[0])
    high = high if high > low else low + 1

    def place(x: float, y: float) -> str:
        return (f"{_LEFT + x / most * (_WIDE - _LEFT - 8):.1f},"
                f"{8 + (high - min(y, high)) / (high - low) * (_HIGH - _BOTTOM - 8):.1f}")
    drawn = [f'<polyline data-row="{i}" {stroke(i)} points="'
             + " ".join(place(x, y) for x, y in line if y is not None)
             + f'"><title>{text(title)}, seed {seed}</title></polyline>'
             for i, title, seed, line in lines]
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = low + share * (high - low)
        y = float(place(0, value).partition(",")[2])
        drawn.insert(0, f'<line x1="{_LEFT}" x2="{_WIDE}" y1="{y}" y2="{y}" class="grid"/>'
                        f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">'
                        f"{factor * value:.3g}</text>")
    drawn += [f'<text x="{_LEFT}" y="{_HIGH - 8}">0</text>',
              f'<text x="{_WIDE}" y="{_HIGH - 8}" text-anchor="end">{most:g} steps</text>']
    return f'<svg viewBox="0 0 {_WIDE + 4} {_HIGH}" role="img">{"".join(drawn)}</svg>'


def _differing(shown: Shown) -> str:
    parts = []
    for one in shown.get("differing", ()):
        where = f"{one['data']}: " if one["data"] else ""
        figures = [figure(one["image"], "image"), figure(one["label"], "label")]
        figures += [figure(run["picture"], f"{run['name']}: {percent(run['score'])}")
                    for run in one["runs"]]
        parts.append(f"<h3>{text(where + one['id'])}</h3>{''.join(figures)}")
    return ("<h2>Images on which the runs differ most (mIoU of the image)</h2>"
            + _class_colors(shown) + "\n".join(parts)) if parts else ""


def _class_colors(shown: Shown) -> str:
    """What the colors of labels and predictions mean, for each set of classes."""
    legends = {}
    for data, classes in shown.get("classes", {}).items():
        legends.setdefault(tuple((name, tuple(color)) for name, color in classes), []).append(data)
    return "".join(class_legend(classes, f"{', '.join(data)}: " if len(legends) > 1 else "")
                   for classes, data in legends.items())


def _worst(shown: Shown) -> str:
    parts = []
    for run in shown.get("worst", ()):
        figures = "".join(
            f'<div class="together">{figure(one["image"], one["id"])}'
            + figure(one["label"], "label")
            + figure(one["picture"], f"prediction: {percent(one['score'])}") + "</div>"
            for one in run["images"])
        parts.append(f"<h3>{text(run['name'])}</h3>{figures}")
    return "<h2>Worst images of each run</h2>" + "\n".join(parts) if parts else ""
