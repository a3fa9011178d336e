"""Export a checkpoint as a graph for other programs, and prove that it computes the same.

examples:
  python -m tools.export -r saved/camvid/model_best.pth -o camvid.onnx
  python -m tools.export -r auto --size 360x480 --uint8-input --argmax -o camvid.onnx
  python -m tools.export -r auto --format torch_export -o camvid.pt2
  python -m tools.export -r auto --int8 photos --split val -o camvid_int8.onnx

The graph takes RGB in 0..255 and normalises it itself. After writing, it is run on images of
several sizes and compared with PyTorch: every logit within 1e-4 (of the largest one, where that
is above 1), and the same labels. A graph that fails is not kept, exit status 5. Class names,
colours and normalisation are in its metadata; python -m tools.run_onnx uses them.
"""
import functools
import json
import operator
import os
import sys

from utils import console
from utils.arguments import (add_overrides, at_least, command_parser, parse_with_overrides,
                             require_folder, size)

ATTEMPTS = 5        # images of one size, for a network whose logits may jump (utils.export.unpools)


def parse(argv):
    parser = command_parser("python -m tools.export", __doc__)
    add = parser.add_argument
    add("-r", "--resume", dest="checkpoint", required=True, metavar="PATH|auto",
        help="checkpoint to export; auto: the newest best one in saved/")
    add("-o", "--output", required=True, metavar="FILE", help="the graph")
    add("--format", choices=("onnx", "torch_export", "torchscript"), default="onnx",
        help="default: onnx. torchscript holds one size (give --size) and is deprecated by PyTorch")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=size, metavar="N|HxW",
                       help="fix the graph to one image of this size, as other compilers like it")
    sizes.add_argument("--dynamic", action="store_true",
                       help="any number of images of any size (the default)")
    add("--uint8-input", action="store_true", help="take bytes; else float32, also in 0..255")
    add("--argmax", action="store_true", help="give labels in place of logits")
    add("--opset", type=at_least(1), metavar="N", help="of ONNX (default 18)")
    add("--images", nargs="+", metavar="PATH",
        help="compare on these images too (folders, files, .txt lists or patterns)")
    add("--int8", metavar="FOLDER",
        help="quantise to 8 bits, with ranges measured on the images of this folder")
    add("--calibration-images", type=at_least(1), default=100, metavar="N",
        help="of the folder, evenly spaced (default 100)")
    add("-s", "--split", choices=("val", "test", "train"), default="val",
        help="labelled images that --int8 is scored on (default: val)")
    add("--max-drop", type=float, default=0.05, metavar="SHARE",
        help="of mIoU that --int8 may cost before it counts as failed (default 0.05)")
    add("-c", "--config", help="config to use in place of the checkpoint's own")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_overrides(parser, "val_loader.args.data_dir=/data/camvid")
    args = parse_with_overrides(parser, argv)
    if args.format != "onnx" and (args.int8 or args.opset is not None):
        parser.error(f"--int8 and --opset have no effect with --format {args.format}")
    return args


def main(argv=None):
    args = parse(argv)
    require_folder(args.output)
    from utils.export import OPSET, require_packages
    require_packages(args.format)
    opset = (args.opset or OPSET) if args.format == "onnx" else None
    from dataloader.loader import split_loader
    from utils.checkpoint import find_checkpoint, read_checkpoint
    from utils.checkpoint_config import with_config
    from utils.image_io import unfinished
    from utils.open_model import open_model
    path = find_checkpoint(args.checkpoint)
    checkpoint = with_config(read_checkpoint(path), args.config, args.overrides)
    opened = open_model(checkpoint, "cpu", path)
    loader = None
    if args.int8:
        *_, loader = split_loader(opened.config, args.split)
        opened.require_classes(loader.dataset.class_names)
    with unfinished(args.output, os.path.splitext(args.output)[1]) as temporary:
        report = _export(args, opened, temporary, opset)
        if loader:
            report["int8"] = _quantise(args, opened, loader, temporary)
        report["bytes"] = temporary.stat().st_size
    print(json.dumps(report) if args.json else _text(report))
    console.notice(f"the graph is in {args.output}")


