"""The table of a study as Markdown, LaTeX (booktabs) and CSV. The input is study.json."""
import csv
import io
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from utils.errors import listed
from utils.metrics.table import bounds_text, p_text, percent, signed_percent
from utils.study.summary import Summary

# Scores whose values are fractions and are shown in percent; others are shown as they are.
PLAIN = ("loss", "Classes_Averaged")
_TITLES = {"Mean_IoU": "mean IoU", "Mean_Dice": "mean Dice", "Pixel_Accuracy": "pixel accuracy"}
_LATEX = str.maketrans({"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
                        "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                        "\\": r"\textbackslash{}", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
                        "±": r"$\pm$", "×": r"$\times$", "\n": " ",
                        "[": "{[}", "*": "{*}"})        # not the options of the \\ before them
_LEFT = ("row", "data", "score", "runs", "each fold")        # headings of columns of text


@dataclass(frozen=True)
class Table:
    """A table of texts. best: (line, column) of the cells that are marked as the best ones."""

    head: list[str]
    lines: list[list[str]]
    best: set[tuple[int, int]] = field(default_factory=set)

    def drawn(self, cell: Callable[[str], str], bold: str) -> list[list[str]]:
        """The head and the lines; cell: escapes a text, bold: a format with {} for its content."""
        return [[cell(title) for title in self.head], *(
            [bold.format(cell(text)) if (i, k) in self.best else cell(text)
             for k, text in enumerate(line)] for i, line in enumerate(self.lines))]


def markdown(summary: Summary) -> str:
    """The whole table.md: the table, the differences, ranks, and what failed or is missing."""
    parts = [f"# {_in_markdown(summary['name'])}", summary["note"], _markdown_table(_main(summary)),
             folds_text(summary)]
    if summary["comparisons"]:
        parts += [_markdown_table(_differences(summary)), differences_text(summary)]
    parts += map(_in_markdown, gaps_texts(summary))
    if summary["seeds_needed"]:
        parts.append(_in_markdown(needed_text(summary)))
    if summary["ranks"]:
        parts += [_markdown_table(_ranks(summary)), ranks_text(summary)]
    parts += [_in_markdown(missing_text(summary)), failed_text(summary)]
    return "\n\n".join(filter(None, parts)) + "\n"


def latex(summary: Summary) -> str:
    """table.tex: tabulars for booktabs, to be put into a table of a paper.

    Above each is a comment with a caption; below them what is missing, as comments.
    """
    tables = [_tabular(_main(summary), scores_text(summary))]
    if summary["comparisons"]:
        tables.append(_tabular(_differences(summary), methods_text(summary)))
    if summary["ranks"]:
        tables.append(_tabular(_ranks(summary), ranks_text(summary)))
    missing = [*gaps_texts(summary), missing_text(summary)]
    return "% needs \\usepackage{booktabs}\n\n" + "\n".join(tables) + \
        "".join(map(_comment, filter(None, missing)))


def csv_text(summary: Summary) -> str:
    """table.csv: one line for each row and score, with the single runs; scores are fractions."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    most = max((len(row["runs"]) for row in summary["rows"]), default=0)
    folds = max((len(row["folds"]) for row in summary["rows"]), default=0)
    writer.writerow(["row", "data", "score", "mean", "sd", "runs", *(
        f"run {i + 1}" for i in range(most)), "published", "difference", "parameters", "flops",
        "seconds", "difference to baseline", "low over seeds", "high over seeds",
        "p over seeds (Holm)", "low over images", "high over images", "p over images (Holm)",
        *(f"fold {i + 1}" for i in range(folds))])
    compared = {(one["row"], one["score"]): one for one in summary["comparisons"]}
    for row in summary["rows"]:
        for score, one in row["scores"].items():
            versus = compared.get((row["title"], score), {})
            seeds, images = versus.get("seeds") or {}, versus.get("images") or {}
            values = one["values"]
            writer.writerow(["" if cell is None else cell for cell in (
                row["label"], row["data"], score, one["mean"], one["sd"], len(values), *values,
                *[None] * (most - len(values)), (one["published"] or {}).get("mean"),
                one["difference"], row["parameters"], row["flops"], row["seconds"],
                seeds.get("value"), seeds.get("low"), seeds.get("high"), seeds.get("p_holm"),
                images.get("low"), images.get("high"), images.get("p_holm"), *one["folds"])])
    return stream.getvalue()


def score_title(score: str) -> str:
    """The heading of a score."""
    return _TITLES.get(score, score)


def number(value: float | None, score: str = "", sign: bool = False) -> str:
    """A score in percent, or "-"."""
    if value is not None and score in PLAIN:
        return f"{value:{'+' if sign else ''}.4f}"
    return signed_percent(value) if sign else percent(value)


def spread(one: dict, score: str) -> str:
    """Mean and standard deviation."""
    if one["mean"] is None:
        return "-"
    return number(one["mean"], score) + \
        ("" if one["sd"] is None else f" ± {number(one['sd'], score)}")


def duration(seconds: float | None) -> str:
    """Seconds in a unit that fits."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def scaled(value: float | None, unit: float) -> str:
    """A number in a unit, with three digits."""
    return "-" if value is None else f"{value / unit:.3g}"


