"""Downloads ImageNet weights of torchvision and timm; only for a config with pretrained: true."""
import urllib.error
from collections.abc import Callable
from typing import Any

import torch

from utils.errors import ConfigError

_FIX = "set arch.args.pretrained to false, or give a local file as trainer.finetune_from"


def torchvision_state(name: str) -> dict[str, torch.Tensor]:
    """Return the state dict of torchvision's classifier called `name`, checked by its hash.

    The file is cached in the folder of torch.hub. Raises ConfigError if torchvision is
    missing or the download fails.
    """
    try:
        from torchvision.models import get_model_weights
    except ImportError as error:
        raise ConfigError("pretrained weights need torchvision, which is not installed",
                          where="arch.args.pretrained", fix=_FIX) from error
    entry = get_model_weights(name)["IMAGENET1K_V1"]
    return _fetched(name, entry.url, entry.get_state_dict)


def state_from(url: str, name: str) -> dict[str, torch.Tensor]:
    """Return the state dict of the file at `url`, checked by the hash in its name.

    name: the encoder, for the error message. Cached and raises like `torchvision_state`.
    """
    return _fetched(name, url, lambda **options: torch.hub.load_state_dict_from_url(
        url, map_location="cpu", weights_only=True, **options))


def no_download(name: str) -> ConfigError:
    """Return the error for an encoder without published weights that can be downloaded."""
    return ConfigError(f"pretrained: there is no download for {name}", "arch.args.pretrained", _FIX)


def _fetched(name: str, url: str, fetch: Callable[..., Any]) -> dict[str, torch.Tensor]:
    try:
        return fetch(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ConfigError(f"cannot download the ImageNet weights of {name} from {url}: {error}",
                          where="arch.args.pretrained", fix=_FIX) from error
