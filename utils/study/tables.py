"""The table of a study as Markdown, LaTeX (booktabs) and CSV. The input is study.json."""
import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from utils.metrics.table import bounds_text, p_text, percent, signed_percent
from utils.study.summary import Summary

# Scores whose values are fractions and are shown in percent; others are shown as they are.
PLAIN = ("loss", "Classes_Averaged")
_TITLES = {"Mean_IoU": "mean IoU", "Mean_Dice": "mean Dice", "Pixel_Accuracy": "pixel accuracy"}
_LATEX = str.maketrans({"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
                        "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                        "\\": r"\textbackslash{}"})


def markdown(summary: Summary) -> str:
    """The whole table.md: the table, the differences, ranks, and what failed or is missing."""
    parts = [f"# {summary['name']}", summary["note"], _markdown_table(*_main(summary, "**{}**"))]
    if summary["comparisons"]:
        parts += [_markdown_table(*_differences(summary)), differences_text(summary)]
    if summary["seeds_needed"]:
        parts.append(needed_text(summary))
    if summary["ranks"]:
        parts += [_markdown_table(*_ranks(summary)), ranks_text(summary)]
    parts += [missing_text(summary), failed_text(summary)]
    return "\n\n".join(filter(None, parts)) + "\n"


def latex(summary: Summary) -> str:
    """table.tex: tabulars for booktabs, to be put into a table of a paper."""
    tables = [_main(summary, r"\textbf{{{}}}")]
    if summary["comparisons"]:
        tables.append(_differences(summary))
    if summary["ranks"]:
        tables.append(_ranks(summary))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(_tabular(*one) for one in tables)


def csv_text(summary: Summary) -> str:
    """table.csv: one line for each row and score, with the single runs; scores are fractions."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    most = max((len(row["runs"]) for row in summary["rows"]), default=0)
    writer.writerow(["row", "data", "score", "mean", "sd", "runs", *(
        f"run {i + 1}" for i in range(most)), "published", "difference", "parameters", "flops",
        "seconds", "difference to baseline", "low over seeds", "high over seeds",
        "p over seeds (Holm)", "low over images", "high over images", "p over images (Holm)"])
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
                images.get("low"), images.get("high"), images.get("p_holm"))])
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


def _main(summary: Summary, bold: str) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of the main table. bold: marks the best value."""
    rows, scores = summary["rows"], summary["scores"]
    optional: list[tuple[str, Callable[[dict], Any], Callable[[dict], str]]] = [
        ("parameters M", lambda row: row["parameters"],
         lambda row: scaled(row["parameters"], 1e6)),
        ("GFLOPs", lambda row: row["flops"], lambda row: scaled(row["flops"], 1e9)),
        ("time", lambda row: row["seconds"], lambda row: duration(row["seconds"]))]
    optional = [one for one in optional if any(one[1](row) is not None for row in rows)]
    with_data = any(row["data"] for row in rows)
    head, several = [*(["data"] if with_data else []), "row"], _several(summary)
    for score in scores:
        head.append(score_title(score))
        head += ["runs"] * several
        if has_published(summary, score):
            head += ["published", "difference"]
    lines = []
    for row in rows:
        line = [*([row["data"]] if with_data else []), row["label"]]
        for score in scores:
            one = row["scores"][score]
            text = spread(one, score)
            line.append(bold.format(text) if one["best"] else text)
            if several:
                line.append(", ".join(number(value, score) for value in one["values"]) or "-")
            if has_published(summary, score):
                line += [published_text(one["published"], score),
                         number(one["difference"], score, True)]
        lines.append(line + [show(row) for _, _, show in optional])
    return [*head, *(title for title, _, _ in optional)], lines


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


def _differences(summary: Summary) -> tuple[list[str], list[list[str]]]:
    scores = len(summary["scores"]) > 1
    head = ["row", *(["score"] if scores else []), f"difference to {summary['baseline']}",
            "95 % over seeds", "p (Holm)", "95 % over images", "p (Holm)"]
    lines = []
    for one in summary["comparisons"]:
        score, seeds, images = one["score"], one["seeds"], one["images"]
        lines.append([one["row"], *([score_title(score)] if scores else []),
                      number(seeds["value"], score, True),
                      bounds(seeds, score) + ("" if seeds["paired"] else " (not paired)"),
                      p_text(seeds["p_holm"]), bounds(images, score),
                      p_text(images["p_holm"] if images else None)])
    return head, lines


def differences_text(summary: Summary) -> str:
    """What the two intervals mean."""
    return ("Over seeds: another training with another seed on the same images. Over images: these "
            "trained networks on other images of the same kind. p is adjusted for the number of "
            "rows (Holm).")


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


def _ranks(summary: Summary) -> tuple[list[str], list[list[str]]]:
    ranks = summary["ranks"]
    lines = [[label, f"{ranks['mean'][i]:.2f}", *(f"{one[i]:g}" for one in ranks["ranks"])]
             for i, label in enumerate(ranks["labels"])]
    return ["row", "mean rank", *ranks["data"]], sorted(lines, key=lambda line: float(line[1]))


def ranks_text(summary: Summary) -> str:
    """What the ranks show."""
    ranks = summary["ranks"]
    return (f"Ranks by {score_title(summary['scores'][0])}, 1 is best. If all rows were equally "
            f"good, ranks would differ this much with p = {p_text(ranks['p'])} (Friedman). Mean "
            f"ranks that differ by less than {ranks['critical']:.2f} cannot be told apart "
            "(Nemenyi, 0.05).")


def missing_text(summary: Summary) -> str:
    """The runs that have no result yet."""
    parts = [f"{row['title']} (seed {', '.join(map(str, row['missing']))})"
             for row in summary["rows"] if row["missing"]]
    return f"Without a result: {'; '.join(parts)}." if parts else ""


def failed_text(summary: Summary) -> str:
    """The runs that ended with an error."""
    return "\n".join(f"- failed: {one['run']}: {one['message'].splitlines()[0]}"
                     for one in summary["failed"])


def _markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        return text.replace("|", r"\|").replace("\n", " ")
    left = {i for i, title in enumerate(head) if title in ("row", "data", "score", "runs")}
    marks = ["---" if i in left else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in (head, marks, *lines))


def _tabular(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        inner = text.removeprefix(r"\textbf{").removesuffix("}") \
            if text.startswith(r"\textbf{") else text
        safe = inner.translate(_LATEX).replace("±", r"$\pm$").replace(" .. ", " to ")
        return rf"\textbf{{{safe}}}" if inner != text else safe
    columns = "".join("l" if title in ("row", "data", "score", "runs") else "r" for title in head)
    body = [" & ".join(map(cell, line)) + r" \\" for line in lines]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
                      " & ".join(map(cell, head)) + r" \\", r"\midrule", *body, r"\bottomrule",
                      r"\end{tabular}", ""])
