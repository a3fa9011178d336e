"""run_state: a training is saved and restored without a difference."""
import json
import warnings

import pytest
import torch

from tests.programs.test_trainer import Net, make, same, signal_at, weights
from tests.reliability.test_numbers import poison
from tests.support.ranks import on_ranks
from tests.training.test_lr_scheduler import ARGS, BY_STEPS, ON_SCORES
from utils.checkpoint.format import TrainingCheckpoint
from utils.checkpoint.load import _kept_for
from utils.checkpoint.read import read_checkpoint
from utils.cli.console import Interrupted
from utils.config.registry import components
from utils.errors import CheckpointError, ConfigError
from utils.training.run_state import last_is_outdated, state_of

# Optimizers that need other parameters than those of a network of convolutions.
REFUSED = {"Muon": "Muon only supports 2D parameters"}
# Arguments that make an optimizer keep more than by default.
VARIANTS = [("SGD", {"momentum": 0.9, "nesterov": True}), ("SGD", {"momentum": 0.0}),
            ("Adam", {"amsgrad": True}), ("AdamW", {"amsgrad": True, "fused": False}),
            ("AdamW", {"foreach": True}), ("RMSprop", {"momentum": 0.9, "centered": True}),
            ("Adagrad", {"initial_accumulator_value": 0.1, "lr_decay": 0.01}),
            ("ASGD", {"t0": 2.0}), ("Adam", {"maximize": True, "decoupled_weight_decay": True}),
            ("Adam", {"capturable": True, "fused": True})]
CONSTANT = "lr_scheduler=null"


def trained(folder, *settings, stop=None, checkpoint=None, **more):
    """A trainer at its end, or after a stop signal in step `stop`."""
    folder.mkdir(exist_ok=True)
    trainer = make(folder, *settings, checkpoint=checkpoint, **more)
    if stop is None:
        trainer.train()
        return trainer
    signal_at(trainer, stop, 15)
    with pytest.raises(Interrupted):
        trainer.train()
    return trainer


def last(folder):
    return read_checkpoint(folder / "last.pth")


def rates(folder):
    """The logged rates of all steps."""
    lines = map(json.loads, (folder / "metrics.jsonl").open())
    return [line["train/lr/all"] for line in lines if line["kind"] == "train"]


