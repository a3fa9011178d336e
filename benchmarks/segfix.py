"""Compares refinement by SegFix with a plain version of the published script.

    python -m benchmarks.segfix [--size 1024 2048] [--rounds 9] [--threads 1]

The script (openseg-group/openseg.pytorch) converts label ids to train ids and back with one mask
per class, and samples the label numbers bilinearly at the shifted positions; here with
align_corners=True, the behavior of PyTorch 0.4.1. Both start with offsets as scipy reads them
from a file (int32, column by column) and end with the refined uint8 map of label ids. Reading a
file is timed separately. The labels are the cells of a random partition, and the offsets are
computed from the true labels.

Goal: at least 5 times faster than the script, with equal results.
"""
import argparse
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from utils.images.types import Labels


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segfix", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 2048], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)

    import cv2
    import numpy as np
    import torch

    from benchmarks.measure import interleaved, ratio, table
    from utils.segfix.label_files import with_known_ids
    from utils.segfix.mat_files import read_offsets, write_offsets
    from utils.segfix.offsets import refine
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    labels, offset = scene(*args.size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "offset.mat"
        write_offsets(path, offset)
        stored = read_offsets(path)
        calls = {"published": lambda: published(labels, stored),
                 "refine": lambda: refine(with_known_ids(labels, "cityscapes"), stored),
                 "refine, ids kept": lambda: refine(labels, stored),
                 "reading the file": lambda: read_offsets(path)}
        seconds = interleaved(calls, args.rounds, warmup=2)
    equal = np.array_equal(calls["published"](), calls["refine"]())
    table(f"{args.size[0]}x{args.size[1]}, {(offset != 0).any(axis=2).mean():.0%} of the pixels "
          f"are border, {args.threads} thread(s), results {'equal' if equal else 'DIFFER'}", [
              ("", "ms", "published / this"),
              *((name, f"{1e3 * statistics.median(seconds[name]):.2f}",
                 f"{ratio(seconds, 'published', name):.1f}") for name in calls)])


def published(label_ids: "Labels", offset: "np.ndarray", scale: int = 2) -> "Labels":
    """The refined label ids (H, W) uint8, computed with the operations of the script.

    label_ids: (H, W) uint8. offset: (H, W, 2) integer, (dy, dx); a pixel takes the label at
    scale · offset.
    """
    import numpy as np
    import torch
    from torch.nn.functional import grid_sample

    from utils.metrics.cityscapes_metrics import EVALUATED_IDS
    height, width = label_ids.shape
    label = np.full((height, width), 255, np.uint8)
    for train_id, label_id in enumerate(EVALUATED_IDS):
        label[label_ids == label_id] = train_id
    shift = torch.from_numpy(np.ascontiguousarray(offset)).float() * scale
    rows, columns = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(),
                                   indexing="ij")
    grid = torch.stack([(columns + shift[..., 1]) / ((width - 1) / 2) - 1,
                        (rows + shift[..., 0]) / ((height - 1) / 2) - 1], dim=-1)
    moved = grid_sample(torch.from_numpy(label).float()[None, None], grid[None],
                        mode="bilinear", padding_mode="border", align_corners=True)
    label = moved.round().byte()[0, 0].numpy()
    result = np.full((height, width), 255, np.uint8)
    for train_id, label_id in enumerate(EVALUATED_IDS):
        result[label == train_id] = label_id
    return result


def scene(height: int, width: int, cells: int = 400,
          seed: int = 0) -> "tuple[Labels, np.ndarray]":
    """(label ids (H, W) uint8 with errors at borders, offsets (H, W, 2) of the true labels)."""
    import cv2
    import numpy as np
    import torch

    from utils.metrics.cityscapes_metrics import EVALUATED_IDS
    from utils.segfix.offsets import direction_vectors
    from utils.segfix.targets import distance_maps, segfix_targets, stored_angle
    rng = np.random.default_rng(seed)
    points = np.stack([rng.integers(0, height, cells), rng.integers(0, width, cells)], 1)
    seeds = np.ones((height, width), np.uint8)
    seeds[tuple(points.T)] = 0
    _, nearest = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5,
                                                 labelType=cv2.DIST_LABEL_PIXEL)
    truth = rng.integers(0, 19, nearest.max() + 1)[nearest]
    depth, dir_deg = distance_maps(truth)
    boundary, direction = segfix_targets(torch.from_numpy(truth), torch.from_numpy(depth),
                                         torch.from_numpy(stored_angle(dir_deg)))
    offset = direction_vectors()[direction.numpy()] * (boundary.numpy()[..., None] == 1)
    predicted = np.roll(truth, 2, axis=(0, 1))
    return np.array(EVALUATED_IDS, np.uint8)[predicted], offset


if __name__ == "__main__":
    main()
