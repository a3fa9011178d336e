"""tools.decide: rules on stored probabilities, with the files and scores of the programs."""
import json
from pathlib import Path

import numpy as np
import pytest

import inference
import test as test_program
from tests.support.places import ROOT
from tools import compare_results, decide
from utils.cli.console import run
from utils.images.image_io import read_label, write_label

CAMVID = ROOT.parent / "shared" / "data" / "camvid"
WEIGHTS = ROOT / "docs" / "weights" / "camvid_enet.pth"
NAMES = ["road", "sky", "tree"]


def decided(*argv):
    try:
        return run(decide.main, [*map(str, argv)])
    except SystemExit as error:     # of argparse
        return error.code


@pytest.fixture
def folder(tmp_path):
    """tmp_path with scores/{a,b}.npy of 3 classes, labels/{a,b}.png, classes.json."""
    random = np.random.default_rng(0)
    for place in ("scores", "labels"):
        (tmp_path / place).mkdir()
    for name in "ab":
        labels = random.integers(0, 3, (6, 8)).astype(np.uint8)
        scores = np.eye(3, dtype=np.float32)[labels].transpose(2, 0, 1) + random.random((3, 6, 8))
        np.save(tmp_path / "scores" / f"{name}.npy", scores / scores.sum(0))
        labels[0, 0] = 255
        write_label(tmp_path / "labels" / f"{name}.png", labels, [])
    (tmp_path / "classes.json").write_text(json.dumps({"names": NAMES}))
    return tmp_path


def with_labels(folder):
    return ("--labels", folder / "labels", "--classes", folder / "classes.json")


@pytest.mark.parametrize("name", ["./scores", "scores/", "scores//", "out/../scores"])
def test_a_folder_may_be_written_in_any_way(folder, monkeypatch, capsys, name):
    monkeypatch.chdir(folder)
    (folder / "out").mkdir()
    assert decided(name, "-o", "out", *with_labels(folder)) == 0
    assert "2 images" in capsys.readouterr().out


def test_results_of_other_ways_to_read_the_files_are_kept(folder):
    for values in ("probabilities", "logits"):
        assert decided(folder / "scores", "-o", folder / "out", "--values", values,
                       *with_labels(folder)) == 0
    assert len(json.loads((folder / "out" / "results.json").read_text())["runs"]) == 2


def test_the_largest_score_is_the_label_and_nothing_needs_labels(folder):
    assert decided(folder / "scores", "-o", folder / "out", "--masks") == 0
    for name in "ab":
        scores = np.load(folder / "scores" / f"{name}.npy")
        assert np.array_equal(read_label(folder / "out" / f"{name}.png"), scores.argmax(0))
    assert sorted(path.name for path in (folder / "out" / "a_masks").iterdir()) == [
        "00_class_0.png", "01_class_1.png", "02_class_2.png"]


def test_with_labels_results_are_those_that_compare_results_reads(folder, capsys):
    for rule in ("max", "rankdice"):
        assert decided(folder / "scores", "-p", rule, "-o", folder / rule,
                       *with_labels(folder)) == 0
    entry = json.loads((folder / "max" / "results.json").read_text())
    labels = [read_label(folder / "labels" / f"{name}.png") for name in "ab"]
    right = [(read_label(folder / "max" / f"{name}.png") == one)[one < 3]
             for name, one in zip("ab", labels, strict=True)]
    assert entry["Pixel_Accuracy"] == pytest.approx(np.concatenate(right).mean())
    assert [one["name"] for one in entry["classes"]] == NAMES and entry["n_images"] == 2
    capsys.readouterr()
    assert run(compare_results.main, [str(folder / "max" / "results.json"),
                                      str(folder / "rankdice" / "results.json")]) == 0
    assert "2 images" in capsys.readouterr().out


def test_a_volume_of_one_slice_is_an_image_and_so_is_its_label(folder):
    for name in "ab":
        scores = np.load(folder / "scores" / f"{name}.npy")
        np.save(folder / "scores" / f"{name}.npy", scores[:, None])
        label = folder / "labels" / f"{name}.png"
        np.save(label.with_suffix(".npy"), read_label(label)[None])
        label.unlink()
    assert decided(folder / "scores", "-o", folder / "out", *with_labels(folder)) == 0
    assert (folder / "out" / "a.png").exists()


def test_several_rules_are_one_table_and_no_label_maps(folder, capsys):
    assert decided(folder / "scores", "-p", "all", "-o", folder / "out", *with_labels(folder)) == 0
    assert "rankiou" in capsys.readouterr().out and not (folder / "out" / "a.png").exists()
    assert decided(folder / "scores", "-p", "max,T", "-o", folder / "out") == 2


def test_what_has_no_partner_or_is_wrong_is_one_line_and_the_others_are_done(folder, capsys):
    np.save(folder / "scores" / "c.npy", np.load(folder / "scores" / "a.npy"))
    np.save(folder / "scores" / "b.npy", np.load(folder / "scores" / "b.npy")[:, :-1])
    (folder / "scores" / "a.pkl").write_bytes(b"cos\nsystem\n.")
    write_label(folder / "labels" / "d.png", np.zeros((6, 8), np.uint8), [])
    assert decided(folder / "scores", "-o", folder / "out", *with_labels(folder)) == 3
    lines = capsys.readouterr().err.splitlines()
    for text in ("c.npy: no label begins its name", "d.png: no score file begins with its name",
                 "b.npy: is 5x8, the truth b.png 6x8", "left out, and not opened: 1 .pkl",
                 "1 ok, 3 failed"):
        assert sum(text in line for line in lines) == 1
    assert json.loads((folder / "out" / "results.json").read_text())["n_images"] == 1
    assert (folder / "out" / "a.png").exists() and not (folder / "out" / "b.png").exists()


