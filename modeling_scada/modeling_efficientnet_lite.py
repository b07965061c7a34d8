"""EfficientNet-Lite: inverted bottlenecks with ReLU6 and without squeeze-and-excitation (Tan and Le, 2019)."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithNoAttention
from transformers.utils import can_return_tuple

from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .modeling_i3d import pad_same


# Kernel size, stride of the first block, and expansion ratio of each of the seven block stages.
BLOCKS = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))


class EfficientNetLiteUnit(nn.Module):
    """
    Convolution without bias, followed by batch norm and an optional ReLU6. It maps `(B, C, H, W)` to
    `(B, C', H', W')`.

    Args:
        config ([`EfficientNetLiteConfig`]): Configuration of the model.
        in_channels (`int`): Number of input channels `C`.
        out_channels (`int`): Number of output channels `C'`.
        kernel_size (`int`): Kernel size in height and width, an odd number.
        stride (`int`): Stride in height and width.
        groups (`int`): Number of groups of the convolution.
        has_activation (`bool`): Whether to apply ReLU6.
    """

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        has_activation: bool = True,
    ):
        super().__init__()
        # With stride 1, "SAME" padding is symmetric, so the convolution applies it without copying its input.
        padding = kernel_size // 2 if stride == 1 else 0
        self.kernel_size, self.stride = kernel_size, stride
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=config.batch_norm_eps)
        self.activation = nn.ReLU6() if has_activation else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.stride != 1:
            hidden_states = pad_same(hidden_states, (self.kernel_size,) * 2, (self.stride,) * 2, value=0.0)
        return self.activation(self.norm(self.conv(hidden_states)))


class EfficientNetLiteBlock(nn.Module):
    """
    Inverted bottleneck: expansion, depthwise convolution and projection. A residual connection adds the input if it
    has the same shape as the output.

    Args:
        config ([`EfficientNetLiteConfig`]): Configuration of the model.
        in_channels (`int`): Number of input channels `C`.
        out_channels (`int`): Number of output channels `C'`.
        kernel_size (`int`): Kernel size of the depthwise convolution.
        stride (`int`): Stride of the depthwise convolution.
        expansion (`int`): Ratio of the inner width to `C`; 1 omits the expansion.
    """

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expansion: int,
    ):
        super().__init__()
        width = in_channels * expansion
        self.has_residual = stride == 1 and in_channels == out_channels
        self.expand = EfficientNetLiteUnit(config, in_channels, width) if expansion > 1 else nn.Identity()
        self.depthwise = EfficientNetLiteUnit(config, width, width, kernel_size, stride, groups=width)
        self.project = EfficientNetLiteUnit(config, width, out_channels, has_activation=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        update = self.project(self.depthwise(self.expand(hidden_states)))
        return hidden_states + update if self.has_residual else update


class EfficientNetLiteStage(GradientCheckpointingLayer, nn.Sequential):
    """Sequence of blocks. It maps `(B, C, H, W)` to `(B, C', H', W')`."""


class EfficientNetLiteModel(PreTrainedModel):
    r"""
    EfficientNet-Lite without average pooling and classifier. Each of its `stages` maps `(B, C, H, W)` to
    `(B, C', H', W')`.

    Args:
        config ([`EfficientNetLiteConfig`]): Configuration of the model.

    Example:

    ```python
    >>> import torch
    >>> from modeling_scada.configuration_efficientnet_lite import EfficientNetLiteConfig
    >>> from modeling_scada.modeling_efficientnet_lite import EfficientNetLiteModel

    >>> config = EfficientNetLiteConfig(hidden_sizes=[4, 4, 8, 8, 8, 16, 16, 32], depths=[1] * 7)
    >>> model = EfficientNetLiteModel(config).eval()
    >>> model(torch.zeros(1, 3, 64, 96)).last_hidden_state.shape
    torch.Size([1, 32, 2, 3])

    ```"""

    config: EfficientNetLiteConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EfficientNetLiteStage"]

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.stem = EfficientNetLiteUnit(config, config.num_channels, config.embedding_size, kernel_size=3, stride=2)
        num_stages = len(config.depths)
        self.stages = nn.ModuleList()
        in_channels = config.embedding_size
        for width, depth, (kernel_size, stride, expansion) in zip(
            config.hidden_sizes[:num_stages], config.depths, BLOCKS[:num_stages], strict=True
        ):
            blocks = []
            for index in range(depth):
                blocks.append(
                    EfficientNetLiteBlock(config, in_channels, width, kernel_size, 1 if index else stride, expansion)
                )
                in_channels = width
            self.stages.append(EfficientNetLiteStage(*blocks))
        for head_width in config.hidden_sizes[num_stages:]:
            self.stages.append(EfficientNetLiteStage(EfficientNetLiteUnit(config, in_channels, head_width)))
        # A truncated model can load the weights of the full model.
        omitted_stages = range(len(self.stages), len(BLOCKS) + 1)
        self._keys_to_ignore_on_load_unexpected = [rf"^stages\.{index}\." for index in omitted_stages]
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithNoAttention:
        """
        Encode frames.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Normalized RGB frames of any size.

        Returns:
            `BaseModelOutputWithNoAttention`: Output with `last_hidden_state` of shape `(B, hidden_sizes[-1], H / 32,
            W / 32)`, rounded up. Truncated models return larger maps, for example `H / 16` and `W / 16` with four or
            five stages.
        """
        hidden_states = self.stem(pixel_values)
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        return BaseModelOutputWithNoAttention(last_hidden_state=hidden_states)


__all__ = ["EfficientNetLiteModel"]
