"""Compare parameters, FLOPs, time and memory of networks: table, JSON and bar chart.

Every network runs in a separate process, so that no other one affects its memory, its caches or
whether it finishes. Measured, per batch:

  params (M)  millions of parameters
  GFLOPs      of one image's inference, two per multiply-add, as counted by torch
  infer (ms)  the network in eval mode, without gradients
  train (ms)  forward, cross-entropy of every output, backward, SGD with momentum
  memory      the peak, network included: on CUDA what torch allocated, on the CPU the growth of
              the process since the moment before the network was built

Times are the best of --repeats: on CUDA clock time, on the CPU processor time per thread, which
does not grow when other programs run. Random weights, random images, float32.

examples:
  python -m tools.compare_models --size 512x1024
  python -m tools.compare_models PSPNet UperNet --backbones resnet50 mobilenet_v3_large
  python -m tools.compare_models ENet DeepLabV3 --device cuda --batch 8 --json m.json --png m.png
"""
import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli import console
from utils.cli.arguments import at_least, command_parser, require_folder, size
from utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from utils.evaluation.model_costs import CostJob

Row = dict[str, Any]        # what is known of one network: name, type, backbone and its numbers

ROOT = Path(__file__).resolve().parents[1]
# (key of a row, heading, the unit of the heading)
COLUMNS = (("parameters", "params (M)", 1e6), ("flops", "GFLOPs", 1e9),
           ("infer_seconds", "infer (ms)", 1e-3), ("train_seconds", "train (ms)", 1e-3),
           ("infer_bytes", "infer (MiB)", 2 ** 20), ("train_bytes", "train (MiB)", 2 ** 20))
