"""Probabilities in files: what is written, and what it costs a decision rule."""
import numpy as np
import pytest
import torch

from utils.decision.rankdice import rank_dice
from utils.decision.stored_scores import stored_form, write_probabilities


def test_the_file_is_read_by_numpy_without_pickle(tmp_path):
    probs = stored_form(torch.tensor([[[0.25, 1e-6]], [[0.75, 1.0]]]))
    write_probabilities(tmp_path / "a.npz", probs, ["sky", "Straße"], [[1, 2, 3], [4, 5, 6]],
                        "softmax")
    file = np.load(tmp_path / "a.npz", allow_pickle=False)
    assert file["probabilities"].dtype == np.float16
    assert file["probabilities"].tolist() == probs.tolist()
    assert file["class_names"].tolist() == ["sky", "Straße"]
    assert file["palette"].tolist() == [[1, 2, 3], [4, 5, 6]] and file["activation"] == "softmax"


@pytest.mark.parametrize("kind, keeps", [("float16", True), ("uint8", False)])
def test_float16_keeps_the_mask_of_a_class_with_a_faint_background(kind, keeps):
    """A disc of radius 18 on a background of 0.001, whose expected volume is 260 pixels."""
    y, x = np.mgrid[-256:256, -256:256]
    disc = 1 / (1 + np.exp((np.hypot(x, y) - 18) * 0.6))
    probs = torch.from_numpy(np.maximum(disc, 0.001)).float()[None, None]
    stored = torch.from_numpy(stored_form(probs.clone(), kind)).float() / (255 if kind == "uint8"
                                                                         else 1)
    assert (rank_dice(stored).sum() == rank_dice(probs).sum()) == keeps