def bounds(one: dict | None, score: str) -> str:
    """The interval of a difference."""
    return bounds_text(one["low"], one["high"], lambda value: number(value, score, True)) \
        if one else "-"


def _main(summary: Summary) -> Table:
    rows, scores = summary["rows"], summary["scores"]
    optional: list[tuple[str, Callable[[dict], Any], Callable[[dict], str]]] = [
        ("parameters M", lambda row: row["parameters"],
         lambda row: scaled(row["parameters"], 1e6)),
        ("GFLOPs", lambda row: row["flops"], lambda row: scaled(row["flops"], 1e9)),
        ("time", lambda row: row["seconds"], lambda row: duration(row["seconds"]))]
    optional = [one for one in optional if any(one[1](row) is not None for row in rows)]
    with_data = any(row["data"] for row in rows)
    head, several = [*(["data"] if with_data else []), "row"], _several(summary)
    with_folds = any(row["folds"] for row in rows)
    for score in scores:
        head.append(score_title(score))
        head += ["runs"] * several + ["each fold"] * with_folds
        if has_published(summary, score):
            head += ["published", "difference"]
    lines, best = [], set()
    for row in rows:
        line = [*([row["data"]] if with_data else []), row["label"]]
        for score in scores:
            one = row["scores"][score]
            if one["best"]:
                best.add((len(lines), len(line)))
            line.append(spread(one, score))
            if several:
                line.append(", ".join(number(value, score) for value in one["values"]) or "-")
            if with_folds:
                line.append(", ".join(number(value, score) for value in one["folds"]) or "-")
            if has_published(summary, score):
                line += [published_text(one["published"], score),
                         number(one["difference"], score, True)]
        lines.append(line + [show(row) for _, _, show in optional])
    return Table([*head, *(title for title, _, _ in optional)], lines, best)


def _several(summary) -> bool:
    return any(len(row["runs"]) > 1 for row in summary["rows"])


def has_published(summary: Summary, score: str) -> bool:
    """Whether any row has a published value of a score."""
    return any(row["scores"][score]["published"] for row in summary["rows"])


def published_text(published: dict | None, score: str) -> str:
    """The published mean, with the runs where they are printed."""
    if not published:
        return "-"
    runs = ", ".join(number(value, score) for value in published["runs"])
    return number(published["mean"], score) + (f" ({runs})" if runs else "")


def _differences(summary: Summary) -> Table:
    scores = len(summary["scores"]) > 1
    head = ["row", *(["score"] if scores else []), f"difference to {summary['baseline']}",
            "seeds", "95 % over seeds", "p (Holm)", "images", "95 % over images", "p (Holm)"]
    lines = []
    for one in summary["comparisons"]:
        score, seeds, images = one["score"], one["seeds"], one["images"] or {}
        lines.append([one["row"], *([score_title(score)] if scores else []),
                      number(seeds["value"], score, True), seeds_text(seeds), bounds(seeds, score),
                      p_text(seeds["p_holm"]), images_text(one["images"]),
                      bounds(images, score), p_text(images.get("p_holm"))])
    return Table(head, lines)


def seeds_text(seeds: dict) -> str:
    """How many seeds a difference is of."""
    return f"{seeds['seeds']}" + ", not paired" * (not seeds["paired"] and seeds["seeds"] > 1)


def images_text(images: dict | None) -> str:
    """Over how many images of how many runs a difference is."""
    return f"{images['images']} × {images['runs']}" if images else "-"


def differences_text(summary: Summary) -> str:
    """What the two intervals mean."""
    return ("Over seeds: another training with another seed on the same images. Over images (so "
            "many × runs): these trained networks on other images of the same kind. p is adjusted "
            "for the number of rows (Holm).")


def scores_text(summary: Summary) -> str:
    """What the scores of the main table are, as in a caption."""
    percents = [score_title(score) for score in summary["scores"] if score not in PLAIN]
    unit = f"{' and '.join(percents)} in percent. " if percents else ""
    spread = "Means over runs of different seeds ± standard deviation. " * _several(summary)
    marked = any(one["best"] for row in summary["rows"] for one in row["scores"].values())
    of_data = " of each data set" if any(row["data"] for row in summary["rows"]) else ""
    spread = folds_text(summary) + " " * bool(folds_text(summary)) + spread
    return unit[:1].upper() + unit[1:] + spread + f"Bold: the best mean{of_data}." * marked


def folds_text(summary: Summary) -> str:
    """What the scores of a cross-validation are of; empty without one."""
    rows = [row for row in summary["rows"] if row["folds"]]
    images = sorted({run["images"] for row in rows for run in row["runs"]})
    if not images:
        return ""
    folds = " or ".join(sorted({str(len(row["folds"])) for row in rows}))
    return (f"Cross-validation in {folds} folds: each score is of the held-out images of all folds "
            f"together ({' or '.join(map(str, images))}), each predicted by a network that was not "
            "trained on it.")


