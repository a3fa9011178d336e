"""Helpers of the GPU tests."""
import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """A block in which it is an error to wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def share_equal(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The share of equal elements of two tensors of one shape; the first may be on any device."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return (found.cpu() == expected).double().mean().item()
