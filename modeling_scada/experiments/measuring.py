"""Measure the time and memory of code on a CPU or a GPU."""

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
    """Return the architecture and instruction set of the processor."""
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def none_if_out_of_memory(measure: Callable[[], Any]) -> Any:
    """Return the result of `measure`, or `None` if the GPU runs out of memory."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        pass  # The exception holds the tensors until the end of this block.
    torch.cuda.empty_cache()
    return None


def measure_seconds(function: Callable[[], object]) -> float:
    """Return the duration of a call in seconds, until the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started_seconds = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started_seconds


def median_seconds(functions: dict[Any, Callable[[], object]], repeats: int) -> dict[Any, Any]:
    """
    Time functions in turns, so that other load on the machine affects all of them.

    Args:
        functions (`dict[Any, Callable]`): Functions by name.
        repeats (`int`): Number of timed calls per function, after one warm-up call.

    Returns:
        `dict[Any, Any]`: Median seconds per call of each function, or `None` if the GPU runs out of memory.
    """
    rounds = [
        {name: none_if_out_of_memory(partial(measure_seconds, function)) for name, function in functions.items()}
        for _ in range(1 + repeats)
    ]
    times_seconds = {name: [times[name] for times in rounds] for name in functions}
    return {name: None if None in times else statistics.median(times[1:]) for name, times in times_seconds.items()}


class _Packed:
    """Tensor saved for the backward pass, alive as long as the graph holds it."""

    def __init__(self, tensor: torch.Tensor):
        # Detached, because its own graph would form a reference cycle that is never freed, even without the loss.
        self.tensor = tensor.detach()


def saved_activation_bytes(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """
    Return the number of bytes that a forward pass saves for the backward pass of its loss.

    Each storage counts once and in full, even if only a part is saved. Parameters, buffers and pixels do not count,
    because they are in memory anyway. Tensors that only outputs other than the loss hold do not count either.

    Args:
        model (`nn.Module`): Model that returns outputs with a `loss`.
        batch (`dict[str, torch.Tensor]`): Arguments of the model. The pixels are `pixel_values_videos`.

    Returns:
        `int`: Number of bytes.
    """
    # Weak references, because a checkpointed layer drops some packed tensors as soon as it ends.
    packed: weakref.WeakSet[_Packed] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> _Packed:
        saved = _Packed(tensor)
        packed.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        loss = model(**batch).loss
    excluded = [*model.parameters(), *model.buffers(), batch["pixel_values_videos"]]
    storages = {saved.tensor.untyped_storage().data_ptr(): saved.tensor.untyped_storage().nbytes() for saved in packed}
    del loss  # frees the graph
    for tensor in excluded:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def peak_bytes(step: Callable[[dict[str, torch.Tensor]], None], batch: dict[str, torch.Tensor]) -> int:
    """Return the peak GPU memory of a training step in bytes, including the model, the optimizer and the pixels."""
    step(batch)  # The first step creates the optimizer's state.
    torch.cuda.reset_peak_memory_stats()
    step(batch)
    return torch.cuda.max_memory_allocated()
