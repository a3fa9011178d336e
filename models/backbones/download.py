"""ImageNet weights of torchvision, fetched only when a config asks for them."""
import urllib.error

from utils.errors import ConfigError


def torchvision_state(name: str, weights: str = "IMAGENET1K_V1") -> dict:
    """The state dict of torchvision's classifier called `name`, checked against its hash.

    Cached where torch.hub keeps its files. ConfigError when it cannot be had.
    """
    fix = ("set arch.args.pretrained to false, or give a local file as trainer.finetune_from")
    try:
        from torchvision.models import get_model_weights
    except ImportError as error:
        raise ConfigError("pretrained weights need torchvision, which is not installed",
                          where="arch.args.pretrained", fix=fix) from error
    entry = get_model_weights(name)[weights]
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ConfigError(f"cannot fetch the ImageNet weights of {name} from {entry.url}: {error}",
                          where="arch.args.pretrained", fix=fix) from error
