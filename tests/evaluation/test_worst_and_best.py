"""utils/evaluation/worst_and_best.py: the right images are kept, in one pass and on any ranks."""
import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.ranks import on_ranks
from utils.evaluation.worst_and_best import WorstAndBest, label_map
from utils.metrics import count_pixels

PALETTE = [[200, 0, 0], [0, 0, 200]]
SCORES = [0.5, 0.1, 0.9, 0.9, 0.3, 0.7, 0.1, 0.2]      # of one class: shares of right pixels


def sample(right):
    """(image, label, prediction) of 10 x 10 pixels: a share of the label's class is predicted."""
    label = torch.zeros(10, 10, dtype=torch.uint8)
    prediction = label.clone().flatten()
    prediction[round(100 * right):] = 1
    return torch.full((3, 10, 10), 40, dtype=torch.uint8), label, prediction.view(10, 10)


def kept_of(positions, most=2, batch=2, rules=("max", "T")):
    kept = WorstAndBest(PALETTE, 2, most=most, classes_of_interest=[0])
    for first in range(0, len(positions), batch):
        part = positions[first:first + batch]
        image, label, prediction = map(torch.stack, zip(*(sample(SCORES[k]) for k in part),
                                                        strict=True))
        masks = torch.stack([prediction == k for k in range(2)], 1)
        for rule in rules:
            made = prediction if rule == "max" else masks
            kept.add(rule, made, count_pixels(made, label, 2, 255), image, label,
                     [f"i{k}" for k in part], part)
    return kept


def test_the_worst_and_the_best_are_kept_whatever_the_order():
    for order in (range(8), range(7, -1, -1), [3, 0, 6, 2, 5, 1, 7, 4]):
        worst, best = kept_of([*order]).gather()
        assert [(one.id, one.score) for one in worst] == [("i1", 0.1), ("i6", 0.1)]
        assert [one.id for one in best] == ["i3", "i2"]
        assert all([*one.predictions] == ["max", "T"] for one in (*worst, *best))
        assert worst[0].classes == [0, 1]


def test_no_image_is_worst_and_best():
    for count in (1, 2, 3):
        worst, best = kept_of([*range(count)]).gather()
        names = [one.id for one in (*worst, *best)]
        assert len(names) == count == len(set(names)) and len(worst) == (count + 1) // 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_of_equal_scores_the_first_are_the_worst_and_the_last_the_best(monkeypatch, ranks):
    monkeypatch.setattr(f"{__name__}.SCORES", [1.0] * 20)
    parts, blocks = [kept_of([*range(rank, 20, ranks)]) for rank in range(ranks)], []
    monkeypatch.setattr("utils.evaluation.worst_and_best.all_gather",
                        lambda block: blocks.append(block) or block)
    for part in parts:
        part.gather()
    monkeypatch.setattr("utils.evaluation.worst_and_best.all_gather",
                        lambda _: torch.cat(blocks))
    worst, best = parts[0].gather()
    assert [one.id for one in worst] == ["i0", "i1"] and [one.id for one in best] == ["i19", "i18"]


def test_images_without_a_labeled_pixel_are_not_shown():
    kept = WorstAndBest(PALETTE, 2)
    label = torch.full((1, 10, 10), 255)
    kept.add("max", torch.zeros_like(label), count_pixels(torch.zeros_like(label), label, 2, 255),
             torch.zeros(1, 3, 10, 10, dtype=torch.uint8), label, ["void"], [0])
    assert kept.gather() == ([], [])


def test_a_picture_shows_the_colors_of_the_classes():
    worst, _ = kept_of([1]).gather()
    def pixels(url):
        data = base64.b64decode(url.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (pixels(worst[0].label) == PALETTE[0]).all()
    assert (pixels(worst[0].predictions["max"]) == PALETTE[1]).all(-1).sum() == 90
    assert abs(int(pixels(worst[0].image).mean()) - 40) <= 1


def test_masks_become_labels_of_the_first_class():
    masks = torch.tensor([[[1, 0, 0]], [[1, 1, 0]]], dtype=torch.bool)
    assert label_map(masks).tolist() == [[0, 1, -1]]
    kept = kept_of([0])
    assert "Masks may overlap" in kept.about(1, 0)
    assert "Masks" not in kept_of([0], rules=("max",)).about(1, 0)


def _of_rank(rank, world, expected):
    batches = [[0, 1], [2, 3], [4, 5], [6, 7]][rank::world]
    assert kept_of([k for part in batches for k in part]).gather() == expected


@pytest.mark.slow       # two processes import torch
def test_two_ranks_keep_what_one_keeps():
    on_ranks(_of_rank, 2, kept_of([*range(8)]).gather())
