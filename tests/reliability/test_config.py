"""Mistakes in configs and command lines: the faults K49 to K58 of docs/faults.md."""
import json
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import train
from tests.support.limits import files_limited_to
from tests.support.places import ROOT
from tests.support.run_program import SMALL, program
from utils.cli import console
from utils.errors import ConfigError
from utils.machine import distributed
from utils.training.run_log import RunLogger


def run(*arguments):
    """The exit status of train.py; a usage error of argparse raises SystemExit."""
    try:
        return console.run(train.main, [str(a) for a in arguments])
    except SystemExit as end:
        return end.code


@pytest.fixture
def failure(tmp_path, capsys):
    """Starts train.py, which must fail; returns its message. It must leave no file behind."""
    def failure(*arguments, status=2):
        saves = tmp_path / "saves"
        assert run(*arguments, f"trainer.save_dir={saves}") == status
        output = capsys.readouterr()
        assert output.out == "" and "Traceback" not in output.err and not saves.exists()
        return output.err
    return failure


@pytest.fixture
def write(tmp_path):
    """Writes bytes, a text, or a value as JSON into a file; returns its path."""
    def write(content, name="c.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else
                         (content if isinstance(content, str) else json.dumps(content)).encode())
        return path
    return write


# --- keys, types, values ---

def test_k49_typos_at_every_level_are_found_in_one_run_and_in_their_files(failure, write):
    write({"extends": str(ROOT / "config.json"), "trainer": {"eary_stop": 2},
           "trianer": {}}, "parent.json")
    path = write({"extends": "parent.json", "arch": {"type": "PSPNet", "args": {"bakcbone": "x"}},
                  "train_loader": {"args": {"transforms": [
                      {"type": "ColorJitter"}, {"type": "RandomGray", "args": {"probb": 1}}]}},
                  "loss": {"type": "MixedLoss", "args": {"losses": [
                      {"type": "CrossEntropyLoss2d", "args": {"wieght": [1]}}]}}})
    text = failure("-c", path)
    for name, hint, place in (
            ("trianer", "Did you mean 'trainer'?", "parent.json:1"),
            ("trainer.eary_stop", "Did you mean 'early_stop'?", "parent.json:1"),
            ("arch.args.bakcbone", "Did you mean 'backbone'?", "c.json:1"),
            ("train_loader.args.transforms[1]", "", "c.json:1"),
            ("loss.args.losses[0].args.wieght", "Did you mean 'weight'?", "c.json:1")):
        line, = (line for line in text.splitlines() if line.strip().startswith(name))
        assert hint in line and place in line, line


def test_k50_an_unknown_type_is_answered_with_the_nearest(failure):
    text = failure("-c", "config.json", "arch.type=PSPNett")
    assert "arch.type: unknown type 'PSPNett'. Did you mean 'PSPNet'?" in text


@pytest.mark.parametrize("override, words", [
    ('optimizer.args.lr="0.01"', 'optimizer.args.lr: expected float, found "0.01" (string). '
                                 'Write 0.01 without quotes'),
    ("trainer.epochs=0", "trainer.epochs: expected at least 1, got 0"),
    ("train_loader.args.batch_size=2.5", "train_loader.args.batch_size: expected int, found 2.5"),
    ("train_loader.args.shuffle=null", "train_loader.args.shuffle: expected bool, found null"),
    ("trainer.epochs=true", "trainer.epochs: expected int or null, found true"),
    ("seed=1000000000000000000000000000000", "more than 64 bits"),
    ("train_loader.args.crop_size=-1", "crop_size must be a positive number"),
    ("train_loader.args.num_workers=100000", "100000 data workers; the limit here is"),
    ("train_loader.args.size=[1000000,1000000]", "the limits are"),
    ("train_loader.args.base_size=1000000", "the limit is"),
])
def test_k51_wrong_types_and_ranges_say_what_was_expected(failure, override, words):
    assert words in failure("-c", "config.json", override)


def test_k51_nan_is_no_number(failure, write):
    path = write('{"extends": "%s",\n "optimizer": {"type": "SGD", "args": {"lr": NaN}}}'
                 % (ROOT / "config.json"))
    text = failure("-c", path)
    assert "c.json:2:46" in text and "NaN is not a JSON value" in text


# --- keys that contradict each other ---

