"""Puts the results of a study together: the content of study.json, from which all tables are made.

Scores and differences are fractions; null where something is not known.
"""
import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from utils.errors import DataError
from utils.files.json_values import plain_json
from utils.metrics.confidence import Difference, compare_runs
from utils.metrics.image_scores import ImageScores
from utils.study.folds import pooled_runs, unfinished_folds
from utils.study.results import RunResult
from utils.study.statistics import (
    POWER,
    holm,
    over_seeds,
    pooled_sd,
    rank_rows,
    seeds_needed,
)
from utils.study.study_file import Cell, Study

SCHEMA = 1
LEVEL = 0.95
LOWER_IS_BETTER = ("loss",)
# The scores that follow from the scores of single images; others have no interval over images.
OF_IMAGES = ("Mean_IoU", "Mean_Dice", "mIoU_I", "mDice_I")

Summary = dict[str, Any]


def summarize(study: Study, results: Iterable[RunResult],
              failed: Sequence[tuple[str, str]] = ()) -> Summary:
    """The content of study.json.

    results: of finished runs, in any order, those of folds each on its own. failed: (name of the
    run, message). Raises DataError if the results of folds cannot be added up.
    """
    finished: dict[int, list[RunResult]] = {}
    for result in results:
        finished.setdefault(id(result.cell), []).append(result)
    by_cell = {id(cell): pooled_runs(cell, finished[id(cell)]) for cell in study.cells
               if id(cell) in finished}
    rows = [_row(study, cell, by_cell.get(id(cell), []), finished.get(id(cell), []))
            for cell in study.cells]
    for score in study.scores:
        _mark_best(rows, score)
    comparisons, gaps, needed = _comparisons(study, by_cell)
    ranks = rank_rows(_means(rows, study.scores[0]))
    return plain_json({
        "schema": SCHEMA, "name": study.name, "note": study.note, "scores": list(study.scores),
        "baseline": study.baseline, "margin": study.margin / 100, "level": LEVEL, "rows": rows,
        "comparisons": comparisons, "not_compared": gaps, "seeds_needed": needed,
        "ranks": dataclasses.asdict(ranks) if ranks else None,
        "failed": [{"run": name, "message": message} for name, message in failed]})


def _row(study: Study, cell: Cell, runs: list[RunResult],
         finished: list[RunResult]) -> dict[str, Any]:
    """finished: as `runs`, but those of folds each on its own."""
    runs = sorted(runs, key=lambda run: (run.seed is None, run.seed or 0, run.name))
    costs = next((run.costs for run in runs if run.costs), {})
    seconds = [run.seconds for run in runs if run.seconds is not None]
    have = {run.seed for run in runs}
    return {
        "label": cell.label, "data": cell.data, "title": cell.title, "note": cell.note,
        "config": str(cell.config) if cell.config else None,
        "overrides": list(cell.overrides), "test": list(cell.test),
        "scores": {score: _score(cell, score, runs) for score in study.scores},
        "classes": _classes(runs),
        "parameters": costs.get("parameters"), "flops": costs.get("flops"),
        "size": costs.get("size"), "seconds": statistics.fmean(seconds) if seconds else None,
        "missing": [seed for seed in cell.seeds if cell.config and seed not in have],
        "missing_folds": {str(seed): unfinished_folds(cell, finished, seed) for seed in cell.seeds
                          if cell.folds and seed not in have},
        "folds": list(cell.folds),
        "runs": [_of_run(study, run) for run in runs]}


def _of_run(study: Study, run: RunResult) -> dict[str, Any]:
    return {"name": run.name, "seed": run.seed, "fold": run.fold, "place": str(run.place),
            "folder": str(run.folder) if run.folder else None,
            "scores": {key: run.scores.get(key) for key in study.scores},
            "seconds": run.seconds, "curves": run.curves,
            "images": len(run.images.ids) if run.images else None,
            "parts": [_of_run(study, part) for part in run.parts]}


def _score(cell, score, runs) -> dict[str, Any]:
    values = [run.scores[score] for run in runs if score in run.scores]
    mean = statistics.fmean(values) if values else math.nan
    published = cell.published.get(score)
    printed = published.mean / 100 if published else math.nan
    return {"values": values, "mean": mean,
            "sd": statistics.stdev(values) if len(values) > 1 else math.nan, "best": False,
            "folds": _of_folds(runs, score),
            "published": {"mean": printed, "runs": [one / 100 for one in published.runs]}
            if published else None,
            "difference": mean - printed}


def _of_folds(runs, score) -> list[float]:
    """The score of each fold alone, as its mean over the seeds."""
    by_fold = zip(*(run.parts for run in runs), strict=True)
    return [statistics.fmean(known) if known else math.nan for known in (
        [part.scores[score] for part in parts if score in part.scores] for parts in by_fold)]


def _classes(runs) -> dict[str, float | None]:
    """class -> its mean IoU over the runs."""
    table = {}
    for name in dict.fromkeys(name for run in runs for name in run.classes):
        values = [value for run in runs if (value := run.classes.get(name)) is not None
                  and not math.isnan(value)]
        table[name] = statistics.fmean(values) if values else None
    return table


def _mark_best(rows, score):
    """Mark the best mean of each data set; all of them if several print the same."""
    sign = -1 if score in LOWER_IS_BETTER else 1
    for data in {row["data"] for row in rows}:
        known = [row["scores"][score] for row in rows
                 if row["data"] == data and not math.isnan(row["scores"][score]["mean"])]
        best = max((round(sign * one["mean"], 4) for one in known), default=None)
        for one in known:
            one["best"] = len(known) > 1 and round(sign * one["mean"], 4) == best


