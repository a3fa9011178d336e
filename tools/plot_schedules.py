"""Draws the learning rate (and the momentum) of every schedule: docs/schedules.png.

    python -m tools.plot_schedules [docs/schedules.png] [--steps 200] [--epochs 10]

Each panel is the schedule that the JSON in its title builds, driven step by step
as the trainer does: what is drawn is what a training would take.
"""
import argparse
import io
import json
import sys
from pathlib import Path

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
)
COLUMNS, PANEL, MARGIN = 3, (420, 250), (52, 52, 20, 34)     # margins: left, top, right, bottom
PAPER, INK, GRID = (255, 255, 255), (40, 40, 40), (226, 226, 226)
RATE, MOMENTUM = (31, 97, 169), (206, 107, 20)
SHARPNESS = 2       # drawn this many times larger, then reduced


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=Path("docs/schedules.png"))
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of the run")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args(argv)
    from PIL import Image
    width, height = PANEL
    rows = -(-len(SECTIONS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), PAPER)
    for i, section in enumerate(SECTIONS):
        panel = draw(section, *curve(section, args.steps, args.epochs), args.epochs)
        sheet.paste(panel, (i % COLUMNS * width, i // COLUMNS * height))
    data = io.BytesIO()
    sheet.quantize(64).save(data, "PNG", optimize=True)
    args.path.write_bytes(data.getvalue())
    print(args.path)


def curve(section: dict, steps: int, epochs: int) -> tuple[list[float], list[float]]:
    """(learning rate, momentum) in force at every optimiser step, for a full rate of 1."""
    import torch

    from utils.lr_scheduler import build_scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    per_epoch = steps // epochs
    scheduler = build_scheduler(section, optimizer, steps, per_epoch)
    rates, momentums = [], []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momentums.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if scheduler.per_iteration or (step + 1) % per_epoch == 0:
            scheduler.step()
    return rates, momentums


def draw(section: dict, rates: list[float], momentums: list[float], epochs: int):
    """One panel: the rate over the epochs, the momentum where it moves."""
    from PIL import Image, ImageDraw, ImageFont
    width, height = (SHARPNESS * side for side in PANEL)
    left, top, right, bottom = (SHARPNESS * side for side in MARGIN)
    panel = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(panel)
    large, small = (ImageFont.load_default(SHARPNESS * size) for size in (13, 11))

    def place(x, y):
        return left + x * (width - left - right), height - bottom - y * (height - top - bottom)

    def line(values, low, high, colour):
        points = [place(step / (len(values) - 1), (value - low) / (high - low))
                  for step, value in enumerate(values)]
        pen.line(points, fill=colour, width=2 * SHARPNESS, joint="curve")

    args = json.dumps(section["args"])[1:-1].replace('"', "") if "args" in section else "defaults"
    pen.text((left, 6 * SHARPNESS), section["type"], INK, font=large)
    pen.text((left, 24 * SHARPNESS), args, (110, 110, 110), font=small)
    for share in (0, 0.5, 1):
        pen.line([place(0, share), place(1, share)], fill=GRID, width=SHARPNESS)
        x, y = place(0, share)
        pen.text((x - 6 * SHARPNESS, y), f"{share:g}", INK, font=small, anchor="rm")
    for epoch in range(0, epochs + 1, max(1, epochs // 5)):
        x, y = place(epoch / epochs, 0)
        pen.line([x, y, x, y + 4 * SHARPNESS], fill=INK, width=SHARPNESS)
        pen.text((x, y + 7 * SHARPNESS), str(epoch), INK, font=small, anchor="ma")
    pen.text(place(0.995, 1), "learning rate", RATE, font=small, anchor="rb")
    if max(momentums) > min(momentums):
        line(momentums, 0.8, 1.0, MOMENTUM)
        pen.text(place(0.995, 0.86), "momentum, 0.8 to 1", MOMENTUM, font=small, anchor="rb")
    line(rates, 0, 1, RATE)
    return panel.resize(PANEL, Image.LANCZOS)


if __name__ == "__main__":
    sys.exit(main())
