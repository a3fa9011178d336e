"""Export a checkpoint as a graph for other programs, and check that it computes the same.

With --format safetensors the file has the weights alone, and in its metadata class names, colors,
normalization and config; all programs here and the package safetensors read it.

examples:
  python -m tools.export -r saved/camvid/model_best.pth -o camvid.onnx
  python -m tools.export -r auto --size 360x480 --uint8-input --argmax -o camvid.onnx
  python -m tools.export -r auto --format torch_export -o camvid.pt2
  python -m tools.export -r auto --format safetensors -o camvid.safetensors
  python -m tools.export -r auto --rule rankdice -o camvid_rankdice.onnx
  python -m tools.export -r auto --int8 photos --split val -o camvid_int8.onnx

The graph takes RGB in 0..255; the normalization is part of it. After writing, it is run on images
of several sizes and compared with PyTorch: logits may differ by 1e-4 (times the largest logit, if
that is above 1), and the labels must be equal. A graph that fails is deleted, exit status 5. Its
metadata contains class names, colors and normalization; python -m tools.run_onnx uses them.
"""
import argparse
import functools
import json
import math
import operator
import os
import sys

from utils.cli import console
from utils.cli.arguments import (
    add_overrides,
    at_least,
    command_parser,
    parse_with_overrides,
    require_folder,
    size,
)
from utils.predict.arguments import add_base_size, add_checkpoint, option_name, with_arguments

INT8_DEFAULTS = {"calibration_images": 100, "split": "val", "max_drop": 0.05}
# Keys of `predict` that no graph follows, or only one with a posterior or a rule.
_OF_PREDICTOR = ("mode", "scales", "scale_rounding", "flip", "crop_size", "overlap", "tiling",
                 "stride", "average", "window_batch")
_OF_OTHER_RULES = ("threshold", "pruning", "solver", "theta", "amplitude")
_OF_POSTERIOR = ("temperature", "scale", "bias")
ATTEMPTS = 5        # images tried per size, if the network's logits may jump (export.graph.unpools)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.export", __doc__)
    add = parser.add_argument
    add_checkpoint(parser, purpose="checkpoint to export")
    add("-o", "--output", required=True, metavar="FILE", help="file to write")
    add("--format", choices=("onnx", "torch_export", "torchscript", "safetensors"),
        default="onnx", help="default: onnx. torchscript needs --size, and PyTorch has deprecated "
                             "it; safetensors: no graph, the weights alone")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=size, metavar="N|HxW",
                       help="fix the graph to one image of this size, as some compilers require")
    sizes.add_argument("--dynamic", action="store_true",
                       help="any number of images of any size (default)")
    add("--uint8-input", action="store_true", help="input uint8; default: float32, also 0..255")
    decisions = parser.add_mutually_exclusive_group()
    decisions.add_argument("--argmax", action="store_true",
                           help="return labels instead of logits: the largest logit")
    decisions.add_argument("--rule", choices=("rankdice", "rankiou"),
                           help="return the labels of this rule, by its first-order form, with the "
                                "settings of the checkpoint's predict section")
    add("--posterior", choices=("auto", "raw"),
        help="auto: put into the graph what turns the logits into those of calibrated "
             "probabilities: the loss undone, temperature, scale and bias (default: raw; with "
             "--rule: auto)")
    add_base_size(parser)
    add("--opset", type=at_least(1), metavar="N", help="ONNX opset (default: 18)")
    add("--images", nargs="+", metavar="PATH",
        help="also compare on these images (folders, files, .txt lists or patterns)")
    add("--int8", metavar="FOLDER",
        help="quantize to 8 bits, with ranges measured on the images in this folder")
    add("--calibration-images", type=at_least(1), metavar="N",
        help="number of images to take from that folder, evenly spaced (default: 100)")
    add("-s", "--split", choices=("val", "test", "train"),
        help="labeled images on which --int8 is scored (default: val)")
    add("--max-drop", type=float, metavar="SHARE",
        help="largest drop in mIoU by --int8; a larger one is an error (default: 0.05)")
    add("-c", "--config", help="config to use instead of the one in the checkpoint")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_overrides(parser, "val_loader.args.data_dir=/data/camvid")
    args = parse_with_overrides(parser, argv)
    if args.format != "onnx" and (args.int8 or args.opset is not None):
        parser.error(f"--int8 and --opset have no effect with --format {args.format}")
    if args.format == "safetensors":
        graph = ("size", "dynamic", "uint8_input", "argmax", "rule", "posterior", "base_size",
                 "images")
        idle = [option_name(name) for name in graph if getattr(args, name)]
        if idle:
            parser.error(f"{', '.join(idle)} have no effect with --format safetensors, which "
                         "writes no graph")
    for name, default in INT8_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif not args.int8:
            parser.error(f"{option_name(name)} has no effect without --int8")
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    require_folder(args.output)
    if args.format == "safetensors":
        return _write_weights(args)
    from utils.export.graph import OPSET, require_packages
    require_packages(args.format)
    opset = (args.opset or OPSET) if args.format == "onnx" else None
    from dataloader.loader import split_loader
    from utils.checkpoint.find import find_checkpoint
    from utils.checkpoint.read import read_checkpoint
    from utils.config.load import with_config
    from utils.files.whole_file import unfinished
    from utils.predict.open_model import open_model
    path = find_checkpoint(args.checkpoint)
    checkpoint = with_config(read_checkpoint(path), args.config, args.overrides)
    opened = open_model(checkpoint, "cpu", path)
    _refuse_without_effect(args)
    options = with_arguments(opened.config["predict"], args)
    predictor = opened.predictor(options)
    rule = _rule(args, opened, options)
    if args.posterior == "raw" and not rule:
        from utils.errors import ConfigError
        raise ConfigError("--posterior raw has no effect: a graph holds raw logits unless auto is "
                          "given", "--posterior", "leave it out")
    if args.posterior is None and options.get("posterior") == "auto" and not rule:
        console.notice('predict.posterior is "auto", but the graph gives raw logits: add '
                       "--posterior auto to undo what the loss did to them")
    # A rule has its own posterior.
    posterior = (_posterior(args, opened, options) if args.posterior == "auto" and not rule
                 else None)
    if opened.activation == "scores" and not (posterior or rule or args.argmax):
        from utils.decision.posterior import Posterior
        posterior = Posterior(opened.activation)    # a graph gives logits
    if predictor.seen_at is not None:
        from utils.errors import ConfigError
        keys = ", ".join(f"predict.{key}=null" for key in predictor.seen_at.describe())
        raise ConfigError("a graph cannot state an input size, only a base size: programs that "
                          "run it would resize images in another way", "predict.input_size",
                          f"give --base-size, or {keys}, or --config with another predict section")
    base_size = predictor.base_size
    loader = None
    if args.int8:
        *_, loader = split_loader(opened.config, args.split)
        opened.require_data(loader.dataset)
    with unfinished(args.output, os.path.splitext(args.output)[1]) as temporary:
        report = _export(args, opened, temporary, opset, base_size, posterior, rule)
        if loader:
            report["int8"] = _quantize(args, opened, loader, temporary, base_size)
        report["bytes"] = temporary.stat().st_size
    print(json.dumps(report) if args.json else _text(report))
    console.notice(f"written: {args.output}")


