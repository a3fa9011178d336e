"""Segment images and videos with a trained checkpoint.

Options: utils/inference/arguments.py. Documentation: docs/inference.md.
"""
import argparse
import json
import sys
import time

from utils.cli import console
from utils.inference.arguments import WORKERS, parse, require_inputs


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from utils.machine import distributed
    with distributed.reporting_once():
        return segment(args)


def segment(args: argparse.Namespace) -> int:
    """Segment the images and videos that the arguments name. Returns the exit status."""
    images, videos = plan_jobs(args)        # before torch is loaded: a wrong path costs no time
    from utils.cli.stop_signal import StopSignal
    from utils.images.image_list import prepare_folder
    from utils.inference.pipeline import open_pipeline
    from utils.inference.prediction_files import GEOTIFF, wanted_outputs
    from utils.inference.report import InferenceReport
    from utils.inference.segment_images import segment_images
    from utils.inference.segment_videos import segment_videos
    from utils.machine.distributed import is_main
    pipeline = open_pipeline(args)
    if videos:
        pipeline.opened.require_rgb("videos are", args.images[0])
    if args.ids == "label":
        from dataloader.label_files import stored_ids
        config = pipeline.opened.config
        pipeline.opened.label_ids = stored_ids(config["train_loader"], config["ignore_index"])
    prepare_folder(args.output, args.images)
    report, start = InferenceReport(pipeline.describe()), time.perf_counter()
    with StopSignal() as stop:
        segment_images(images, pipeline, report, stop, batch=args.batch,
                       workers=args.workers or WORKERS, skip_existing=args.skip_existing)
        segment_videos(videos, pipeline, report, stop, batch=args.batch,
                       with_original=args.side_by_side, most_frames=args.max_frames,
                       of_frames=[one for one in wanted_outputs(args) if one != GEOTIFF],
                       skip_existing=args.skip_existing)
    report.seconds = time.perf_counter() - start
    report = report.merged([source.path for source, _ in [*images, *videos]])
    console.notice(f"{report}; results in {args.output}")
    if args.json and is_main():
        print(json.dumps(report.as_dict(), indent=2))
    return 0 if args.skip_bad else report.status


def plan_jobs(args: argparse.Namespace) -> tuple[list, list]:
    """Returns the images and the videos of the arguments, each as (source, {suffix: output path}).

    Raises DataError for inputs that do not exist, and for outputs that would overwrite them.
    """
    from utils.images.headers import allow_pixels
    from utils.images.image_list import (
        find_images,
        plan_outputs,
        refuse_among_images,
        selects_images,
    )
    from utils.inference.prediction_files import wanted_outputs
    from utils.inference.video_files import FILM, FRAMES, split_videos
    videos, others = split_videos(args.images)
    extensions = tuple(filter(None, args.extension.split(",")))
    refuse_among_images(others, args.output)
    images = find_images(others, extensions, args.output) if others else []
    require_inputs(args, bool(images), bool(videos), any(map(selects_images, others)))
    if args.max_pixels:
        allow_pixels(args.max_pixels)
    of_videos = [FILM, FRAMES] if args.frames else [FILM]
    return (list(zip(images, plan_outputs(images, args.output, wanted_outputs(args)), strict=True)),
            list(zip(videos, plan_outputs(videos, args.output, of_videos), strict=True)))


if __name__ == "__main__":
    sys.exit(console.run(main))
