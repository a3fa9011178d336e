"""kill -9 at random moments, resume, and end with the weights of the undisturbed run."""
import random
import signal
import time

import pytest

from tests.run_program import SMALL, digest, kill_group, program, start

KILLS = 20


def train(folder, *more):
    return ["train.py", "-c", "config.json", *SMALL, "trainer.save_every=3",
            f"trainer.save_dir={folder}", *more]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    before = time.monotonic()
    result = program(*train(folder))
    assert result.returncode == 0, result.stderr
    last, = folder.glob("shapes/*/last.pth")
    return digest(last), time.monotonic() - before


@pytest.mark.slow      # a process that imports torch takes seconds, and there are forty of them
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_and_resumed_equals_undisturbed(undisturbed, tmp_path):
    expected, seconds = undisturbed
    moments = random.Random(20)
    for trial in range(KILLS):
        folder = tmp_path / str(trial)
        process = start(*train(folder, "-r", "auto"))
        time.sleep(moments.uniform(0.3, 1.0) * seconds)
        kill_group(process)
        process.communicate()
        workers = moments.choice([0, 1, 2])
        result = program(*train(folder, "-r", "auto", f"train_loader.args.num_workers={workers}"))
        assert result.returncode == 0, result.stderr
        newest = max(folder.glob("shapes/*/last.pth"), key=lambda p: p.stat().st_mtime)
        assert digest(newest) == expected, f"trial {trial}"
        assert not list(folder.rglob(".*.tmp"))


@pytest.mark.slow      # three processes that import torch
@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_says_how_to_go_on_and_loses_nothing(undisturbed, tmp_path, signum, status):
    process = start(*train(tmp_path, "trainer.save_every=0", "trainer.log_per_iter=1"))
    for line in process.stderr:
        if "step 13/" in line:
            break
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors and "train.py -r" in errors
    last, = tmp_path.glob("shapes/*/last.pth")
    result = program("train.py", "-r", last)
    assert result.returncode == 0, result.stderr
    assert digest(last) == undisturbed[0]
