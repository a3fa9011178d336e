"""A trained network, with everything that is needed to predict with it."""
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.checkpoint.format import epochs_finished
from utils.checkpoint.load import model_from_checkpoint
from utils.checkpoint.read import as_checkpoint_errors
from utils.cli.console import warn
from utils.config.loader_section import read_size, validated_size
from utils.errors import ConfigError
from utils.images.class_names import first_difference, moved, usable
from utils.images.normalize import Normalize
from utils.images.palette import one_per_class
from utils.losses.inverse import Inverse, NoInverse
from utils.machine.distributed import require_device
from utils.predict.predictor import Predictor, build_predictor, input_size_of
from utils.training.criterion import Criterion, validation_loss


@dataclass
class OpenModel:
    """The contents of a checkpoint, ready to predict.

    path: of the checkpoint, for messages and reports.
    model: on its device, in eval mode, in the memory layout it was trained in.
    class_names, palette: by class id; a color is [r, g, b], 0 to 255.
    activation: "softmax" or "sigmoid", as the loss of the network needs it; "scores" if the network
        gives scores in place of logits (utils.losses.scores).
    epoch: number of finished epochs of the weights, if known.
    base_size: the size at which the network was validated (utils.images.base_size).
    label_ids: the value that a written label map holds for each class; None: class ids.
    trained_loss: the section `loss` of the training, if that of `config` may be another one.
    sha256: of the file, if it was computed.
    """

    path: Path
    model: torch.nn.Module
    normalize: Normalize
    config: dict
    class_names: list[str]
    palette: list[list[int]]
    activation: str
    epoch: int | None
    base_size: int | list[int] | None = None
    label_ids: list[int] | None = None
    trained_loss: Any = None
    sha256: str | None = None

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(iter(self.model.parameters())).device

    def predictor(self, options: dict | None = None, section: dict | None = None) -> Predictor:
        """The predictor for the config's `predict` section, or for `options` instead.

        section: of the loader whose images are predicted at their own size
            (dataloader.loader.split_loader with own_size); its base_size or crop goes before that
            of validation.
        """
        options = self.config.get("predict", {}) if options is None else options
        return build_predictor(self.model, self.normalize,
                               {**options, "base_size": self.chosen_size(options, section)},
                               self.activation)

    def chosen_size(self, options: dict, section: dict | None = None) -> int | list[int] | None:
        """The base size of `predictor`: "val" is replaced by the size at which validation reads.

        An input size among the options takes its place, so that "val" is then None.
        """
        chosen = options.get("base_size", "val")
        if chosen != "val":
            return chosen
        return None if input_size_of(options) else read_size(section) or self.base_size

    def loss(self, of_logits: bool = False) -> torch.nn.Module | None:
        """The loss that training reports in validation; None if the config has no loss.

        of_logits: it is for logits, also if the network gives scores.
        """
        loss = validation_loss(self.config, lambda: self._criterion(self.config.get("loss")),
                               "softmax" if of_logits else self.activation)
        return loss and loss.to(self.device)

    def inverse(self) -> Inverse | NoInverse:
        """What turns the logits into those of the posterior, from the loss of the training."""
        return self._inverse

    @functools.cached_property
    def _inverse(self):
        # Every rule asks for it, and making the loss may read a file.
        try:
            criterion = self._criterion(self.trained_loss or self.config.get("loss"))
        except ConfigError as error:    # such as a file of pixel counts that is gone
            return NoInverse(f"the loss of the checkpoint cannot be built: {error}")
        return criterion.inverse if criterion else NoInverse("the config of the checkpoint names "
                                                             "no loss")

    def _criterion(self, section):
        config = self.config
        if not section:
            return None
        output_weights = self.model.output_weights
        assert isinstance(output_weights, dict)     # of every BaseModel
        return Criterion(section, output_weights, config["ignore_index"],
                         config.get("loss_weights"), len(self.class_names), self.activation)

    def require_data(self, dataset: Any):
        """Raises ConfigError unless a dataset has the classes and the bands of the network."""
        self.require_classes(dataset.class_names)
        own, bands = self.normalize.bands, dataset.bands
        if (own and (own.numbers, own.types)) != (bands and (bands.numbers, bands.types)):
            found = [one.text if one else "RGB of 8 bits" for one in (own, bands)]
            raise ConfigError(f"the network takes {found[0]}, the dataset gives {found[1]}",
                              str(self.path), "score it on images like those it was trained on")

    def require_rgb(self, what: str, where: str):
        """Raises ConfigError for a part of the program that works on RGB images only."""
        if self.normalize.bands:
            raise ConfigError(f"{what} for RGB, and the network takes {self.normalize.bands.text}",
                              where, "leave it out")

    def require_classes(self, class_names: list[str]):
        """Raises ConfigError unless a dataset has the classes of the network in their order.

        Warns if names are spelled differently.
        """
        if len(class_names) != len(self.class_names):
            raise ConfigError(f"the network has {len(self.class_names)} classes, the dataset "
                              f"{len(class_names)}", str(self.path),
                              "score it on data with the classes it was trained for")
        elsewhere = moved(class_names, self.class_names)
        if elsewhere:
            raise ConfigError(f"the order of the classes differs: {elsewhere} (in the dataset and "
                              "in the checkpoint)", str(self.path),
                              "give the dataset the order of the network (a Folder takes "
                              "class_names and label_map)")
        difference = first_difference(class_names, self.class_names)
        if difference:
            warn(f"the class names differ: {difference} (in the dataset and in the checkpoint)")


def open_model(checkpoint: Mapping[str, Any], device: torch.device | str,
               path: str | os.PathLike = "checkpoint") -> OpenModel:
    """The network of a checkpoint, a utils.checkpoint.format.Checkpoint, ready to predict.

    path: of the checkpoint, for messages and reports.
    Raises CheckpointError if the weights do not fit the network, ConfigError if
    this computer does not have the device.
    """
    device = require_device(str(device))
    with as_checkpoint_errors(str(path)):
        model = model_from_checkpoint(checkpoint, device, str(path))
        trainer = checkpoint["config"].get("trainer") or {}
        if trainer.get("channels_last"):
            model = model.to(memory_format=torch.channels_last)
        config = checkpoint["config"]
        names = usable(checkpoint["class_names"])
        return OpenModel(Path(path), model, Normalize(**checkpoint["normalization"]).to(device),
                         config, names, one_per_class(checkpoint["palette"], names),
                         checkpoint.get("activation", "softmax"), epochs_finished(checkpoint),
                         checkpoint.get("base_size", validated_size(config)),
                         trained_loss=checkpoint.get("trained_loss"))
