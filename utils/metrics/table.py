"""Scores as text: one line per class, and rules side by side. Per cent, `-` where undefined."""
import math


def format_table(results: dict, class_names: list, title: str | None = None) -> str:
    """The scores of one rule.

    results: what `DatasetMetrics.compute` gives; if it holds "image" (the dict of
        `ImageMetrics.compute`), the image-level scores stand beside.
    class_names: by class id.

    Columns: IoU, Dice and Acc (recall) with the pixels of all images added up; IoU_I and
    Dice_I the mean over the images that have the class.
    """
    image = results.get("image")
    columns = {"IoU": results["Class_IoU"], "Dice": results["Class_Dice"],
               "Acc": results["Class_Recall"]}
    if image:
        columns |= {"IoU_I": image["Class_IoU"], "Dice_I": image["Class_Dice"]}
    rows = [["id", "class", *columns]]
    rows += [[str(k), str(name), *(percent(values[k]) for values in columns.values())]
             for k, name in enumerate(class_names)]
    lines = [title] if title else []
    if image and image["published"]:
        lines.append("Image-level scores as the RankDice code computes them: not comparable "
                     "with others")
    lines += _aligned(rows)
    lines.append(f"All images together: mean IoU {percent(results['Mean_IoU'])}, "
                 f"mean Dice {percent(results['Mean_Dice'])} "
                 f"({results['Classes_Averaged']} classes), "
                 f"{_accuracy(results)}")
    if image:
        lines.append(f"Mean over images: mIoU_I {percent(image['Mean_IoU'])}, "
                     f"mDice_I {percent(image['Mean_Dice'])} ({image['Images']} images), "
                     f"over classes mIoU_C {percent(image['Mean_Class_IoU'])}, "
                     f"mDice_C {percent(image['Mean_Class_Dice'])}")
    if "Boundary_IoU" in results:
        lines.append(f"Outlines: boundary IoU {percent(results['Boundary_IoU'])}, "
                     f"boundary F {percent(results['Boundary_F'])}")
    return "\n".join(lines)


def format_rules(results: dict, class_names: list) -> str:
    """Several rules side by side; results: rule -> results as in `format_table`."""
    rules = list(results)
    rows = [["", *rules]]
    for name in ("Mean_IoU", "Mean_Dice", "Pixel_Accuracy", "Binary_Accuracy"):
        rows.append([name, *(percent(results[rule][name]) for rule in rules)])
    for name in ("Boundary_IoU", "Boundary_F"):
        if all(name in results[rule] for rule in rules):
            rows.append([name, *(percent(results[rule][name]) for rule in rules)])
    pairs = [("mIoU_I", "Mean_IoU"), ("mDice_I", "Mean_Dice"),
             ("mIoU_C", "Mean_Class_IoU"), ("mDice_C", "Mean_Class_Dice")]
    with_images = all("image" in results[rule] for rule in rules)
    if with_images:
        for title, name in pairs:
            rows.append([title, *(percent(results[rule]["image"][name]) for rule in rules)])
    lines = _aligned(rows)
    if with_images and any(results[rule]["image"]["published"] for rule in rules):
        lines.insert(0, "Image-level scores as the RankDice code computes them: not comparable "
                        "with others")
    blocks = [("IoU of the class, all images together", None, "Class_IoU")]
    if with_images:
        blocks.append(("Dice of the class, mean over images", "image", "Class_Dice"))
    for title, part, name in blocks:
        columns = [(results[rule][part] if part else results[rule])[name] for rule in rules]
        rows = [["id", "class", *rules]]
        rows += [[str(k), str(label), *(percent(values[k]) for values in columns)]
                 for k, label in enumerate(class_names)]
        lines += ["", title, *_aligned(rows)]
    return "\n".join(lines)


def format_intervals(table: dict) -> str:
    """Scores with their bounds, one a line; table: of `utils.metrics.bootstrap.intervals`."""
    rows = [[name, percent(one.value), f"{percent(one.low)} .. {percent(one.high)}"]
            for name, one in table.items() if not math.isnan(one.value)]
    return "\n".join(_aligned(rows)) if rows else ""


def percent(value: float | None) -> str:
    """0.5 -> "50.00"; nan and None -> "-"."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _accuracy(results):
    if not math.isnan(results["Pixel_Accuracy"]):
        return f"pixel accuracy {percent(results['Pixel_Accuracy'])}"
    return f"binary accuracy {percent(results['Binary_Accuracy'])}"


def _aligned(rows):
    """Text columns to the left (ids and names), numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = 2 if rows[0][0] == "id" else 1
    return ["  ".join(cell.ljust(width) if i == text - 1 else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
            for row in rows]
