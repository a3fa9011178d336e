"""A base class for networks that can start from files of many sources (fine-tuning)."""
from typing import Any

from base.base_model import BaseModel
from models.backbones.hrnet import PADDLE_KEYS
from models.weights.openseg import backbone_keys
from models.weights.published import all_forms, published, translate
from models.weights.rename_keys import State, to_our_keys


class StartsFromFiles(BaseModel):
    """A network that starts from its published checkpoints or from a file with its encoder."""

    def rename_foreign(self, state: State) -> State:
        """Rename the keys of a published checkpoint, or of a file with this encoder, to ours.

        A published checkpoint is recognized by the name of its classifier. If several published
        forms of this network share that name, the one that fills most tensors is used. Of any
        other file the tensors of the encoder are renamed: ResNets and HRNets of ImageNet, Paddle,
        NVIDIA, MIC-DKFZ and openseg (whose in-place norms are folded), and what the encoder itself
        can rename (see Backbone.rename_foreign). Other keys stay.
        """
        keys = self.state_dict().keys()
        forms = [translate(state, form) for entry in published().values()
                 if isinstance(self, entry.network)
                 for form in all_forms(entry) if form.class_key(state)]
        if forms:
            state = max(forms, key=lambda form: len(keys & form.keys()))
        else:
            state = to_our_keys(state, backbone_keys(self), PADDLE_KEYS)
        encoder: Any = self.backbone
        return super().rename_foreign(encoder.rename_foreign(state))
