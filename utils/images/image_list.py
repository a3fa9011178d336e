"""Finds the images that a command line names, and plans where their results go.

Images come from folders and their subfolders, files, list files and patterns. Results mirror the
input tree. If the results of two images would get the same name, both keep their extensions
(`a.jpg` and `a.png` give `a.jpg.png` and `a.png.png`), so there are as many results as images.
No result overwrites an input.
"""
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.cli.console import notice
from utils.errors import DataError, counted, listed, shown
from utils.images.picture_files import ARRAY_SUFFIXES, IMAGE_SUFFIXES, walk_folders

RESULTS_MARK = ".segwright-results"     # file in a folder of results that lies among images
LONGEST_NAME = 255          # bytes of a file name that every common file system allows
_LISTED = 10                # missing images shown
_SKIPPED_FOLDERS = ("__MACOSX", "@eaDir")       # thumbnails of macOS archives and of NAS boxes


@dataclass(frozen=True)
class Source:
    """The path of an image, and the same path relative to the root of all inputs."""

    path: str
    relative: str

    @property
    def root(self) -> str | None:
        """The root of all inputs; None if the path does not show it."""
        place = os.path.abspath(self.path)
        return place.removesuffix(self.relative) if place.endswith(self.relative) else None


def find_images(inputs: list[str], suffixes: tuple[str, ...] = (), leave_out: str | None = None) \
        -> list[Source]:
    """Returns the images that `inputs` name, each once, in a stable order.

    inputs: folders, image files, text files that list images (a path per line,
        relative to the list or to the working folder) and patterns (*, ?, **).
    suffixes: take only these from folders and patterns; default: all image types, or arrays of
        NumPy from those without an image. A notice says how many arrays lie beside images.
        Hidden files, hidden folders and thumbnail folders are left out.
    leave_out: a folder that holds results, not images. Below a folder of images it is left out,
        and so are folders with the mark of `prepare_folder`; a notice tells of what else is in it.
    Raises DataError for inputs that do not exist or contain no image.
    """
    wanted = tuple("." + s.lower().lstrip(".") for s in suffixes) \
        or (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)
    results = os.path.realpath(leave_out) if leave_out else None
    roots, found = [], []
    for given in inputs:
        if os.path.isdir(given):
            root, paths = given, list(_below(given, wanted, results))
        elif os.path.isfile(given) and given.lower().endswith(".txt"):
            paths = _listed(given)
            root = _common([os.path.dirname(os.path.abspath(p)) for p in paths])
        elif os.path.isfile(given):
            root, paths = os.path.dirname(given) or ".", [given]
        elif glob.has_magic(given):
            paths = [p for p in sorted(glob.glob(given, recursive=True))
                     if p.lower().endswith(wanted) and os.path.isfile(p)]
            root = _fixed_part(given)
        else:
            raise DataError("no such file or folder", shown(given),
                            "give a folder, an image, a .txt list of images, or a pattern")
        if not paths:
            raise DataError(f"no image found (looked for {', '.join(wanted)})", shown(given),
                            "give another folder, or files of these kinds")
        if not suffixes and selects_images(given):
            paths = _without_arrays(paths, given)
        roots.append(root)
        found += paths
    root = _common(roots) if len(roots) > 1 else os.path.abspath(roots[0])
    unique = {os.path.abspath(path): path for path in found}
    return [Source(path, os.path.relpath(place, root)) for place, path in unique.items()]


def _without_arrays(paths, given):
    """The images among paths, or the arrays if there are no images; a notice if there are both."""
    images = [path for path in paths if not path.lower().endswith(ARRAY_SUFFIXES)]
    if images and len(images) < len(paths):
        notice(f"{shown(given)}: {counted(len(paths) - len(images), 'array')} (.npy, .npz) beside "
               f"{counted(len(images), 'picture')} left out; a pattern such as \"*.npy\" takes "
               "arrays")
    return images or paths


def selects_images(given: str) -> bool:
    """Whether an input of `find_images` is a folder or a pattern, of which it takes a part."""
    return os.path.isdir(given) or not os.path.isfile(given)


def refuse_among_images(inputs: list[str], folder: str):
    """Raise DataError if results go into a folder, or the folder of a pattern, among `inputs`.

    The next run would take them for images.
    """
    for given in filter(selects_images, inputs):
        place = given if os.path.isdir(given) else os.path.dirname(given) or "."
        if os.path.realpath(place) == os.path.realpath(folder):
            raise DataError("the results would lie among the images: they would overwrite some, or "
                            "be segmented at the next run", shown(folder),
                            "choose another output folder with -o")


