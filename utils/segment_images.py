"""Segments image files: decoding, network and encoding run at the same time.

One image that cannot be read or segmented is noted and the others go on.
"""
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

from utils import distributed
from utils.console import Interrupted
from utils.decision import Decision, probabilities
from utils.errors import DataError, first_line
from utils.image_io import map_image, read_header, read_image
from utils.image_list import Source
from utils.inference_report import Report
from utils.large_image import is_streamed, segment_large
from utils.open_model import OpenModel
from utils.predictor import Predictor
from utils.prediction_files import MASKS, PROBABILITIES, write_prediction
from utils.progress import free_memory
from utils.stop_signal import StopSignal

# Maps of logits that exist at a time at most, with what the network and the rule need beside.
MAPS = 3


def segment_images(sources: list[Source], outputs: list[dict[str, str]], opened: OpenModel,
                   predictor: Predictor, decision: Decision, report: Report, stop: StopSignal, *,
                   batch: int = 1, workers: int = 2, skip_existing: bool = False, refiner=None):
    """Segment every source and write what `outputs` (suffix -> path, per source) asks for.

    In a process group each rank does its share: every world-th image. What
    becomes of them is noted in `report`.
    stop: a signal ends the work after the images in hand, by Interrupted.
    batch: images of one size in one forward. workers: threads that decode, and
        as many that encode. skip_existing: leave out images with all results.
    refiner: what refines label maps (utils.segfix_refiner), or None.
    A file that cannot be written ends the run with a DataError: the next one
    could not be written either.
    """
    jobs = list(zip(sources, outputs, strict=True))[distributed.rank()::distributed.world_size()]
    if skip_existing:
        found = len(jobs)
        jobs = [job for job in jobs if not all(map(os.path.exists, job[1].values()))]
        report.skipped += found - len(jobs)
    work = _Work(opened, predictor, decision, refiner, report, stop, len(jobs))
    ahead = 2 * workers + batch
    with (ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers,
          tqdm(total=len(jobs), desc="segmenting", unit="image", leave=False,
               disable=None if distributed.is_main() else True) as bar):
        writing = deque()
        try:
            images = _in_order(jobs, lambda job: _read(job[0], predictor), readers, ahead)
            for group in _equal_sizes(images, report, batch, bar):
                if group[0][1] is None:
                    work.stream(group[0][0])
                else:
                    for job, image, *result in work.segment(group):
                        writing.append((job, image, writers.submit(
                            _write, job[1], image, opened, *result)))
                while len(writing) > ahead:
                    _finish(writing.popleft(), report)
                bar.update(len(group))
                work.heed()
            while writing:
                _finish(writing.popleft(), report)
        except DataError as error:
            readers.shutdown(wait=False, cancel_futures=True)
            writers.shutdown(cancel_futures=True)
            raise DataError(f"{error.what} ({len(report.done)} of {len(jobs)} images were done)",
                            error.where, error.fix) from None
        except Interrupted as error:
            readers.shutdown(wait=False, cancel_futures=True)
            while writing:
                _finish(writing.popleft(), report)
            raise Interrupted(error.signum, work.how_far()) from None


