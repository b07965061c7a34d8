"""A video that was encoded once: what the model keeps of its windows, and what it was encoded with."""

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
    What [`~TemporalGroundingPipeline.encode`] keeps of a video; the pipeline takes it in the place of the video.

    Args:
        name (`str`): The video's name, for messages.
        tensors (`dict[str, torch.Tensor]`): As of [`ScadaVideoFeatures`], on the CPU. The first dimension of each is
            the window.
        timelines (`list[Timeline]`): When each window starts and ends, in seconds.
        fingerprint (`dict`): What identifies the model's weights, and the settings of the processor.
    """

    name: str
    tensors: dict[str, torch.Tensor]
    timelines: list[Timeline]
    fingerprint: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def made_with(self) -> dict[str, Any]:
        """The fingerprint under its older name, which files and copies of this code on the Hub have."""
        return self.fingerprint

    def save(self, path: str | PathLike) -> None:
        """
        Writes one safetensors file, in full or not at all.

        Raises:
            OSError: If it cannot be written, for example because the disk is full.
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
        Reads what `save` wrote.

        Raises:
            ValueError: If the file is another, or cut off.
            OSError: If it cannot be read.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(
                        f"Received {path}, whose format is {metadata.get('format')}; expected {FORMAT}, as `save` of "
                        "an encoded video writes it. Encode the video again."
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(
                f"Received {path}, which is cut off or no safetensors file ({error}); expected a file that `save` of "
                "an encoded video wrote. Encode the video again."
            ) from error
        facts = json.loads(metadata["facts"])
        timelines = [Timeline(*seconds) for seconds in facts["windows"]]
        return cls(facts["name"], tensors, timelines, facts["made_with"])


def check_fingerprint(what: str, fingerprint: dict[str, Any], current: dict[str, Any]) -> None:
    """
    Args:
        what (`str`): What was encoded before, for the message.
        fingerprint (`dict`): With which model and settings.
        current (`dict`): Those that are to be used now.

    Raises:
        ValueError: If they are not the same.
    """
    different = sorted(name for name in {*fingerprint, *current} if fingerprint.get(name) != current.get(name))
    if "model" in different:
        raise ValueError(
            f"Received {what}, which was encoded with the weights {str(fingerprint.get('model'))[:12]}, and a model "
            f"with {str(current.get('model'))[:12]}; ask with the model it was encoded with, or encode it again."
        )
    if different:
        were = ", ".join(f"{name}={fingerprint.get(name)}" for name in different)
        now = ", ".join(f"{name}={current.get(name)}" for name in different)
        raise ValueError(
            f"Received {what}, which was encoded with {were}, and now {now}; use the same, or encode again."
        )


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of all weights, with their names and types, and of the adapters that are active."""
    return _hash(model, lambda tensor: tensor)


def weights_signature(model: nn.Module) -> str:
    """
    Changes with any element of any parameter or buffer, whichever way it was written, and with the active adapters.

    Hashes sums instead of all bytes, so it takes a small part of the time of [`hash_weights`]. Writes into `.data` and
    fused optimizers do not raise a tensor's `_version`, so nothing short of reading the weights notices them.
    """
    return _hash(model, _sum_bits)


def _hash(model: nn.Module, reduce: Callable[[torch.Tensor], torch.Tensor]) -> str:
    found = hashlib.sha256(repr(_adapters(model)).encode())
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    # What `torch.compile` wraps has another name and the same weights.
    weights = {name.replace("_orig_mod.", ""): tensor for name, tensor in base.state_dict().items()}
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:  # those that are kept on disk are known by their names alone
            content: Any = reduce(tensor.detach().contiguous().reshape(-1)).view(torch.uint8).cpu().numpy()
            found.update(content)
    return found.hexdigest()


def _sum_bits(values: torch.Tensor) -> torch.Tensor:
    """
    Sums of the bits of `(n,)` elements as integers, along the rows and the columns of a matrix.

    A sum that wraps around changes with each of its terms. Elements that change places change rows or columns.
    """
    bits = values.view(INTEGERS[min(values.element_size(), 8)])
    whole = len(bits) // ROW_LENGTH * ROW_LENGTH
    matrix = bits[:whole].view(-1, ROW_LENGTH)
    return torch.cat([matrix.sum(1, dtype=bits.dtype), matrix.sum(0, dtype=bits.dtype), bits[whole:]])


def _adapters(model: nn.Module) -> list:
    layers: Any = (module for module in model.modules() if isinstance(getattr(module, "disable_adapters", None), bool))
    return sorted({(layer.disable_adapters, *layer.active_adapters) for layer in layers})


__all__ = ["EncodedVideo"]