def plan_outputs(sources: list[Source], folder: str, suffixes: list[str]) -> list[dict[str, str]]:
    """For each source, {suffix: path of that result below `folder`}.

    suffixes: endings of the names of the results, e.g. [".png", "_overlay.png"].
    Raises DataError if a result would overwrite a source, or any other file in a folder of
    sources.
    """
    bases = [os.path.splitext(source.relative)[0] for source in sources]
    folders = {part for source in sources for part in _parents(_folded(source.relative))}
    # A name that keeps its extension may clash with a third one, which is then numbered.
    for names in ([s.relative for s in sources],
                  [f"{s.relative}-{i}" for i, s in enumerate(sources)]):
        claims = {}
        for i, base in enumerate(bases):
            for suffix in suffixes:
                claims.setdefault(_folded(base + suffix), []).append(i)
        clashing = {i for claim, indices in claims.items() for i in indices
                    if len(indices) > 1 or claim in folders}
        bases = [names[i] if i in clashing else base for i, base in enumerate(bases)]
    outputs = [{suffix: os.path.join(folder, _fitting(base, suffix)) for suffix in suffixes}
               for base in bases]
    _refuse_overwriting(sources, outputs)
    return outputs


def prepare_folder(folder: str, inputs: Iterable[str] = ()):
    """Create the output folder. Raises DataError if no file can be written there.

    inputs: of `find_images`. If the folder lies below one of them, it gets a mark, a hidden file,
        so that a later run with another output folder does not take its results for images.
    """
    real = os.path.realpath(folder)
    inside = any(os.path.commonpath([real, root]) == root for root in map(
        os.path.realpath, filter(os.path.isdir, inputs)))
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if inside:
            with open(os.path.join(folder, RESULTS_MARK), "w", encoding="utf-8") as file:
                file.write("The pictures here are results; runs on the folder above leave them "
                           "out.\n")
    except OSError as error:
        raise DataError(f"cannot write into the output folder: {error.strerror or error}",
                        shown(folder), "choose another with -o") from None


def _below(folder, wanted, results):
    """Paths of the images below a folder, without thumbnails and the folder of results."""
    def failed(error):
        raise DataError(f"cannot be read: {error.strerror}", shown(error.filename))

    for place, folders, files in walk_folders(folder, failed):
        if place != folder and os.path.isfile(os.path.join(place, RESULTS_MARK)):
            folders[:] = []
            if os.path.realpath(place) != results:
                notice(f"{shown(place)} holds results of an earlier run and is left out")
            continue
        if place != folder and results and os.path.realpath(place) == results:
            folders[:] = []
            count = sum(name.lower().endswith(wanted)
                        and not name.lower().endswith(ARRAY_SUFFIXES) for name in files)
            if count:
                notice(f"{shown(place)} is the output folder: the {count} pictures in it are left "
                       "out")
            continue
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        yield from (os.path.join(place, name) for name in files if name.lower().endswith(wanted))


def _listed(path):
    """The images in a list file; after the image a line may name its label."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", shown(path)) from None
    folder = os.path.dirname(path)
    paths, missing = [], []
    for number, line in enumerate(text.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        line = os.fsdecode(line).strip()
        if not line:
            continue
        choices = [os.path.join(place, name) for name in (line, line.split()[0])
                   for place in (folder, "")]
        existing = next(filter(os.path.isfile, choices), None)
        if existing:
            paths.append(existing)
        else:
            missing.append(f"line {number}: {shown(line)}")
    if missing:
        raise DataError(f"{len(missing)} listed images do not exist:\n  "
                        + listed(missing, _LISTED, "\n  "), shown(path),
                        "paths are relative to the list file or to the working folder")
    return paths


def _fixed_part(pattern):
    """The folder of a pattern before its first wildcard."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or "."


def _common(folders):
    """The deepest folder that contains all the folders, as an absolute path."""
    folders = [os.path.abspath(folder) for folder in folders]
    return os.path.commonpath(folders) if folders else "."


def _parents(relative):
    """The folders of a relative path, the deepest first."""
    parent = os.path.dirname(relative)
    while parent:
        yield parent
        parent = os.path.dirname(parent)


def _folded(path):
    """A path in one letter case: some file systems do not distinguish the two."""
    return os.path.normpath(path).casefold()


def _fitting(base, suffix):
    """base + suffix. A name that is too long is cut and gets a hash, which keeps it unique."""
    folder, name = os.path.split(base)
    if len(os.fsencode(name + suffix)) <= LONGEST_NAME:
        return base + suffix
    mark = "~" + hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    room = LONGEST_NAME - len(os.fsencode(mark + suffix))
    return os.path.join(folder, os.fsdecode(os.fsencode(name)[:room]) + mark + suffix)


def _refuse_overwriting(sources, outputs):
    inputs = {_real(source.path): source.path for source in sources}
    input_folders = {os.path.dirname(real) for real in inputs}
    for source, planned in zip(sources, outputs, strict=True):
        for path in planned.values():
            real = _real(path)
            if real in inputs or (os.path.dirname(real) in input_folders and os.path.exists(real)):
                raise DataError(f"the result of {shown(source.path)} would overwrite "
                                f"{shown(inputs.get(real, path))}, which lies among the images",
                                shown(path), "choose another output folder with -o")


def _real(path):
    """The path with the links in its folder resolved; the file itself may be a link."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