@pytest.mark.parametrize("overrides, words", [
    (["ignore_index=3"], "ignore_index: 3 is a class of the dataset (0 to 8)"),
    (["loss.type=CE", "loss.args.weight=[1,2]"],
     "loss.args.weight: expected 9 numbers, one per class, found 2"),
    (['loss={"type":"MixedLoss","args":{"losses":[{"type":"CE","args":{"weight":[1]}}]}}'],
     "loss.args.losses[0].args.weight: expected 9 numbers"),
    (["trainer.epochs=null", "trainer.iterations=0"], "trainer.iterations: expected at least 1"),
    (['loss={"out":"CE","axu":"CE"}', "arch.type=PSPNet"], "loss.axu: unknown output 'axu'"),
    (["loss_weights=[1,2]"], "loss_weights: has an effect only when loss is a list"),
    (["val_loader=null", "trainer.val=true"], "trainer.val: is true, but there is no val_loader"),
    (["predict.CoI=[99]"], "predict.CoI: expected classes from 0 to 8"),
    (["predict.CoI=[1,1]"], "predict.CoI: expected different classes, found 1 twice"),
    (["predict.val=rankdise"], "rankdise"),
    (["val_loader.type=Cityscapes", "val_loader.args.data_dir=x"], "Cityscapes has 19 classes"),
])
def test_k52_contradictions_are_found_before_the_data(failure, monkeypatch, overrides, words):
    from dataloader import loader
    monkeypatch.setattr(loader, "make_loader", lambda *_, **__: pytest.fail("data was opened"))
    assert words in failure("-c", "config.json", *overrides)


def test_k52_an_auxiliary_loss_without_its_head_is_found_before_the_first_step(failure):
    """Checked after the network is built, because its constructor sets its outputs."""
    text = failure("-c", "config.json", 'loss={"out":"CE","aux":"CE"}')
    assert "unknown output 'aux'. Known: out." in text and "auxiliary head" in text


def test_k52_one_cycle_over_no_steps_cannot_be_written(failure):
    assert "is set by the program" in failure("-c", "config.json",
                                           "lr_scheduler.args.total_steps=0")


# --- files ---

@pytest.mark.parametrize("content, words", [
    ('{"name": "x",\n "seed" 1}', "c.json:2:9"), ('{"name": "x",\n "seed": 1,\n "seed": 2}',
                                                 "'seed' is given twice, on line 2 and line 3"),
    ("", "the file is empty"), ("[" * 10_000, "nested more than 100 levels deep"),
    ('{"a":' * 10_000, "nested more than 100 levels deep"), (b"\xff\xfe{\0}\0", "UTF-16"),
    (b'{"name": "\xe9"}', "0xe9 is not UTF-8"), ("{" + '"a": 1,' * 200_000, "larger than 1 MiB"),
    ("{'name': 1}", "strings take double quotes"),
])
def test_k53_a_file_that_is_no_json_is_refused_with_its_place(failure, write, content, words):
    text = failure("-c", write(content))
    assert words in text and "c.json" in text


def test_k53_comments_commas_and_a_byte_order_mark_are_accepted(write):
    path = write(b'\xef\xbb\xbf{"extends": "%s", // why\n /* not */ "seed": 3,}'
                 % str(ROOT / "config.json").encode())
    assert run("-c", path, "--print-config") == 0


def test_k53_a_folder_and_a_missing_file_are_told_apart(failure, tmp_path):
    assert "does not exist" in failure("-c", tmp_path / "none.json")
    assert "this is a folder" in failure("-c", tmp_path)


def test_k53_nesting_on_the_command_line_is_bounded_too(failure):
    assert "nested more than 100 levels" in failure("-c", "config.json", "name=" + "[" * 10_000)


def test_k54_parents_in_a_circle_or_missing_are_shown_as_a_chain(failure, write):
    write({"extends": "b.json"}, "a.json")
    write({"extends": "a.json"}, "b.json")
    text = failure("-c", write({"extends": "a.json"}))
    assert "forms a circle" in text and text.count("a.json") >= 2 and "b.json" in text
    text = failure("-c", write({"extends": "none.json"}))
    assert "none.json does not exist" in text and "c.json" in text


def test_k54_a_list_replaced_by_an_object_is_reported_where_it_is_written(failure, write):
    write({"extends": str(ROOT / "config.json"), "predict": {"scales": [1.0]}}, "parent.json")
    path = write('{"extends": "parent.json",\n "predict": {"scales": {"a": 1}}}')
    line, = (line for line in failure("-c", path).splitlines() if "predict.scales" in line)
    assert "expected list" in line and "c.json:2" in line


# --- the command line ---

@pytest.mark.parametrize("arguments, words", [
    (["trainer.epochs"], "expected KEY=VALUE"), (["a..b=1"], "not a path of keys"),
    (["trainer.eposch=2"], "Did you mean 'epochs'?"), (["name.x=2"], "has no keys"),
    (["loss.args.losses[9]=CE"], "expected an index below"), (["--epochs", "3"], "--epochs"),
    (["trainer.epochs=[1"], "never closed"), (["name=${NOT_SET_ANYWHERE}"], "is not set"),
    (["-r", "x.pth", "trainer.finetune_from=y.pth"], "trainer.finetune_from both choose"),
])
def test_k55_a_wrong_command_line_is_a_usage_error_that_leaves_nothing(failure, arguments, words):
    assert words in failure("-c", "config.json", *arguments)


def test_k55_fine_tuning_that_is_started_again_by_the_cluster_is_no_mistake():
    assert train.parse(["-r", "auto", "trainer.finetune_from=y.pth"]).resume == "auto"


