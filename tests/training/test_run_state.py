"""run_state: a training is saved and restored without a difference."""
import torch

from tests.programs.test_trainer import make
from utils.checkpoint.format import TrainingCheckpoint
from utils.checkpoint.read import read_checkpoint
from utils.training.run_state import last_is_outdated, state_of


def test_a_checkpoint_has_exactly_the_keys_of_its_type(tmp_path):
    state = state_of(make(tmp_path))
    assert state.keys() == TrainingCheckpoint.__annotations__.keys()


def test_a_restored_trainer_saves_the_same_state(tmp_path):
    make(tmp_path, "trainer.epochs=2", "trainer.ema=0.9").train()
    saved = read_checkpoint(tmp_path / "last.pth")
    restored = state_of(make(tmp_path, "trainer.epochs=2", "trainer.ema=0.9", checkpoint=saved))
    assert restored.keys() == saved.keys()
    for key in ("epoch", "step", "samples", "scheduler", "monitor", "skipped", "config"):
        assert restored[key] == saved[key], key
    for key in ("model", "ema"):
        assert all(torch.equal(value, saved[key][name])
                   for name, value in restored[key].items()), key


def test_last_is_outdated_if_it_is_missing_or_older_than_the_end(tmp_path):
    trainer = make(tmp_path, "trainer.epochs=1")
    assert last_is_outdated(trainer, finished=False)
    trainer.train()
    assert not last_is_outdated(trainer, finished=True)
    trainer.progress.step += 1
    assert last_is_outdated(trainer, finished=True)
    assert not last_is_outdated(trainer, finished=False)
