"""What a model needs of videos that were encoded before: moved, cut, joined and saved as tensors."""

from dataclasses import dataclass, fields
from os import PathLike

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import ModelOutput


@dataclass
class ScadaVideoFeatures(ModelOutput):
    """
    What [`~ScadaModel.encode_video`] keeps of `B` videos. The first dimension of each tensor is the video.

    Either `snippet_features`, where no state of the backbone depends on the sentence; or `states`, where inner
    branches are multiplied by it.

    Args:
        snippet_features (`torch.FloatTensor` of shape `(B, N, C)`, *optional*):
            Features of the backbone, means over space; of several places side by side.
        outer_sequences (`tuple[torch.FloatTensor]`, *optional*):
            Of each layer with an outer branch, `(B, N_i, r)`: what is multiplied by the sentence. With `states`, of
            the layers before them.
        states (`torch.FloatTensor` of shape `(B, clips, tokens, C)` or `(B, clips, C, t, h, w)`, *optional*):
            States before the first layer that depends on the sentence.
        frame_size (`torch.LongTensor` of shape `(B, 2)`, *optional*):
            Height and width of the frames in pixels, with `states`.
    """

    snippet_features: torch.Tensor | None = None
    outer_sequences: tuple[torch.Tensor, ...] | None = None
    states: torch.Tensor | None = None
    frame_size: torch.Tensor | None = None

    @property
    def num_videos(self) -> int:
        """`B`."""
        return len(next(iter(self.tensors().values())))

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, `outer_sequences.0` and so on for those of the tuple; see `from_tensors`."""
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
        The inverse of `tensors`.

        Raises:
            ValueError: If there is a name that `tensors` does not give.
        """
        names = {field.name for field in fields(cls)} - {"outer_sequences"}
        sequences = [f"outer_sequences.{index}" for index in range(len(set(tensors) - names))]
        if not tensors or not set(tensors) <= {*names, *sequences}:
            raise ValueError(
                f"Received tensors named {sorted(tensors)}; expected those of an encoded video, as `save` writes them."
            )
        branch_sequences = tuple(tensors[name] for name in sequences) or None
        return cls(outer_sequences=branch_sequences, **{name: tensors[name] for name in names & set(tensors)})

    def to(self, *args, **kwargs) -> "ScadaVideoFeatures":
        """As `torch.Tensor.to` with a device, of all tensors."""
        return self.from_tensors({name: tensor.to(*args, **kwargs) for name, tensor in self.tensors().items()})

    def rows(self, which: slice) -> "ScadaVideoFeatures":
        """Those of some of the videos."""
        return self.from_tensors({name: tensor[which] for name, tensor in self.tensors().items()})

    @classmethod
    def join(cls, parts: list["ScadaVideoFeatures"]) -> "ScadaVideoFeatures":
        """Those of several calls, of videos with equally many frames of one size."""
        tensors = [part.tensors() for part in parts]
        return cls.from_tensors({name: torch.cat([part[name] for part in tensors]) for name in tensors[0]})

    def save(self, path: str | PathLike) -> None:
        """Writes a safetensors file."""
        save_file({name: tensor.contiguous() for name, tensor in self.tensors().items()}, path)

    @classmethod
    def load(cls, path: str | PathLike) -> "ScadaVideoFeatures":
        """
        Reads what `save` wrote, onto the CPU.

        Raises:
            ValueError: If the file holds other tensors.
        """
        return cls.from_tensors(load_file(path))


__all__ = ["ScadaVideoFeatures"]
