"""Segments image files: decoding, network and encoding run at the same time.

One image that cannot be read or segmented is noted and the others go on.
"""
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from utils.console import Interrupted
from utils.decision import Decision, probabilities
from utils.distributed import is_main
from utils.errors import DataError
from utils.image_io import read_image, shown
from utils.image_list import Source
from utils.open_model import OpenModel
from utils.predictor import Predictor
from utils.prediction_files import MASKS, PROBABILITIES, write_prediction


@dataclass
class Report:
    """What became of every image.

    done: per image {"image", "size": [H, W], "files", "classes": {name: share}}.
    failed: (path, reason). skipped: images whose results were there already.
    """

    done: list = field(default_factory=list)
    failed: list = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0

    def __str__(self):
        parts = [f"{len(self.done)} ok"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped (there already)")
        if self.failed:
            shorter = "; ".join(f"{shown(path)} ({reason})" for path, reason in self.failed[:20])
            more = f"; and {len(self.failed) - 20} more" if len(self.failed) > 20 else ""
            parts.append(f"{len(self.failed)} failed: {shorter}{more}")
        return ", ".join(parts)

    def as_dict(self) -> dict:
        """For --json."""
        speed = len(self.done) / self.seconds if self.seconds else 0.0
        return {"schema": 1, "ok": len(self.done), "skipped": self.skipped,
                "failed": [{"image": path, "reason": reason} for path, reason in self.failed],
                "seconds": self.seconds, "images_per_s": speed, "images": self.done}


def segment_images(sources: list[Source], outputs: list[dict[str, str]], opened: OpenModel,
                   predictor: Predictor, decision: Decision, *, batch: int = 1, workers: int = 2,
                   skip_existing: bool = False) -> Report:
    """Segment every source and write what `outputs` (suffix -> path, per source) asks for.

    batch: images of one size in one forward. workers: threads that decode, and
        as many that encode. skip_existing: leave out images with all results.
    A file that cannot be written ends the run with a DataError: the next one
    could not be written either.
    """
    start, report = time.perf_counter(), Report()
    jobs = list(zip(sources, outputs, strict=True))
    if skip_existing:
        jobs = [job for job in jobs if not all(map(os.path.exists, job[1].values()))]
        report.skipped = len(sources) - len(jobs)
    ahead = 2 * workers + batch
    with (ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers,
          tqdm(total=len(jobs), desc="segmenting", unit="image", leave=False,
               disable=None if is_main() else True) as bar):
        writing = deque()
        try:
            images = _in_order(jobs, lambda job: _read(job[0]), readers, ahead)
            for group in _equal_sizes(images, report, batch, bar):
                for job, image, *result in _segment(group, opened, predictor, decision, report):
                    writing.append((job, image, writers.submit(
                        _write, job[1], image, opened, *result)))
                while len(writing) > ahead:
                    _finish(writing.popleft(), report)
                bar.update(len(group))
            while writing:
                _finish(writing.popleft(), report)
        except DataError as error:
            writers.shutdown(cancel_futures=True)
            raise DataError(f"{error.what} ({len(report.done)} of {len(jobs)} images were done)",
                            error.where, error.fix) from None
        except KeyboardInterrupt:
            while writing:
                _finish(writing.popleft(), report)
            raise Interrupted(signal.SIGINT, f"{len(report.done)} of {len(jobs)} images are done; "
                                             "go on with --skip-existing") from None
    report.seconds = time.perf_counter() - start
    return report


def _in_order(items: list, work: Callable, pool: ThreadPoolExecutor, ahead: int) -> Iterator:
    """(item, future of work(item)), in order, with at most `ahead` of them begun early."""
    begun, items = deque(), iter(items)
    for item in items:
        begun.append((item, pool.submit(work, item)))
        if len(begun) > ahead:
            yield begun.popleft()
    yield from begun


def _read(source):
    """The image (H, W, 3), or the reason why there is none."""
    try:
        return read_image(source.path)
    except DataError as error:
        return error.what


def _equal_sizes(images, report, batch, bar):
    """Groups of up to `batch` consecutive (job, image) of one size."""
    group = []
    for job, future in images:
        image = future.result()
        if isinstance(image, str):
            report.failed.append((job[0].path, image))
            bar.update()
            continue
        if group and (len(group) == batch or group[0][1].shape != image.shape):
            yield group
            group = []
        group.append((job, image))
    if group:
        yield group


def _segment(group, opened, predictor, decision, report):
    """(job, image, labels, probabilities or None, masks or None) for each of the group."""
    wanted = group[0][0][1]
    try:
        stack = np.stack([image for _, image in group])
        x = torch.from_numpy(stack).to(opened.device).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            logits = predictor(x)
            results = [decision.labels(logits)]
            if PROBABILITIES in wanted:
                temperature = opened.config.get("predict", {}).get("temperature", 1.0)
                probs = probabilities(logits, opened.activation, temperature)
                results.append(probs.mul_(255).round_().to(torch.uint8))
            if MASKS in wanted:
                masks = decision(logits)
                if not decision.masks:
                    classes = torch.arange(logits.shape[1], device=masks.device)
                    masks = masks[:, None] == classes.view(1, -1, 1, 1)
                results.append(masks)
            arrays = iter([result.cpu().numpy() for result in results])
    except RuntimeError as error:
        # Mostly memory: one image too large for the device shall not stop the others.
        if len(group) > 1:
            return [result for one in group
                    for result in _segment([one], opened, predictor, decision, report)]
        (source, _), image = group[0]
        reason = str(error).strip().splitlines()[0]
        fix = "; try --mode sliding" if "memory" in reason else ""
        report.failed.append((source.path, f"the network fails on {image.shape[1]}x"
                                           f"{image.shape[0]}: {reason}{fix}"))
        return []
    labels = next(arrays)
    nothing = [None] * len(group)
    probs = next(arrays) if PROBABILITIES in wanted else nothing
    masks = next(arrays) if MASKS in wanted else nothing
    return [(job, image, labels[i], probs[i], masks[i]) for i, (job, image) in enumerate(group)]


def _write(paths, image, opened, labels, probs, masks):
    write_prediction(paths, image, labels, opened.class_names, opened.palette, probs, masks)
    counts = np.bincount(labels.ravel(), minlength=len(opened.class_names))
    return {name: count / labels.size
            for name, count in zip(opened.class_names, counts.tolist()) if count}


def _finish(written, report):
    (source, paths), image, future = written
    report.done.append({"image": source.path, "size": list(image.shape[:2]),
                        "files": list(paths.values()), "classes": future.result()})
