"""The errors that a user can cause with their exit statuses, and the wording of messages.

Every message states what is wrong (with the value found), where (file, key or image) and what to
do about it. Entry points print only the message; --debug adds the traceback.
"""
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice


class UserError(ValueError):
    """A mistake that the user can correct.

    what:  the problem, with the value found.
    where: the file, config key or image with the problem (optional).
    fix:   what to do about it (optional).
    """

    exit_status = 1

    def __init__(self, what: str, where: str | None = None, fix: str | None = None):
        self.what, self.where, self.fix = str(what), where, fix
        super().__init__(str(self))

    def __str__(self):
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    @property
    def in_one_line(self) -> str:
        """The place and the problem in one line, for a list of errors."""
        return f"{self.where}: {self.what}" if self.where else self.what

    def __reduce__(self):
        # Pickle's default passes only the joined message to the class, so an error from a data
        # worker would lose its parts.
        return type(self), (self.what, self.where, self.fix)


class ConfigError(UserError):
    """The command line or the config file is wrong."""

    exit_status = 2


class DataError(UserError):
    """An image, a label or a dataset folder is wrong."""

    exit_status = 3


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, of another program, or does not fit."""

    exit_status = 4


class NumericalError(UserError):
    """A loss or weight is not finite, or a numerical check failed."""

    exit_status = 5


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message; the name of its type if there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def unknown(what: str, name: object, choices: Iterable) -> str:
    """One line with the unknown name, the nearest known name, and all known names."""
    known = sorted(map(str, choices))
    near = nearest(name, known)
    # Names that differ only in upper and lower case are not one choice.
    alike = [one for one in known if near and one.lower() == near.lower()]
    hint = f" Did you mean {' or '.join(map(repr, alike))}?" if alike else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}."


def nearest(name: object, known: Iterable) -> str | None:
    """The known name most similar to a mistyped one, ignoring case; None if none is similar."""
    import difflib  # only a mistyped name needs it; --help starts faster without
    folded = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(name).lower(), folded, n=1)
    return folded[close[0]] if close else None


def listed(items: Collection, most: int, separator: str = ", ", text: Callable = str) -> str:
    """The first `most` items as text and the number of the others: "a, b, c, and 4 more".

    text: turns an item into text; called only for the first `most` items.
    """
    parts = [text(item) for item in islice(items, most)]
    if len(items) > most:
        parts.append(f"and {len(items) - most} more")
    return separator.join(parts)


def counted(number: int, name: str) -> str:
    """A number with its noun: "1 batch", "2 batches", "3 classes", "4 images"."""
    plural = name + ("es" if name.endswith(("s", "tch", "x")) else "s")
    return f"{number} {name if number == 1 else plural}"


def size_text(size: Sequence[int]) -> str:
    """(height, width) as all messages write it: "480x640", as for --crop-size."""
    return f"{size[0]}x{size[1]}"


def shown(path: object) -> str:
    """A path as text that every terminal can print: unprintable characters are escaped."""
    text = os.fsdecode(path) if isinstance(path, (bytes, os.PathLike)) else str(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short_path(path: str | os.PathLike[str]) -> str:
    """A path as one types it: relative, if it is below the current folder."""
    relative = os.path.relpath(path)
    return os.path.normpath(path) if relative.startswith(os.pardir) else relative


def files_text(folder: str | os.PathLike[str], names: Iterable[str]) -> str:
    """The files of a folder: "saved/a: results.json, results.txt"."""
    return f"{shown(short_path(folder))}: {', '.join(map(shown, names))}"


def expression_problem(pattern: str) -> str | None:
    """What is wrong with a regular expression, as text; None: nothing."""
    try:
        re.compile(pattern)
    except re.error as error:
        return f"{pattern!r} is no regular expression: {error}"
    return None
