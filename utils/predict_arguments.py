"""The command-line arguments test.py and inference.py share: how to predict."""
import argparse
import math

from utils.arguments import device, size

MOST_SCALES, LEAST_SCALE, LARGEST_SCALE = 100, 0.01, 100


def add_prediction_arguments(parser: argparse.ArgumentParser):
    """Add --mode, --scales, … ; what is not given stays as the checkpoint's config has it."""
    add = parser.add_argument
    add("-mo", "--mode", choices=("whole", "sliding", "multiscale"),
        help="whole image, overlapping windows, or several scales")
    add("--scales", type=scale_list, metavar="LIST",
        help="0.5,1,1.5 or start:stop:step (0.5:2:0.25) or start:stop:*factor (0.5:2:*1.41); "
             "without --mode this means multiscale")
    add("--flip", action=argparse.BooleanOptionalAction, help="add the mirrored image")
    add("--crop-size", type=size, metavar="N|HxW",
        help="window of mode sliding (default: a 2.5th of the image)")
    add("--overlap", type=float, metavar="SHARE", help="of neighbouring windows (default 1/3)")
    add("--tiling", choices=("even", "source"),
        help="source: the windows of yassouali/pytorch-segmentation")
    add("--average", choices=("logits", "probs"), help="what scales, flips and windows average")
    add("--window-batch", type=int, metavar="N", help="windows in one forward")
    add("--amp", choices=("auto", "bf16", "fp16", "off"), help="reduced precision of the network")
    add("-d", "--device", type=device, help="cpu, cuda or cuda:N (default: a GPU if there is one)")


def predict_options(options: dict, args: argparse.Namespace) -> dict:
    """The config's `predict` section with the arguments that were given put over it."""
    given = {name: getattr(args, name) for name in ("mode", "scales", "flip", "crop_size",
                                                    "overlap", "tiling", "average",
                                                    "window_batch", "amp")}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("amp") == "off":
        given["amp"] = False
    if "scales" in given and "mode" not in given and options.get("mode", "whole") == "whole":
        given["mode"] = "multiscale"
    if given.get("mode", options.get("mode")) != options.get("mode") and "scales" not in given:
        given["scales"] = None      # the scales in the config belong to its own mode
    return {**options, **given}


def scale_list(text: str) -> tuple[float, ...]:
    """"0.5,1,1.5" or "0.5:2:0.5" or "0.5:2:*2" -> the scales, the last one included."""
    series = text.count(":") == 2
    try:
        if series:
            start, stop, step = text.split(":")
            ratio = step[:1] in ("*", "x")
            start, stop, step = float(start), float(stop), float(step[1:] if ratio else step)
        else:
            given = [float(part) for part in text.split(",")]
    except ValueError:
        raise _no_scales(text, "not all of it is numbers") from None
    if series:
        _check_series(text, start, stop, step, ratio)
        steps = math.log(stop / start) / math.log(step) if ratio else (stop - start) / step
        if steps > MOST_SCALES:
            raise _no_scales(text, f"that is more than {MOST_SCALES} scales")
        # What rounding keeps from being the last one is the last one.
        given = [start * step ** i if ratio else round(start + i * step, 10)
                 for i in range(int(steps + 1.001))]
    wrong = next((scale for scale in given if not LEAST_SCALE <= scale <= LARGEST_SCALE), None)
    if wrong is not None:
        raise _no_scales(text, f"{wrong:g} is outside {LEAST_SCALE:g} to {LARGEST_SCALE:g}")
    if len(given) > MOST_SCALES:
        raise _no_scales(text, f"that is more than {MOST_SCALES} scales")
    if len(set(given)) < len(given):
        raise _no_scales(text, "a scale is there twice")
    return tuple(given)


def _check_series(text, start, stop, step, ratio):
    if not all(map(math.isfinite, (start, stop, step))) or start <= 0:
        raise _no_scales(text, "start, stop and step must be finite, and start above 0")
    if start > stop:
        raise _no_scales(text, f"it starts above its end: {start:g} > {stop:g}")
    if ratio and step <= 1:
        raise _no_scales(text, f"the factor must be above 1, found {step:g}")
    if not ratio and step <= 0:
        raise _no_scales(text, f"the step must be above 0, found {step:g}")


def _no_scales(text, reason):
    return argparse.ArgumentTypeError(f"{text!r} is no list of scales: {reason}; give 0.5,1,1.5 or "
                                      "0.5:2:0.25 (start:stop:step) or 0.5:2:*1.41")