BAR = (31, 97, 169)         # of every measure: each column has its own scale


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.compare_models", __doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="architectures (default: all of them)")
    add("--backbones", nargs="+", metavar="NAME", default=[],
        help="build each architecture on each of these (default: its default backbone)")
    add("--size", type=size, default="512x1024", metavar="N|HxW",
        help="of the images (default %(default)s)")
    add("--batch", type=at_least(1), default=2, metavar="N",
        help="images; networks that pool to one pixel train on two or more (default %(default)s)")
    add("--classes", type=at_least(1), default=19, metavar="N", help="default %(default)s")
    add("--repeats", type=at_least(1), default=3, metavar="N", help="default %(default)s")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="auto uses a GPU if there is one")
    add("--threads", type=at_least(0), default=0, metavar="N",
        help="on the CPU (default: torch's choice)")
    add("--infer-only", action="store_true", help="do not train")
    add("--json", type=Path, metavar="FILE", help="also write every number to this file")
    add("--png", type=Path, metavar="FILE", help="also draw a bar chart")
    add("--child", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.child:
        from utils.evaluation.model_costs import CostJob, measure
        for found in measure(CostJob(**json.loads(args.child))):
            print(json.dumps(found), flush=True)
        return 0
    require_folder(args.json, args.png)
    jobs = _jobs(args)
    rows, show = [], _Printer(goes_on=bool(args.json or args.png))
    show("  ".join([f"{'network':<34}", *(f"{heading:>12}" for _, heading, _ in COLUMNS)]))
    try:
        for number, job in enumerate(jobs, start=1):
            if sys.stderr.isatty():
                console.notice(f"{number} of {len(jobs)}: {job.title}")
            rows.append(_in_a_process(job))
            show("  ".join([f"{rows[-1]['name']:<34}", *_cells(rows[-1])]))
            if "error" in rows[-1]:
                console.warn(f"{rows[-1]['name']}: {rows[-1]['error']}")
    finally:            # after an interrupt too, what was measured is written
        if rows:
            _write(args, rows)
    show.end()
    return 1 if any("error" in row and not row.get("refused") for row in rows) else 0


class _Printer:
    """Prints lines while the work goes on.

    goes_on: a stdout that can no longer be written (its reader has left, the disk is full) does
        not stop the work, because files are wanted too: `end` raises the error.
    """

    def __init__(self, goes_on: bool):
        self.goes_on = goes_on
        self.error: BrokenPipeError | DataError | None = None

    def __call__(self, line: str):
        if self.error:
            return
        try:
            console.output(line)
        except (BrokenPipeError, DataError) as error:
            if not self.goes_on:
                raise
            self.error = error

    def end(self):
        """Raise the error that a line met, if any."""
        if self.error:
            raise self.error


def _jobs(args) -> "list[CostJob]":
    """One job per network and backbone. Raises ConfigError for unknown names."""
    import inspect

    import torch

    from models.backbones import backbone_names
    from utils.config.registry import components, lookup
    from utils.evaluation.model_costs import CostJob
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no GPU", "--device", "take --device cpu")
    known = components("models")
    classes = [lookup(name, known, "NAME") for name in args.names] or sorted(
        set(known.values()), key=lambda cls: cls.__name__)
    for backbone in args.backbones:
        if not backbone.startswith("timm/"):
            lookup(backbone, dict.fromkeys(backbone_names()), "--backbones")
    height, width = args.size
    jobs = []
    for cls in classes:
        has_backbone = "backbone" in inspect.signature(cls).parameters
        for backbone in (args.backbones if has_backbone and args.backbones else [None]):
            jobs.append(CostJob(cls.__name__, backbone, _device(args), height, width, args.batch,
                                args.classes, args.repeats, args.threads, not args.infer_only))
    return jobs


def _device(args):
    import torch
    if args.device != "auto":
        return args.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _in_a_process(job: "CostJob") -> Row:
    """The row of one job: what its process printed, and an "error" if the process failed."""
    command = [sys.executable, "-m", "tools.compare_models", "--child",
               json.dumps(dataclasses.asdict(job))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    row = {"name": job.title, "type": job.type, "backbone": job.backbone}
    for line in done.stdout.splitlines():
        row |= json.loads(line)
    if done.returncode and "error" not in row:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        row["error"] = (f"killed by signal {-done.returncode}, perhaps for lack of memory"
                        if done.returncode < 0 else last)
    return row


def _cells(row):
    return [f"{'-' if row.get(key) is None else _number(row[key] / unit):>12}"
            for key, _, unit in COLUMNS]


def _number(value):
    """At least three digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _write(args, rows):
    import torch

    from utils.files.whole_file import write_bytes
    from utils.images.sheet import png_bytes
    facts = {"size": args.size, "batch": args.batch, "classes": args.classes,
             "device": torch.cuda.get_device_name() if _device(args) == "cuda" else "cpu",
             "threads": args.threads or torch.get_num_threads(), "torch": str(torch.__version__)}
    if args.json:
        text = json.dumps({**facts, "networks": rows}, indent=1)
        write_bytes(args.json, text.encode())
        console.notice(f"the numbers are in {args.json}")
    measured = [row for row in rows if "parameters" in row]
    if args.png and measured:
        chart = draw(measured, f"{args.size[0]} x {args.size[1]}, batch {args.batch}, "
                               f"{facts['device']}, torch {facts['torch']}")
        write_bytes(args.png, png_bytes(chart))
        console.notice(f"the bar chart is in {args.png}")


def draw(rows: list[Row], subtitle: str) -> "PillowImage":
    """Draw a row of bars per network, and a column per measure that any network has."""
    from utils.images.sheet import FAINT, Sheet, text_width
    columns = [column for column in COLUMNS
               if any(row.get(column[0]) is not None for row in rows)]
    left = int(max(text_width(row["name"]) for row in rows)) + 22
    top, line, panel, gap, value = 52, 20, 150, 16, 46
    sheet = Sheet(left + len(columns) * (panel + gap), top + line * len(rows) + 12)
    sheet.text(12, 14, subtitle, color=FAINT)
    for i, row in enumerate(rows):
        sheet.text(left - 8, top + line * (i + 0.5), row["name"], anchor="rm")
    for j, (key, heading, unit) in enumerate(columns):
        x = left + j * (panel + gap)
        sheet.text(x, top - 14, heading, 12)
        most = max(row[key] for row in rows if row.get(key) is not None)
        for i, row in enumerate(rows):
            y = top + line * i
            if row.get(key) is None:
                sheet.text(x, y + line / 2, "-", color=FAINT)
                continue
            end = x + max(1, (panel - value) * row[key] / most) if most > 0 else x + 1
            sheet.box(x, y + 4, end, y + line - 4, BAR)
            sheet.text(end + 4, y + line / 2, _number(row[key] / unit))
    return sheet.image()


if __name__ == "__main__":
    sys.exit(console.run(main))