class _Work:
    """What all images share: network, rule, where to note failures, and a wish to stop."""

    def __init__(self, opened, predictor, decision, refiner, report, stop, count):
        self.opened, self.predictor, self.decision = opened, predictor, decision
        self.refiner, self.report, self.stop, self.count = refiner, report, stop, count

    def heed(self):
        if self.stop.signum is not None:
            raise Interrupted(self.stop.signum)

    def how_far(self):
        by = " by this process" if distributed.world_size() > 1 else ""
        return (f"{len(self.report.done)} of {self.count} images are done{by}; "
                "go on with --skip-existing")

    def segment(self, group):
        """(job, image, labels, probabilities or None, masks or None) for each of the group."""
        shape = group[0][1].shape
        too_large = self._too_large(len(group), *shape[:2])
        if too_large and len(group) == 1:
            self.report.fail(group[0][0][0].path, too_large)
            return []
        try:
            if too_large:
                raise RuntimeError(too_large)
            results = self._run(group)
        except RuntimeError as error:
            # Mostly memory: one image too large for the device shall not stop the others.
            if len(group) > 1:
                return [result for one in group for result in self.segment([one])]
            reason = first_line(error)
            fix = "; try --mode sliding" if "memory" in reason else ""
            self.report.fail(group[0][0][0].path,
                             f"the network fails on {shape[1]}x{shape[0]}: {reason}{fix}")
            return []
        return [(job, image, *one) for (job, image), one in zip(group, results, strict=True)
                if one is not None]

    def stream(self, job):
        """An image whose logits do not fit, from its file to its results."""
        source, paths = job
        try:
            if self.refiner:
                raise DataError("--segfix is not for images that are streamed")
            image = map_image(source.path)
            shares = segment_large(image, paths, self.opened, self.predictor, self.decision,
                                   self.heed)
        except DataError as error:
            self.report.fail(source.path, error.what)
            return
        self.report.done.append({"image": source.path, "size": list(image.shape[:2]),
                                 "files": list(paths.values()), "classes": shares})

    def _run(self, group):
        wanted = group[0][0][1]
        stack = np.stack([image for _, image in group])
        x = torch.from_numpy(stack).to(self.opened.device).permute(0, 3, 1, 2)
        nothing = [None] * len(group)
        probs, masks = nothing, nothing
        with torch.inference_mode():
            if PROBABILITIES not in wanted and not (MASKS in wanted and self.decision.masks):
                labels = self.predictor.labels(x, self.decision)
            else:
                logits = self.predictor(x)
                labels = self.decision.labels(logits)
                if PROBABILITIES in wanted:
                    temperature = self.opened.config["predict"]["temperature"]
                    probs = probabilities(logits, self.opened.activation, temperature)
                    probs = probs.mul_(255).round_().to(torch.uint8).cpu().numpy()
                if MASKS in wanted and self.decision.masks:
                    masks = self.decision(logits).cpu().numpy()
            refined = [self._refine(job, one, image)
                       for (job, _), one, image in zip(group, labels, x, strict=True)]
            if MASKS in wanted and not self.decision.masks:
                classes = np.arange(len(self.opened.class_names))[:, None, None]
                masks = [None if one is None else one == classes for one in refined]
        return [None if one is None else (one, probs[i], masks[i])
                for i, one in enumerate(refined)]

    def _refine(self, job, labels, image):
        """Labels as an array, through SegFix if it is asked for; None if that fails."""
        if self.refiner:
            try:
                labels = self.refiner(labels, image, job[0].relative)
            except DataError as error:
                self.report.fail(job[0].path, error.what)
                return None
        return labels.cpu().numpy()

    def _too_large(self, images, height, width):
        """Why the logits of this many images would not fit into memory, or nothing."""
        needed = MAPS * 4 * images * len(self.opened.class_names) * height * width
        if self.opened.device.type != "cpu" or needed < 1 << 30:
            return None
        free = free_memory()
        if free is None or needed <= free:
            return None
        return (f"the logits of {width}x{height} pixels need {needed / 2**30:.1f} GiB of memory "
                f"and {free / 2**30:.1f} are free: use --mode sliding --crop-size N, which "
                "streams large images")


def _in_order(items: list, work: Callable, pool: ThreadPoolExecutor, ahead: int) -> Iterator:
    """(item, future of work(item)), in order, with at most `ahead` of them begun early."""
    begun, items = deque(), iter(items)
    for item in items:
        begun.append((item, pool.submit(work, item)))
        if len(begun) > ahead:
            yield begun.popleft()
    yield from begun


def _read(source, predictor):
    """The image (H, W, 3); None if it is to be streamed; or the reason why there is none."""
    try:
        if is_streamed(*read_header(source.path).size, predictor):
            return None
        return read_image(source.path)
    except DataError as error:
        return error.what


def _equal_sizes(images, report, batch, bar):
    """Groups of up to `batch` consecutive (job, image) of one size; a streamed one is alone."""
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


def _write(paths, image, opened, labels, probs, masks):
    write_prediction(paths, image, labels, opened.class_names, opened.palette, probs, masks)
    counts = np.bincount(labels.ravel(), minlength=len(opened.class_names))
    return {name: count / labels.size
            for name, count in zip(opened.class_names, counts.tolist()) if count}


def _finish(written, report):
    (source, paths), image, future = written
    report.done.append({"image": source.path, "size": list(image.shape[:2]),
                        "files": list(paths.values()), "classes": future.result()})
