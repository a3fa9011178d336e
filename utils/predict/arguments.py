"""The command-line arguments on how to predict, shared by test.py, inference.py and tools."""
import argparse
import math

from utils.cli.arguments import device, size

MOST_SCALES, LEAST_SCALE, LARGEST_SCALE = 100, 0.01, 100


def add_prediction_arguments(parser: argparse.ArgumentParser):
    """Add --mode, --scales and so on; the checkpoint's config is used where one is not given."""
    add = parser.add_argument
    add("-mo", "--mode", choices=("whole", "sliding", "multiscale"),
        help="whole image, overlapping windows, or several scales")
    add("--scales", type=scale_list, metavar="LIST",
        help="0.5,1,1.5 or start:stop:step (0.5:2:0.25) or start:stop:*factor (0.5:2:*1.41); "
             "implies --mode multiscale if no mode is given")
    add("--flip", action=argparse.BooleanOptionalAction,
        help="also predict the mirror image and average")
    add("--crop-size", type=size, metavar="N|HxW",
        help="window of mode sliding (default: height and width of the image / 2.5)")
    add("--overlap", type=float, metavar="SHARE",
        help="share of a window that its neighbor also covers (default 1/3)")
    add("--tiling", choices=("even", "source"),
        help="source: windows as in yassouali/pytorch-segmentation")
    add("--average", choices=("logits", "probs"),
        help="average logits or probabilities over scales, flips and windows")
    add("--window-batch", type=int, metavar="N", help="windows in one forward pass")
    add("--amp", choices=("auto", "bf16", "fp16", "off"), help="reduced precision of the network")
    add("-d", "--device", type=device, help="cpu, cuda or cuda:N (default: a GPU if there is one)")


def with_arguments(options: dict, args: argparse.Namespace) -> dict:
    """The config's `predict` section, replaced where an argument was given."""
    given = {name: getattr(args, name) for name in ("mode", "scales", "flip", "crop_size",
                                                    "overlap", "tiling", "average",
                                                    "window_batch", "amp")}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("amp") == "off":
        given["amp"] = False
    if "scales" in given and "mode" not in given and options.get("mode", "whole") == "whole":
        given["mode"] = "multiscale"
    if given.get("mode", options.get("mode")) != options.get("mode") and "scales" not in given:
        given["scales"] = None      # the scales in the config belong to the mode there
    return {**options, **given}


def scale_list(text: str) -> tuple[float, ...]:
    """"0.5,1,1.5" or "0.5:2:0.5" or "0.5:2:*2" -> the scales, the last one included.

    Raises argparse.ArgumentTypeError for anything else.
    """
    try:
        scales = (_series(text) if text.count(":") == 2
                  else [float(part) for part in text.split(",")])
    except ValueError:
        raise _wrong_scales(text, "it contains something that is not a number") from None
    wrong = next((scale for scale in scales if not LEAST_SCALE <= scale <= LARGEST_SCALE), None)
    if wrong is not None:
        raise _wrong_scales(text, f"{wrong:g} is outside {LEAST_SCALE:g} to {LARGEST_SCALE:g}")
    if len(scales) > MOST_SCALES:
        raise _wrong_scales(text, f"that is more than {MOST_SCALES} scales")
    if len(set(scales)) < len(scales):
        raise _wrong_scales(text, "a scale occurs twice")
    return tuple(scales)


def _series(text):
    """The scales of "start:stop:step" or "start:stop:*factor". Raises ValueError for other text."""
    *ends, last = text.split(":")
    ratio = last[:1] in ("*", "x")
    start, stop = map(float, ends)
    step = float(last[1:] if ratio else last)
    _check_series(text, start, stop, step, ratio)
    steps = math.log(stop / start) / math.log(step) if ratio else (stop - start) / step
    if steps > MOST_SCALES:
        raise _wrong_scales(text, f"that is more than {MOST_SCALES} scales")
    # The last scale counts even if rounding puts it a little above `stop`.
    return [start * step ** i if ratio else round(start + i * step, 10)
            for i in range(int(steps + 1.001))]


def _check_series(text, start, stop, step, ratio):
    if not all(map(math.isfinite, (start, stop, step))) or start <= 0:
        raise _wrong_scales(text, "start, stop and step must be finite, and start above 0")
    if start > stop:
        raise _wrong_scales(text, f"it starts above its end: {start:g} > {stop:g}")
    if ratio and step <= 1:
        raise _wrong_scales(text, f"the factor must be above 1, found {step:g}")
    if not ratio and step <= 0:
        raise _wrong_scales(text, f"the step must be above 0, found {step:g}")


def _wrong_scales(text, reason):
    return argparse.ArgumentTypeError(f"{text!r} is not a list of scales: {reason}; give 0.5,1,1.5 "
                                      "or 0.5:2:0.25 (start:stop:step) or 0.5:2:*1.41")
