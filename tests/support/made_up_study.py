"""Made-up results of runs, and the summary of a study of them."""
from pathlib import Path
from typing import Any

import numpy as np

from utils.metrics.image_scores import ImageScores
from utils.study.results import RunResult
from utils.study.study_file import Cell, Study
from utils.study.summary import Summary, summarize


def image_scores(shift=0.0, count=70, classes=3, seed=0, first=0) -> ImageScores:
    """Scores of single images; images of one number are as difficult for all runs."""
    difficulty = np.random.default_rng(99).uniform(0.4, 0.8, first + count)[first:]
    noise = 0.03 * np.random.default_rng(seed).standard_normal((count, classes))
    labeled = np.full((count, classes), 1000)
    hits = (labeled * np.clip(difficulty[:, None] + shift + noise, 0, 1)).astype(np.int64)
    image = np.full((count, 4), np.nan)
    image[:, 0] = (hits / (2 * labeled - hits)).mean(1)
    image[:, 1] = (2 * hits / (2 * labeled)).mean(1)
    return ImageScores([f"i{first + i}" for i in range(count)], image,
                       np.stack([hits, labeled, labeled], 1), list(range(classes)),
                       [f"c{k}" for k in range(classes)])


def run(cell: Cell, score: float, seed: int | None = 0, images: ImageScores | None = None,
        classes: dict[str, float | None] | None = None, **scores: float) -> RunResult:
    return RunResult(cell, f"{cell.title} {seed}", Path("results.json"),
                     {"Mean_IoU": score, **scores}, classes or {"a": score}, seed, images=images)


def summary_of(*runs: RunResult, missing: tuple[Cell, ...] = (), failed: Any = (),
               **settings: Any) -> Summary:
    """The content of study.json; missing: cells without a result."""
    cells = tuple({id(one.cell): one.cell for one in runs}.values())
    return summarize(Study("made up", (*cells, *missing), **settings), runs, failed)
