"""Which images a person means, and where their results go.

Images come from folders (with everything below them), files, list files and
patterns. Results mirror the input tree. Two images whose results would get one
name keep their extensions (`a.jpg` and `a.png` give `a.jpg.png` and
`a.png.png`), so as many results come out as images went in. No result ever
takes the place of an input.
"""
import glob
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from utils.errors import DataError
from utils.image_io import IMAGE_SUFFIXES, shown

LONGEST_NAME = 255          # bytes in one file name, on every usual file system
_SKIPPED_FOLDERS = ("__MACOSX", "@eaDir")       # thumbnails of macOS archives and of NAS boxes


@dataclass(frozen=True)
class Source:
    """One image: where it lies, and where it lies below the root of its input."""

    path: str
    relative: str


def find_images(inputs: list[str], suffixes: tuple[str, ...] = (), leave_out: str | None = None) \
        -> list[Source]:
    """The images that `inputs` name, each once, in a stable order.

    inputs: folders, image files, text files that list images (a path per line,
        relative to the list or to the working folder) and patterns (*, ?, **).
    suffixes: take only these from folders and patterns; default all image types.
        Hidden files and folders and thumbnail folders are passed over.
    leave_out: a folder whose contents are results, not images.
    Raises DataError for inputs that do not exist or hold no image.
    """
    wanted = tuple("." + s.lower().lstrip(".") for s in suffixes) or IMAGE_SUFFIXES
    own = os.path.realpath(leave_out) if leave_out else None
    roots, found = [], []
    for given in inputs:
        if os.path.isdir(given):
            root, paths = given, list(_walk(given, wanted, own))
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
        roots.append(root)
        found += paths
    root = _common(roots) if len(roots) > 1 else os.path.abspath(roots[0])
    unique = {os.path.abspath(path): path for path in found}
    return [Source(path, os.path.relpath(place, root)) for place, path in unique.items()]


def plan_outputs(sources: list[Source], folder: str, suffixes: list[str]) -> list[dict[str, str]]:
    """For each source, suffix -> the path of that result below `folder`.

    suffixes: what is appended to the name, e.g. [".png", "_overlay.png"].
    Raises DataError if a result would overwrite one of the sources, or any other
    file that lies beside them.
    """
    short = [os.path.splitext(source.relative)[0] for source in sources]
    bases = list(short)
    folders = {part for source in sources for part in _parents(_folded(source.relative))}
    # A name that keeps its extension may collide with a third one: look again until none does.
    for names in ([s.relative for s in sources],
                  [f"{s.relative}-{i}" for i, s in enumerate(sources)]):
        claims = {}
        for i, base in enumerate(bases):
            for suffix in suffixes:
                claims.setdefault(_folded(base + suffix), []).append(i)
        clash = {i for claim, claimers in claims.items() for i in claimers
                 if len(claimers) > 1 or claim in folders}
        bases = [names[i] if i in clash else base for i, base in enumerate(bases)]
    outputs = [{suffix: os.path.join(folder, _fitting(base, suffix)) for suffix in suffixes}
               for base in bases]
    _refuse_overwriting(sources, outputs)
    return outputs


def prepare_folder(folder: str):
    """Make the output folder; DataError if nothing can be written there."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"cannot write into the output folder: {error.strerror or error}",
                        shown(folder), "choose another with -o") from None


def _walk(folder, wanted, own):
    """Images below a folder; linked folders too, none of them twice (links may go in circles)."""
    seen = set()

    def failed(error):
        raise DataError(f"cannot be read: {error.strerror}", shown(error.filename))

    for place, folders, files in os.walk(folder, followlinks=True, onerror=failed):
        real = os.path.realpath(place)
        if real in seen or (real == own and place != folder):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders
                            if not f.startswith(".") and f not in _SKIPPED_FOLDERS)
        for name in sorted(files):
            if name.lower().endswith(wanted) and not name.startswith("."):
                yield os.path.join(place, name)


def _listed(path):
    """The paths in a list file; a line may hold an image and, after a blank, its label."""
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
        there = next(filter(os.path.isfile, choices), None)
        if there:
            paths.append(there)
        else:
            missing.append(f"line {number}: {shown(line)}")
    if missing:
        more = f"\n  and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise DataError(f"{len(missing)} listed images do not exist:\n  "
                        + "\n  ".join(missing[:10]) + more, shown(path),
                        "paths are relative to the list file or to the working folder")
    return paths


def _fixed_part(pattern):
    """The folder of a pattern before its first wildcard."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or "."


def _common(folders):
    folders = [os.path.abspath(folder) for folder in folders]
    return os.path.commonpath(folders) if folders else "."


def _parents(relative):
    parent = os.path.dirname(relative)
    while parent:
        yield parent
        parent = os.path.dirname(parent)


def _folded(path):
    """Names that some file systems take for one: letter case aside."""
    return os.path.normpath(path).casefold()


def _fitting(base, suffix):
    """base + suffix, cut where the file system would refuse the length."""
    folder, name = os.path.split(base)
    if len(os.fsencode(name + suffix)) <= LONGEST_NAME:
        return base + suffix
    mark = "~" + hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    room = LONGEST_NAME - len(os.fsencode(mark + suffix))
    return os.path.join(folder, os.fsdecode(os.fsencode(name)[:room]) + mark + suffix)


def _refuse_overwriting(sources, outputs):
    inputs = {_real(source.path): source.path for source in sources}
    beside = {os.path.dirname(real) for real in inputs}
    for source, planned in zip(sources, outputs, strict=True):
        for path in planned.values():
            real = _real(path)
            if real in inputs or (os.path.dirname(real) in beside and os.path.exists(real)):
                raise DataError(f"the result of {shown(source.path)} would overwrite "
                                f"{shown(inputs.get(real, path))}, which lies among the images",
                                shown(path), "choose another output folder with -o")


def _real(path):
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
