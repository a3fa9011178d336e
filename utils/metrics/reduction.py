"""Sums and concatenations over the processes of torch.distributed.

Without a process group, or with one process, the input is returned unchanged.
"""
import torch
import torch.distributed as dist

from utils.machine.distributed import world_size


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of a CPU tensor over all processes, on the CPU.

    tensor: any shape and numeric dtype, the same on every process.
    """
    if world_size() == 1:
        return tensor
    shared = tensor.to(_device())
    dist.all_reduce(shared)
    return shared.cpu()


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all processes in rank order, on the CPU.

    tensor: (rows, columns) on the CPU; only the number of rows may differ between processes.
    """
    if world_size() == 1:
        return tensor
    sizes = [torch.zeros(1, dtype=torch.int64, device=_device()) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(tensor)], device=_device()))
    rows = [int(size) for size in sizes]
    padded = tensor.new_zeros(max(rows), tensor.shape[1])
    padded[:len(tensor)] = tensor
    padded = padded.to(_device())
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count].cpu() for part, count in zip(parts, rows, strict=True)])


def _device():
    """The device on which the backend communicates: NCCL only works between GPUs."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
