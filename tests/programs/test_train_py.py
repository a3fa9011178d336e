"""train.py as a user runs it: the files it writes, and its messages about mistakes."""
import json
import re

import cv2
import numpy as np
import pytest
import torch

import test as test_program
import train
from tests.support.run_program import SMALL, digest
from utils.checkpoint.read import read_checkpoint
from utils.cli import console

COMMON = ["-c", "config.json", *SMALL, "train_loader.args.num_workers=0", "trainer.epochs=2"]


def run(*arguments):
    return console.run(train.main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Seconds: a whole training."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(*COMMON, f"trainer.save_dir={folder}", "trainer.ema=0.9") == 0
    return next(folder.glob("shapes/*"))


def test_a_run_leaves_config_checkpoints_log_and_metrics(trained):
    assert {"config.json", "last.pth", "model_best.pth", "log.txt", "metrics.jsonl"} \
        <= {p.name for p in trained.iterdir()}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", trained.name)


@pytest.mark.slow
def test_the_saved_config_is_complete_and_repeats_the_run(trained, tmp_path):
    """Seconds: a whole training is repeated."""
    config = json.loads((trained / "config.json").read_text())
    assert config["trainer"]["monitor"] == "max Mean_IoU" and config["ignore_index"] == 255
    assert run("-c", trained / "config.json", f"trainer.save_dir={tmp_path}") == 0
    assert digest(next(tmp_path.glob("shapes/*/last.pth"))) == digest(trained / "last.pth")


def test_the_config_of_a_run_has_numbers_for_rules_of_class_weights(tmp_path, capsys):
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps({"pixels": [1000 - 100 * k for k in range(9)]}))
    assert run(*COMMON, "--print-config", "loss.type=CE",
               f'loss.args={{"weight":"enet","class_pixels":"{counts}"}}') == 0
    args = json.loads(capsys.readouterr().out)["loss"]["args"]
    assert len(args["weight"]) == 9 and args["class_pixels"] is None
    assert sum(args["weight"]) == pytest.approx(9)


def test_a_printed_config_shows_no_password(tmp_path, capsys):
    for uri, text in (("http://me:p:q@host:5000", "http://me:***@host:5000"),
                      ("pg://host/db?password=pq&x=1", "pg://host/db?password=***&x=1")):
        tracker = {"type": "mlflow", "args": {"tracking_uri": uri}}
        assert run(*COMMON, "--print-config", f"trainer.log_to={json.dumps([tracker])}") == 0
        shown = json.loads(capsys.readouterr().out)["trainer"]["log_to"][0]["args"]
        assert shown["tracking_uri"] == text


