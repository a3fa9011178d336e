"""Applies decision rules to score files of any program: label maps, masks, and scores.

The files are written by the same functions as those of inference.py, and counted as test.py counts.
"""
import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.cli.console import notice
from utils.decision.rules import Decision
from utils.decision.score_files import SUFFIXES, ScoreReader, StoredScores
from utils.errors import DataError, listed, shown
from utils.evaluation.evaluate import RuleCounter
from utils.evaluation.label_pairs import files_by_name, require_size
from utils.evaluation.label_scores import LabeledDataset
from utils.images.image_list import Source
from utils.images.picture_files import picture_files, walk_folders
from utils.inference.prediction_files import (
    MASKS,
    VOLUME_MASKS,
    class_counts,
    class_shares,
    write_prediction,
)

MEDICAL = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".dcm")    # formats that are not read
ENDING = "_probabilities"       # of our files: x_probabilities.npz belongs to x.png
_SHOWN = 8


class DecideJob(NamedTuple):
    """A score file, its outputs (suffix -> path), and the place of its label in the dataset.

    label: None if nothing is scored.
    """

    source: Source
    outputs: dict[str, str]
    number: int = 0
    label: Path | None = None

    @property
    def masks(self) -> str | None:
        """The suffix of the masks to write, of an image or a volume; None if they are not."""
        return next((suffix for suffix in (MASKS, VOLUME_MASKS) if suffix in self.outputs), None)


def score_files(folder: str) -> list[Source]:
    """The score files below a folder; a notice tells of files of other kinds.

    `relative` is the path below the folder without the ending "_probabilities".
    Raises DataError if there is none.
    """
    def failed(error):
        raise DataError(f"cannot be read: {error.strerror}", shown(error.filename))

    if not os.path.isdir(folder):
        raise DataError("no such folder", shown(folder))
    found, others = [], {}
    folder = os.path.normpath(folder)
    for place, _, names in walk_folders(folder, failed):
        for name in names:
            path = os.path.normpath(os.path.join(place, name))
            stem, suffix = os.path.splitext(os.path.relpath(path, folder))
            if suffix.lower() in SUFFIXES:
                found.append(Source(path, stem.removesuffix(ENDING) + suffix))
            elif not name.startswith("."):
                others[suffix.lower()] = others.get(suffix.lower(), 0) + 1
    if not found:
        raise DataError("found no .npz or .npy files", shown(folder), _of_other_formats(others)
                        or "give a folder of stored probabilities")
    if others:
        notice("left out, and not opened: " + listed(
            sorted(others.items()), _SHOWN,
            text=lambda pair: f"{pair[1]} {shown(pair[0] or 'without extension')}"))
    return sorted(found, key=lambda source: source.relative)


def require_readable_labels(folder: Path):
    """Raise DataError for a folder of labels in a format of volumes that is not read."""
    suffixes = {path.suffix.lower() for path in picture_files(folder, MEDICAL)}
    if suffixes:
        raise DataError(f"holds {', '.join(sorted(suffixes))} files", f"--labels {shown(folder)}",
                        _of_other_formats(suffixes))


def _of_other_formats(suffixes: Iterable[str]) -> str | None:
    """What to do about files of programs for volumes; None if there are none."""
    found = sorted({".gz", *MEDICAL} & set(suffixes))
    return (f"NIfTI, DICOM and the like ({', '.join(found)}) are not read: store plain arrays with "
            "numpy.save, scores of (classes, slices, height, width), labels as integers (slices, "
            "height, width)") if found else None


