"""Compares training steps on one and on two gloo ranks of this machine.

    python -m benchmarks.scaling [--model ENet] [--size 128] [--batch 2] [--steps 15]

Each process uses one thread and has a batch of the same size. The efficiency is the wall time of a
step with one rank divided by that with two ranks: 1 means twice as many images per second.
"""
import argparse
import os
import socket
import statistics
import time


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ENet")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)

    import torch.multiprocessing as mp

    from benchmarks.measure import table
    seconds: dict[int, list[float]] = {1: [], 2: []}       # by number of ranks
    for _ in range(args.rounds):
        for world in seconds:
            queue = mp.get_context("spawn").SimpleQueue()
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            mp.spawn(_rank, (world, port, args, queue), nprocs=world)
            seconds[world].append(queue.get())
    middle = {world: statistics.median(values) for world, values in seconds.items()}
    table(f"{args.model}, {args.batch} images of {args.size}x{args.size} per rank, wall time", [
        ("ranks", "ms a step", "images/s"),
        *((world, f"{1000 * s:.0f}", f"{world * args.batch / s:.1f}")
          for world, s in middle.items())])
    print(f"\nefficiency of two ranks: {middle[1] / middle[2]:.2f}")


def _rank(rank, world, port, args, queue):
    """Trains on one rank; rank 0 puts its median wall seconds per step in the queue."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch

    from benchmarks.step import CASES, batch_of, our_step
    from utils.machine import distributed
    torch.set_num_threads(1)
    distributed.start("cpu", timeout=120)
    step = our_step(args.model, batch_of(args.batch, args.size), CASES[args.model])
    for _ in range(3):
        step()
    if world > 1:
        torch.distributed.barrier()
    times = []
    for _ in range(args.steps):
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    if rank == 0:
        queue.put(statistics.median(times))
    distributed.stop()


if __name__ == "__main__":
    main()
