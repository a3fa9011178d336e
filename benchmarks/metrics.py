"""Compares counting pixels for the scores with one histogram and with the published loop.

    python -m benchmarks.metrics [--rounds 9] [--threads 1]     about half a minute on one core

The input is two label maps of 512x1024. "one bincount" is torch.bincount of an int64 index that
is computed beforehand. "published loop" is a plain version of the RankDice tester: for IoU, and
again for Dice, it compares, intersects and sums one class after the other.

Goals: both conventions together take at most 1.3 times as long as one bincount (uint8 labels),
and are at least 60 times (19 classes) and 400 times (150 classes) faster than the loop.
"""
import argparse
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)

    import torch

    from benchmarks.measure import interleaved, ratio, table
    torch.set_num_threads(args.threads)
    for classes in (19, 150):
        candidates = _candidates(classes)
        fast = [name for name in candidates if name != "published loop"]
        seconds = interleaved({name: candidates[name] for name in fast}, args.rounds, warmup=2)
        seconds |= interleaved({"published loop": candidates["published loop"]}, 3)
        rows = [("", "ms", "x one bincount", "x faster than the loop")]
        loop = statistics.median(seconds["published loop"])
        for name in candidates:
            middle = statistics.median(seconds[name])
            over_bincount = f"{ratio(seconds, name, 'one bincount'):.2f}" if name in fast else ""
            rows.append((name, f"{1e3 * middle:.2f}", over_bincount, f"{loop / middle:.0f}"))
        table(f"{classes} classes, 2x512x1024 labels, CPU time, {args.threads} thread(s)", rows)


def _candidates(classes):
    import torch

    from utils.metrics import DatasetMetrics, ImageMetrics, count_pixels
    target, prediction = _labels(classes)
    wide_target, wide_prediction = target.long(), prediction.long()
    index = (wide_target.clamp(max=classes) * (classes + 1) + wide_prediction).flatten()
    dataset, image = DatasetMetrics(classes), ImageMetrics(classes)

    def both(p, t):
        counts = count_pixels(p, t, classes)
        dataset.add(counts)
        image.add(counts)

    return {
        "one bincount": lambda: torch.bincount(index, minlength=(classes + 1) ** 2),
        "DatasetMetrics.update": lambda: dataset.update(prediction, target),
        "ImageMetrics.update": lambda: image.update(prediction, target),
        "both, uint8 labels": lambda: both(prediction, target),
        "both, int64 labels": lambda: both(wide_prediction, wide_target),
        "published loop": lambda: published_loop(wide_prediction, wide_target, classes),
    }


def _labels(classes):
    """(target, prediction), (2, 512, 1024) uint8, in blocks of 32 x 32 pixels.

    The first 40 target rows are ignored, and one predicted pixel in ten is drawn at random.
    """
    import torch
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, classes, (2, 16, 32), generator=generator)
    target = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)
    drawn = torch.randint(0, classes, target.shape, generator=generator)
    wrong = torch.rand(target.shape, generator=generator) < 0.1
    prediction = torch.where(wrong, drawn, target).to(torch.uint8)
    target[:, :40] = 255
    return target.to(torch.uint8), prediction


def published_loop(prediction: "torch.Tensor", target: "torch.Tensor",
                   classes: int) -> "list[torch.Tensor]":
    """[IoU, Dice] of every image and class, (N, C) float32, in one loop over the classes for each.

    prediction, target: label maps (N, H, W) int64.
    """
    import torch
    scores = []
    for measure in ("iou", "dice"):
        per_class = []
        for k in range(classes):
            predicted, labeled = (prediction == k).long(), (target == k).long()
            hits = (predicted * labeled).flatten(1).sum(1).float()
            sizes = predicted.flatten(1).sum(1) + labeled.flatten(1).sum(1)
            union = ((predicted + labeled) > 0).long().flatten(1).sum(1)
            score = hits / union if measure == "iou" else 2 * hits / sizes
            per_class.append(torch.where(union > 0, score, torch.nan))
        scores.append(torch.stack(per_class, 1))
    return scores


if __name__ == "__main__":
    main()
