"""Rules and published entries that the networks of openseg (openseg.pytorch) share."""
from torch import nn

from models.weights.published import Published
from models.weights.rename_keys import PREFIXES, TRAINING_KEYS, Rule, fold_in_place_norm

AUX_KEYS: tuple[Rule, ...] = (
    (r"^(?:dsn_head|dsn)\.([01])(?:\.0)?\.(?=\w+$)", r"aux_head.0.\1."),
    (r"^(?:dsn_head|dsn)\.[23]\.", "aux_head.2."),
)
# The input is BGR in 0..255 minus this mean, that of Caffe's ImageNet models.
MEAN = (102.9801, 115.9465, 122.7717)


def backbone_keys(network: nn.Module) -> tuple[Rule, ...]:
    """Return rules for the weights of an encoder that are at the top level of a file.

    They cover openseg's ImageNet weights, whose stem of three 3x3 convolutions becomes
    `resinit`, and any ResNet or HRNet with the names that `network.backbone` uses.
    """
    has_resinit = getattr(network.backbone, "resinit", None) is not None
    stem = "backbone.resinit." if has_resinit else "backbone."
    return ((r"^(resinit|layer\d|transition\d|stage\d)\.", r"backbone.\1."),
            (r"^((?:conv|bn)[123])\.", stem + r"\1."))


def openseg_entry(network: type[nn.Module], rename: tuple[Rule, ...], classes: str,
                  in_place: bool, files: tuple[str, ...] = (), score: str = "") -> Published:
    """Return the entry of a network on ResNet-101 with output stride 8.

    in_place: the files come from openseg's first branch, whose norms use
    |weight| + 1e-5 and whose heads have a leaky ReLU.
    """
    activation = "leaky_relu" if in_place else "relu"
    return Published(
        network=network, args={"activation": activation}, drop=TRAINING_KEYS,
        rename=PREFIXES + rename, convert=fold_in_place_norm if in_place else None,
        classes=classes, files=files, score=score, mean=MEAN, std=(1.0, 1.0, 1.0), order="BGR",
        scale=1.0)
