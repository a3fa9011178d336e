"""Segments image files. Decoding, the network and encoding run at the same time.

An image that cannot be read or segmented is recorded in the report; the others are done.
"""
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

from utils.cli.console import Interrupted, notice
from utils.cli.stop_signal import StopSignal
from utils.decision.ensemble import Ensemble
from utils.errors import (
    ConfigError,
    DataError,
    NumericalError,
    UserError,
    counted,
    first_line,
    shown,
)
from utils.images.band_files import input_header, read_input
from utils.images.georeference import georeference_of
from utils.images.image_io import map_image
from utils.images.name_pattern import pattern_of
from utils.images.partly_used import HEADERS, unused_in
from utils.images.picture_files import evenly_spaced
from utils.images.types import Image
from utils.inference.large_image import is_streamed, segment_large, unstreamable
from utils.inference.pipeline import Job, Pipeline, Prediction
from utils.inference.prediction_files import (
    GEOTIFF,
    class_counts,
    class_shares,
    write_prediction,
)
from utils.inference.report import InferenceReport
from utils.machine import distributed
from utils.machine.memory import logits_too_large

Group: TypeAlias = list[tuple[Job, Image | None]]   # images of one size, or one that is streamed


def segment_images(jobs: list[Job], pipeline: Pipeline, report: InferenceReport,
                   stop: StopSignal, *, batch: int = 1, workers: int = 2,
                   skip_existing: bool = False):
    """Segment every image of `jobs`, write its output files, and record the results in `report`.

    In a process group each rank takes its share: every image whose index is its rank modulo the
    number of ranks.
    stop: after a signal the images in progress are finished, then Interrupted is raised.
    batch: number of images of one size in one forward pass.
    workers: number of threads that decode, and as many that encode.
    skip_existing: leave out images whose output files all exist.
    Raises DataError for an output that cannot be written: writing the next one would fail too.
    """
    _tell_labels([source.path for source, _ in jobs], pipeline.opened.config)
    jobs = jobs[distributed.rank()::distributed.world_size()]
    if skip_existing:
        remaining = [job for job in jobs if not all(map(os.path.exists, job[1].values()))]
        report.skipped += len(jobs) - len(remaining)
        jobs = remaining
    normalize = pipeline.opened.normalize
    if normalize.bands is None:
        for line in unused_in([source.path for source, _ in jobs], normalize.white):
            notice(line)

    _tell_georeference(jobs)

    def check_stop():
        if stop.signum is not None:
            raise Interrupted(stop.signum)

    network = _NetworkStage(pipeline, report, check_stop)
    ahead = 2 * workers + batch
    with (ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers,
          tqdm(total=len(jobs), desc="segmenting", unit="image", leave=False,
               disable=None if distributed.is_main() else True) as bar):
        results = _Writing(writers, pipeline, report)
        try:
            images = _in_order(jobs, lambda job: _read(job, pipeline), readers, ahead)
            for group in _equal_sizes(images, report, batch, bar):
                if group[0][1] is None:
                    network.stream(group[0][0])
                else:
                    for result in network.segment(group):
                        results.submit(*result)
                results.wait(ahead)
                bar.update(len(group))
                check_stop()
            results.wait()
        except DataError as error:
            readers.shutdown(wait=False, cancel_futures=True)
            writers.shutdown(cancel_futures=True)
            raise DataError(f"{error.what} ({len(report.done)} of {len(jobs)} images were done)",
                            error.where, error.fix) from None
        except Interrupted as error:
            readers.shutdown(wait=False, cancel_futures=True)
            results.wait()
            by = " by this process" if distributed.world_size() > 1 else ""
            raise Interrupted(error.signum, f"{len(report.done)} of {len(jobs)} images are done"
                                            f"{by}; resume with --skip-existing") from None


