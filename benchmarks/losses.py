"""Compares CPU time and peak memory of every loss, forward + backward, with other code.

    OMP_NUM_THREADS=1 python -m benchmarks.losses [--rounds 7] [--sizes 19x4 150x1]
                                                  [--losses DC ...] [--confident] [--no-memory]

Each loss is compared with torch's cross-entropy ("CE"), with a plain version of the published
algorithm (benchmarks.published_losses), and with the same loss of segmentation_models_pytorch
("smp") if that is installed and has one. All run in turns in one process. Ratios are medians of
CPU time over the rounds; "published / ours" above 1 means that ours is faster. "bar" is the goal.
Extra memory is the peak above the inputs and the gradient, in logit-sized tensors. --confident:
logits as of a trained network (the true class has by far the largest) instead of noise.
Each image is 512 x 512 with labels in blocks; one row of blocks is ignored. Of 150 classes, 20
are present. The published RMI is left out at 150x4, where it needs more than 10 GB.
"""
import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import published_losses as published
from benchmarks.measure import interleaved, peak_of, ratio, table
from utils.losses import build_loss

IGNORE = 255
# name: (config section, published form, class in segmentation_models_pytorch.losses with its
# arguments, goal for ours / CE (at most), goals for published / ours at 19 and at 150 classes)
LOSSES = {
    "CrossEntropyLoss2d": ("CE", None, ("SoftCrossEntropyLoss", {"smooth_factor": 0.0}), None,
                           None),
    "OhemCrossEntropy": ("OhemCrossEntropy", published.ohem, None, 1.15, None),
    "TOPK": ("TOPK", published.topk, None, 1.3, None),
    "Bootstrapped": ("BootstrappedCrossEntropyLoss", published.bootstrapped, None, 1.3, None),
    "FocalLoss": ("FocalLoss", published.focal, None, 1.5, None),
    "DiceLoss": ("DiceLoss", published.flat_dice, None, 2.0, None),
    "DC": ("DC", published.class_dice, ("DiceLoss", {"mode": "multiclass"}), 2.0, None),
    "ClassDiceLoss": ("ClassDiceLoss", published.class_dice, ("DiceLoss", {"mode": "multiclass"}),
                      2.0, None),
    "DC_CE": ("DC_CE", published.dice_and_cross_entropy, None, 2.0, None),
    "LovaszSoftmax": ("LovaszSoftmax", published.lovasz, ("LovaszLoss", {"mode": "multiclass"}),
                      None, (1.5, 2.5)),
    "BCEWithLogitsLoss2d": ("BCEWithLogitsLoss2d", published.bce, None, None, None),
    "BCEWithLogitsFocalLoss2d": ("BCEWithLogitsFocalLoss2d", None,
                                 ("FocalLoss", {"mode": "multiclass", "gamma": 2.0}), None, None),
    "BDiceLoss": ("BDiceLoss", None, None, None, None),
    "RMI max 3": ("RMI", published.rmi, None, None, (1.4, 1.4)),
    "RMI avg 4": ({"type": "RMI", "args": {"pool": "avg"}},
                  lambda x, t: published.rmi(x, t, pool="avg", stride=4), None, None, (1.4, 1.4)),
}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", default=["19x4", "19x1", "150x4", "150x1"],
                        help="classes x images")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--confident", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--one-memory", nargs=2, metavar=("LOSS", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.one_memory:
        name, size = args.one_memory
        print(_extra_memory(name, size, args.confident))
        return
    for size in args.sizes:
        rows = [("loss", "ms", "/ CE", "bar", "published / ours", "bar", "smp / ours",
                 "extra memory", "CE's")]
        ce_memory = None if args.no_memory else _memory("cross-entropy", size, args.confident)
        for name in args.losses:
            rows.append(_row(name, size, args, ce_memory))
        table(f"{size.split('x')[0]} classes, {size.split('x')[1]} x 512 x 512, float32, "
              f"{'confident logits' if args.confident else 'noise'}", rows)


def _row(name, size, args, ce_memory):
    """The cells of one loss at one size."""
    section, form, twin, ce_bar, form_bar = LOSSES[name]
    logits, target = _inputs(size, args.confident)
    wide = target.long()
    calls = {"ce": lambda x: F.cross_entropy(x, wide, ignore_index=IGNORE)}
    loss = build_loss(section, IGNORE)
    calls["ours"] = lambda x: loss(x, target)
    if name.startswith("RMI") and logits.numel() > 1e8:
        form = None         # its windows over all classes need more than 10 GB
    if form is not None:
        calls["published"] = lambda x: form(x, wide)
    smp = _smp_loss(twin)
    if smp is not None:
        calls["smp"] = lambda x: smp(x, wide)

    def step(call):
        def run():
            logits.grad = None
            call(logits).backward()
        return run

    seconds = interleaved({key: step(call) for key, call in calls.items()}, args.rounds)
    wide_classes = logits.shape[1] > 100
    return (name, f"{sorted(seconds['ours'])[args.rounds // 2] * 1e3:.0f}",
            f"{ratio(seconds, 'ours', 'ce'):.2f}", f"<= {ce_bar}" if ce_bar else "",
            f"{ratio(seconds, 'published', 'ours'):.2f}" if form else "",
            f">= {form_bar[wide_classes]}" if form_bar else "",
            f"{ratio(seconds, 'smp', 'ours'):.2f}" if smp else "",
            "" if args.no_memory else _memory(name, size, args.confident), ce_memory or "")


def _inputs(size, confident):
    """(logits (N, C, 512, 512) float32, target (N, 512, 512) uint8) for a size such as "19x4"."""
    num_classes, images = map(int, size.split("x"))
    torch.manual_seed(0)
    logits = torch.randn(images, num_classes, 512, 512)
    target = torch.randint(0, min(num_classes, 20), (images, 16, 16))
    if confident:
        # The true class leads by a margin, except at one pixel in a hundred.
        pixels = target.repeat_interleave(32, 1).repeat_interleave(32, 2)
        margin = torch.where(torch.rand(pixels.shape) < 0.01, 0.0, 12.0)
        logits.scatter_add_(1, pixels[:, None], margin[:, None])
    target[:, 0] = IGNORE
    target = target.repeat_interleave(32, 1).repeat_interleave(32, 2).to(torch.uint8)
    return logits.requires_grad_(), target


def _smp_loss(twin):
    if twin is None:
        return None
    try:
        from segmentation_models_pytorch import losses
    except ImportError:
        return None
    name, options = twin
    return getattr(losses, name)(ignore_index=IGNORE, **options)


def _memory(name, size, confident):
    """Extra memory of one step in a new process, in logit-sized tensors, as text."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.losses", "--one-memory", name, size]
    if confident:
        command.append("--confident")
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True,
                             cwd=Path(__file__).resolve().parents[1])
    return process.stdout.strip()


def _extra_memory(name, size, confident):
    """Extra memory as in `_memory`, measured in this process; "-" on other systems than Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return "-"
    _peak(name, "19x1", confident)      # the first step loads libraries and fills pools
    peak, tensor = _peak(name, size, confident)
    return f"{peak / tensor - 1:.2f}"


def _peak(name, size, confident):
    """(peak bytes of one step above the inputs, bytes of the logits)."""
    logits, target = _inputs(size, confident)
    loss = build_loss(LOSSES[name][0], IGNORE) if name in LOSSES else None
    wide = target.long()

    def step():
        value = loss(logits, target) if loss else F.cross_entropy(logits, wide, ignore_index=IGNORE)
        value.backward()

    return peak_of(step), logits.numel() * logits.element_size()


if __name__ == "__main__":
    main()
