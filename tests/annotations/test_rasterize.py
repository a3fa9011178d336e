"""Outlines and masks as label maps: to the pixel as pycocotools, holes, and what overlaps."""
import numpy as np
import pytest

from utils.annotations import rasterize
from utils.annotations.annotation_set import Cutout, Region, Runs
from utils.annotations.rasterize import draw, region_masks
from utils.errors import DataError
from utils.images.run_lengths import compressed_runs, run_lengths

# (what, size, outline, run lengths of pycocotools 2.0)
GOLDEN = [
    ("a square on the borders of pixels", (8, 8), [2, 2, 6, 2, 6, 6, 2, 6], "b04400000>"),
    ("a square between them", (8, 8), [1.5, 1.5, 5.5, 1.5, 5.5, 5.5, 1.5, 5.5], "b04400000>"),
    ("the whole image and beyond", (5, 7), [-9, -9, 40, -9, 40, 40, -9, 40], "0S1"),
    ("outside", (6, 6), [10, 10, 14, 10, 12, 15], "T1"),
    ("partly outside", (9, 9), [-4.3, 3.2, 5.7, -6.1, 7.2, 5.8, 3.3, 14], "0m1d0"),
    ("a bow tie", (10, 10), [1, 1, 9, 9, 9, 1, 1, 9], ";74N2N2N10O2N2N28"),
    ("a star that crosses itself", (20, 20), [10, 1, 15.3, 18, 1, 7.2, 19, 7.2, 4.7, 18],
     "k01c0001O1O1DM53G19MI27ML122714LC160G280F19OJN617O1O10="),
    ("smaller than a pixel", (6, 6), [2.1, 2.1, 2.6, 2.2, 2.3, 2.7], "T1"),
    ("a point, three times", (6, 6), [3, 3, 3, 3, 3, 3], "T1"),
    ("a line there and back", (9, 9), [1, 1, 7, 5, 1, 1], "a2"),
    ("steep and thin", (16, 6), [2.2, 0.3, 3.1, 0.1, 3.4, 15.7], "P14l1"),
    ("fractions that round up and down", (12, 12),
     [1.1, 1.3, 10.49, 0.7, 11.51, 6.5, 6.5, 11.499, 0.5, 8.301], "=84001O001O00O1O100O6JK"),
    ("turned the other way", (12, 12),
     [0.5, 8.301, 6.5, 11.499, 11.51, 6.5, 10.49, 0.7, 1.1, 1.3], "=84001O001O00O1O100O6JK"),
    ("concave", (12, 14), [1, 1, 13, 1, 13, 11, 9, 11, 9, 4, 5, 4, 5, 11, 1, 11],
     "=:2000000I70000007I00000;"),
]


def ring(*numbers):
    return np.array(numbers, np.float64).reshape(-1, 2)


def box(left, top, right, bottom):
    return ring(left, top, right, top, right, bottom, left, bottom)


def region(*rings, category=0, mask=None):
    return Region(category, rings, mask, "file: item")


def filled(*rings, size=(20, 20)):
    """The pixels of one region."""
    mask, = region_masks([region(*rings)], size)
    return mask


@pytest.mark.parametrize("what,size,outline,runs", GOLDEN, ids=[row[0] for row in GOLDEN])
def test_a_filled_outline_has_the_pixels_that_pycocotools_gives_it(what, size, outline, runs):
    assert compressed_runs(filled(ring(*outline), size=size)) == runs


def random_outlines(count):
    """(size, outline): inside and outside the image, on whole numbers, tiny, flat, in one point."""
    rng = np.random.default_rng(18)
    for number in range(count):
        size = tuple(map(int, rng.integers(1, 80, 2)))
        points = int(rng.integers(3, 12))
        yield size, [
            lambda n: rng.uniform(-20, 100, (n, 2)),
            lambda n: rng.integers(-5, 80, (n, 2)).astype(float),
            lambda n: rng.integers(-300, 500, (n, 2)) / 2,
            lambda n: rng.uniform(0, 3, (n, 2)) + rng.uniform(0, 60, 2),
            lambda n: np.repeat(rng.uniform(0, 60, (1, 2)), n, 0),
            lambda n: np.stack((rng.uniform(0, 60, n), np.full(n, rng.uniform(0, 60))), 1),
        ][number % 6](points)


def test_two_hundred_random_outlines_are_equal_to_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    for size, points in random_outlines(200):
        expected = coco.decode(coco.frPyObjects([points.ravel().tolist()], *size))[..., 0]
        assert np.array_equal(filled(points, size=size), expected), points.tolist()


def test_regions_drawn_together_have_the_pixels_that_each_has_alone(monkeypatch):
    shapes = [points for _, points in random_outlines(60)]
    alone = [filled(points, size=(50, 60)) for points in shapes]
    monkeypatch.setattr(rasterize, "_AT_ONCE", 7)       # edges of one region in several parts
    together = region_masks([region(points) for points in shapes], (50, 60))
    assert all(np.array_equal(*pair) for pair in zip(alone, together, strict=True))


@pytest.mark.parametrize("sparse", [0, 10 ** 9])
def test_the_last_of_many_overlapping_regions_is_on_top(monkeypatch, sparse):
    monkeypatch.setattr(rasterize, "_SPARSE", sparse)       # both ways to find the pieces
    shapes = [points for _, points in random_outlines(60)]
    regions = [region(points, category=number) for number, points in enumerate(shapes)]
    expected = np.full((50, 60), 99)
    for number, mask in enumerate(region_masks(regions, (50, 60))):
        expected[mask] = number
    drawn = draw(regions, range(60), (50, 60), background=99)
    assert drawn.dtype == np.uint8 and np.array_equal(drawn, expected)