def test_test_py_on_the_validation_split_reproduces_the_logged_number(trained, tmp_path, capsys):
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").open()][-1]
    capsys.readouterr()
    assert console.run(test_program.main, ["-r", str(trained / "last.pth"), "-s", "val", "--json",
                                           "-o", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    for name in ("Mean_IoU", "Mean_Dice", "Pixel_Accuracy", "mIoU_I", "mDice_I", "loss"):
        assert result[name] == logged[name], name


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(trained, capsys):
    before = digest(trained / "last.pth")
    assert run("-r", trained / "last.pth") == 0
    assert digest(trained / "last.pth") == before
    assert "resuming at the end of epoch 2, step 16" in capsys.readouterr().err


def test_a_network_that_unpools_trains_deterministically(tmp_path):
    """Seconds: two short trainings. ENet unpools, for which torch has no deterministic form."""
    try:
        for name in ("a", "b"):
            assert run(*COMMON, "trainer.epochs=1", "deterministic=true", "trainer.val=false",
                       f"trainer.save_dir={tmp_path / name}") == 0
    finally:
        torch.use_deterministic_algorithms(False)
    first, second = (read_checkpoint(next((tmp_path / name).glob("shapes/*/last.pth")))["model"]
                     for name in ("a", "b"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_auto_without_a_checkpoint_starts_a_new_run_with_a_notice(tmp_path, capsys):
    assert run(*COMMON, "-r", "auto", f"trainer.save_dir={tmp_path}", "--dry-run") == 0
    assert "starting fresh" in capsys.readouterr().err


def test_dry_run_builds_everything_and_writes_nothing(tmp_path, capsys):
    assert run(*COMMON, "--dry-run", f"trainer.save_dir={tmp_path / 'runs'}") == 0
    assert list(tmp_path.iterdir()) == []
    assert "ENet" in capsys.readouterr().err


@pytest.mark.parametrize("status, words, changes", [
    (4, "no such checkpoint", ["trainer.finetune_from=/nowhere.pth"]),
    (2, "Muon only supports 2D", ["optimizer.type=Muon"]),
    (2, "Invalid learning rate", ["optimizer.args.lr=-1"]),
    (2, "a warm-up of 160 steps", ["lr_scheduler.type=Poly", "lr_scheduler.args.warmup_epochs=20"]),
    (2, "2 thresholds for 9", ["predict.val=T", "predict.threshold=[0.1,0.2]"]),
    (2, "has no backbone", ["optimizer.differential_lr=true"]),
    (2, "has no backbone", ["arch.args.freeze_backbone=true"]),
    (2, "batch holds 1 image", ["arch.type=PSPNet", "arch.args.backbone=resnet18",
                                "train_loader.args.batch_size=1"]),
    (2, "GPU(s) are visible", ["n_gpu=99"]),
    (2, "fp16 training needs a GPU", ["n_gpu=0", "trainer.amp=fp16"]),
    (2, "needs the target 'depth'", ['loss={"type": "CE", "target": "depth"}']),
    (2, "RMI needs at least 3x3", ["loss=RMI", "train_loader.args.crop_size=4"]),
    (2, "above 0: the network would learn nothing", [
        "loss.type=CE", "loss.args.weight=[0,0,0,0,0,0,0,0,0]"]),
])
def test_a_dry_run_refuses_what_the_start_refuses(tmp_path, capsys, status, words, changes):
    changes = [*COMMON, f"trainer.save_dir={tmp_path / 'runs'}", *changes]
    assert run(*changes, "--dry-run") == status
    assert words in error_of(capsys)
    assert list(tmp_path.iterdir()) == []
    assert run(*changes) == status


def test_a_dry_run_says_what_it_tried(tmp_path, capsys):
    assert run(*COMMON, "loss=CE", "--dry-run", f"trainer.save_dir={tmp_path}") == 0
    text = capsys.readouterr().err
    assert re.search(r"tried one step on a batch of 4 images \(48x64, height x width; "
                     r"loss [\d.]+\) and one validation image \(\d+x\d+; loss [\d.]+\), in",
                     text), text
    assert "9 classes" in text and "on cpu" in text


@pytest.mark.parametrize("arguments, words", [
    (["--resume-allow-changes"], "--resume-allow-changes has an effect only with -r"),
    (["--list", "models", "ENet", "one", "two"], "--list takes a KIND and a NAME"),
    (["--schema", "--dry-run"], "--schema and --dry-run: give only one of them"),
    (["--schema", "-c", "config.json"], "-c has no effect with --schema"),
])
def test_options_without_effect_are_usage_errors(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        train.parse(arguments)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_third_word_of_list_is_refused_where_it_means_nothing(capsys):
    assert run("--list", "models", "ENet", "extra") == 2
    assert "takes a KIND and a NAME, found models ENet extra" in capsys.readouterr().err


def test_settings_without_effect_are_said_at_the_start(tmp_path, capsys):
    assert run(*COMMON, "--dry-run", f"trainer.save_dir={tmp_path}", "trainer.keep=3",
               "trainer.average=ranks", "--device", "cpu", "n_gpu=2") == 0
    text = capsys.readouterr().err
    assert "trainer.keep has no effect: save_period is 0" in text
    assert "n_gpu 2 has no effect: --device cpu" in text
    assert 'trainer.average "ranks" has no effect: one process' in text


def test_list_and_schema_print_to_stdout(capsys):
    assert run("--list", "models", "ENet") == 0
    assert "num_classes" not in capsys.readouterr().out.split("\n")[0]
    assert run("--schema") == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"


def error_of(capsys):
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_five_mistakes_at_five_levels_give_one_message_of_five_lines(tmp_path, capsys):
    config = json.loads(re.sub(r"//.*", "", open("config.json").read()))
    config["trianer"] = {}
    config["trainer"]["eary_stop"] = 5
    config["arch"]["args"] = {"bakcbone": "resnet18"}
    config["optimizer"]["type"] = "AdmaW"
    config["train_loader"]["args"]["batch_size"] = 2.5
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(config))
    assert run("-c", path) == 2
    text = error_of(capsys)
    for part in ("trianer", "early_stop", "arch.args.bakcbone", "AdamW", "batch_size"):
        assert part in text
    assert len(text.partition("error: ")[2].strip().splitlines()) == 6


@pytest.fixture
def camvid(tmp_path):
    """Six small pairs in CamVid's layout."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").mkdir()
        for i in range(6):
            image = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            label = np.repeat(rng.integers(0, 12, (40, 6), dtype=np.uint8), 8, 1)
            write(tmp_path / split / f"{i}.png", image)
            write(tmp_path / f"{split}annot" / f"{i}.png", label)
    return tmp_path


def write(path, picture):
    path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())


def on_camvid(folder):
    loader = '{"data_dir": "%s", "split": "%s", "batch_size": 2, "num_workers": 0}'
    return ["-c", "config.json", "loss=CE", "train_loader.type=CamVid", "val_loader.type=CamVid",
            "train_loader.args=" + loader % (folder, "train"),
            "val_loader.args=" + loader % (folder, "val"), "trainer.epochs=1",
            "trainer.tensorboard=false", f"trainer.save_dir={folder / 'runs'}"]


def test_a_missing_label_is_named_before_anything_is_trained(camvid, capsys):
    (camvid / "valannot" / "5.png").unlink()
    assert run(*on_camvid(camvid)) == 3
    assert "5.png" in error_of(capsys)
    assert not (camvid / "runs").exists()


def test_init_writes_a_config_that_trains(camvid, tmp_path):
    config = tmp_path / "my.json"
    labels = camvid / "trainannot"
    assert run("--init", config, "--images", camvid / "train", "--labels", labels) == 0
    assert run("-c", config, "trainer.epochs=1", f"trainer.save_dir={tmp_path / 'r'}") == 0
    assert list((tmp_path / "r").glob("*/*/last.pth"))


def test_init_and_training_with_images_and_labels_in_one_folder(camvid, tmp_path):
    """Seconds: an epoch of training."""
    for split in ("train", "val"):
        for label in (camvid / f"{split}annot").glob("*.png"):
            label.rename(camvid / split / f"{label.stem}_mask.png")
    config = tmp_path / "runs" / "my"
    assert run("--init", config, "--images", camvid, "--labels", camvid) == 0
    config = config.with_suffix(".json")
    assert run("-c", config, "trainer.epochs=1", f"trainer.save_dir={tmp_path / 'r'}") == 0
    saved = json.loads(next((tmp_path / "r").glob("*/*/config.json")).read_text())
    assert saved["train_loader"]["args"]["label_ending"] == "_mask"
    assert all(line.startswith("val/") for line in
               config.with_suffix(".val.txt").read_text().split())


@pytest.mark.parametrize("options", [["--images", "a"], ["--labels", "a"], ["--init", "a"],
                                     ["--images", "a", "--labels", "a"], ["--init", "", "--images",
                                                                          "a", "--labels", "a"]])
def test_init_needs_its_two_folders_and_they_need_init(options, capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse(options)
    assert ended.value.code == 2 and "belong together" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_other_classes_in_validation_are_refused_before_the_first_step(options, tmp_path, capsys):
    for kind, folder in (("images", "RGB"), ("labels", "L")):
        (tmp_path / kind).mkdir()
        for k in range(2):
            picture = np.full((32, 32, 3) if folder == "RGB" else (32, 32), k, np.uint8)
            cv2.imwrite(str(tmp_path / kind / f"{k}.png"), picture)
    args = {"data_dir": str(tmp_path), "batch_size": 1, "num_workers": 0}
    loaders = {f"{key}_loader": {"type": "Folder", "args": {**args, "class_names": names}}
               for key, names in (("train", ["sky", "road"]), ("val", ["road", "sky"]))}
    config = {"arch": {"type": "ENet"}, **loaders, "loss": "CE",
              "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
              "trainer": {"epochs": 1, "save_dir": str(tmp_path / "saved")}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    assert run("-c", tmp_path / "c.json", *options) == 2
    assert "validation differ: class 0 is 'sky' and 'road'" in capsys.readouterr().err


CAFFE = {"mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0], "order": "BGR",
         "scale": 1.0}


@pytest.fixture(scope="module")
def caffe(tmp_path_factory):
    """Seconds: a training with a normalization of its own."""
    folder = tmp_path_factory.mktemp("caffe")
    assert run(*COMMON, "trainer.epochs=1", f"normalize={json.dumps(CAFFE)}",
               f"trainer.save_dir={folder}") == 0
    return next(folder.glob("shapes/*")) / "last.pth"


def test_the_normalization_of_the_config_is_that_of_training_checkpoint_and_prediction(
        caffe, tmp_path, capsys):
    saved = read_checkpoint(caffe)
    assert saved["normalization"] == saved["config"]["normalize"] == CAFFE
    logged = [json.loads(line) for line in (caffe.parent / "metrics.jsonl").open()][-1]
    capsys.readouterr()
    assert console.run(test_program.main, ["-r", str(caffe), "-s", "val", "--json",
                                           "-o", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["loss"] == logged["loss"] and result["Mean_IoU"] == logged["Mean_IoU"]


def test_prediction_does_not_take_another_normalization(caffe, tmp_path, capsys):
    command = ["-r", str(caffe), "-s", "val", "-o", str(tmp_path)]
    assert console.run(test_program.main, [*command, "normalize.order=RGB"]) == 2
    assert "its checkpoint says how" in capsys.readouterr().err
    config = read_checkpoint(caffe)["config"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**config, "normalize": {**CAFFE, "order": "RGB"}}))
    assert console.run(test_program.main, [*command, "-c", str(other)]) == 0
    assert "normalize.order is RGB; the network was trained with BGR, which is used" \
        in capsys.readouterr().err


def test_a_resumed_training_keeps_its_normalization(caffe, capsys):
    assert run("-r", caffe, "normalize=null") == 2
    assert "normalize was {'mean': [102.9801" in capsys.readouterr().err
    assert run("-r", caffe, "normalize=null", "--resume-allow-changes", "--dry-run") == 0


def test_a_network_with_void_is_trained_saved_and_scored_on_the_other_classes(tmp_path, capsys):
    """Seconds: a training, and the score of its checkpoint."""
    void = ["train_loader.args.train_void=true", "val_loader.args.train_void=true",
            "predict.CoI=[0,1,2,3,4,5,6,7,8]", "loss=CE"]
    assert run(*COMMON, *void, "trainer.epochs=1", f"trainer.save_dir={tmp_path}") == 0
    path = next(tmp_path.glob("shapes/*")) / "last.pth"
    assert read_checkpoint(path)["class_names"][-1] == "void"
    capsys.readouterr()
    assert console.run(test_program.main, ["-r", str(path), "--json", "-o", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    classes = json.loads((tmp_path / "results.json").read_text())["runs"][-1]["classes"]
    assert len(classes) == 10
    ious = [entry["IoU"] for entry in classes[:9] if entry["IoU"] is not None]
    assert result["Mean_IoU"] == pytest.approx(np.mean(ious))
