"""Runs what a study still lacks: one run per device at a time, each in processes of its own.

A run is train.py with -r auto, which starts or continues, unless its last checkpoint is that of a
finished training, and then test.py for each way of testing. Nothing is written down about the
progress: a result that is complete is left alone, everything else is started again. The programs of
a run end with this one, even if it is killed (on Linux), and save before; a lock keeps two studies
out of one run.
"""
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from utils.cli.console import notice
from utils.errors import DataError, shown
from utils.files.locks import hold
from utils.metrics.table import percent
from utils.study.plan import Plan, PlannedRun
from utils.study.results import (
    checkpoint_to_test,
    find_result,
    read_test_scores,
    stage_is_finished,
    test_folder,
)

ROOT = Path(__file__).resolve().parents[2]
REQUEUE_STATUS = 75         # of train.py: saved, start it again
LOG = "study.log"           # in the folder of a run: what its programs print
LOCK = ".study"             # in the same folder
CPU = "cpu"
_PAUSE = 0.1                # seconds between two looks at the programs
_PATIENCE = 120.0           # seconds for a program to save and end
_DIE_WITH_PARENT = 1        # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error: its exit status, its message, and where all of it is."""

    run: PlannedRun
    status: int
    message: str
    log: Path


@dataclass
class _Job:
    """A run at work on its devices: the commands that are left, and the one that runs."""

    run: PlannedRun
    devices: list[str]
    locks: list[IO[bytes]]
    started: float
    process: subprocess.Popen | None = None
    tests: list = field(default_factory=list)
    trained: bool = False
    log_start: int = 0


def unfinished(plan: Plan, runs: Iterable[PlannedRun] | None = None) -> list[PlannedRun]:
    """Those of `runs` (by default of all) that lack a result."""
    return [run for run in (plan.runs if runs is None else runs)
            if any(find_result(test) is None for test in plan.tests_of(run))]