def test_the_smaller_region_is_on_top_if_areas_decide():
    regions = [region(box(4, 4, 6, 6), category=1), region(box(0, 0, 10, 10), category=2)]
    by_order = draw(regions, [0, 1, 2], (20, 20), 0)
    assert (by_order == 1).sum() == 0 and (by_order == 2).sum() == 100
    by_area = draw(regions, [0, 1, 2], (20, 20), 0, "area")
    assert (by_area == 1).sum() == 4 and (by_area == 2).sum() == 96


def test_of_equally_large_regions_the_later_one_is_on_top():
    regions = [region(box(0, 0, 4, 4), category=1), region(box(2, 0, 6, 4), category=2)]
    assert draw(regions, [0, 1, 2], (8, 8), 0, "area")[0, :6].tolist() == [1, 1, 2, 2, 2, 2]


def test_a_ring_inside_a_ring_is_a_hole_and_one_in_the_hole_an_island():
    mask = filled(box(0, 0, 12, 12), box(2, 2, 10, 10), box(4, 4, 8, 8))
    expected = np.zeros((20, 20), bool)
    expected[:12, :12] = True
    expected[2:10, 2:10] = False
    expected[4:8, 4:8] = True
    assert np.array_equal(mask, expected)


def test_the_order_of_the_rings_does_not_matter():
    rings = [box(0, 0, 12, 12), box(2, 2, 10, 10), box(4, 4, 8, 8)]
    assert np.array_equal(filled(*rings), filled(*rings[::-1]))


def test_rings_side_by_side_and_rings_that_overlap_are_united():
    mask = filled(box(0, 0, 4, 4), box(10, 0, 14, 4), box(2, 2, 6, 6))
    assert mask.sum() == 16 + 16 + 12


def test_the_same_ring_twice_is_one_area():
    assert filled(box(0, 0, 4, 4), box(0, 0, 4, 4)).sum() == 16


def test_a_hole_shows_what_lies_below():
    regions = [region(box(0, 0, 20, 20), category=1),
               region(box(2, 2, 12, 12), box(4, 4, 8, 8), category=2)]
    drawn = draw(regions, [0, 1, 2], (20, 20), 0)
    assert (drawn == 2).sum() == 84 and drawn[5, 5] == 1 and (drawn == 0).sum() == 0


def test_a_hole_around_the_whole_image_leaves_it_empty():
    assert filled(box(-50, -50, 90, 90), box(-5, -5, 40, 40)).sum() == 0


def test_a_hole_that_shares_a_border_is_cut_out():
    assert filled(box(0, 0, 10, 10), box(0, 0, 4, 10)).sum() == 60


def test_runs_are_drawn_as_they_are():
    mask = np.random.default_rng(1).random((13, 17)) < 0.4
    runs = Runs(run_lengths(mask), (13, 17))
    assert np.array_equal(region_masks([region(mask=runs)], (13, 17))[0], mask)


@pytest.mark.parametrize("top,left", [(0, 0), (3, 5), (-4, -2), (10, 14), (40, 0), (0, -40)])
def test_a_cutout_lies_where_its_corner_is(top, left):
    cutout = np.random.default_rng(2).random((9, 8)) < 0.5
    around = np.zeros((120, 120), bool)
    around[50 + top:59 + top, 50 + left:58 + left] = cutout
    mask, = region_masks([region(mask=Cutout(cutout, top, left))], (15, 18))
    assert np.array_equal(mask, around[50:65, 50:68])


def test_masks_and_outlines_keep_their_order():
    mask = Cutout(np.ones((4, 4), bool))
    regions = [region(box(0, 0, 8, 8), category=1), region(mask=mask, category=2),
               region(box(1, 1, 3, 3), category=3)]
    drawn = draw(regions, [0, 1, 2, 3], (8, 8), 0)
    assert [(drawn == value).sum() for value in range(4)] == [0, 48, 12, 4]


def test_categories_with_a_negative_value_are_not_drawn():
    regions = [region(box(0, 0, 4, 4), category=0), region(box(2, 2, 6, 6), category=1)]
    assert np.unique(draw(regions, [5, -1], (8, 8), 0)).tolist() == [0, 5]


def test_large_values_make_a_label_of_16_bits():
    drawn = draw([region(box(0, 0, 4, 4))], [300], (8, 8), 0)
    assert drawn.dtype == np.uint16 and drawn.max() == 300


def test_an_image_without_regions_is_all_background():
    assert draw([], [], (3, 4), 7).tolist() == [[7] * 4] * 3


@pytest.mark.parametrize("counts,size,said", [
    ([3, 4], (3, 3), "have 7 pixels, its image 9"),
    ([], (3, 3), "have 0 pixels"),
    ([3, 6], (4, 4), "the mask is 4x4"),
])
def test_runs_that_do_not_fill_the_image_are_refused(counts, size, said):
    runs = Runs(np.array(counts, np.int64), size)
    with pytest.raises(DataError) as caught:
        draw([region(mask=runs)], [1], (3, 3), 0)
    assert said in caught.value.what and caught.value.where == "file: item"


def test_outlines_that_cross_too_many_columns_are_refused(monkeypatch):
    monkeypatch.setattr(rasterize, "MOST_CROSSINGS", 100)
    zigzag = np.stack((np.arange(20) % 2 * 20.0, np.arange(20.0)), 1)
    with pytest.raises(DataError, match="cross [0-9]+ columns"):
        filled(zigzag)


def test_too_many_nested_outlines_are_refused(monkeypatch):
    monkeypatch.setattr(rasterize, "MOST_NESTED", 10)
    with pytest.raises(DataError, match="more than 10 pairs"):
        filled(*(box(k, k, 20 - k, 20 - k) for k in range(8)))
