"""What a network hands out: logits at the size of its image."""
import torch

from models.layers.resize import resize_to


def as_outputs(logits: dict[str, torch.Tensor], image: torch.Tensor, training: bool,
               align_corners: bool = False):
    """Logits (N, C, h, w) by name -> those at the size of the image (N, 3, H, W).

    In train mode all of them, by name; in eval mode `logits["out"]` alone, as a
    tensor: the others, if they are there, are not resized.
    """
    if not training:
        return resize_to(logits["out"], image, align_corners)
    return {name: resize_to(value, image, align_corners) for name, value in logits.items()}
