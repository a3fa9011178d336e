"""Operations on the crop: color, blur, holes, RandAugment."""
import colorsys

import cv2
import numpy as np
import pytest

from dataloader.augmentation.pixel_transforms import (
    BrightnessShift,
    ColorJitter,
    Cutout,
    GaussianBlur,
    PhotometricDistortion,
    RandomDistort,
    RGBShift,
    change_brightness,
    change_contrast,
    change_saturation,
    change_sharpness,
    turn_hue,
)
from dataloader.augmentation.rand_augment import (
    GEOMETRIC,
    OPERATIONS,
    RandAugment,
    affine,
    recolor,
)
from utils.config.build import build
from utils.config.registry import components
from utils.errors import ConfigError

BORDERS = {"image_border": (115, 117, 116), "label_border": 255}


def picture(height=48, width=64, seed=0):
    """Smooth colors of every hue with some noise, and a label of blocks."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([127 + 90 * np.sin(x / 9), 127 + 90 * np.cos(y / 7),
                      127 + 90 * np.sin((x + y) / 11)], -1)
    image += np.random.default_rng(seed).normal(0, 8, image.shape)
    label = ((y // 12) + (x // 16)).astype(np.uint8)
    return image.clip(0, 255).astype(np.uint8), label


def run(transform, image, label, seed=0):
    return transform(image, label, np.random.default_rng(seed), **BORDERS)


EVERY = {"ColorJitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.3}}


@pytest.mark.parametrize("name", sorted(components("transforms")))
def test_every_transform_keeps_its_inputs_and_repeats_from_the_generator(name):
    transform = build("transforms", {"type": name, "args": EVERY.get(name, {})})
    image, label = picture()
    before = image.copy(), label.copy()
    for seed in range(12):
        shown, ids = run(transform, image, label, seed)
        assert shown.shape == image.shape and shown.dtype == np.uint8
        assert ids.shape == label.shape and ids.dtype == label.dtype
        assert set(np.unique(ids)) <= {*np.unique(label), 255}
        again = run(transform, image, label, seed)
        assert np.array_equal(shown, again[0]) and np.array_equal(ids, again[1])
    assert np.array_equal(image, before[0]) and np.array_equal(label, before[1])


@pytest.mark.parametrize("name", sorted(components("transforms")))
def test_every_transform_takes_labels_of_sixteen_bits(name):
    transform = build("transforms", {"type": name, "args": EVERY.get(name, {})})
    image, label = picture()
    wide = label.astype(np.uint16) + 1000
    for seed in range(8):
        ids = transform(image, wide, np.random.default_rng(seed), image_border=(0, 0, 0),
                        label_border=65535)[1]
        assert ids.dtype == np.uint16 and set(np.unique(ids)) <= {*np.unique(wide), 65535}


@pytest.mark.parametrize("transform", [
    ColorJitter((1, 1), (1, 1), (1, 1), (0, 0)), GaussianBlur(0.0), GaussianBlur(0.0, (3, 5)),
    RandomDistort(0, 1, 0, 1, 0, 1, 0, 1, 0, 1), BrightnessShift(5, p=0.0), Cutout(p=0.0),
    PhotometricDistortion(0, (1, 1), (1, 1), 0), RandAugment(9, 9, p=0.0),
], ids=lambda one: type(one).__name__)
def test_identity_parameters_return_the_input_bit_for_bit(transform):
    image, label = picture()
    for seed in range(8):
        shown, ids = run(transform, image, label, seed)
        assert np.array_equal(shown, image) and np.array_equal(ids, label)


# --- color ---

@pytest.mark.parametrize("ours, theirs", [
    (change_brightness, "adjust_brightness"), (change_contrast, "adjust_contrast"),
    (change_saturation, "adjust_saturation"), (change_sharpness, "adjust_sharpness"),
])
def test_color_changes_equal_torchvisions(ours, theirs):
    functional = pytest.importorskip("torchvision.transforms.functional")
    from PIL import Image
    image, _ = picture()
    for factor in (0.0, 0.4, 1.0, 1.3, 2.5):
        expected = np.asarray(getattr(functional, theirs)(Image.fromarray(image), factor))
        error = np.abs(ours(image, factor).astype(int) - expected)
        assert error.max() <= 2 and error.mean() < 0.9, factor       # truncated there, rounded here


def test_a_rotation_of_the_hue_equals_exact_hsv():
    image, _ = picture(24, 32)
    for share in (-0.5, -0.3, -0.05, 0.1, 0.3, 0.5):
        expected = np.empty(image.shape)
        for place in np.ndindex(image.shape[:2]):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[place] / 255)
            expected[place] = colorsys.hsv_to_rgb((hue + share) % 1, saturation, value)
        error = np.abs(turn_hue(image, share) - 255 * expected)
        # Half a step of a byte's hue is 6/512 of the chroma, which is up to 200 here; twice.
        assert error.max() < 6 and error.mean() < 1, share


def test_a_color_changes_as_computed_by_hand():
    # Luma of (200, 100, 50) is 0.299·200 + 0.587·100 + 0.114·50 = 124.2.
    image = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    assert change_brightness(image, 1.5)[0, 0].tolist() == [255, 150, 75]
    assert change_contrast(image, 0.5)[0, 0].tolist() == [162, 112, 87]
    assert change_saturation(image, 0.0)[0, 0].tolist() == [124, 124, 124]
    # A third of the circle turns red into green.
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    assert np.abs(turn_hue(red, 1 / 3)[0, 0].astype(int) - [0, 255, 0]).max() <= 5


def test_color_jitter_draws_factors_from_their_ranges():
    image = np.full((4, 4, 3), 100, np.uint8)
    label = np.zeros((4, 4), np.uint8)
    values = [run(ColorJitter(brightness=0.3), image, label, i)[0][0, 0, 0] for i in range(300)]
    assert 70 <= min(values) <= 71 and 129 <= max(values) <= 130
    values = [run(ColorJitter(brightness=(1.2, 1.4)), image, label, i)[0][0, 0, 0]
              for i in range(100)]
    assert 120 <= min(values) < max(values) <= 140


def test_color_jitter_applies_brightness_first_unless_the_order_is_random():
    # Half the pixels are 200: doubled and clipped before the contrast, or after it.
    image, label = np.full((2, 4, 3), 20, np.uint8), np.zeros((2, 4), np.uint8)
    image[:, 2:] = 200

    def results(order):
        jitter = ColorJitter(brightness=(2, 2), contrast=(0.5, 0.5), order=order)
        return {tuple(run(jitter, image, label, i)[0][0, :, 0]) for i in range(20)}
    first = {tuple(change_contrast(change_brightness(image, 2), 0.5)[0, :, 0])}
    other = {tuple(change_brightness(change_contrast(image, 0.5), 2)[0, :, 0])}
    assert first != other
    assert results("fixed") == first and results("random") == first | other


def test_the_saturation_of_photometric_distortion_keeps_hue_and_value():
    image, label = picture()
    transform = PhotometricDistortion(0, (1, 1), (0.5, 0.5), 0)
    changed = [one for one in (run(transform, image, label, i)[0] for i in range(12))
               if not np.array_equal(one, image)]
    assert 2 < len(changed) < 11
    np.testing.assert_array_equal(changed[0].max(-1), image.max(-1))      # value of HSV
    chroma = np.ptp(image, -1).astype(float)
    np.testing.assert_allclose(np.ptp(changed[0], -1), chroma / 2, atol=3)


def test_photometric_distortion_shifts_by_up_to_32():
    image, label = np.full((4, 4, 3), 100, np.uint8), np.zeros((4, 4), np.uint8)
    transform = PhotometricDistortion(contrast=(1, 1), saturation=(1, 1), hue=0)
    values = np.array([run(transform, image, label, i)[0][0, 0, 0] for i in range(400)])
    assert 68 <= values.min() <= 70 and 130 <= values.max() <= 132
    assert 0.4 < (values == 100).mean() < 0.6


def test_brightness_shift_adds_one_whole_number_to_all_channels():
    image = np.zeros((4, 4, 3), np.uint8) + np.uint8([50, 100, 252])
    label = np.zeros((4, 4), np.uint8)
    shifts = set()
    for i in range(300):
        pixel = run(BrightnessShift(), image, label, i)[0][0, 0].astype(int)
        assert pixel[0] - 50 == pixel[1] - 100
        assert pixel[2] == min(255, 252 + pixel[0] - 50)
        shifts.add(int(pixel[0] - 50))
    assert shifts == set(range(-10, 11))


def test_rgb_shift_moves_each_channel_separately():
    image, label = np.full((4, 4, 3), 100, np.uint8), np.zeros((4, 4), np.uint8)
    pixels = np.array([run(RGBShift(10, p=1.0), image, label, i)[0][0, 0] for i in range(300)])
    assert pixels.min() == 90 and pixels.max() == 110
    assert np.abs(np.corrcoef(pixels.T) - np.eye(3)).max() < 0.2


def test_p_is_the_probability_of_a_transform():
    image, label = picture()
    changed = [not np.array_equal(run(Cutout(p=0.3), image, label, i)[1], label)
               for i in range(300)]
    assert 0.22 < np.mean(changed) < 0.38


# --- blur and holes ---

def test_a_blur_has_the_given_kernel_and_sigma():
    image, label = np.zeros((21, 21, 3), np.uint8), np.zeros((21, 21), np.uint8)
    image[10, 10] = 255
    for seed in range(20):
        shown = run(GaussianBlur(sigma=(2.0, 2.0), kernel_size=(5, 5)), image, label, seed)[0]
        expected = cv2.GaussianBlur(image, (5, 5), 2.0)
        assert np.array_equal(shown, expected)
    widths = {int((run(GaussianBlur(sigma=None, kernel_size=(3, 7)), image, label, i)[0][10, :, 0]
                   > 0).sum()) for i in range(40)}
    assert widths == {3, 5, 7}


def test_cutout_hides_rectangles_and_ignores_what_is_under_them():
    image, label = picture(100, 200)
    heights, widths = [], []
    for seed in range(200):
        shown, ids = run(Cutout(p=1.0, size=(0.1, 0.3)), image, label, seed)
        hidden = ids == 255
        rows, columns = hidden.any(1), hidden.any(0)
        assert hidden.sum() == rows.sum() * columns.sum() > 0         # one full rectangle
        assert (shown[hidden] == BORDERS["image_border"]).all()
        assert np.array_equal(shown[~hidden], image[~hidden])
        assert np.array_equal(ids[~hidden], label[~hidden])
        heights.append(rows.sum()), widths.append(columns.sum())
    assert 28 <= max(heights) <= 30 and 57 <= max(widths) <= 60


# --- RandAugment ---

def test_randaugment_has_fifteen_operations_and_eleven_when_light():
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 15
    assert len(RandAugment(mode="light").operations) == 11


def painted(height=120, width=160):
    """An image whose red channel is the label: 250 inside the shapes, 10 outside."""
    label = np.zeros((height, width), np.uint8)
    for x, y, radius in ((30, 40, 22), (90, 30, 18), (120, 90, 25), (55, 95, 15)):
        cv2.circle(label, (x, y), radius, 1, -1)
    image = np.full((height, width, 3), 128, np.uint8)
    image[..., 0] = np.where(label, 250, 10)
    return image, label


def test_randaugment_moves_image_and_label_together():
    image, label = painted()
    transform = RandAugment(n=3, magnitude=6, p=1.0)
    transform.operations = list(GEOMETRIC)
    for seed in range(25):
        shown, ids = run(transform, image, label, seed)
        wrong = ((shown[..., 0] > 130) != (ids == 1)) & (ids != 255)
        inside = (ids == 1).astype(np.uint8)
        near, band = [cv2.dilate(inside, np.ones(k)) != cv2.erode(inside, np.ones(k))
                      for k in ((3, 3), (5, 5))]
        assert not (wrong & ~near).any() and wrong.sum() < 0.05 * band.sum()


def test_pixels_that_randaugment_moves_in_from_outside_are_ignored():
    image, label = painted()
    for name, share in (("translate_x", 0.2), ("translate_y", 0.2)):
        transform = RandAugment(n=1, magnitude=9, p=1.0)
        transform.operations = [name]
        shown, ids = run(transform, image, label, 1)
        assert abs((ids == 255).mean() - share) < 0.01
        assert set(np.unique(shown[..., 1])) == {128}          # mirrored, not black


@pytest.mark.parametrize("name, magnitude, point, source", [
    ("translate_x", 9, (10, 20), (10 + 0.2 * 61, 20)),
    ("translate_y", 3, (10, 20), (10, 20 + 0.2 / 3 * 41)),
    ("rotate", 9, (30 + 10, 20), (30 + 10 * np.cos(np.pi / 6), 20 + 5)),
    ("shear_x", 9, (10, 30), (10 + 10 * np.tan(np.radians(16.7)), 30)),
    ("shear_y", 9, (40, 20), (40, 20 + 10 * np.tan(np.radians(16.7)))),
    ("rotate", 0, (3, 4), (3, 4)),
])
def test_the_geometry_of_randaugment_matches_the_table(name, magnitude, point, source):
    # The center of 41 x 61 pixels is pixel (30, 20).
    moved = affine(name, magnitude, 1, (41, 61)) @ [*point, 1]
    np.testing.assert_allclose(moved[:2], source, atol=1e-9)
    back = affine(name, magnitude, -1, (41, 61)) @ [30, 20, 1]
    if name not in ("translate_x", "translate_y"):
        np.testing.assert_allclose(back[:2], (30, 20), atol=1e-9)


@pytest.mark.parametrize("name, magnitude, expected", [
    ("invert", 0, [255, 155, 55]), ("solarize", 0, [0, 100, 200]), ("solarize", 9, [255, 155, 55]),
    ("solarize", 3, [0, 100, 55]), ("posterize", 0, [0, 100, 200]), ("posterize", 9, [0, 96, 192]),
    ("brightness", 9, [0, 190, 255]), ("identity", 9, [0, 100, 200]),
])
def test_the_recoloring_of_randaugment_matches_the_table(name, magnitude, expected):
    image = np.zeros((4, 4, 3), np.uint8) + np.uint8([0, 100, 200])
    assert recolor(image, name, magnitude, 1)[0, 0].tolist() == expected


def test_at_magnitude_zero_only_operations_without_one_change_the_image():
    image, _ = picture()
    for name in set(OPERATIONS) - set(GEOMETRIC):
        same = np.array_equal(recolor(image, name, 0, -1), image)
        assert same == (name not in ("invert", "equalize", "blur")), name


# --- mistakes ---

@pytest.mark.parametrize("name, args, words", [
    ("ColorJitter", {}, "nothing would change"), ("ColorJitter", {"hue": 0.6}, "hue"),
    ("ColorJitter", {"contrast": -0.1}, "contrast"),
    ("ColorJitter", {"hue": 0.1, "p": 2.0}, "probability"),
    ("ColorJitter", {"brightness": [1.3, 0.7]}, "brightness"),
    ("GaussianBlur", {"sigma": None}, "kernel_size"), ("GaussianBlur", {"sigma": -1.0}, "sigma"),
    ("GaussianBlur", {"kernel_size": [2, 4]}, "odd"), ("Cutout", {"size": [0.1, 1.5]}, "size"),
    ("Cutout", {"holes": 0}, "holes"), ("RGBShift", {"limit": 0}, "limit"),
    ("RandomDistort", {"hue_range": 129}, "hue_range"),
    ("RandomDistort", {"hue_prob": -1.0}, "probability"),
    ("BrightnessShift", {"limit": 300}, "limit"), ("PhotometricDistortion", {"hue": 91}, "hue"),
    ("RandAugment", {"magnitude": 10}, "magnitude"), ("RandAugment", {"n": 0}, "n must"),
])
def test_a_value_out_of_range_is_refused_with_its_name(name, args, words):
    with pytest.raises(ConfigError, match=words):
        build("transforms", {"type": name, "args": args})
