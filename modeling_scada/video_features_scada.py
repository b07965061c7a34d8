"""Features of encoded videos, with methods to move, slice, join and save them."""

from dataclasses import dataclass, fields
from os import PathLike

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import ModelOutput


@dataclass
class ScadaVideoFeatures(ModelOutput):
    """
    Output of [`~ScadaModel.encode_video`] for `B` videos. The first dimension of each tensor is the video.

    With conditioned inner branches, the object contains `states`. Otherwise it contains `snippet_features`.

    Args:
        snippet_features (`torch.FloatTensor` of shape `(B, N, spatial_pool_size² C)`, *optional*):
            Features of the backbone, averaged over each pooling area and concatenated.
        outer_sequences (`tuple[torch.FloatTensor]`, *optional*):
            Sequences of shape `(B, N_i, r)`, one per layer with an outer branch, before multiplication by the
            sentence. With a pooling branch, of shape `(B, N_i, h w r)`. With `states`, only for layers before the
            states.
        states (`torch.FloatTensor` of shape `(B, clips, tokens, C)` or `(B, clips, C, t, h, w)`, *optional*):
            States before the first sentence-dependent layer.
        frame_size (`torch.LongTensor` of shape `(B, 2)`, *optional*):
            Height and width of the frames in pixels, given with `states`.
    """

    snippet_features: torch.Tensor | None = None
    outer_sequences: tuple[torch.Tensor, ...] | None = None
    states: torch.Tensor | None = None
    frame_size: torch.Tensor | None = None

    @property
    def num_videos(self) -> int:
        """Number of videos `B`."""
        return len(next(iter(self.tensors().values())))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name, with `outer_sequences.0` and so on for the tuple; see `from_tensors`."""
        tensors: dict[str, torch.Tensor] = {}
        for name, value in self.items():
            if isinstance(value, tuple):
                tensors |= {f"{name}.{index}": tensor for index, tensor in enumerate(value)}
            else:
                tensors[name] = value
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> "ScadaVideoFeatures":
        """
        Create features from the output of `tensors`.

        Raises:
            ValueError: If a name is unknown.
        """
        names = {field.name for field in fields(cls)} - {"outer_sequences"}
        sequences = [f"outer_sequences.{index}" for index in range(len(set(tensors) - names))]
        if not tensors or not set(tensors) <= {*names, *sequences}:
            raise ValueError(
                f"Received tensors named {sorted(tensors)}; expected the tensors of an encoded video from `save`."
            )
        branch_sequences = tuple(tensors[name] for name in sequences) or None
        return cls(outer_sequences=branch_sequences, **{name: tensors[name] for name in names & set(tensors)})

    def to(self, *args, **kwargs) -> "ScadaVideoFeatures":
        """Move all tensors, with the device arguments of `torch.Tensor.to`."""
        return self.from_tensors({name: tensor.to(*args, **kwargs) for name, tensor in self.tensors().items()})

    def rows(self, which: slice) -> "ScadaVideoFeatures":
        """Return the features of a slice of the videos."""
        return self.from_tensors({name: tensor[which] for name, tensor in self.tensors().items()})

    @classmethod
    def join(cls, parts: list["ScadaVideoFeatures"]) -> "ScadaVideoFeatures":
        """Concatenate features of videos with the same number and size of frames."""
        tensors = [part.tensors() for part in parts]
        return cls.from_tensors({name: torch.cat([part[name] for part in tensors]) for name in tensors[0]})

    def save(self, path: str | PathLike) -> None:
        """Write the features to a safetensors file."""
        save_file({name: tensor.contiguous() for name, tensor in self.tensors().items()}, path)

    @classmethod
    def load(cls, path: str | PathLike) -> "ScadaVideoFeatures":
        """
        Load a file written by `save` onto the CPU.

        Raises:
            ValueError: If the file contains other tensors.
        """
        return cls.from_tensors(load_file(path))


__all__ = ["ScadaVideoFeatures"]
