"""Measures training, decisions, inference and loading on a GPU, each beside its alternative.

    python -m benchmarks.gpu                        # all parts, five minutes on one card
    python -m benchmarks.gpu --only step,loader
    python -m benchmarks.gpu --device cpu --quick   # without a GPU: checks that the program runs

step       one training step: ours (bf16, channels_last, fused), the same compiled, the bare
           computation of the same network in the same arithmetic, and the loop of the sources
           (float32, metrics and .item() in every step), in turns, timed with the device's events.
           With peak memory, the share of the card's measured bf16 matrix rate (MFU), and the three
           kernels that take longest.
training   train.py's own loop on a packed cache: images/s, and the share of the time that it waits
           for data.
rankdice   `python -m benchmarks.rankdice` on the device.
inference  images/s of the predictor: whole images, windows, several scales.
loader     images/s of the loader alone (PNG, JPEG, packed) with 4, 8 and 16 workers, beside what
           the step consumes.

Goals: ours / bare at most 1.02; source / ours at least 4 (PSPNet); a waiting share below 2 % from
the packed cache; RankDice at most 1.1 times max in a whole evaluation.
"""
import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PARTS = ("step", "training", "rankdice", "inference", "loader")
CLASSES = 19        # Shapes has 9 of them
KERNELS = 3
MATRIX = 8192       # rows of the square matrices that measure the rate


class Case(NamedTuple):
    """A network with the size (H, W) and the number of the images of a step."""

    network: str
    arguments: dict
    size: tuple[int, int]
    images: int


