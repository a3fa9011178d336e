"""Finds the image files that annotations name.

Tools write names relative to other folders, absolute paths of other machines, or no extension, and
some change letters. A name is only looked up among the files that exist: nothing of it becomes a
path.
"""
import os
from collections.abc import Callable, Iterable, Sequence

from utils.annotations.annotation_set import AnnotatedImage, Size
from utils.errors import listed, shown
from utils.images.headers import Header
from utils.images.name_pattern import FoundFile, plain_spelling
from utils.images.picture_files import IMAGE_SUFFIXES

_Ends = dict[str, list[FoundFile]]

# What is said of images for which `on_stored_picture` holds.
STORED_PICTURE = ("image is turned by its EXIF tag, and the annotation states the size of the "
                  "stored picture: its labels are turned with it (COCO files of Label Studio state "
                  "that size and mean the picture as shown: export JSON there)")


def on_stored_picture(size: Size | None, header: Header) -> bool:
    """Whether an annotation that states this size lies on the picture before its EXIF tag turns it.

    Tools draw on the picture as it is shown: CVAT (since 2.1), labelme, Label Studio, Supervisely
    and Ultralytics turn it. Scripts that open it with Pillow do not.
    """
    return size is not None and size != header.size and size == header.stored_size


class ImageLookup:
    """The files below a folder of images, by the ends of their paths.

    respelled: after `match`, a text for each image that was found by another spelling of its name.
    """

    def __init__(self, files: Iterable[FoundFile]):
        self._files = list(files)
        self.respelled: list[str] = []

    def match(self, images: Sequence[AnnotatedImage]) -> list[FoundFile | str]:
        """The file of each annotated image, or what is wrong: "no image a.jpg".

        The whole name is looked up first, then without its first folder, and so on. Names that are
        nowhere are looked up among the remaining files by `plain_spelling`.
        """
        ends = _by_end(self._files, str)
        found = [_find(image, ends, str) for image in images]
        if not any(isinstance(one, str) for one in found):
            return found
        named = {one.key for one in found if not isinstance(one, str)}
        ends = _by_end((file for file in self._files if file.key not in named), plain_spelling)
        self.respelled = []
        for number, (image, file) in enumerate(zip(images, found, strict=True)):
            if isinstance(file, str):
                other = _find(image, ends, plain_spelling)
                if not isinstance(other, str):
                    found[number] = other
                    self.respelled.append(f"{shown(image.image)} is {_name(other)}")
        return found


def _by_end(files: Iterable[FoundFile], spelled: Callable[[str], str]) -> _Ends:
    """The end of a path -> the files that have it."""
    ends: _Ends = {}
    for file in files:
        parts = spelled(file.name).split("/")
        for begin in range(len(parts)):
            end = "/".join(parts[begin:])
            ends.setdefault(end, []).append(file)
            # Also without the extension, marked: a file may have the name "a" itself.
            ends.setdefault(f"{os.path.splitext(end)[0]}/*", []).append(file)
    return ends


def _find(image: AnnotatedImage, ends: _Ends, spelled: Callable[[str], str]) -> FoundFile | str:
    for name in (image.image, *image.other_names):
        parts = spelled(name).split("/")
        for begin in range(len(parts)):
            end = "/".join(parts[begin:])
            found = ends.get(end)
            if found is None and not end.lower().endswith(IMAGE_SUFFIXES):
                found = ends.get(f"{end}/*")
            if found and len(found) == 1:
                return found[0]
            if found:
                return (f"{shown(name)} may be {listed(found, 3, ' or ', _name)}; "
                        "the annotation must name the folder too")
    return f"no image {shown(image.image)}"


def _name(file):
    return shown(file.name)