def _refuse_without_effect(args):
    """Raise ConfigError for an override of `predict` that a graph cannot follow."""
    from utils.errors import ConfigError
    from utils.predict.arguments import overridden
    unused = [(_OF_PREDICTOR, "a graph is the network on one whole image"),
              (_OF_OTHER_RULES, "a graph has no rule that uses it")]
    if not (args.rule or args.posterior == "auto"):
        unused.append((_OF_POSTERIOR, "the graph gives raw logits"))
    if not args.rule:
        unused.append((("smooth",), "the graph has no rule"))
    reasons = {key: reason for keys, reason in unused for key in keys}
    for key in sorted(overridden(args) & reasons.keys()):
        raise ConfigError(f"predict.{key} has no effect: {reasons[key]}", f"predict.{key}",
                          "add --rule or --posterior auto, or leave it out"
                          if key in _OF_POSTERIOR or key == "smooth" else "leave it out")


def _write_weights(args):
    """Write the weights alone (--format safetensors), without paths of this machine."""
    from utils.checkpoint.find import find_checkpoint
    from utils.checkpoint.read import read_checkpoint
    from utils.checkpoint.safetensors import write_safetensors
    from utils.config.load import with_config
    from utils.export.public_entries import public_checkpoint
    from utils.predict.open_model import open_model
    path = find_checkpoint(args.checkpoint)
    checkpoint = with_config(read_checkpoint(path), args.config, args.overrides)
    open_model(checkpoint, "cpu", path)         # an error if the weights do not fit the network
    public, changes = public_checkpoint(checkpoint)
    write_safetensors(args.output, public)
    report = {"format": args.format, "tensors": len(public["model"]),
              "classes": len(public["class_names"]), "changed": changes,
              "bytes": os.path.getsize(args.output)}
    print(json.dumps(report) if args.json else
          f"{report['tensors']} tensors as safetensors, {report['bytes'] / 1e6:.1f} MB, "
          f"{report['classes']} classes")
    for line in changes:
        console.notice(f"changed: {line}")
    console.notice(f"written: {args.output}")


