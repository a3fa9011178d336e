"""Patterns for file names: which files of a folder are images or labels, and what a pair shares.

    *_mask.png       files whose name ends so, in any folder
    mask_*           files whose name begins so, with any extension
    images/**        files below a folder "images", wherever that folder is
    *annot/**        files below a folder whose name ends with "annot"

    {stem}_mask.png  the same as *_mask.png
    {stem}/{stem}_by_*.png   what {stem} stands for is what a pair shares, and * is any other text

`*` is any text without a slash, `**` any text. They are what image and label share, unless the
pattern has a `{stem}`: then only that is shared, and it stands for the same text, without a slash,
wherever it is written. A pattern describes the end of a path: any folders may precede it. Without
an extension it fits every extension.
"""
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils.errors import ConfigError
from utils.images.picture_files import IMAGE_SUFFIXES, picture_files

_STEM = "{stem}"


def is_pattern(text: str) -> bool:
    """Whether a text can be a NamePattern: it says what image and label share."""
    return "*" in text or _STEM in text


class NamePattern:
    """A pattern of file names. Raises ConfigError, with the place `key`, if `text` is none.

    any_suffix: an extension at the end of the text is part of the name ("x.jpg.png").
    literals: the number of characters that it prescribes.
    """

    def __init__(self, text: str, key: str = "", any_suffix: bool = False):
        if not is_pattern(text) or text.startswith("/"):
            raise ConfigError(f"{text!r} is not a pattern of file names", key,
                              "write * or {stem} for what the names of image and label share, such "
                              "as \"*_mask.png\", \"{stem}_mask.png\" or \"masks/**\"")
        self.text = text
        stem, suffix = os.path.splitext(text)
        is_suffix = suffix.lower() in IMAGE_SUFFIXES and not any_suffix
        self.suffix = suffix.lower() if is_suffix else None
        self._parts = re.split(r"(\*\*|\*|\{stem\})", text if self.suffix is None else stem)
        self.literals = sum(map(len, self._parts[::2])) + len(self.suffix or "")
        named = _STEM in self._parts
        self._regex = re.compile("((?:.*/)?)" + "".join(
            re.escape(part) if i % 2 == 0 else
            "(?P=stem)" if part == _STEM and _STEM in self._parts[:i] else
            "(?P<stem>[^/]+)" if part == _STEM else
            ("(?:.+)" if named else "(.+)") if part == "**" else
            "(?:[^/]+)" if named else "([^/]+)"
            for i, part in enumerate(self._parts)), re.DOTALL)

    def stem(self, path: str) -> str | None:
        """The path (relative, with "/") without the pattern's own text and without the extension.

        Image and label of a pair have the same one. None: the pattern does not fit.
        """
        name, suffix = os.path.splitext(path)
        found = self._regex.fullmatch(name)
        if not found or self.suffix not in (None, suffix.lower()):
            return None
        folders, *stars = found.groups()
        if _STEM in self._parts:
            return folders + found["stem"]
        text = folders + self._kept(0) + "".join(
            star + self._kept(i) for i, star in enumerate(stars, 1))
        return "/".join(part for part in text.split("/") if part)

    def name(self, stem: str) -> str | None:
        """The path, without extension, that has this stem; None if the pattern leaves a choice."""
        if len(self._parts) != 3 or "/" in self.text:
            return None
        folder, slash, name = stem.rpartition("/")
        return f"{folder}{slash}{self._parts[0]}{name}{self._parts[2]}"

    def _kept(self, index):
        """What the text between two stars leaves in a stem: a slash, if it has one."""
        return "/" if "/" in self._parts[2 * index] else ""


def pattern_of(kind: str, pattern: str | None, ending: str) -> NamePattern:
    """The NamePattern of the arguments KIND_pattern and KIND_ending of a dataset.

    kind: "image" or "label". Raises ConfigError.
    """
    if pattern and ending:
        raise ConfigError(f"{kind}_pattern and {kind}_ending say the same in two ways",
                          f"{kind}_pattern", "give one of them")
    if pattern:
        return NamePattern(pattern, f"{kind}_pattern")
    return NamePattern(f"*{ending}", f"{kind}_ending", any_suffix=True)


class FoundFile(NamedTuple):
    """A picture file. name: relative to its folder, with "/". key: the same for any way to it."""

    key: str
    name: str
    path: Path


def plain_spelling(name: str) -> str:
    """A name without what systems and tools change in it.

    Upper and lower case, forms of Unicode, spaces (Label Studio writes "_") and characters that are
    no letters, digits, "-", "_" or "." (it leaves them out).
    """
    text = unicodedata.normalize("NFC", name).casefold().replace(" ", "_")
    return re.sub(r"[^-\w./]", "", text)


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[FoundFile]:
    """The picture files below a folder, sorted."""
    real, depth = os.path.realpath(folder), len(folder.parts)
    # Several times faster than relative_to, which matters for 100000 files.
    names = [("/".join(path.parts[depth:]), path) for path in picture_files(folder, suffixes)]
    return [FoundFile(f"{real}/{name}", name, path) for name, path in names]


def matching(files: Sequence[FoundFile], pattern: NamePattern) -> dict[str, tuple[str, Path]]:
    """{key: (stem, path)} of the files that fit the pattern."""
    stems = ((file, pattern.stem(file.name)) for file in files)
    return {file.key: (stem, file.path) for file, stem in stems if stem is not None}


def separate(images: dict[str, tuple[str, Path]], labels: dict[str, tuple[str, Path]],
             folders: tuple[Path, Path], patterns: tuple[NamePattern, NamePattern]) -> list[Path]:
    """Take each file that fits both patterns out of the one that says less about it.

    That is the pattern of the upper folder, or of equal folders the one that prescribes fewer
    characters. If neither says more, a file is a label if another one, which can only be an image,
    has the same stem (x.jpg, x.png). images, labels: as `matching` returns them, of the two
    folders and patterns. Returns the files that remain unclear; they are taken out of both.
    """
    image_rank, label_rank = ((len(Path(os.path.realpath(folder)).parts), pattern.literals)
                              for folder, pattern in zip(folders, patterns, strict=True))
    shared = images.keys() & labels.keys()
    of_images = {stem for key, (stem, _) in images.items() if key not in shared}
    unclear = [] if image_rank != label_rank else [
        key for key in sorted(shared) if images[key][0] not in of_images]
    paths = [images[key][1] for key in unclear]
    for key in shared:
        if label_rank >= image_rank:
            del images[key]
        if image_rank > label_rank:
            del labels[key]
    for key in unclear:
        del labels[key]
    return paths
