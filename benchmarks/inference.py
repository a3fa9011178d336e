"""Prediction against the way of yassouali/pytorch-segmentation, side by side in one run.

    python -m benchmarks.inference            about three minutes on one core
    python -m benchmarks.inference --quick    smaller pictures, a rough idea

The sources' way, restated: one window at a time, scipy's zoom for the scaled
images, every view's logits taken to NumPy and summed in float64, softmax before
the arg-max. Both ways get the same views (same windows, same scales), run in
turns in one process on one thread, and are compared by the median of CPU times.

The free model (average pooling by 8, one 1x1 convolution, bilinear back) costs
next to nothing, so that what remains is the work around the network.
"""
import argparse
import math
import os
import statistics
import subprocess
import sys
import time

# Large pages, for both ways: fresh memory otherwise costs more than what is done with it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.config import build
from utils.decision import largest
from utils.normalize import Normalize
from utils.predictor import Predictor

CLASSES = 19
SCALES = (0.75, 1.0, 1.25, 1.5)


class FreeModel(nn.Module):
    """Logits that cost almost nothing: (N, 3, H, W) -> (N, C, H, W)."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, CLASSES, 1)

    def forward(self, x):
        small = self.head(F.avg_pool2d(x, 8, ceil_mode=True))
        return F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)


def source_sliding(model, x):
    """Windows of a 2.5th of the image, one stride for both axes, one window at a time."""
    height, width = x.shape[2:]
    tile = int(height // 2.5), int(width // 2.5)
    stride = math.ceil(tile[0] * (1 - 1 / 3))
    total, count = np.zeros((CLASSES, height, width)), np.zeros((height, width))
    for i in range(math.ceil((height - tile[0]) / stride) + 1):
        for j in range(math.ceil((width - tile[1]) / stride) + 1):
            top, left = i * stride, j * stride
            window = x[:, :, top:top + tile[0], left:left + tile[1]]
            h, w = window.shape[2:]
            logits = model(F.pad(window, (0, tile[1] - w, 0, tile[0] - h)))[:, :, :h, :w]
            total[:, top:top + h, left:left + w] += logits.squeeze(0).numpy()
            count[top:top + h, left:left + w] += 1
    return _source_labels(total / count)


def source_multiscale(model, x):
    """scipy's zoom for the image, bilinear logits (corners aligned), a float64 sum."""
    from scipy import ndimage
    size, total = x.shape[2:], np.zeros((CLASSES, *x.shape[2:]))
    for scale in SCALES:
        scaled = ndimage.zoom(x.numpy(), (1, 1, scale, scale), order=1, prefilter=False)
        logits = model(torch.from_numpy(scaled))
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=True)
        total += logits.squeeze(0).numpy()
    return _source_labels(total / len(SCALES))


def _source_labels(mean):
    return F.softmax(torch.from_numpy(mean), dim=0).argmax(0).numpy()


def bare(model, x, predictor):
    """The forwards alone of a predictor's views."""
    if predictor.mode == "sliding":
        tile, rows, columns = predictor.windows(*x.shape[2:])
        for top in rows:
            for left in columns:
                window = x[:, :, top:top + tile[0], left:left + tile[1]].contiguous()
                h, w = window.shape[2:]
                model(F.pad(window, (0, tile[1] - w, 0, tile[0] - h)))
    else:
        for scale in predictor.scales:
            model(torch.empty(1, 3, *(int(n * scale) for n in x.shape[2:])).fill_(0.1))


def timed(repeats, **ways):
    """Median CPU seconds of each way, run in turns."""
    times = {name: [] for name in ways}
    for _ in range(repeats + 1):                      # the first turn warms up
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def report(text, value, goal, at_least=True):
    reached = value >= goal if at_least else value <= goal
    print(f"{text:<66}{value:8.2f}  goal {'>=' if at_least else '<='} {goal:g}  "
          f"{'reached' if reached else 'MISSED'}", flush=True)


