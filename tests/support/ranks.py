"""Runs a function of a test on several gloo ranks of this machine."""
import os
import random
import socket
from collections.abc import Callable

import torch
import torch.multiprocessing as mp


def on_ranks(function: Callable, world: int, *args: object):
    """Calls function(rank, world, *args) in `world` processes of one gloo group.

    `function` must be defined at module level. If it fails on any rank, the test fails.
    """
    mp.spawn(_enter, (world, free_port(), function, args), nprocs=world)


def free_port() -> int:
    """A free port outside the range that the system assigns to programs that ask for any port."""
    while True:
        port = random.SystemRandom().randrange(20000, 32768)
        try:
            socket.create_server(("", port)).close()
            return port
        except OSError:
            pass


def _enter(rank, world, port, function, args):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    from utils.machine import distributed
    distributed.start("cpu", timeout=60)
    try:
        function(rank, world, *args)
    finally:
        distributed.stop()
    distributed.exit_after(lambda: 0)
