"""A loss whose use would surprise says so, once per run."""
import functools

from utils.console import warn


@functools.cache
def warn_once(text: str):
    """`text` on stderr the first time it is given."""
    warn(text)
