"""Compares our predictor with the prediction of yassouali/pytorch-segmentation ("the sources").

    python -m benchmarks.inference            about three minutes on one core
    python -m benchmarks.inference --quick    smaller images, a rough estimate

The sources predict one window at a time, scale images with scipy's zoom, copy the logits of each
view to NumPy, sum them in float64, and compute a softmax before the argmax. Both predict the same
views (same windows, same scales) and run in turns in one process on one thread. The result is the
median ratio of CPU times.

The free model (average pooling by 8, one 1x1 convolution, bilinear upsampling) costs almost
nothing, so this measures the work around the network. The same work is also measured around a
network whose last resize the predictor cannot skip.
"""
import argparse
import math
import os
import statistics
import subprocess
import sys
import time

# Large pages, for both: otherwise allocating memory costs more than the computation in it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import interleaved, peak_of, ratio
from models.layers.resize import resize_to
from utils.config.build import build
from utils.decision.rules import build_decision
from utils.images.normalize import Normalize
from utils.machine.tensors import ImageBatch, Logits
from utils.predict.largest_class import largest_class, upsampled_labels
from utils.predict.predictor import Predictor
from utils.predict.windows import filled

CLASSES = 19
SCALES = (0.75, 1.0, 1.25, 1.5)


class FreeModel(nn.Module):
    """A network that costs almost nothing: images (N, 3, H, W) float -> logits (N, C, H, W).

    closed: the predictor cannot skip the last resize, as in a network of another code base.
    """

    def __init__(self, closed: bool = False):
        super().__init__()
        self.head, self.closed = nn.Conv2d(3, CLASSES, 1), closed

    def forward(self, x: ImageBatch) -> Logits:
        small = self.head(F.avg_pool2d(x, 8, ceil_mode=True))
        if self.closed:
            return F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
        return resize_to(small, x)


def source_sliding(model: nn.Module, x: ImageBatch) -> np.ndarray:
    """Labels (H, W) int64 of x (1, 3, H, W) float from windows of 1 / 2.5 of its sides.

    As the sources compute them: one window at a time, and one stride for both axes.
    """
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


def source_multiscale(model: nn.Module, x: ImageBatch) -> np.ndarray:
    """Labels (H, W) int64 of x (1, 3, H, W) float from the scales SCALES.

    As the sources compute them: scipy's zoom for the image, bilinear logits (align_corners), a
    float64 sum.
    """
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


def forwards_only(model: nn.Module, x: ImageBatch, predictor: Predictor):
    """Runs `model` on the views that the predictor uses for x (1, 3, H, W), and nothing else."""
    if predictor.mode == "sliding":
        windows = predictor.windows(*x.shape[2:])
        for place in windows.places:
            model(filled(x[(..., *windows.area(*place))].contiguous(), windows.tile))
    else:
        for scale in predictor.scales:
            size = [int(n * scale) for n in x.shape[2:]]
            model(F.interpolate(x, size, mode="nearest") if scale != 1 else x)


def report(text: str, value: float, goal: float, at_least: bool = True):
    """Prints one line: text, value, goal, and whether the goal is reached."""
    reached = value >= goal if at_least else value <= goal
    print(f"{text:<66}{value:8.2f}  goal {'>=' if at_least else '<='} {goal:g}  "
          f"{'reached' if reached else 'MISSED'}", flush=True)


def around_a_free_model(height: int, width: int, repeats: int):
    """Prints the CPU times of prediction around the free model: the sources / ours."""
    torch.manual_seed(0)
    image, normalize, rule = _image(height, width), _normalize(), build_decision("max")
    model, closed = FreeModel().eval(), FreeModel(closed=True).eval()
    closed.load_state_dict(model.state_dict())
    multi, other = (Predictor(m, normalize, mode="multiscale", scales=SCALES)
                    for m in (model, closed))
    aligned = Predictor(model, normalize, mode="multiscale", scales=SCALES, align_corners=True)
    slide = Predictor(model, normalize, mode="sliding", tiling="source")
    even = Predictor(model, normalize, mode="sliding")
    x = normalize(image)
    same = (aligned.labels(image, rule)[0].numpy() == source_multiscale(model, x)).mean()
    print(f"free model, {height}x{width}, {CLASSES} classes; labels equal to the source's: "
          f"multiscale {same:.4%}, sliding "
          f"{(slide.labels(image, rule)[0].numpy() == source_sliding(model, x)).mean():.4%}")
    t = interleaved({"theirs": lambda: source_multiscale(model, normalize(image)),
                     "ours": lambda: multi.labels(image, rule),
                     "closed": lambda: other.labels(image, rule),
                     "bare": lambda: forwards_only(model, x, multi)}, repeats)
    report(f"multiscale {SCALES}: source / ours", ratio(t, "theirs", "ours"), 8)
    print(f"{'  the same, last resize inside the network':<66}{ratio(t, 'theirs', 'closed'):8.2f}")
    print(f"{'  its forwards alone, with that resize, would give':<66}"
          f"{ratio(t, 'theirs', 'bare'):8.2f}")
    t = interleaved({"theirs": lambda: source_sliding(model, normalize(image)),
                     "ours": lambda: slide.labels(image, rule),
                     "even": lambda: even.labels(image, rule)}, repeats)
    report("sliding, equal windows: source / ours", ratio(t, "theirs", "ours"), 1.6)
    counts = [len(p.windows(height, width).places) for p in (slide, even)]
    report(f"windows at the same overlap: source {counts[0]} / default {counts[1]}",
           counts[0] / counts[1], 1.4)
    print(f"{'sliding with the default windows: source / ours':<66}"
          f"{ratio(t, 'theirs', 'even'):8.2f}")


