"""Batch norm over the batches of all ranks, on GPUs and on CPUs.

GPUs use torch's SyncBatchNorm, which refuses CPUs. On CPUs the same sums go through a
differentiable all-reduce, so several gloo processes train like one process with the whole batch.
"""
import torch
from torch import nn


class SyncBatchNorm(nn.BatchNorm2d):
    """Marks a batch norm that is always synchronized (norm "sync"), also without use_synch_bn.

    It is an ordinary batch norm until `convert_sync_batchnorm` replaces it by the class for its
    device.
    """


class CPUSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch.nn.SyncBatchNorm for CPUs, affine and with running statistics.

    x: (N, C, …) of a floating-point dtype; returns the same shape and dtype.
    Not a subclass of torch's, because DistributedDataParallel refuses that one on CPUs.
    """

    # Never None here: `convert_sync_batchnorm` converts only norms that have them.
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def _check_input_dim(self, x):
        if x.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {x.dim()}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dist = torch.distributed
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        wide = x.float()
        size = torch.full((1,), x.numel() / x.shape[1])
        # Two passes: variance as a difference of sums, in one pass, would lose its digits.
        sums = _SumOverRanks.apply(torch.cat([wide.sum(axes), size]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = wide - mean.view(shape)
        var = _SumOverRanks.apply((centered * centered).sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
        out = centered * torch.rsqrt(var + self.eps).view(shape)
        return (out * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


def convert_sync_batchnorm(module: nn.Module, every: bool = True) -> nn.Module:
    """`module` with its batch norms synchronized over the ranks; its state-dict keys stay the same.

    every: convert all batch norms; otherwise only those of class SyncBatchNorm.
    """
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batchnorm(child, every))
    wanted = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) if every else SyncBatchNorm
    if not (isinstance(module, wanted) and module.affine and module.track_running_stats):
        return module
    if module.weight.is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    new = CPUSyncBatchNorm(module.num_features, module.eps, module.momentum)
    new.load_state_dict(module.state_dict())
    return new.train(module.training)


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is summed over the ranks too."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient
