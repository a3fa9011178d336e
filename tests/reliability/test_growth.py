"""A long training needs no more memory, files or threads than a short one.

SEGWRIGHT_VALIDATIONS=1000 python -m pytest -m slow -s tests/reliability/test_growth.py
"""
import ctypes
import gc
import os
import threading

import pytest
import torch
from torch import nn

from base.base_model import BaseModel
from dataloader.loader import make_loader
from tests.support.run_program import program
from trainer import Trainer
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.images.normalize import Normalize
from utils.machine.memory import resident
from utils.training.criterion import Criterion

VALIDATIONS = int(os.environ.get("SEGWRIGHT_VALIDATIONS", 30))


class Small(BaseModel):
    """One convolution."""

    def __init__(self, num_classes):
        super().__init__()
        self.backbone, self.head = nn.Sequential(), nn.Conv2d(3, num_classes, 1)

    def forward(self, x):
        out = self.head(x)
        return {"out": out} if self.training else out


def resident_bytes():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")


def snapshot():
    return resident_bytes(), len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.slow      # SEGWRIGHT_VALIDATIONS epochs of one step, with their checkpoints
@pytest.mark.timeout(7200)
def test_memory_files_and_threads_do_not_grow_with_the_number_of_validations(tmp_path):
    config = resolve_config(load_config("config.json", [
        f"trainer.epochs={VALIDATIONS}", "trainer.val_per_epochs=1", "trainer.amp=false",
        "trainer.save_period=1", "trainer.keep=2", "train_loader.args.size=[24,32]",
        "val_loader.args.size=[24,32]", "train_loader.args.length=2", "val_loader.args.length=4",
        "train_loader.args.batch_size=2", "val_loader.args.batch_size=2"]))
    loaders = [make_loader(config[name], ignore_index=255, training=name == "train_loader")
               for name in ("train_loader", "val_loader")]
    dataset = loaders[0].dataset
    model = Small(dataset.num_classes)
    trainer = Trainer(model, Criterion(config["loss"], model.output_weights), Normalize(
        dataset.mean, dataset.std), *loaders, config, tmp_path, torch.device("cpu"))
    counted, finish = {}, trainer._finish_epoch

    def finish_and_count():
        finish()
        counted[trainer.progress.epoch - 1] = snapshot()
    trainer._finish_epoch = finish_and_count
    trainer.train()
    early, last = counted[max(10, VALIDATIONS // 10)], counted[VALIDATIONS]
    growth = last[0] / early[0] - 1
    print(f"{VALIDATIONS} validations: memory {early[0] / 1e6:.1f} -> {last[0] / 1e6:.1f} MB "
          f"({growth:+.2%}), files {early[1]} -> {last[1]}, threads {early[2]} -> {last[2]}")
    assert growth < 0.01 and last[1] <= early[1] and last[2] <= early[2]
    assert len(list(tmp_path.glob("checkpoint-*.pth"))) == 2


def test_peak_memory_does_not_include_the_process_that_started_the_program():
    held = torch.ones(100_000_000)      # 400 MB
    said = program("-c", "from utils.machine.memory import peak_memory; print(peak_memory())",
                   check=True)
    assert 2e6 < int(said.stdout) < held.nbytes / 4
