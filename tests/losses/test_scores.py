"""Scores that are not logits, and their shares."""
import torch

from utils.losses.scores import log_shares, shares


def test_shares_are_the_scores_divided_by_their_sum():
    scores = torch.tensor([[2.0, 1.0, 1.0], [1e-20, 3e-20, 0.0]])
    expected = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.75, 0.0]])
    assert torch.allclose(shares(scores), expected)
    assert torch.allclose(log_shares(scores).softmax(1), expected)


def test_without_any_score_all_classes_are_equally_probable():
    scores = torch.zeros(2, 4, 3)
    assert (shares(scores) == 0.25).all() and log_shares(scores).isfinite().all()


def test_a_negative_score_counts_as_zero():
    assert shares(torch.tensor([[-1.0, 1.0, 1.0]])).tolist() == [[0.0, 0.5, 0.5]]


def test_half_precision_is_computed_in_float32_and_float64_stays():
    assert shares(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert log_shares(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64
