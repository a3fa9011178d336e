"""Batch norm over the batches of all ranks, on GPUs and on CPUs.

torch's SyncBatchNorm does the work on GPUs but refuses CPU tensors. On CPUs
the same sums go through a differentiable all-reduce here, so that a gloo run
trains what one process with the whole batch would.
"""
import torch
from torch import nn


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm that also works on CPU tensors. x: (N, C, …)."""

    def forward(self, x):
        dist = torch.distributed
        if x.device.type != "cpu":
            return super().forward(x)
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return nn.modules.batchnorm._BatchNorm.forward(self, x)
        self.num_batches_tracked.add_(1)
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        wide = x.float()
        size = torch.full((1,), x.numel() / x.shape[1])
        # Sums first, squares of centred values second: one pass would cancel.
        sums = _SumOverRanks.apply(torch.cat([wide.sum(axes), size]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean.view(shape)
        var = _SumOverRanks.apply((centred * centred).sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        return (out * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """`module` with every ordinary BatchNorm replaced by a synchronised one; keys stay the same."""
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batchnorm(child))
    ordinary = isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(
        module, nn.SyncBatchNorm) and module.affine and module.track_running_stats
    if not ordinary:
        return module
    new = SyncBatchNorm(module.num_features, module.eps, module.momentum)
    new.weight, new.bias = module.weight, module.bias
    new.running_mean, new.running_var = module.running_mean, module.running_var
    new.num_batches_tracked = module.num_batches_tracked
    return new.train(module.training)


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is summed over them likewise."""

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
