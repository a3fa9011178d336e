"""The command-line arguments on how to predict, shared by test.py, inference.py and tools."""
import argparse
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.cli import console
from utils.cli.arguments import device, size
from utils.errors import ConfigError

if TYPE_CHECKING:       # its module loads OpenCV
    from utils.images.base_size import BaseSize
    from utils.losses.inverse import Inverse, InverseSource, NoInverse

# What stands after "checkpoint to ..." in a help.
CHECKPOINT_HELP = ", or a folder, for the newest model_best.pth in it; auto: saved/"
MOST_SCALES, LEAST_SCALE, LARGEST_SCALE = 100, 0.01, 100
# Settings of decision rules, and the rules that use them; the first one is what a message names.
_RANKING = ("rankdice", "rankiou", "rankdice_dep", "rankiou_dep")
_USED_BY = {"threshold": ("T",), "smooth": _RANKING, "pruning": _RANKING, "solver": _RANKING[:2],
            "theta": _RANKING[2:], "amplitude": _RANKING[2:]}
_OF_REGRET = ("pruning", "theta", "amplitude")


def add_checkpoint(parser: argparse.ArgumentParser, *names: str, purpose: str,
                   several: bool = False):
    """Add -r, the checkpoint to predict with, as `checkpoint`.

    names: further names of the option. purpose: what the help begins with. several: the option may
    be repeated, and `checkpoint` is a list.
    """
    text = purpose + CHECKPOINT_HELP
    if several:
        text += "; given again: an ensemble, the mean of the networks' probabilities"
    parser.add_argument("-r", *names, "--resume", dest="checkpoint", required=True,
                        metavar="PATH|auto", action="append" if several else _OneCheckpoint,
                        help=text)


class _OneCheckpoint(argparse.Action):
    """Stores the checkpoint; a second one is a usage error, since only programs take several."""

    def __call__(self, parser, namespace, values, option_string=None):
        first = getattr(namespace, self.dest, None)
        if first is not None:
            parser.error(f"{option_string} {values} is a second checkpoint, after {first}: only "
                         "test.py and inference.py take several, as an ensemble")
        setattr(namespace, self.dest, values)


