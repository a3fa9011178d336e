"""Reduced precision on a device (autocast), and float32 where the mathematics needs it."""
import contextlib

import torch

from utils.errors import ConfigError, counted


def autocast_dtype(amp: str | bool, device: torch.device) -> torch.dtype | None:
    """The autocast dtype for the setting `amp` on `device`; None means float32 without autocast.

    amp: "bf16", "fp16", False, or "auto", which is bfloat16 if the hardware computes in it, and
    float32 otherwise. Raises ConfigError for "fp16" on a CPU.
    """
    if amp == "auto":
        amp = "bf16" if _computes_in_bf16(device) else False
    if amp == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 training needs a GPU (its loss scaling has no CPU form)",
                          "trainer.amp", 'use "bf16", "auto" or false')
    known: dict[str | bool, torch.dtype | None] = {
        "bf16": torch.bfloat16, "fp16": torch.float16, False: None}
    return known[amp]


def device_name(device: torch.device) -> str:
    """A device for a message: "cuda:0 (NVIDIA A100)", "cpu (8 threads)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"{device} ({counted(torch.get_num_threads(), 'thread')})"
    return str(device)


def full_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype of `tensor`, but at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, of any shape, in float32; float64 stays float64.

    For sums and squares, which overflow in float16 and lose their digits in bfloat16.
    """
    return tensor.to(full_dtype(tensor))


def no_autocast(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """A context without autocast on the device of `tensor`: matrix products keep their dtype."""
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def _computes_in_bf16(device):
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported()
                                     or torch.cpu._is_amx_tile_supported())
