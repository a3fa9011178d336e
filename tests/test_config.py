"""Loading, merging, overriding, checking and building from configs."""
import copy
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.config import (apply_overrides, build, describe, json_schema, load_config,
                          resolve_config, save_config, split_args)
from utils.config_schema import Component, experiment, section_callables
from utils.errors import ConfigError, DataError
from utils.registry import KINDS, components
from utils.signature import REQUIRED, fields, fits, parameters

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = [ROOT / "config.json", *sorted((ROOT / "configs").rglob("*.json"))]
# The block that the READMEs of yassouali/pytorch-segmentation and RankDice show.
README = """{
"name": "PSPNet",                 // training session name
"n_gpu": 1,                       // number of GPUs
"use_synch_bn": true,             // synchronised batch norm
"arch": {"type": "PSPNet",        // name of the architecture
         "args": {"backbone": "resnet50", "freeze_bn": false, "freeze_backbone": false}},
"train_loader": {"type": "VOC",   // name of the dataset
    "args": {"data_dir": "data/", "batch_size": 32, "augment": true, "crop_size": 380,
             "shuffle": true, "base_size": 400, "scale": true, "flip": true, "rotate": true,
             "blur": true, "split": "train_aug", "num_workers": 8}},
"val_loader": {"type": "VOC",     // the same for validation
    "args": {"data_dir": "data/", "batch_size": 32, "crop_size": 480, "val": true,
             "split": "val", "num_workers": 4}},
"optimizer": {"type": "SGD", "differential_lr": true,
              "args": {"lr": 0.01, "weight_decay": 1e-4, "momentum": 0.9}},
"loss": "CrossEntropyLoss2d",     // loss
"ignore_index": 255,
"lr_scheduler": {"type": "Poly", "args": {}},
"trainer": {"epochs": 80, "save_dir": "saved/", "save_period": 10, "monitor": "max Mean_IoU",
            "early_stop": 10, "tensorboard": true, "log_dir": "saved/runs", "log_per_iter": 20,
            "val": true, "val_per_epochs": 5}
}"""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["CE", "PSPNet", "MixedLoss", "max", "auto", "type", "args", "~", "${X"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "args", "losses", "out", "aux", "lr", "weight"])
                      | st.text(max_size=3), inner, max_size=3), max_leaves=8)


