"""What openseg's networks on ResNet-101 have in common: key names and published entries."""
from torch import nn

from models.foreign_state import BESIDE, PREFIXES, fold_in_place_norm
from models.published import Published

AUX_KEYS = (
    (r"^(?:dsn_head|dsn)\.([01])(?:\.0)?\.(?=\w+$)", r"aux_head.0.\1."),
    (r"^(?:dsn_head|dsn)\.[23]\.", "aux_head.2."),
)
# BGR in 0..255 less the mean of Caffe's ImageNet models.
MEAN = (102.9801, 115.9465, 122.7717)


def backbone_keys(network: nn.Module) -> tuple:
    """Rules for an encoder's weights at the top level of a file: openseg's ImageNet start,
    whose 3x3 stem becomes `resinit`, or any ResNet or HRNet with the names that `network` has."""
    own = getattr(network.backbone, "resinit", None)
    stem = "backbone." if own is None else "backbone.resinit."
    return ((r"^(resinit|layer\d|transition\d|stage\d)\.", r"backbone.\1."),
            (r"^((?:conv|bn)[123])\.", stem + r"\1."))


def openseg_entry(network: type[nn.Module], rename: tuple, classes: str, in_place: bool,
                  files: tuple = (), score: str = "") -> Published:
    """A network on ResNet-101-d8. in_place: the dialect of the first branch, whose norms
    use |weight| + 1e-5 and whose heads have a leaky ReLU."""
    activation = "leaky_relu" if in_place else "relu"
    return Published(
        network=network, args={"activation": activation}, drop=BESIDE,
        rename=PREFIXES + rename, convert=fold_in_place_norm if in_place else None,
        classes=classes, files=files, score=score, mean=MEAN, std=(1.0, 1.0, 1.0), order="BGR",
        scale=1.0)
