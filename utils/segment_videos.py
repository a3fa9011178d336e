"""Segments the video files and cameras of a run, each into a film."""
import os

from utils import distributed
from utils.console import Interrupted
from utils.decision import Decision
from utils.errors import DataError
from utils.image_io import shown
from utils.image_list import Source
from utils.inference_report import Report
from utils.open_model import OpenModel
from utils.predictor import Predictor
from utils.stop_signal import StopSignal
from utils.video import FILM, segment_video


def segment_videos(videos: list[Source], films: list[dict[str, str]], opened: OpenModel,
                   predictor: Predictor, decision: Decision, report: Report, stop: StopSignal, *,
                   beside: bool = False, batch: int = 1, most_frames: int | None = None,
                   skip_existing: bool = False, refiner=None):
    """Write the film of every video; in a process group each rank takes its share.

    beside, batch, most_frames, refiner: see `utils.video.segment_video`.
    skip_existing: leave out videos whose film is there.
    stop: a signal ends the film at hand with the frames it has, then the work, by Interrupted.
    One that cannot be read is noted in `report` and the others go on.
    """
    jobs = list(zip(videos, films, strict=True))[distributed.rank()::distributed.world_size()]
    for source, paths in jobs:
        path = paths[FILM]
        if skip_existing and os.path.exists(path):
            report.skipped += 1
            continue
        try:
            done = segment_video(source, path, opened, predictor, decision, beside=beside,
                                 batch=batch, most_frames=most_frames, refiner=refiner,
                                 stopped=lambda: stop.signum is not None)
        except DataError as error:
            report.fail(source.path, error.what)
            continue
        report.done.append(done)
        if stop.signum is not None:
            raise Interrupted(stop.signum, f"{shown(path)} is a whole film of the first "
                                           f"{done['frames']} frames")