def places_in(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()
    for key, item in items:
        yield from places_in(item, (*path, key))


class VOC:
    """A dataset of 21 classes without files."""

    num_classes = 21
    splits = ("train", "train_aug", "val", "test", "none")

    def __init__(self, data_dir: str, split: str, ignore_index: int = 255, seed: int = 0,
                 augmentation=None):
        if split == "none":
            raise DataError("no such split")


@pytest.fixture(autouse=True)
def voc(monkeypatch):
    monkeypatch.setitem(components("datasets"), "VOC", VOC)


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path
    return write


def small(**changes):
    return {"arch": {"type": "PSPNet"},
            "train_loader": {"type": "VOC", "args": {"data_dir": "d", "split": "train"}},
            "optimizer": {"type": "SGD", "args": {"lr": 0.1}}, "loss": "CrossEntropyLoss2d",
            "trainer": {"epochs": 2, "val": False}, **changes}


def mistakes(config, **options):
    with pytest.raises(ConfigError) as caught:
        resolve_config(config, **options)
    header, *lines = str(caught.value).splitlines()
    assert re.match(rf"{len(lines)} mistakes? in ", header)
    return [line.strip() for line in lines]


def only_mistake(config):
    lines = mistakes(config)
    assert len(lines) == 1, lines
    return lines[0]


# --- files ---

def test_the_readme_block_of_rankdice_loads_unchanged(write):
    resolved = resolve_config(load_config(write("c.json", README)))
    assert resolved["arch"]["args"]["backbone"] == "resnet50"
    assert resolved["train_loader"]["args"]["crop_size"] == 380
    assert resolved["val_loader"]["args"]["val"] is True
    assert resolved["optimizer"]["differential_lr"] is True
    assert resolved["loss"]["type"] == "CrossEntropyLoss2d"
    assert resolved["trainer"]["val_per_epochs"] == 5


def test_the_predict_section_of_rankdice_loads_unchanged():
    predict = {"CoI": [0, 1], "train": "T", "val": "max", "test": "rankdice"}
    resolved = resolve_config(small(predict=predict))["predict"]
    assert predict.items() <= resolved.items()
    assert resolved["temperature"] == 1.0 and resolved["mode"] == "whole"


def test_parents_merge_in_order_and_the_child_wins(write):
    write("base/a.json", {"name": "a", "seed": 1, "trainer": {"epochs": 1, "val": False}})
    write("base/b.json", {"seed": 2, "trainer": {"epochs": 2}})
    child = write("c.json", {"extends": ["base/a.json", "base/b.json"],
                             "$schema": "config.schema.json", "trainer": {"epochs": 3}})
    assert load_config(child) == {"name": "a", "seed": 2, "trainer": {"epochs": 3, "val": False}}


def test_a_parent_is_found_relative_to_the_file_that_names_it(write):
    write("base/root.json", {"seed": 5})
    write("base/a.json", {"extends": "root.json"})
    assert load_config(write("c.json", {"extends": "base/a.json"})) == {"seed": 5}


def test_a_new_type_drops_the_arguments_of_the_parent_and_nothing_else(write):
    write("a.json", {"optimizer": {"type": "SGD", "differential_lr": True,
                                   "args": {"momentum": 0.9}},
                     "arch": {"type": "PSPNet", "args": {"bins": [1], "backbone": "resnet18"}}})
    child = write("c.json", {"extends": "a.json",
                             "optimizer": {"type": "Adam", "args": {"lr": 1}},
                             "arch": {"type": "PSPNet", "args": {"bins": [2]}}})
    assert load_config(child) == {
        "optimizer": {"type": "Adam", "differential_lr": True, "args": {"lr": 1}},
        "arch": {"type": "PSPNet", "args": {"bins": [2], "backbone": "resnet18"}}}


@pytest.mark.parametrize("old, new", [
    ({"type": "CE", "args": {}}, {"out": "CE", "aux": "CE"}),
    ({"out": "CE", "aux": "CE"}, {"type": "CE"}),
    ("CE", {"out": "CE"}), ({"out": "CE"}, "CE"), ({"type": "CE"}, ["CE", "CE"]),
])
def test_a_loss_of_another_form_replaces_the_parents(write, old, new):
    write("a.json", {"loss": old})
    assert load_config(write("c.json", {"extends": "a.json", "loss": new})) == {"loss": new}


def test_losses_of_the_same_form_merge(write):
    write("a.json", {"loss": {"out": {"type": "CE"}, "aux": {"type": "CE", "weight": 0.4}}})
    child = write("c.json", {"extends": "a.json", "loss": {"aux": {"weight": 1}}})
    assert load_config(child)["loss"] == {"out": {"type": "CE"},
                                          "aux": {"type": "CE", "weight": 1}}


def test_a_circle_of_parents_is_shown_as_a_chain(write):
    write("a.json", {"extends": "b.json"})
    write("b.json", {"extends": "c.json"})
    path = write("c.json", {"extends": "a.json"})
    with pytest.raises(ConfigError, match=r"c\.json -> .*a\.json -> .*b\.json -> .*c\.json"):
        load_config(path)


def test_a_missing_parent_is_named_with_the_chain_that_led_to_it(write):
    write("a.json", {"extends": "none.json"})
    path = write("c.json", {"extends": "a.json"})
    with pytest.raises(ConfigError, match=r"none\.json does not exist") as caught:
        load_config(path)
    assert re.search(r"c\.json -> .*a\.json -> .*none\.json", str(caught.value))


def test_a_section_replaced_by_another_kind_of_value_is_reported_where_it_is_written(write):
    write("a.json", small(loss=["CE", "CE"], loss_weights=[1, 0.4]))
    path = write("c.json", '{"extends": "a.json",\n"loss_weights": {"out": 1}, "trainer": []}')
    weights, trainer = mistakes(load_config(path))
    assert re.match(r"loss_weights: expected list of float or null, .*c\.json:2", weights)
    assert re.match(r"trainer: expected an object .*c\.json:2", trainer)


@given(st.data())
@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_parents_merge_and_every_key_knows_its_place(tmp_path, data):
    section = st.dictionaries(st.sampled_from(["type", "args", "x"]), JSON, max_size=3)
    config = st.dictionaries(st.sampled_from(["loss", "arch", "a"]), JSON | section, max_size=3)
    for name, extends in [("a", []), ("b", []), ("c", ["a.json", "b.json"])]:
        text = json.dumps({**data.draw(config), "extends": extends}).replace("NaN", "0")
        (tmp_path / f"{name}.json").write_text(text.replace("Infinity", "1"))
    try:
        loaded = load_config(tmp_path / "c.json")
    except ConfigError as error:
        assert "is not set" in str(error)
        return
    assert set(loaded.places) == {place for place in places_in(loaded) if place}


@pytest.mark.parametrize("parents", [1, [1], {"a": 1}, None])
def test_extends_takes_paths_alone(write, parents):
    with pytest.raises(ConfigError, match=r"path or a list of paths(.|\n)*c\.json:1"):
        load_config(write("c.json", {"extends": parents}))


@pytest.mark.parametrize("text", ["[]", "1", '"x"', "null"])
def test_a_config_is_an_object(write, text):
    with pytest.raises(ConfigError, match="object"):
        load_config(write("c.json", text))


def test_variables_and_the_home_folder_expand_in_strings(write, monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("HOME", "/home/me")
    path = write("c.json", {"a": "${DATA}/x${DATA}", "b": ["~/y", "a~", "$DATA"], "n": 1})
    assert load_config(path, ["c=${DATA}", "b+=~/z"]) == {
        "a": "/data/x/data", "b": ["/home/me/y", "a~", "$DATA", "/home/me/z"], "n": 1,
        "c": "/data"}


def test_unset_variables_are_named_with_their_keys_and_lines(write, monkeypatch):
    monkeypatch.delenv("NO_SUCH", raising=False)
    path = write("c.json", '{"a": {\n"b": "${NO_SUCH}/x"},\n"c": ["${NO_SUCH}"]}')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    first, second = str(caught.value).splitlines()
    assert re.match(r"a\.b \(.*c\.json:2\): .*'NO_SUCH' is not set", first)
    assert re.match(r"c\[0\] \(.*c\.json:3\): ", second)
    assert load_config(path, ["a.b=x", "c=[]"]) == {"a": {"b": "x"}, "c": []}


def test_a_syntax_error_is_reported_before_torch_is_imported(write):
    path = write("c.json", '{"a": 1,\n "b" 2}')
    code = ("import sys\nfrom utils import config\n"
            f"try: config.load_config({str(path)!r})\n"
            "except ValueError as error: print(error)\n"
            "print('torch' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                         check=True).stdout
    assert "c.json:2:6" in out and out.endswith("False\n")


# --- overrides ---

@pytest.mark.parametrize("override, expected", [
    ("a.b=5", {"b": 5, "l": [1, {"c": 2}]}),
    ("a.b=1e-3", {"b": 1e-3, "l": [1, {"c": 2}]}),
    ("a.b=true", {"b": True, "l": [1, {"c": 2}]}),
    ("a.b=null", {"b": None, "l": [1, {"c": 2}]}),
    ("a.b=max Mean_IoU", {"b": "max Mean_IoU", "l": [1, {"c": 2}]}),
    ("a.b=", {"b": "", "l": [1, {"c": 2}]}),
    ("a.b=x=y", {"b": "x=y", "l": [1, {"c": 2}]}),
    ("a.b=//nas/data", {"b": "//nas/data", "l": [1, {"c": 2}]}),
    ('a.b="5"', {"b": "5", "l": [1, {"c": 2}]}),
    ("a.b=[1, 2]", {"b": [1, 2], "l": [1, {"c": 2}]}),
    ("a.b.c=1", None),
    ("a.n.m=1", {"b": 0, "l": [1, {"c": 2}], "n": {"m": 1}}),
    ("a.l[0]=7", {"b": 0, "l": [7, {"c": 2}]}),
    ("a.l.0=7", {"b": 0, "l": [7, {"c": 2}]}),
    ("a.l[1].c=7", {"b": 0, "l": [1, {"c": 7}]}),
    ("a.l+=3", {"b": 0, "l": [1, {"c": 2}, 3]}),
    ("a.l+=[3]", {"b": 0, "l": [1, {"c": 2}, [3]]}),
    ("a.n+=x", {"b": 0, "l": [1, {"c": 2}], "n": ["x"]}),
    ("a.l[2]=7", None), ("a.l[-1]=7", None), ("a.l.x=7", None), ("a.b+=1", None),
    ("a.b", None), ("=1", None), ("a..b=1", None), (".=1", None), ("a.b={1}", None),
    ("a.b=[1", None), ('a.b="x', None), ("a.b=${NO_SUCH}", None),
])
def test_overrides(override, expected):
    config = {"a": {"b": 0, "l": [1, {"c": 2}]}}
    if expected is None:
        with pytest.raises(ConfigError) as caught:
            apply_overrides(config, [override])
        assert "command line" in str(caught.value)
    else:
        assert apply_overrides(config, [override]) == {"a": expected}
    assert config == {"a": {"b": 0, "l": [1, {"c": 2}]}}


def test_a_new_type_on_the_command_line_drops_the_files_arguments_but_not_those_beside_it():
    config = {"arch": {"type": "PSPNet", "args": {"bins": [1]}}}
    overrides = ["arch.args.backbone=resnet18", "arch.type=DeepLab"]
    assert apply_overrides(config, overrides) == {
        "arch": {"type": "DeepLab", "args": {"backbone": "resnet18"}}}


def test_digits_typed_for_a_text_key_stay_text():
    assert resolve_config(apply_overrides(small(), ["name=0050"]))["name"] == "0050"
    assert resolve_config(apply_overrides(small(), ["name=1e3"]))["name"] == "1e3"
    assert "name: expected string, found 50 (int)" in only_mistake(small(name=50))


def test_a_misspelt_override_is_answered_with_the_nearest_key():
    config = apply_overrides(small(), ["trainer.epoch=5"])
    assert only_mistake(config) == \
        "trainer.epoch: unknown key. Did you mean 'epochs'? (command line)"


# --- checking ---

def test_five_mistakes_at_five_levels_give_one_message_of_five_lines(write):
    write("base.json", '{"trainer": {"epochs": 2, "val": false,\n  "eary_stop": 3}}')
    config = small(extends="base.json", trianer={},
                   arch={"type": "PSPNet", "args": {"bakcbone": "resnet18"}},
                   loss={"type": "MixedLoss", "args": {"losses": [
                       {"type": "CE"}, {"type": "DiceLoss", "args": {"smoth": 1}}]}})
    del config["trainer"]
    config["optimizer"]["tpye"] = 1
    path = write("c.json", json.dumps(config, indent=0))
    with pytest.raises(ConfigError) as caught:
        resolve_config(load_config(path), str(path))
    header, *lines = str(caught.value).splitlines()
    assert header == f"5 mistakes in {path}"
    assert len(lines) == 5
    for start, near, file in [
            ("trianer", "trainer", "c.json"), ("arch.args.bakcbone", "backbone", "c.json"),
            ("optimizer.tpye", "type", "c.json"),
            ("trainer.eary_stop", "early_stop", "base.json:2"),
            ("loss.args.losses[1].args.smoth", "smooth", "c.json")]:
        line = next(line for line in lines if line.startswith(f"  {start}: unknown key."))
        assert f"Did you mean {near!r}?" in line and file in line


@pytest.mark.parametrize("path, value, words", [
    ("trainer.epochs", 2.5, "expected int or null, found 2.5 (float)"),
    ("trainer.epochs", True, "expected int or null, found true"),
    ("trainer.epochs", "2", 'found "2" (string). Write 2 without quotes'),
    ("trainer.val", 0, "expected bool, found 0 (int)"),
    ("trainer.val", "False", "Write false without quotes"),
    ("trainer.amp", "bf15", 'one of "auto", "bf16", "fp16", false, found "bf15" (string). '
                            'Did you mean "bf16"?'),
    ("trainer.amp", 0, "found 0 (int)"),
    ("optimizer.args.lr", "0.01", "expected float"),
    ("optimizer.args.lr", float("nan"), "expected float, found NaN (float)"),
    ("optimizer.args.lr", None, "expected float, found null"),
    ("optimizer.args.lr", True, "expected float, found true"),
    ("arch.args.bins", 3, "expected list, found 3 (int)"),
    ("arch.args.bins", {"a": 1}, "expected list"),
    ("arch.args", [], "expected an object with the arguments, found []"),
    ("arch.type", 5, "expected a name, found 5 (int)"),
    ("arch", [], "expected {"), ("arch", None, "expected {"),
    ("trainer", "x", "expected an object"),
    ("seed", -1, "at least 0"), ("n_gpu", -1, "at least 0"), ("seed", 1.0, "expected int"),
    ("n_gpu", "all", "expected int or null"),
    ("loss_weights", [1, "a"], "expected list of float or null"),
    ("loss", 3, 'expected {"type": NAME, "args": {...}} or a name'),
    ("loss", {}, 'missing key "type"'),
    ("val_loader", 1, "expected {"), ("predict", None, "expected an object"),
])
def test_a_value_of_the_wrong_type_is_shown_with_what_was_expected(path, value, words):
    config = small()
    *parents, key = path.split(".")
    holder = config
    for parent in parents:
        holder = holder.setdefault(parent, {})
    holder[key] = value
    lines = mistakes(config)
    assert lines[0].startswith(f"{path}: ") and words in lines[0], lines


def test_an_int_serves_for_a_float_and_a_list_for_a_tuple():
    config = resolve_config(small(optimizer={"type": "Adam", "args": {"lr": 1, "betas": [0, 0.9]}}))
    assert config["optimizer"]["args"]["betas"] == [0, 0.9]
    line = only_mistake(small(optimizer={"type": "Adam", "args": {"betas": [0.9]}}))
    assert "optimizer.args.betas: expected list [float, float], found [0.9]" in line


@pytest.mark.parametrize("section", ["arch", "train_loader", "optimizer", "loss", "trainer"])
def test_a_missing_section_is_a_mistake(section):
    config = small()
    del config[section]
    assert only_mistake(config).startswith(f"{section}: missing; expected ")


def test_an_unknown_type_is_answered_with_the_nearest_and_all_known_names():
    line = only_mistake(small(arch={"type": "PSPnett", "args": {"x": 1}}))
    assert line.startswith("arch.type: unknown type 'PSPnett'. Did you mean 'PSPNet'? Known: ")
    assert "ENet" in line


def test_a_missing_argument_is_a_mistake():
    line = only_mistake(small(train_loader={"type": "VOC", "args": {"split": "train"}}))
    assert line == "train_loader.args.data_dir: missing; expected string"


@pytest.mark.parametrize("path, key", [
    ("arch.args", "num_classes"), ("train_loader.args", "ignore_index"),
    ("train_loader.args", "seed"), ("train_loader.args", "world_size"),
    ("optimizer.args", "params"), ("trainer", "folder"),
])
def test_what_the_program_provides_is_no_key_of_a_config(path, key):
    config = apply_overrides(small(), [f"{path}.{key}=1"])
    assert only_mistake(config).startswith(f"{path}.{key}: is set by the program")


def test_an_unknown_backbone_is_found_before_the_model_is_built():
    line = only_mistake(small(arch={"type": "PSPNet", "args": {"backbone": "resnet51"}}))
    assert line.startswith("arch.args.backbone: unknown backbone 'resnet51'. Did you mean 'resnet")
    assert resolve_config(small(arch={"type": "PSPNet", "args": {"backbone": "timm/any"}}))


def test_the_resolved_config_has_every_default_and_is_its_own_resolution():
    resolved = resolve_config(small(), "c.json")
    assert list(resolved) == list(fields(experiment))
    assert resolved["lr_scheduler"]["args"]["power"] == 0.9
    assert resolved["arch"]["args"]["freeze_bn"] is False
    assert resolved["train_loader"]["args"]["batch_size"] == 8
    assert resolved["predict"]["val"] == "max"
    assert resolved["val_loader"] is None and resolved["ignore_index"] == 255
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolve_config(resolved) == resolved


def test_what_a_mirror_swaps_comes_from_the_dataset_into_every_prediction():
    from utils.predictor import build_predictor
    lip = {"type": "LIP", "args": {"data_dir": "x", "split": "train"}}
    mixture = {"type": "Mixture", "args": {"parts": [lip, lip]}}
    for section in (lip, mixture):
        resolved = resolve_config(small(train_loader=section, predict={"flip": True}))
        assert resolved["predict"]["label_pairs"] == [[14, 15], [16, 17], [18, 19]]
        assert resolve_config(resolved) == resolved
        predictor = build_predictor(None, None, resolved["predict"])
        assert predictor.flip and [list(pair) for pair in predictor.label_pairs] == \
            resolved["predict"]["label_pairs"]
    own = resolve_config(small(train_loader=lip, predict={"label_pairs": [[1, 2]]}))
    assert own["predict"]["label_pairs"] == [[1, 2]]
    assert resolve_config(small())["predict"]["label_pairs"] == []


def test_how_torch_computes_a_step_is_written_only_when_asked_for():
    assert "fused" not in resolve_config(small())["optimizer"]["args"]
    config = apply_overrides(small(), ["optimizer.args.fused=false"])
    assert resolve_config(config)["optimizer"]["args"]["fused"] is False


def test_resolving_leaves_the_given_config_alone():
    config = small(predict={"CoI": [0]})
    before = copy.deepcopy(config)
    resolved = resolve_config(config)
    resolved["predict"]["CoI"].append(1)
    resolved["train_loader"]["args"]["split"] = "x"
    assert config == before
    assert resolve_config(small())["lr_scheduler"]["type"] == "Poly"


def test_a_constant_rate_is_spelt_null():
    resolved = resolve_config(small(lr_scheduler=None))
    assert resolve_config(resolved) == resolved
    import torch
    from utils.lr_scheduler import build_scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = build_scheduler(resolved["lr_scheduler"], optimizer, 10, 5)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == 0.3


def test_schedulers_take_what_the_program_knows_from_the_program():
    resolved = resolve_config(small(lr_scheduler={"type": "CosineAnnealingLR"}))
    assert resolved["lr_scheduler"]["args"]["T_max"] is None
    assert resolve_config(small(lr_scheduler="OneCycle"))["lr_scheduler"]["args"]["pct"] == 0.3
    line = only_mistake(small(lr_scheduler={"type": "Poly", "args": {"total_steps": 5}}))
    assert "is set by the program" in line
    line = only_mistake(small(lr_scheduler={"type": "StepLR"}))
    assert line == "lr_scheduler.args.step_size: missing; expected int"


# --- losses ---

def test_every_form_of_a_loss_resolves_with_its_defaults():
    one = {"type": "CE", "args": resolve_config(small(loss="CE"))["loss"]["args"]}
    assert "ignore_index" not in one["args"] and "weight" in one["args"]
    forms = [("CE", one), ({"type": "CE"}, one), (["CE", {"type": "CE"}], [one, one]),
             ({"out": "CE", "aux": {"type": "CE", "weight": 0.4, "target": "label"}},
              {"out": one, "aux": {**one, "weight": 0.4, "target": "label"}})]
    for form, expected in forms:
        assert resolve_config(small(loss=form))["loss"] == expected


def test_losses_within_a_loss_are_checked_at_any_depth():
    inner = {"type": "MixedLoss", "args": {"losses": [{"type": "CE", "weigth": 2}, "DiceLos", 3]}}
    lines = mistakes(small(loss={"type": "MixedLoss", "args": {"losses": ["CE", inner]}}))
    where = "loss.args.losses[1].args.losses"
    assert [line.partition(": ")[0] for line in lines] == [
        f"{where}[0].weigth", f"{where}[1].type", f"{where}[2]"]
    resolved = resolve_config(small(loss={"type": "MixedLoss", "args": {"losses": ["CE"]}}))
    assert resolved["loss"]["args"]["losses"][0]["weight"] == 1.0


@pytest.mark.parametrize("changes, line", [
    ({"loss": {"out": "CE", "au": "CE"}}, "loss.au: unknown output 'au'. Did you mean 'aux'?"),
    ({"loss": ["CE", "CE", "CE"]}, "loss: 3 losses; PSPNet has 2 outputs: out, aux"),
    ({"loss": ["CE", "CE"], "loss_weights": [1.0]}, "loss_weights: expected 2 weights"),
    ({"loss": "CE", "loss_weights": [1.0, 0.4]}, "loss_weights: has an effect only when"),
    ({"ignore_index": 20}, "ignore_index: 20 is a class of the dataset (0 to 20)"),
    ({"test_loader": {"type": "VOC", "args": {"data_dir": "d", "split": "tst"}}},
     "test_loader.args.split: unknown split 'tst'. Did you mean 'test'?"),
    ({"trainer": {"epochs": 2}}, "trainer.val: is true, but there is no val_loader"),
    ({"trainer": {"val": False}}, "trainer: expected exactly one of epochs and iterations"),
    ({"trainer": {"epochs": 0, "val": False}}, "trainer.epochs: expected at least 1"),
    ({"trainer": {"epochs": 2, "val": False, "monitor": "max Mean_IOU"}},
     "trainer.monitor: unknown metric 'Mean_IOU'. Did you mean 'Mean_IoU'?"),
    ({"trainer": {"epochs": 2, "val": False, "monitor": "Mean_IoU"}}, "trainer.monitor: expected"),
    ({"predict": {"val": "mxa"}}, 'predict.val: expected one of "max", "T", '),
    ({"predict": {"overlap": 1}}, "predict.overlap: "),
    ({"predict": {"temperature": 0}}, "predict.temperature: "),
    ({"predict": {"val": "T", "threshold": 2}}, "predict.threshold: "),
    ({"predict": {"CoI": "some"}}, 'predict.CoI: expected "all" or a list of classes'),
    ({"predict": {"CoI": [0, 21]}}, "predict.CoI: expected classes from 0 to 20, found 21 (int)"),
    ({"predict": {"scales": [0.5]}}, "predict.scales: "),
])
def test_settings_that_contradict_each_other_or_their_range_are_found(changes, line):
    assert only_mistake(small(**changes)).startswith(line)


def test_data_sets_of_different_classes_do_not_go_together(monkeypatch):
    class Other(VOC):
        num_classes = 19
    monkeypatch.setitem(components("datasets"), "Other", Other)
    line = only_mistake(small(test_loader={"type": "Other",
                                           "args": {"data_dir": "d", "split": "test"}}))
    assert line.startswith("test_loader.type: Other has 19 classes, the training set VOC has 21")


def test_a_setting_out_of_range_is_found_beside_a_misspelt_one():
    lines = mistakes(small(trainer={"epcohs": 2, "save_every": -1, "val": False, "ema": "x"}))
    assert [line.partition(": ")[0] for line in lines] == ["trainer.epcohs", "trainer.ema",
                                                           "trainer.save_every"]


# --- building ---

def test_shared_arguments_go_to_every_callable_that_declares_them():
    def one(a: int, size: tuple[int, int] | None = None, both: tuple = ()): ...
    def two(both: list, c: float = 0.0): ...
    section = {"type": "X", "args": {"a": 1, "size": [2, 3], "both": [4], "c": 1}}
    first, second = split_args(section, one, two)
    assert first == {"a": 1, "size": (2, 3), "both": (4,)}
    assert second == {"both": [4], "c": 1}
    with pytest.raises(ConfigError, match="unknown argument 'sise'. Did you mean 'size'"):
        split_args({"type": "X", "args": {"sise": 1}}, one, two)


def test_build_gives_a_component_its_arguments_and_what_the_program_provides():
    section = {"type": "ENet", "args": {"freeze_bn": True}}
    model = build("models", section, num_classes=5, seed=3)
    assert model._freeze_bn and not model._freeze_backbone
    assert type(model).__name__ == "ENet"


def test_build_turns_a_refused_value_into_a_config_error_and_leaves_other_errors_alone():
    section = {"type": "VOC", "args": {"data_dir": "d", "split": "none"}}
    with pytest.raises(DataError, match="no such split"):
        build("datasets", section, ignore_index=255)
    with pytest.raises(ConfigError, match="SGD: Invalid learning rate"):
        import torch
        build("optimizers", {"type": "SGD", "args": {"lr": -1.0}},
              params=[torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match="VOC needs the argument 'split'"):
        build("datasets", {"type": "VOC", "args": {"data_dir": "d"}})
    with pytest.raises(ConfigError, match="unknown type 'VOD'. Did you mean 'VOC'?"):
        build("datasets", {"type": "VOD"})


# --- what --list and --schema say ---

def test_the_list_of_everything_names_every_component():
    text = describe()
    for kind in set(KINDS) - {"backbones"}:
        assert all(name in text for name in components(kind)), kind
    assert "resnet50" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_a_kind_shows_arguments_types_and_defaults(kind):
    text = describe(kind)
    for cls in components(kind).values():
        if kind == "backbones" and not cls.aliases:
            continue        # chosen by a prefix, not by name
        assert (inspect.getdoc(cls) or "").partition("\n")[0] in text
        for name in Component(kind).fields(cls)[0]:
            assert re.search(rf"^    {name} +\S", text, re.M), (cls, name)
        for name in Component(kind).fields(cls)[1] - {"dataset", "seed", "training"}:
            assert not re.search(rf"^    {name} +\S", text, re.M) or kind == "schedulers"


def test_one_component_is_described_with_its_whole_docstring():
    text = describe("models", "PSPNet")
    assert re.search(r'backbone +string += "resnet50"', text)
    assert "freeze_backbone" in text and "aux 0.4" in text
    assert "output stride 8" in text
    assert 'amp             one of "auto", "bf16"' in describe("trainer")
    assert "temperature" in describe("predict") and "overlap" in describe("predict")
    assert "use_synch_bn" in describe("config")


def test_an_unknown_name_or_kind_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'models'"):
        describe("model")
    with pytest.raises(ConfigError, match="Did you mean 'PSPNet'"):
        describe("models", "pspnet")


def test_the_schema_is_valid_and_accepts_what_the_program_accepts():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    from utils.jsonc import parse_jsonc
    for config in (parse_jsonc(README), small(), resolve_config(small()),
                   small(loss={"out": "CE", "aux": {"type": "MixedLoss", "args": {
                       "losses": ["CE", {"type": "DiceLoss", "weight": 2}]}}}),
                   {"extends": "x.json", "arch": {"args": {"backbone": "resnet18"}}}):
        validator.validate(config)


@pytest.mark.parametrize("override", [
    "trianer=1", "trainer.eary_stop=1", "trainer.epochs=2.5", "trainer.amp=bf15",
    "arch.type=PSPnet", "arch.args.bakcbone=x", "optimizer.args.lr=true", "optimizer.tpye=SGD",
    "loss=CEE",
    "train_loader.args.num_classes=3", "lr_scheduler.type=Polly", "predict.mode=slide",
    'loss={"type":"MixedLoss","args":{"losses":[{"type":"CE","args":{"x":1}}]}}',
])
def test_the_schema_refuses_a_typo_as_the_program_does(override):
    config = apply_overrides(resolve_config(small()), [override])
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(config)
    mistakes(config)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_is_sound(path, monkeypatch):
    for name in set(re.findall(r"\$\{(\w+)\}", path.read_text(encoding="utf-8"))):
        monkeypatch.setenv(name, "data")
    config = load_config(path)
    resolved = resolve_config(config, str(path))
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(dict(config))
    validator.validate(resolved)
    assert resolve_config(resolved) == resolved


# --- the signatures themselves ---

@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"optimizers"}))
def test_every_argument_has_a_type_and_a_default_that_fits_it(kind):
    for name, cls in components(kind).items():
        if cls.__module__.startswith("torch."):
            continue
        provided = Component(kind).fields(cls)[1]
        own = cls.__init__ if "__init__" in vars(cls) else None
        kinds = [p.kind for p in inspect.signature(own or cls).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{name} swallows misspelt arguments"
        for key, (annotation, default) in parameters(cls).items():
            if key not in provided:
                assert key in inspect.get_annotations(cls.__init__), f"{name}: {key} has no type"
                if default is not REQUIRED:
                    assert fits(default, annotation), f"{name}: {key} = {default!r}"


def test_one_flat_section_has_one_default_for_a_shared_key():
    for kind in ("models", "datasets"):
        for name, cls in components(kind).items():
            seen = {}
            provided = Component(kind).fields(cls)[1]
            for function in section_callables(kind, cls):
                for key, field in fields(function, leave_out=provided).items():
                    assert seen.setdefault(key, field.default) == field.default, (name, key)


def test_types_of_json_values_are_told_apart():
    assert fits(1, float) and fits(1, int | None) and fits(None, int | None)
    assert fits([1, 2], tuple[int, ...]) and fits([1, 2], tuple[int, int]) and fits([], list[int])
    assert fits([[1, 2.5]], list[tuple[int, float]]) and fits({"a": 1}, dict[str, int])
    for value, annotation in [(True, int), (True, float), (1, bool), ("1", int), (1, str),
                              (1.0, int), (float("inf"), float), ([1], tuple[int, int]),
                              (["a"], list[int]), ({"a": "b"}, dict[str, int]), ("ab", list),
                              (None, str), (1, type(None)), ("x", object.__class__)]:
        assert not fits(value, annotation), (value, annotation)


# --- saving ---

def test_a_saved_config_reads_back_the_same_and_leaves_nothing_beside_it(tmp_path):
    resolved = resolve_config(small(name="Größe \U0001f6b2"))
    path = tmp_path / "config.json"
    save_config({"old": True}, path)
    save_config(resolved, path)
    assert load_config(path) == resolved
    assert os.listdir(tmp_path) == ["config.json"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_config_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "config.json"
    save_config({"old": True}, path)
    with pytest.raises(ValueError):
        save_config({"bad": float("nan")}, path)
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["config.json"]
    with pytest.raises(ConfigError, match="cannot be written"):
        save_config({}, tmp_path / "none" / "config.json")


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- anything at all ---

@given(st.data())
@settings(max_examples=250, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_config_resolves_or_is_a_config_error(data):
    """Seconds: hundreds of configs are made up and resolved."""
    config = small(predict={"CoI": [0, 1]}, loss={"out": {"type": "MixedLoss", "args": {
        "losses": [{"type": "CE", "args": {}}]}}, "aux": "CE"}, lr_scheduler={"type": "StepLR"},
        val_loader={"type": "VOC", "args": {"data_dir": "d", "split": "val"}})
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in places_in(config) if p]))
        holder = config
        for key in path[:-1]:
            holder = holder[key]
        action = data.draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "delete":
            del holder[path[-1]]
        elif action == "replace" or isinstance(holder, list):
            holder[path[-1]] = data.draw(JSON)
        else:
            holder[data.draw(st.text(max_size=5))] = data.draw(JSON)
        if not config:
            break
    try:
        resolved = resolve_config(config)
    except ConfigError as error:
        assert len(str(error).splitlines()) > 1
        return
    assert json.loads(json.dumps(resolved, allow_nan=False)) == resolved
    assert resolve_config(resolved) == resolved


@given(st.lists(st.tuples(
    st.sampled_from(["arch", "loss", "trainer.epochs", "train_loader.args", "a", "loss[0]", "x.0",
                     "optimizer.args.lr", "arch.type", "predict.CoI", "extends"])
    | st.text("a.[0]", max_size=6), st.sampled_from(["=", "+=", ""]),
    st.text('{}[]",:1ae~$', max_size=6) | JSON.map(json.dumps)), max_size=3))
@settings(max_examples=250, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_override_is_taken_or_a_config_error(parts):
    try:
        resolve_config(apply_overrides(small(), ["".join(part) for part in parts]))
    except ConfigError:
        pass
