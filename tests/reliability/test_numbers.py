"""Faults K32-K37: NaN and infinity, batches without a label, scores of absent classes."""
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import train
from tests.losses.test_losses import NAMES, build, inputs_of, value_and_gradients
from tests.programs.test_trainer import STEP_LR, Loader, Net, make, same, weights
from tests.support.run_program import SMALL
from utils.checkpoint.read import read_checkpoint
from utils.cli import console
from utils.errors import NumericalError
from utils.metrics import DatasetMetrics, ImageMetrics


def poison(trainer, step, value=float("nan")):
    """Make the loss of one step `value`; keeps the weights from before it in trainer.before."""
    take, criterion = trainer._step, trainer.criterion.forward

    def poisoned(batches):
        trainer.criterion.forward = criterion
        if trainer.progress.step == step:
            trainer.before = weights(trainer)

            def broken(outputs, batch):
                total, parts = criterion(outputs, batch)
                return total * value, {name: part * value for name, part in parts.items()}
            trainer.criterion.forward = broken
        return take(batches)
    trainer._step = poisoned
    return trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_k32_a_loss_that_is_not_finite_leaves_everything_as_it_was_and_says_all(tmp_path, value):
    trainer = poison(make(tmp_path), 6, value)
    with pytest.raises(NumericalError) as error:
        trainer.train()
    assert same(trainer.before, weights(trainer))           # running statistics included
    said = str(error.value)
    for part in (f"loss is {value} at epoch 2 step 6", "out", "lr 0.0", "images",
                 "last.pth with -r", "optimizer.args.lr"):
        assert part in said, part
    assert error.value.exit_status == 5
    assert read_checkpoint(tmp_path / "last.pth")["step"] == 4


def test_k32_the_message_names_the_images_of_the_batch(tmp_path):
    seen, trainer = [], poison(make(tmp_path), 2)
    update = trainer._update
    trainer._update = lambda loss, batches, parts: (
        seen.append([name for batch in batches for name in batch["id"]]),
        update(loss, batches, parts))[1]
    with pytest.raises(NumericalError) as error:
        trainer.train()
    assert f"images {', '.join(seen[2])}" in str(error.value)


def test_k32_a_gradient_that_is_not_finite_counts_as_well(tmp_path):
    trainer = make(tmp_path)
    trainer.model.head[1].weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(trainer)
    with pytest.raises(NumericalError, match="gradient norm is (inf|nan) at epoch 1 step 0"):
        trainer.train()
    assert same(before, weights(trainer))


def test_k32_skip_leaves_out_the_step_counts_it_and_goes_on(tmp_path, capsys):
    trainer = poison(make(tmp_path, "trainer.nonfinite=skip", "trainer.epochs=1"), 2)
    after = {}
    take = trainer._step

    def noted(batches):
        result = take(batches)
        if trainer.progress.step == 2:
            after.update(weights(trainer))
        return result
    trainer._step = noted
    rate = trainer.scheduler.last_epoch
    trainer.train()
    assert same(trainer.before, after)
    assert trainer.progress.skipped == 1 and trainer.progress.step == 4
    assert trainer.scheduler.last_epoch == rate + 3
    assert all(value.isfinite().all() for value in weights(trainer).values())
    said = capsys.readouterr().err
    assert "step skipped (1; the run ends at 10): loss is nan at epoch 1 step 2" in said
    assert read_checkpoint(tmp_path / "last.pth")["skipped"] == 1


def test_k32_too_many_skipped_steps_end_the_run(tmp_path):
    trainer = make(tmp_path, "trainer.nonfinite=skip", "trainer.max_skipped=3")
    trainer.criterion.forward = lambda outputs, batch: (outputs["out"].sum() * float("nan"), {})
    with pytest.raises(NumericalError, match="3 steps were not finite .*max_skipped") as error:
        trainer.train()
    assert trainer.progress.step == 2
    assert "raise trainer.max_skipped" in error.value.fix
    assert "skip\"" not in error.value.fix         # it is set


def test_k32_only_remedies_that_are_left_are_advised(tmp_path):
    trainer = poison(make(tmp_path, "trainer.clip_grad_norm=1"), 2)
    with pytest.raises(NumericalError) as error:
        trainer.train()
    assert error.value.fix.startswith('lower optimizer.args.lr, or set trainer.nonfinite to "skip"')
    assert "trainer.amp" not in error.value.fix


def test_k32_the_rate_in_the_message_is_that_of_the_step(tmp_path):
    trainer = poison(make(tmp_path), 2)
    with pytest.raises(NumericalError, match=f"lr {0.1 * (1 - 3 / 12) ** 0.9:.3g}"):
        trainer.train()


class FusedOnDevice:
    """The attribute that the guard needs of a GPU's optimizer."""

    _step_supports_amp_scaling = True


def test_k32_on_a_gpu_the_flag_stays_up_until_it_is_read():
    """The GPU is simulated: `_reads` is set as on a GPU."""
    from utils.training.finite_guard import FiniteGuard
    optimizer, guard = FusedOnDevice(), None
    guard = FiniteGuard(nn.Linear(1, 1), optimizer, torch.device("cpu"), False)
    guard._reads = False
    for step, value in enumerate([1.0, float("nan"), 2.0]):
        assert not guard.refuses(torch.tensor(value), step, [f"image {step}"])
        assert bool(optimizer.found_inf) == (step >= 1)
    assert guard.first_bad_step() == (1, ["image 1"])


