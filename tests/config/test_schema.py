"""Checking whole configs and adding the defaults."""
import copy
import functools
import json
import re

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.config.samples import JSON, README, mistakes, only_mistake, places_in, small
from tests.support.places import ROOT
from utils.config.docs import json_schema
from utils.config.load import apply_overrides, load_config, load_stages, with_config
from utils.config.recipes import recipe_files
from utils.config.registry import components
from utils.config.schema import Component, config_keys, resolve_config, section_callables
from utils.config.signature import fields
from utils.errors import ConfigError
from utils.files.jsonc import read_jsonc

SHIPPED = [ROOT / "config.json", *recipe_files()]


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


def test_a_wrong_environment_variable_is_no_mistake_of_the_config(monkeypatch):
    monkeypatch.setenv("SEGWRIGHT_MAX_PIXELS", "100M")
    with pytest.raises(ConfigError, match="'100M' is not a number of pixels") as caught:
        with_config({"config": small()})
    assert caught.value.where == "SEGWRIGHT_MAX_PIXELS"
    assert "such as 200000000" in (caught.value.fix or "")


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


@pytest.mark.parametrize("override, meant", [
    ("epochs=2", "trainer.epochs"), ("lr=0.1", "optimizer.args.lr"),
    ("lrr=0.1", "optimizer.args.lr"),
    ("batch_size=2", "train_loader.args.batch_size or val_loader.args.batch_size"),
    ("train_loader.batch_size=2", "train_loader.args.batch_size"),
    ("optimizer.lr=1", "optimizer.args.lr"), ("optimizer.args.learning_rate=1", "'lr'"),
    ("optimizer.args.differential_lr=true", "optimizer.differential_lr"),
    ("max_epochs=3", "trainer.epochs"), ("backbone=resnet18", "arch.args.backbone"),
    ("trainer.seed=1", "the top-level key seed"), ("model=PSPNet", "'arch'"),
    ("loss.args.weights=[1]", "'weight'"), ("CoI=[1]", "predict.CoI"),
])
def test_an_unknown_key_is_looked_up_at_every_level(override, meant):
    config = small(val_loader={"type": "VOC", "args": {"data_dir": "d", "split": "val"}})
    line = only_mistake(apply_overrides(config, [override]))
    assert f"unknown key. Did you mean {meant}? (command line)" in line


def test_a_key_that_is_like_no_other_is_answered_with_those_of_its_section():
    line = only_mistake(apply_overrides(small(), ["optimizer.zzz=1"]))
    assert line.startswith("optimizer.zzz: unknown key. Known: args, differential_lr, ")


def test_a_class_can_be_named_alone_or_in_a_section():
    short = resolve_config(small(arch="PSPNet", optimizer="SGD", lr_scheduler="Poly", loss="CE"))
    assert short == resolve_config(small(arch={"type": "PSPNet"}, optimizer={"type": "SGD"},
                                         lr_scheduler={"type": "Poly"}, loss={"type": "CE"}))


def test_without_a_val_loader_nothing_is_validated_unless_the_config_says_so():
    resolved = resolve_config(small(trainer={"epochs": 1}))
    assert resolved["trainer"]["val"] is False and resolve_config(resolved) == resolved
    assert "there is no val_loader" in only_mistake(small(trainer={"epochs": 1, "val": True}))


