"""tools.publish: a folder with weights, config, scores and a model card."""
import hashlib
import json
import re
import sys
import types

import pytest
import torch

from tests.support.places import ROOT
from tools import publish
from utils.checkpoint.find import find_checkpoint
from utils.checkpoint.read import read_checkpoint
from utils.checkpoint.write import write_checkpoint
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.errors import CheckpointError, ConfigError, DataError, UserError
from utils.export.public_entries import public_config, without_private
from utils.predict.open_model import open_model

PRIVATE = "/home/ann/secret"
LOG_TO = [{"type": "wandb", "args": {"entity": "ann"}}]


@pytest.fixture(scope="module")
def stored():
    """A checkpoint that was trained in the folder of a user."""
    made = read_checkpoint(ROOT / "docs" / "weights" / "camvid_enet.pth")
    config = json.loads(json.dumps(made["config"]))
    for key in ("train_loader", "val_loader"):
        config[key]["args"]["data_dir"] = f"{PRIVATE}/camvid"
    config["trainer"] |= {"save_dir": f"{PRIVATE}/runs", "log_to": LOG_TO,
                          "finetune_from": f"{PRIVATE}/start.pth"}
    return {**made, "config": config, "optimizer": {"state": {}, "param_groups": []},
            "versions": {"torch": "2", "command": f"train.py -c {PRIVATE}/my.json"}}


