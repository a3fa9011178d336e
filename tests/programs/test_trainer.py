"""The training loop on data small enough to check by hand."""
import contextlib
import json
import os
import re
import signal
import threading
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from base.base_model import BaseModel
from trainer import Trainer
from utils.checkpoint.read import read_checkpoint
from utils.cli.console import Interrupted
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.errors import ConfigError, NumericalError
from utils.images.normalize import Normalize
from utils.images.visualize import GAP
from utils.training.criterion import Criterion
from utils.training.earlier_runs import is_finished

CLASSES = 3


class Net(BaseModel):
    """A network of one convolution, one norm and dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(6, CLASSES, 1))

    def forward(self, x):
        out = self.head(self.backbone(x))
        return {"out": out} if self.training else out


class Data:
    title = "made up"
    class_names = ["a", "b", "c"]
    palette = [[0, 0, 0], [90, 0, 0], [0, 90, 0]]
    mean, std = [0.5] * 3, [0.25] * 3

    def __init__(self, size):
        generator = torch.Generator().manual_seed(size)
        self.images = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
        self.labels = (self.images.float().mean(1) / 86).to(torch.uint8)
        self.labels[0, :3] = 255

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        i = key[1] if isinstance(key, tuple) else key
        return {"image": self.images[i], "label": self.labels[i], "id": str(i)}


class Loader:
    """The contract of dataloader.loader.Loader over data in memory."""

    smallest_batch = 2
    batch_transforms = ()

    def __init__(self, size=8, batch_size=2):
        self.dataset, self.batch_size, self.start = Data(size), batch_size, 0

    def __len__(self):
        return len(self.dataset) // self.batch_size

    def set_epoch(self, epoch, start_batch=0, skip=0):
        order = torch.Generator().manual_seed(epoch)
        self.order = torch.randperm(len(self.dataset), generator=order)
        self.start = start_batch

    def next_batch(self, most=None):
        return {key: value[:most] for key, value in next(iter(self)).items()}

    def __iter__(self):
        order = getattr(self, "order", torch.arange(len(self.dataset)))
        for k in range(self.start, len(self)):
            picked = order[k * self.batch_size:(k + 1) * self.batch_size]
            yield {"image": self.dataset.images[picked], "label": self.dataset.labels[picked],
                   "id": [str(i) for i in picked.tolist()]}


def make(folder, *overrides, model=None, batch_size=2, checkpoint=None, val=True, loader=None):
    config = resolve_config(load_config("config.json", [
        "optimizer.type=SGD", 'optimizer.args={"lr": 0.1, "momentum": 0.9}', "trainer.amp=false",
        "lr_scheduler.type=Poly", "loss=CrossEntropyLoss2d", "trainer.epochs=3",
        "trainer.val_per_epochs=1", "trainer.tensorboard=false", *overrides]))
    torch.manual_seed(0)
    model = model() if model else Net()
    data = Data(8)
    return Trainer(model, Criterion(config["loss"], model.output_weights),
                   Normalize(data.mean, data.std), loader or Loader(batch_size=batch_size),
                   Loader(4) if val else None, config, folder, torch.device("cpu"), checkpoint)


def weights(trainer):
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def signal_at(trainer, step, *signums):
    """Send real signals to this process in the middle of a step."""
    update = trainer._update

    def signaled(*args):
        if trainer.progress.step == step:
            for number in signums:
                os.kill(os.getpid(), number)
        return update(*args)
    trainer._update = signaled
    return trainer


def train_until(trainer, stop=None):
    """Train, to the end or until SIGTERM comes in the step before `stop`; return the trainer."""
    if stop:
        signal_at(trainer, stop - 1, signal.SIGTERM)
    with pytest.raises(Interrupted) if stop else contextlib.nullcontext():
        trainer.train()
    return trainer


def test_training_equals_a_plain_loop(tmp_path):
    trainer = make(tmp_path, "lr_scheduler=null")
    trainer.train()
    torch.manual_seed(0)
    model, loader = Net().to(memory_format=torch.channels_last), Loader()
    optimizer = torch.optim.SGD(model.head_parameters() + model.backbone_parameters(), 0.1, 0.9,
                                fused=True)
    for epoch in (1, 2, 3):
        loader.set_epoch(epoch)
        for batch in loader:
            x = (batch["image"].contiguous(memory_format=torch.channels_last).float()
                 - 127.5) * torch.tensor(63.75).reciprocal()
            loss = F.cross_entropy(model(x)["out"], batch["label"].long(), ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def test_the_trainer_passes_every_batch_through_the_loaders_batch_transforms(tmp_path):
    seen = []

    def dark(batch):
        seen.append(batch["image"].device.type)
        return {**batch, "image": torch.zeros_like(batch["image"])}
    trainer = make(tmp_path, "trainer.accumulate=2")
    trainer.train_loader.batch_transforms = [dark]
    shown = []
    trainer.train_model.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    trainer._train_epoch(1)
    assert len(seen) == len(trainer.train_loader) and set(seen) == {"cpu"}
    assert all((images == trainer.normalize(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))).all()
               for images in shown)


def test_a_resumed_run_mixes_its_batches_as_the_uninterrupted_one(tmp_path):
    from dataloader.augmentation.batch_transforms import CopyBlob, CutMix

    def run(folder, stop=None, checkpoint=None):
        folder.mkdir(exist_ok=True)
        trainer = make(folder, model=lambda: Net(dropout=0.5), checkpoint=checkpoint)
        trainer.train_loader.batch_transforms = [CutMix(), CopyBlob(((1, 0),))]
        return train_until(trainer, stop)
    whole = run(tmp_path / "a")
    run(tmp_path / "b", stop=5)
    resumed = run(tmp_path / "b", checkpoint=read_checkpoint(tmp_path / "b" / "last.pth"))
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 7, 11])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, stop):
    settings = ["trainer.ema=0.9", "lr_scheduler.type=OneCycle"]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = make(tmp_path / "a", *settings, model=lambda: Net(dropout=0.5))
    whole.train()

    first = make(tmp_path / "b", *settings, model=lambda: Net(dropout=0.5))
    signal_at(first, stop - 1, signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        first.train()
    assert stopped.value.signum == 15 and "train.py -r" in str(stopped.value)
    torch.rand(17)      # random numbers drawn in between have no effect
    second = make(tmp_path / "b", *settings, model=lambda: Net(dropout=0.5),
                  checkpoint=read_checkpoint(tmp_path / "b" / "last.pth"))
    second.train()
    assert same(weights(whole), weights(second))
    assert same(whole.ema.module.state_dict(), second.ema.module.state_dict())
    assert whole.monitor.state_dict() == second.monitor.state_dict()
    lines = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").open()]
    steps = [line["step"] for line in lines if line["kind"] == "validation"]
    assert steps == [4, 8, 12]


STEP_LR = 'lr_scheduler={"type": "StepLR", "args": {"step_size": 1, "gamma": 0.5}}'


@pytest.mark.parametrize("stop", [3, 4, "validation"])
def test_a_schedule_per_epoch_goes_on_as_if_never_stopped(tmp_path, stop):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = make(tmp_path / "a", STEP_LR)
    whole.train()
    first = make(tmp_path / "b", STEP_LR)
    name = "_valid_epoch" if stop == "validation" else "_update"
    method = getattr(first, name)

    def stopping(*args):
        if stop in ("validation", first.progress.step + 1):
            first.stop_signal.signum = 15
        return method(*args)
    setattr(first, name, stopping)
    with pytest.raises(Interrupted):
        first.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")       # torch warns if a schedule steps before the optimizer
        second = make(tmp_path / "b", STEP_LR,
                      checkpoint=read_checkpoint(tmp_path / "b" / "last.pth"))
        second.train()
    assert same(weights(whole), weights(second))
    assert whole.scheduler.state_dict() == second.scheduler.state_dict()


@pytest.mark.parametrize("section", [
    {"type": "Poly", "args": {}}, {"type": "OneCycleLR", "args": {}},
    {"type": "StepLR", "args": {"step_size": 1, "gamma": 0.5}}])
@pytest.mark.parametrize("every", [1, 3])
def test_the_rate_of_a_log_line_is_that_of_its_step(tmp_path, section, every):
    trainer = make(tmp_path, f"lr_scheduler={json.dumps(section)}", f"trainer.log_per_iter={every}")
    used, events = [], {}
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    trainer.logger.scalars = lambda values, at, epoch: events.setdefault(at, {}).update(values)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    logged = {line["step"]: line["train/lr/all"] for line in lines if line["kind"] == "train"}
    assert len(used) == 12 and logged.keys() >= {12, every, 4}
    assert logged == {number: used[number - 1] for number in logged}
    assert {at: values["train/lr/all"] for at, values in events.items()
            if "train/lr/all" in values} == logged
    text = (tmp_path / "log.txt").read_text()
    assert all(f"step {number}/12  loss" in text for number in logged)
    assert [part.split()[0] for part in text.split(" lr ")[1:]] == [
        f"{rate:.3g}" for rate in logged.values()]


def test_log_txt_tells_the_whole_run(tmp_path, capsys):
    make(tmp_path, "trainer.log_per_iter=1", "trainer.epochs=1").train()
    text = (tmp_path / "log.txt").read_text()
    for part in ("training Net to epoch 1 (4 steps); run folder", "command: ", "torch 2.",
                 "train: 8 images of made up, 3 classes, 4 batches of 2", "val: 4 images",
                 "1 epoch, 4 steps, on cpu (", "epoch 1 step 2/4  loss ",
                 "validation on 4 images of made up, rule max, whole images", " % at epoch 1: ",
                 f"next:\n  python test.py -r {tmp_path}\n  python inference.py -r {tmp_path} "):
        assert part in text, part
    said = capsys.readouterr().err
    assert "step 2/4  loss" in said and "docs/metrics.md" in said and "command:" not in said


def test_log_txt_tells_of_an_interruption_and_of_what_follows(tmp_path):
    with pytest.raises(Interrupted):
        signal_at(make(tmp_path), 5, signal.SIGTERM).train()
    assert "ended: interrupted by SIGTERM at epoch 2 step 6" in (tmp_path / "log.txt").read_text()
    make(tmp_path, checkpoint=read_checkpoint(tmp_path / "last.pth")).train()
    assert "(12 steps), resumed at epoch 2 step 6; run" in (tmp_path / "log.txt").read_text()


def test_log_txt_tells_of_an_error(tmp_path):
    trainer = make(tmp_path)
    trainer._valid_epoch = None
    with pytest.raises(TypeError):
        trainer.train()
    assert "ended: 'NoneType' object is not callable" in (tmp_path / "log.txt").read_text()


def test_an_operation_without_a_deterministic_form_is_named(tmp_path):
    class Unpooling(Net):
        def forward(self, x):
            pooled, positions = F.max_pool2d(super().forward(x)["out"], 2, return_indices=True)
            return {"out": F.max_unpool2d(pooled, positions, 2)}
    trainer = make(tmp_path, "deterministic=true", model=Unpooling)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(ConfigError, match="deterministic is true, but max_unpooling2d"):
            trainer.train()
    finally:
        torch.use_deterministic_algorithms(False)


def test_checkpoints_of_an_epochs_end_hold_the_schedule_of_the_next_epoch(tmp_path):
    make(tmp_path, STEP_LR, "trainer.save_period=1").train()
    for epoch in (1, 2, 3):
        saved = read_checkpoint(tmp_path / f"checkpoint-epoch{epoch}.pth")
        assert saved["scheduler"]["last_epoch"] == epoch
        assert saved["optimizer"]["param_groups"][0]["lr"] == 0.1 * 0.5 ** epoch
    best = read_checkpoint(tmp_path / "model_best.pth")
    assert best["scheduler"]["last_epoch"] == best["epoch"] - 1


def test_the_outputs_of_a_step_are_gone_when_the_next_forward_pass_begins(tmp_path):
    trainer, alive = make(tmp_path, "trainer.accumulate=2", "trainer.log_per_iter=1"), []

    def before(*_):
        assert not any(output() is not None for output in alive)
    trainer.train_model.register_forward_pre_hook(before)
    trainer.train_model.register_forward_hook(
        lambda module, args, outputs: alive.extend(map(weakref.ref, outputs.values())))
    trainer._train_epoch(1)
    assert len(alive) == len(trainer.train_loader)


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    """Without norms, and with labels that are ignored unevenly."""
    class Plain(Net):
        def __init__(self):
            super().__init__()
            self.backbone[1] = nn.Identity()
    results = []
    for name, batch, accumulate in (("a", 4, 1), ("b", 2, 2)):
        (tmp_path / name).mkdir()
        trainer = make(tmp_path / name, f"trainer.accumulate={accumulate}", batch_size=batch,
                       model=Plain)
        trainer.train()
        results.append(weights(trainer))
    for key in results[0]:
        torch.testing.assert_close(results[0][key], results[1][key], rtol=1e-4, atol=1e-5)


def test_average_ranks_weights_micro_batches_alike_whatever_their_labels(tmp_path):
    trainer = make(tmp_path, "trainer.accumulate=2", "trainer.average=ranks", "lr_scheduler=null")
    trainer._begin_epoch(1)
    batches = list(trainer.train_loader)[:2]
    batches[0]["label"] = batches[0]["label"].clone()
    batches[0]["label"][:, 1:] = 255
    model = Net()
    model.load_state_dict(trainer.model.state_dict())
    losses = [F.cross_entropy(model(trainer.normalize(batch["image"]))["out"],
                              batch["label"].long(), ignore_index=255) for batch in batches]
    (sum(losses) / 2).backward()
    trainer.optimizer.zero_grad = lambda **options: None
    trainer._step([dict(batch) for batch in batches])
    for mine, plain in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path):
    trainer = make(tmp_path)
    step = trainer._step

    def poisoned(batches):
        if trainer.progress.step == 5:
            trainer.at_five = weights(trainer)
            trainer.criterion.forward = lambda outputs, batch: (
                outputs["out"].sum() * float("nan"), {})
        return step(batches)
    trainer._step = poisoned
    with pytest.raises(NumericalError, match="nan at epoch 2 step 5") as error:
        trainer.train()
    assert "images" in str(error.value) and "lr" in str(error.value)
    learnt = {k: v for k, v in trainer.at_five.items() if "running" not in k and "num" not in k}
    now = weights(trainer)
    assert same(learnt, {k: now[k] for k in learnt})


def test_best_and_last_and_periodic_checkpoints_are_kept(tmp_path):
    make(tmp_path, "trainer.save_period=2").train()
    assert {p.name for p in tmp_path.glob("*.pth")} == {"model_best.pth", "last.pth",
                                                        "checkpoint-epoch2.pth"}


def test_best_is_judged_at_every_validation_whatever_the_save_period(tmp_path):
    trainer = make(tmp_path, "trainer.save_period=3")
    scores = iter([.2, .5, .3])
    trainer._valid_epoch = lambda epoch: {"Mean_IoU": next(scores)}
    trainer.train()
    best = read_checkpoint(tmp_path / "model_best.pth")
    assert best["epoch"] == 3 and best["monitor"]["best"] == .5    # the epoch to resume with


def test_a_validation_without_a_labeled_pixel_says_so(tmp_path, capfd):
    trainer = make(tmp_path, "trainer.epochs=1")
    trainer.val_loader.dataset.labels[:] = 255
    trainer.train()
    assert "not one pixel of the 4 images of the validation has a label" in capfd.readouterr().err


def test_early_stop_ends_the_run(tmp_path):
    trainer = make(tmp_path, "trainer.early_stop=2", "trainer.epochs=30")
    trainer._valid_epoch = lambda epoch: {"Mean_IoU": 1 / epoch}
    trainer.train()
    assert trainer.progress.epoch == 4


@pytest.mark.parametrize("every, steps", [(3, [3, 6, 9, 12]), (4, [4, 8, 12]), (5, [5, 10, 12]),
                                          (50, [12])])
def test_validation_by_iterations_changes_no_weight(tmp_path, every, steps):
    (tmp_path / "plain").mkdir(), (tmp_path / "many").mkdir()
    plain, many = (make(tmp_path / name, *settings) for name, settings in (
        ("plain", []), ("many", [f"trainer.val_per_iterations={every}"])))
    plain.train(), many.train()
    assert same(weights(plain), weights(many))
    lines = map(json.loads, (tmp_path / "many/metrics.jsonl").open())
    assert [line["step"] for line in lines if line["kind"] == "validation"] == steps
    state = read_checkpoint(tmp_path / "many/model_best.pth")
    assert state["step"] == state["monitor"]["step"] == state["validated"]


def test_early_stop_by_iterations_ends_the_run_inside_an_epoch(tmp_path, capfd):
    settings = "trainer.val_per_iterations=1", "trainer.early_stop=2"
    trainer = make(tmp_path, *settings)
    trainer._valid_epoch = lambda epoch: {"Mean_IoU": 1 / trainer.progress.step}
    trainer.train()
    state = read_checkpoint(tmp_path / "last.pth")
    assert (state["step"], state["epoch"], state["monitor"]["step"]) == (3, 1, 1)
    assert is_finished(state)
    assert "stopped: 2 validations without a better Mean_IoU" in capfd.readouterr().err
    resumed = make(tmp_path, *settings, checkpoint=state)
    resumed.train()
    assert resumed.progress.step == 3


def test_iterations_end_in_the_middle_of_an_epoch(tmp_path):
    trainer = make(tmp_path, "trainer.epochs=null", "trainer.iterations=6")
    trainer.train()
    assert trainer.progress.step == 6 and read_checkpoint(tmp_path / "last.pth")["step"] == 6


def test_a_checkpoint_holds_only_tensors_and_plain_types(tmp_path):
    make(tmp_path, "trainer.ema=0.9").train()
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    assert state["class_names"] == ["a", "b", "c"] and state["normalization"]["mean"] == [0.5] * 3
    assert state["activation"] == "softmax" and state["config"]["arch"]["type"]


def test_a_frozen_backbone_keeps_weights_and_statistics(tmp_path):
    trainer = make(tmp_path, model=lambda: Net().freeze(freeze_backbone=True))
    before = {k: v.clone() for k, v in trainer.model.backbone.state_dict().items()}
    trainer.train()
    assert same(before, trainer.model.backbone.state_dict())


def test_differential_lr_slows_the_backbone_by_ten(tmp_path):
    trainer = make(tmp_path, "optimizer.differential_lr=true", "lr_scheduler=null")
    rates = {g["name"]: g["lr"] for g in trainer.optimizer.param_groups}
    assert rates == pytest.approx({"head": 0.1, "backbone": 0.01})


@pytest.mark.parametrize("setting, words", [
    ("predict.CoI=[0, 3]", "different class ids in 0..2"),
    ('predict={"val": "T", "threshold": [0.5, 0.5]}', "2 thresholds for 3 classes"),
    ('predict={"test": "T", "threshold": [0.5, 0.5]}', "2 thresholds for 3 classes")])
def test_what_does_not_fit_the_classes_is_found_before_the_first_step(tmp_path, setting, words):
    trainer = make(tmp_path, setting)
    trainer._train_epoch = lambda epoch: pytest.fail("an epoch was trained")
    with pytest.raises(ConfigError, match=words):
        trainer.train()


def test_a_rehearsal_tries_the_first_step_and_one_validation_image_and_writes_nothing(tmp_path):
    said = make(tmp_path / "none").rehearse()
    assert not (tmp_path / "none").exists()
    make(tmp_path, "trainer.log_per_iter=1").train()
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert said.startswith("tried one step on a batch of 2 images (8x8, height x width; loss "
                           f"{first['loss' if 'loss' in first else 'train/loss']:.4g}) and one "
                           "validation image (8x8; loss ")


def test_a_rehearsal_on_a_cpu_says_that_it_takes_a_part_of_a_batch_of_large_images(
        tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.REHEARSED_PIXELS", 1)
    trainer = make(tmp_path)
    trainer.train_loader.batch_size = 4
    assert trainer.rehearse().startswith(
        "tried one step on 2 of the 4 images of a batch (8x8, height x width; ")


def test_a_rehearsal_of_a_finished_run_says_so(tmp_path):
    trainer = make(tmp_path)
    trainer.progress.epoch = 4
    assert "finished" in trainer.rehearse()


def test_a_rehearsal_at_the_end_of_an_epoch_or_without_a_validation_batch_works(tmp_path):
    trainer = make(tmp_path)
    trainer.progress.batches_done = 4
    trainer.val_loader.batch_size = 5           # as on a rank that gets no batch
    assert len(trainer.val_loader) == 0
    assert "tried one step on a batch of 2 images" in trainer.rehearse()


def test_a_rehearsal_finds_what_the_validation_would_refuse(tmp_path):
    trainer = make(tmp_path)
    trainer.val_loader.dataset.labels[:] = 3            # no class, and not ignored
    with pytest.raises((IndexError, RuntimeError)):
        trainer.rehearse()


class PretrainedNet(Net):
    """A network whose encoder has pretrained weights for another input than that of Data."""

    def __init__(self):
        super().__init__()
        self.backbone.normalization = {"mean": [0.5] * 3, "std": [0.5] * 3}


def test_pretrained_weights_that_need_another_input_are_told_with_the_numbers(tmp_path, capfd):
    make(tmp_path, model=PretrainedNet)
    assert re.search(r"arch.args.pretrained: .* std was \[0.5.*\], is \[0.25",
                     capfd.readouterr().err)


@pytest.mark.parametrize("act", ["rehearse", "train"])
def test_a_compiler_that_is_missing_is_a_mistake_in_the_config(tmp_path, monkeypatch, act):
    # A second: torch's compiler is imported.
    from torch._dynamo.exc import TorchDynamoException

    def refuse(*_):
        raise TorchDynamoException("No working C++ compiler")
    monkeypatch.setattr(torch, "compile", lambda model: nn.Identity())
    trainer = make(tmp_path, "trainer.compile=true")
    trainer.train_model.forward = refuse
    with pytest.raises(ConfigError, match="No working C(.|\n)*where: trainer.compile"):
        getattr(trainer, act)()


def test_frozen_parts_that_make_no_sense_are_refused_or_said(tmp_path, capfd):
    class Headless(Net):
        def backbone_modules(self):
            return []
    with pytest.raises(ConfigError, match="freeze_backbone is true, but the network has no"):
        make(tmp_path, model=lambda: Headless().freeze(freeze_backbone=True))
    make(tmp_path, model=lambda: Net().freeze(freeze_backbone=True))
    assert "freeze_backbone fixes random weights" in capfd.readouterr().err
    make(tmp_path, "arch.type=PSPNet", "arch.args.pretrained=true",
         model=lambda: Net().freeze(freeze_backbone=True))
    assert "random weights" not in capfd.readouterr().err

    class Normless(Net):
        def __init__(self):
            super().__init__()
            self.backbone[1] = nn.GroupNorm(2, 6)
    make(tmp_path, model=lambda: Normless().freeze(freeze_bn=True))
    assert "freeze_bn has no effect" in capfd.readouterr().err


def test_a_rate_of_0_is_said_to_change_nothing(tmp_path, capfd):
    make(tmp_path, "optimizer.args.lr=0")
    assert "optimizer.args.lr is 0: the weights will not change" in capfd.readouterr().err


def test_a_slower_rate_for_a_frozen_backbone_is_said_to_have_no_effect(tmp_path, capfd):
    make(tmp_path, "optimizer.differential_lr=true",
         model=lambda: Net().freeze(freeze_backbone=True))
    assert "differential_lr has no effect: the backbone is frozen" in capfd.readouterr().err


def test_an_epoch_with_fewer_batches_than_a_step_adds_up_is_said(tmp_path, capfd):
    make(tmp_path, "trainer.accumulate=5")._check()
    assert "an epoch has 4 batches: a step adds up 4, not 5" in capfd.readouterr().err
    make(tmp_path, "trainer.accumulate=4")._check()
    assert "adds up" not in capfd.readouterr().err


def test_validation_labels_of_other_colors_are_refused(tmp_path):
    trainer = make(tmp_path)
    trainer.train_loader.dataset.label_palette = [[1, 2, 3]] * 3
    trainer.val_loader.dataset.label_palette = [[9, 9, 9]] * 3
    with pytest.raises(ConfigError, match="colors of the labels differ"):
        trainer.rehearse()


def test_event_files_are_whole_when_the_training_ends_with_an_error(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    trainer = make(tmp_path, "trainer.tensorboard=true", "trainer.log_per_iter=1")
    hook = threading.excepthook
    trainer._valid_epoch = lambda epoch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert threading.excepthook is hook
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_examples_in_event_files_have_titles_and_a_legend(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    trainer = make(tmp_path, "trainer.tensorboard=true", "trainer.epochs=1")
    height, width = trainer.val_loader.dataset[0]["label"].shape
    trainer.train()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for tag, columns in (("train/examples", 2), ("val/examples", 3)):
        [picture] = events.Images(tag)
        assert picture.width == max(240, columns * width + (columns - 1) * GAP), tag
        assert picture.height > height + 40, tag


def test_validation_without_a_loader_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="val_loader"):
        make(tmp_path, val=False)


def test_clipping_bounds_the_gradient(tmp_path):
    trainer = make(tmp_path, "trainer.clip_grad_norm=1e-6", "lr_scheduler=null")
    before = weights(trainer)
    trainer.train()
    moved = (trainer.model.head[1].weight - before["head.1.weight"]).norm()
    assert 0 < moved < 12 * 10 * 0.1 * 1e-6


def test_running_out_of_gpu_memory_names_stage_size_and_setting(tmp_path):
    trainer = make(tmp_path)

    def full(epoch):
        raise torch.OutOfMemoryError
    trainer._train_epoch = full
    with pytest.raises(ConfigError, match="training at epoch 1 step 0, with 2 images of .*8x8"):
        trainer.train()