# No weights are downloaded: they do not change the time.
CASES = {
    "DeepLabV3+": Case("DeepLab", {"backbone": "resnet50", "pretrained": False}, (512, 512), 8),
    "PSPNet-R50": Case("PSPNet", {"backbone": "resnet50", "pretrained": False}, (380, 380), 16),
    "HRNet-W48-OCR": Case("HRNetOCR", {"backbone": "hrnet_w48", "pretrained": False},
                          (512, 1024), 4),
    "multi-scale OCR": Case("MscaleOCR", {"backbone": "hrnet_w48", "pretrained": False},
                            (512, 1024), 2),
    "U-Net": Case("UNet", {}, (512, 512), 8),
    "ENet": Case("ENet", {}, (512, 1024), 8),
}
QUICK = {"ENet": Case("ENet", {}, (32, 64), 2)}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,…")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only checks that it runs")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args(argv)
    unknown = set(args.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")

    import torch
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu --quick checks that the program runs")
    args.cases, args.rounds = (QUICK, 1) if args.quick else (CASES, args.rounds)
    print(f"torch {torch.__version__}, "
          f"{torch.cuda.get_device_name() if args.device != 'cpu' else 'cpu'}", flush=True)
    torch.backends.cudnn.benchmark = True
    consumed: dict[str, float] = {}         # case -> images/s of our step
    for part in PARTS:
        if part in args.only.split(","):
            started = time.perf_counter()
            _RUN[part](args, consumed)
            print(f"  ({part}: {time.perf_counter() - started:.0f} s)", flush=True)


# step

def _steps(args, consumed):
    import torch

    from benchmarks.measure import table
    rate = matrix_rate(args.device, 256 if args.quick else MATRIX)
    print(f"\nbf16 matrix rate: {rate / 1e12:.1f} TFLOP/s")
    rows: list[tuple] = [("network", "ours ms", "images/s", "compiled ms", "ours/bare",
                          "source/ours", "peak GB", "MFU")]
    kernels = []
    for title, case in args.cases.items():
        ours, row = _step_row(args, case, rate)
        consumed[title] = case.images / row[0]
        rows.append((title, f"{1000 * row[0]:.1f}", f"{consumed[title]:.1f}", *row[1:]))
        kernels += [(title, *each) for each in largest_kernels(ours, args.device)]
        del ours
        if args.device != "cpu":
            torch.cuda.empty_cache()
    table("one training step", rows)
    table("kernels that take longest", [("network", "kernel", "share of the step"), *kernels])


def _step_row(args, case, rate):
    """(our step, [seconds, and the other cells of its row])."""
    from benchmarks.step import bare_step, batch_of, our_step, source_step
    batch = _to(batch_of(case.images, case.size), args.device)
    make = dict(name=case.network, batch=batch, arguments=case.arguments, device=args.device)
    steps: dict[str, Callable] = {"ours": our_step(**make)}
    peak = peak_gb(steps["ours"], args.device)
    steps |= {"bare": bare_step(**make), "source": source_step(**make)}
    flops = flops_of(steps["bare"])
    if not args.quick:
        steps["compiled"] = our_step(**make, overrides=("trainer.compile=true",))
    seconds = timed(steps, args.rounds, args.device)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    compiled = f"{1000 * middle['compiled']:.1f}" if "compiled" in middle else "-"
    return steps["ours"], [middle["ours"], compiled, f"{middle['ours'] / middle['bare']:.3f}",
                           f"{middle['source'] / middle['ours']:.2f}", peak,
                           f"{flops / middle['ours'] / rate:.0%}"]


def timed(candidates: dict[str, Callable], rounds: int, device: str) -> dict[str, list[float]]:
    """name -> seconds of each round. The candidates run in turns; each runs 3 times before."""
    import torch
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        for _ in range(3 if rounds > 1 else 1):
            call()
    for _ in range(rounds):
        for name, call in candidates.items():
            if device == "cpu":
                before = time.process_time()
                call()
                seconds[name].append(time.process_time() - before)
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            end.synchronize()
            seconds[name].append(begin.elapsed_time(end) / 1000)
    return seconds


def matrix_rate(device: str, rows: int = MATRIX) -> float:
    """Measured FLOP/s of the product of two square bf16 matrices."""
    import torch
    a, b = (torch.randn(rows, rows, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed({"product": lambda: a @ b}, 5, device)["product"]
    return 2 * rows ** 3 / max(min(seconds), 1e-9)


def flops_of(step: Callable) -> int:
    """FLOPs of the matrix products and convolutions of one step, forward and backward."""
    from utils.evaluation.model_costs import flop_counter
    with flop_counter() as counter:
        step()
    return counter.get_total_flops()


def peak_gb(step: Callable, device: str) -> str:
    """Peak memory of the device in GB while the step runs twice; "-" on a CPU."""
    import torch
    if device == "cpu":
        step()
        return "-"
    torch.cuda.reset_peak_memory_stats()
    step()
    step()
    return f"{torch.cuda.max_memory_allocated() / 1e9:.1f}"


def largest_kernels(step: Callable, device: str) -> list[tuple[str, str]]:
    """(name, share of the step's time) of the kernels that take longest."""
    from torch.profiler import ProfilerActivity, profile
    kind = ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[kind]) as profiler:
        for _ in range(3):
            step()
    field = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    times = {event.key: getattr(event, field) for event in profiler.key_averages()}
    whole = sum(times.values()) or 1
    longest = sorted(times, key=lambda key: times[key], reverse=True)[:KERNELS]
    return [(key[:70], f"{times[key] / whole:.0%}") for key in longest]


def _to(batch: dict[str, Any], device) -> dict[str, Any]:
    return {key: value if isinstance(value, list) else value.to(device)
            for key, value in batch.items()}


# training

def _training(args, _consumed):
    """Trains ENet with train.py's own loop, from a packed cache."""
    import json

    import train
    size, crop, epochs = ((48, 64), 32, 1) if args.quick else ((512, 1024), (512, 1024), 24)
    with tempfile.TemporaryDirectory() as folder:
        scenes = _scenes(Path(folder, "png"), ".png", size, 4 if args.quick else 64)
        _pack(scenes, Path(folder, "packed"))
        loader = {"type": "Folder", "args": {
            "data_dir": str(scenes), "num_classes": CLASSES, "batch_size": 2 if args.quick else 8,
            "num_workers": 0 if args.quick else 8, "shuffle": True, "cache": f"{folder}/packed",
            "augment": True, "crop_size": crop, "scale": [0.5, 2.0], "flip": True}}
        train.main(["-c", "config.json", "arch=ENet", "-d", args.device,
                    f"train_loader={json.dumps(loader)}",
                    "loss=CE", "val_loader=null", "trainer.val=false",
                    "trainer.tensorboard=false",
                    f"trainer.save_dir={folder}/saved", f"trainer.epochs={epochs}",
                    f"trainer.log_per_iter={1 if args.quick else 16}"])
        [log] = Path(folder, "saved").glob("*/*/metrics.jsonl")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [line for line in lines if "train/images_per_s" in line]
    lines = lines[len(lines) // 2:]         # the first half warms up
    speed, waited = (statistics.median(line[f"train/{key}"] for line in lines)
                     for key in ("images_per_s", "data_time_share"))
    print(f"\ntrain.py with ENet, packed, crops of {crop}: {speed:.1f} images/s, "
          f"waits for data {waited:.1%} (goal below 2 %)")


# rankdice

def _rankdice(args, _consumed):
    from benchmarks import rankdice
    rankdice.main(["--device", args.device, "--rounds", str(args.rounds)])


# inference

def _inference(args, _consumed):
    """Images per second of the predictor in each mode, with the first case's network."""
    import torch

    from benchmarks.measure import table
    from utils.config.build import build
    from utils.decision.rules import build_decision
    from utils.images.normalize import Normalize
    from utils.predict.predictor import Predictor
    title, case = next(iter(args.cases.items()))
    model = build("models", {"type": case.network, "args": case.arguments}, num_classes=CLASSES)
    model = model.to(args.device, memory_format=torch.channels_last).eval()
    normalize = Normalize([0.5] * 3, [0.25] * 3).to(args.device)
    size = (32, 64) if args.quick else (1024, 2048)
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, device=args.device)
    modes: dict[str, dict[str, Any]] = {"whole": {}, "sliding": {"mode": "sliding"},
                                        "multiscale": {"mode": "multiscale", "flip": True}}
    rule = build_decision("max")
    predictors = {mode: Predictor(model, normalize, amp=not args.quick and "auto", **options)
                  for mode, options in modes.items()}
    with torch.inference_mode():
        seconds = timed({mode: lambda p=predictor: p.labels(images, rule)
                         for mode, predictor in predictors.items()}, args.rounds, args.device)
    table(f"prediction of {size[0]}x{size[1]} with {title}, one image at a time",
          [("mode", "images/s"), *((mode, f"{1 / statistics.median(values):.2f}")
                                   for mode, values in seconds.items())])


# loader

def _loaders(args, consumed):
    """Images per second of the loader, which must exceed what a step consumes."""
    from benchmarks.measure import table
    size, crop = ((48, 64), 32) if args.quick else ((1024, 2048), (512, 1024))
    workers = (0, 1) if args.quick else (4, 8, 16)
    rows: list[tuple] = [("files", *(f"{number} workers" for number in workers))]
    with tempfile.TemporaryDirectory() as folder:
        count = 4 if args.quick else 32
        sources = {"PNG": (_scenes(Path(folder, "png"), ".png", size, count), None),
                   "JPEG": (_scenes(Path(folder, "jpg"), ".jpg", size, count), None)}
        packed = Path(folder, "packed")
        _pack(sources["PNG"][0], packed)
        sources["packed"] = sources["PNG"][0], str(packed)
        for name, (scenes, cache) in sources.items():
            rows.append((name, *(f"{_loaded(scenes, cache, number, crop, args.quick):.0f}"
                                 for number in workers)))
    table(f"images/s of the loader, {size[0]}x{size[1]} to crops of {crop}", rows)
    for title, speed in consumed.items():
        print(f"  a step of {title} consumes {speed:.0f} images/s")


def _loaded(scenes, cache, workers, crop, quick):
    """Images per second of a training loader after its first batches."""
    from dataloader.loader import make_loader
    batch, epochs = 2 if quick else 8, 2 if quick else 12
    loader = make_loader(
        {"type": "Folder", "args": {
            "data_dir": str(scenes), "num_classes": CLASSES, "batch_size": batch,
            "num_workers": workers, "shuffle": True, "cache": cache, "augment": True,
            "crop_size": crop, "scale": [0.5, 2.0], "flip": True}}, training=True,
        ignore_index=255)
    images, started = 0, 0.0
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batches in loader:
            images += len(batches["id"])
        if epoch == 0:                      # the workers have started and the files are cached
            images, started = 0, time.perf_counter()
    return images / (time.perf_counter() - started)


def _scenes(folder, suffix, size, count):
    """A folder of `count` drawn scenes of `size` (H, W) with their labels."""
    from dataloader.shapes import Shapes
    from utils.images.image_io import write_image, write_label
    scenes = Shapes(size=size, length=count)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        image, label = scenes.load(index)
        write_image(folder / "images" / f"{index}{suffix}", image)
        write_label(folder / "labels" / f"{index}.png", label, scenes.palette)
    return folder


def _pack(scenes, folder):
    from dataloader.folder import Folder
    from dataloader.pixel_cache import CachePlan
    CachePlan(Folder(str(scenes), num_classes=CLASSES), folder).write()


_RUN = {"step": _steps, "training": _training, "rankdice": _rankdice, "inference": _inference,
        "loader": _loaders}

if __name__ == "__main__":
    main()
