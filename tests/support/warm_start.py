"""Forks trainings from a process that has already imported everything: a tenth of a second each.

A new process needs seconds to import torch, which is too long for tests with hundreds of kills.
Each forked process leads a new process group, so a test can kill it like any other. The server
reads JSON lines from stdin and answers each with one line: {"program", "argv", "log", "fault",
"variables"} with the process id of the child, {"wait": process id} with its exit status,
{"end": true} with "ends".
"""
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.places import ROOT
from tests.support.run_program import environment


class WarmStart:
    """Starts `train.py ARGUMENTS` and tools in processes that a server process forks."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm_start"], cwd=ROOT, env=environment(),
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._server.stdin is not None and self._server.stdout is not None
        self._commands, self._answers = self._server.stdin, self._server.stdout
        self._answers.readline()    # the server is ready

    def start(self, log: Path, *arguments: object, program: str = "train", fault: str = "",
              **variables: str) -> int:
        """Starts a program that leads a process group; returns its process id.

        log: the file for its stdout and stderr. program: the module with its `main`. fault: Python
        code that it runs first. variables: environment variables for it.
        """
        return int(self._ask({"argv": [str(a) for a in arguments], "log": str(log),
                              "program": program, "fault": fault, "variables": variables}))

    def wait(self, process: int) -> int:
        """Waits for a started program; returns its exit status, negative for a signal."""
        return int(self._ask({"wait": process}))

    def close(self):
        """Ends the server process."""
        # Closing the pipe is not enough, because forked processes can have it open too.
        self._ask({"end": True})
        self._server.wait(60)

    def _ask(self, command):
        """The answer to a command, one line."""
        print(json.dumps(command), file=self._commands, flush=True)
        return self._answers.readline()


def _serve():
    """Imports everything that a training needs, then runs the commands from stdin."""
    import torch._dynamo  # noqa: F401   every optimizer imports it

    import train  # noqa: F401
    import trainer  # noqa: F401
    from dataloader.loader import make_loader  # noqa: F401
    from utils.cli import console
    from utils.config.registry import KINDS, components
    for kind in KINDS:
        components(kind)
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "end" in command:
            print("ends", flush=True)
            return
        if "wait" in command:
            print(os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            os.setsid()
            output = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            os.close(0)
            os.environ.update(command["variables"])
            sys.argv = [command["program"].replace(".", "/") + ".py", *command["argv"]]
            exec(command["fault"], {})
            sys.exit(console.run(importlib.import_module(command["program"]).main,
                                 command["argv"]))
        print(child, flush=True)


def until(log: Path, text: str, seconds: float = 60) -> str:
    """Waits until a log file contains `text`; returns the content of the file.

    Raises AssertionError if it does not within `seconds`.
    """
    deadline, content = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        content = log.read_text() if log.exists() else ""
        if text in content:
            return content
        time.sleep(0.02)
    raise AssertionError(f"the log does not contain {text!r} after {seconds} s:\n{content}")


def left_of_group(group: int) -> set[int]:
    """The process ids of the running processes of a process group, without zombies."""
    living = set()
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as stream:
                state, _, owner = stream.read().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(owner) == group and state != "Z":
            living.add(int(entry))
    return living


if __name__ == "__main__":
    _serve()
