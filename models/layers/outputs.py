"""Resizes the logits of a network to the size of its input image."""
from models.layers.resize import resize_to
from utils.machine.tensors import ImageBatch, Logits


def as_outputs(logits: dict[str, Logits], image: ImageBatch, training: bool,
               align_corners: bool = False) -> Logits | dict[str, Logits]:
    """Logits (N, C, h, w) by name -> logits at the size of the image (N, 3, H, W).

    In train mode all of them, by name. In eval mode only `logits["out"]`, as a tensor;
    the others are not resized.
    """
    if not training:
        return resize_to(logits["out"], image, align_corners)
    return {name: resize_to(value, image, align_corners) for name, value in logits.items()}
