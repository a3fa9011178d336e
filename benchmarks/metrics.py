"""Counting pixels for the scores, against one histogram and against the published loop.

    python -m benchmarks.metrics [--rounds 9] [--threads 1]

Two predictions of 512x1024, labels already decided. "one bincount" counts an int64 index
that is formed beforehand. "published loop" restates the RankDice tester: for IoU and again
for Dice, every class in turn is compared, intersected and summed.

Goals: both conventions together at most 1.3 times one bincount (uint8 labels), and at least
60 times (19 classes) and 400 times (150 classes) quicker than the loop.
"""
import argparse
import statistics


def main(argv=None):
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
        quick = [name for name in candidates if name != "published loop"]
        seconds = interleaved({name: candidates[name] for name in quick}, args.rounds, warmup=2)
        seconds |= interleaved({"published loop": candidates["published loop"]}, 3)
        rows = [("", "ms", "x one bincount", "x quicker than the loop")]
        loop = statistics.median(seconds["published loop"])
        for name in candidates:
            middle = statistics.median(seconds[name])
            against = f"{ratio(seconds, name, 'one bincount'):.2f}" if name in quick else ""
            rows.append((name, f"{1e3 * middle:.2f}", against, f"{loop / middle:.0f}"))
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
    """Blocks of 32 x 32 pixels, an ignored border, one prediction in ten at random."""
    import torch
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, classes, (2, 16, 32), generator=generator)
    target = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)
    guess = torch.randint(0, classes, target.shape, generator=generator)
    wrong = torch.rand(target.shape, generator=generator) < 0.1
    prediction = torch.where(wrong, guess, target).to(torch.uint8)
    target[:, :40] = 255
    return target.to(torch.uint8), prediction


def published_loop(prediction, target, classes):
    """IoU and Dice of every image and class, one class after the other, twice."""
    import torch
    scores = []
    for measure in ("iou", "dice"):
        per_class = []
        for k in range(classes):
            predicted, labelled = (prediction == k).long(), (target == k).long()
            hits = (predicted * labelled).flatten(1).sum(1).float()
            sizes = predicted.flatten(1).sum(1) + labelled.flatten(1).sum(1)
            union = ((predicted + labelled) > 0).long().flatten(1).sum(1)
            score = hits / union if measure == "iou" else 2 * hits / sizes
            per_class.append(torch.where(union > 0, score, torch.nan))
        scores.append(torch.stack(per_class, 1))
    return scores


if __name__ == "__main__":
    main()
