"""Segment images and videos with a trained checkpoint.

The options: utils/inference_arguments.py. Everything about them: docs/inference.md.
"""
import json
import sys
import time

from utils import console
from utils.inference_arguments import parse
from utils.predict_arguments import predict_options


def main(argv=None):
    args = parse(argv)
    from utils import distributed
    with distributed.one_voice():
        return segment(args)


def segment(args):
    """Everything after the arguments; the exit status."""
    from utils.image_io import allow_pixels
    from utils.image_list import find_images, plan_outputs, prepare_folder
    from utils.prediction_files import LABELS, MASKS, OVERLAY, PROBABILITIES, SIDE_BY_SIDE
    from utils.video import FILM, split_videos
    if args.max_pixels:
        allow_pixels(args.max_pixels)
    products = {LABELS: True, OVERLAY: args.overlay, SIDE_BY_SIDE: args.side_by_side,
                PROBABILITIES: args.probabilities, MASKS: args.masks}
    videos, inputs = split_videos(args.images)
    sources = find_images(inputs, tuple(filter(None, args.extension.split(","))),
                          args.output) if inputs else []
    outputs = plan_outputs(sources, args.output, [name for name, on in products.items() if on])
    films = plan_outputs(videos, args.output, [FILM])

    from utils import distributed
    from utils.checkpoint import find_checkpoint, read_checkpoint
    from utils.checkpoint_config import with_config
    from utils.decision import build_decision, rule_of
    from utils.inference_report import Report
    from utils.open_model import open_model
    from utils.segfix_refiner import open_refiner
    from utils.segment_images import segment_images
    from utils.segment_videos import segment_videos
    from utils.stop_signal import StopSignal
    args.checkpoint = find_checkpoint(args.checkpoint)
    checkpoint = with_config(read_checkpoint(args.checkpoint), args.config)
    device = distributed.start(args.device)
    opened = open_model(checkpoint, device, args.checkpoint)
    options = predict_options(opened.config["predict"], args)
    rule = rule_of(opened.model, args.predict or options["test"])
    decision = build_decision(rule, opened.activation, options)
    refiner = open_refiner(args.segfix, args.segfix_scale, device) if args.segfix else None
    predictor = opened.predictor(options)
    prepare_folder(args.output)
    report, start = Report(), time.perf_counter()
    with StopSignal() as stop:
        shared = dict(batch=args.batch, skip_existing=args.skip_existing, refiner=refiner)
        segment_images(sources, outputs, opened, predictor, decision, report, stop,
                       workers=args.workers, **shared)
        segment_videos(videos, films, opened, predictor, decision, report, stop,
                       beside=args.side_by_side, most_frames=args.max_frames, **shared)
    report.seconds = time.perf_counter() - start
    report = report.merged([source.path for source in [*sources, *videos]])
    console.notice(f"{report}; results in {args.output}")
    if args.json and distributed.is_main():
        print(json.dumps(report.as_dict(), indent=2))
    return 3 if report.failed and not args.skip_bad else 0


if __name__ == "__main__":
    sys.exit(console.run(main))