class _NetworkStage:
    """Runs the network, the decision rule and the refinement on images that are in memory."""

    def __init__(self, pipeline: Pipeline, report: InferenceReport, check_stop: Callable[[], None]):
        self.pipeline, self.opened = pipeline, pipeline.opened
        self.report, self.check_stop = report, check_stop

    def segment(self, group: Group) -> list[tuple[Job, Image, Prediction]]:
        """Returns (job, image, prediction) of each image.

        An image that fails is recorded in the report and left out. If a batch fails, its images
        are tried one by one.
        """
        first_job, image = group[0]
        assert image is not None
        height, width = image.shape[:2]
        too_large = self._too_large(len(group), height, width)
        if too_large and len(group) == 1:
            self.report.fail(first_job[0].path, too_large)
            return []
        try:
            if too_large:
                raise RuntimeError(too_large)
            results = self._run(group)
        except RuntimeError as error:
            # Usually out of memory: one image too large for the device must not stop the others.
            if len(group) > 1:
                return [result for one in group for result in self.segment([one])]
            reason = first_line(error)
            fix = "; try --mode sliding" if "memory" in reason else ""
            self.report.fail(first_job[0].path,
                             f"the network fails on {height}x{width}: {reason}{fix}")
            return []
        done = []
        for (job, image), result in zip(group, results, strict=True):
            if isinstance(result, UserError):
                self.report.fail(job[0].path, result)
            else:
                done.append((job, image, result))
        return done

    def stream(self, job: Job):
        """Segment an image whose logits do not fit into memory, and write its output files."""
        source, outputs = job
        try:
            if self.pipeline.refiner:
                raise DataError("--segfix does not work on images that are streamed")
            normalize = self.opened.normalize
            image = map_image(source.path, normalize.white) if normalize.bands is None else \
                read_input(source.path, None, normalize.bands, source.root)
            shares = segment_large(image, outputs, self.opened, self.pipeline.predictor,
                                   self.pipeline.decision, self.check_stop, self.pipeline.maps,
                                   self.pipeline.stored_as, self.pipeline.legend,
                                   _georeference(job))
        except (DataError, NumericalError) as error:
            self.report.fail(source.path, error)
            return
        self.report.done.append(_report_entry(job, image, shares))

    def _run(self, group):
        """Returns the Prediction of each image, or why there is none."""
        (source, outputs), _ = group[0]
        return self.pipeline.predict([image for _, image in group],
                                     [job[0].relative for job, _ in group], outputs)

    def _too_large(self, images, height, width):
        """Returns why the logits of so many images do not fit into memory, or None if they do."""
        predictor = self.pipeline.predictor
        several = isinstance(predictor, Ensemble)
        reason = logits_too_large(images, len(self.opened.class_names), height, width,
                                  self.opened.device, predictor.parts if several else 1)
        if reason is None:
            return None
        if several and predictor.resizes and not predictor.cuts_alike(height, width):
            fix = ("use --base-size N, or --base-size none --mode sliding --crop-size N: networks "
                   "that cut large images alike stream them")
        elif (predictor.members[0].predictor if several else predictor).view(height, width):
            fix = "use -p max without further outputs, which streams large images"
        else:
            fix = "use --mode sliding --crop-size N, which streams large images"
        return f"{reason}: {fix}"


class _Writing:
    """Writes output files in threads; an image is reported as done when its files are complete."""

    def __init__(self, pool: ThreadPoolExecutor, pipeline: Pipeline, report: InferenceReport):
        self.pool, self.opened, self.report = pool, pipeline.opened, report
        self.stored_as, self.legend = pipeline.stored_as, pipeline.legend
        self.pending = deque()

    def submit(self, job: Job, image: Image, prediction: Prediction):
        """Begin to write the output files of an image."""
        self.pending.append((job, image, self.pool.submit(self._write, job, image, prediction)))

    def wait(self, most_pending: int = 0):
        """Wait until at most so many images are unfinished, and report the others as done."""
        while len(self.pending) > most_pending:
            job, image, shares = self.pending.popleft()
            self.report.done.append(_report_entry(job, image, shares.result()))

    def _write(self, job, image, prediction):
        names, labels = self.opened.class_names, prediction.labels
        image = self.opened.normalize.picture(image)
        write_prediction(job[1], image, labels, names, self.opened.palette, prediction.maps,
                         self.opened.label_ids, self.stored_as, self.legend, _georeference(job))
        return class_shares(class_counts(labels, len(names)), names)


