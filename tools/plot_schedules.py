"""Draws the learning rate (and the momentum) of every schedule: docs/schedules.png.

    python -m tools.plot_schedules [docs/schedules.png] [--steps 200] [--epochs 10]

Each panel shows the schedule that the JSON in its title builds, stepped as the trainer does it.
"""
import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

SECTIONS = (
    {"type": "Poly"},
    {"type": "Poly", "args": {"warmup_epochs": 1}},
    {"type": "Poly", "args": {"warmup_epochs": 1, "warmup": "scale"}},
    {"type": "Poly", "args": {"warmup_epochs": 1, "warmup": "restart", "warmup_start_lr": 0.1}},
    {"type": "Poly", "args": {"power": 2.0, "from_zero": True}},
    {"type": "Poly", "args": {"power": 2.0, "per_epoch": True}},
    {"type": "OneCycle"},
    {"type": "OneCycle", "args": {"as_described": True}},
    {"type": "Cosine", "args": {"warmup_epochs": 1, "end_lr": 0.01}},
    {"type": "Step", "args": {"milestones": [5, 8]}},
    {"type": "SWAPoly"},
    {"type": "CosineAnnealingLR"},
    {"type": "MultiStepLR", "args": {"milestones": [5, 8]}, "warmup": {"epochs": 1}},
    {"type": "OneCycleLR"},
    {"type": "ExponentialLR", "args": {"gamma": 0.8},
     "warmup": {"epochs": 0.5, "start_factor": 0.3, "mode": "constant"}},
)
COLUMNS, PANEL, MARGIN = 3, (420, 266), (52, 52, 20, 50)     # margins: left, top, right, bottom
RATE, MOMENTUM = (31, 97, 169), (206, 107, 20)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=Path("docs/schedules.png"))
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of the run")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args(argv)
    from PIL import Image

    from utils.images.sheet import PAPER, png_bytes
    width, height = PANEL
    rows = -(-len(SECTIONS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), PAPER)
    for i, section in enumerate(SECTIONS):
        panel = draw(section, *curve(section, args.steps, args.epochs), args.epochs)
        sheet.paste(panel, (i % COLUMNS * width, i // COLUMNS * height))
    args.path.write_bytes(png_bytes(sheet))
    print(args.path)


def curve(section: dict, steps: int, epochs: int) -> tuple[list[float], list[float]]:
    """(learning rates, momentums) at every optimizer step, for a base rate of 1.

    Raises ConfigError for a schedule whose rates depend on a validation.
    """
    import torch

    from utils.errors import ConfigError
    from utils.training.lr_scheduler import build_scheduler
    from utils.training.warmup import WarmingRates
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    per_epoch = steps // epochs
    scheduler: Any = build_scheduler(section, optimizer, steps, per_epoch, "max")
    warmup = WarmingRates(section.get("warmup"), steps, per_epoch)
    if scheduler.per_validation:
        raise ConfigError(f"{section['type']} cannot be drawn: its rates depend on validations")
    rates, momentums = [], []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"] * warmup.factor(step))
        momentums.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if scheduler.per_iteration or (step + 1) % per_epoch == 0:
            scheduler.step()
    return rates, momentums


def draw(section: dict, rates: list[float], momentums: list[float], epochs: int) -> "PillowImage":
    """Draw one panel: the rate over the epochs, and the momentum if it changes."""
    from utils.images.sheet import FAINT, GRID, INK, Sheet
    (width, height), (left, top, right, bottom) = PANEL, MARGIN
    sheet = Sheet(width, height)

    def place(x, y):
        return left + x * (width - left - right), height - bottom - y * (height - top - bottom)

    def curve_of(values, low, high, color):
        sheet.line([place(step / (len(values) - 1), (value - low) / (high - low))
                    for step, value in enumerate(values)], color, 2)

    args = json.dumps(section["args"])[1:-1].replace('"', "") if "args" in section else "defaults"
    if "warmup" in section:
        args += "; warmup: " + json.dumps(section["warmup"])[1:-1].replace('"', "")
    sheet.text(left, 6, section["type"], 13, anchor="la")
    sheet.text(left, 24, args, color=FAINT, anchor="la")
    for share in (0, 0.5, 1):
        sheet.line([place(0, share), place(1, share)], GRID)
        x, y = place(0, share)
        sheet.text(x - 6, y, f"{share:g}", anchor="rm")
    for epoch in range(0, epochs + 1, max(1, epochs // 5)):
        x, y = place(epoch / epochs, 0)
        sheet.line([(x, y), (x, y + 4)], INK)
        sheet.text(x, y + 7, str(epoch), anchor="ma")
    sheet.text(place(0.5, 0)[0], height - 18, "epoch", color=FAINT, anchor="mm")
    sheet.text(*place(0.995, 1), "learning rate", color=RATE, anchor="rb")
    if max(momentums) > min(momentums):
        curve_of(momentums, 0.8, 1.0, MOMENTUM)
        sheet.text(*place(0.995, 0.86), "momentum, 0.8 to 1", color=MOMENTUM, anchor="rb")
    curve_of(rates, 0, 1, RATE)
    return sheet.image()


if __name__ == "__main__":
    sys.exit(main())
