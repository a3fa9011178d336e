"""Segments video files and cameras. Each result is a film: the frames with their labels as colors.

On request the label maps of the frames are written as well, each as a file.

Reading, the network and writing run at the same time.
"""
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from utils.cli.console import Interrupted, warn
from utils.cli.stop_signal import StopSignal
from utils.errors import ConfigError, DataError, NumericalError, UserError, shown
from utils.images.types import Image, Labels
from utils.images.visualize import MOST_LISTED, overlay, side_by_side, with_strip
from utils.inference.pipeline import Job, Pipeline, Prediction
from utils.inference.prediction_files import (
    LABELS,
    class_counts,
    legend_below,
    write_prediction,
)
from utils.inference.report import InferenceReport
from utils.inference.video_files import CHECK_VIDEO, FILM, FRAMES, VideoReader, VideoWriter
from utils.machine import distributed

MOST_PENDING = 2            # batches of frames that wait to be written
LEGEND_LINES = 4            # of a film whose legend cannot list all classes


def segment_videos(jobs: list[Job], pipeline: Pipeline, report: InferenceReport,
                   stop: StopSignal, *, with_original: bool = False, batch: int = 1,
                   most_frames: int | None = None, of_frames: Collection[str] = (LABELS,),
                   skip_existing: bool = False):
    """Segment every video of `jobs` and record the results in `report`.

    In a process group each rank takes its share of the videos. A video that cannot be read is
    recorded as failed; the others are done.
    with_original, batch, most_frames, of_frames: see `segment_video`.
    skip_existing: leave out videos whose film exists.
    stop: after a signal the current film ends with the frames it has, then Interrupted is raised.
    """
    for source, outputs in jobs[distributed.rank()::distributed.world_size()]:
        path = outputs[FILM]
        if skip_existing and os.path.exists(path):
            report.skipped += 1
            continue
        try:
            done = segment_video(source.path, path, pipeline, with_original=with_original,
                                 batch=batch, most_frames=most_frames,
                                 frames_folder=outputs.get(FRAMES), of_frames=of_frames,
                                 stopped=lambda: stop.signum is not None)
        except (DataError, NumericalError) as error:
            report.fail(source.path, error)
            continue
        report.done.append(done)
        if stop.signum is not None:
            raise Interrupted(stop.signum, f"{shown(path)} is complete and contains the first "
                                           f"{done['frames']} frames")


def segment_video(source: str, path: str, pipeline: Pipeline, *, with_original: bool = False,
                  batch: int = 1, most_frames: int | None = None,
                  frames_folder: str | None = None, of_frames: Collection[str] = (LABELS,),
                  stopped: Callable[[], bool] = lambda: False) -> dict:
    """Segment the video file or camera `source` and write the film `path`.

    with_original: put the original frame to the left of the colored one.
    batch: number of frames in one forward pass. most_frames: stop after this many.
    frames_folder: also write files of each frame there, named by its number: 000000.png, …
    of_frames: suffixes of these files, as in utils.inference.prediction_files.
    stopped: called after every batch; when it returns True the film ends there, complete.
    Returns the entry for the report: {"image", "size", "files", "frames", "frames_expected",
    "complete", "frames_per_s"}. Raises DataError for a file that cannot be read or written.
    """
    if pipeline.refiner and not pipeline.refiner.needs_image:
        raise ConfigError("a video cannot be refined with offset files", "--segfix",
                          "give a SegFix checkpoint")
    start, frames, complete = time.perf_counter(), 0, True
    store = _FrameFiles(frames_folder, of_frames, pipeline)
    film = _Film(pipeline, with_original)
    with VideoReader(source) as reader, ThreadPoolExecutor(1) as reading, \
            ThreadPoolExecutor(1) as writing, \
            VideoWriter(path, reader.frames_per_s) as writer, \
            tqdm(total=most_frames or reader.length, desc="segmenting", unit="frame", leave=False,
                 disable=None if distributed.is_main() else True) as bar:
        pending = deque()
        for group in _groups(_read_ahead(reader, reading, 2 * batch), batch, most_frames):
            names = [f"{source}, frame {frames + number}" for number in range(len(group))]
            results = pipeline.predict(group, names, store.suffixes)
            failed = next((one for one in results if isinstance(one, UserError)), None)
            if failed:
                raise type(failed)(f"frame {frames + results.index(failed)}: {failed.what}",
                                   failed.where, failed.fix)
            pending.append(writing.submit(_write, writer, group, results, film, store, frames))
            while len(pending) > MOST_PENDING:
                pending.popleft().result()
            frames += len(group)
            bar.update(len(group))
            if stopped():
                complete = False
                break
        for written in pending:
            written.result()
    if not frames:
        raise DataError("no frame could be read", shown(source), CHECK_VIDEO)
    if complete and not most_frames and reader.length - frames > 1:
        complete = False
    return {"image": source, "size": reader.size, "files": [path, *store.files], "frames": frames,
            "frames_expected": reader.length, "complete": complete,
            "frames_per_s": frames / (time.perf_counter() - start)}