@pytest.fixture
def run(stored, tmp_path):
    """The folder of a run with a checkpoint and a result of it, and one of another file."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_checkpoint(folder / "model_best.pth", stored)
    digest = hashlib.sha256((folder / "model_best.pth").read_bytes()).hexdigest()
    entry = {"schema": 2, "dataset": "CamVid", "split": "val", "loader": "val_loader",
             "data": {"type": "CamVid", "args": {"data_dir": f"{PRIVATE}/camvid"}},
             "procedure": "max", "mode": "whole", "scales": [1.0], "flip": False, "n_images": 101,
             "checkpoint": {"path": f"{PRIVATE}/run/model_best.pth", "sha256": digest, "epoch": 3},
             "Mean_IoU": 0.634, "mIoU_I": 0.6, "Pixel_Accuracy": 0.9,
             "classes": [{"id": 0, "name": "sky|<b>", "IoU": 0.9, "IoU_I": None}],
             "intervals": {"Mean_IoU": {"low": 0.61, "high": 0.65}}, "image_scores": "x.csv"}
    other = {**entry, "checkpoint": {**entry["checkpoint"], "sha256": "0" * 64}}
    (folder / "results.json").write_text(json.dumps({**entry, "runs": [other, entry]}))
    return folder


@pytest.fixture
def published(run, tmp_path, capsys):
    publish.main([str(run), str(tmp_path / "public")])
    return tmp_path / "public", capsys.readouterr().err


def test_the_folder_has_the_files_of_a_model_page_and_nothing_private(published):
    folder, said = published
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.pth", "model.safetensors", "results.json"]
    for path in folder.iterdir():
        content = path.read_bytes()
        assert b"secret" not in content and b"ann/" not in content, path.name
        assert b'"ann"' not in content, path.name
    assert "changed: train_loader.args.data_dir: 'data/camvid' in place of a path" in said
    assert "changed: trainer.finetune_from: null; it was 'start.pth'" in said
    assert "left out 1 result of other files" in said


def test_both_files_of_weights_predict_as_the_checkpoint(published, run):
    folder, _ = published
    assert find_checkpoint(str(folder)) == str(folder / "model.pth")
    image = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    logits = []
    for path in (run / "model_best.pth", folder / "model.pth", folder / "model.safetensors"):
        checkpoint = read_checkpoint(path)
        assert ("optimizer" in checkpoint) == (path.parent == run)
        opened = open_model(checkpoint, "cpu", path)
        with torch.inference_mode():
            logits.append(opened.model(opened.normalize(image)))
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_the_average_of_the_weights_is_what_is_published(stored, tmp_path):
    average = {key: value + 1 for key, value in stored["model"].items()}
    write_checkpoint(tmp_path / "ema.pth", {**stored, "ema": average})
    publish.main([str(tmp_path / "ema.pth"), str(tmp_path / "public")])
    weights = read_checkpoint(tmp_path / "public" / "model.pth")
    assert weights["ema"] is None
    assert all(torch.equal(weights["model"][key], average[key]) for key in average)


def test_the_config_trains_again_when_its_data_is_set(published):
    config = load_config(published[0] / "config.json", ["train_loader.args.data_dir=/data/new"])
    resolved = resolve_config(config)
    assert resolved["train_loader"]["args"]["data_dir"] == "/data/new"
    assert resolved["trainer"]["save_dir"] == "saved" and resolved["trainer"]["log_to"] == []


def test_the_results_are_those_of_this_checkpoint_under_its_new_name(published):
    folder, _ = published
    entry, = json.loads((folder / "results.json").read_text())["runs"]
    assert entry["checkpoint"]["path"] == "model.pth"
    assert entry["checkpoint"]["sha256"] == \
        hashlib.sha256((folder / "model.pth").read_bytes()).hexdigest()
    assert entry["data"]["args"]["data_dir"] == "data/camvid" and "image_scores" not in entry


def test_the_card_has_front_matter_scores_classes_and_places_to_fill_in(published):
    card = (published[0] / "README.md").read_text(encoding="utf-8")
    front = card.split("---\n")[1]
    for line in ("library_name: segwright", "pipeline_tag: image-segmentation",
                 '- "semantic-segmentation"', '- "CamVid"', "value: 0.634000"):
        assert line in front
    assert "| CamVid val | 101 | max | 63.40 | 61.00 .. 65.00 | 60.00 | 90.00 | none |" in card
    assert r"sky\|\<b\>" in card and "<b>" not in card
    assert "chosen by max Mean_IoU on this split" in card
    assert len(re.findall(r"\| \d+ \| .+ \| `#[0-9a-f]{6}` \|", card)) == 11
    assert card.count("FILL IN") == 6 and "val_loader.args.data_dir=/data/NAME" in card


def test_the_front_matter_is_yaml(published):
    yaml = pytest.importorskip("yaml")
    card = (published[0] / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "unknown" and front["tags"][-1] == "enet"
    result, = front["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "mean_iou", "name": "mean IoU, rule max",
                                    "value": 0.634}


def test_the_official_readers_of_cards_and_weights_take_them(published):
    hub = pytest.importorskip("huggingface_hub")
    safetensors = pytest.importorskip("safetensors.torch")
    card = hub.ModelCard.load(published[0] / "README.md")
    assert card.data.eval_results[0].metric_value == 0.634
    assert len(safetensors.load_file(published[0] / "model.safetensors")) == \
        len(read_checkpoint(published[0] / "model.pth")["model"])


def test_without_results_the_card_says_so(run, tmp_path, capsys):
    (run / "results.json").unlink()
    publish.main([str(run), str(tmp_path / "public"), "--license", "mit", "--name", "My *net*"])
    card = (tmp_path / "public" / "README.md").read_text()
    assert "Not measured." in card and "license: mit\n" in card and "# My \\*net\\*" in card
    assert "model-index" not in card and not (tmp_path / "public" / "results.json").exists()
    assert "there is no" in capsys.readouterr().err


def test_the_card_of_converted_weights_claims_no_training_of_ours(stored, run, tmp_path):
    write_checkpoint(run / "model_best.pth", {**stored, "epoch": None, "versions": {
        "published": "enet_x", "score": "58.3 mIoU"}})
    publish.main([str(run), str(tmp_path / "public")])
    card = (tmp_path / "public" / "README.md").read_text()
    assert "converted (enet_x, published score: 58.3 mIoU)" in card and "was chosen by" not in card
    assert "per process" not in card


def with_classes(stored, folder, **paths):
    """Write a checkpoint whose loaders have these class files."""
    config = json.loads(json.dumps(stored["config"]))
    for key, path in paths.items():
        config[key]["args"]["classes"] = str(path)
    write_checkpoint(folder / "model_best.pth", {**stored, "config": config})


def test_class_files_go_with_the_config_and_each_keeps_its_content(stored, run, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(
            f'// of Ann\n{{"names": ["{name}"], "palette": [[1, 2, 3]]}}')
    with_classes(stored, run, train_loader=tmp_path / "a.json", val_loader=tmp_path / "b.json")
    publish.main([str(run), str(tmp_path / "public")])
    made = json.loads((tmp_path / "public" / "config.json").read_text())
    for key, name, content in (("train_loader", "classes.json", "a"),
                               ("val_loader", "classes-2.json", "b")):
        assert made[key]["args"]["classes"] == name
        text = (tmp_path / "public" / name).read_text()
        assert json.loads(text)["names"] == [content] and "Ann" not in text
        assert read_checkpoint(tmp_path / "public/model.pth")["config"][key]["args"]["classes"] \
            == name
    assert f"copied: {tmp_path / 'a.json'} as classes.json" in capsys.readouterr().err
    with_classes(stored, run, train_loader=tmp_path / "a.json", val_loader=tmp_path / "a.json")
    publish.main([str(run), str(tmp_path / "public"), "--overwrite"])
    assert not (tmp_path / "public" / "classes-2.json").exists(), "of what was published before"


def test_a_class_file_of_a_part_and_one_of_the_home_are_copied(stored, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.json").write_text('{"names": ["a"]}')
    config = json.loads(json.dumps(stored["config"]))
    part = {"type": "Folder", "args": {"data_dir": str(tmp_path), "classes": "c.json"}}
    config["train_loader"] = {"type": "Mixture", "args": {"parts": [part]}}
    config["val_loader"]["args"]["classes"] = "~/c.json"
    write_checkpoint(run / "model_best.pth", {**stored, "config": config})
    publish.main([str(run), str(tmp_path / "public")])
    made = json.loads((tmp_path / "public" / "config.json").read_text())
    assert made["train_loader"]["args"]["parts"][0]["args"]["classes"] == "classes.json"
    assert made["val_loader"]["args"]["classes"] == "classes.json"


@pytest.mark.parametrize("content", ["-----BEGIN KEY-----", '{"names": ["a"], "password": "x"}'])
def test_a_file_that_is_no_class_file_is_not_published(stored, run, tmp_path, capsys, content):
    (tmp_path / "id_rsa").write_text(content)
    with_classes(stored, run, train_loader=tmp_path / "id_rsa")
    publish.main([str(run), str(tmp_path / "public")])
    assert "train_loader.args.classes is not copied" in capsys.readouterr().err
    for path in (tmp_path / "public").iterdir():
        assert b"BEGIN KEY" not in path.read_bytes() and path.name != "classes.json"


def test_files_that_the_config_lacks_are_told(stored, run, tmp_path, capsys):
    config = json.loads(json.dumps(stored["config"]))
    config["val_loader"]["args"]["list_file"] = f"{PRIVATE}/list.txt"
    write_checkpoint(run / "model_best.pth", {**stored, "config": config})
    publish.main([str(run), str(tmp_path / "public")])
    assert f"val_loader.args.list_file: {PRIVATE}/list.txt is not copied; the config in the " \
        "folder does not train without it" in capsys.readouterr().err


@pytest.mark.parametrize("change", [
    {"normalization": {}}, {"versions": {"x": torch.zeros(1)}}, {"config": {"name": "x"}}])
def test_a_strange_checkpoint_is_refused_and_leaves_the_folder_as_it_was(stored, run, tmp_path,
                                                                        change):
    write_checkpoint(run / "model_best.pth", {**stored, **change})
    out = tmp_path / "public"
    with pytest.raises(UserError, match="was not written by Segwright|is no JSON"):
        publish.main([str(run), str(out)])
    assert not out.exists()
    out.mkdir()
    (out / "README.md").write_text("of another network")
    with pytest.raises(UserError):
        publish.main([str(run), str(out), "--overwrite"])
    assert [path.name for path in out.iterdir()] == ["README.md"]
    assert (out / "README.md").read_text() == "of another network"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["public", "run"]


def test_paths_inside_the_texts_of_results_are_replaced_and_told(run, tmp_path, capsys):
    document = json.loads((run / "results.json").read_text())
    document["runs"][1] |= {"segfix": f"offset files of {PRIVATE}/offsets, scale 1",
                            "notes": {f"{PRIVATE}/x": "ann@host:/home/ann"}, "intervals": None}
    (run / "results.json").write_text(json.dumps(document))
    publish.main([str(run), str(tmp_path / "public")])
    for path in (tmp_path / "public").iterdir():
        assert b"secret" not in path.read_bytes() and b"/home/" not in path.read_bytes()
    change = "results.json[0].segfix: 'offset files of offsets, scale 1' in place of a path"
    assert change in capsys.readouterr().err
    assert "offset files of offsets, scale 1" in (tmp_path / "public/README.md").read_text()


@pytest.mark.parametrize("title,shown", [
    ("leaves val", "leaves val"), ("trees val", "trees val"), ("secret val", "Folder val")])
def test_own_data_is_called_by_a_name_that_the_config_shows(title, shown, run, tmp_path):
    document = json.loads((run / "results.json").read_text())
    data = {"type": "Folder", "args": {"data_dir": f"{PRIVATE}/trees",
                                       "classes": f"{PRIVATE}/leaves.classes.json"}}
    document["runs"][1] |= {"dataset": "Folder", "data": data, "data_title": title}
    (run / "results.json").write_text(json.dumps(document))
    publish.main([str(run), str(tmp_path / "public")])
    assert f'name: "{shown}"' in (tmp_path / "public/README.md").read_text()


def test_a_folder_that_is_not_empty_is_only_used_with_overwrite(published, run):
    folder, _ = published
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="the folder is not empty: README.md"):
        publish.main([str(run), str(folder)])
    (run / "results.json").unlink()
    publish.main([str(run), str(folder), "--overwrite"])
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "results.json").exists(), "of what was published before"


def test_what_cannot_be_published_is_refused_and_writes_nothing(run, tmp_path, monkeypatch):
    foreign, out = tmp_path / "foreign.pth", tmp_path / "public"
    torch.save({"state_dict": {}}, foreign)
    with pytest.raises(CheckpointError, match="not a Segwright checkpoint"):
        publish.main([str(foreign), str(out)])
    for text in ("{", '{"runs": 5}', '{"runs": [5]}'):
        (run / "results.json").write_text(text)
        with pytest.raises(DataError, match="is no results file"):
            publish.main([str(run), str(out)])
    with pytest.raises(DataError, match="no such file"):
        publish.main([str(run), str(out), "--results", str(tmp_path / "none.json")])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="pip install huggingface_hub"):
        publish.main([str(run), str(out), "--push", "ann/net"])
    with pytest.raises(SystemExit):
        publish.main([str(run), str(out), "--license", "a: b"])
    assert not out.exists()


def test_push_uploads_these_files_and_explains_a_failure(run, tmp_path, monkeypatch):
    calls = []
    hub = types.SimpleNamespace(
        create_repo=lambda name, **options: calls.append((name, options)),
        upload_folder=lambda **options: calls.append(options))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    publish.main([str(run), str(tmp_path / "public"), "--push", "ann/net"])
    assert calls[0] == ("ann/net", {"exist_ok": True, "private": True})
    assert "README.md" in calls[1]["allow_patterns"] and calls[1]["repo_id"] == "ann/net"
    # Of an earlier publication; the Hub deletes no file that it gets.
    assert {"model.onnx", "classes.json"} < set(calls[1]["delete_patterns"])
    assert "results.json" not in calls[1]["delete_patterns"]
    hub.create_repo = lambda *_, **__: 1 / 0
    with pytest.raises(ConfigError, match="the upload failed") as error:
        publish.main([str(run), str(tmp_path / "again"), "--push", "ann/net"])
    assert "is complete" in str(error.value)


@pytest.mark.parametrize("value, public", [
    ("/home/ann/camvid", "data/camvid"), ("~/camvid/", "data/camvid"), ("/data", "data"),
    ("../../ann/camvid", "data/camvid"), ("C:\\Users\\ann\\camvid", "data/camvid"),
    (r"\\server\ann\camvid", "data/camvid"), ("data/camvid", "data/camvid"), ("", ""),
    ("$HOME/ann/x", "data/x"), (r"%USERPROFILE%\x", "data/x"), ("/home/ann", "data/home"),
    ("~ann", "data/home"), ("s3://ann-bucket/x", "x")])
def test_a_private_path_keeps_its_last_part(value, public):
    found, replaced = without_private({"train_loader": {"args": {"data_dir": value}}})
    assert found["train_loader"]["args"]["data_dir"] == public
    assert bool(replaced) == (value != public)


@pytest.mark.parametrize("text, public", [
    ("see /home/ann", "see home"), ("ann@host:/home/ann", "home"), ("by ann@uni.de", "by uni.de"),
    ("in C:\\ann\\my data\\x.png", "in x.png"), ("https://x.org/?token=abc", "x.org"),
    ("the network /home/ann smith/a.pth", "the network a.pth"), ("a, ~/b/c", "a, c"),
    *((same, same) for same in ("https://x.org/a/b", "road/side walk / x", "20 mm / px, 1/2",
                                "mIoU@0.5", "max Mean_IoU"))])
def test_private_paths_inside_a_text_are_replaced(text, public):
    assert without_private({"note": text})[0] == {"note": public}


def test_names_and_patterns_are_no_paths():
    config = {"loss": {"class_names": ["/x", "~"]}, "groups": [{"match": r"\.bias$"}],
              "trainer": {}}
    assert public_config(config) == (config, [])
