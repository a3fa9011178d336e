"""Warnings of losses whose behavior could surprise, printed once per run."""
import functools

from utils.cli.console import warn


@functools.cache
def warn_once(text: str):
    """Prints `text` as a warning on stderr at the first call with this text."""
    warn(text)