def test_k33_an_overflow_under_loss_scaling_is_skipped_counted_and_not_scheduled(tmp_path):
    trainer = make(tmp_path, "trainer.epochs=1", "optimizer.args.momentum=0")
    trainer.scaler = torch.amp.GradScaler("cpu")
    trainer.model.head[1].weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")       # torch warns if a schedule steps before the optimizer
        trainer.train()
    assert trainer.progress.overflows == 4 and trainer.scheduler.last_epoch == 0
    learnt = [name for name, _ in trainer.model.named_parameters()]
    assert all(torch.equal(before[name], weights(trainer)[name]) for name in learnt)


@pytest.mark.parametrize("left_out", ["overflow", "not finite"])
def test_k33_a_schedule_per_epoch_steps_where_the_epochs_last_step_is_left_out(tmp_path, left_out):
    trainer = make(tmp_path, STEP_LR, "trainer.epochs=2", "trainer.nonfinite=skip")
    if left_out == "overflow":
        trainer.scaler = torch.amp.GradScaler("cpu")
        trainer.model.head[1].weight.register_hook(
            lambda gradient: gradient * float("inf") if trainer.progress.step == 3 else gradient)
    else:
        poison(trainer, 3)
    trainer.train()
    counts = trainer.progress.overflows, trainer.progress.skipped
    assert counts == ((1, 0) if left_out == "overflow" else (0, 1))
    assert trainer.scheduler.last_epoch == 2


@pytest.mark.parametrize("name", NAMES)
def test_k34_a_batch_of_ignored_pixels_has_no_gradient_in_any_loss(name):
    loss = build(name)
    logits, targets = inputs_of(loss)
    value, gradients = value_and_gradients(loss, logits,
                                           [torch.full_like(target, 255) for target in targets])
    assert value.isfinite() and all((gradient == 0).all() for gradient in gradients)
    if name in ("CrossEntropyLoss2d", "FocalLoss", "LovaszSoftmax", "OhemCrossEntropy"):
        assert value == 0


def test_k34_a_training_on_ignored_pixels_changes_no_weight(tmp_path):
    loader = Loader()
    loader.dataset.labels[:] = 255
    trainer = make(tmp_path, loader=loader)
    before = weights(trainer)
    trainer._valid_epoch = lambda epoch: {"Mean_IoU": 0.5}
    trainer.train()
    learnt = [name for name, _ in trainer.model.named_parameters()]
    assert all(torch.equal(before[name], weights(trainer)[name]) for name in learnt)


@pytest.mark.parametrize("more", [["train_loader.args.batch_size=1"],
                                  ["train_loader.args.batch_size=4", "train_loader.args.length=5",
                                   "train_loader.args.drop_last=false"]])
def test_k35_a_batch_of_one_image_is_found_before_the_first_step(tmp_path, capsys, more):
    """A pyramid network is built twice, which takes a few seconds."""
    assert console.run(train.main, ["-c", "config.json", *SMALL, "arch.type=PSPNet",
                                    'arch.args={"backbone": "resnet18"}', *more,
                                    "train_loader.args.num_workers=0",
                                    f"trainer.save_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "drop_last" in said and "epoch 1 step 4/" not in said
    assert not list(tmp_path.glob("*/*/last.pth"))


def test_k35_a_network_that_can_take_one_image_trains_on_it(tmp_path):
    loader = Loader(batch_size=1)
    loader.smallest_batch = 1
    before = make(tmp_path, model=Net, loader=loader)
    statistics = {k: v for k, v in weights(before).items() if "running" in k}
    before._check()
    assert all(torch.equal(v, weights(before)[k]) for k, v in statistics.items())


@pytest.mark.parametrize("monitor, told", [
    ("max Mean_IOU", ("did you mean", "Mean_IoU", "mIoU_I")), ("best", ("max NAME",))])
def test_k36_a_misspelt_metric_is_refused_with_the_legal_names_before_data_is_read(
        monitor, told, capsys):
    assert console.run(train.main, ["-c", "config.json", f"trainer.monitor={monitor}",
                                    "train_loader.type=CamVid", 'train_loader.args={"data_dir": '
                                    '"/none", "split": "train"}']) == 2
    said = capsys.readouterr().err
    assert "trainer.monitor" in said and all(part in said or part in said.lower() for part in told)


@pytest.mark.parametrize("metrics", [DatasetMetrics, ImageMetrics])
def test_k37_absent_is_excluded_perfect_is_one_and_empty_is_zero_without_warnings(metrics):
    target = torch.tensor([[[0, 0, 1, 255]]])
    perfect, empty = torch.tensor([[[0, 0, 1, 2]]]), torch.tensor([[[1, 1, 0, 2]]])
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for prediction, expected in ((perfect, 1.0), (empty, 0.0)):
            counted = metrics(3)
            counted.update(prediction, target)
            found = counted.compute()
            assert found["Mean_IoU"] == expected
            assert np.isnan(np.asarray(found["Class_IoU"])[2])


def test_settings_for_steps_that_are_not_finite_are_checked(capsys):
    assert console.run(train.main, ["-c", "config.json", "trainer.nonfinite=ignore",
                                    "trainer.max_skipped=0", "trainer.keep=-1",
                                    "trainer.rank_timeout=0"]) == 2
    said = capsys.readouterr().err
    for part in ("stop", "trainer.max_skipped: expected at least 1", "trainer.keep",
                 "trainer.rank_timeout"):
        assert part in said, part
