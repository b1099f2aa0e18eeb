"""Processes of one training, forked from the test's own, so that torch is imported once."""

import multiprocessing
import os
import socket

import torch

from videoblip2.training.distributed import join


def processes(count, target, timeout=200):
    """Run `target(world)` in forked processes; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def enter(rank):
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        join.cache_clear()
        torch.set_num_threads(1)
        target(join())

    children = [multiprocessing.get_context("fork").Process(target=enter, args=(rank,)) for rank in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout)
    for child in children:
        if child.is_alive():
            child.kill()
    return [child.exitcode for child in children]
