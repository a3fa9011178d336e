"""Tables of scores as text, per class and per rule, in percent; `-` for an undefined score."""
import math
from collections.abc import Callable, Collection, Sequence

from utils.errors import counted, shown
from utils.metrics.scores import Scores

LONGEST_NAME = 40       # characters of a class name in a table


def format_table(scores: Scores, class_names: list[str], title: str | None = None) -> str:
    """The table of the scores of one rule.

    class_names: by class id.

    Columns: IoU, Dice and Acc (recall) over the pixels of all images; if image-level scores were
    measured, IoU_I and Dice_I: means over the images with the class.
    """
    dataset, image = scores.dataset, scores.image
    columns = {"IoU": dataset["Class_IoU"], "Dice": dataset["Class_Dice"],
               "Acc": dataset["Class_Recall"]}
    if image:
        columns |= {"IoU_I": image["Class_IoU"], "Dice_I": image["Class_Dice"]}
    rows = [["id", "class", *columns]]
    rows += [[str(k), cell(name), *(percent(values[k]) for values in columns.values())]
             for k, name in enumerate(class_names)]
    lines = [title] if title else []
    if image and image["published"]:
        lines.append("Image-level scores as the RankDice code computes them: not comparable "
                     "with others")
    lines += aligned(rows, (1,))
    lines.append(f"All images together: mean IoU {percent(dataset['Mean_IoU'])}, "
                 f"mean Dice {percent(dataset['Mean_Dice'])} "
                 f"({counted(dataset['Classes_Averaged'], 'class')}), "
                 f"{_accuracy(dataset)}")
    if image:
        lines.append(f"Mean over images: mIoU_I {percent(image['Mean_IoU'])}, "
                     f"mDice_I {percent(image['Mean_Dice'])} "
                     f"({counted(image['Images'], 'image')}), "
                     f"over classes mIoU_C {percent(image['Mean_Class_IoU'])}, "
                     f"mDice_C {percent(image['Mean_Class_Dice'])}")
    if scores.boundary:
        lines.append(f"Outlines: boundary IoU {percent(scores.boundary['Boundary_IoU'])}, "
                     f"boundary F {percent(scores.boundary['Boundary_F'])}")
    return "\n".join(lines)


def format_rules(results: dict[str, Scores], class_names: list[str]) -> str:
    """A table with one column per rule; results: rule -> its scores."""
    rules = list(results)
    numbers = {rule: scores.numbers() for rule, scores in results.items()}
    rows = [["", *rules]]
    for name in ("Mean_IoU", "Mean_Dice", "Pixel_Accuracy", "Binary_Accuracy", "Boundary_IoU",
                 "Boundary_F"):
        if all(name in numbers[rule] for rule in rules):
            rows.append([name, *(percent(numbers[rule][name]) for rule in rules)])
    images = [scores.image for scores in results.values() if scores.image]
    with_images = len(images) == len(rules)
    if with_images:
        for title, name in (("mIoU_I", "Mean_IoU"), ("mDice_I", "Mean_Dice"),
                            ("mIoU_C", "Mean_Class_IoU"), ("mDice_C", "Mean_Class_Dice")):
            rows.append([title, *(percent(image[name]) for image in images)])
    lines = aligned(rows, (0,))
    if with_images and any(image["published"] for image in images):
        lines.insert(0, "Image-level scores as the RankDice code computes them: not comparable "
                        "with others")
    blocks = [("IoU of the class, all images together",
               [scores.dataset["Class_IoU"] for scores in results.values()])]
    if with_images:
        blocks.append(("Dice of the class, mean over images",
                       [image["Class_Dice"] for image in images]))
    for title, columns in blocks:
        rows = [["id", "class", *rules]]
        rows += [[str(k), cell(label), *(percent(values[k]) for values in columns)]
                 for k, label in enumerate(class_names)]
        lines += ["", title, *aligned(rows, (1,))]
    return "\n".join(lines)


def format_intervals(table: dict[str, dict[str, float]]) -> str:
    """One line with the bounds of the main scores; table: metric -> {"low", "high"}."""
    titles = {"Mean_IoU": "mean IoU", "Mean_Dice": "mean Dice", "mIoU_I": "mIoU_I",
              "mDice_I": "mDice_I"}
    parts = [f"{title} {bounds_text(table[name]['low'], table[name]['high'])}"
             for name, title in titles.items() if name in table]
    return f"95 % intervals for other images: {', '.join(parts)}" if parts else ""


def percent(value: float | None) -> str:
    """A fraction as text in percent: 0.5 -> "50.00"; nan and None -> "-"."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def signed_percent(value: float | None) -> str:
    """A difference of fractions as text in percent: 0.5 -> "+50.00"; nan and None -> "-"."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:+.2f}"


def bounds_text(low: float | None, high: float | None, number: Callable = percent) -> str:
    """An interval as text, its bounds as `number` shows them; "-" if they are not known."""
    if low is None or high is None or math.isnan(low):
        return "-"
    return f"{number(low)} .. {number(high)}"


def p_text(p: float | None) -> str:
    """A p value as text; nan and None -> "-"."""
    if p is None or math.isnan(p):
        return "-"
    return f"{p:.3f}" if p >= 0.0005 else "<0.001"


def cell(name: object) -> str:
    """A class name for a table: on one line, printable, at most 40 characters."""
    text = shown(name)
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME - 3]}..."


def _accuracy(dataset):
    if percent(dataset["Pixel_Accuracy"]) != "-":
        return f"pixel accuracy {percent(dataset['Pixel_Accuracy'])}"
    return f"binary accuracy {percent(dataset['Binary_Accuracy'])}"


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """One line per row; the columns `left` are left-aligned, all others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) if i in left else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows]
