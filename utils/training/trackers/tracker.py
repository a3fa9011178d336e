"""What a tracker is: a file or service that also gets the numbers of a run.

trainer.log_to names trackers. To add one, write a public subclass of Tracker in any file of this
package: its constructor takes the "args" of its section, and `aliases` holds the names.
"""
import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from utils.errors import ConfigError
from utils.images.types import Image
from utils.machine.packages import optional_package

# How a session of training ended. A failed one raised an error.
Outcome = Literal["finished", "interrupted", "failed"]
PROJECT = "segwright"       # in which services put runs, unless a name is given
# A password in an address: of an account before its host, or in its query.
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s]+(?=@)|([?&]password=)[^&\s]+")


@dataclass
class Session:
    """What a tracker is told when a training starts or goes on.

    folder: of the run. name: of the run, for people. config: the resolved config.
    step: the optimizer step at which this session starts: 0, or that of the checkpoint.
    record: what `keep` got in an earlier session, such as the id of the record to continue; {}
        if a new record is to be made.
    keep: stores a dict of plain values for the sessions after this one.
    say: prints a line, and writes it into log.txt.
    failed: reports an error that occurs in a thread of the tracker.
    """

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    record: dict[str, Any] = field(default_factory=dict)
    keep: Callable[[dict[str, Any]], object] = lambda record: None
    say: Callable[[str], object] = lambda text: None
    failed: Callable[[Exception], object] = lambda error: None


class Tracker(ABC):
    """One record of a run. Only rank 0 calls it; an error that it raises ends no training.

    The constructor only stores the arguments of the config.
    """

    aliases: ClassVar[tuple[str, ...]] = ()
    package: ClassVar[str | None] = None    # that `require` imports, called the same on PyPI
    # Whether calls may wait for a network: they are then made in a thread.
    waits: ClassVar[bool] = False
    # Whether `start` takes back what was logged after session.step. If not, steps that are trained
    # again after a kill are not logged again.
    rewinds: ClassVar[bool] = False
    draws: bool = False                     # whether `image` shows pictures

    @property
    def title(self) -> str:
        """Its name in messages and in the run's folder."""
        return next(iter(self.aliases), type(self).__name__)

    @property
    def module(self) -> Any:
        """The package. Raises ImportError."""
        assert self.package
        return importlib.import_module(self.package)

    def require(self):
        """Raise ConfigError if this tracker cannot be used here. Called before data is read."""
        if self.package is not None:
            optional_package(self.package, self.title, "trainer.log_to",
                             f"pip install {self.package}, or leave it out")

    @abstractmethod
    def start(self, session: Session) -> dict[str, int] | None:
        """Make the record, or continue that of an earlier session.

        Returns the last step of each kind of line ("train", "val") that a continued record has, if
        the tracker can tell. After a kill that may be less than it was given.
        """

    @abstractmethod
    def log(self, values: dict[str, float], step: int, epoch: int | None):
        """Add the values of one log line, by tag such as "val/Mean_IoU". Steps never decrease."""

    def image(self, tag: str, image: Image, step: int):
        """Add a picture, uint8 (H, W, 3) RGB. Only called if `draws`."""
        raise NotImplementedError

    @abstractmethod
    def best(self, values: dict[str, float], step: int):
        """Replace the best values, by tag such as "best/Mean_IoU"."""

    @abstractmethod
    def close(self, outcome: Outcome, text: str):
        """End the session. text: for people, why it ended."""


def refuse_passwords(section: dict[str, Any]):
    """Raise ConfigError if an address in the section of a tracker contains a password.

    The config is stored in the folder of the run, in its checkpoints and in the trackers.
    """
    for key, value in flat(section.get("args", {})).items():
        if isinstance(value, str) and _PASSWORD.search(value):
            variable = ", such as MLFLOW_TRACKING_URI" if key == "tracking_uri" else ""
            raise ConfigError(f"{key} contains a password, which would be stored with the run: "
                              f"{without_passwords(value)}", "trainer.log_to",
                              f"leave {key} out, and set it in a variable of the environment"
                              f"{variable}, for each start")


def without_passwords(text: str) -> str:
    """A text in which passwords of addresses are ***."""
    return _PASSWORD.sub(lambda found: f"{found[1] or found[2]}***", text)


def masked(value: Any) -> Any:
    """A config, or a part of it, in which passwords of addresses are ***."""
    if isinstance(value, dict):
        return {key: masked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner) for inner in value]
    return without_passwords(value) if isinstance(value, str) else value


def flat(config: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists and the values in them keep their form."""
    if not isinstance(config, dict) or not config:
        return {name: config}
    return {key: value for part, inner in config.items()
            for key, value in flat(inner, f"{name}.{part}" if name else str(part)).items()}
