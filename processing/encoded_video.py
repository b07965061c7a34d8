"""Encoded videos: the video features of each window, with a fingerprint of the model and the settings."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from .timeline import Timeline
from .whole_files import write_whole


FORMAT = "scada-encoded-video-1"
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ROW_LENGTH = 1024


@dataclass
class EncodedVideo:
    """
    Video features that [`~TemporalGroundingPipeline.encode`] returns. The pipeline accepts them instead of the video.

    Args:
        name (`str`): Name of the video, for messages.
        tensors (`dict[str, torch.Tensor]`): Tensors of [`ScadaVideoFeatures`], on the CPU. The first dimension is the
            window.
        timelines (`list[Timeline]`): Start and end of each window, in seconds.
        fingerprint (`dict`): Hash of the model's weights, and the settings of the processor.
    """

    name: str
    tensors: dict[str, torch.Tensor]
    timelines: list[Timeline]
    fingerprint: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Size of the tensors, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def made_with(self) -> dict[str, Any]:
        """Older name of the fingerprint, used in files and in copies of this code on the Hub."""
        return self.fingerprint

    def save(self, path: str | PathLike) -> None:
        """
        Write one safetensors file atomically.

        Raises:
            OSError: If writing fails, for example because the disk is full.
        """
        facts = {
            "name": self.name,
            "windows": [[timeline.start_seconds, timeline.end_seconds] for timeline in self.timelines],
            "made_with": self.fingerprint,
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        content = save(tensors, metadata={"format": FORMAT, "facts": json.dumps(facts)})
        write_whole(Path(path), lambda file: file.write(content))

    @classmethod
    def load(cls, path: str | PathLike) -> "EncodedVideo":
        """
        Load a file written by `save`.

        Raises:
            ValueError: If the file has another format, or is truncated.
            OSError: If reading fails.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(
                        f"Received {path} with the format {metadata.get('format')}; expected {FORMAT}, written by "
                        "`EncodedVideo.save`. Encode the video again."
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(
                f"Received {path}, which is truncated or not a safetensors file ({error}); expected a file written by "
                "`EncodedVideo.save`. Encode the video again."
            ) from error
        facts = json.loads(metadata["facts"])
        timelines = [Timeline(*seconds) for seconds in facts["windows"]]
        return cls(facts["name"], tensors, timelines, facts["made_with"])


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


__all__ = ["EncodedVideo"]
