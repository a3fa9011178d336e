"""Segment images with an exported ONNX graph; this needs ONNX Runtime, but not PyTorch.

examples:
  python -m tools.run_onnx camvid.onnx --images photos --out segmented
  python -m tools.run_onnx camvid.onnx --images "photos/**/*.jpg" --out segmented --overlay
  python -m tools.run_onnx fixed.onnx --images photos --out segmented --resize

The label maps equal those of inference.py in mode whole. The normalization is part of the graph;
class names and colors are in its metadata, which python -m tools.export writes. A graph that was
exported with --size takes only images of that size, unless --resize is given.
"""
import argparse
import json
import sys
import time

from utils.cli import console
from utils.cli.arguments import at_least, command_parser
from utils.errors import ConfigError, DataError, NumericalError
from utils.predict.arguments import add_base_size


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.run_onnx", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL.onnx", help="graph written by tools.export")
    add("-i", "--images", nargs="+", required=True, metavar="PATH",
        help="folders, images, .txt lists or patterns")
    add("-o", "--out", "--output", default="outputs", metavar="DIR",
        help="folder for the results, with the subfolders of the input (default: outputs)")
    add("--overlay", action="store_true", help="also write the image with the class colors over it")
    add("--resize", action="store_true",
        help="resize images to the size of a fixed graph, and the labels back; less accurate")
    add_base_size(parser)
    add("--provider", default="CPU", metavar="NAME",
        help="execution provider of ONNX Runtime: CPU, CUDA, TensorRT … (default: CPU)")
    add("--threads", type=at_least(0), default=0, metavar="N",
        help="number of CPU threads (default: every core)")
    add("--skip-bad", action="store_true", help="exit status 0 even if some images failed")
    add("--json", action="store_true", help="print a report as JSON on stdout")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial

    from tqdm import tqdm

    from utils.errors import listed, shown
    from utils.export.onnx_network import OnnxNetwork
    from utils.images.base_size import base_size_text
    from utils.images.image_io import read_image
    from utils.images.image_list import (
        find_images,
        plan_outputs,
        prepare_folder,
        refuse_among_images,
    )
    from utils.images.partly_used import unused_in
    from utils.inference.prediction_files import LABELS, OVERLAY, write_prediction
    refuse_among_images(args.images, args.out)
    sources = find_images(args.images, leave_out=args.out)
    outputs = plan_outputs(sources, args.out, [LABELS, OVERLAY] if args.overlay else [LABELS])
    network = OnnxNetwork(args.model, args.provider, args.threads)
    if args.resize and network.size is None:
        raise ConfigError("--resize has no effect: the graph takes images of any size", "--resize",
                          "leave it out")
    if args.base_size is not None:
        network.base_size = None if args.base_size == "none" else args.base_size
    elif network.base_size is not None:
        console.notice(f"images are predicted at {base_size_text(network.base_size)}, as in "
                       "validation, and labeled at their own size; --base-size none predicts at "
                       "their own size")
    prepare_folder(args.out, args.images)
    about, done, failed, status = network.metadata, 0, [], 0
    start = time.perf_counter()
    read = partial(read_image, white=about.white)
    for line in unused_in([source.path for source in sources], about.white):
        console.notice(line)
    with ThreadPoolExecutor(1) as pool:
        # The next image is decoded while the network runs.
        coming = pool.submit(_read, read, sources[0].path)
        for number, source in enumerate(tqdm(sources, desc="segmenting", unit="image",
                                             leave=False, disable=None)):
            image = coming.result()
            if number + 1 < len(sources):
                coming = pool.submit(_read, read, sources[number + 1].path)
            try:
                if isinstance(image, DataError):
                    raise image
                labels = network.labels(image, args.resize)
            except (DataError, NumericalError) as error:
                failed.append({"image": source.path, "reason": error.what})
                status = max(status, error.exit_status)
                continue
            write_prediction(outputs[number], image, labels, about.class_names, about.palette)
            done += 1
    report = {"schema": 1, "ok": done, "failed": failed, "seconds": time.perf_counter() - start}
    reasons = listed(failed, 20, "; ", lambda one: f"{shown(one['image'])} ({one['reason']})")
    console.notice(f"{done} ok" + (f", {len(failed)} failed: {reasons}" if failed else "")
                   + f"; results in {args.out}")
    if args.json:
        print(json.dumps(report, indent=2))
    return 0 if args.skip_bad else status


def _read(read, path):
    """Returns the image, or the DataError if it cannot be read."""
    try:
        return read(path)
    except DataError as error:
        return error


if __name__ == "__main__":
    sys.exit(console.run(main))
