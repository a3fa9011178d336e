"""What the numbers of a result mean, in the words of docs/metrics.md (a test compares them).

P is the set of pixels that are predicted as a class, T the set that has it.
"""
from typing import NamedTuple


class Meaning(NamedTuple):
    """title: in tables. words: its definition. percent: a fraction that tables show in percent."""

    title: str
    words: str
    percent: bool = True


_ALL = " (all images together)"
MEANINGS = {
    "Mean_IoU": Meaning("mean IoU", "|P ∩ T| / |P ∪ T| of a class; the mean over the classes that "
                                    "occur" + _ALL),
    "Mean_Dice": Meaning("mean Dice", "2 |P ∩ T| / (|P| + |T|) of a class; the mean over the "
                                      "classes that occur" + _ALL),
    "Mean_Recall": Meaning("mean Acc", "recall: |P ∩ T| / |T| of a class, and its mean" + _ALL),
    "Mean_Precision": Meaning("mean precision", "|P ∩ T| / |P| of a class, and its mean" + _ALL),
    "Pixel_Accuracy": Meaning("pixel accuracy", "the share of the pixels with the right class; not "
                                                "defined for masks" + _ALL),
    "Binary_Accuracy": Meaning("binary accuracy", "the share of the (pixel, class) pairs that are "
                                                  "right; for masks" + _ALL),
    "FWIoU": Meaning("FWIoU", "IoU weighted with the frequency of the class" + _ALL),
    "mIoU_I": Meaning("mIoU_I", "the mean of the IoU over the classes of an image, then over the "
                                "images"),
    "mDice_I": Meaning("mDice_I", "the mean of the Dice over the classes of an image, then over "
                                  "the images"),
    "mIoU_C": Meaning("mIoU_C", "the mean of IoU_I over the classes"),
    "mDice_C": Meaning("mDice_C", "the mean of Dice_I over the classes"),
    "IoU_I": Meaning("IoU_I", "the IoU of a class in an image: the mean over the images that "
                              "contain it, in P or T"),
    "Dice_I": Meaning("Dice_I", "the Dice of a class in an image: the mean over the images that "
                                "contain it, in P or T"),
    "Boundary_IoU": Meaning("boundary IoU", "IoU of the pixels within 2 % of the image diagonal "
                                            "of an outline"),
    "Boundary_F": Meaning("boundary F", "the F score of the outlines, with a tolerance of 0.75 % "
                                        "of the image diagonal"),
    "loss": Meaning("loss", "the validation loss, the mean over the images", percent=False),
    "ECE": Meaning("ECE", "expected calibration error: the gap between confidence and accuracy, "
                          "averaged over the pixels"),
    "AURC": Meaning("AURC", "the mean of the risk over all coverages"),
    "E_AURC": Meaning("E-AURC", "AURC minus the smallest possible area for this error rate"),
    "risk": Meaning("error rate", "the share of the pixels whose most probable class is wrong"),
    "interval": Meaning("95 % interval", "if other images of the same kind were scored, their "
                                         "score would lie about there", percent=False),
}