def around_a_free_model(height, width, repeats):
    model, image, normalize = FreeModel().eval(), _image(height, width), _normalize()
    multi = Predictor(model, normalize, mode="multiscale", scales=SCALES)
    aligned = Predictor(model, normalize, mode="multiscale", scales=SCALES, align_corners=True)
    slide = Predictor(model, normalize, mode="sliding", tiling="source")
    even = Predictor(model, normalize, mode="sliding")
    x = normalize(image)
    same = (largest(aligned(image))[0].numpy() == source_multiscale(model, x)).mean()
    print(f"free model, {height}x{width}, {CLASSES} classes; labels equal to the source's: "
          f"multiscale {same:.4%}, sliding "
          f"{(largest(slide(image))[0].numpy() == source_sliding(model, x)).mean():.4%}")
    t = timed(repeats, theirs=lambda: source_multiscale(model, normalize(image)),
              ours=lambda: largest(multi(image)), bare=lambda: bare(model, x, multi))
    report(f"multiscale {SCALES}: source / ours", t["theirs"] / t["ours"], 8)
    print(f"{'  the forwards alone would give':<66}{t['theirs'] / t['bare']:8.2f}")
    t = timed(repeats, theirs=lambda: source_sliding(model, normalize(image)),
              ours=lambda: largest(slide(image)), even=lambda: largest(even(image)))
    report("sliding, equal windows: source / ours", t["theirs"] / t["ours"], 1.6)
    counts = [len(rows) * len(columns) for _, rows, columns in
              (p.windows(height, width) for p in (slide, even))]
    report(f"windows at the same overlap: source {counts[0]} / default {counts[1]}",
           counts[0] / counts[1], 1.4)
    print(f"{'sliding with the default windows: source / ours':<66}{t['theirs'] / t['even']:8.2f}")


def around_a_network(height, width, repeats):
    torch.manual_seed(0)
    model = build("models", {"type": "ENet", "args": {}}, num_classes=CLASSES).eval()
    image, normalize = _image(height, width), _normalize()
    x = normalize(image)
    for name, options in (("multiscale", {"scales": SCALES}), ("sliding", {})):
        predictor = Predictor(model, normalize, mode=name, **options)
        t = timed(repeats, bare=lambda p=predictor: bare(model, x, p),
                  ours=lambda p=predictor: p(image))
        report(f"ENet {height}x{width}, {name}: predictor / its bare forwards",
               t["ours"] / t["bare"], 1.1, at_least=False)


def memory(height, width):
    """Peak memory of one prediction over its end, in full logit maps, each in a fresh process."""
    one_map = CLASSES * height * width * 4
    print("peak memory, in full logit maps:")
    for scales in ((1.0,), (0.5, 1.0), (0.5, 0.625, 0.75, 0.875, 1.0), (0.5, 0.75)):
        done = subprocess.run([sys.executable, "-m", "benchmarks.inference", "--memory",
                               f"{height}x{width}", ",".join(map(str, scales))],
                              capture_output=True, text=True, check=True)
        alone, all_of_it = (int(value) / one_map for value in done.stdout.split())
        print(f"  multiscale {scales}: {all_of_it:.2f}, its largest forward alone {alone:.2f}")


def _peaks(size, scales):
    """Print the peak bytes of the forward at the largest scale, and of the prediction."""
    height, width = map(int, size.split("x"))
    scales = tuple(map(float, scales.split(",")))
    predictor = Predictor(FreeModel().eval(), _normalize(), mode="multiscale", scales=scales)
    predictor(_image(64, 64))
    image = _image(height, width)
    x = torch.zeros(1, 3, *(int(n * max(scales)) for n in image.shape[2:]))
    with torch.inference_mode():
        print(_peak_of(lambda: predictor.model(x)), _peak_of(lambda: predictor(image)))


def _peak_of(work):
    """Bytes by which the resident memory rose above where it was (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")                              # forget the highest value so far
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def _image(height, width):
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))


def _normalize():
    return Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the pixels, 3 repeats")
    parser.add_argument("--memory", nargs=2, metavar=("HxW", "SCALES"),
                        help="print two peaks in bytes and stop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        return _peaks(*args.memory)
    size, repeats = ((512, 1024), 3) if args.quick else ((1024, 2048), 5)
    with torch.inference_mode():
        around_a_free_model(*size, repeats)
        around_a_network(*(n * 5 // 8 for n in size), repeats)
    memory(*size)


if __name__ == "__main__":
    main()
