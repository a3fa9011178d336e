"""The networks that the options -r name: one, or the several of an ensemble."""
import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from utils.checkpoint.find import find_checkpoint
from utils.checkpoint.format import Checkpoint, TrainingCheckpoint
from utils.checkpoint.read import read_checkpoint, read_checkpoint_and_digest
from utils.config.load import with_config
from utils.errors import ConfigError, listed, shown
from utils.images.class_names import differences
from utils.predict.arguments import with_arguments
from utils.predict.open_model import OpenModel, open_model

_SHOWN = 8         # classes in a message


class StoredNetwork(NamedTuple):
    """A checkpoint that was read, without the state of its training.

    sha256: of its file; None if it was not computed.
    """

    path: str
    checkpoint: dict[str, Any]
    sha256: str | None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, with what the command line changed in it."""
        return self.checkpoint["config"]


def read_networks(texts: Sequence[str], config: str | None = None, overrides: Sequence[str] = (),
                  hashed: bool = False) -> list[StoredNetwork]:
    """Read the checkpoints that the values of -r mean (utils.checkpoint.find).

    config, overrides: as in utils.config.load.with_config, for every checkpoint.
    hashed: compute sha256 of a single checkpoint too.
    Raises CheckpointError; ConfigError for mistakes in a config, and for one network given twice.
    """
    networks: list[StoredNetwork] = []
    for text in texts:
        path = find_checkpoint(text)
        if len(texts) > 1 or hashed:
            checkpoint, digest = read_checkpoint_and_digest(path)
        else:
            checkpoint, digest = read_checkpoint(path), None
        same = next((one.path for one in networks if one.sha256 == digest), None)
        if same is not None:
            what = "is given twice" if os.path.realpath(same) == os.path.realpath(path) \
                else f"has the same content as {shown(same)}"
            raise ConfigError(f"{shown(path)} {what}: the mean of a network with itself is the "
                              "network", "-r", "give each network once")
        with naming(path, len(texts) > 1):
            checkpoint = with_config(checkpoint, config, overrides)
        networks.append(StoredNetwork(path, _without_training(checkpoint), digest))
        del checkpoint      # before the next file is read
    return networks


def _without_training(checkpoint):
    """What `open_model` needs: optimizer and raw weights would fill the memory for each network."""
    unused = TrainingCheckpoint.__annotations__.keys() - Checkpoint.__annotations__.keys()
    if checkpoint.get("ema"):
        unused |= {"model"}
    return {key: value for key, value in checkpoint.items() if key not in unused}


def each_with_arguments(networks: Sequence[StoredNetwork], args: argparse.Namespace,
                        protocol: str | None = "") -> list[dict[str, Any]]:
    """The `predict` section of each network, see utils.predict.arguments.with_arguments."""
    found = []
    for network in networks:
        with naming(network.path, len(networks) > 1):
            found.append(with_arguments(network.config["predict"], args, protocol))
    return found


def open_networks(stored: Sequence[StoredNetwork], device: torch.device | str) -> list[OpenModel]:
    """The networks, ready to predict; all stay on `device`.

    Raises CheckpointError if weights do not fit, and ConfigError unless all have the same classes
    in the same order, probabilities of one kind (that sum to 1, or sigmoids), and read pictures of
    more than 8 bits alike.
    """
    networks = []
    for one in stored:
        networks.append(open_model(one.checkpoint, device, one.path))
        networks[-1].sha256 = one.sha256
        _require_alike(networks[0], networks[-1])
    return networks


@contextmanager
def naming(path: str | os.PathLike, several: bool = True) -> Iterator[None]:
    """Say in the ConfigErrors of the block of which of `several` checkpoints they speak."""
    try:
        yield
    except ConfigError as error:
        if not several:
            raise
        raise ConfigError(f"{error.what} (of {shown(path)})", error.where, error.fix) from None


def _require_alike(first: OpenModel, other: OpenModel):
    pair = f"in {shown(first.path)} and in {shown(other.path)}"
    apart = differences(first.class_names, other.class_names)
    if apart:
        raise ConfigError(f"the networks of an ensemble have different classes: "
                          f"{listed(apart, _SHOWN, '; ')} ({pair})", "-r",
                          "give networks of the same classes in the same order")
    # Softmax and scores both give probabilities that sum to 1.
    if "sigmoid" in (first.activation, other.activation) and first.activation != other.activation:
        raise ConfigError(f"an ensemble averages probabilities of one kind, but the networks use "
                          f"{first.activation} and {other.activation} ({pair})", "-r",
                          "give networks that were trained with losses of one kind")
    if first.normalize.bands != other.normalize.bands:
        texts = [one.bands.text if one.bands else "RGB"
                 for one in (first.normalize, other.normalize)]
        raise ConfigError(f"the networks of an ensemble take different images: {texts[0]} and "
                          f"{texts[1]} ({pair})", "-r", "give networks of the same bands")
    if first.normalize.white != other.normalize.white:
        raise ConfigError("the networks of an ensemble read pictures of more than 8 bits in "
                          f"different ways: white is {first.normalize.white} and "
                          f"{other.normalize.white} ({pair})", "-r")
