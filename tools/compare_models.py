"""Parameters, FLOPs, time and memory of networks side by side: table, JSON and bar chart.

Every network runs in a process of its own, so that none inherits the memory, the caches or the
fate of another. Measured, per batch:

  parameters  millions
  GFLOPs      of one image's inference, two per multiply-add, as torch's counter finds them
  infer ms    the network in eval mode, without gradients
  train ms    forward, cross-entropy of every output, backward, SGD with momentum
  memory      the peak, network included: on CUDA what torch allocated, on the CPU what the
              process grew by from the moment before the network was built

Times are the best of --repeats: on CUDA of the clock, on the CPU of the processor time per
thread, which does not grow when other programs run. Random weights, random images, float32.

examples:
  python -m tools.compare_models --size 512x1024
  python -m tools.compare_models PSPNet UperNet --backbones resnet50 mobilenet_v3_large
  python -m tools.compare_models ENet DeepLabV3 --device cuda --batch 8 --json m.json --png m.png
"""
import argparse
import io
import json
import subprocess
import sys
import time
from pathlib import Path

from utils import console
from utils.arguments import at_least, command_parser, require_folder, size
from utils.errors import ConfigError, UserError, first_line
from utils.progress import forget_peak, resident

ROOT = Path(__file__).resolve().parents[1]
# (key of a row, heading, what one unit of it is)
COLUMNS = (("parameters", "parameters M", 1e6), ("flops", "GFLOPs", 1e9),
           ("infer_seconds", "infer ms", 1e-3), ("train_seconds", "train ms", 1e-3),
           ("infer_bytes", "infer MiB", 2 ** 20), ("train_bytes", "train MiB", 2 ** 20))
PAPER, INK, QUIET = (255, 255, 255), (40, 40, 40), (110, 110, 110)
BARS = ((31, 97, 169), (70, 130, 90), (206, 107, 20), (170, 60, 60), (120, 90, 160), (90, 90, 90))
SHARPNESS = 2       # drawn this many times larger, then reduced


def parse(argv):
    parser = command_parser("python -m tools.compare_models", __doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="architectures (default: all of them)")
    add("--backbones", nargs="+", metavar="NAME", default=[],
        help="build each on each of these (default: each architecture's own)")
    add("--size", type=size, default="512x1024", metavar="N|HxW",
        help="of the images (default %(default)s)")
    add("--batch", type=at_least(1), default=2, metavar="N",
        help="images; networks that pool to one pixel train on two or more (default %(default)s)")
    add("--classes", type=at_least(1), default=19, metavar="N", help="default %(default)s")
    add("--repeats", type=at_least(1), default=3, metavar="N", help="default %(default)s")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="auto takes the GPU where there is one")
    add("--threads", type=at_least(0), default=0, metavar="N",
        help="on the CPU (default: torch's choice)")
    add("--infer-only", action="store_true", help="do not train")
    add("--json", type=Path, metavar="FILE", help="also write every number there")
    add("--png", type=Path, metavar="FILE", help="also draw a bar chart there")
    add("--child", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


def main(argv=None):
    args = parse(argv)
    if args.child:
        measure(json.loads(args.child))
        return 0
    require_folder(args.json, args.png)
    jobs = _jobs(args)
    print("  ".join([f"{'network':<34}", *(f"{heading:>12}" for _, heading, _ in COLUMNS)]))
    rows = []
    try:
        for number, job in enumerate(jobs, start=1):
            if sys.stderr.isatty():
                console.notice(f"{number} of {len(jobs)}: {_title(job)}")
            rows.append(_in_a_process(job))
            print("  ".join([f"{rows[-1]['name']:<34}", *_cells(rows[-1])]), flush=True)
            if "error" in rows[-1]:
                console.warn(f"{rows[-1]['name']}: {rows[-1]['error']}")
    finally:            # what was measured before an interruption is kept
        if rows:
            _write(args, rows)
    return 1 if any("error" in row and not row.get("refused") for row in rows) else 0


def measure(job: dict):
    """Measure the network of one job in this process; print a JSON object per stage."""
    import torch

    from utils.config import build
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    device = torch.device(job["device"])
    _settle(torch, device)
    images = torch.randn(job["batch"], 3, job["height"], job["width"], device=device)
    watch = _Watch(torch, device)
    options = {"backbone": job["backbone"]} if job["backbone"] else {}
    try:
        model = build("models", {"type": job["type"], "args": options},
                      num_classes=job["classes"]).to(device)
    except UserError as error:
        _tell(error=str(error.what), refused=True)
        return
    _tell(parameters=sum(parameter.numel() for parameter in model.parameters()))
    try:
        _tell(**_infer(torch, model, images, watch, job["repeats"]))
        if job["train"]:
            _tell(**_train(torch, model, images, watch, job["repeats"]))
    except (RuntimeError, ValueError) as error:     # out of memory, one pixel to normalise
        _tell(error=first_line(error))


def _settle(torch, device):
    """Load what torch and this program load on first use, before memory is looked at."""
    from utils.registry import components
    components("models")
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8))
    layers, images = layers.to(device), torch.zeros(2, 3, 16, 16, device=device)
    watch = _Watch(torch, device)
    _infer(torch, layers, images, watch, 1)
    _train(torch, layers, images, watch, 1)


