"""A trained network with everything that predicting with it takes."""
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.checkpoint import model_from_checkpoint, taking_up
from utils.console import warn
from utils.criterion import Criterion, validation_loss
from utils.distributed import require_device
from utils.errors import ConfigError
from utils.normalize import Normalize
from utils.predictor import Predictor, build_predictor


@dataclass
class OpenModel:
    """What a checkpoint holds, ready to predict.

    model: on its device, in eval mode, in the memory layout it was trained in.
    """

    path: Path
    model: torch.nn.Module
    normalize: Normalize
    config: dict
    class_names: list[str]
    palette: list[list[int]]
    activation: str
    epoch: int | None

    @property
    def device(self) -> torch.device:
        return next(iter(self.model.parameters())).device

    def predictor(self, options: dict | None = None) -> Predictor:
        """The predictor of the config's `predict` section, or of `options` in its place."""
        options = self.config.get("predict", {}) if options is None else options
        return build_predictor(self.model, self.normalize, options, self.activation)

    def loss(self):
        """The loss that training reports in validation, or None if the config has none."""
        loss = validation_loss(self.config, self._criterion)
        return loss and loss.to(self.device)

    def _criterion(self):
        config = self.config
        if not config.get("loss"):
            return None
        return Criterion(config["loss"], self.model.output_weights, config["ignore_index"],
                         config.get("loss_weights"), len(self.class_names))

    def require_classes(self, class_names: list[str]):
        """ConfigError unless a dataset with these classes can be scored with this network."""
        if len(class_names) != len(self.class_names):
            raise ConfigError(f"the network has {len(self.class_names)} classes, the dataset "
                              f"{len(class_names)}", str(self.path),
                              "score it on data with the classes it was trained for")
        if list(class_names) != self.class_names:
            first = next(k for k, pair in enumerate(zip(class_names, self.class_names))
                         if pair[0] != pair[1])
            warn(f"classes are called differently: {first} is {class_names[first]!r} in the "
                 f"dataset and {self.class_names[first]!r} in the checkpoint")


def open_model(checkpoint: dict, device: torch.device | str, path="checkpoint") -> OpenModel:
    """The network of a checkpoint that utils.checkpoint.read_checkpoint has read.

    path: where it came from, for messages and reports.
    Raises CheckpointError if the weights do not fit the network, ConfigError if
    the device is not there.
    """
    device = require_device(device)
    with taking_up(str(path)):
        model = model_from_checkpoint(checkpoint, device, str(path))
        trainer = checkpoint["config"].get("trainer") or {}
        if trainer.get("channels_last"):
            model = model.to(memory_format=torch.channels_last)
        return OpenModel(Path(path), model, Normalize(**checkpoint["normalization"]).to(device),
                         checkpoint["config"], list(checkpoint["class_names"]),
                         [list(colour) for colour in checkpoint["palette"]],
                         checkpoint.get("activation", "softmax"), checkpoint.get("epoch"))