def _comparisons(study: Study, by_cell) -> tuple[list[dict], list[dict], dict | None]:
    """(each row against the baseline of its data set, what of this is missing and why, the seeds
    that the margin needs)."""
    if study.baseline is None:
        return [], [], None
    table, gaps, of_main = [], [], []
    compared: dict[int, _OverImages] = {}       # of all scores at once
    for score in study.scores:
        family = []
        for cell in study.cells:
            if cell.label == study.baseline:
                continue
            base = next((one for one in study.cells
                         if one.label == study.baseline and one.data == cell.data), None)
            first, second = by_cell.get(id(base), []), by_cell.get(id(cell), [])
            gap = {"row": cell.title, "score": score, "what": "difference"}
            reason = _nothing_to_compare(study, cell, base, first, second, score)
            if reason:
                gaps.append({**gap, "reason": reason})
                continue
            assert base is not None
            seeds = over_seeds(_by_seed(first, score), _by_seed(second, score), LEVEL)
            if id(cell) not in compared:
                compared[id(cell)] = _over_images(first, second)
            images = compared[id(cell)]
            family.append({"row": cell.title, "baseline": base.title, "score": score,
                           "seeds": dataclasses.asdict(seeds), "images": images.of(score)})
            if images.gap(score):
                gaps.append({**gap, "what": "interval over images", "reason": images.gap(score)})
            if score == study.scores[0]:
                of_main.append(seeds)
        for kind in ("seeds", "images"):
            known = [one for one in family if one[kind]]
            for one, p in zip(known, holm([one[kind]["p"] for one in known]), strict=True):
                one[kind]["p_holm"] = p
        table += family
    return table, gaps, _needed(study, of_main)


def _nothing_to_compare(study, cell, base, first, second, score) -> str:
    """Why a row has no difference to the baseline; empty if it has one."""
    if base is None:
        return f"{study.baseline} has no row on {cell.data}"
    for one, runs in ((base, first), (cell, second)):
        if not runs:
            return f"{one.title} has no result"
        if not any(score in run.scores for run in runs):
            return f"the results of {one.title} have no {score}"
    return ""


def _by_seed(runs: list[RunResult], score: str) -> dict[int | None, list[float]]:
    table: dict[int | None, list[float]] = {}
    for run in runs:
        if score in run.scores:
            table.setdefault(run.seed, []).append(run.scores[score])
    return table


@dataclasses.dataclass(frozen=True)
class _OverImages:
    """The differences between two rows over the images of their runs.

    table: score -> difference. runs: how many pairs of runs. reason: why there are none.
    """

    table: dict[str, Difference]
    runs: int
    reason: str = ""

    def of(self, score: str) -> dict | None:
        """What study.json says of the difference of one score."""
        one = self.table.get(score) if score in OF_IMAGES else None
        return one and {"value": one.value, "low": one.low, "high": one.high, "p": one.p,
                        "images": one.images, "runs": self.runs}

    def gap(self, score: str) -> str:
        """Why a score has no interval over images; empty if it has one."""
        if score not in OF_IMAGES:
            return f"only {', '.join(OF_IMAGES)} have one"
        if score in self.table:
            one = self.table[score]
            return "" if one.enough else f"{one.images} images are too few to tell"
        return self.reason or "the runs count no pixels, or average other classes"


def _over_images(first: list[RunResult], second: list[RunResult]) -> _OverImages:
    for runs in (first, second):
        if not any(run.images for run in runs):
            return _OverImages({}, 0, f"{runs[0].name} has no scores of single images")
    pairs = _pairs(first, second)
    try:
        table = compare_runs([one for one, _ in pairs], [two for _, two in pairs], LEVEL)
    except DataError as error:      # not one common image, or another number of classes
        return _OverImages({}, len(pairs), error.what)
    return _OverImages(table, len(pairs))


def _pairs(first, second) -> list[tuple[ImageScores, ImageScores]]:
    """Image scores of the runs of common seeds, or else of the runs in their order.

    A single run without a partner of its seed, such as that of another program, is compared with
    all runs of the other row.
    """
    one_seed, two_seed = ({run.seed: run.images for run in runs if run.images
                           and run.seed is not None} for runs in (first, second))
    common = sorted(one_seed.keys() & two_seed.keys())
    if common:
        return [(one_seed[seed], two_seed[seed]) for seed in common]
    ones, twos = ([run.images for run in runs if run.images] for runs in (first, second))
    if min(len(ones), len(twos)) == 1:
        ones, twos = ones * len(twos), twos * len(ones)
    return list(zip(ones, twos, strict=False))


def _needed(study: Study, differences) -> dict | None:
    paired = [one for one in differences if one.paired]
    sd = pooled_sd(paired)
    if math.isnan(sd):
        return None
    needed = seeds_needed(sd, study.margin / 100, LEVEL)
    have = min(one.seeds for one in paired)
    return {"sd": sd, "margin": study.margin / 100, "power": POWER, "needed": needed, "have": have,
            "more": None if needed is None else max(0, needed - have)}


def _means(rows, score) -> dict[str, dict[str, float]]:
    """data set -> row -> mean score, larger is better."""
    sign = -1 if score in LOWER_IS_BETTER else 1
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        mean = row["scores"][score]["mean"]
        if row["data"] and not math.isnan(mean):
            table.setdefault(row["data"], {})[row["label"]] = sign * mean
    return table
