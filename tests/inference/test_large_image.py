"""Images that are segmented window by window."""
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from utils.cli.console import Interrupted
from utils.decision.rules import build_decision
from utils.errors import ConfigError, DataError
from utils.images import visualize
from utils.images.normalize import Normalize
from utils.images.palette import voc_palette
from utils.inference import large_image
from utils.inference.large_image import is_streamed, segment_large
from utils.inference.prediction_files import LABELS, MASKS, OVERLAY, SIDE_BY_SIDE
from utils.predict.predictor import build_predictor

NAMES = ["dark", "medium", "bright"]
OPTIONS = {"mode": "sliding", "crop_size": (16, 24), "overlap": 0.25}


class Brightness(torch.nn.Module):
    """Classifies each pixel by its brightness, so that windows change nothing."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        level = x.mean(1, keepdim=True)
        return self.scale * torch.cat([-level, 0.1 - level.abs(), level], 1)


def stages(**options):
    """Returns (model, predictor) with the attributes that segment_large needs."""
    network = Brightness().eval()
    normalize = Normalize([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
    opened = SimpleNamespace(class_names=NAMES, palette=voc_palette(3), label_ids=None,
                             device=torch.device("cpu"), normalize=normalize)
    return opened, build_predictor(network, normalize, {**OPTIONS, **options}, "softmax")


def outputs(folder, *suffixes):
    return {suffix: os.path.join(folder, f"a{suffix}") for suffix in suffixes}


@pytest.fixture
def image():
    return np.random.default_rng(3).integers(0, 256, (37, 61, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def strips_of_a_few_rows(monkeypatch):
    monkeypatch.setattr(large_image, "STRIP_PIXELS", 200)


def test_the_labels_equal_those_of_the_whole_image(image, tmp_path):
    opened, predictor = stages()
    decision = build_decision("max", "softmax", {})
    paths = outputs(tmp_path, LABELS, OVERLAY, SIDE_BY_SIDE, MASKS)
    shares = segment_large(image, paths, opened, predictor, decision)
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = decision.labels(predictor(x))[0].numpy()
    with Image.open(paths[LABELS]) as written:
        assert np.array_equal(np.array(written), expected)
    with Image.open(paths[SIDE_BY_SIDE]) as written:
        assert np.array_equal(np.array(written)[:37, :61], image)
        assert written.width == 240 and written.height > 37       # room for a legend
    with Image.open(os.path.join(paths[MASKS], "01_medium.png")) as written:
        assert np.array_equal(np.array(written), expected == 1)
    assert shares == pytest.approx({name: (expected == k).mean() for k, name in enumerate(NAMES)})


def test_the_legend_of_many_classes_lists_those_that_occur_and_can_be_left_out(image, tmp_path,
                                                                              monkeypatch):
    opened, predictor = stages()
    decision = build_decision("max", "softmax", {})
    paths = outputs(tmp_path, LABELS, OVERLAY)

    def picture(pixels, **options):
        segment_large(pixels, paths, opened, predictor, decision, **options)
        return np.array(Image.open(paths[OVERLAY]))
    assert picture(image, legend=False).shape == image.shape
    monkeypatch.setattr(large_image, "MOST_LISTED", 2)
    monkeypatch.setattr(visualize, "MOST_LISTED", 2)
    below = picture(np.full_like(image, 255))[37:]      # bright everywhere
    colors = set(map(tuple, below.reshape(-1, 3).tolist()))
    assert tuple(opened.palette[2]) in colors and tuple(opened.palette[1]) not in colors


def test_no_file_is_left_after_a_stop_between_two_strips(image, tmp_path):
    def check_stop():
        if list(tmp_path.glob(".part-*")):      # the outputs have been opened
            raise Interrupted(signal.SIGINT)
    opened, predictor = stages()
    with pytest.raises(Interrupted):
        segment_large(image, outputs(tmp_path, LABELS, OVERLAY), opened, predictor,
                      build_decision("max", "softmax", {}), check_stop)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("rule, suffix, text", [
    ("rankdice", LABELS, "-p max"), ("T", MASKS, "--masks of rule T")])
def test_results_that_need_all_logits_at_once_are_an_error(image, tmp_path, rule, suffix, text):
    opened, predictor = stages()
    with pytest.raises(DataError, match=text):
        segment_large(image, outputs(tmp_path, LABELS, suffix), opened, predictor,
                      build_decision(rule, "softmax", {}))


def test_only_large_images_in_mode_sliding_are_streamed():
    _, predictor = stages()
    assert is_streamed(1 << 13, 1 << 12, predictor)
    assert not is_streamed(1 << 12, 1 << 12, predictor)
    assert not is_streamed(1 << 13, 1 << 12, stages(scales=(0.5, 1.0))[1])
    assert not is_streamed(1 << 13, 1 << 12, stages(mode="whole", crop_size=None)[1])
    mirrored = stages(flip=True, average="view_probs")[1]
    assert not is_streamed(1 << 13, 1 << 12, mirrored)
    with pytest.raises(ConfigError, match="not with mirrored views"):
        mirrored.in_blocks(np.zeros((40, 40, 3), np.uint8), "cpu", lambda *_: None)
