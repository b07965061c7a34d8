"""I3D: Inception-v1 inflated to three dimensions (Carreira and Zisserman, 2017)."""

from collections import OrderedDict

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_i3d import MIXED_WIDTHS, STEM_WIDTHS, I3DConfig
from .modeling_convolutional_stages import StagesModel


# Pooling layer with its kernel and stride, and the following blocks, of each stage after the stem.
MIXED_STAGES = (
    ("MaxPool3d_3a_3x3", (1, 3, 3), (1, 2, 2), ("Mixed_3b", "Mixed_3c")),
    ("MaxPool3d_4a_3x3", (3, 3, 3), (2, 2, 2), ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f")),
    ("MaxPool3d_5a_2x2", (2, 2, 2), (2, 2, 2), ("Mixed_5b", "Mixed_5c")),
)


def pad_same(
    hidden_states: torch.Tensor, kernel_size: tuple[int, ...], stride: tuple[int, ...], value: float
) -> torch.Tensor:
    """
    Pad as TensorFlow does with "SAME", so that the output has length `ceil(size / stride)`. An odd remainder goes to
    the end.

    Args:
        hidden_states (`torch.Tensor` of shape `(B, C, T, H, W)`): Input of a convolution or pooling layer.
        kernel_size (`tuple[int, int, int]`): Kernel size of the layer in time, height and width.
        stride (`tuple[int, int, int]`): Stride of the layer in time, height and width.
        value (`float`): Padding value.

    Returns:
        `torch.Tensor` of shape `(B, C, T', H', W')`: Padded input.
    """
    padding: list[int] = []
    for size, kernel, step in zip(hidden_states.shape[2:], kernel_size, stride, strict=True):
        total = max(kernel - (size % step or step), 0)
        padding = [total // 2, total - total // 2, *padding]  # `pad` starts with the last axis
    return nn.functional.pad(hidden_states, padding, value=value)


class I3DBatchNorm(nn.BatchNorm3d):
    """
    Batch norm that stays in evaluation mode if `config.freeze_batch_norm` is `True`.

    Args:
        config ([`I3DConfig`]): Configuration of the model.
        num_features (`int`): Number of channels.
    """

    def __init__(self, config: I3DConfig, num_features: int):
        super().__init__(num_features, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)
        self.is_frozen = config.freeze_batch_norm
        self.train()

    def train(self, mode: bool = True) -> "I3DBatchNorm":
        return super().train(mode and not self.is_frozen)


class I3DUnit(nn.Module):
    """
    Convolution without bias, followed by batch norm and ReLU. It maps `(B, C, T, H, W)` to `(B, C', T', H', W')`.

    Args:
        config ([`I3DConfig`]): Configuration of the model.
        in_channels (`int`): Number of input channels `C`.
        out_channels (`int`): Number of output channels `C'`.
        kernel_size (`int`): Kernel size in time and space, an odd number.
        stride (`int`): Stride in time and space.
    """

    def __init__(self, config: I3DConfig, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1):
        super().__init__()
        # With stride 1, "SAME" padding is symmetric, so the convolution applies it without copying its input.
        padding = kernel_size // 2 if stride == 1 else 0
        self.kernel_size, self.stride = kernel_size, stride
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = I3DBatchNorm(config, out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.stride != 1:
            hidden_states = pad_same(hidden_states, (self.kernel_size,) * 3, (self.stride,) * 3, value=0.0)
        return nn.functional.relu(self.bn(self.conv3d(hidden_states)), inplace=True)


class I3DMaxPool(nn.Module):
    """
    Max pooling with TensorFlow's "SAME" padding. It maps `(B, C, T, H, W)` to `(B, C, T', H', W')`.

    pytorch-i3d pads with zeros, which is equivalent after a ReLU. This layer pads with `-inf` instead, because an
    adapter can output only negative values.

    Args:
        kernel_size (`tuple[int, int, int]`): Kernel size in time, height and width.
        stride (`tuple[int, int, int]`): Stride in time, height and width.
    """

    def __init__(self, kernel_size: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = pad_same(hidden_states, self.kernel_size, self.stride, value=float("-inf"))
        return nn.functional.max_pool3d(hidden_states, self.kernel_size, self.stride)


class I3DMixed(nn.Module):
    """
    Inception block with four branches, named as in pytorch-i3d. It maps `(B, C, T, H, W)` to `(B, C', T, H, W)`.

    Args:
        config ([`I3DConfig`]): Configuration of the model.
        in_channels (`int`): Number of input channels `C`.
        widths (`tuple[int, ...]`): Number of output channels of b0, b1a, b1b, b2a, b2b and b3b.
    """

    def __init__(self, config: I3DConfig, in_channels: int, widths: tuple[int, ...]):
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.out_channels = b0 + b1b + b2b + b3b
        self.b0 = I3DUnit(config, in_channels, b0)
        self.b1a = I3DUnit(config, in_channels, b1a)
        self.b1b = I3DUnit(config, b1a, b1b, kernel_size=3)
        self.b2a = I3DUnit(config, in_channels, b2a)
        self.b2b = I3DUnit(config, b2a, b2b, kernel_size=3)
        self.b3a = nn.MaxPool3d(kernel_size=3, stride=1, padding=1)
        self.b3b = I3DUnit(config, in_channels, b3b)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        branches = [
            self.b0(hidden_states),
            self.b1b(self.b1a(hidden_states)),
            self.b2b(self.b2a(hidden_states)),
            self.b3b(self.b3a(hidden_states)),
        ]
        return torch.cat(branches, dim=1)


class I3DStage(GradientCheckpointingLayer, nn.Sequential):
    """Stage of I3D, with layers named as in pytorch-i3d. It maps `(B, C, T, H, W)` to `(B, C', T', H', W')`."""


class I3DModel(StagesModel):
    r"""
    I3D without average pooling and classifier. Each of its `stages` maps `(B, C, T, H, W)` to `(B, C', T', H', W')`.
    The stages end with Conv3d_1a_7x7, Conv3d_2c_3x3, Mixed_3c, Mixed_4f and Mixed_5c.

    The last stage outputs one time step per 8 frames. For 16 frames of 224 x 224 pixels, the output has 2 x 7 x 7
    positions of 1024 channels. With gradient checkpointing, batch norm layers update their running statistics twice
    per batch unless they are frozen, because the stages run twice.

    Args:
        config ([`I3DConfig`]): Configuration of the model.

    Example:

    ```python
    >>> import torch
    >>> from modeling_scada.configuration_i3d import I3DConfig
    >>> from modeling_scada.modeling_i3d import I3DModel

    >>> model = I3DModel(I3DConfig(base_channels=4)).eval()
    >>> outputs = model(torch.zeros(1, 16, 3, 32, 32))
    >>> [tuple(feature_map.shape) for feature_map in outputs.feature_maps]
    [(1, 8, 16, 16, 4), (1, 8, 8, 8, 12), (1, 8, 4, 4, 30), (1, 4, 2, 2, 52), (1, 2, 1, 1, 64)]

    ```"""

    config: I3DConfig
    _no_split_modules = ["I3DStage"]

    def __init__(self, config: I3DConfig):
        super().__init__(config)
        first, second = config.scale(STEM_WIDTHS)
        stages: list[dict[str, nn.Module]] = [
            {"Conv3d_1a_7x7": I3DUnit(config, config.num_channels, first, kernel_size=7, stride=2)},
            {
                "MaxPool3d_2a_3x3": I3DMaxPool((1, 3, 3), (1, 2, 2)),
                "Conv3d_2b_1x1": I3DUnit(config, first, first),
                "Conv3d_2c_3x3": I3DUnit(config, first, second, kernel_size=3),
            },
        ]
        in_channels = second
        for pool_name, kernel_size, stride, names in MIXED_STAGES:
            stages.append({pool_name: I3DMaxPool(kernel_size, stride)})
            for name in names:
                block = I3DMixed(config, in_channels, config.scale(MIXED_WIDTHS[name]))
                stages[-1][name] = block
                in_channels = block.out_channels
        self.stages = nn.ModuleList(I3DStage(OrderedDict(layers)) for layers in stages)
        self.post_init()


__all__ = ["I3DModel"]
