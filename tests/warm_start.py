"""Forks trainings from a process that has imported everything, in a tenth of a second each.

A process that imports torch takes seconds, which tests of hundreds of kills do
not have. What is forked is a real process with a process group of its own, to
be killed for real. Commands come on stdin as JSON lines {"argv", "log"}; the
answer is the child's process id, and its exit status once a line "wait" asks.
"""
import json
import os
import subprocess
import sys

from tests.run_program import ROOT, environment


class WarmStart:
    """Starts `train.py ARGUMENTS` in forked processes, one after the other."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_start"], cwd=ROOT, env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._server.stdout.readline()

    def start(self, log, *arguments) -> int:
        """The process id of a training, which leads a process group; it speaks to the file log."""
        return int(self._ask({"argv": [str(a) for a in arguments], "log": str(log)}))

    def wait(self) -> int:
        """The exit status of the last training started; negative: the signal that ended it."""
        return int(self._ask("wait"))

    def close(self):
        self._server.stdin.close()
        self._server.wait(20)

    def _ask(self, what):
        print(json.dumps(what), file=self._server.stdin, flush=True)
        return self._server.stdout.readline()


def _serve():
    import torch._dynamo                # noqa: F401   every optimizer loads it
    import train
    import trainer                      # noqa: F401
    from dataloader.loader import make_loader      # noqa: F401
    from utils import console
    from utils.registry import KINDS, components
    for kind in KINDS:
        components(kind)
    print("ready", flush=True)
    child = None
    for line in sys.stdin:
        order = json.loads(line)
        if order == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            os.setsid()
            output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            os.close(0)
            sys.exit(console.run(train.main, order["argv"]))
        print(child, flush=True)


if __name__ == "__main__":
    _serve()
