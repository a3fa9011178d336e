"""Runs a function of a test on several gloo ranks of this machine."""
import os
import random
import socket

import torch
import torch.multiprocessing as mp


def on_ranks(function, world: int, *args):
    """Call function(rank, world, *args) in `world` processes of one gloo group; it must be a
    module-level function. Any failure of a rank fails the test."""
    mp.spawn(_enter, (world, free_port(), function, args), nprocs=world)


def free_port() -> int:
    """A port that nobody listens on, of those that the system gives to nobody who asks for any."""
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
    from utils import distributed
    distributed.start("cpu", timeout=60)
    try:
        function(rank, world, *args)
    finally:
        distributed.stop()