def methods_text(summary: Summary) -> str:
    """How the intervals and tests of the differences are made, as in a caption."""
    compared = summary["comparisons"]
    rows = len({one["row"] for one in compared})
    level = f"{100 * summary['level']:g} %"
    text = f"Differences to {summary['baseline']} in points, with {level} confidence intervals. "
    kinds = {one["seeds"]["paired"] for one in compared if one["seeds"]["seeds"] > 1}
    if kinds:
        text += ("Over seeds: t interval and t test of "
                 + " or ".join(["the differences of runs of the same seed"] * (True in kinds)
                               + ["runs without common seeds (Welch)"] * (False in kinds))
                 + "; they say what another training on the same images would give. ")
    if any(one["images"] for one in compared):
        text += ("Over images: jackknife interval and randomization test over the images of all "
                 "runs; they say what these trained networks would give on other images of the "
                 "same kind. ")
    return text + f"p is adjusted for the {rows} rows (Holm)." * (rows > 1)


def gaps_texts(summary: Summary) -> list[str]:
    """Which differences, and which intervals over images, are missing, and why."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    several = len(summary["scores"]) > 1
    for one in summary["not_compared"]:
        what = f"{one['row']} ({score_title(one['score'])})" if several else one["row"]
        by_reason.setdefault((one["what"], one["reason"]), []).append(what)
    return [f"No {what} of {listed(rows, 6, '; ')}: {reason}."
            for (what, reason), rows in by_reason.items()]


def needed_text(summary: Summary) -> str:
    """How many seeds the margin needs."""
    one = summary["seeds_needed"]
    margin = f"{100 * one['margin']:g} points"
    about = (f"The difference of a row to {summary['baseline']} varies by {number(one['sd'])} "
             f"points (sd) from seed to seed. ")
    if one["needed"] is None:
        return about + f"No affordable number of seeds shows a difference of {margin}."
    power = f"{100 * one['power']:.0f} % of the cases"
    return about + (f"To find a true difference of {margin} in {power} takes {one['needed']} seeds "
                    + (f"per row: {one['more']} more than now." if one["more"] else
                       "per row, and there are as many."))


def _ranks(summary: Summary) -> Table:
    ranks = summary["ranks"]
    lines = [[label, f"{ranks['mean'][i]:.2f}", *(f"{one[i]:g}" for one in ranks["ranks"])]
             for i, label in enumerate(ranks["labels"])]
    return Table(["row", "mean rank", *ranks["data"]],
                 sorted(lines, key=lambda line: float(line[1])))


def ranks_text(summary: Summary) -> str:
    """What the ranks show."""
    ranks = summary["ranks"]
    return (f"Ranks by {score_title(summary['scores'][0])}, 1 is best. If all rows were equally "
            f"good, ranks would differ this much with p = {p_text(ranks['p'])} (Friedman). Mean "
            f"ranks that differ by less than {ranks['critical']:.2f} cannot be told apart "
            "(Nemenyi, 0.05).")


def missing_text(summary: Summary) -> str:
    """The runs that have no result yet."""
    def of_seed(row, seed):
        folds = row["missing_folds"].get(str(seed))
        return f"{seed}" + (f", fold {listed(folds, 10)}" if folds else "")
    parts = [f"{row['title']} (seed {'; '.join(of_seed(row, seed) for seed in row['missing'])})"
             if any(row["missing_folds"].values()) else
             f"{row['title']} (seed {', '.join(map(str, row['missing']))})"
             for row in summary["rows"] if row["missing"]]
    return f"Without a result: {'; '.join(parts)}." if parts else ""


def failed_text(summary: Summary) -> str:
    """The runs that ended with an error."""
    return "\n".join(f"- failed: {_in_markdown(one['run'])}: "
                     f"{_in_markdown(one['message'].partition(chr(10))[0])}"
                     for one in summary["failed"])


def _markdown_table(table: Table) -> str:
    marks = ["---" if title in _LEFT else "---:" for title in table.head]
    head, *lines = table.drawn(_in_markdown, "**{}**")
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, marks, *lines))


def _in_markdown(text: str) -> str:
    """A text without what Markdown would read as marks: stars, HTML, lines at the ends of words."""
    text = re.sub(r"([\\`*|\[]|<(?=[A-Za-z/!?])|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return text.replace("\n", " ")


def _comment(text: str) -> str:
    """A text as LaTeX comments, which can be copied into a caption."""
    return "\n".join(textwrap.wrap(_in_latex(text), 98, initial_indent="% ",
                                   subsequent_indent="% ", break_long_words=False,
                                   break_on_hyphens=False)) + "\n"


def _tabular(table: Table, caption: str) -> str:
    columns = "".join("l" if title in _LEFT else "r" for title in table.head)
    head, *lines = (" & ".join(line) + r" \\" for line in table.drawn(_in_latex, r"\textbf{{{}}}"))
    return _comment(caption) + "\n".join([
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule",
        r"\end{tabular}", ""])


def _in_latex(text: str) -> str:
    """A text without what LaTeX would read as a command; minus signs instead of hyphens."""
    if text == "-":
        return "--"
    safe = text.translate(_LATEX).replace(" .. ", " to ")
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", safe)
