"""Segment images with an exported ONNX graph; this needs ONNX Runtime, but not PyTorch.

examples:
  python -m tools.run_onnx camvid.onnx --images photos -o segmented
  python -m tools.run_onnx camvid.onnx --images "photos/**/*.jpg" -o segmented --overlay
  python -m tools.run_onnx fixed.onnx --images photos -o segmented --resize

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
from utils.predict.arguments import add_base_size, given_base_size, tell_base_size


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.run_onnx", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL.onnx", help="graph written by tools.export")
    add("-i", "--images", nargs="+", required=True, metavar="PATH",
        help="folders, images, .txt lists or patterns")
    add("-o", "--output", "--out", dest="out", default="outputs", metavar="DIR",
        help="folder for the results, with the subfolders of the input (default: outputs)")
    add("--overlay", action="store_true", help="also write the image with the class colors over it")
    add("--no-legend", action="store_true", help="no legend below the overlays")
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
    from utils.export.onnx_network import OnnxNetwork
    from utils.images.image_list import (
        find_images,
        plan_outputs,
        prepare_folder,
        refuse_among_images,
    )
    from utils.images.partly_used import unused_in
    from utils.inference.prediction_files import LABELS, OVERLAY
    from utils.inference.report import InferenceReport
    if args.no_legend and not args.overlay:
        raise ConfigError("--no-legend has no effect without --overlay", "--no-legend",
                          "leave it out")
    refuse_among_images(args.images, args.out)
    sources = find_images(args.images, leave_out=args.out)
    outputs = plan_outputs(sources, args.out, [LABELS, OVERLAY] if args.overlay else [LABELS])
    network = OnnxNetwork(args.model, args.provider, args.threads)
    if args.resize and network.size is None:
        raise ConfigError("--resize has no effect: the graph takes images of any size", "--resize",
                          "leave it out")
    if args.base_size is None:
        tell_base_size(network.base_size, {})
    network.base_size = given_base_size(args, network.base_size)
    prepare_folder(args.out, args.images)
    report, start = InferenceReport(), time.perf_counter()
    if network.metadata.bands is None:
        for line in unused_in([source.path for source in sources], network.metadata.white):
            console.notice(line)
    _segment(sources, outputs, network, args, report)
    report.seconds = time.perf_counter() - start
    console.notice(f"{report}; results in {args.out}")
    if args.json:
        facts = report.as_dict()
        print(json.dumps({key: facts[key] for key in ("schema", "ok", "failed", "seconds")},
                         indent=2))
    return 0 if args.skip_bad else report.status


def _segment(sources, outputs, network, args, report):
    """Segment every image, write its outputs, and record the results in `report`."""
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    from utils.images.band_files import read_input
    from utils.images.bands import as_picture, bands_of_state
    from utils.inference.prediction_files import write_prediction
    about = network.metadata
    bands = bands_of_state(about.bands)

    def read_source(source):
        return read_input(source.path, about.white, bands, source.root)
    with ThreadPoolExecutor(1) as pool:
        # The next image is decoded while the network runs.
        coming = pool.submit(read_source, sources[0])
        for number, source in enumerate(tqdm(sources, desc="segmenting", unit="image",
                                             leave=False, disable=None)):
            read = coming
            if number + 1 < len(sources):
                coming = pool.submit(read_source, sources[number + 1])
            try:
                image = read.result()
                labels = network.labels(image, args.resize)
            except (DataError, NumericalError) as error:
                report.fail(source.path, error)
                continue
            if bands:
                image = as_picture(image, about.mean, about.std)
            write_prediction(outputs[number], image, labels, about.class_names, about.palette,
                             legend=not args.no_legend)
            report.done.append({"image": source.path})


if __name__ == "__main__":
    sys.exit(console.run(main))