def _infer(torch, model, images, watch, repeats):
    from torch.utils.flop_counter import FlopCounterMode
    model.eval()
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model(images)                           # warms up, too
        watch.forget()
        seconds = [watch.time(lambda: model(images)) for _ in range(repeats)]
    return {"flops": counter.get_total_flops() / len(images), "infer_seconds": min(seconds),
            "infer_bytes": watch.peak()}


def _train(torch, model, images, watch, repeats):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6,
                                momentum=0.9, fused=True)
    targets = {}

    def step():
        outputs = model(images)
        outputs = outputs if isinstance(outputs, dict) else {"out": outputs}
        for name, logits in outputs.items():
            if name not in targets:
                targets[name] = torch.randint(logits.shape[1], (len(images), *images.shape[2:]),
                                              device=images.device)
        loss = sum(torch.nn.functional.cross_entropy(logits, targets[name])
                   for name, logits in outputs.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    watch.forget()
    seconds = [watch.time(step) for _ in range(repeats)]
    return {"train_seconds": min(seconds), "train_bytes": watch.peak()}


class _Watch:
    """Times steps, and knows the peak of memory beyond what there was at the start."""

    def __init__(self, torch, device):
        self.torch, self.cuda = torch, device.type == "cuda"
        self.before = torch.cuda.memory_allocated() if self.cuda else resident("VmRSS")

    def time(self, step) -> float:
        """Seconds: of the clock on CUDA, of the processor per thread on the CPU."""
        if not self.cuda:
            start = time.process_time()
            step()
            return (time.process_time() - start) / self.torch.get_num_threads()
        self.torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        self.torch.cuda.synchronize()
        return time.perf_counter() - start

    def forget(self):
        """Start the peak anew, where the system can."""
        if self.cuda:
            self.torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()

    def peak(self) -> int | None:
        if self.cuda:
            return self.torch.cuda.max_memory_allocated() - self.before
        peak = resident("VmHWM")
        return None if peak is None or self.before is None else peak - self.before


def _tell(**found):
    print(json.dumps(found), flush=True)


def _jobs(args):
    """One dictionary per network and backbone; unknown names are errors before the first run."""
    import inspect

    import torch

    from models.backbones import backbone_names
    from utils.registry import components, lookup
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no GPU", "--device", "take --device cpu")
    device = args.device if args.device != "auto" else (
        "cuda" if torch.cuda.is_available() else "cpu")
    known = components("models")
    classes = [lookup(name, known, "NAME") for name in args.names] or sorted(
        {cls for cls in known.values()}, key=lambda cls: cls.__name__)
    for backbone in args.backbones:
        if not backbone.startswith("timm/"):
            lookup(backbone, dict.fromkeys(backbone_names()), "--backbones")
    height, width = args.size
    shared = {"device": device, "height": height, "width": width, "batch": args.batch,
              "classes": args.classes, "repeats": args.repeats, "threads": args.threads,
              "train": not args.infer_only}
    jobs = []
    for cls in classes:
        takes = "backbone" in inspect.signature(cls).parameters
        for backbone in (args.backbones if takes and args.backbones else [None]):
            jobs.append({"type": cls.__name__, "backbone": backbone, **shared})
    return jobs


def _title(job):
    return f"{job['type']} {job['backbone'] or ''}".strip()


def _in_a_process(job):
    """The row of one job: what its process told, and why it told no more."""
    command = [sys.executable, "-m", "tools.compare_models", "--child", json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, errors="replace")
    row = {"name": _title(job), "type": job["type"], "backbone": job["backbone"]}
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
    """At least three figures."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _write(args, rows):
    import torch

    from utils.image_io import write_bytes
    device = args.device if args.device != "auto" else (
        "cuda" if torch.cuda.is_available() else "cpu")
    about = {"size": args.size, "batch": args.batch, "classes": args.classes,
             "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
             "threads": args.threads or torch.get_num_threads(), "torch": str(torch.__version__)}
    if args.json:
        text = json.dumps({**about, "networks": rows}, indent=1)
        write_bytes(args.json, text.encode())
        console.notice(f"the numbers are in {args.json}")
    measured = [row for row in rows if "parameters" in row]
    if args.png and measured:
        picture = io.BytesIO()
        draw(measured, f"{args.size[0]} x {args.size[1]}, batch {args.batch}, {about['device']}, "
                       f"torch {about['torch']}").quantize(64).save(picture, "PNG", optimize=True)
        write_bytes(args.png, picture.getvalue())
        console.notice(f"the bar chart is in {args.png}")


def draw(rows: list[dict], subtitle: str):
    """A PIL image: one row of bars per network, one column per measure that anything has."""
    from PIL import Image, ImageDraw, ImageFont
    columns = [(column, colour) for column, colour in zip(COLUMNS, BARS)
               if any(row.get(column[0]) is not None for row in rows)]
    font, bold = (ImageFont.load_default(SHARPNESS * size) for size in (11, 12))
    label = max(font.getlength(row["name"]) for row in rows) / SHARPNESS
    left, top, line, panel, gap, value = int(label) + 22, 52, 20, 150, 16, 46
    width, height = left + len(columns) * (panel + gap), top + line * len(rows) + 12
    sheet = Image.new("RGB", (SHARPNESS * width, SHARPNESS * height), PAPER)
    pen = ImageDraw.Draw(sheet)

    def text(x, y, words, colour=INK, font=font, anchor="lm"):
        pen.text((SHARPNESS * x, SHARPNESS * y), words, colour, font=font, anchor=anchor)

    text(12, 14, subtitle, QUIET)
    for i, row in enumerate(rows):
        text(left - 8, top + line * (i + 0.5), row["name"], anchor="rm")
    for j, ((key, heading, unit), colour) in enumerate(columns):
        x = left + j * (panel + gap)
        text(x, top - 14, heading, font=bold)
        most = max(row[key] for row in rows if row.get(key) is not None)
        for i, row in enumerate(rows):
            y = top + line * i
            if row.get(key) is None:
                text(x, y + line / 2, "-", QUIET)
                continue
            end = x + max(1, (panel - value) * row[key] / most) if most > 0 else x + 1
            pen.rectangle([SHARPNESS * side for side in (x, y + 4, end, y + line - 4)], colour)
            text(end + 4, y + line / 2, _number(row[key] / unit))
    return sheet.resize((width, height), Image.LANCZOS)


if __name__ == "__main__":
    sys.exit(console.run(main))
