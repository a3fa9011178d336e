"""The validation of RankDice's recipes: through a protocol, directly, and restated plainly.

Dai and Li, RankSEG, JMLR 2023: images and labels reduced to a short side, the center scored, scores
as that program computes them.
"""
import json
import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from base.base_model import BaseModel
from dataloader.loader import make_loader
from tests.predict.test_protocols import rankdice_crop
from trainer import Trainer
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.decision.rankdice import rank_dice
from utils.images.normalize import Normalize
from utils.training.criterion import Criterion

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# protocol -> (the side of the center, classes, classes of interest)
PROTOCOLS = {"rankdice-kvasir": (320, 2, [1]), "rankdice-voc": (480, 21, list(range(1, 21))),
             "rankdice-cityscapes": (512, 19, list(range(19)))}


class Net(BaseModel):
    """Logits of every pixel from its color and that of its neighbors."""

    def __init__(self, classes):
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Conv2d(3, classes, 3, padding=1)
        with torch.no_grad():
            self.last.weight.mul_(12 / classes ** 0.5)

    def forward(self, x):
        out = self.last(x)
        return {"out": out} if self.training else out


@pytest.fixture
def pictures(tmp_path):
    """Returns for sizes and a number of classes: the folder of as many images with labels."""
    def write(sizes, classes):
        rng = np.random.default_rng(1)
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir()
        for number, (height, width) in enumerate(sizes):
            rough = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
            image = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
            parts = rng.integers(0, classes, (height // 40 + 1, width // 40 + 1), dtype=np.uint8)
            label = cv2.resize(parts, (width, height), interpolation=cv2.INTER_NEAREST)
            label[rng.random(label.shape) < 0.05] = 255
            Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
            Image.fromarray(label).save(tmp_path / "labels" / f"{number}.png")
        return tmp_path
    return write


def validated(folder, classes, rule, *predict):
    """The Scores of a validation of the trainer on the images of a folder."""
    section = {"type": "Folder", "args": {
        "data_dir": str(folder), "num_classes": classes, "batch_size": 2, "num_workers": 0}}
    config = resolve_config(load_config("config.json", [
        f"train_loader={json.dumps(section)}", f"val_loader={json.dumps(section)}",
        "loss=CrossEntropyLoss2d", "trainer.tensorboard=false", f"predict.val={rule}",
        "predict.posterior=raw", "trainer.amp=false", *predict]))
    loader = make_loader(config["val_loader"], ignore_index=255)
    model = Net(classes)
    trainer = Trainer(model, Criterion(config["loss"], model.output_weights),
                      Normalize(MEAN, STD), loader, loader, config, folder / "run",
                      torch.device("cpu"))
    return trainer._scores(loader, None)[0]


@pytest.mark.parametrize("rule", ["T", "rankdice", "rankiou", "max"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_images_of_the_published_size_have_the_same_scores_without_the_protocol(pictures, protocol,
                                                                                rule):
    side, classes, interest = PROTOCOLS[protocol]
    folder = pictures([(side, side)], classes)
    posterior = ["predict.posterior=null"] * (rule == "max")
    through = validated(folder, classes, rule, f"predict.protocol={protocol}", *posterior)
    direct = validated(folder, classes, rule, "predict.published=true", "predict.base_size=null",
                       f"predict.CoI={interest}", *posterior)
    np.testing.assert_equal(through.numbers(), direct.numbers())
    np.testing.assert_equal(through.image, direct.image)
    np.testing.assert_equal(through.dataset, direct.dataset)
    assert 0 < through.numbers()["mIoU_I"] < 1 and through.images == 1


def restated(folder, side, classes, interest, rule):
    """(mIoU_I, mDice_I) by the steps of the published program, image by image."""
    model, scores = Net(classes).eval(), []
    for path in sorted((folder / "images").iterdir()):
        image = np.array(Image.open(path))
        label = np.array(Image.open(folder / "labels" / path.name))
        image, label = rankdice_crop(image, label, side)
        x = (image / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        with torch.inference_mode():
            probs = model(torch.from_numpy(x).permute(2, 0, 1)[None]).softmax(1)
        if rule == "T":
            masks = (probs > 0.5)[0].numpy()
        else:
            masks = rank_dice(probs, metric=rule.removeprefix("rank"), overlap=True,
                              pruning=0.5)[0].numpy()
        iou, dice = [], []
        for k in interest:
            hits = (masks[k] & (label == k)).sum()
            pixels = masks[k].sum() + (label == k).sum()    # also where nothing is labeled
            if pixels:
                iou.append(hits / (pixels - hits + 1e-5))
                dice.append(2 * hits / (pixels + 1e-5))
        scores.append((np.mean(iou), np.mean(dice)))
    return np.mean(scores, 0)


@pytest.mark.parametrize("rule", ["T", "rankdice", "rankiou"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_images_of_other_sizes_have_the_scores_of_the_published_steps(pictures, protocol, rule):
    _, classes, interest = PROTOCOLS[protocol]
    folder, side = pictures([(75, 101), (64, 50), (33, 96)], classes), 48     # a tenth of the size
    scores = validated(folder, classes, rule, f"predict.protocol={protocol}",
                       f"predict.input_size={side}", f"predict.input_crop={side}").numbers()
    expected = restated(folder, side, classes, interest, rule)
    assert (scores["mIoU_I"], scores["mDice_I"]) == pytest.approx(expected, abs=2e-4)
    assert all(0.001 < one < 0.9 for one in expected) and not math.isnan(scores["loss"])


def test_the_full_size_is_that_of_the_published_program(pictures):
    side, classes, interest = PROTOCOLS["rankdice-kvasir"]
    folder = pictures([(533, 622), (487, 332)], classes)
    scores = validated(folder, classes, "T", "predict.protocol=rankdice-kvasir").numbers()
    expected = restated(folder, side, classes, interest, "T")
    assert (scores["mIoU_I"], scores["mDice_I"]) == pytest.approx(expected, abs=1e-6)
