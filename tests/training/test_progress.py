"""Progress: the position and the length of a run."""
import pytest

from utils.training.progress import Progress


@pytest.mark.parametrize("epochs, iterations, length", [(3, None, (12, 3)), (None, 6, (6, 2)),
                                                        (None, 8, (8, 2))])
def test_a_length_in_epochs_or_iterations_gives_steps_and_epochs(epochs, iterations, length):
    progress = Progress.start(epochs, iterations, steps_per_epoch=4)
    assert (progress.total_steps, progress.epochs) == length
    assert str(progress) == "epoch 1 step 0"


def test_the_next_epoch_begins_at_its_first_batch():
    progress = Progress(4, 8, 2, step=4, batches_done=4, into_batch=1)
    progress.next_epoch()
    assert (progress.epoch, progress.step) == (2, 4)
    assert (progress.batches_done, progress.into_batch) == (0, 0)