def test_a_folder_with_the_name_of_a_score_file_leaves_its_label_without_scores(folder, capsys):
    (folder / "scores" / "b.npy").unlink()
    (folder / "scores" / "b.npz").mkdir()
    assert decided(folder / "scores", "-o", folder / "out", *with_labels(folder)) == 3
    assert "b.png: no score file begins with its name" in capsys.readouterr().err


def test_the_remedies_of_wrong_files_are_said_once(folder, capsys):
    scores = np.load(folder / "scores" / "a.npy")
    for name in "cd":
        np.save(folder / "scores" / f"{name}.npy", 3 * scores)
    np.savez(folder / "scores" / "e.npz", x=scores, y=scores)
    assert decided(folder / "scores", "-o", folder / "out") == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines if line.startswith("fix: ")] == [
        "fix: say it with --values logits, with --values probabilities",
        "fix: name the one with the scores: --key NAME"]


@pytest.mark.parametrize("options", [
    ("--threshold", "0.3"), ("--temperature", "2"), ("--pruning", "0.1"), ("--args", "{}x"),
    ("--labels", "labels"), ("--ignore-index", "0"), ("-p", "all"), ("-p", "best"), ("--key", "x")])
def test_an_option_without_effect_is_refused(folder, options):
    assert decided(folder / "scores", "-o", folder / "out", *options) == 2
    assert not list(folder.glob("out/*.png"))


def test_inputs_are_not_overwritten(folder):
    write_label(folder / "scores" / "a.png", np.zeros((6, 8), np.uint8), [])
    assert decided(folder / "scores", "-o", folder / "scores") == 3
    assert not read_label(folder / "scores" / "a.png").any()


def test_a_volume_becomes_a_label_volume_and_is_scored_as_one_image(folder, capsys):
    """The score of a volume is that of its slices next to each other in one image."""
    (folder / "flat").mkdir()
    scores = np.stack([np.load(folder / "scores" / f"{name}.npy") for name in "ab"], 1)
    labels = np.stack([read_label(folder / "labels" / f"{name}.png") for name in "ab"])
    np.save(folder / "flat" / "v.npy", scores.reshape(3, 12, 8))
    np.save(folder / "scores" / "v.npy", scores)
    np.save(folder / "labels" / "v.npy", labels)
    for name in "ab":
        (folder / "scores" / f"{name}.npy").unlink()
        (folder / "labels" / f"{name}.png").unlink()
    assert decided(folder / "scores", "-p", "rankdice", "--masks", "-o", folder / "out",
                   *with_labels(folder)) == 0
    masks, found = (np.load(folder / "out" / name) for name in ("v_masks.npy", "v.npy"))
    assert masks.shape == scores.shape and masks.dtype == bool
    assert found.shape == labels.shape and found.dtype == np.uint8
    assert sorted(path.name for path in (folder / "out").glob("v*")) == ["v.npy", "v_masks.npy"]
    (folder / "labels" / "v.npy").unlink()
    write_label(folder / "labels" / "v.png", labels.reshape(12, 8), [])
    assert decided(folder / "flat", "-p", "rankdice", "-o", folder / "flat_out",
                   *with_labels(folder)) == 0
    assert np.array_equal(read_label(folder / "flat_out" / "v.png"), found.reshape(12, 8))
    volume, image = (json.loads((folder / name / "results.json").read_text())
                     for name in ("out", "flat_out"))
    assert volume["classes"] == image["classes"] and volume["mDice_I"] == image["mDice_I"]


def test_formats_of_volumes_that_are_not_read_are_named(folder, capsys):
    (folder / "labels" / "v.nii.gz").write_bytes(b"")
    assert decided(folder / "scores", "-o", folder / "out", *with_labels(folder)) == 3
    text = " ".join(capsys.readouterr().err.split())
    assert "NIfTI, DICOM and the like (.gz) are not read: store plain arrays" in text


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason="../shared/data/camvid is not here")
def test_stored_probabilities_give_the_results_of_the_network(tmp_path):
    """Five photos through the network three times, takes 8 s."""
    for place, ending in (("val", ".webp"), ("valannot", ".png")):
        (tmp_path / place).mkdir()
        for path in sorted((CAMVID / place).glob(f"*{ending}"))[::20][:5]:
            (tmp_path / place / path.name).symlink_to(path)
    common = ("-r", str(WEIGHTS), "-d", "cpu")
    direct, scores = tmp_path / "direct", tmp_path / "scores"
    assert run(inference.main, [*common, "-i", str(tmp_path / "val"), "-o", str(direct), "-p",
                                "rankdice", "--probabilities"]) == 0
    scores.mkdir()
    for path in direct.glob("*.npz"):
        path.rename(scores / path.name)
    assert decided(scores, "-p", "rankdice", "-o", tmp_path / "out", "--labels",
                   tmp_path / "valannot", "--dataset", "CamVid") == 0
    assert run(test_program.main, [*common, "-p", "rankdice", "-o", str(tmp_path / "test"),
                                   f"val_loader.args.data_dir={tmp_path}"]) == 0
    differ = [read_label(path) != read_label(tmp_path / "out" / path.name)
              for path in direct.glob("*.png")]
    assert len(differ) == 5 and np.mean(differ) <= 1e-4
    one, two = (json.loads(Path(tmp_path, place, "results.json").read_text())
                for place in ("out", "test"))
    for key in ("Mean_IoU", "Mean_Dice", "mIoU_I", "mDice_I", "Binary_Accuracy"):
        assert one[key] == pytest.approx(two[key], abs=5e-4)