def full_resolution_labels(height: int, width: int, repeats: int):
    """Prints the time from stride-8 logits of smooth regions to full-size labels: plain / ours."""
    for classes, scale in ((CLASSES, 1), (150, 2)):
        seed = torch.Generator().manual_seed(0)
        size = height // scale, width // scale
        small = F.interpolate(torch.randn(1, classes, size[0] // 64, size[1] // 64, generator=seed),
                              (size[0] // 8, size[1] // 8), mode="bicubic")
        for aligned in (False, True):
            def plain(small=small, size=size, aligned=aligned):
                return F.interpolate(small, size, mode="bilinear",
                                     align_corners=aligned).max(1).indices

            def ours(small=small, size=size, aligned=aligned):
                return upsampled_labels(small, size, aligned)
            different = int((plain() != ours()).sum())
            t = interleaved({"plain": plain, "ours": ours}, repeats)
            report(f"{classes} classes to {size[0]}x{size[1]}, align_corners={aligned}, "
                   f"{different} differ: plain / ours", ratio(t, "plain", "ours"), 3)
    logits = torch.randn(1, CLASSES, height, width, generator=seed)
    t = interleaved({"plain": lambda: logits.max(1).indices,
                     "ours": lambda: largest_class(logits)}, repeats)
    print(f"{'class of the largest logit alone: max / ours':<66}{ratio(t, 'plain', 'ours'):8.2f}")


def around_a_network(height: int, width: int, repeats: int):
    """Prints the time of a prediction / the time of the forwards in it, measured inside them.

    Running the same forwards alone can take a quarter more or less time, which depends on the
    memory that the allocator returns to the system between them, not on the predictor.
    """
    torch.manual_seed(0)
    network = build("models", {"type": "ENet", "args": {}}, num_classes=CLASSES).eval()
    clocked, image, normalize = Clocked(network), _image(height, width), _normalize()
    for predictor in (Predictor(clocked, normalize, mode="multiscale", scales=SCALES),
                      Predictor(clocked, normalize, mode="sliding")):
        ratios = []
        for _ in range(repeats + 1):
            clocked.seconds = 0.0
            start = time.process_time()
            predictor(image)
            ratios.append((time.process_time() - start) / clocked.seconds)
        report(f"ENet {height}x{width}, {predictor.mode}: predictor / the forwards in it",
               statistics.median(ratios[1:]), 1.1, at_least=False)


class Clocked(nn.Module):
    """A network that measures the CPU seconds of its forwards (`seconds`)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, x: ImageBatch) -> Logits:
        start = time.process_time()
        result = self.network(x)
        self.seconds += time.process_time() - start
        return result


def memory(height: int, width: int):
    """Prints the peak memory of a prediction in full logit maps, each in a new process."""
    one_map = CLASSES * height * width * 4
    print("peak memory, in full logit maps:")
    for scales in ((1.0,), (0.5, 1.0), (0.5, 0.625, 0.75, 0.875, 1.0), (0.5, 0.75)):
        done = subprocess.run([sys.executable, "-m", "benchmarks.inference", "--memory",
                               f"{height}x{width}", ",".join(map(str, scales))],
                              capture_output=True, text=True, check=True)
        forward, prediction = (int(value) / one_map for value in done.stdout.split())
        print(f"  multiscale {scales}: {prediction:.2f}, its largest forward alone {forward:.2f}")


def _peaks(size, scales):
    """Prints the peak bytes of the forward at the largest scale, and of the prediction."""
    height, width = map(int, size.split("x"))
    scales = tuple(map(float, scales.split(",")))
    predictor = Predictor(FreeModel().eval(), _normalize(), mode="multiscale", scales=scales)
    predictor(_image(64, 64))
    image = _image(height, width)
    x = torch.zeros(1, 3, *(int(n * max(scales)) for n in image.shape[2:]))
    with torch.inference_mode():
        print(peak_of(lambda: predictor.model(x)), peak_of(lambda: predictor(image)))


def _image(height, width):
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))


def _normalize():
    return Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the pixels, 3 repeats")
    parser.add_argument("--memory", nargs=2, metavar=("HxW", "SCALES"),
                        help="print two peaks in bytes and stop")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.memory:
        return _peaks(*args.memory)
    height, width, repeats = (512, 1024, 3) if args.quick else (1024, 2048, 5)
    with torch.inference_mode():
        around_a_free_model(height, width, repeats)
        full_resolution_labels(height, width, repeats)
        around_a_network(height * 5 // 8, width * 5 // 8, repeats)
    memory(height, width)


if __name__ == "__main__":
    main()
