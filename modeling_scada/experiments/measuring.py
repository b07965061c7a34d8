"""Time and memory of code that runs on a CPU or a GPU, and tables of what came out."""

import platform
import statistics
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn


def cpu_name() -> str:
    """What is known of the processor that times depend on."""
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def none_if_out_of_memory(measure: Callable[[], Any]) -> Any:
    """What `measure` returns; `None` if the GPU's memory was not enough."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        pass  # Until here the exception holds the tensors.
    torch.cuda.empty_cache()
    return None


def measure_seconds(function: Callable[[], object]) -> float:
    """Time of a call, in seconds, until the device is through with it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started_seconds = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started_seconds


def median_seconds(functions: dict[Any, Callable[[], object]], repeats: int) -> dict[Any, Any]:
    """
    Times functions in turns, so that what else the machine does meets all of them.

    Returns:
        `dict[Any, Any]`: Median time of a call of each, in seconds, after one call to warm up; `None` where the GPU's
        memory was not enough.
    """
    rounds = [
        {name: none_if_out_of_memory(partial(measure_seconds, function)) for name, function in functions.items()}
        for _ in range(1 + repeats)
    ]
    times_seconds = {name: [times[name] for times in rounds] for name in functions}
    return {name: None if None in times else statistics.median(times[1:]) for name, times in times_seconds.items()}


class _Packed:
    """A tensor kept for the backward pass. It lives as long as the graph holds it."""

    def __init__(self, tensor: torch.Tensor):
        # With its own graph it would be part of a circle that nothing frees, not even once the loss is gone.
        self.tensor = tensor.detach()


def saved_activation_bytes(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """
    Bytes that a forward pass keeps for the backward pass of its loss.

    Each storage counts once and in full, whatever part of it is kept; parameters, buffers and pixels do not count, as
    they are there anyway. What only the outputs beside the loss hold does not count either.

    Args:
        model (`nn.Module`): Returns outputs with a `loss`.
        batch (`dict[str, torch.Tensor]`): Its arguments; the pixels are `pixel_values_videos`.

    Returns:
        `int`: Bytes.
    """
    # Weakly: a checkpointed layer drops some of what it packed as soon as it is through.
    packed: weakref.WeakSet[_Packed] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> _Packed:
        kept = _Packed(tensor)
        packed.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss = model(**batch).loss
    present = [*model.parameters(), *model.buffers(), batch["pixel_values_videos"]]
    storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in packed}
    del loss  # It held the graph.
    for tensor in present:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def to_markdown(lines: list[dict[str, str]]) -> str:
    """Lines by title to a markdown table; titles under which no line has anything are left out."""
    titles = [title for title in lines[0] if any(line[title] != "-" for line in lines)]
    cells = [titles, ["---"] * len(titles), *([line[title] for title in titles] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
