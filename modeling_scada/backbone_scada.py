"""
Video backbones: any supported encoder of transformers -> snippet features.

This is the one place that knows model types: what an encoder wants as input, how it orders its tokens, and how its
position embeddings follow another image size.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class ResizableVideoMAEEmbeddings(nn.Module):
    """
    VideoMAE's patch and position embeddings for any image size.

    The position embeddings are interpolated over `(t, h, w)` from the pretrained grid (METHOD section 5 [D]);
    transformers rebuilds a flat sinusoid from the configuration instead, which at another size is a different
    embedding.

    Args:
        embeddings (`VideoMAEEmbeddings`): The pretrained embeddings; parameter names stay as they are.
    """

    def __init__(self, embeddings: Any):
        super().__init__()
        self.patch_embeddings = embeddings.patch_embeddings
        config = embeddings.config
        height, width = _pair(config.image_size)
        patch_height, patch_width = _pair(config.patch_size)
        self.pretrained_grid = (
            config.num_frames // config.tubelet_size,
            height // patch_height,
            width // patch_width,
        )
        self.position_embeddings = embeddings.position_embeddings

    def interpolated_position_embeddings(self, grid: tuple[int, int, int]) -> torch.Tensor:
        """
        Args:
            grid (`tuple[int, int, int]`): Tubelets, rows and columns of the tokens.

        Returns:
            `torch.Tensor` of shape `(1, t * h * w, hidden_size)`, in float32.
        """
        if grid == self.pretrained_grid:
            return self.position_embeddings
        table = self.position_embeddings.reshape(1, *self.pretrained_grid, -1).permute(0, 4, 1, 2, 3)
        table = nn.functional.interpolate(table.float(), size=grid, mode="trilinear", align_corners=False)
        return table.flatten(2).transpose(1, 2)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        # pixel_values: (clips, frames, channels, height, width)
        patches = self.patch_embeddings.projection(pixel_values.transpose(1, 2))  # (clips, C, t, h, w)
        positions = self.interpolated_position_embeddings(tuple(patches.shape[2:]))
        embeddings = patches.flatten(2).transpose(1, 2)  # (clips, t * h * w, C)
        embeddings = embeddings + positions.detach().to(device=embeddings.device, dtype=embeddings.dtype)
        if bool_masked_pos is not None:
            embeddings = embeddings[~bool_masked_pos].reshape(len(embeddings), -1, embeddings.shape[-1])
        return embeddings


class VideoBackbone(nn.Module):
    """
    Runs an encoder of transformers over a whole video: cuts it into clips, encodes the clips as a batch, and lays the
    tokens out as snippets.

    Args:
        encoder (`PreTrainedModel`): A `VideoMAEModel`. Its embeddings are replaced by ones that follow the image size.

    Raises:
        ValueError: If the encoder is of a type that is not supported.
    """

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        if encoder.config.model_type != "videomae":
            raise ValueError(
                f"Received a video backbone of model_type {encoder.config.model_type!r}; supported is 'videomae'."
            )
        if not isinstance(encoder.embeddings, ResizableVideoMAEEmbeddings):
            encoder.embeddings = ResizableVideoMAEEmbeddings(encoder.embeddings)
        self.encoder: Any = encoder

    @property
    def config(self) -> PreTrainedConfig:
        """The encoder's configuration."""
        return self.encoder.config

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, those that an adapter wraps."""
        return self.encoder.encoder.layer

    def grid(self, pixel_values_videos: torch.Tensor) -> tuple[int, int, int, int]:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`): Normalised frames.

        Returns:
            `tuple[int, int, int, int]`: `B`, and the snippets `N`, rows `h` and columns `w` of a video's features.

        Raises:
            ValueError: If the tensor is not `(videos, frames, channels, height, width)`, or if the number of frames
                is no multiple of the clip length, or the image size no multiple of the patch size.
        """
        config = self.config
        if pixel_values_videos.dim() != 5 or pixel_values_videos.shape[2] != config.num_channels:
            raise ValueError(
                f"Received `pixel_values_videos` of shape {tuple(pixel_values_videos.shape)}; expected (videos, "
                f"frames, {config.num_channels}, height, width), as ScadaProcessor makes it."
            )
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        if num_frames == 0 or num_frames % config.num_frames:
            raise ValueError(
                f"Received {num_frames} frames a video; the backbone reads clips of {config.num_frames}. Set the "
                f"processor's `num_frames` to a multiple of {config.num_frames}."
            )
        patch_height, patch_width = _pair(config.patch_size)
        if height == 0 or width == 0 or height % patch_height or width % patch_width:
            raise ValueError(
                f"Received frames of {height} x {width} pixels; the backbone's patches are {patch_height} x "
                f"{patch_width}. Set the processor's `size` to multiples of them."
            )
        return batch_size, num_frames // config.tubelet_size, height // patch_height, width // patch_width

    def forward(
        self, pixel_values_videos: torch.Tensor, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`): Normalised frames.
            output_hidden_states (`bool`): Whether to return the states of all layers too.

        Returns:
            `tuple`: snippet features `(B, N, h, w, C)` after the encoder's final norm, where it has one, and the
            states before the first and after each layer, each `(B, N, h, w, C)`, or `None`. An adapter may turn the
            `B` videos into the `Q` sentences it was told of, from one of the layers on.

        Raises:
            ValueError: As [`~VideoBackbone.grid`].
        """
        layout = (-1, *self.grid(pixel_values_videos)[1:], self.config.hidden_size)
        clips = pixel_values_videos.reshape(-1, self.config.num_frames, *pixel_values_videos.shape[2:])
        states: list[torch.Tensor] = []
        handles = []
        if output_hidden_states:
            # The encoder's own recording looks inside the layers that an adapter wraps.
            handles = [self.layers[0].register_forward_pre_hook(lambda layer, args: states.append(args[0]))]
            handles += [
                layer.register_forward_hook(lambda layer, args, output: states.append(output)) for layer in self.layers
            ]
        try:
            # Tokens are ordered (clip, t, h, w), so the clips of a video join in time without moving anything.
            features = self.encoder(clips.to(self.encoder.dtype)).last_hidden_state.reshape(layout)
        finally:
            for handle in handles:
                handle.remove()
        return features, tuple(state.reshape(layout) for state in states) if output_hidden_states else None


def _pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
