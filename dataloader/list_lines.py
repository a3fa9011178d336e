"""What the lines of a list file name: an image, or the files of an image and its label.

Lists of other programs name the files from other folders, with or without extensions, and with
backslashes; each file is looked for in all of these ways.
"""
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from base.dataset_files import Problem, Sample, StemFiles
from utils.errors import shown
from utils.images.name_pattern import NamePattern
from utils.images.picture_files import IMAGE_SUFFIXES, NO_LABELS

_FIX = ("a line is the name of an image, or the files of an image and its label separated by a "
        "tab, a comma or blanks; both below image_dir and label_dir, below data_dir, or absolute")


class ListLines:
    """Finds the sample of each line of a list.

    files: the images and labels below the two folders. image_pattern: of the image names.
    root: data_dir. report: called with each problem.
    """

    def __init__(self, files: StemFiles, image_pattern: NamePattern, root: Path,
                 report: Callable[[str], None]):
        self.files, self.image_pattern, self.root, self.report = files, image_pattern, root, report

    def sample(self, place: str, line: str) -> Sample | None:
        """The sample of one line; None if it is reported, with the place of the line.

        A line that is the name of an image as a whole is that image: names may contain blanks.
        """
        stem = self._stem(line)
        if stem is not None:
            return self.files.pair(place, stem, self.report)
        problem = None
        for image_text, label_text in _halves(line):
            image = self._file(image_text, self.files.image_dir, self.files.images, IMAGE_SUFFIXES)
            label = self._file(label_text, self.files.label_dir, self.files.labels,
                               self.files.label_suffixes)
            if image and label:
                return self._explicit(place, image, label)
            if image and problem is None:
                problem = f"no label {shown(label_text)}"
            elif label and problem is None:
                problem = f"no image {shown(image_text)}"
        outside = self._file(line, self.files.image_dir, {}, ())
        if outside and problem is None:
            problem = (f"{shown(outside)} is no image of {shown(self.files.image_dir)}: its label "
                       "must follow in the same line")
        self.report(Problem(
            f"{place}: {problem or f'no image {shown(line)} in {shown(self.files.image_dir)}'}",
            _FIX, "no files of a line"))
        return None

    def _stem(self, line):
        """The stem of the image that the whole line names; None if it names none."""
        for text in _spellings(line):
            if text in self.files.images:       # most lines: no file is looked for
                return text
            stem, suffix = os.path.splitext(text)
            names = [stem] if suffix.lower() in IMAGE_SUFFIXES else []
            path = self._file(text, self.files.image_dir, {}, IMAGE_SUFFIXES)
            if path:
                names.insert(0, self._stem_of(path))
            found = next((name for name in names if name in self.files.images), None)
            if found is not None:
                return found
        return None

    def _stem_of(self, path):
        """The stem of a file below image_dir; None if it lies elsewhere or is no image there."""
        name = _below(path, self.files.image_dir)
        return name and self.image_pattern.stem(name)

    def _file(self, text, folder, by_stem, suffixes) -> Path | None:
        """The file that a text names: one of `by_stem`, below `folder` or root, or absolute."""
        for spelling in _spellings(text):
            if spelling in by_stem:
                return by_stem[spelling]
            for top in (folder, self.root):
                for name in dict.fromkeys((spelling, spelling.lstrip("/"))):
                    path = Path(top, name)
                    candidates = [path, *(path.with_name(path.name + suffix)
                                          for suffix in suffixes if path.name)]
                    found = next(filter(os.path.isfile, candidates), None)
                    if found:
                        return found
        return None

    def _explicit(self, place, image, label):
        """The sample of an image and a label that a line names."""
        if label.suffix.lower() not in self.files.label_suffixes:
            self.report(Problem(f"{place}: {shown(label)} is not a label",
                                NO_LABELS.get(label.suffix.lower(), "store labels as PNG"),
                                "not a label"))
            return None
        stem = self._stem_of(image)
        if stem is None:
            name = _below(image, self.files.image_dir) or _below(image, self.root) or str(image)
            stem = os.path.splitext(name)[0]
        return Sample(stem, image, label)


def _halves(line) -> Iterator[tuple[str, str]]:
    """Each way to read a line as two names."""
    for mark in ("\t", ",", ";"):
        if line.count(mark) == 1:
            first, _, second = line.partition(mark)
            yield _bare(first), _bare(second)
    for blank in re.finditer(r"\s+", line):
        yield _bare(line[:blank.start()]), _bare(line[blank.end():])


def _bare(name):
    """A name without blanks and quotes around it."""
    name = name.strip()
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] == '"' else name


def _spellings(text):
    """A name as written, and with the backslashes of Windows as slashes."""
    spellings = dict.fromkeys((text, text.replace("\\", "/")))
    return [name.removeprefix("./") for name in spellings]


def _below(path, folder):
    """The name of a file relative to a folder, with "/"; None if it does not lie in it."""
    for absolute in (os.path.abspath, os.path.realpath):
        name = os.path.relpath(absolute(path), absolute(folder))
        if not name.startswith(".."):
            return Path(name).as_posix()
    return None
