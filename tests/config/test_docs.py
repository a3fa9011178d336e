"""The text of --list and the JSON Schema of --schema."""
import inspect
import re

import jsonschema
import pytest

from tests.config.samples import README, mistakes, small
from utils.config.docs import json_schema, list_text
from utils.config.load import apply_overrides
from utils.config.registry import KINDS, components
from utils.config.schema import Component, resolve_config
from utils.errors import ConfigError


def test_the_list_of_everything_names_every_component():
    text = list_text()
    for kind in set(KINDS) - {"backbones"}:
        assert all(name in text for name in components(kind)), kind
    assert "resnet50" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_a_kind_shows_arguments_types_and_defaults(kind):
    text = list_text(kind)
    for cls in components(kind).values():
        if kind == "backbones" and not cls.aliases:
            continue        # chosen by a prefix, not by name
        assert (inspect.getdoc(cls) or "").partition("\n")[0] in text
        for name in Component(kind).fields(cls)[0]:
            assert re.search(rf"^    {name} +\S", text, re.M), (cls, name)
        for name in Component(kind).fields(cls)[1] - {"dataset", "seed", "training"}:
            assert not re.search(rf"^    {name} +\S", text, re.M) or kind == "schedulers"


def test_one_component_is_described_with_its_whole_docstring():
    text = list_text("models", "PSPNet")
    assert re.search(r'backbone +string += "resnet50"', text)
    assert "freeze_backbone" in text and "aux 0.4" in text
    assert "output stride 8" in text
    assert re.search(r'amp +one of "auto", "bf16"', list_text("trainer"))
    assert "temperature" in list_text("predict") and "overlap" in list_text("predict")
    assert "use_synch_bn" in list_text("config")


def test_the_list_has_a_line_for_each_component_with_its_aliases():
    lines = list_text().splitlines()
    assert "  DeepLab (or DeepLabV3Plus)" in [line[:28] for line in lines]
    line, = (line for line in lines if line.startswith("  PSPNet "))
    assert line.endswith("Pyramid pooling on a dilated backbone, output stride 8.")


def test_the_list_can_be_searched():
    assert list_text("PSPNet") == list_text("models", "pspnet") == list_text("models", "PSPNet")
    text = list_text("dice")
    assert text.startswith("losses:\n") and "DiceLoss" in text and "PSPNet" not in text
    text = list_text("models", "pyramid")
    assert "PSPNet" in text and "ENet" not in text


def test_what_all_components_of_a_kind_take_is_listed_once():
    for text in (list_text("models"), list_text("models", "PSPNet")):
        assert text.count("common to all models:") == 1
        assert text.index("common to all models:") < text.index("freeze_backbone")


def test_an_unknown_name_or_kind_is_reported_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'models'"):
        list_text("modls")
    with pytest.raises(ConfigError, match="Did you mean 'PSPNet'"):
        list_text("PSPnett")
    with pytest.raises(ConfigError, match="unknown name 'pspnett'. Did you mean 'PSPNet'"):
        list_text("models", "pspnett")


def test_the_schema_is_valid_and_accepts_what_the_program_accepts():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    from utils.files.jsonc import parse_jsonc
    for config in (parse_jsonc(README), small(), resolve_config(small()),
                   small(loss={"out": "CE", "aux": {"type": "MixedLoss", "args": {
                       "losses": ["CE", {"type": "DiceLoss", "weight": 2}]}}}),
                   {"extends": "x.json", "arch": {"args": {"backbone": "resnet18"}}}):
        validator.validate(config)


def test_the_schema_describes_the_keys_of_the_sections():
    schema = json_schema()["properties"]
    trainer = schema["trainer"]["properties"]
    assert all(trainer[name].get("description") for name in trainer)
    assert trainer["save_every"]["description"].startswith("also write last.pth every N optimizer")
    assert schema["n_gpu"]["description"].startswith("null: all visible GPUs")
    assert "description" in schema["predict"]["properties"]["temperature"]


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
