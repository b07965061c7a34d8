"""Encoded videos: the video features of each window, with a fingerprint of the model and the settings."""

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .timeline import Timeline
from .whole_files import write_whole


FORMAT = "scada-encoded-video-1"


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


__all__ = ["EncodedVideo"]
