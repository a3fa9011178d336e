"""tools.browse: what is drawn is what training sees."""
import json

import numpy as np
import pytest
import torch

from dataloader.loader import make_loader
from tests.programs.test_trainer import make as make_trainer
from tools.browse import as_trained, contact_sheet, main
from utils.cli.console import run
from utils.images.image_io import read_image, write_image, write_label
from utils.images.visualize import overlay

RNG = np.random.default_rng(0)
MIXED = {"type": "Shapes", "args": {
    "length": 10, "size": [32, 48], "batch_size": 2, "num_workers": 0, "shuffle": True,
    "augment": True, "crop_size": 24, "flip": True, "rotate": True,
    "batch_transforms": [{"type": "CutMix"}, {"type": "CopyBlob", "args": {"pairs": [[4, 1]]}}]}}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_samples_are_those_that_the_trainer_uses(accumulate, tmp_path):
    """Two epochs of a real training: loading its modules takes a few seconds."""
    trainer = make_trainer(tmp_path, f"trainer.accumulate={accumulate}", "trainer.epochs=2",
                           "trainer.val=false", "seed=4", loader=loader(4))
    trained = []
    trainer.criterion.forward = lambda outputs, batch: kept(trained, outputs, batch)
    trainer.train()
    trained = trained[5:][3:5]
    sheet = list(as_trained(loader(4), 4, accumulate, 2, 3, 4))
    assert [sample["batch"] for sample in sheet] == [3, 3, 4, 4]
    for key in ("image", "label"):
        seen = torch.cat([batch[key] for batch in trained])
        shown = [sample[key].transpose(2, 0, 1) if key == "image" else sample[key]
                 for sample in sheet]
        np.testing.assert_array_equal(seen.numpy(), np.stack(shown))


def kept(batches, outputs, batch):
    """Keeps the batch of a micro-step; any scalar does for a loss."""
    batches.append(batch)
    return outputs["out"].mean(), {}


def loader(seed):
    return make_loader(MIXED, ignore_index=255, seed=seed, training=True)


def test_overlays_lie_below_their_images_and_ignored_pixels_are_dotted():
    image = RNG.integers(100, 200, (32, 40, 3), dtype=np.uint8)
    label = np.zeros((32, 40), np.uint8)
    label[:, 20:] = 255
    sheet = contact_sheet([{"image": image, "label": label, "id": "a"}], [[9, 200, 9]], ["leaf"],
                          width=64, opacity=0.5)
    np.testing.assert_array_equal(sheet[:32, :40], image)
    np.testing.assert_array_equal(sheet[36:68, :20],
                                  overlay(image, label, [[9, 200, 9]], 0.5)[:, :20])
    ignored = sheet[36:68, 20:40]
    dots = (ignored == 255).all(2) | (ignored == 0).all(2)
    np.testing.assert_array_equal(ignored[~dots], image[:, 20:][~dots])
    assert 0.1 < dots.mean() < 0.5
    assert sheet.shape[1] == 240 and (sheet[68 + 18:] == [9, 200, 9]).all(-1).any()


def test_large_pictures_are_reduced_and_small_ones_are_not():
    def shape(size):
        sample = {"image": np.zeros((*size, 3), np.uint8), "label": np.zeros(size, np.uint8),
                  "id": "a" * 500}
        return contact_sheet([sample] * 3, [[0, 0, 0]], ["x"], columns=3, width=100).shape
    assert shape((400, 800))[1] == 3 * 100 + 2 * 4
    assert shape((10, 90))[1] == 3 * 90 + 2 * 4


def make_ade(root, name="a"):
    for folder in ("images", "annotations"):
        (root / folder / "training").mkdir(parents=True)
    for number in range(3):
        write_image(root / "images" / "training" / f"{name}{number}.png",
                    RNG.integers(0, 256, (12 + number, 20, 3), dtype=np.uint8))
        write_label(root / "annotations" / "training" / f"{name}{number}.png",
                    RNG.integers(0, 151, (12 + number, 20), dtype=np.uint8), [])
    return {"data_dir": str(root), "split": "training", "batch_size": 2}


def test_a_dataset_without_a_config_is_shown_whole_or_augmented(tmp_path, capsys):
    args = make_ade(tmp_path / "d")
    out = str(tmp_path / "o.png")
    assert run(main, ["--type", "ADE20K", "--args", json.dumps(args), "-o", out]) == 0
    assert capsys.readouterr().out == "batch 0: a0\nbatch 0: a1\nbatch 1: a2\n"
    assert read_image(out).shape[1] >= 3 * 20
    args |= {"augment": True, "crop_size": 8, "drop_last": False}
    assert run(main, ["--type", "ADE20K", "--args", json.dumps(args), "-o", out, "-n", "1"]) == 0


def test_names_are_printed_with_their_letters_and_control_characters_escaped(tmp_path, capsys):
    args = make_ade(tmp_path / "d", "ü\n")
    assert run(main, ["--type", "ADE20K", "--args", json.dumps(args), "-o",
                      str(tmp_path / "o.png"), "-n", "1"]) == 0
    assert capsys.readouterr().out == "batch 0: ü\\n0\n"


def test_a_config_is_shown_batch_by_batch(tmp_path, capsys):
    argv = ["-c", "config.json", "train_loader.args.length=16", "train_loader.args.batch_size=4",
            "-o", str(tmp_path / "o.png"), "-n", "6"]
    assert run(main, [*argv, "--batch", "2", "--epoch", "3"]) == 0
    assert [line[:8] for line in capsys.readouterr().out.splitlines()] == \
        ["batch 2:"] * 4 + ["batch 3:"] * 2
    assert run(main, [*argv, "--loader", "val"]) == 0
    assert run(main, [*argv, "--batch", "9"]) == 2
    assert run(main, [*argv[:-3], str(tmp_path / "none" / "o.png")]) == 3