def _posterior(args, opened, options):
    """What --posterior auto puts into the graph. Raises ConfigError if that changes nothing."""
    from utils.decision.posterior import build_posterior
    from utils.errors import ConfigError
    from utils.predict.arguments import require_inverse
    posterior = build_posterior(options, opened.activation, opened.inverse)
    if not posterior.has_vector and posterior.temperature == 1.0:
        require_inverse(opened.inverse())
    if args.argmax and not posterior.reorders:
        raise ConfigError("--posterior auto has no effect on labels: the most probable class stays "
                          "the same", "--posterior", "leave out --argmax or --posterior")
    return posterior


def _rule(args, opened, options):
    """The decision rule of --rule, or None. Raises ConfigError if the network has another one."""
    if args.rule is None:
        return None
    from utils.decision.rules import RankDecision, build_decision, rule_of
    from utils.errors import ConfigError
    if rule_of(opened.model, args.rule) != args.rule:
        raise ConfigError(f"{type(opened.model).__name__} does not predict classes, so the rule "
                          f"{args.rule} cannot decide on them", "--rule", "leave it out")
    from utils.predict.arguments import require_inverse
    rule = build_decision(args.rule, opened.activation, options, opened.inverse)
    if options.get("unassigned") == "void":
        raise ConfigError("a graph gives every pixel a class, and predict.unassigned is \"void\"",
                          "--rule", "add --config with unassigned \"assign\"")
    assert isinstance(rule, RankDecision), "the choices of --rule"
    if args.posterior and not (args.posterior == "auto" and rule.posterior.has_vector):
        require_inverse(opened.inverse())
    return rule


def _export(args, opened, path, opset, base_size, posterior, rule):
    """Write the graph to `path`, compare it, and return the report.

    Raises NumericalError if it differs from PyTorch.
    """
    from utils.export.graph import (
        CHECK_SIZES,
        check_image,
        graph_metadata,
        graph_of,
        made_up_image,
        open_graph,
        unpools,
        write_graph,
    )
    options = dict(uint8_input=args.uint8_input, argmax=args.argmax, rule=rule)
    metadata = graph_metadata(opened, size=args.size, opset=opset, base_size=base_size,
                              posterior=posterior, **options)
    write_graph(graph_of(opened, args.argmax, posterior, rule), path, args.format, metadata,
                size=args.size, uint8_input=args.uint8_input, opset=opset)
    sizes = [(1, *args.size)] * 3 if args.size else CHECK_SIZES
    channels = opened.normalize.channels
    run, jumps = open_graph(path, args.format), unpools(opened.model, channels)
    checks, replaced = [], 0
    for number, shape in enumerate(sizes):
        name = "x".join(map(str, (shape[0], channels, *shape[1:])))
        # One jump moves too many pixels of a small image for the check: try another image.
        for attempt in range(ATTEMPTS if jumps else 1):
            image = made_up_image(*shape, seed=number + 1000 * attempt, normalize=opened.normalize)
            check = check_image(run, opened, image, name, posterior=posterior, **options)
            if check.passed(jumps):
                break
            replaced += 1
        _require_passed(check, jumps, args.output)
        checks.append(check)
    if args.images:
        results = [check_image(run, opened, image, name, posterior=posterior, **options)
                   for name, image in _given_images(args, base_size, opened.normalize)]
        for check in results if not jumps else ():
            _require_passed(check, jumps, args.output)
        total = functools.reduce(operator.add, results)
        total.name = f"{len(results)} images"
        _require_passed(total, jumps, args.output)
        checks.append(total)
    return {"format": args.format, "opset": opset, "image": metadata.image,
            "output": metadata.output, "rule": metadata.rule, "architecture": metadata.architecture,
            "base_size": metadata.base_size, "posterior": metadata.posterior,
            "classes": len(metadata.class_names), "unpools": jumps, "replaced": replaced,
            "checks": [vars(check) for check in checks]}


def _given_images(args, base_size, normalize):
    """Yields (path, image (1, C, H, W)) of --images. Raises DataError if the graph cannot take one.
    """
    from utils.errors import DataError, shown
    from utils.images.band_files import read_input
    from utils.images.base_size import as_seen
    from utils.images.image_list import find_images
    for source in find_images(args.images):
        image = as_seen(read_input(source.path, normalize.white, normalize.bands, source.root),
                        base_size)
        if args.size and image.shape[:2] != args.size:
            raise DataError(f"the image is {image.shape[0]}x{image.shape[1]}, the graph takes "
                            f"{args.size[0]}x{args.size[1]}", shown(source.path),
                            "export with --dynamic, or leave the image out of --images")
        yield shown(source.path), image.transpose(2, 0, 1)[None].copy()


