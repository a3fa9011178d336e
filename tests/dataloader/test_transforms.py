import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataloader.augmentation.pixel_transforms import GaussianBlur
from dataloader.augmentation.transforms import Augmentation, Crop, Span, View
from utils.errors import ConfigError

BORDERS = {"image_border": (115, 117, 116), "label_border": 255}


def scene(height=120, width=200, seed=0):
    """An image whose red channel is the label: 250 inside the shapes, 10 outside."""
    rng = np.random.default_rng(seed)
    label = np.zeros((height, width), np.uint8)
    for _ in range(6):
        place = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        cv2.circle(label, place, int(rng.integers(8, height // 3)), 1, -1)
    image = np.full((height, width, 3), 128, np.uint8)
    image[..., 0] = np.where(label, 250, 10)
    return image, label


def disagreement(crop: Crop):
    """Share of the band of 2 pixels around a label's edges where painted mask and label differ."""
    inside = crop.label == 1
    kernel = np.ones((5, 5), np.uint8)
    edge = cv2.dilate(inside.astype(np.uint8), kernel) != cv2.erode(inside.astype(np.uint8), kernel)
    far = cv2.erode((crop.label != 255).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    band = edge & far
    painted = crop.image[..., 0] > 130
    return (painted != inside)[band].mean() if band.any() else 0.0


CHAINS = [{"scale": s, "rotate": r, "flip": f, "blur": b}
          for s in ([0.25, 0.5], [0.5, 1.0], [1.0, 2.0], True) for r in (False, 10) for f, b in
          ((False, False), (True, True))]


@pytest.mark.parametrize("options", CHAINS, ids=str)
def test_a_painted_mask_agrees_with_the_label_after_any_chain(options):
    chain = Augmentation(crop_size=[160, 160], augment=True, **options)
    image, label = scene(480, 640)
    shares = [disagreement(chain(image, label, np.random.default_rng(i), **BORDERS))
              for i in range(12)]
    assert np.mean(shares) < 0.05


def test_identity_parameters_return_the_input_bit_for_bit():
    image, label = scene()
    rng = np.random.default_rng(1)
    same = Augmentation(augment=True, scale=False)(image, label, rng, **BORDERS)
    np.testing.assert_array_equal(same.image, image)
    np.testing.assert_array_equal(same.label, label)


def test_a_warp_by_a_tiny_angle_returns_the_input():
    image, label = scene()
    rows, columns = Span(0, 120, 120), Span(0, 200, 200)
    warped, ids = View(rows, columns, (120, 200), angle=1e-9).cut(image, label, *BORDERS.values())
    np.testing.assert_array_equal(warped, image)
    np.testing.assert_array_equal(ids, label)


def test_without_options_whole_images_are_unchanged():
    image, label = scene()
    crop = Augmentation()(image, label, np.random.default_rng(0), **BORDERS)
    assert crop.image.tobytes() == image.tobytes() and not crop.flip


@pytest.mark.parametrize("rotate", [False, 10.0])
def test_padding_never_produces_a_class(rotate):
    # Every stored pixel is class 1: anything else in the crop is padding.
    image = np.full((40, 50, 3), 200, np.uint8)
    label = np.ones((40, 50), np.uint8)
    chain = Augmentation(crop_size=96, augment=True, flip=True, rotate=rotate)
    for i in range(20):
        crop = chain(image, label, np.random.default_rng(i), **BORDERS)
        assert set(np.unique(crop.label)) <= {1, 255}
        assert (crop.label == 255).any()
        outside = cv2.erode((crop.label == 255).astype(np.uint8), np.ones((5, 5))) > 0
        assert (crop.image[outside] == BORDERS["image_border"]).all()


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), crop=st.integers(1, 80),
       base=st.none() | st.integers(1, 200), low=st.floats(0.05, 2), angle=st.floats(0, 45),
       seed=st.integers(0, 2**32 - 1))
def test_any_size_scale_and_angle_gives_a_crop_of_crop_size(height, width, crop, base,
                                                                     low, angle, seed):
    label = np.full((height, width), 3, np.uint8)
    image = np.full((height, width, 3), 77, np.uint8)
    chain = Augmentation(base_size=base, crop_size=[crop, crop + 3], augment=True,
                         scale=[low, 2 * low], flip=True, rotate=angle, blur=True)
    out = chain(image, label, np.random.default_rng(seed), **BORDERS)
    assert out.image.shape == (crop, crop + 3, 3) and out.label.shape == (crop, crop + 3)
    assert out.image.dtype == out.label.dtype == np.uint8
    assert set(np.unique(out.label)) <= {3, 255}
    assert out.image.min() >= 77 and out.image.max() <= 117


@settings(max_examples=40, deadline=None)
@given(angle=st.floats(-30, 30).filter(lambda a: abs(a) > 1e-6), flip=st.booleans(),
       size=st.integers(20, 60), start=st.integers(0, 40), length=st.integers(20, 60))
def test_the_warp_moves_each_pixel_as_the_geometry_requires(angle, flip, size, start, length):
    # A color ramp contains its coordinates, which bilinear sampling keeps exactly.
    y, x = np.mgrid[:128, :128]
    image = np.stack([x * 2, y * 2, x], -1).astype(np.uint8)
    span = Span(start, length, size)
    view = View(span, span, (size, size), angle, flip)
    shown, label = view.cut(image, np.zeros((128, 128), np.uint8), (0, 0, 0), 255)
    v, u = np.mgrid[:size, :size]
    u = size - 1 - u if flip else u
    scale = length / size
    px, py = (u + 0.5) * scale + start - 64, (v + 0.5) * scale + start - 64
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    sx, sy = c * px - s * py + 63.5, s * px + c * py + 63.5
    inside = (sx > 2) & (sx < 125) & (sy > 2) & (sy < 125)
    assert (label[inside] == 0).all()
    np.testing.assert_allclose(shown[..., 0][inside], 2 * sx[inside], atol=3)
    np.testing.assert_allclose(shown[..., 1][inside], 2 * sy[inside], atol=3)


def test_halving_keeps_an_image_in_place():
    y, x = np.mgrid[:256, :256]
    image = np.stack([x, y, x], -1).astype(np.uint8)
    span = Span(0, 256, 64)
    for angle in (0.0, 1e-9):
        shown, _ = View(span, span, (64, 64), angle).cut(image, np.zeros((256, 256), np.uint8),
                                                         (0, 0, 0), 255)
        inner = shown[2:-2, 2:-2, 0].astype(float)
        expected = (np.arange(64)[None, 2:-2] + 0.5) * 4 - 0.5
        assert np.abs(inner - expected).max() <= 1


def test_an_odd_edge_is_halved_without_losing_its_last_pixels():
    image = np.full((101, 75, 3), 180, np.uint8)
    view = View(Span(0, 101, 25), Span(0, 75, 19), (25, 19), angle=1e-9)
    shown, label = view.cut(image, np.zeros((101, 75), np.uint8), (0, 0, 0), 255)
    assert (label == 0).all() and shown[1:-1, 1:-1].min() == 180


def test_validation_resizes_the_short_side_and_cuts_the_center():
    image, label = scene(100, 300)
    crop = Augmentation(crop_size=50, val=True)(image, label, None, **BORDERS)
    expected = cv2.resize(image[:, 100:200], (50, 50), interpolation=cv2.INTER_AREA)
    assert crop.label.shape == (50, 50)
    np.testing.assert_allclose(crop.image.astype(int), expected.astype(int), atol=1)


def test_validation_without_crop_size_takes_the_whole_image():
    image, label = scene(100, 300)
    assert Augmentation(val=True)(image, label, None, **BORDERS).label.shape == (100, 300)
    resized = Augmentation(val=True, base_size=150)(image, label, None, **BORDERS)
    assert resized.label.shape == (50, 150)


def test_without_crop_size_a_crop_has_the_size_of_the_image_at_base_size():
    image, label = scene(100, 300)
    chain = Augmentation(base_size=150, augment=True, rotate=True)
    for i in range(5):
        crop = chain(image, label, np.random.default_rng(i), **BORDERS)
        assert crop.label.shape == (50, 150)


def test_the_long_side_is_between_half_and_twice_the_base_size():
    image = np.zeros((40, 100, 3), np.uint8)
    label = np.zeros((40, 100), np.uint8)
    chain = Augmentation(base_size=60, crop_size=200, augment=True)
    widths = [(chain(image, label, np.random.default_rng(i), **BORDERS).label[0] == 0).sum()
              for i in range(200)]
    assert 29 <= min(widths) < 36 and 112 < max(widths) <= 121


def test_a_flip_mirrors_image_and_label_and_is_reported():
    image, label = scene()
    chain = Augmentation(augment=True, scale=False, flip=True)
    crops = [chain(image, label, np.random.default_rng(i), **BORDERS) for i in range(40)]
    for crop in crops:
        expected = label[:, ::-1] if crop.flip else label
        np.testing.assert_array_equal(crop.label, expected)
        np.testing.assert_array_equal(crop.image, image[:, ::-1] if crop.flip else image)
    assert 8 < sum(crop.flip for crop in crops) < 32


def undone(array, crop):
    """An array (H, W, ...) of a crop before it was mirrored and turned."""
    array = np.rot90(array, -crop.turns)
    array = array[::-1] if crop.vflip else array
    return array[:, ::-1] if crop.flip else array


def coordinates(height, width):
    """An image whose pixels name their place, with a label that follows from the image."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([y, x, y ^ x], 2), (y + x) % 200


@pytest.mark.parametrize("options", [{"vflip": True}, {"rot90": True},
                                     {"flip": True, "vflip": True, "rot90": True}], ids=str)
def test_a_vertical_flip_and_quarter_turns_only_move_the_crop_that_is_cut_without_them(options):
    # So the other draws are the same with and without them, and labels are exact.
    image, label = coordinates(120, 200)
    shared = {"augment": True, "crop_size": 64, "scale": [0.5, 2.0], "rotate": True,
              "flip": options.get("flip", False)}
    with_them, without = Augmentation(**{**shared, **options}), Augmentation(**shared)
    seen = set()
    for i in range(60):
        moved = with_them(image, label, np.random.default_rng(i), **BORDERS)
        plain = without(image, label, np.random.default_rng(i), **BORDERS)
        assert moved.flip == plain.flip and moved.mirrored == (moved.flip != moved.vflip)
        back = moved._replace(flip=False)
        np.testing.assert_array_equal(undone(moved.image, back), plain.image)
        np.testing.assert_array_equal(undone(moved.label, back), plain.label)
        seen.add((moved.vflip, moved.turns))
    assert seen == {(v, t) for v in {False, options.get("vflip", False)}
                    for t in (range(4) if options.get("rot90") else [0])}


def test_a_turned_crop_that_is_not_square_keeps_its_size_and_is_a_part_of_the_image():
    image, label = coordinates(120, 200)
    chain = Augmentation(augment=True, crop_size=[40, 90], scale=False, flip=True, vflip=True,
                         rot90=True)
    turns = []
    for i in range(200):
        crop = chain(image, label, np.random.default_rng(i), **BORDERS)
        assert crop.label.shape == (40, 90) and crop.image.shape == (40, 90, 3)
        back, ids = undone(crop.image, crop), undone(crop.label, crop)
        y, x = back[0, 0, :2]
        height, width = ids.shape
        np.testing.assert_array_equal(back, image[y:y + height, x:x + width])
        np.testing.assert_array_equal(ids, label[y:y + height, x:x + width])
        turns.append(crop.turns)
    assert all(30 < turns.count(k) < 70 for k in range(4))


@pytest.mark.parametrize("width, turns", [(50, {0, 1, 2, 3}), (60, {0, 2})])
def test_whole_images_that_are_not_square_are_turned_by_0_or_180_degrees(width, turns):
    image, label = coordinates(50, width)
    chain = Augmentation(augment=True, scale=False, rot90=True)
    crops = [chain(image, label, np.random.default_rng(i), **BORDERS) for i in range(40)]
    assert {crop.turns for crop in crops} == turns
    for crop in crops:
        np.testing.assert_array_equal(undone(crop.label, crop), label)


@pytest.mark.parametrize("rotate", [False, 10.0])
def test_a_crop_shows_its_center_however_it_is_moved(rotate):
    image, label = np.zeros((120, 200, 3), np.uint8), np.zeros((120, 200), np.uint8)
    label[58:63, 140:145] = 7
    chain = Augmentation(augment=True, crop_size=[40, 60], rotate=rotate, scale=[1.0, 1.5],
                         vflip=True, rot90=True)
    for i in range(40):
        assert 7 in chain(image, label, np.random.default_rng(i), center=(60, 142),
                          **BORDERS).label


def test_the_options_of_augment_have_no_effect_without_it():
    image, label = scene()
    chain = Augmentation(scale=True, flip=True, rotate=True, blur=True, vflip=True, rot90=True)
    crops = {chain(image, label, np.random.default_rng(i), **BORDERS).image.tobytes()
             for i in range(10)}
    assert crops == {image.tobytes()}


def test_the_inputs_are_not_changed():
    image, label = scene()
    copies = image.copy(), label.copy()
    chain = Augmentation(crop_size=64, augment=True, flip=True, rotate=True, blur=True)
    for i in range(10):
        chain(image, label, np.random.default_rng(i), **BORDERS)
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(label, copies[1])


def test_blur_changes_pixels_only_above_a_kernel_of_one():
    image, label = scene()
    changed = [not np.array_equal(GaussianBlur(1.0)(image, label, np.random.default_rng(i),
                                                    **BORDERS)[0], image)
               for i in range(200)]
    assert 0.3 < np.mean(changed) < 0.5                   # sigma above 2 / 3.3


def test_labels_of_sixteen_bits_survive_the_warp():
    label = np.full((50, 50), 40000, np.uint16)
    image = np.zeros((50, 50, 3), np.uint8)
    crop = Augmentation(crop_size=64, augment=True, rotate=True)(
        image, label, np.random.default_rng(3), image_border=(0, 0, 0), label_border=65535)
    assert set(np.unique(crop.label)) == {40000, 65535}


def test_a_chain_of_the_sources_options_makes_the_same_draws_as_before():
    # A run that started before a new option existed resumes with the same samples.
    image, label = scene()
    chain = Augmentation(crop_size=64, augment=True, flip=True, rotate=True, blur=True)
    rng, same = np.random.default_rng(5), np.random.default_rng(5)
    chain(image, label, rng, **BORDERS)
    same.uniform(0.5, 2.0), same.uniform(-10, 10), same.random(3), same.uniform(0, 1)
    assert rng.bit_generator.state == same.bit_generator.state


def test_aspect_stretches_the_proportion_and_keeps_the_area():
    image, label = np.zeros((100, 100, 3), np.uint8), np.zeros((100, 100), np.uint8)
    chain = Augmentation(base_size=400, crop_size=600, augment=True, scale=False, aspect=True)
    shown = [chain(image, label, np.random.default_rng(i), **BORDERS).label == 0
             for i in range(60)]
    widths = np.array([one[0].sum() for one in shown])
    heights = np.array([one[:, 0].sum() for one in shown])
    ratios = widths / heights
    assert 0.89 < ratios.min() < 0.93 and 1.07 < ratios.max() < 1.11
    np.testing.assert_allclose(widths * heights, 400 * 400, rtol=0.004)


def mostly_one_class():
    """Class 0, with a strip of class 1 on the right and ignored pixels on the left."""
    label = np.zeros((200, 400), np.uint8)
    label[:, 300:] = 1
    label[:, :100] = 255
    return np.zeros((200, 400, 3), np.uint8), label


def test_cat_max_ratio_draws_the_crop_again_until_classes_are_mixed():
    image, label = mostly_one_class()

    def mixed(ratio, rotate=False):
        chain = Augmentation(crop_size=80, augment=True, scale=False, cat_max_ratio=ratio,
                             rotate=rotate)
        found = 0
        for i in range(60):
            labels = chain(image, label, np.random.default_rng(i), **BORDERS).label
            shares = np.bincount(labels[labels != 255], minlength=2) / max(1, (labels != 255).sum())
            found += shares.max() < 0.8
        return found / 60

    # A crop of 80 has 21 to 59 columns of 80 on one side of the edge in 3 of 25 places;
    # 11 draws miss these with probability 0.25.
    assert mixed(1.0) < 0.3 < 0.5 < mixed(0.75) and mixed(0.75, rotate=5.0) > 0.5


def test_cat_max_ratio_counts_classes_not_stored_values():
    image, label = mostly_one_class()
    chain = Augmentation(crop_size=80, augment=True, scale=False, cat_max_ratio=0.75)
    table = np.zeros(256, np.uint8)     # stored 0 and 1 are one class, 255 is ignored
    table[255] = 255
    drawn = np.random.default_rng(3)
    chain(image, label, drawn, **BORDERS, train_ids=table)
    rng = np.random.default_rng(3)
    rng.random(3 + 2 + 2 * 10)          # all 10 redraws were made
    assert drawn.bit_generator.state == rng.bit_generator.state


@pytest.mark.parametrize("angle", [0.0, -7.0, 40.0])
@pytest.mark.parametrize("flip", [False, True])
def test_the_probe_of_a_view_returns_the_pixels_of_the_crop(angle, flip):
    image, label = scene(120, 120)
    for span in (Span(10, 60, 60), Span(3, 100, 75), Span(40, 30, 80)):
        view = View(span, span, (span.shown, span.shown), angle, flip)
        _, shown = view.cut(image, label, (0, 0, 0), 255)
        share = (shown == 1).sum() / (shown != 255).sum()
        assert abs((view.probe(label, 1) == 1).mean() - share) < 0.01
        assert abs((view.probe(label) == 1).mean() - share) < 0.08
        assert view.probe(label).size <= (span.shown // 8 + 1) ** 2


def test_transforms_of_a_list_follow_the_warp_in_order():
    image, label = scene()
    chain = Augmentation(augment=True, scale=False, transforms=[
        {"type": "RGBShift", "args": {"limit": 5, "p": 1.0}},
        {"type": "Cutout", "args": {"p": 1.0, "holes": [2, 3]}}])
    crop = chain(image, label, np.random.default_rng(0), **BORDERS)
    hidden = crop.label == 255
    assert hidden.any() and (crop.image[hidden] == BORDERS["image_border"]).all()
    shifts = crop.image.astype(int) - image
    assert len(np.unique(shifts[~hidden & (label == 0)], axis=0)) == 1


@pytest.mark.parametrize("options, key", [
    ({"augment": True, "val": True}, "augment"), ({"crop_size": 64}, "crop_size"),
    ({"augment": True, "scale": [2.0, 0.5]}, "scale"), ({"augment": True, "rotate": -3}, "rotate"),
    ({"augment": True, "crop_size": [0, 5]}, "crop_size"), ({"base_size": 0}, "base_size"),
    ({"augment": True, "aspect": (1.1, 0.9)}, "aspect"), ({"aspect": True}, "aspect"),
    ({"augment": True, "cat_max_ratio": 0.0}, "cat_max_ratio"),
    ({"val": True, "crop_size": 8, "cat_max_ratio": 0.75}, "cat_max_ratio"),
    ({"transforms": [{"type": "Cutout"}]}, "transforms"),
])
def test_a_setting_that_contradicts_another_is_named(options, key):
    with pytest.raises(ConfigError) as caught:
        Augmentation(**options)
    assert key in caught.value.where


@pytest.mark.parametrize("angle", [-9.0, 0.7])
def test_opencv_warps_four_channels_like_three(angle):
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    matrix = cv2.getRotationMatrix2D((60, 45), angle, 1.3)
    options = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_CONSTANT}
    three = cv2.warpAffine(image, matrix, (64, 48), borderValue=(7, 8, 9), **options)
    four = cv2.warpAffine(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), matrix, (64, 48),
                          borderValue=(7, 8, 9, 0), **options)
    assert np.array_equal(four[..., :3], three)


def whole_crop(image, label, seed=0, **options):
    chain = Augmentation(augment=True, **{"scale": False, **options})
    return chain(image, label, np.random.default_rng(seed), **BORDERS)


@pytest.mark.parametrize("base, size", [
    ({"base_size": 60, "base_side": "short"}, (60, 100)), ({"base_size": 60}, (36, 60)),
    ({"base_size": [90, 90]}, (90, 90)), ({"base_size": [473, 40]}, (473, 40))])
def test_the_base_is_the_long_side_the_short_side_or_both(base, size):
    image, label = scene(120, 200)
    crop = whole_crop(image, label, **base)
    assert crop.image.shape == (*size, 3) and crop.label.shape == size


def test_an_exact_base_size_shows_the_whole_image_in_each_axis_at_its_own_scale():
    image, label = scene(120, 240)
    crop = whole_crop(image, label, base_size=[60, 60], crop_size=60)
    expected = cv2.resize(label, (60, 60), interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(crop.label, expected)
    turned = whole_crop(image, label, base_size=[60, 60], crop_size=60, rotate=1e-4)
    assert (turned.label == expected).mean() > 0.98      # samples lie between pixels


def test_scale_step_draws_each_multiple_equally_often():
    label = np.zeros((100, 200), np.uint8)
    chain = Augmentation(augment=True, scale=[0.5, 2.1], scale_step=0.1, crop_size=10)
    rng = np.random.default_rng(0)
    scales = [chain.draw_view(label, rng).rows.length for _ in range(1700)]
    expected = [round(10 / (0.5 + 0.1 * k)) for k in range(17)]      # HRNet: 0.5, 0.6, … 2.1
    assert set(scales) == set(expected) and chain.scale_steps[-1] == pytest.approx(2.1)
    assert scales.count(20) == pytest.approx(100, abs=30)


@pytest.mark.parametrize("rotate", [False, 1e-4])
def test_a_random_border_place_moves_the_same_pixels(rotate):
    image, label = scene(30, 40)
    tops, lefts = set(), set()
    for seed in range(60):
        crop = whole_crop(image, label, seed, crop_size=[34, 50], border_place="random",
                          border=[0, 0, 0], rotate=rotate)
        rows, columns = np.nonzero(crop.label != 255)
        top, left = rows.min(), columns.min()
        tops.add(top)
        lefts.add(left)
        inside = np.s_[top:top + 30, left:left + 40]
        assert (crop.label[inside] == label).mean() > 0.98
        outside = np.ones(crop.label.shape, bool)
        outside[inside] = False
        assert (crop.label[outside] == 255).all()
        if not rotate:
            np.testing.assert_array_equal(crop.image[inside], image)
            assert not crop.image[outside].any()
    assert tops == set(range(5)) and lefts == set(range(11))


def test_the_border_has_its_own_color_and_is_below_and_on_the_right():
    image, label = scene(30, 40)
    crop = whole_crop(image, label, crop_size=[34, 50], border=[128, 0, 7])
    np.testing.assert_array_equal(crop.image[:30, :40], image)
    assert (crop.image[30:] == (128, 0, 7)).all() and (crop.label[:, 40:] == 255).all()


def test_an_image_is_enlarged_by_the_named_interpolation():
    image, label = scene(30, 40, seed=3)
    for name, expected in (
            ("linear", cv2.resize(image, (80, 60), interpolation=cv2.INTER_LINEAR)),
            ("cubic", cv2.resize(image, (80, 60), interpolation=cv2.INTER_CUBIC)),
            ("lanczos", np.array(Image.fromarray(image).resize((80, 60), Image.LANCZOS)))):
        crop = whole_crop(image, label, base_size=80, interpolation=name)
        np.testing.assert_array_equal(crop.image, expected)
        np.testing.assert_array_equal(crop.label, cv2.resize(
            label, (80, 60), interpolation=cv2.INTER_NEAREST_EXACT))


@pytest.mark.parametrize("interpolation", ["linear", "cubic", "lanczos"])
@pytest.mark.parametrize("scale", [0.4, 1.5])
def test_a_rotated_image_is_interpolated_as_one_that_is_not(interpolation, scale):
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8),
                             (0, 0), 4)
    image = cv2.normalize(image, np.empty_like(image), 0, 255, cv2.NORM_MINMAX)
    label = np.zeros((90, 120), np.uint8)
    flat, turned = (whole_crop(image, label, scale=[scale, scale], crop_size=30, rotate=rotate,
                               interpolation=interpolation) for rotate in (False, 1e-6))
    difference = np.abs(flat.image.astype(int) - turned.image)
    assert difference.mean() < 1.5


@pytest.mark.parametrize("options, key", [
    ({"base_side": "short"}, "base_side"), ({"base_side": "short", "base_size": [3, 4]},
                                            "base_side"),
    ({"base_size": [3, 4, 5]}, "base_size"), ({"base_size": 0}, "base_size"),
    ({"base_size": [3, 4], "augment": False}, "base_size"),
    ({"base_size": 9, "base_side": "short", "augment": False}, "base_side"),
    ({"scale_step": 0.1, "scale": False}, "scale_step"), ({"scale_step": 2.0}, "scale_step"),
    ({"border": [1, 2]}, "border"), ({"border": [0, 0, 256]}, "border"),
    ({"border": [0, 0, 0], "augment": False}, "border"),
    ({"interpolation": "cubic", "augment": False}, "interpolation"),
])
def test_a_wrong_base_step_or_border_is_refused(options, key):
    with pytest.raises(ConfigError) as caught:
        Augmentation(**{"augment": True, **options})
    assert caught.value.where == key