class Executor:
    """Works through runs on some devices. `run` returns the failures.

    devices: "cpu", "cuda", "cuda:N"; a run that trains on several GPUs gets as many of them.
    requeue: trainings end with status 75 on SIGUSR1, and this program then does so too.
    """

    def __init__(self, plan: Plan, devices: Sequence[str], requeue: bool = False):
        self.plan, self.devices, self.requeue = plan, list(devices), requeue
        self.failures: list[Failure] = []
        self.jobs: list[_Job] = []
        self.signaled = False
        self.total = self.done = 0
        self._told: set[str] = set()

    def run(self, runs: Sequence[PlannedRun]) -> list[Failure]:
        """Train and test what is left of `runs`."""
        waiting, free = list(runs), list(self.devices)
        self.total = len(waiting)
        previous = signal.signal(signal.SIGUSR1, self._usr1) if self.requeue else None
        try:
            # After the signal nothing starts: a run that waits for another program does so again
            # after the next start.
            while self.jobs or waiting and not self.signaled:
                if not self.signaled:
                    self._start(waiting, free)
                time.sleep(_PAUSE)
                for job in list(self.jobs):
                    if job.process is None or job.process.poll() is not None:
                        self._of_one(job, free, self._next)
        except BaseException:
            self._stop()
            raise
        finally:
            if previous is not None:
                signal.signal(signal.SIGUSR1, previous)
        return self.failures

    def _start(self, waiting: list[PlannedRun], free: list[str]):
        """Start waiting runs while there are devices for them."""
        for run in list(waiting):
            count = 1 if self.devices[0] == CPU else run.gpus
            if len(free) < count:
                return              # later runs do not overtake one that needs more devices
            try:
                locks = _take(run)
            except OSError as error:
                waiting.remove(run)
                self._fail(run, DataError.exit_status, str(error))
                continue
            if locks is None:
                if run.key not in self._told:
                    self._told.add(run.key)
                    notice(f"{run.name}: another program works on it; waiting")
                continue
            waiting.remove(run)
            job = _Job(run, [free.pop(0) for _ in range(count)], locks, time.monotonic())
            job.tests = [test for test in self.plan.tests_of(run) if find_result(test) is None]
            self.jobs.append(job)
            if not job.tests:       # the other program has finished it
                self._end(job, free)
                continue
            self._of_one(job, free, self._train)

    def _of_one(self, job: _Job, free: list[str], work: Callable[[_Job, list[str]], None]):
        """Do something for a run, which fails if its folder cannot be written; others go on."""
        try:
            work(job, free)
        except OSError as error:
            self._fail(job.run, DataError.exit_status, str(error))
            self._end(job, free)

    def _train(self, job: _Job, free: list[str]):
        if stage_is_finished(job.run) and checkpoint_to_test(job.run) is not None:
            job.trained = True
            self._test(job, free)
            return
        self._launch(job, [str(ROOT / "train.py"), *job.run.train_arguments(),
                           *self._training_options(job)])

    def _training_options(self, job) -> list[str]:
        options = ["trainer.requeue=true"] if self.requeue else []
        if job.run.gpus > 1 and job.devices[0] != CPU:
            return options          # all visible GPUs: see _environment
        return [*options, "--device", CPU if job.devices[0] == CPU else "cuda"]

    def _next(self, job: _Job, free: list[str]):
        """What follows after the end of a program of a run."""
        assert job.process is not None
        status = job.process.returncode
        if self.signaled and (job.trained or status in (0, -signal.SIGUSR1)):
            status = REQUEUE_STATUS     # what is left is done after the next start
        if status == 0 and not job.trained:
            job.trained = True
        elif status == 0 and find_result(job.tests[0]) is not None:
            job.tests.pop(0)
        elif status == 0:
            self._fail(job.run, DataError.exit_status, "the test ended without a complete result")
            job.tests = []
        else:
            self._fail(job.run, status, last_error(job.run.folder / LOG, job.log_start,
                                                job.process.returncode))
            job.tests = []
        self._test(job, free)

    def _test(self, job: _Job, free: list[str]):
        """Start the next test of a run that has trained; end the run if there is none."""
        if not job.tests:
            self._end(job, free)
            return
        checkpoint = checkpoint_to_test(job.run)
        if checkpoint is None:
            self._fail(job.run, 1, "the training ended without a checkpoint to test")
            job.tests = []
            self._end(job, free)
            return
        test = job.tests[0]
        output = test_folder(checkpoint, test)
        output.mkdir(parents=True, exist_ok=True)
        device = CPU if job.devices[0] == CPU else "cuda"
        self._launch(job, [str(ROOT / "test.py"), "-r", str(checkpoint), "-o", str(output),
                           "--device", device, *test.cell.test])

    def _launch(self, job: _Job, command: list[str]):
        if job.trained and job.process is None:
            notice(f"{job.run.name}: testing on {', '.join(job.devices)}")
        elif not job.trained:
            stages = f" {len(job.run.stages)} stages" if job.run.earlier else ""
            notice(f"{job.run.name}: training{stages} on {', '.join(job.devices)}")
        threads = max(1, (os.cpu_count() or 1) // max(1, self.devices.count(CPU)))
        job.process, job.log_start = launch(
            [sys.executable, *command], job.run.folder / LOG, job.devices, threads,
            tuple(lock.fileno() for lock in job.locks))

    def _fail(self, run: PlannedRun, status: int, message: str):
        log = run.folder / LOG
        self.failures.append(Failure(run, status, message, log))
        if not (status == REQUEUE_STATUS and self.requeue):
            notice(f"{run.name}: failed ({message.splitlines()[0]}); all of it: {shown(log)}")

    def _end(self, job: _Job, free: list[str]):
        for lock in job.locks:
            lock.close()
        self.jobs.remove(job)
        free.extend(job.devices)
        free.sort(key=self.devices.index)
        self.done += 1
        score, values = self.plan.study.scores[0], []
        for test in self.plan.tests_of(job.run):
            try:
                scores = read_test_scores(test)
                values += [] if scores is None else [scores.get(score)]
            except DataError as error:      # of this run alone: the others go on
                self._fail(job.run, error.exit_status, str(error))
        if values:
            notice(f"{job.run.name}: {score} {', '.join(map(percent, values))} %, "
                   f"{time.monotonic() - job.started:.0f} s ({self.done} of {self.total})")

    def _usr1(self, signum: int, frame: object):
        """Ask trainings to save and end; a test is stopped and is repeated when started again."""
        self.signaled = True
        for job in self.jobs:
            if job.process is not None and job.process.poll() is None:
                if job.trained:
                    job.process.terminate()
                else:
                    job.process.send_signal(signal.SIGUSR1)

    def _stop(self):
        """Ask the programs to save and end, and wait for them."""
        running = [job.process for job in self.jobs
                   if job.process is not None and job.process.poll() is None]
        for process in running:
            process.terminate()
        end = time.monotonic() + _PATIENCE
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if running:
            notice("the runs have saved what they had; start the study again to go on")


def exit_status(failures: Iterable[Failure], executor: Executor | None = None) -> int:
    """Of the program: 75 if a training waits for its next start, else that of the failures.

    Failures of several kinds are 1.
    """
    statuses = {failure.status if failure.status > 0 else 1 for failure in failures}
    if executor and executor.requeue and (executor.signaled or REQUEUE_STATUS in statuses):
        return REQUEUE_STATUS
    return 0 if not statuses else statuses.pop() if len(statuses) == 1 else 1


def launch(command: list[str], log: Path, devices: Sequence[str], threads: int = 1,
           kept: tuple[int, ...] = ()) -> tuple[subprocess.Popen, int]:
    """Start a program, which ends with this one; (process, where its output begins).

    log: its stdout and stderr are appended. kept: descriptors that it inherits.
    """
    def prepare():
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
    with open(log, "ab") as stream:
        stream.write(f"$ {' '.join(command)}\n".encode("utf-8", "backslashreplace"))
        stream.flush()
        start = stream.tell()
        # Ctrl-C reaches only this program, which passes it on.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream,
                                   stderr=stream, pass_fds=kept, preexec_fn=prepare,
                                   start_new_session=True, env=_environment(devices, threads))
    return process, start