@pytest.mark.parametrize("path, value, words", [
    ("trainer.epochs", 2.5, "expected int or null, found 2.5 (float)"),
    ("trainer.epochs", True, "expected int or null, found true"),
    ("trainer.epochs", "2", 'found "2" (string). Write 2 without quotes'),
    ("trainer.val", 0, "expected bool, found 0 (int)"),
    ("trainer.val", "False", "Write false without quotes"),
    ("trainer.amp", "bf15", 'one of "auto", "bf16", "fp16", false, found "bf15" (string). '
                            'Did you mean "bf16"?'),
    ("trainer.amp", 0, "found 0 (int)"), ("trainer.amp", "True", 'Write "auto"'),
    ("trainer.amp", True, 'Write "auto"'),
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


def test_an_int_is_accepted_for_a_float_and_a_list_for_a_tuple():
    config = resolve_config(small(optimizer={"type": "Adam", "args": {"lr": 1, "betas": [0, 0.9]}}))
    assert config["optimizer"]["args"]["betas"] == [0, 0.9]
    line = only_mistake(small(optimizer={"type": "Adam", "args": {"betas": [0.9]}}))
    assert "optimizer.args.betas: expected list [float, float], found [0.9]" in line


@pytest.mark.parametrize("section", ["arch", "train_loader", "optimizer", "loss", "trainer"])
def test_a_missing_section_is_a_mistake(section):
    config = small()
    del config[section]
    assert only_mistake(config).startswith(f"{section}: missing; expected ")


def test_an_unknown_type_is_reported_with_the_nearest_and_all_known_names():
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
def test_a_config_cannot_set_what_the_program_provides(path, key):
    config = apply_overrides(small(), [f"{path}.{key}=1"])
    assert only_mistake(config).startswith(f"{path}.{key}: is set by the program")


def test_the_resolved_config_has_every_default_and_resolves_to_itself():
    resolved = resolve_config(small(), "c.json")
    assert list(resolved) == list(fields(config_keys))
    assert resolved["lr_scheduler"]["args"]["power"] == 0.9
    assert resolved["arch"]["args"]["freeze_bn"] is False
    assert resolved["train_loader"]["args"]["batch_size"] == 8
    assert resolved["predict"]["val"] == "max"
    assert resolved["val_loader"] is None and resolved["ignore_index"] == 255
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolve_config(resolved) == resolved


def test_flip_label_pairs_go_from_the_dataset_into_every_prediction():
    from utils.predict.predictor import build_predictor
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


def test_arguments_that_choose_an_implementation_are_resolved_only_if_given():
    assert "fused" not in resolve_config(small())["optimizer"]["args"]
    config = apply_overrides(small(), ["optimizer.args.fused=false"])
    assert resolve_config(config)["optimizer"]["args"]["fused"] is False


def test_resolving_does_not_change_the_given_config():
    config = small(predict={"CoI": [0]})
    before = copy.deepcopy(config)
    resolved = resolve_config(config)
    resolved["predict"]["CoI"].append(1)
    resolved["train_loader"]["args"]["split"] = "x"
    assert config == before
    assert resolve_config(small())["lr_scheduler"]["type"] == "Poly"


def test_a_null_lr_scheduler_is_a_constant_rate():
    resolved = resolve_config(small(lr_scheduler=None))
    assert resolve_config(resolved) == resolved
    import torch

    from utils.training.lr_scheduler import build_scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = build_scheduler(resolved["lr_scheduler"], optimizer, 10, 5)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == 0.3


def test_schedulers_get_the_length_of_the_run_from_the_program():
    resolved = resolve_config(small(lr_scheduler={"type": "CosineAnnealingLR"}))
    assert resolved["lr_scheduler"]["args"]["T_max"] is None
    assert resolve_config(small(lr_scheduler="OneCycle"))["lr_scheduler"]["args"]["pct"] == 0.3
    line = only_mistake(small(lr_scheduler={"type": "Poly", "args": {"total_steps": 5}}))
    assert "is set by the program" in line
    line = only_mistake(small(lr_scheduler={"type": "StepLR"}))
    assert line == "lr_scheduler.args.step_size: missing; expected int"


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


def test_one_flat_section_has_one_default_for_a_shared_key():
    for kind in ("models", "datasets"):
        for name, cls in components(kind).items():
            seen = {}
            provided = Component(kind).fields(cls)[1]
            for function in section_callables(kind, cls):
                for key, field in fields(function, leave_out=provided).items():
                    assert seen.setdefault(key, field.default) == field.default, (name, key)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_is_sound(path, monkeypatch):
    for name in set(re.findall(r"\$\{(\w+)\}", path.read_text(encoding="utf-8"))):
        monkeypatch.setenv(name, "data")
    validator = _validator()
    validator.validate(read_jsonc(path))
    for config in load_stages(path):
        resolved = resolve_config(config, str(path))
        validator.validate(dict(config))
        validator.validate(resolved)
        assert resolve_config(resolved) == resolved


@functools.cache
def _validator():
    return jsonschema.Draft202012Validator(json_schema())


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


def test_of_very_many_mistakes_the_first_are_listed_and_the_others_counted():
    with pytest.raises(ConfigError) as caught:
        resolve_config(small(**{f"k{k}": 1 for k in range(300)}))
    header, *lines = str(caught.value).splitlines()
    assert header == "300 mistakes in config"
    assert len(lines) == 51 and lines[-1] == "  and 250 more"


def test_a_text_of_a_checkpoints_config_that_no_path_can_contain_is_a_mistake():
    config = small(name="a\0b", trainer={"epochs": 2, "val": False, "save_dir": "\ud800"})
    assert mistakes(config) == ["name: the text contains a NUL character",
                                "trainer.save_dir: the text contains a lone surrogate"]


def test_a_norm_that_does_not_exist_is_found_before_the_network_is_built():
    arch = {"type": "DeepLabV3", "args": {"norm": "grop"}}
    assert "arch.args.norm: unknown norm 'grop'. Did you mean 'group'?" in only_mistake(
        small(arch=arch))


def test_only_one_way_to_count_between_validations_is_accepted():
    trainer = {**small()["trainer"], "val_per_epochs": 3, "val_per_iterations": 2000}
    assert "trainer.val_per_iterations: expected only one of val_per_iterations (2000) and " \
        "val_per_epochs (3)" in only_mistake(small(trainer=trainer))
