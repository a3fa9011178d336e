"""The single numbers of Scores."""
from utils.metrics import Scores


def test_numbers_contain_what_was_measured_in_the_order_of_reports():
    dataset = {"FWIoU": 0.3, "Mean_IoU": 0.5, "Class_IoU": [0.5], "Classes_Averaged": 1}
    assert Scores(dataset).numbers() == {"Mean_IoU": 0.5, "FWIoU": 0.3, "Classes_Averaged": 1}
    scores = Scores(dataset, {"Mean_IoU": 0.6, "Mean_Dice": 0.7}, {"Boundary_F": 0.2}, 1.5, 3)
    assert list(scores.numbers().items()) == [
        ("Mean_IoU", 0.5), ("FWIoU", 0.3), ("Classes_Averaged", 1), ("mIoU_I", 0.6),
        ("mDice_I", 0.7), ("Boundary_F", 0.2), ("loss", 1.5)]
