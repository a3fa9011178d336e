"""Finds the image files that annotations name.

Tools write names relative to other folders, absolute paths of other machines, or no extension. A
name is only looked up among the files that exist: nothing of it becomes a path.
"""
import os
from collections.abc import Iterable, Sequence

from utils.annotations.annotation_set import AnnotatedImage
from utils.errors import listed, shown
from utils.images.name_pattern import FoundFile
from utils.images.picture_files import IMAGE_SUFFIXES


class ImageLookup:
    """The files below a folder of images, by the ends of their paths."""

    def __init__(self, files: Iterable[FoundFile]):
        self._by_end: dict[str, list[FoundFile]] = {}
        for file in files:
            parts = file.name.split("/")
            for begin in range(len(parts)):
                end = "/".join(parts[begin:])
                self._by_end.setdefault(end, []).append(file)
                # Also without the extension, marked: a file may have the name "a" itself.
                self._by_end.setdefault(f"{os.path.splitext(end)[0]}/*", []).append(file)

    def find(self, image: AnnotatedImage) -> FoundFile | str:
        """The file of an annotated image, or what is wrong: "no image a.jpg".

        The whole name is looked up first, then without its first folder, and so on.
        """
        for name in (image.image, *image.other_names):
            parts = name.split("/")
            for begin in range(len(parts)):
                found = self._files("/".join(parts[begin:]))
                if len(found) == 1:
                    return found[0]
                if found:
                    return (f"{shown(name)} may be {listed(found, 3, ' or ', _name)}; "
                            "the annotation must name the folder too")
        return f"no image {shown(image.image)}"

    def _files(self, end) -> Sequence[FoundFile]:
        found = self._by_end.get(end)
        if found is None and not end.lower().endswith(IMAGE_SUFFIXES):
            found = self._by_end.get(f"{end}/*")
        return found or ()


def _name(file):
    return shown(file.name)
