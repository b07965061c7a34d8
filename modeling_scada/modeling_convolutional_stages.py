"""Base class of C3D and I3D: a sequence of convolutional stages over clips."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple


@dataclass
class StagesModelOutput(ModelOutput):
    """
    Output of a [`StagesModel`]. `N` denotes the number of time steps.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, N, h, w, C)`): Output of the last stage.
        feature_maps (`tuple[torch.Tensor]`, *optional*): Output of each stage `i`, of shape `(B, N_i, h_i, w_i, C_i)`.
    """

    last_hidden_state: torch.Tensor | None = None
    feature_maps: tuple[torch.Tensor, ...] | None = None


class StagesModel(PreTrainedModel):
    """
    Base class of models with convolutional stages. Subclasses define `stages`, an `nn.ModuleList`. Each stage maps
    `(B, C, T, H, W)` to `(B, C', T', H', W')`.
    """

    base_model_prefix = "model"
    main_input_name = "pixel_values_videos"
    input_modalities = "video"
    supports_gradient_checkpointing = True
    stages: nn.ModuleList

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv3d):  # C3D has no norm layer to correct the scale
            init.kaiming_normal_(module.weight, nonlinearity="relu")

    @can_return_tuple
    def forward(self, pixel_values_videos: torch.Tensor, output_feature_maps: bool = True) -> StagesModelOutput:
        """
        Encode clips.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`): Clips of normalized RGB frames of any
                size.
            output_feature_maps (`bool`): Whether to also return the outputs of all stages. This keeps them in memory.

        Returns:
            [`StagesModelOutput`]: Output of the last stage and optionally of all stages. `N_i`, `h_i` and `w_i` equal
            the input size divided by the stride of the stage, rounded up.

        Raises:
            ValueError: If the shape is not `(clips, frames, channels, height, width)`.
        """
        if pixel_values_videos.dim() != 5 or pixel_values_videos.shape[2] != self.config.num_channels:
            raise ValueError(
                f"Received `pixel_values_videos` of shape {tuple(pixel_values_videos.shape)}; expected (clips, "
                f"frames, {self.config.num_channels}, height, width)."
            )
        hidden_states = pixel_values_videos.transpose(1, 2)  # (B, C, T, H, W)
        feature_maps = []
        for stage in self.stages:
            hidden_states = stage(hidden_states)
            if output_feature_maps:
                feature_maps.append(hidden_states.permute(0, 2, 3, 4, 1))
        return StagesModelOutput(
            last_hidden_state=hidden_states.permute(0, 2, 3, 4, 1),
            feature_maps=tuple(feature_maps) if output_feature_maps else None,
        )


__all__ = ["StagesModel", "StagesModelOutput"]
