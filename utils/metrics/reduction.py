"""Sums and concatenations over the processes of torch.distributed.

Without a process group, or with one process, everything is returned as it is.
"""
import torch
import torch.distributed as dist

from utils.distributed import world_size


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a CPU tensor over all processes, again on the CPU."""
    if world_size() == 1:
        return tensor
    shared = tensor.to(_device())
    dist.all_reduce(shared)
    return shared.cpu()


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """The CPU tensors (rows_of_this_rank, columns) of all processes, in rank order."""
    if world_size() == 1:
        return tensor
    sizes = [torch.zeros(1, dtype=torch.int64, device=_device()) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(tensor)], device=_device()))
    sizes = [int(s) for s in sizes]
    padded = tensor.new_zeros(max(sizes), tensor.shape[1])
    padded[:len(tensor)] = tensor
    padded = padded.to(_device())
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size].cpu() for part, size in zip(parts, sizes)])


def _device():
    """Where the backend can communicate: NCCL only between GPUs."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
