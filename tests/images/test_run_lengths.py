"""Masks as COCO's compressed run lengths: by hand, decoded again, and by COCO's own code."""
import numpy as np
import pytest

from utils.images.run_lengths import compressed_runs, run_lengths, runs_of_text


def decoded(text, size):
    """The mask (H, W), int, of a text: the description of the format read backwards."""
    numbers, place = [], 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            group = ord(text[place]) - 48
            value |= (group & 31) << shift
            more, place, shift = bool(group & 32), place + 1, shift + 5
        if group & 16:
            value -= 1 << shift
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
    pixels = np.concatenate([np.full(run, number % 2) for number, run in enumerate(numbers)])
    return pixels.reshape(size[::-1]).T


def test_runs_go_down_the_columns_and_begin_with_zeros():
    mask = np.array([[0, 1, 1], [1, 1, 0]], bool)
    assert run_lengths(mask).tolist() == [1, 4, 1]
    assert run_lengths(~mask).tolist() == [0, 1, 4, 1]
    assert run_lengths(np.zeros((2, 3), bool)).tolist() == [6]


def test_a_number_is_written_in_groups_of_five_bits_from_the_lowest_on():
    """0 is "0". 20 has bit 4, which would be a sign: a group of 0 follows. 32 is 0 and then 1."""
    assert compressed_runs(np.ones((4, 5), bool)) == "0d0"
    assert compressed_runs(np.zeros((4, 8), bool)) == "P1"
    # Runs 1, 1, 1, 5, 1: the fourth is stored as 5 - 1 and the fifth as 1 - 1.
    assert compressed_runs(np.array([[0, 1, 0, 1, 1, 1, 1, 1, 0]], bool)) == "11140"
    # Runs 1, 5, 1, 1, 1: 1 - 5 is -4, whose five bits are 11100: 28, and 28 + 48 is "L".
    assert compressed_runs(np.array([[0, 1, 1, 1, 1, 1, 0, 1, 0]], bool)) == "151L0"


@pytest.mark.parametrize("seed", range(12))
def test_a_mask_is_the_same_after_it_was_written_and_read(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 90, 2)) if seed else (700, 800)
    mask = rng.random(size) < rng.choice([0.001, 0.1, 0.5, 0.999])
    assert np.array_equal(decoded(compressed_runs(mask), size), mask)


def test_the_text_is_that_of_cocos_own_code():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        mask = rng.random((120, 90)) < share
        expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert compressed_runs(mask) == expected


@pytest.mark.parametrize("mask", [np.ones((4, 5), bool), np.zeros((4, 8), bool),
                                  np.random.default_rng(0).random((70, 90)) < 0.02,
                                  np.random.default_rng(1).random((70, 90)) < 0.5])
def test_the_runs_of_a_text_are_those_it_was_written_from(mask):
    assert np.array_equal(runs_of_text(compressed_runs(mask)), run_lengths(mask))


@pytest.mark.parametrize("text,said", [("0 ", "a character"), ("0\u00e9", "a character"),
                                       ("0oooooooooo0", "too large"), ("0P", "within a number"),
                                       ("0O", "negative"), ("PPPP0", None)])
def test_damaged_text_is_refused(text, said):
    if said is None:
        assert runs_of_text(text).tolist() == [0]
        return
    with pytest.raises(ValueError, match=said):
        runs_of_text(text)
