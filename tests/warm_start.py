"""Forks trainings from a process that has imported everything, in a tenth of a second each.

A process that imports torch takes seconds, which tests of hundreds of kills do
not have. What is forked is a real process with a process group of its own, to
be killed for real. Commands come on stdin as JSON lines {"argv", "log", "fault",
"variables"}; the answer is the child's process id, and its exit status once a
line {"wait": process id} asks.
"""
import json
import os
import subprocess
import sys
import time

from tests.run_program import ROOT, environment


class WarmStart:
    """Starts `train.py ARGUMENTS` in forked processes, one after the other."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_start"], cwd=ROOT, env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._server.stdout.readline()

    def start(self, log, *arguments, fault="", **variables) -> int:
        """The process id of a training, which leads a process group and speaks to the file log.

        fault: python code that the process runs first. variables: of its environment.
        """
        return int(self._ask({"argv": [str(a) for a in arguments], "log": str(log),
                              "fault": fault, "variables": variables}))

    def wait(self, process: int) -> int:
        """The exit status of a training that was started; negative: the signal that ended it."""
        return int(self._ask({"wait": process}))

    def close(self):
        # Said, not left to the end of the pipe: whatever was forked meanwhile may hold that.
        self._ask({"end": True})
        self._server.wait(60)

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
    for line in sys.stdin:
        order = json.loads(line)
        if "end" in order:
            print("ends", flush=True)
            return
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            os.setsid()
            output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            os.close(0)
            os.environ.update(order["variables"])
            sys.argv = ["train.py", *order["argv"]]
            exec(order["fault"], {})
            sys.exit(console.run(train.main, order["argv"]))
        print(child, flush=True)


def until(log, text, seconds=60):
    """Wait for a text in a log; what the log says by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        said = log.read_text() if log.exists() else ""
        if text in said:
            return said
        time.sleep(0.02)
    raise AssertionError(f"{text!r} did not come within {seconds} s:\n{said}")


def left_of_group(group) -> set[int]:
    """The living processes of a process group, zombies left out."""
    found = set()
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as stream:
                state, _, owner = stream.read().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(owner) == group and state != "Z":
            found.add(int(entry))
    return found


if __name__ == "__main__":
    _serve()
