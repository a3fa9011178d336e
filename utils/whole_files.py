"""Files that appear whole or not at all, whatever happens while they are written."""
import os
from pathlib import Path

UNFINISHED = ".part-"       # what the name of a file begins with that is not finished


class WholeFile:
    """A file beside `path` that takes its name once it is finished.

    `temporary`: where to write meanwhile; an empty, hidden file that ends in
    `suffix`. As a context manager it gives that path, finishes at the end of
    the block and discards after any error, an interrupt too. OSErrors are for
    the caller to put into words.
    """

    def __init__(self, path: str | os.PathLike, suffix: str = ""):
        self.path = Path(path)
        self.temporary = self.path.parent / f"{UNFINISHED}{os.urandom(8).hex()}{suffix}"
        # Created by open, the file has the permissions that the umask leaves; tempfile would
        # make one for the owner alone, and no thread can ask for the umask without changing it.
        open(self.temporary, "xb").close()

    def finish(self):
        """Give the file its name."""
        os.replace(self.temporary, self.path)

    def discard(self):
        """Remove what was written; nothing to do for a file that is finished."""
        self.temporary.unlink(missing_ok=True)

    def __enter__(self):
        return self.temporary

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.finish()
        finally:
            self.discard()
