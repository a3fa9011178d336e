"""The scores of one decision rule: dataset level, image level, outlines and loss."""
from dataclasses import dataclass

# The single numbers of a score, by their names in results.json and in logs.
NUMBERS = ("Mean_IoU", "Mean_Dice", "Mean_Recall", "Mean_Precision", "Pixel_Accuracy",
           "Binary_Accuracy", "FWIoU", "Classes_Averaged", "mIoU_I", "mDice_I", "Boundary_IoU",
           "Boundary_F", "loss")


@dataclass(frozen=True)
class Scores:
    """Floats and lists: fractions, and nan for an undefined score.

    dataset: the dict of `DatasetMetrics.compute`.
    image: the dict of `ImageMetrics.compute`; None if not measured.
    boundary: the dict of `BoundaryMetrics.compute`; None if not measured.
    loss: the mean over the images; None if not measured.
    images: the number of evaluated images.
    """

    dataset: dict
    image: dict | None = None
    boundary: dict | None = None
    loss: float | None = None
    images: int = 0

    def numbers(self) -> dict[str, float]:
        """The measured entries of NUMBERS, in that order."""
        measured = {**self.dataset, **(self.boundary or {})}
        if self.image is not None:
            measured |= {"mIoU_I": self.image["Mean_IoU"], "mDice_I": self.image["Mean_Dice"]}
        if self.loss is not None:
            measured["loss"] = self.loss
        return {name: measured[name] for name in NUMBERS if name in measured}
