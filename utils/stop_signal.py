"""A wish to stop, noted by a signal handler and honoured between two steps.

Saving inside a handler may catch a network in the middle of its backward pass,
so the handler only takes note. The second Ctrl-C leaves at once.
"""
import signal


class StopSignal:
    """Notes SIGINT, SIGTERM and SIGHUP while the `with` block runs.

    signum: the first signal received, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self):
        self.signum = None

    def __enter__(self):
        self._previous = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signum, frame):
        self.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