def equal(a, b):
    """Whether two nested states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_checkpoint_has_exactly_the_keys_of_its_type(tmp_path):
    state = state_of(make(tmp_path))
    assert state.keys() == TrainingCheckpoint.__annotations__.keys()


def test_a_restored_trainer_saves_the_same_state(tmp_path):
    make(tmp_path, "trainer.epochs=2", "trainer.ema=0.9").train()
    saved = read_checkpoint(tmp_path / "last.pth")
    restored = state_of(make(tmp_path, "trainer.epochs=2", "trainer.ema=0.9", checkpoint=saved))
    assert restored.keys() == saved.keys()
    for key in ("epoch", "step", "samples", "scheduler", "monitor", "skipped", "config",
                "averaged"):
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


# Every optimizer


def optimizers():
    return [(name, {}) for name in components("optimizers") if name not in REFUSED] + VARIANTS


@pytest.mark.parametrize("name, args", optimizers(),
                         ids=[f"{name}{list(args)}" for name, args in optimizers()])
def test_a_run_resumed_with_any_optimizer_equals_the_undisturbed_one(tmp_path, name, args):
    settings = [f"optimizer.type={name}", f"optimizer.args={json.dumps({'lr': 0.01, **args})}",
                "trainer.epochs=1", "trainer.ema=0.9", "trainer.val=false"]
    whole = trained(tmp_path / "whole", *settings, val=False)
    for stop in (0, 1, 3):
        folder = tmp_path / str(stop)
        folder.mkdir()
        if stop:
            trained(folder, *settings, val=False, stop=stop - 1)
        else:
            make(folder, *settings, val=False).save("last.pth", required=True)
        assert last(folder)["step"] == stop
        trained(folder, *settings, val=False, checkpoint=last(folder))
        for part in ("model", "ema", "optimizer", "scheduler"):
            assert equal(last(folder)[part], last(tmp_path / "whole")[part]), (stop, part)
    assert all(value.isfinite().all() for value in weights(whole).values())


@pytest.mark.parametrize("name, args, words", [
    ("Muon", {}, REFUSED["Muon"]), ("LBFGS", {}, "LBFGS"), ("SparseAdam", {}, "SparseAdam"),
    ("Adamax", {"capturable": True}, "Adamax cannot take a step on cpu: .*capturable"),
    ("AdamW", {"differentiable": True}, "AdamW cannot take a step on cpu: .*in-place"),
    ("SGD", {"fused": True, "foreach": True}, "SGD: .*fused.*foreach"),
    ("SGD", {"nesterov": True}, "Nesterov"),
])
def test_an_optimizer_that_cannot_train_is_refused_by_name_at_the_start(tmp_path, name, args,
                                                                        words):
    with pytest.raises(ConfigError, match=words):
        make(tmp_path, f"optimizer.type={name}",
             f"optimizer.args={json.dumps({'lr': 0.01, **args})}")


@pytest.mark.parametrize("name, entry, value, words", [
    ("Adafactor", "row_var", torch.zeros(9, 9), r"row_var of parameter 0 is \(9, 9\), expected"),
    ("AdamW", "exp_avg", None, "exp_avg of parameter 0 is missing"),
    ("AdamW", "exp_avg", 3.0, "exp_avg of parameter 0 is 3.0"),
    ("AdamW", "step", torch.zeros(2), r"step of parameter 0 is \(2,\), expected \(\)"),
    ("AdamW", "exp_avg_sq", torch.zeros(3, 6, 1, 1, dtype=torch.complex64), "complex64"),
])
def test_a_state_that_the_optimizer_would_not_keep_is_refused(tmp_path, name, entry, value, words):
    settings = [f"optimizer.type={name}", 'optimizer.args={"lr": 0.01}', "trainer.epochs=1"]
    make(tmp_path, *settings).train()
    saved = last(tmp_path)
    state = saved["optimizer"]["state"][0]
    if value is None:
        del state[entry]
    else:
        state[entry] = value
    with pytest.raises(CheckpointError, match=words):
        make(tmp_path, *settings, checkpoint=saved)


@pytest.mark.parametrize("name, args", optimizers(),
                         ids=[f"{name}{list(args)}" for name, args in optimizers()])
@pytest.mark.parametrize("shape", [(7,), (1,), (5, 3), (1, 4, 3, 3), (6, 1, 1, 1), (6, 5, 3, 1)])
def test_what_an_optimizer_keeps_is_known_without_its_memory(name, args, shape):
    weight = torch.nn.Parameter(torch.ones(shape))
    weight.grad = torch.ones(shape)
    optimizer = components("optimizers")[name]([weight], lr=0.1, **args)
    known = _kept_for(weight, optimizer.param_groups[0], type(optimizer))
    optimizer.step()
    assert {key: value.shape for key, value in known.items()} == {
        key: value.shape for key, value in optimizer.state[weight].items()}


# Steps that were left out


@pytest.mark.parametrize("bad", [(0,), (0, 1, 2), (1,), (2,)])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_run_with_skipped_steps_and_an_average_resumes_without_a_difference(tmp_path, bad, stop):
    settings = ["trainer.ema=0.9", "trainer.nonfinite=skip", "trainer.epochs=2"]

    def run(folder, **more):
        folder.mkdir(exist_ok=True)
        trainer = make(folder, *settings, model=lambda: Net(dropout=0.5), **more)

        def spoil(module, inputs, output):
            spoiled = module.training and trainer.progress.step in bad
            return output * float("nan") if spoiled else output
        trainer.model.head.register_forward_hook(spoil)
        return trainer
    run(tmp_path / "whole").train()
    first = signal_at(run(tmp_path / "cut"), stop, 15)
    with pytest.raises(Interrupted):
        first.train()
    saved = last(tmp_path / "cut")
    assert saved["averaged"] == stop + 1 - sum(step <= stop for step in bad)
    run(tmp_path / "cut", checkpoint=saved).train()
    parts = ("model", "ema", "optimizer", "scheduler", "skipped", "averaged", "step")
    cut, whole = last(tmp_path / "cut"), last(tmp_path / "whole")
    assert [part for part in parts if not equal(cut[part], whole[part])] == []


def test_an_average_of_an_older_checkpoint_counts_the_steps_that_were_not_skipped(tmp_path):
    settings = ["trainer.ema=0.9", "trainer.nonfinite=skip"]
    trainer = signal_at(poison(make(tmp_path, *settings), 0), 0, 15)
    with pytest.raises(Interrupted):
        trainer.train()
    saved = {key: value for key, value in last(tmp_path).items()
             if key not in ("averaged", "overflows")}
    assert make(tmp_path, *settings, checkpoint=saved).ema.n_averaged == 0


def test_overflows_are_counted_on_after_a_resume(tmp_path):
    trainer = make(tmp_path, "trainer.epochs=1", "optimizer.args.momentum=0")
    trainer.scaler = torch.amp.GradScaler("cpu")
    trainer.model.head[1].weight.register_hook(lambda gradient: gradient * float("inf"))
    trainer.train()
    saved = last(tmp_path)
    assert saved["overflows"] == 4
    resumed = make(tmp_path, "trainer.epochs=2", "optimizer.args.momentum=0", checkpoint=saved)
    assert resumed.progress.overflows == 4 and resumed.progress.updates == 0
    assert resumed.scheduler.last_epoch == 0


# Another length, rate or schedule


def schedule(name):
    args = ARGS.get(name, {})
    if name == "CyclicLR":
        args = {"base_lr": 0.001, "max_lr": 0.1, "step_size_up": 3}
    return f"lr_scheduler={json.dumps({'type': name, 'args': args})}"


@pytest.mark.parametrize("name", BY_STEPS)
@pytest.mark.parametrize("before, after, stop", [(1, 3, None), (2, 3, 5), (3, 2, 4), (3, 1, None)])
def test_a_run_given_another_length_has_the_rates_of_one_run_of_it(tmp_path, name, before, after,
                                                                   stop):
    settings = [schedule(name), "trainer.val=false", "trainer.log_per_iter=1"]
    trained(tmp_path / "whole", *settings, f"trainer.epochs={after}", val=False)
    cut = tmp_path / "cut"
    trained(cut, *settings, f"trainer.epochs={before}", val=False, stop=stop)
    done = last(cut)["step"]
    trained(cut, *settings, f"trainer.epochs={after}", val=False, checkpoint=last(cut))
    assert rates(cut)[done:] == rates(tmp_path / "whole")[done:]
    assert len(rates(cut)) == max(done, 4 * after)
    assert all(0 <= rate <= 0.1 for rate in rates(cut))


@pytest.mark.parametrize("name", ["Poly", "CosineAnnealingLR", "OneCycleLR"])
@pytest.mark.parametrize("before, after", [("iterations=6", "iterations=12"),
                                           ("iterations=6", "iterations=7"),
                                           ("epochs=2", "iterations=10"),
                                           ("iterations=6", "epochs=4")])
def test_a_run_given_another_number_of_steps_takes_all_of_them(tmp_path, name, before, after):
    settings = [schedule(name), "trainer.val=false", "trainer.log_per_iter=1"]
    lengths = {length: [f"trainer.{key}=null" for key in ("epochs", "iterations")
                        if key not in length] + [f"trainer.{length}"] for length in (before, after)}
    trained(tmp_path, *settings, *lengths[before], val=False)
    done = len(rates(tmp_path))
    resumed = trained(tmp_path, *settings, *lengths[after], val=False, checkpoint=last(tmp_path))
    steps = int(after.split("=")[1]) * (4 if "epochs" in after else 1)
    # The last epoch of the shorter run was cut: the images that it left out are not seen.
    assert resumed.progress.step == steps - (2 if after == "epochs=4" else 0)
    assert len(rates(tmp_path)) == resumed.progress.step
    assert all(0 < rate <= 0.1 for rate in rates(tmp_path)[done:-1])


def test_a_best_score_is_told_with_its_name_or_not_at_all(tmp_path, capsys):
    trained(tmp_path, "trainer.epochs=1")
    trained(tmp_path, "trainer.epochs=1", checkpoint=last(tmp_path))
    assert ", best Mean_IoU " in capsys.readouterr().err
    trained(tmp_path, "trainer.epochs=1", "trainer.val=false", checkpoint=last(tmp_path))
    said = capsys.readouterr().err
    assert "resuming at the end of epoch 1, step " in said and ", best " not in said
    assert "best at epoch 1: " in said


def test_a_run_that_has_its_length_already_says_so(tmp_path, capsys):
    trained(tmp_path, "trainer.epochs=2")
    before = (tmp_path / "last.pth").read_bytes()
    trained(tmp_path, "trainer.epochs=1", checkpoint=last(tmp_path))
    said = capsys.readouterr().err
    assert "resuming at the end of epoch 2, step " in said
    assert "is finished, nothing is left to train: trainer.epochs is reached" in said
    assert f"python train.py -r {tmp_path} trainer.epochs=2" in said
    assert (tmp_path / "last.pth").read_bytes() == before


@pytest.mark.parametrize("before", ["Poly", "StepLR", "OneCycleLR", ON_SCORES])
@pytest.mark.parametrize("after", ["Cosine", "MultiStepLR", "OneCycleLR"])
def test_another_schedule_goes_on_where_the_run_stands(tmp_path, before, after):
    trained(tmp_path / "whole", schedule(after), "trainer.log_per_iter=1")
    trained(tmp_path / "cut", schedule(before), "trainer.log_per_iter=1", stop=5)
    trained(tmp_path / "cut", schedule(after), "trainer.log_per_iter=1",
            checkpoint=last(tmp_path / "cut"))
    assert rates(tmp_path / "cut")[6:] == rates(tmp_path / "whole")[6:]


@pytest.mark.parametrize("name", sorted({*BY_STEPS} - {"CyclicLR"}))
def test_another_rate_is_used_and_recorded(tmp_path, name):
    settings = [schedule(name), "trainer.log_per_iter=1", "trainer.epochs=2"]
    trained(tmp_path / "whole", *settings, "optimizer.args.lr=0.03")
    trained(tmp_path / "cut", *settings, stop=4)
    trained(tmp_path / "cut", *settings, "optimizer.args.lr=0.03",
            "optimizer.args.weight_decay=0.5", checkpoint=last(tmp_path / "cut"))
    assert rates(tmp_path / "cut")[5:] == rates(tmp_path / "whole")[5:]
    saved = last(tmp_path / "cut")
    assert saved["config"]["optimizer"]["args"]["lr"] == 0.03
    assert saved["optimizer"]["param_groups"][0]["weight_decay"] == 0.5


def test_two_rates_can_become_one_and_the_reverse(tmp_path):
    settings = [CONSTANT, "trainer.epochs=2", "trainer.log_per_iter=1"]
    for before, after, groups in (("true", "false", [0.1]), ("false", "true", [0.1, 0.01])):
        folder = tmp_path / before
        trained(folder, *settings, f"optimizer.differential_lr={before}", stop=4)
        kept = last(folder)["optimizer"]["state"]
        resumed = make(folder, *settings, f"optimizer.differential_lr={after}",
                       checkpoint=last(folder))
        assert [group["lr"] for group in resumed.optimizer.param_groups] == pytest.approx(groups)
        assert equal(resumed.optimizer.state_dict()["state"], kept)


def test_another_optimizer_starts_without_what_the_first_has_kept(tmp_path, capsys):
    adam = ["optimizer.type=AdamW", 'optimizer.args={"lr": 0.1}', "trainer.epochs=2"]
    trained(tmp_path, *adam, stop=4)
    resumed = make(tmp_path, "trainer.epochs=2", checkpoint=last(tmp_path))
    assert not resumed.optimizer.state and resumed.progress.step == 5
    assert "SGD starts without what AdamW has kept" in capsys.readouterr().err
    resumed.train()


def test_what_the_optimizer_has_not_kept_cannot_be_asked_for(tmp_path):
    settings = ["optimizer.type=AdamW", 'optimizer.args={"lr": 0.1}', "trainer.epochs=2"]
    trained(tmp_path, *settings, stop=4)
    with pytest.raises(CheckpointError, match="max_exp_avg_sq of parameter 0 is missing"):
        make(tmp_path, *settings, "optimizer.args.amsgrad=true", checkpoint=last(tmp_path))


def test_loss_scaling_can_begin_with_a_resumed_run(tmp_path):
    trained(tmp_path, "trainer.epochs=2", stop=4)
    saved = last(tmp_path)
    assert saved["scaler"] == {}
    resumed = make(tmp_path, "trainer.epochs=2", checkpoint={**saved, "ema": None})
    assert resumed.progress.step == 5


# A schedule on validated values


@pytest.mark.parametrize("stop", [1, 4, 9, 14])
def test_a_plateau_resumes_without_a_difference(tmp_path, stop):
    args = {"patience": 0, "factor": 0.5, "threshold": 0.2}
    settings = [f"lr_scheduler={json.dumps({'type': ON_SCORES, 'args': args})}",
                "trainer.epochs=5", "trainer.log_per_iter=1"]
    trained(tmp_path / "whole", *settings)
    trained(tmp_path / "cut", *settings, stop=stop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(tmp_path / "cut", *settings, checkpoint=last(tmp_path / "cut"))
    assert len(set(rates(tmp_path / "whole"))) > 1
    assert rates(tmp_path / "cut") == rates(tmp_path / "whole")
    cut, whole = last(tmp_path / "cut"), last(tmp_path / "whole")
    assert same(cut["model"], whole["model"]) and cut["scheduler"] == whole["scheduler"]


def test_a_plateau_steps_on_the_monitored_value_and_says_so(tmp_path, capsys):
    args = {"patience": 1, "factor": 0.5}
    trainer = make(tmp_path, f"lr_scheduler={json.dumps({'type': ON_SCORES, 'args': args})}",
                   "trainer.epochs=6", "trainer.val_per_epochs=2", "trainer.log_per_iter=1",
                   "trainer.monitor=min loss")
    losses = iter([0.5, 0.6, 0.7])
    trainer._valid_epoch = lambda epoch: {"loss": next(losses), "Mean_IoU": 0.1 * epoch}
    trainer.train()
    assert rates(tmp_path) == [0.1] * 24
    assert trainer.optimizer.param_groups[0]["lr"] == 0.05
    assert "loss stopped getting better: lr 0.1 is now 0.05" in capsys.readouterr().err


def test_a_plateau_forgets_the_best_value_of_another_metric(tmp_path):
    name = f"lr_scheduler={json.dumps({'type': ON_SCORES})}"
    trained(tmp_path, name, "trainer.epochs=2")
    resumed = make(tmp_path, name, "trainer.epochs=3", "trainer.monitor=min loss",
                   checkpoint=last(tmp_path))
    assert resumed.scheduler.best == float("inf") and resumed.scheduler.last_epoch == 2


@pytest.mark.parametrize("setting", ["trainer.val=false", "trainer.monitor=off"])
def test_a_plateau_needs_a_monitored_validation(tmp_path, setting):
    with pytest.raises(ConfigError, match="nothing is validated or monitored"):
        make(tmp_path, f"lr_scheduler={json.dumps({'type': ON_SCORES})}", setting)


BY_ITERATION = ("trainer.val_per_iterations=3", "trainer.log_per_iter=1",
                'lr_scheduler={"type": "ReduceLROnPlateau", "args": {"patience": 0}}')


def lines_of(folder, kind="validation"):
    return [line for line in map(json.loads, (folder / "metrics.jsonl").open())
            if line["kind"] == kind]


def stopped_in_validation(folder, number):
    """A trainer that is stopped by a signal in its validation `number`, counted from 1."""
    folder.mkdir(exist_ok=True)
    trainer = make(folder, *BY_ITERATION)
    scores, seen = trainer._scores, []

    def signaled(*args):
        seen.append(0)
        if len(seen) == number:
            trainer.stop_signal.signum = 15
        return scores(*args)
    trainer._scores = signaled
    with pytest.raises(Interrupted):
        trainer.train()


@pytest.mark.parametrize("stop", [1, 2, 3, 8, "validation 1", "validation 2", "validation 4"])
def test_a_run_that_validates_by_iterations_resumes_without_a_difference(tmp_path, stop):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trained(whole, *BY_ITERATION)
    if isinstance(stop, int):
        trained(cut, *BY_ITERATION, stop=stop)
    else:
        stopped_in_validation(cut, int(stop[-1]))
    trained(cut, *BY_ITERATION, checkpoint=last(cut))
    assert [line["step"] for line in lines_of(cut)] == [3, 6, 9, 12]
    assert lines_of(cut) == lines_of(whole) and rates(cut) == rates(whole)
    one, other = last(whole), last(cut)
    for key in ("model", "optimizer", "scheduler", "monitor", "step", "samples", "validated"):
        assert equal(one[key], other[key]), key


def test_a_run_killed_after_a_validation_inside_an_epoch_goes_on_from_there(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trained(whole, *BY_ITERATION)
    cut.mkdir()
    killed = make(cut, *BY_ITERATION)
    update = killed._update

    def fails(*args):
        if killed.progress.step == 10:
            raise KeyboardInterrupt
        return update(*args)
    killed._update = fails
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert (last(cut)["step"], last(cut)["epoch"], last(cut)["samples"]) == (9, 3, 2)
    trained(cut, *BY_ITERATION, checkpoint=last(cut))
    assert lines_of(cut) == lines_of(whole)
    assert equal(last(cut)["model"], last(whole)["model"])


def _by_iterations(rank, world, folder):
    trainer = make(folder, "trainer.val_per_iterations=3", "trainer.log_per_iter=1",
                   "use_synch_bn=true")
    trainer.train()
    assert trainer.progress.validated == 12 and trainer.model.training


@pytest.mark.slow
def test_two_ranks_validate_by_iterations_together(tmp_path):
    """Seconds: two processes import torch."""
    on_ranks(_by_iterations, 2, tmp_path)
    assert [line["step"] for line in lines_of(tmp_path)] == [3, 6, 9, 12]
