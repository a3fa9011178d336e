"""Which arithmetic a device trains in, and what needs float32 whatever that is."""
import contextlib

import torch

from utils.errors import ConfigError


def autocast_dtype(amp, device: torch.device) -> torch.dtype | None:
    """The autocast dtype that the setting `amp` means on `device`; None for plain float32.

    amp: "bf16", "fp16", False, or "auto": bfloat16 where the hardware computes
    in it, float32 elsewhere.
    """
    if amp == "auto":
        amp = "bf16" if _computes_in_bf16(device) else False
    if amp == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 training needs a GPU (its loss scaling has no CPU form)",
                          "trainer.amp", 'use "bf16", "auto" or false')
    return {"bf16": torch.bfloat16, "fp16": torch.float16, False: None}[amp]


def full_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The type of `tensor`, float32 where that is less."""
    return torch.promote_types(tensor.dtype, torch.float32)


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float32, or as it is where it is float64: squares overflow float16 and lose
    everything in bfloat16."""
    return tensor.to(full_dtype(tensor))


def no_autocast(tensor: torch.Tensor):
    """A context in which matrix products keep the precision of their operands."""
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def _computes_in_bf16(device):
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported()
                                     or torch.cpu._is_amx_tile_supported())