def _read_ahead(reader: VideoReader, pool: ThreadPoolExecutor, ahead: int) -> Iterator[Image]:
    """Yields the frames; up to `ahead` later ones are decoded in the meantime."""
    pending = deque(pool.submit(next, reader, None) for _ in range(ahead))
    while pending:
        frame = pending.popleft().result()
        if frame is None:
            return
        pending.append(pool.submit(next, reader, None))
        yield frame


def _groups(frames: Iterable[Image], size: int, most: int | None) -> Iterator[list[Image]]:
    """Yields lists of `size` frames, the last one may be shorter; `most` frames altogether."""
    group, count = [], 0
    for frame in frames:
        group.append(frame)
        count += 1
        if len(group) == size or count == most:
            yield group
            group = []
        if count == most:
            return
    if group:
        yield group


def _write(writer, frames, results, film, store, first):
    for number, (frame, result) in enumerate(zip(frames, results, strict=True), first):
        store.write(number, frame, result)
        writer.write(film.picture(frame, result.labels))


class _Film:
    """Makes the pictures of a film, all of one size.

    The legend lists all classes, or in LEGEND_LINES lines those of the frame, if there are more
    than MOST_LISTED.
    """

    def __init__(self, pipeline: Pipeline, with_original: bool):
        self.opened, self.with_original, self.legend = \
            pipeline.opened, with_original, pipeline.legend
        self.listed, self.strip = None, None        # of the frame before

    def picture(self, frame: Image, labels: Labels) -> Image:
        """The picture of a frame, uint8 (H, W, 3), with its class ids (H, W)."""
        names, palette = self.opened.class_names, self.opened.palette
        picture = overlay(frame, labels, palette)
        if self.with_original:
            picture = side_by_side(frame, picture)
        if not self.legend:
            return picture
        few = len(names) <= MOST_LISTED
        counts = np.zeros(len(names) + 1) if few else class_counts(labels, len(names))
        listed = (counts > 0).tobytes()
        if self.strip is None or listed != self.listed:
            self.listed = listed
            self.strip = legend_below(picture.shape[1], names, palette, counts,
                                      None if few else LEGEND_LINES)
        return with_strip(picture, self.strip)


class _FrameFiles:
    """Writes the output files of single frames into a folder; without a folder, none.

    files: the folder, once it is there. An earlier, longer film may have left files of later
    frames; they stay, with a warning.
    """

    def __init__(self, folder: str | None, suffixes: Collection[str], pipeline: Pipeline):
        self.folder, self.opened, self.stored_as = folder, pipeline.opened, pipeline.stored_as
        self.legend = pipeline.legend
        self.suffixes = list(suffixes) if folder else []
        self.files: list[str] = []

    def write(self, number: int, frame: Image, prediction: Prediction):
        """Write the files of one frame, uint8 (H, W, 3)."""
        if self.folder is None:
            return
        base = os.path.join(self.folder, f"{number:06d}")
        paths = {suffix: base + suffix for suffix in self.suffixes}
        if not self.files:
            self.files.append(self.folder)
            if os.path.isdir(self.folder) and os.listdir(self.folder):
                warn(f"{shown(self.folder)} holds files already: those of the same frames are "
                     "replaced, others stay")
        write_prediction(paths, frame, prediction.labels, self.opened.class_names,
                         self.opened.palette, prediction.maps, self.opened.label_ids,
                         self.stored_as, self.legend)