def add_prediction_arguments(parser: argparse.ArgumentParser, decides: bool = True,
                             protocol_help: str = ""):
    """Add --mode, --scales and so on; the checkpoint's config is used where one is not given.

    decides: also add the settings of the decision rules, --threshold and --temperature.
    protocol_help: of --protocol, if a program does more with it.
    """
    add = parser.add_argument
    add("--protocol", metavar="NAME", help=protocol_help or
        "a published way of predicting: sets the options below (train.py --list protocols)")
    add_base_size(parser)
    add("--input-size", type=base_size, metavar="N|HxW|none",
        help="exactly the size that the network sees: N pixels of the short side, or HxW; in place "
             "of --base-size (further settings: train.py --list predict)")
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
    add("--stride", type=size, metavar="N|HxW",
        help="pixels from one window to the next, in place of --overlap")
    add("--tiling", choices=("even", "source", "fit", "spread"),
        help="source: windows as in yassouali/pytorch-segmentation; fit: as in mmsegmentation; "
             "spread: as in EoMT")
    add("--average", choices=("logits", "probs", "view_probs", "exp"),
        help="what is averaged over scales, flips and windows (view_probs: logits over windows, "
             "probabilities over the rest)")
    add("--window-batch", type=int, metavar="N", help="windows in one forward pass")
    add("--amp", choices=("auto", "bf16", "fp16", "off"), help="reduced precision of the network")
    add("-d", "--device", type=device, help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    if decides:
        add_rule_arguments(parser)


def add_base_size(parser: argparse.ArgumentParser):
    """Add --base-size, the size at which the network sees an image."""
    parser.add_argument("--base-size", type=base_size, metavar="N|HxW|none",
                        help="long side of the image for the network, or HxW that it covers; "
                             "labels have the size of the image (default: as in validation; none: "
                             "the image's own size)")


def add_rule_arguments(parser: argparse.ArgumentParser, posterior: bool = True):
    """Add --threshold, --posterior, --temperature, --theta and --amplitude, settings of rules.

    posterior: False for a program that knows of no loss.
    """
    parser.add_argument("--threshold", type=thresholds, metavar="T",
                        help="of rule T: a probability, or one for each class, with commas "
                             "(default: from the config)")
    if posterior:
        add_posterior(parser)
    parser.add_argument("--temperature", type=temperature, metavar="T",
                        help="divides the logits before softmax or sigmoid "
                             "(default: from the config)")
    parser.add_argument("--theta", type=_theta, metavar="PIXELS",
                        help="of rankdice_dep and rankiou_dep: the distance over which the labels "
                             "of pixels depend on each other (default: from the config)")
    parser.add_argument("--amplitude", type=_amplitude, metavar="A",
                        help="of the same rules: the correlation of labels next to each other, 0 "
                             "to 1 (default: from the config)")


def add_unassigned(parser: argparse.ArgumentParser):
    """Add --unassigned, for programs that write label maps."""
    parser.add_argument("--unassigned", choices=("assign", "void"),
                        help="where a pixel is in no mask of T, rankdice or rankiou, label maps "
                             "hold a class all the same (assign) or ignore_index (void)")


def add_posterior(parser: argparse.ArgumentParser):
    """Add --posterior, whether to undo what the loss did to the probabilities."""
    parser.add_argument("--posterior", choices=("auto", "raw"),
                        help="auto: undo what the loss did to the probabilities (class weights, "
                             "focal factors, label smoothing); raw: do not (default: auto, and for "
                             "rule max raw)")


def with_arguments(options: dict, args: argparse.Namespace, protocol: str | None = "") -> dict:
    """The config's `predict` section, replaced where an argument was given.

    protocol: None for that of the config, or a name, for a program that reads --protocol itself.
    Raises ConfigError for an argument that would have no effect.
    """
    given = {name: getattr(args, name, None)
             for name in ("mode", "scales", "flip", "crop_size", "overlap", "stride", "tiling",
                          "average", "window_batch", "amp", "base_size", "input_size", "threshold",
                          "unassigned",
                          "temperature", "posterior", "theta", "amplitude")}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("amp") == "off":
        given["amp"] = False
    protocol = getattr(args, "protocol", None) if protocol == "" else protocol
    if protocol is not None:
        from utils.predict.protocols import settings_of
        options = {**options, **settings_of(protocol, "--protocol")}
    given |= _replaced(given)
    if "scales" in given and "mode" not in given and options.get("mode", "whole") != "sliding":
        given["mode"] = "whole" if given["scales"] == (1.0,) else "multiscale"
    if given.get("mode", options.get("mode")) != options.get("mode") and "scales" not in given:
        given["scales"] = None      # the scales in the config belong to the mode there
    result = {**options, **given}
    _require_effect({name for name, value in given.items() if getattr(args, name, None)
                     is not None}, result)
    return result


def _replaced(given):
    """What the given sizes and strides replace in the config; "none" becomes None."""
    import inspect

    from utils.images.input_size import InputSize
    usual = {key: one.default for key, one in inspect.signature(InputSize).parameters.items()}
    replaced = {}
    if given.get("base_size") == "none":
        replaced["base_size"] = None
    if given.get("input_size") == "none" or ("base_size" in given and "input_size" not in given):
        replaced |= usual
    elif "input_size" in given and "base_size" not in given:
        replaced["base_size"] = "val"
    if "overlap" in given and "stride" not in given:
        replaced["stride"] = None
    return replaced


def _require_effect(given, options):
    """Raise ConfigError for a given option that has no effect with the others."""
    mode, scales = options.get("mode", "whole"), options.get("scales")
    if mode != "sliding":
        for name in ("crop_size", "overlap", "stride", "tiling", "window_batch"):
            if name in given:
                raise ConfigError(f"{option_name(name)} has no effect in mode {mode}: only "
                                  "mode sliding has windows", option_name(name),
                                  "add --mode sliding, or leave it out")
        views = len(scales) if scales else 1 + (mode == "multiscale")
        if "average" in given and views == 1 and not options.get("flip"):
            raise ConfigError("--average has no effect on one view of an image", "--average",
                              "add --scales, --flip or --mode sliding, or leave it out")


def require_rule_arguments(args: argparse.Namespace, rules: Collection[str],
                           options: Mapping[str, Any], probabilities: bool = False,
                           inverse: "InverseSource | None" = None, dependent: bool = False,
                           networks: Sequence[Mapping[str, Any]] = ()):
    """Raise ConfigError if a setting of decision rules is given and has no effect.

    rules: names of the decision rules in use. options: the `predict` section with what is given.
    probabilities: whether they are written, or counted, themselves. inverse: of the loss of the
    network. dependent: whether a dependent rule decides too, for comparison.
    networks: the section of each network of an ensemble. Its rules decide on the mean of
    probabilities, so that whatever changes one of these may change the most probable class.
    """
    names = ", ".join(sorted(rules))
    without_masks = set(rules) <= {"max", "max_posterior", "offsets"}
    only_labels = without_masks and not probabilities
    # Whether auto changes the most probable class, also if nothing is to be undone.
    vector = any(one.get("scale") or one.get("bias") or networks and one.get("temperature", 1) != 1
                 for one in networks or (options,))
    posterior = options.get("posterior") == "auto" or "max_posterior" in rules
    decides = posterior and bool(networks or vector)
    if args.posterior and inverse:
        found = inverse()
        if args.posterior == "raw" or not vector:
            require_inverse(found)
        if args.posterior == "raw" and only_labels:
            raise ConfigError(f"--posterior raw has no effect on rule {names}: max takes raw "
                              "logits unless auto is given", "--posterior", "leave it out")
        if only_labels and not (vector or networks) and not getattr(found, "reorders", False):
            raise ConfigError(f"--posterior auto has no effect on rule {names}: the most probable "
                              "class stays the same", "--posterior",
                              "choose another rule with -p, or leave it out")
    if getattr(args, "unassigned", None) and without_masks:
        raise ConfigError(f"--unassigned has no effect on rule {names}: every pixel has a largest "
                          "logit", "--unassigned", "choose another rule with -p, or leave it out")
    for name, users in _USED_BY.items():
        place = _given(args, name)
        if place and not set(users) & set(rules) and not (dependent and name in _OF_REGRET):
            raise ConfigError(f"{place} has no effect on rule {names}", place,
                              f"add -p {users[0]}, or leave it out")
    place = _given(args, "theta")
    if place and (args.amplitude if args.amplitude is not None else options.get("amplitude")) == 0:
        raise ConfigError(f"{place} has no effect with amplitude 0, which makes pixels independent "
                          "at every distance", place, "leave out one of them")
    for name in ("temperature", "scale", "bias"):
        place = _given(args, name)
        if place and only_labels and not decides:
            raise ConfigError(f"{place} has no effect on rule {names}: the largest logit stays the "
                              "largest", place, "choose another rule with -p, or leave it out")
    if "unassigned" in overridden(args) and not hasattr(args, "unassigned"):
        raise ConfigError("predict.unassigned has no effect: it is about label maps, and the masks "
                          "are scored", "predict.unassigned", "leave it out")


def _given(args, name):
    """What gives a setting of `predict` on the command line: "--NAME", "predict.NAME" or None."""
    if getattr(args, name, None) is not None:
        return option_name(name)
    return f"predict.{name}" if name in overridden(args) else None


def overridden(args: argparse.Namespace) -> set[str]:
    """The keys of `predict` among the arguments KEY=VALUE."""
    keys = [text.partition("=")[0].rstrip("+") for text in getattr(args, "overrides", ())]
    return {key.removeprefix("predict.") for key in keys if key.startswith("predict.")}


def require_inverse(inverse: "Inverse | NoInverse"):
    """Raise ConfigError for --posterior if nothing of the loss can be undone."""
    from utils.losses.inverse import Inverse
    if isinstance(inverse, Inverse) and inverse.active:
        return
    reason = inverse.reason if not isinstance(inverse, Inverse) else \
        "the loss changes no probability, so that there is nothing to undo"
    raise ConfigError(f"--posterior has no effect: {reason}", "--posterior", "leave it out")


def check_segfix(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Fill in --segfix-scale; a usage error if it is given without --segfix."""
    if args.segfix_scale is not None and not args.segfix:
        parser.error("--segfix-scale has no effect without --segfix")
    args.segfix_scale = 2.0 if args.segfix_scale is None else args.segfix_scale


def tell_base_size(base_size: "BaseSize | list[int]", options: dict, by: str = ""):
    """Print one notice if images are predicted at the size of validation, and nobody asked.

    by: which of several networks does so, such as " by a.pth".
    """
    if options.get("base_size", "val") == "val" and base_size is not None:
        from utils.images.base_size import base_size_text
        console.notice(f"images are predicted{by} at {base_size_text(base_size)}, as in "
                       "validation, and labeled at their own size; --base-size none predicts at "
                       "their own size")


def given_base_size(args: argparse.Namespace, otherwise: "BaseSize") -> "BaseSize":
    """The value of --base-size; `otherwise` if it is not given."""
    if args.base_size is None:
        return otherwise
    return None if args.base_size == "none" else args.base_size


def option_name(name: str) -> str:
    """The option of a setting: "crop_size" -> "--crop-size"."""
    return "--" + name.replace("_", "-")


def base_size(text: str) -> int | tuple[int, int] | str:
    """Argument type: "512" -> 512, "512x1024" -> (512, 1024), "none" -> "none"."""
    if text == "none":
        return text
    height, width = size(text)
    return height if text.isdecimal() else (height, width)


def thresholds(text: str) -> float | list[float]:
    """Argument type: "0.3" -> 0.3; "0.3,0.5" -> [0.3, 0.5]. Each lies in 0..1."""
    values = [_number(part, text) for part in text.split(",")]
    if not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: a threshold is a probability, from 0 to 1")
    return values if len(values) > 1 else values[0]


def temperature(text: str) -> float:
    """Argument type: a finite number above 0."""
    value = _number(text, text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: a temperature is a number above 0")
    return value


def _theta(text):
    value = _number(text, text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: theta is a number of pixels above 0")
    return value


def _amplitude(text):
    value = _number(text, text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a correlation, from 0 to 1")
    return value


def _number(part, text):
    try:
        return float(part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: {part!r} is not a number") from None


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
