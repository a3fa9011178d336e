"""Segment images with an exported ONNX graph; ONNX Runtime is all it takes, no PyTorch.

examples:
  python -m tools.run_onnx camvid.onnx --images photos --out segmented
  python -m tools.run_onnx camvid.onnx --images "photos/**/*.jpg" --out segmented --overlay
  python -m tools.run_onnx fixed.onnx --images photos --out segmented --resize

Label maps are those of inference.py in mode whole. Normalisation is part of the graph; class
names and colours come from its metadata (python -m tools.export writes them). A graph that was
exported with --size takes images of that size only, unless --resize is given.
"""
import importlib.util
import json
import sys
import time

import numpy as np

from utils import console
from utils.arguments import at_least, command_parser
from utils.errors import CheckpointError, ConfigError, DataError, first_line


def parse(argv):
    parser = command_parser("python -m tools.run_onnx", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL.onnx", help="a graph that tools.export wrote")
    add("-i", "--images", nargs="+", required=True, metavar="PATH",
        help="folders, images, .txt lists or patterns")
    add("-o", "--out", default="outputs", metavar="DIR",
        help="results, in the folders of the input (default: outputs)")
    add("--overlay", action="store_true", help="also write the colours over the image")
    add("--resize", action="store_true",
        help="bring images to the size of a fixed graph and the labels back; costs accuracy")
    add("--provider", default="CPU", metavar="NAME",
        help="execution provider of ONNX Runtime: CPU, CUDA, TensorRT … (default: CPU)")
    add("--threads", type=at_least(0), default=0, metavar="N",
        help="of the CPU (default: every core)")
    add("--skip-bad", action="store_true", help="exit status 0 even if some images failed")
    add("--json", action="store_true", help="print a report as JSON on stdout")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    from utils.image_io import read_image, shown
    from utils.image_list import find_images, plan_outputs, prepare_folder
    from utils.prediction_files import LABELS, OVERLAY, write_prediction
    sources = find_images(args.images, leave_out=args.out)
    outputs = plan_outputs(sources, args.out, [LABELS, OVERLAY] if args.overlay else [LABELS])
    network = OnnxNetwork(args.model, args.provider, args.threads)
    prepare_folder(args.out)
    about, done, failed, start = network.metadata, 0, [], time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        # The next image is decoded while the network works on this one.
        coming = pool.submit(_read, read_image, sources[0].path)
        for number, source in enumerate(tqdm(sources, desc="segmenting", unit="image",
                                             leave=False, disable=None)):
            image = coming.result()
            if number + 1 < len(sources):
                coming = pool.submit(_read, read_image, sources[number + 1].path)
            try:
                if isinstance(image, DataError):
                    raise image
                labels = network.labels(image, args.resize)
            except DataError as error:
                failed.append({"image": source.path, "reason": error.what})
                continue
            write_prediction(outputs[number], image, labels, about.class_names, about.palette)
            done += 1
    report = {"schema": 1, "ok": done, "failed": failed, "seconds": time.perf_counter() - start}
    listed = "; ".join(f"{shown(one['image'])} ({one['reason']})" for one in failed[:20])
    console.notice(f"{done} ok" + (f", {len(failed)} failed: {listed}" if failed else "")
                   + f"; results in {args.out}")
    if args.json:
        print(json.dumps(report, indent=2))
    return 3 if failed and not args.skip_bad else 0


class OnnxNetwork:
    """A graph with its metadata.

    metadata: utils.graph_metadata.GraphMetadata. size: (H, W) it is fixed to, or None.
    Raises ConfigError without ONNX Runtime, CheckpointError for a file that is no such graph.
    """

    def __init__(self, path: str, provider: str = "CPU", threads: int = 0):
        if importlib.util.find_spec("onnxruntime") is None:
            raise ConfigError("running a graph needs onnxruntime, which is not installed",
                              fix="pip install -r requirements-export.txt")
        import onnxruntime

        from utils.graph_metadata import read_metadata
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4              # what fails is raised as well
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(path, options,
                                                        providers=[_provider(provider)])
        except ConfigError:
            raise
        except Exception as error:          # ONNX Runtime raises many types, none of them ours
            raise CheckpointError(f"not a graph that ONNX Runtime can load: "
                                  f"{first_line(error)}", path,
                                  "export it with python -m tools.export") from None
        self.metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map, path)
        self.input = self.session.get_inputs()[0]
        sides = self.input.shape[2:]
        self.size = tuple(sides) if all(isinstance(side, int) for side in sides) else None

    def labels(self, image: np.ndarray, resize: bool = False) -> np.ndarray:
        """Class ids (H, W) of an image, uint8 (H, W, 3) RGB.

        resize: let a fixed graph see the image in its own size. DataError for an image
        that the graph cannot take.
        """
        import cv2
        height, width = image.shape[:2]
        if self.size and self.size != (height, width):
            if not resize:
                raise DataError(f"it is {height}x{width}, the graph takes "
                                f"{self.size[0]}x{self.size[1]} (export with --dynamic, or give "
                                "--resize)")
            image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        kind = np.uint8 if self.input.type == "tensor(uint8)" else np.float32
        batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(kind))
        try:
            output = self.session.run(None, {self.input.name: batch})[0][0]
        except Exception as error:          # as above; mostly memory
            raise DataError(f"ONNX Runtime fails on it: {first_line(error)}") from None
        labels = output if self.metadata.output == "labels" else largest(output)
        if labels.shape != (height, width):
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        return labels


def largest(logits: np.ndarray) -> np.ndarray:
    """The index of the largest of (C, H, W) along C, the first of equals.

    Row by row of classes, which NumPy does several times quicker than argmax along an
    outer axis.
    """
    best = logits[0].copy()
    labels = np.zeros(best.shape, np.uint8 if len(logits) <= 255 else np.int16)
    for k in range(1, len(logits)):
        larger = logits[k] > best
        labels[larger] = k
        np.maximum(best, logits[k], out=best)
    return labels


def _provider(name):
    import onnxruntime
    known = {provider.removesuffix("ExecutionProvider").lower(): provider
             for provider in onnxruntime.get_available_providers()}
    if name.lower() not in known:
        raise ConfigError(f"this ONNX Runtime has no provider {name!r}", "--provider",
                          f"it has: {', '.join(sorted(known))}")
    return known[name.lower()]


def _read(read_image, path):
    """The image, or the DataError that says why there is none."""
    try:
        return read_image(path)
    except DataError as error:
        return error


if __name__ == "__main__":
    sys.exit(console.run(main))
