"""The sizes, pixels and labels of an input size, against numbers worked out by hand."""
import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from utils.errors import ConfigError
from utils.images.input_size import InputSize, resize_logits
from utils.predict.windows import filled


def sizes(height, width, **settings):
    view = InputSize(**settings).view(height, width)
    return view.resized, view.padded


def image(height=30, width=50):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size,settings,resized,padded", [
    # 683 x 512 of an ADE20K image: the short side is 512, 683 * 512 / 512 stays.
    ((512, 683), {"input_size": 512, "long_side": 2048}, (512, 683), (512, 683)),
    # 512 / 375 = 1.365; 500 * 1.365 = 682.67
    ((375, 500), {"input_size": 512, "long_side": 2048}, (512, 683), (512, 683)),
    ((375, 500), {"input_size": 512, "rounding": "floor"}, (512, 682), (512, 682)),
    # A panorama: 2048 / 5000 = 0.4096; 300 * 0.4096 = 122.88
    ((300, 5000), {"input_size": 512, "long_side": 2048}, (123, 2048), (123, 2048)),
    ((375, 500), {"input_size": 512, "multiple": 32}, (512, 704), (512, 704)),
    # openseg: 520 / 375 * 500 = 693.33, padded to a multiple of 8
    ((375, 500), {"input_size": 520, "multiple": 8, "fill": "pad"}, (520, 693), (520, 696)),
    ((600, 400), {"input_size": (473, 473)}, (473, 473), (473, 473)),
    ((33, 47), {"multiple": 8}, (40, 48), (40, 48)),
    ((1024, 2048), {"input_size": 512, "input_crop": 512, "score_at": "input"}, (512, 1024),
     (512, 512))])
def test_sizes_are_those_worked_out_by_hand(size, settings, resized, padded):
    assert sizes(*size, **settings) == (resized, padded)


@pytest.mark.parametrize("scale,resized", [
    (0.5, (256, 341)),      # 256 / 375 * 500 = 341.33
    (1.75, (896, 1195)),    # 896 / 375 * 500 = 1194.67
    (0.75, (384, 512))])
def test_a_scale_multiplies_the_short_side_and_its_limit(scale, resized):
    size = InputSize(input_size=512, long_side=2048, scale_from="image")
    assert size.view(375, 500, scale).resized == resized
    # 300 x 5000 at 0.5: long side at most 1024
    assert size.view(300, 5000, 0.5).resized == (61, 1024)


@pytest.mark.parametrize("interpolation,expected", [
    ("linear", lambda x: cv2.resize(x, (70, 20), interpolation=cv2.INTER_LINEAR)),
    ("cubic", lambda x: cv2.resize(x, (70, 20), interpolation=cv2.INTER_CUBIC)),
    ("lanczos", lambda x: np.array(Image.fromarray(x).resize((70, 20), Image.Resampling.LANCZOS))),
    ("antialias", lambda x: np.array(Image.fromarray(x).resize((70, 20),
                                                               Image.Resampling.BILINEAR)))])
def test_pixels_are_those_of_the_library_that_the_source_uses(interpolation, expected):
    view = InputSize(input_size=(20, 70), interpolation=interpolation).view(30, 50)
    assert np.array_equal(view.cut(image()), expected(image()))


def test_labels_are_those_of_pillows_nearest_cut_to_the_center():
    label = np.arange(30 * 50, dtype=np.int64).reshape(30, 50) % 251
    size = InputSize(input_size=20, rounding="floor", input_crop=(18, 21), score_at="input")
    view = size.view(30, 50)
    small = np.array(Image.fromarray(label.astype(np.uint8)).resize((33, 20),
                                                                    Image.Resampling.NEAREST))
    assert view.inside == (1, 6, 18, 21) and view.scored == (18, 21)
    assert np.array_equal(view.labels(torch.from_numpy(label)[None])[0], small[1:19, 6:27])


def test_padding_is_added_after_normalization_and_left_out_of_the_logits():
    view = InputSize(input_size=20, multiple=16, fill="pad").view(30, 50)
    padded = filled(torch.ones(1, 3, 20, 33), view.padded)
    assert padded.shape == (1, 3, 32, 48)
    assert padded[..., :20, :33].eq(1).all() and padded.sum() == 3 * 20 * 33
    logits = torch.zeros(1, 2, 32, 48)
    logits[..., 20:, :], logits[..., 33:] = 9, 9
    assert view.logits(logits).shape == (1, 2, 30, 50) and not view.logits(logits).any()


@pytest.mark.parametrize("size", [(45, 71), (12, 20)])
@pytest.mark.parametrize("name,flag", [("linear", cv2.INTER_LINEAR), ("cubic", cv2.INTER_CUBIC)])
def test_logits_agree_with_opencv(name, flag, size):
    logits = torch.randn(1, 4, 30, 50, generator=torch.Generator().manual_seed(0))
    expected = cv2.resize(logits[0].permute(1, 2, 0).numpy(), (size[1], size[0]),
                          interpolation=flag)
    result = resize_logits(logits, size, name)[0].permute(1, 2, 0).numpy()
    assert np.abs(result - expected).max() < 2e-5


def test_nearest_logits_have_the_labels_of_pillows_nearest():
    logits = torch.randn(1, 4, 30, 50, generator=torch.Generator().manual_seed(0))
    labels = Image.fromarray(logits.argmax(1)[0].numpy().astype(np.uint8))
    expected = np.array(labels.resize((133, 71), Image.Resampling.NEAREST))
    assert np.array_equal(resize_logits(logits, (71, 133), "nearest").argmax(1)[0], expected)


@pytest.mark.parametrize("wrong,key", [
    ({"input_size": 0}, "input_size"), ({"input_size": (0, 5)}, "input_size"),
    ({"multiple": 0}, "multiple"), ({"input_size": 10 ** 6}, "input_size"),
    ({"long_side": 100}, "long_side"), ({"input_size": (3, 4), "long_side": 9}, "long_side"),
    ({"input_size": 100, "long_side": 50}, "long_side"),
    ({"interpolation": "cubic"}, "interpolation"), ({"score_at": "input"}, "score_at"),
    ({"input_size": 5, "fill": "pad"}, "fill"), ({"input_crop": 5}, "input_crop")])
def test_a_setting_that_is_wrong_or_has_no_effect_is_refused(wrong, key):
    with pytest.raises(ConfigError) as caught:
        InputSize(**wrong)
    assert caught.value.where == f"predict.{key}"


def test_for_files_the_whole_image_is_shown():
    size = InputSize(input_size=20, input_crop=8, score_at="input")
    assert size.whole().describe() == {"input_size": 20}
    assert not InputSize(input_crop=8, score_at="input").whole().active