def _georeference(job):
    """That of the image, if it is wanted and there is one."""
    return georeference_of(job[0].path) if GEOTIFF in job[1] else None


def _tell_labels(paths, config):
    """Say how many images are named like the labels of the training: they probably are labels."""
    args = config.get("train_loader", {}).get("args", {})
    try:
        label, image = (pattern_of(kind, args.get(f"{kind}_pattern"),
                                   args.get(f"{kind}_ending", ""))
                        for kind in ("label", "image"))
    except (ConfigError, TypeError):        # of a foreign config, which was not built here
        return
    if label.literals == len(label.suffix or ""):
        return                  # an extension alone does not tell a label from an image
    found = [path for path in paths if label.stem(Path(path).as_posix()) is not None and (
        label.literals > image.literals or image.stem(Path(path).as_posix()) is None)]
    others = {Path(path).suffix for path in paths} - {Path(path).suffix for path in found}
    if found and image.literals:
        suffix = "" if image.suffix or image.text.endswith("**") else sorted(others or [""])[0]
        way = f'a pattern such as --images "FOLDER/{image.text}{suffix}"'
    else:
        way = f"-e {sorted(others)[0][1:]}" if others else "a list of the images"
    if found:
        notice(f"{len(found)} of {counted(len(paths), 'image')} are named like the labels of the "
               f"training ({label.text}), for example {shown(found[0])}; {way} leaves them out")


def _tell_georeference(jobs):
    """Say what becomes of the georeference of images."""
    looked_at = evenly_spaced(jobs, HEADERS)
    placed = [source.path for source, _ in looked_at if georeference_of(source.path)]
    if any(GEOTIFF in outputs for _, outputs in jobs):
        if len(placed) < len(looked_at):
            notice(f"--geotiff: {len(looked_at) - len(placed)} of {len(looked_at)} images have no "
                   "georeference, and so their label maps have none")
    elif placed:
        notice(f"{len(placed)} of {len(looked_at)} images have a georeference, for example "
               f"{shown(placed[0])}; PNG label maps do not keep it: --geotiff writes TIFFs that do")


def _report_entry(job: Job, image: Image, shares: dict[str, float]) -> dict:
    source, outputs = job
    return {"image": source.path, "size": list(image.shape[:2]), "files": list(outputs.values()),
            "classes": shares}


def _in_order(items: Iterable[Job], work: Callable[[Job], Image | str | None],
              pool: ThreadPoolExecutor, ahead: int) -> Iterator[tuple[Job, Future]]:
    """Yields (item, future of work(item)) in order; up to `ahead` later ones run meanwhile."""
    pending = deque()
    for item in items:
        pending.append((item, pool.submit(work, item)))
        if len(pending) > ahead:
            yield pending.popleft()
    yield from pending


def _read(job: Job, pipeline: Pipeline) -> Image | str | None:
    """Returns the image (H, W, 3), None if it is to be streamed, or the reason why it is bad."""
    path, normalize = job[0].path, pipeline.opened.normalize
    try:
        possible = not (pipeline.refiner or unstreamable(job[1], pipeline.decision))
        header = input_header(path, normalize.bands, job[0].root)
        if is_streamed(*header.size, pipeline.predictor, possible):
            return None
        return read_input(path, normalize.white, normalize.bands, job[0].root)
    except DataError as error:
        return error.what


def _equal_sizes(images: Iterable[tuple[Job, Future]], report: InferenceReport, batch: int,
                 bar: tqdm) -> Iterator[Group]:
    """Yields groups of up to `batch` consecutive images of one size.

    An image to be streamed is a group of one. Images that cannot be read are reported as failed.
    """
    group = []
    for job, future in images:
        image = future.result()
        if isinstance(image, str):
            report.fail(job[0].path, image)
            bar.update()
            continue
        if group and (len(group) == batch or image is None or group[0][1] is None
                      or group[0][1].shape != image.shape):
            yield group
            group = []
        group.append((job, image))
    if group:
        yield group
