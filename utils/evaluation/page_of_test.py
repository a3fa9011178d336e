"""Collects what report.html shows while test.py scores, and writes it."""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.cli.console import notice
from utils.errors import counted, short_path, shown
from utils.evaluation.result_page import RuleResult, ShownImages, result_page
from utils.evaluation.results_file import Entry
from utils.evaluation.worst_and_best import WorstAndBest
from utils.files.whole_file import write_bytes
from utils.metrics.image_scores import ImageScores

NAME = "report.html"


class PageOfTest:
    """The page of one call of test.py, of one protocol or several.

    command: that is shown. class_names, palette: of the data. shown: see WorstAndBest.
    """

    def __init__(self, command: str, class_names: Sequence[str],
                 palette: Sequence[Sequence[int]], shown: Callable | None = None):
        self.command, self.class_names, self.palette = command, class_names, palette
        self.shown = shown
        self.results: list[RuleResult] = []
        self.protocols: list[str] = []
        self.pictures: ShownImages | None = None

    def keep(self, options: dict, ignore_index: int) -> WorstAndBest | None:
        """What keeps pictures in the next evaluation; those of the first protocol are shown.

        options: the `predict` section.
        """
        if self.protocols:
            return None
        return WorstAndBest(self.palette, len(self.class_names), ignore_index, options["CoI"],
                            options["published"], shown=self.shown)

    def add(self, protocol: str, entries: Sequence[Entry], tables: Mapping[str, ImageScores],
            kept: WorstAndBest | None):
        """Add the results of a protocol; each rank must call this. tables: of each rule."""
        self.protocols.append(protocol)
        self.results += [RuleResult(entry, tables[entry["procedure"]]) for entry in entries]
        if kept:
            worst, best = kept.gather()
            classes = [*zip(self.class_names, self.palette, strict=False)]
            self.pictures = ShownImages(worst, best, classes,
                                        kept.about(len(worst), len(best)))

    def write(self, folder: Path):
        """Write report.html. Raises DataError if it cannot be written."""
        assert self.pictures is not None, "the first protocol keeps pictures"
        if len(self.protocols) > 1:
            about = (f"{self.pictures.about} The pictures are those of {self.protocols[0]}, not of "
                     f"the other {counted(len(self.protocols) - 1, 'protocol')}.")
            self.pictures = ShownImages(self.pictures.worst, self.pictures.best,
                                        self.pictures.classes, about)
        path = folder / NAME
        data = result_page(self.results, self.command, self.pictures).encode()
        write_bytes(path, data)
        notice(f"the page is {shown(short_path(path))} ({len(data) / 1e3:,.0f} kB): open it in a "
               "browser")