def run_program(command: list[str], log: Path, devices: Sequence[str]) -> tuple[int, int]:
    """Start a program as `launch` does, and wait; (exit status, where its output begins)."""
    process, start = launch(command, log, devices)
    try:
        return process.wait(), start
    finally:
        if process.poll() is None:
            process.terminate()


def _environment(devices, threads) -> dict[str, str]:
    """The variables of a program: it sees only its own GPUs; threads of torch on a CPU."""
    env = {key: value for key, value in os.environ.items()
           if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    # `python -m` finds this program's modules from any folder.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    if devices[0] == CPU:
        env.setdefault("OMP_NUM_THREADS", str(threads))
        return env
    numbers = [int(device.partition(":")[2] or 0) for device in devices]
    visible = [one for one in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    env["CUDA_VISIBLE_DEVICES"] = ",".join(
        visible[number] if number < len(visible) else str(number) for number in numbers)
    return env


def _take(run: PlannedRun) -> list[IO[bytes]] | None:
    """The open lock files of a run and of its unfinished stages; None if a program works on one.

    Programs of the run inherit them, so that one whose study was killed is waited for.
    """
    taken: list[IO[bytes]] = []
    for stage in run.stages:
        stage.folder.mkdir(parents=True, exist_ok=True)
        stream = open(stage.folder / LOCK, "ab")
        if hold(stream.fileno()) is not False:
            taken.append(stream)
        elif stage is run or not stage_is_finished(stage):
            for one in (stream, *taken):
                one.close()
            return None
        else:
            stream.close()      # it is only read
    return taken


def last_error(log: Path, start: int, status: int) -> str:
    """The error that a program printed last."""
    with open(log, "rb") as stream:
        stream.seek(start)
        lines = stream.read().decode("utf-8", "replace").splitlines()
    at = max((i for i, line in enumerate(lines) if line.startswith("error: ")), default=None)
    if at is not None:
        return "\n".join([lines[at].removeprefix("error: "), *lines[at + 1:]])
    if status < 0:
        return f"killed by signal {-status}, perhaps for lack of memory"
    return next((line for line in reversed(lines) if line.strip()), f"exit status {status}")