def test_k57_more_gpus_than_there_are_is_refused(failure, monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "n_gpu is 4, but 0 GPU(s) are visible" in failure("-c", "config.json", "n_gpu=4")


@pytest.mark.parametrize("device, words", [("cuda:7", "device cuda:7 does not exist: 0 GPU(s)"),
                                           ("cuda", "device cuda does not exist"),
                                           ("gpu", "'gpu' is not a device")])
def test_k57_a_device_that_is_not_there_is_refused(failure, monkeypatch, device, words):
    import torch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert words in failure("-c", "config.json", "-d", device)


def test_k57_more_ranks_than_gpus_are_refused_before_cuda_is(monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: pytest.fail("CUDA was used"))
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2",
                        "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="device cuda:2 does not exist: 2 GPU"):
        distributed.start()


def test_n_gpu_0_is_the_cpu_even_if_there_is_a_gpu(monkeypatch):
    import torch

    from utils.training.run_setup import start_processes
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = {"n_gpu": 0, "seed": 0, "deterministic": False,
              "trainer": {"rank_timeout": 9.0, "average": "pixels"}}
    device = start_processes(SimpleNamespace(config=config, settle_start=lambda: None),
                             SimpleNamespace(device=None, dry_run=False))
    assert device == torch.device("cpu")


def test_k57_one_gpu_in_the_config_and_none_in_the_machine_is_a_notice(monkeypatch, capsys):
    import torch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert distributed.choose_processes(1) == 1 == distributed.choose_processes(None)
    assert "no GPU is visible: running on the CPU" in capsys.readouterr().err


# --- packages that are not installed ---

WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
sys.path.insert(0, ".")
import train
from utils.cli import console
sys.exit(console.run(train.main, sys.argv[2:]))
"""


def without(packages, *arguments):
    return program("-c", WITHOUT, packages, *arguments)


@pytest.mark.slow
def test_k56_a_training_needs_no_optional_package(tmp_path):
    """Runs in a new process (5 s, it imports torch), in which the packages are blocked."""
    result = without("tensorboard,scipy,timm,onnx,matplotlib,torchvision", "-c", "config.json",
                     *SMALL, "trainer.tensorboard=true", "train_loader.args.length=8",
                     "train_loader.args.num_workers=0", "trainer.epochs=1",
                     f"trainer.save_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    line, = (line for line in result.stderr.splitlines() if "tensorboard" in line)
    assert "not installed" in line and "pip install tensorboard" in line
    assert list(tmp_path.glob("shapes/*/last.pth"))


@pytest.mark.parametrize("package", ["scipy", "timm"])
def test_k56_what_needs_a_package_names_it(package, monkeypatch, capsys):
    def main(_):
        if package == "scipy":
            from pathlib import Path

            from dataloader.mat_labels import read_mat_label
            read_mat_label(Path("x.mat"), "LabelMap")
        from models.backbones.timm_adapter import TimmBackbone
        TimmBackbone("timm/resnet18")
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert console.run(main, []) == 2
    message = capsys.readouterr().err
    assert package in message and "Traceback" not in message
    required = "-r requirements.txt" if package == "scipy" else package
    assert f"pip install {required}" in message


# --- logs that cannot be written ---

def logged(logger):
    for step in range(2, 300):
        logger.scalars({"loss": 1.0}, step)
        logger.record("train", step, loss=1.0)
    logger.close()


def test_k58_a_full_disk_costs_a_warning_per_log_and_no_training(tmp_path, capfd):
    logger = RunLogger(tmp_path)
    with files_limited_to(500):
        logged(logger)
    text = capfd.readouterr().err
    assert text.count("warning:") == 2 and "Traceback" not in text
    for name in ("metrics.jsonl", "tensorboard"):
        assert f"{name} can no longer be written, the training continues: [Errno 27]" in text


def test_k58_a_folder_that_vanishes_costs_a_warning_per_log(tmp_path, capfd):
    logger = RunLogger(tmp_path / "run")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    os.makedirs(tmp_path / "other")
    logged(logger)
    text = capfd.readouterr().err
    assert text.count("warning:") == 2 and "Traceback" not in text


def test_k58_half_a_line_of_a_killed_writer_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tr')
    RunLogger(tmp_path, tensorboard=False, first_step=5).record("train", 6, loss=float("nan"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 6] and lines[1]["loss"] is None


def test_metrics_jsonl_contains_only_numbers_that_json_has(tmp_path):
    RunLogger(tmp_path, tensorboard=False).record(
        "train", 1, loss=float("inf"), parts=[-float("inf"), np.float32("nan"), 2.0])
    line = (tmp_path / "metrics.jsonl").read_text()
    assert "Infinity" not in line and json.loads(line)["parts"] == [None, None, 2.0]


def test_k50_types_are_looked_up_among_components_alone(failure):
    for name in ("os.system", "torch", "__class__", "BaseModel"):
        assert f"unknown type {name!r}" in failure("-c", "config.json", f"arch.type={name}")
        with pytest.raises(ConfigError):
            from utils.config.build import build
            build("models", name, num_classes=2)
