"""Work of several processes that `accelerate launch` or `torchrun` started, on one machine or more."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist


T = TypeVar("T")


def num_processes() -> int:
    """How many processes there are; one without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", 0))


def local_process_index() -> int:
    """Which of those on this machine this is, from 0; also the accelerator that is its own."""
    return int(os.environ.get("LOCAL_RANK", 0))


def broadcast_from_main(make: Callable[[], T]) -> T:
    """
    What the first process makes; the others wait for it.

    Raises:
        OSError, ValueError: If `make` does in the first process, in all of them.
    """
    if num_processes() == 1:
        return make()
    if ours := not dist.is_initialized():
        dist.init_process_group("gloo")
    made: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            made = [make()]
        except (OSError, ValueError) as error:
            made = [error]
    dist.broadcast_object_list(made)
    if ours:
        dist.destroy_process_group()
    if isinstance(made[0], Exception):
        raise made[0]
    return made[0]
