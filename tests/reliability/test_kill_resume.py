"""A run that is killed at random moments and resumed ends with the weights of an undisturbed one.

SEGWRIGHT_KILLS=200 python -m pytest -m slow tests/reliability/test_kill_resume.py
"""
import functools
import os
import random
import signal
import time

import pytest

from tests.reliability.test_signals import AT_STEP_3
from tests.support.run_program import SMALL, digest
from tests.support.warm_start import until

KILLS = int(os.environ.get("SEGWRIGHT_KILLS", 10))
TINY = ["train_loader.args.size=[24,32]", "train_loader.args.batch_size=2",
        "train_loader.args.length=4", 'optimizer.type=SGD',
        'optimizer.args={"lr": 0.01, "momentum": 0.9}', "trainer.amp=false",
        "val_loader.args.size=[24,32]", "val_loader.args.length=2"]

# A step, and how many seconds after its beginning.
KILLED_AFTER = """
import os, threading, trainer
step = trainer.Trainer._step
def timed(self, batches):
    if self.progress.step == {}:
        threading.Timer({}, os.killpg, (0, 9)).start()
    return step(self, batches)
trainer.Trainer._step = timed
"""

# Outputs that are not finite at steps 1 and 5.
NANS = """
from tests.support.nan_steps import nans_at
nans_at({1, 5})
"""
WAYS = {"plain": ([], ""),
        "average, skipped steps": (["trainer.ema=0.9", "trainer.nonfinite=skip"], NANS),
        "Adafactor": (["optimizer.type=Adafactor", 'optimizer.args={"lr": 0.01}',
                       "lr_scheduler=Poly"], "")}


def train(folder, *more):
    return ["-c", "config.json", *SMALL, *TINY, "trainer.save_every=3",
            f"trainer.save_dir={folder}", *more]


@pytest.fixture(scope="module")
def undisturbed(warm, tmp_path_factory):
    """Returns for a way: the weights of an undisturbed training, and the seconds of a step."""
    @functools.cache
    def trained(way):
        settings, fault = WAYS[way]
        folder = tmp_path_factory.mktemp("undisturbed")
        log = folder / "log"
        process = warm.start(log, *train(folder, "trainer.log_per_iter=1", "trainer.save_every=1",
                                         *settings), fault=fault)
        until(log, "step 3/8 ")
        before = time.monotonic()
        until(log, "step 7/8 ")
        seconds = (time.monotonic() - before) / 4
        assert warm.wait(process) == 0, log.read_text()
        last, = folder.glob("shapes/*/last.pth")
        return digest(last), seconds
    return trained


@pytest.mark.slow      # ten trainings of a few seconds, and as many halves
@pytest.mark.timeout(7200)
def test_k01_k17_killed_at_random_moments_and_resumed_equals_undisturbed(warm, undisturbed,
                                                                         tmp_path):
    """In three ways in turn."""
    moments = random.Random(KILLS)
    killed = unreadable = 0
    for trial in range(KILLS):
        way = list(WAYS)[trial % len(WAYS)]
        settings, fault = WAYS[way]
        expected, seconds = undisturbed(way)
        folder, log = tmp_path / str(trial), tmp_path / f"{trial}.log"
        folder.mkdir()
        arguments = ("-r", "auto", "trainer.save_every=1", *settings)
        process = warm.start(log, *train(folder, *arguments, "trainer.log_per_iter=1"),
                             fault=fault + KILLED_AFTER.format(moments.randrange(8),
                                                               moments.uniform(0, seconds)))
        killed += warm.wait(process) == -signal.SIGKILL
        workers = moments.choice([0, 1, 2])
        process = warm.start(log, *train(folder, *arguments,
                                         f"train_loader.args.num_workers={workers}"), fault=fault)
        status, said = warm.wait(process), log.read_text()
        assert status == 0, said
        unreadable += "skipping" in said
        newest = max(folder.glob("shapes/*/last.pth"), key=lambda p: p.stat().st_mtime)
        assert digest(newest) == expected, f"trial {trial}, {way}"
        assert not list(folder.rglob(".*")), f"trial {trial}, {way}"
    print(f"{killed} of {KILLS} trainings were killed before their end; {KILLS} resumed, all "
          f"bit-equal, {unreadable} with an unreadable checkpoint")
    assert unreadable == 0 and killed >= KILLS // 2


@pytest.mark.slow      # two trainings
@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_k17_k19_a_signal_saves_says_how_to_go_on_and_loses_nothing(warm, undisturbed, tmp_path,
                                                                    signum, status):
    log = tmp_path / "log"
    process = warm.start(log, *train(tmp_path, "trainer.save_every=0"),
                         fault=AT_STEP_3.format(f"os.kill(os.getpid(), {int(signum)})"))
    assert warm.wait(process) == status, log.read_text()
    assert "Traceback" not in log.read_text() and "train.py -r" in log.read_text()
    last, = tmp_path.glob("shapes/*/last.pth")
    assert warm.wait(warm.start(log, "-r", last)) == 0, log.read_text()
    assert digest(last) == undisturbed("plain")[0]


MASKS = ["arch.type=EoMT", 'arch.args={"backbone": "dinov2_vits14_reg", "image_size": 32, '
         '"queries": 6, "blocks": 3}',
         'loss={"type": "MaskClassificationLoss", "args": {"points": 60}}',
         "trainer.average=ranks", "trainer.save_every=1"]


@pytest.mark.slow      # three starts of a network of full size
def test_a_network_that_depends_on_the_progress_resumes_to_the_last_bit(warm, tmp_path):
    """EoMT anneals its masked attention, with random draws, in steps 2 to 6 of 8."""
    ends = []
    for name, faults in (("whole", [""]), ("killed", [KILLED_AFTER.format(4, 0), ""])):
        folder, log = tmp_path / name, tmp_path / f"{name}.log"
        folder.mkdir()
        for fault in faults:
            process = warm.start(log, *train(folder, "-r", "auto", *MASKS), fault=fault)
            assert warm.wait(process) == (-signal.SIGKILL if fault else 0), log.read_text()
        last, = folder.glob("shapes/*/last.pth")
        ends.append(digest(last))
    assert ends[0] == ends[1]
