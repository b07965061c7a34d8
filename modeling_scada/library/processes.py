"""
Ranks of the processes that `accelerate launch` or `torchrun` started, on one machine or several.

`accelerate.PartialState` does not replace these functions. Under `torchrun` without an accelerator it reports a single
process. With `cpu=True` it counts correctly, but its shared state selects the CPU for the whole process, and its
process group stays open.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist


T = TypeVar("T")


def num_processes() -> int:
    """Return the number of processes, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_index() -> int:
    """Return the rank of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def local_process_index() -> int:
    """Return the rank of this process on its machine, from 0. It also numbers the accelerator of this process."""
    return int(os.environ.get("LOCAL_RANK", 0))


def broadcast_from_main(function: Callable[[], T]) -> T:
    """
    Call a function in the main process and return its result in all processes.

    Args:
        function (`Callable`): Function to call. The other processes wait for its result.

    Raises:
        OSError, ValueError: If `function` raises one; every process then raises it.
    """
    if num_processes() == 1:
        return function()
    if has_own_group := not dist.is_initialized():
        dist.init_process_group("gloo")
    result: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            result = [function()]
        except (OSError, ValueError) as error:
            result = [error]
    dist.broadcast_object_list(result)
    if has_own_group:
        dist.destroy_process_group()
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]