def _export(args, opened, path, opset):
    """Write the graph to `path`, compare it, and report; NumericalError if it differs."""
    from utils.export import (CHECK_SIZES, check_image, describe, graph_of, made_up_image,
                              open_graph, unpools, write_graph)
    options = dict(uint8_input=args.uint8_input, argmax=args.argmax)
    metadata = describe(opened, size=args.size, opset=opset, **options)
    write_graph(graph_of(opened, args.argmax), path, args.format, metadata, size=args.size,
                uint8_input=args.uint8_input, opset=opset)
    sizes = [(1, *args.size)] * 3 if args.size else CHECK_SIZES
    run, jumps, checks, replaced = open_graph(path, args.format), unpools(opened.model), [], 0
    for number, shape in enumerate(sizes):
        name = "x".join(map(str, (shape[0], 3, *shape[1:])))
        # A small image in which a network jumps is not small enough to judge: take another.
        for attempt in range(ATTEMPTS if jumps else 1):
            image = made_up_image(*shape, seed=number + 1000 * attempt)
            check = check_image(run, opened, image, name, **options)
            if check.passed(jumps):
                break
            replaced += 1
        _require_passed(check, jumps, args.output)
        checks.append(check)
    if args.images:
        own = [check_image(run, opened, image, name, **options)
               for name, image in _own_images(args)]
        for check in own if not jumps else ():
            _require_passed(check, jumps, args.output)
        total = functools.reduce(operator.add, own)
        total.name = f"{len(own)} images"
        _require_passed(total, jumps, args.output)
        checks.append(total)
    return {"format": args.format, "opset": opset, "image": metadata.image,
            "output": metadata.output, "architecture": metadata.architecture,
            "classes": len(metadata.class_names), "unpools": jumps, "replaced": replaced,
            "checks": [vars(check) for check in checks]}


def _own_images(args):
    """(path, uint8 (1, 3, H, W)) of --images; those a fixed graph cannot take are an error."""
    from utils.errors import DataError
    from utils.image_io import read_image, shown
    from utils.image_list import find_images
    for source in find_images(args.images):
        image = read_image(source.path)
        if args.size and image.shape[:2] != args.size:
            raise DataError(f"the image is {image.shape[0]}x{image.shape[1]}, the graph takes "
                            f"{args.size[0]}x{args.size[1]}", shown(source.path),
                            "export with --dynamic, or leave the image out of --images")
        yield shown(source.path), image.transpose(2, 0, 1)[None].copy()


def _require_passed(check, jumps, output):
    from utils.errors import NumericalError
    if check.passed(jumps):
        return
    found = []
    if check.off:
        found.append(f"logits are off on {check.off} of {check.pixels} pixels, up to "
                     f"{check.delta:.3g} ({check.tolerance:.3g} is allowed)")
    if check.differing > check.tied:
        found.append(f"{check.differing - check.tied} of {check.pixels} labels differ")
    raise NumericalError(f"the graph does not compute what PyTorch computes on {check.name}: "
                         f"{'; '.join(found) or 'PyTorch itself gives NaN or Inf'}", output,
                         "try another --opset, --size or --format; no file was kept")


def _quantise(args, opened, loader, path):
    """Turn the graph in `path` into its 8-bit form; mIoU before and after."""
    from utils.errors import NumericalError
    from utils.quantize import calibration_paths, quantize, score
    images = calibration_paths(args.int8, args.calibration_images)
    float_bytes = path.stat().st_size
    before = score(path, opened, loader, args.uint8_input, "float32")
    quantize(path, images, args.size, args.uint8_input)
    after = score(path, opened, loader, args.uint8_input, "int8")
    if not before - after <= args.max_drop:
        raise NumericalError(f"8 bits cost {100 * (before - after):.2f} points of mIoU "
                             f"({100 * before:.2f} to {100 * after:.2f}; --max-drop allows "
                             f"{100 * args.max_drop:g})", args.output,
                             "measure the ranges on more images like those to segment; no file "
                             "was kept")
    return {"calibration_images": len(images), "split": args.split, "images": len(loader.dataset),
            "mIoU_float": before, "mIoU_int8": after, "bytes_float": float_bytes}


def _text(report):
    opset = f" opset {report['opset']}" if report["opset"] else ""
    lines = [f"{report['architecture']} as {report['format']}{opset}, "
             f"{report['bytes'] / 1e6:.1f} MB", f"image: {report['image']}",
             f"output: {report['output']}, {report['classes']} classes", "",
             f"{'compared with PyTorch on':<28}{'max |delta|':>12}{'max |logit|':>12}"
             f"{'labels that differ':>22}"]
    for check in report["checks"]:
        delta = "labels only" if check["delta"] is None else f"{check['delta']:.2e}"
        differing = f"{check['differing']} of {check['pixels']}"
        lines.append(f"{check['name'][-27:]:<28}{delta:>12}{check['largest']:>12.3g}"
                     f"{differing:>22}")
    off = sum(check["off"] for check in report["checks"])
    if off or report["replaced"]:
        lines.append(f"{report['architecture']} unpools by the place of a maximum: between equals "
                     "rounding decides, and logits jump there.\n"
                     f"{off} pixels are off by more than the tolerance for that reason; "
                     f"{report['replaced']} images were replaced.")
    elif any(check["differing"] for check in report["checks"]):
        lines.append("labels differ only where two logits are equal to rounding")
    if "int8" in report:
        int8 = report["int8"]
        lines += ["", f"int8, ranges from {int8['calibration_images']} images: mIoU on "
                  f"{int8['split']} ({int8['images']} images) {100 * int8['mIoU_float']:.2f} "
                  f"before, {100 * int8['mIoU_int8']:.2f} after; "
                  f"{int8['bytes_float'] / 1e6:.1f} MB before"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(console.run(main))
