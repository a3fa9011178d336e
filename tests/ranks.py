"""Runs a function of a test on several gloo ranks of this machine."""
import os
import socket

import torch
import torch.multiprocessing as mp


def on_ranks(function, world: int, *args):
    """Call function(rank, world, *args) in `world` processes of one gloo group; it must be a
    module-level function. Any failure of a rank fails the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_enter, (world, port, function, args), nprocs=world)


def _enter(rank, world, port, function, args):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    from utils import distributed
    distributed.start("cpu", timeout=60)
    try:
        function(rank, world, *args)
    finally:
        distributed.stop()
