"""Batch norm over the ranks equals batch norm over the whole batch.

Seconds where two processes import torch.
"""
import torch
from torch import nn

from tests.support.ranks import on_ranks
from utils.machine import distributed
from utils.machine.sync_batchnorm import (
    AllReduceBatchNorm,
    InPlaceBatchNorm,
    SyncBatchNorm,
    convert_sync_batchnorm,
)


def test_conversion_keeps_keys_values_and_mode():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3)).eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net = convert_sync_batchnorm(net)
    assert isinstance(net[1], AllReduceBatchNorm) and not net[1].training and net[1].eps == 1e-3
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_frozen_norms_stay_frozen():
    norm = nn.BatchNorm2d(4).requires_grad_(False)
    assert not any(p.requires_grad for p in convert_sync_batchnorm(norm).parameters())


def test_without_every_only_those_that_ask_are_converted():
    net = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(4), SyncBatchNorm(4)), every=False)
    assert type(net[0]) is nn.BatchNorm2d and isinstance(net[1], AllReduceBatchNorm)


def test_alone_it_is_an_ordinary_batch_norm():
    x = torch.randn(3, 4, 5, 6)
    plain, synced = nn.BatchNorm2d(4), convert_sync_batchnorm(nn.BatchNorm2d(4))
    assert torch.equal(plain(x), synced(x))
    assert torch.equal(plain.running_var, synced.running_var)
    assert torch.equal(plain.eval()(x), synced.eval()(x))


def test_an_in_place_norm_stays_one_when_it_is_synchronized():
    norm, x = InPlaceBatchNorm(4), torch.randn(3, 4, 5, 6)
    nn.init.normal_(norm.weight)
    synced = convert_sync_batchnorm(norm)
    assert isinstance(synced, AllReduceBatchNorm)
    for train in (True, False):
        assert torch.equal(norm.train(train)(x), synced.train(train)(x))
    assert norm.num_batches_tracked == synced.num_batches_tracked == 1


def _compare(rank, world, kind=nn.BatchNorm2d):
    torch.manual_seed(0)
    x = torch.randn(5, 4, 3, 7) * 2 + 1
    plain = kind(4)
    nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    synced = convert_sync_batchnorm(kind(4))
    synced.load_state_dict(plain.state_dict())
    whole = x.clone().requires_grad_()
    target = torch.randn_like(x)
    (plain(whole) * target).sum().backward()
    part = slice(0, 2) if rank == 0 else slice(2, 5)      # uneven on purpose
    mine = x[part].clone().requires_grad_()
    (synced(mine) * target[part]).sum().backward()
    torch.testing.assert_close(mine.grad, whole.grad[part])
    torch.testing.assert_close(synced.running_mean, plain.running_mean)
    torch.testing.assert_close(synced.running_var, plain.running_var)
    total = distributed.all_reduce_(synced.weight.grad.clone())
    torch.testing.assert_close(total, plain.weight.grad, rtol=1e-4, atol=1e-4)


def test_two_ranks_with_uneven_batches_equal_one_process():
    """Seconds: two processes import torch."""
    on_ranks(_compare_both, 2)


def _compare_both(rank, world):
    _compare(rank, world)
    _compare(rank, world, InPlaceBatchNorm)