def _require_passed(check, jumps, output):
    """Raises NumericalError with the reasons if a check failed."""
    from utils.errors import NumericalError
    if check.passed(jumps):
        return
    if not math.isfinite(check.largest):
        raise NumericalError(f"PyTorch returns NaN or Inf on {check.name}; no file was written",
                             output, "the weights are damaged or too large: export an earlier "
                             "checkpoint")
    reasons = []
    if check.off:
        reasons.append(f"logits differ on {check.off} of {check.pixels} pixels by up to "
                       f"{check.delta:.3g} ({check.tolerance:.3g} is allowed)")
    if check.differing > check.tied:
        reasons.append(f"{check.differing - check.tied} of {check.pixels} labels differ")
    raise NumericalError(f"the graph does not compute the same as PyTorch on {check.name}: "
                         f"{'; '.join(reasons)}", output,
                         "try another --opset, --size or --format; no file was written")


def _quantize(args, opened, loader, path, base_size):
    """Replace the graph in `path` by its 8-bit form and return the report with mIoU of both.

    Raises NumericalError if the mIoU drops by more than --max-drop.
    """
    from utils.errors import NumericalError
    from utils.export.quantize import calibration_images, quantize, score
    images = calibration_images(args.int8, args.calibration_images)
    float_bytes = path.stat().st_size
    before = score(path, opened, loader, args.uint8_input, "float32")
    quantize(path, images, args.size, args.uint8_input, base_size, opened.normalize)
    after = score(path, opened, loader, args.uint8_input, "int8")
    if not before - after <= args.max_drop:
        raise NumericalError(f"8 bits cost {100 * (before - after):.2f} points of mIoU "
                             f"({100 * before:.2f} to {100 * after:.2f}; --max-drop allows "
                             f"{100 * args.max_drop:g})", args.output,
                             "measure the ranges on more images like those to segment; no file "
                             "was written")
    return {"calibration_images": len(images), "split": args.split, "images": len(loader.dataset),
            "mIoU_float": before, "mIoU_int8": after, "bytes_float": float_bytes}


def _text(report):
    """Returns the report as a table."""
    from utils.images.base_size import base_size_text
    opset = f" opset {report['opset']}" if report["opset"] else ""
    by = f" by {report['rule']}" if report["rule"] else ""
    lines = [f"{report['architecture']} as {report['format']}{opset}, "
             f"{report['bytes'] / 1e6:.1f} MB", f"image: {report['image']}",
             f"output: {report['output']}{by}, {report['classes']} classes"]
    if report["posterior"]:
        lines.append(f"logits: {report['posterior']}")
    if report["base_size"]:
        lines.append(f"validated at {base_size_text(report['base_size'])}: images are resized to "
                     "it, and the output back, by the program that runs the graph (run_onnx does)")
    lines += ["",
             f"{'compared with PyTorch on':<28}{'max |delta|':>12}{'max |logit|':>12}"
             f"{'labels that differ':>22}"]
    for check in report["checks"]:
        delta = "labels only" if check["delta"] is None else f"{check['delta']:.2e}"
        differing = f"{check['differing']} of {check['pixels']}"
        lines.append(f"{check['name'][-27:]:<28}{delta:>12}{check['largest']:>12.3g}"
                     f"{differing:>22}")
    off = sum(check["off"] for check in report["checks"])
    if off or report["replaced"]:
        lines.append(f"{report['architecture']} unpools to the positions of max pooling: rounding "
                     "decides between equal values, and logits jump there.\n"
                     f"For that reason {off} pixels differ by more than the tolerance; "
                     f"{report['replaced']} images were replaced.")
    elif any(check["differing"] for check in report["checks"]):
        lines.append("labels differ only where two logits are equal up to rounding")
    if report["rule"]:
        others = sum(check["other_solver"] for check in report["checks"])
        pixels = sum(check["pixels"] for check in report["checks"])
        lost = max(check["lost"] for check in report["checks"])
        lines.append(f"the graph computes {report['rule']} to first order: {others} of {pixels} "
                     "labels differ from those of the rule here, and its expected score is "
                     f"{'at most ' if lost > 0 else ''}{100 * abs(lost):.2g} points "
                     f"{'lower' if lost > 0 else 'higher or equal'}")
    if "int8" in report:
        int8 = report["int8"]
        lines += ["", f"int8, ranges from {int8['calibration_images']} images: mIoU on "
                  f"{int8['split']} ({int8['images']} images) {100 * int8['mIoU_float']:.2f} "
                  f"before, {100 * int8['mIoU_int8']:.2f} after; "
                  f"{int8['bytes_float'] / 1e6:.1f} MB before"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(console.run(main))
