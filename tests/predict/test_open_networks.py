"""The networks of an ensemble: which ones are averaged, and which are refused."""
from types import SimpleNamespace

import pytest
import torch

from utils.decision.ensemble import build_ensemble
from utils.errors import ConfigError
from utils.predict import open_networks as module
from utils.predict.open_networks import StoredNetwork, open_networks, read_networks

NAMES = ["road", "sky", "tree", "car"]


@pytest.fixture
def opened(monkeypatch):
    """Opens networks that differ in the given attributes, without checkpoints."""
    def networks(**other):
        found = []
        for path, changed in (("a.pth", {}), ("b.pth", other)):
            found.append(SimpleNamespace(**{
                "path": path, "class_names": NAMES, "activation": "softmax",
                "normalize": SimpleNamespace(white=None, bands=None), "model": torch.nn.Identity(),
                **changed}))
        queue = iter(found)
        monkeypatch.setattr(module, "open_model", lambda *_: next(queue))
        return open_networks([StoredNetwork(one.path, {}, one.path[0]) for one in found], "cpu")
    return networks


@pytest.mark.parametrize("names,texts", [
    (["road", "tree", "sky", "car"],
     ["class 1 is 'sky' and 'tree'", "class 2 is 'tree' and 'sky'"]),
    (NAMES[:3], ["there are 4 and 3 classes", "class 3 is 'car' and missing"]),
    ([*NAMES[:3], "bus", "tram"], ["class 3 is 'car' and 'bus'", "class 4 is missing and 'tram'"])])
def test_different_classes_are_listed_by_id_and_name(opened, names, texts):
    with pytest.raises(ConfigError) as error:
        opened(class_names=names)
    for text in [*texts, "(in a.pth and in b.pth)"]:
        assert text in str(error.value)


@pytest.mark.parametrize("other,text", [
    ({"activation": "sigmoid"}, "softmax and sigmoid"),
    ({"normalize": SimpleNamespace(white=4095, bands=None)}, "white is None and 4095")])
def test_networks_whose_probabilities_or_pictures_differ_are_refused(opened, other, text):
    with pytest.raises(ConfigError, match=text):
        opened(**other)


def test_equal_networks_know_their_files(opened):
    assert [one.sha256 for one in opened()] == ["a", "b"]


def test_networks_that_predict_no_classes_are_refused(opened):
    class Borders(torch.nn.Identity):
        decision = "offsets"

    networks = opened(model=Borders())
    with pytest.raises(ConfigError, match="Borders does not predict classes"):
        build_ensemble(networks, [{}, {}], [])


def test_a_network_that_is_given_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read_checkpoint_and_digest", lambda path: ({}, "same"))
    monkeypatch.setattr(module, "with_config", lambda *_: {})
    path = str(tmp_path / "a.pth")
    for other, text in ((path, "is given twice"), (f"{tmp_path}/./a.pth", "is given twice"),
                        (str(tmp_path / "b.pth"), "has the same content as")):
        with pytest.raises(ConfigError, match=text):
            read_networks([path, other])


def test_the_state_of_a_training_is_not_kept(monkeypatch):
    saved = {"model": 1, "ema": 2, "optimizer": 3, "scaler": 4, "config": {}, "epoch": 5,
             "base_size": 6}
    monkeypatch.setattr(module, "read_checkpoint", lambda path: path)
    monkeypatch.setattr(module, "with_config", lambda *_: saved)
    kept = {"ema": 2, "config": {}, "epoch": 5, "base_size": 6}
    assert read_networks(["a.pth"])[0].checkpoint == kept
    saved["ema"] = None
    assert read_networks(["a.pth"])[0].checkpoint == {**kept, "model": 1, "ema": None}


def test_a_mistake_in_a_config_names_the_checkpoint(monkeypatch):
    def fail(checkpoint, *_):
        if checkpoint == "b.pth":
            raise ConfigError("a mistake", "loss", "mend it")
        return {}

    monkeypatch.setattr(module, "read_checkpoint_and_digest", lambda path: (path, path))
    monkeypatch.setattr(module, "with_config", fail)
    with pytest.raises(ConfigError) as error:
        read_networks(["a.pth", "b.pth"])
    assert str(error.value) == "a mistake (of b.pth)\n  where: loss\n  fix: mend it"
