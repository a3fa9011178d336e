"""Batch norm over the batches of all ranks, on GPUs and on CPUs.

torch's SyncBatchNorm does the work on GPUs but refuses CPUs. There the same
sums go through a differentiable all-reduce, so that a gloo run trains what one
process with the whole batch would.
"""
import torch
from torch import nn


class SyncBatchNorm(nn.BatchNorm2d):
    """A batch norm that asks to be synchronised (norm "sync"), whatever use_synch_bn says.

    An ordinary batch norm until `convert_sync_batchnorm` replaces it by the form
    its device needs.
    """


class CPUSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch.nn.SyncBatchNorm for CPUs, affine and with running statistics. x: (N, C, …).

    Not a subclass of torch's, which DistributedDataParallel refuses on CPUs.
    """

    def _check_input_dim(self, x):
        if x.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {x.dim()}")

    def forward(self, x):
        dist = torch.distributed
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
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


def convert_sync_batchnorm(module: nn.Module, every: bool = True) -> nn.Module:
    """`module` with its batch norms synchronised over the ranks; keys stay the same.

    every: all of them; otherwise only those that ask for it (SyncBatchNorm).
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
