"""What a network can start from: the weights of any file, under the network's own keys."""
from base.base_model import BaseModel
from models.backbones.hrnet import PADDLE_KEYS
from models.foreign_state import foreign_state
from models.openseg import backbone_keys
from models.published import published, translate


class StartsFromFiles(BaseModel):
    """A network whose encoder is a `backbone` with few relatives."""

    def rename_foreign(self, state: dict) -> dict:
        """A published checkpoint, or any file with this encoder, in this network's keys.

        Of the network's published entries, relatives that share the classifier's name, the one
        counts that fills most of the network. Of any other file the encoder's tensors find their
        place: ImageNet's ResNets and HRNets, Paddle's, NVIDIA's, MIC-DKFZ's and openseg's (whose
        in-place norms are folded). What is neither keeps its name.
        """
        own = self.state_dict().keys()
        forms = [translate(state, entry) for entry in published().values()
                 if isinstance(self, entry.network) and entry.classes in state]
        if forms:
            state = max(forms, key=lambda form: len(own & form.keys()))
        else:
            state = foreign_state(state, backbone_keys(self), PADDLE_KEYS)
        return super().rename_foreign(state)