def pair_with_labels(sources: list[Source], labels: dict[str, Path], folder: str) \
        -> tuple[dict[str, int], list[tuple[str, str]]]:
    """({path of a score file: position of its label}, [(path, reason) of what has no partner]).

    labels: by id, in the order of the dataset. A score file belongs to the label with whose id its
    name begins (utils.evaluation.label_pairs).
    """
    failed, problems, strangers = [], [], []
    numbers = {name: number for number, name in enumerate(labels)}
    paired = {}
    found = files_by_name(labels, Path(os.path.normpath(folder)),
                          [Path(source.path) for source in sources], problems, strangers)
    for name, paths in found.items():
        first, *more = sorted(paths, key=lambda path: (len(path.name), path.name))
        paired[str(first)] = numbers[name]
        failed += [(str(path), f"a second file for the label {shown(name)}; the first is "
                    f"{shown(first.name)}") for path in more]
    failed += [tuple(problem.split(": ", 1)) for problem in problems]
    failed += [(str(path), "no label begins its name") for path in strangers]
    failed += [(str(path), "no score file begins with its name")
               for name, path in labels.items() if name not in found]
    return paired, failed


@dataclass
class FileDecider:
    """Decides on score files, writes their outputs, and counts them.

    decisions: the rules; the first one makes the files. class_names, palette: by class id.
    truth: the dataset of the labels, None if nothing is scored.
    """

    reader: ScoreReader
    decisions: list[Decision]
    class_names: list[str]
    palette: list[list[int]]
    truth: LabeledDataset | None = None
    counters: dict[str, RuleCounter] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self):
        if self.truth:
            self.counters = {one.name: RuleCounter(len(self.class_names), self.truth.ignore_index)
                             for one in self.decisions}

    def decide(self, job: DecideJob) -> dict:
        """Decide on one file. Returns its entry for a report; raises DataError, which names it."""
        path = job.source.path
        scores = self.reader.read(path)
        target = None
        if job.label is not None:
            assert self.truth is not None
            target = self.truth.read_train_ids(job.label)
            require_size(scores.values[0].numpy(), Path(path), target, job.label)
        logits = scores.logits()
        with torch.inference_mode():
            masks = self._count(job, scores, logits, target)
            entry = {"image": path, "size": list(scores.values.shape[1:]),
                     "files": list(job.outputs.values())}
            if job.outputs:
                entry["classes"] = self._write(job, scores, logits, masks)
        return entry

    def _count(self, job, scores, logits, target) -> torch.Tensor | None:
        """Count every rule against the label. Returns the masks of the first rule, if it has any
        and they are needed."""
        first = None
        for decision in self.decisions:
            needed = decision is self.decisions[0] and decision.masks and job.masks
            if target is None and not needed:
                continue
            prediction = decision(_input_of(decision, scores, logits))
            if needed:
                first = prediction
            if target is not None:
                # A volume counts as one image: its slices lie below each other.
                flat = torch.from_numpy(target)[None].flatten(1, -2)
                with self._lock:
                    self.counters[decision.name].add(
                        prediction.flatten(1 + decision.masks, -2), flat, [job.number])
        if target is not None:
            digest = _digest(job.source.path)
            with self._lock:
                self.digests[job.source.relative] = digest
        return first

    def _write(self, job, scores, logits, masks):
        """Write the outputs of the first rule. Returns class name -> share of the pixels."""
        decision = self.decisions[0]
        labels = decision.label_map(_input_of(decision, scores, logits), masks)[0].numpy()
        maps = {}
        if job.masks:
            ids = np.arange(len(self.class_names)).reshape(-1, *[1] * labels.ndim)
            maps[job.masks] = labels == ids if masks is None else masks[0].numpy()
        write_prediction(job.outputs, None, labels, self.class_names, self.palette, maps)
        return class_shares(class_counts(labels, len(self.class_names)), self.class_names)

    def digest(self) -> str:
        """sha256 of the names and contents of all files that were scored."""
        text = "\n".join(f"{name} {digest}" for name, digest in sorted(self.digests.items()))
        return hashlib.sha256(os.fsencode(text)).hexdigest()


def _input_of(decision: Decision, scores: StoredScores, logits: torch.Tensor) -> torch.Tensor:
    """What a rule decides on. `max` takes the stored numbers: a logarithm may make two equal."""
    return scores.values[None] if decision.largest_logit else logits


def _digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()
