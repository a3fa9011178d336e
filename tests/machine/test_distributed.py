"""Two gloo processes train and score as one does.

Every test of two processes takes seconds: both import torch.
"""
import os
import subprocess
import sys
import threading

import pytest
import torch

from tests.support.ranks import free_port, on_ranks
from utils.errors import ConfigError
from utils.machine import distributed


def test_a_plain_process_is_rank_0_of_1():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert not distributed.launched()


def test_a_half_set_launcher_environment_names_what_is_missing(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        distributed.launched()


def test_more_gpus_than_visible_are_refused():
    with pytest.raises(ConfigError, match="n_gpu is 99"):
        distributed.choose_processes(99)


def _agree(rank, world):
    assert distributed.broadcast_object(f"from {rank}") == "from 0"
    assert distributed.from_main(lambda: f"from {rank}") == "from 0"
    with pytest.raises(ValueError, match="rank 0 only"):
        distributed.from_main(lambda: int("rank 0 only" if rank == 0 else "1"), ValueError)
    assert distributed.any_rank(rank == 1, torch.device("cpu"))
    assert not distributed.any_rank(False, torch.device("cpu"))
    assert distributed.all_reduce_(torch.tensor(rank + 1)).item() == 3


def test_ranks_agree():
    on_ranks(_agree, 2)


def _train(rank, world, folder):
    """12 steps over 2 ranks of batch 2, and over one process of batch 4."""
    from tests.programs.test_trainer import Loader, make

    class Shard(Loader):
        def __iter__(self):
            order, size = self.order, self.batch_size * world
            for k in range(self.start, len(self)):
                picked = order[k * size:(k + 1) * size][rank::world]
                yield {"image": self.dataset.images[picked], "label": self.dataset.labels[picked],
                       "id": [str(i) for i in picked.tolist()]}

        def __len__(self):
            return len(self.dataset) // (self.batch_size * world)

    trainer = make(f"{folder}/{world}", "use_synch_bn=true", "trainer.val=true",
                   "trainer.log_per_iter=1", loader=Shard(16, 4 // world))
    losses = []
    step = trainer._step

    def noted(batches):
        result = step(batches)
        losses.append(distributed.all_reduce_(trainer.window.loss.clone()).item() / world)
        return result
    trainer._step = noted
    trainer._valid_epoch = lambda epoch: {"Mean_IoU": 0.5}
    trainer.train()
    if rank == 0:
        torch.save({"losses": losses, "weights": trainer.model.state_dict()},
                   f"{folder}/{world}.pth")


def _accumulate(rank, world, folder):
    from tests.programs.test_trainer import Loader, make
    trainer = make(folder, "trainer.accumulate=3", loader=Loader(8, 2))
    trainer._valid_epoch = lambda epoch: {"Mean_IoU": 0.5}
    trainer.train()
    assert trainer.progress.step == 6      # 4 batches in steps of 3 and 1, three epochs
    for value in trainer.model.parameters():
        total = distributed.all_reduce_(value.detach().clone())
        torch.testing.assert_close(total / world, value)


@pytest.mark.slow
def test_accumulated_steps_exchange_gradients_once_and_keep_ranks_equal(tmp_path):
    on_ranks(_accumulate, 2, str(tmp_path))


def _score(rank, world, folder):
    """Evaluate 7 images in batches of 2 over `world` ranks; rank 0 leaves the results."""
    import dataclasses
    import json

    from dataloader.loader import make_loader
    from models.enet import ENet
    from utils.decision.rules import build_decision
    from utils.evaluation.evaluate import evaluate
    from utils.images.normalize import Normalize
    from utils.predict.predictor import Predictor
    torch.manual_seed(0)
    loader = make_loader({"type": "Shapes", "args": {"split": "val", "length": 7, "size": [40, 56],
                                                     "batch_size": 2, "num_workers": 0}},
                         ignore_index=255, rank=rank, world_size=world)
    dataset = loader.dataset
    predictor = Predictor(ENet(dataset.num_classes).eval(), Normalize(dataset.mean, dataset.std))
    results = evaluate(predictor, loader, [build_decision("max"), build_decision("T")],
                       num_classes=dataset.num_classes, ignore_index=255, device="cpu",
                       loss=torch.nn.CrossEntropyLoss(ignore_index=255))
    if rank == 0:
        with open(f"{folder}/{world}.json", "w") as stream:
            json.dump({name: dataclasses.asdict(scores) for name, scores in results.items()},
                      stream)


@pytest.mark.slow
def test_a_score_is_the_same_for_one_and_two_ranks_to_the_last_digit(tmp_path):
    on_ranks(_score, 2, str(tmp_path))
    on_ranks(_score, 1, str(tmp_path))
    one, two = ((tmp_path / f"{world}.json").read_text() for world in (1, 2))
    assert "Mean_IoU" in one and one == two


@pytest.mark.slow
def test_two_ranks_with_synchronised_norms_train_like_one_process(tmp_path):
    for world in (1, 2):
        os.mkdir(tmp_path / str(world))
    on_ranks(_train, 2, str(tmp_path))
    _train(0, 1, str(tmp_path))
    one, two = (torch.load(tmp_path / f"{world}.pth", weights_only=True) for world in (1, 2))
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]),
                               rtol=1e-4, atol=1e-5)
    for key, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], value, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_no_thread_is_left_to_the_end_of_the_program():
    on_ranks(_leave, 2)


def _leave(rank, world):
    distributed.stop()
    # Python aborts where a daemon thread is in the middle of a call as the program ends.
    assert not [one for one in threading.enumerate() if one.name == "rank watch"]


# In its last phase Python frees the objects of every module.
LAST_PHASE = """
import atexit, os, sys
import torch
from utils.machine import distributed

class Late:
    def __del__(self):
        os.abort()

late = Late()
atexit.register(print, "atexit ran")
def run():
    distributed.start("cpu")
    distributed.all_reduce_(torch.ones(1))
    distributed.stop()
    print("done")
    {end}
distributed.exit_after(run)
"""


@pytest.mark.parametrize(("end", "status"), [("return 0", 0), ("return 5", 5),
                                             ("raise SystemExit(3)", 3), ("sys.exit(0)", 0)])
def test_a_rank_ends_without_the_last_phase_of_the_interpreter(tmp_path, end, status):
    # There a thread of gloo that still frees a tensor would abort the process.
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ended = subprocess.run([sys.executable, "-c", LAST_PHASE.format(end=end)], env=environment,
                           capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.split()) == (status, ["done", "atexit", "ran"]), \
        ended.stderr


@pytest.mark.parametrize("status", [0, 4])
def test_a_single_process_exits_as_usual(status):
    with pytest.raises(SystemExit) as ended:
        distributed.exit_after(lambda: status)
    assert ended.value.code == status
