"""Batch norm over the batches of all ranks, on GPUs and on CPUs.

GPUs use torch's SyncBatchNorm, which refuses CPUs. On CPUs the same sums go through a
differentiable all-reduce, so several gloo processes train like one process with the whole batch.
In-place activated batch norms, which torch does not have, take that way on GPUs too.
"""
import torch
import torch.nn.functional as F
from torch import nn

IN_PLACE_EPS = 1e-5     # what openseg's in-place activated norms add to |weight|


class SyncBatchNorm(nn.BatchNorm2d):
    """Marks a batch norm that is always synchronized (norm "sync"), also without use_synch_bn.

    It is an ordinary batch norm until `convert_sync_batchnorm` replaces it by the class for its
    device.
    """


class InPlaceBatchNorm(nn.BatchNorm2d):
    """Batch norm with the factors |weight| + 1e-5: in-place activated batch norm, "InPlace-ABN".

    Rota Bulò et al., 2018, arXiv:1712.02616, as openseg trains with it. It saves no memory here:
    only the numbers are the same. x: float (N, C, H, W); returns the same shape and dtype.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(x, self.running_mean, self.running_var,
                            self.weight.abs() + IN_PLACE_EPS, self.bias, self.training,
                            self.momentum, self.eps)


class AllReduceBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch.nn.SyncBatchNorm for CPUs and of InPlaceBatchNorm, with running statistics.

    x: (N, C, …) of a floating-point dtype; returns the same shape and dtype. in_place: the factors
    are |weight| + 1e-5.
    Not a subclass of torch's, because DistributedDataParallel refuses that one on CPUs.
    """

    in_place = False

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
        factors = self.weight.abs() + IN_PLACE_EPS if self.in_place else self.weight
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            if self.training:
                self.num_batches_tracked.add_(1)
            return F.batch_norm(x, self.running_mean, self.running_var, factors, self.bias,
                                self.training, self.momentum, self.eps)
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
        return (out * factors.view(shape) + self.bias.view(shape)).to(x.dtype)


def convert_sync_batchnorm(module: nn.Module, every: bool = True) -> nn.Module:
    """`module` with its batch norms synchronized over the ranks; its state-dict keys stay the same.

    every: convert all batch norms; otherwise only those of class SyncBatchNorm.
    """
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batchnorm(child, every))
    wanted = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) if every else SyncBatchNorm
    if not (isinstance(module, wanted) and module.affine and module.track_running_stats):
        return module
    in_place = isinstance(module, InPlaceBatchNorm)
    if module.weight.is_cuda and not in_place:      # torch's class knows its own factors only
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    new = AllReduceBatchNorm(module.num_features, module.eps, module.momentum)
    new.in_place = in_place
    new = new.to(module.weight.device)
    new.load_state_dict(module.state_dict())
    new.weight, new.bias = module.weight, module.bias       # which may be frozen
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
