"""ImageNet weights of torchvision and timm, fetched only when a config asks for them."""
import urllib.error

import torch

from utils.errors import ConfigError

_FIX = "set arch.args.pretrained to false, or give a local file as trainer.finetune_from"


def torchvision_state(name: str, weights: str = "IMAGENET1K_V1") -> dict:
    """The state dict of torchvision's classifier called `name`, checked against its hash.

    Cached where torch.hub keeps its files. ConfigError when it cannot be had.
    """
    try:
        from torchvision.models import get_model_weights
    except ImportError as error:
        raise ConfigError("pretrained weights need torchvision, which is not installed",
                          where="arch.args.pretrained", fix=_FIX) from error
    entry = get_model_weights(name)[weights]
    return _fetched(name, entry.url, entry.get_state_dict)


def state_from(url: str, name: str) -> dict:
    """As `torchvision_state`, of the file at `url`, whose name holds its hash."""
    return _fetched(name, url, lambda **options: torch.hub.load_state_dict_from_url(
        url, map_location="cpu", weights_only=True, **options))


def no_download(name: str) -> ConfigError:
    """The error of an encoder whose weights nobody publishes for a program to fetch."""
    return ConfigError(f"pretrained: there is no download for {name}", "arch.args.pretrained", _FIX)


def _fetched(name, url, fetch):
    try:
        return fetch(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ConfigError(f"cannot fetch the ImageNet weights of {name} from {url}: {error}",
                          where="arch.args.pretrained", fix=_FIX) from error
