"""The time that a job itself ran, for timeouts.

A job may be suspended for minutes or days and then go on (Ctrl-Z, `scontrol suspend`,
`docker pause`, kill -STOP). The clocks of the system run on meanwhile, so a plain timeout would
then take everything that it waits for as dead. A clock of this file is advanced in short waits. A
wait that took much longer than asked shows that the program was suspended, and counts as asked.
"""
import os
import time
from collections.abc import Iterable

from utils.cli.console import notice

SLICE = 1.0         # seconds of one wait; the longest error of a timeout
_DELAY = 3.0        # seconds by which a busy machine may delay the end of a wait


class RunningClock:
    """seconds: how long the job ran since the clock was made, as far as `advance` was called.

    what: the other processes of the job in the singular, for the notice that one is suspended.
    """

    def __init__(self, what: str = "process"):
        self.seconds = 0.0
        self._what, self._last = what, time.monotonic()
        self._told: set[int] = set()

    def advance(self, asked: float, others: Iterable[int] = ()):
        """Count the time since the last call, a wait of `asked` seconds.

        others: ids of processes of this job on this machine. The clock stands still in a wait at
        whose beginning or end one of them is suspended, and a notice says which.
        """
        now = time.monotonic()
        passed, self._last = now - self._last, now
        suspended = [process for process in others if is_suspended(process)]
        for process in suspended:
            if process not in self._told:
                notice(f"{self._what} {process} is suspended; waiting until it is continued "
                       f"(kill -CONT {process})")
        before, self._told = self._told, set(suspended)
        if not (suspended or before):
            self.seconds += asked if passed > asked + _DELAY else passed


def is_suspended(process: int) -> bool:
    """Whether a process is stopped by a signal or a debugger; False where /proc does not tell."""
    try:
        with open(f"/proc/{process}/stat", "rb") as stream:
            # The name in brackets may contain anything, also brackets.
            return stream.read().rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])
    except OSError:
        return False


def machine() -> str:
    """A text that is equal for two processes if they can see each other's process ids."""
    import platform
    parts = [platform.node()]
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            parts.append(stream.read().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass
    return " ".join(parts)
