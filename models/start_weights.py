"""What a network can start from: the weights of any file, under the network's own keys."""
from collections.abc import Mapping

from torch import nn

from models.backbones.hrnet import PADDLE_KEYS
from models.foreign_state import foreign_state
from models.openseg import backbone_keys
from models.published import Published, translate


def start_state(network: nn.Module, state: Mapping, entries: Mapping[str, Published]) -> Mapping:
    """`state` in the keys of a network whose encoder is a `backbone` with few relatives.

    A file of one of the published `entries` is translated as those are. Of any other the
    encoder's tensors find their place: ImageNet's ResNets and HRNets, Paddle's, NVIDIA's,
    MIC-DKFZ's and openseg's (whose in-place norms are folded). What is neither keeps its name.
    """
    entry = next((e for e in entries.values() if e.classes in state), None)
    if entry is not None:
        return translate(state, entry)
    return foreign_state(state, backbone_keys(network), PADDLE_KEYS)
