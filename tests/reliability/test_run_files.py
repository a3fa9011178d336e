"""Files of a run that are damaged, cannot be read, or were left behind when it went back."""
import errno
import pickle

import pytest
import torch

from tests.programs.test_trainer import make
from utils.checkpoint import read
from utils.checkpoint.read import UnreadableCheckpoint, read_checkpoint
from utils.checkpoint.write import write_checkpoint
from utils.errors import CheckpointError
from utils.machine import distributed
from utils.training.run_state import last_is_outdated


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A finished training of three epochs with all its files; nothing waits."""
    monkeypatch.setattr(read, "WAITS", (0, 0))
    make(tmp_path, "trainer.save_period=1").train()
    return tmp_path


def resumed(folder, *settings, name="last.pth"):
    return make(folder, "trainer.save_period=1", *settings,
                checkpoint=read_checkpoint(folder / name))


def unreadable(monkeypatch, name, error=OSError(errno.EIO, "Input/output error")):  # noqa: B008
    """Loading a file of this name fails, as on a disk with a fault."""
    load = torch.load

    def failing(path, **options):
        if path.name == name:
            raise error
        return load(path, **options)
    monkeypatch.setattr(torch, "load", failing)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.pth*")}


@pytest.mark.parametrize("name", ["model_best.pth", "checkpoint-epoch3.pth"])
def test_a_file_that_cannot_be_read_stops_the_resume_and_is_not_touched(trained, monkeypatch,
                                                                       name):
    before = files(trained)
    checkpoint = read_checkpoint(trained / "last.pth")
    unreadable(monkeypatch, name)
    with pytest.raises(UnreadableCheckpoint, match="Input/output error"):
        make(trained, checkpoint=checkpoint)
    assert files(trained) == before


def test_last_that_cannot_be_read_is_not_called_outdated(trained, monkeypatch):
    trainer = resumed(trained)
    unreadable(monkeypatch, "last.pth")
    for finished in (False, True):
        with pytest.raises(UnreadableCheckpoint):
            last_is_outdated(trainer, finished)


@pytest.mark.parametrize("name", ["model_best.pth", "last.pth"])
def test_a_damaged_file_is_renamed_and_not_overwritten(trained, capsys, name):
    path = trained / name
    for suffix in (".damaged", ".damaged-2"):
        damaged = path.read_bytes()[:-100]
        path.write_bytes(damaged)
        # A trainer of which no file is known resumes as from another file than last.pth.
        resumed(trained, "trainer.epochs=4", name="checkpoint-epoch3.pth").train()
        assert (trained / f"{name}{suffix}").read_bytes() == damaged
        assert f"it is now called {name}{suffix}" in capsys.readouterr().err
        assert read_checkpoint(path)["epoch"] == 5


def test_a_damaged_best_does_not_stop_the_ranks_that_are_told_of_it(trained, monkeypatch):
    """They receive a copy of what rank 0 found."""
    path = trained / "model_best.pth"
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(distributed, "broadcast_object",
                        lambda value: pickle.loads(pickle.dumps(value)))
    assert resumed(trained).monitor.best is None


@pytest.mark.parametrize("change, said", [({"format": 99}, "newer than this program's"),
                                          ({"optimizer": {}}, "no state of a training")])
def test_a_best_that_is_whole_and_of_no_use_is_not_overwritten(trained, change, said):
    path = trained / "model_best.pth"
    write_checkpoint(path, {**read_checkpoint(path), **change})
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=said):
        resumed(trained)
    assert path.read_bytes() == before


def test_a_position_behind_the_end_of_its_epoch_is_refused(trained):
    state = {**read_checkpoint(trained / "checkpoint-epoch1.pth"), "samples": 10 ** 15}
    with pytest.raises(CheckpointError, match="at sample 10{15} of an epoch of 4 batches"):
        make(trained, checkpoint=state)


def test_going_back_is_told_once_and_the_later_files_stay_until_they_are_written(trained, capsys):
    capsys.readouterr()
    trainer = resumed(trained, "trainer.keep=1", "trainer.epochs=2", name="checkpoint-epoch1.pth")
    said = capsys.readouterr().err
    assert said.count("going back to epoch 2 step 4, from step 12: ") == 1
    assert "last.pth, checkpoint-epoch3.pth" in said and "(last.pth: at the next save)" in said
    later = (trained / "checkpoint-epoch3.pth").read_bytes()
    trainer.train()
    assert (trained / "checkpoint-epoch3.pth").read_bytes() == later
    assert {path.name for path in trained.glob("checkpoint*")} == {"checkpoint-epoch2.pth",
                                                                   "checkpoint-epoch3.pth"}
    assert read_checkpoint(trained / "last.pth")["lineage"] == [[1, 4]]
    assert "going back" not in capsys.readouterr().err
    resumed(trained)
    assert "going back" not in capsys.readouterr().err


def test_going_back_twice_gives_the_second_line_a_number_of_its_own(trained):
    resumed(trained, "trainer.epochs=2", name="checkpoint-epoch1.pth").train()
    trainer = resumed(trained, name="checkpoint-epoch3.pth")
    assert trainer.progress.lineage == [[2, 12]]
