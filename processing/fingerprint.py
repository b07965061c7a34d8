"""Fingerprint of the model and settings that encoded a video or an index."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ROW_LENGTH = 1024


def check_fingerprint(what: str, fingerprint: dict[str, Any], current: dict[str, Any]) -> None:
    """
    Check that an encoded video matches the current model and settings.

    Args:
        what (`str`): Name of the encoded object, for the message.
        fingerprint (`dict`): Fingerprint of the encoded object.
        current (`dict`): Fingerprint of the current model and settings.

    Raises:
        ValueError: If the fingerprints differ.
    """
    different = sorted(name for name in {*fingerprint, *current} if fingerprint.get(name) != current.get(name))
    if "model" in different:
        raise ValueError(
            f"Received {what}, which was encoded with the weights {str(fingerprint.get('model'))[:12]}, but the "
            f"current model has the weights {str(current.get('model'))[:12]}; use the original model, or encode again."
        )
    if different:
        encoded_with = ", ".join(f"{name}={fingerprint.get(name)}" for name in different)
        current_settings = ", ".join(f"{name}={current.get(name)}" for name in different)
        raise ValueError(
            f"Received {what}, which was encoded with {encoded_with}, but the current settings are "
            f"{current_settings}; use the same settings, or encode again."
        )


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of all weights, including names and dtypes, and of the active adapters."""
    return _hash(model, lambda tensor: tensor)


def weights_signature(model: nn.Module) -> str:
    """
    Return a fast hash of all parameters, buffers and active adapters, to detect changed weights.

    The hash covers sums instead of all bytes, and takes a small fraction of the time of [`hash_weights`]. It must read
    the weights, because writes to `.data` and fused optimizers do not increase a tensor's `_version`.
    """
    return _hash(model, _sum_bits)


def _hash(model: nn.Module, reduce: Callable[[torch.Tensor], torch.Tensor]) -> str:
    digest = hashlib.sha256(repr(_adapters(model)).encode())
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    # `torch.compile` adds a prefix to the names of the weights.
    weights = {name.replace("_orig_mod.", ""): tensor for name, tensor in base.state_dict().items()}
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:  # tensors offloaded to disk contribute only their names
            content: Any = reduce(tensor.detach().contiguous().reshape(-1)).view(torch.uint8).cpu().numpy()
            digest.update(content)
    return digest.hexdigest()


def _sum_bits(values: torch.Tensor) -> torch.Tensor:
    """
    Sum the bits of `(n,)` elements as integers, along the rows and the columns of a matrix.

    A sum with wraparound changes with each term. Swapped elements change the sum of a row or a column.
    """
    bits = values.view(INTEGERS[min(values.element_size(), 8)])
    matrix_size = len(bits) // ROW_LENGTH * ROW_LENGTH
    matrix = bits[:matrix_size].view(-1, ROW_LENGTH)
    return torch.cat([matrix.sum(1, dtype=bits.dtype), matrix.sum(0, dtype=bits.dtype), bits[matrix_size:]])


def _adapters(model: nn.Module) -> list:
    layers: Any = (module for module in model.modules() if isinstance(getattr(module, "disable_adapters", None), bool))
    return sorted({(layer.disable_adapters, *layer.active_adapters) for layer in layers})
