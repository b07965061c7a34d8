"""C3D: five stages of 3 x 3 x 3 convolutions (Tran et al., 2015)."""

from collections import OrderedDict

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_c3d import C3DConfig
from .modeling_convolutional_stages import StagesModel


# Names of the convolutions and the pooling layer of each stage, as in the original.
STAGES = (
    (("conv1",), "pool1"),
    (("conv2",), "pool2"),
    (("conv3a", "conv3b"), "pool3"),
    (("conv4a", "conv4b"), "pool4"),
    (("conv5a", "conv5b"), "pool5"),
)


class C3DStage(GradientCheckpointingLayer, nn.Sequential):
    """
    Stage of C3D: convolutions, each followed by a ReLU, and max pooling. It maps `(B, C, T, H, W)` to
    `(B, C', T', H', W')`. The submodules keep the original names.

    Args:
        stage (`int`): Index of the stage, from 0 to 4.
        in_channels (`int`): Number of input channels `C`.
        out_channels (`int`): Number of output channels `C'`.
    """

    def __init__(self, stage: int, in_channels: int, out_channels: int):
        names, pool_name = STAGES[stage]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name in names:
            layers[name] = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)
            layers[name.replace("conv", "relu")] = nn.ReLU(inplace=True)
            in_channels = out_channels
        # Caffe rounds up: at 112 pixels, pool5 reduces 7 x 7 to 4 x 4, and its last windows lie half outside. Ports
        # that pad both sides by one instead also yield 4 x 4, but from different windows.
        layers[pool_name] = nn.MaxPool3d(kernel_size=(2 if stage else 1, 2, 2), ceil_mode=True)
        super().__init__(layers)


class C3DModel(StagesModel):
    r"""
    Convolutional part of C3D. Each of its `stages` maps `(B, C, T, H, W)` to `(B, C', T', H', W')`.

    Each stage ends with its pooling layer, so the last stage outputs one time step per 16 frames. For 16 frames of
    112 x 112 pixels, the output has 1 x 4 x 4 positions of 512 channels. The model omits the fully connected layers of
    the original (fc6, fc7 and a classifier), because they require clips of a fixed size.

    Args:
        config ([`C3DConfig`]): Configuration of the model.

    Example:

    ```python
    >>> import torch
    >>> from modeling_scada.configuration_c3d import C3DConfig
    >>> from modeling_scada.modeling_c3d import C3DModel

    >>> model = C3DModel(C3DConfig(hidden_sizes=[4, 4, 8, 8, 8])).eval()
    >>> outputs = model(torch.zeros(1, 16, 3, 32, 32))
    >>> [tuple(feature_map.shape) for feature_map in outputs.feature_maps]
    [(1, 16, 16, 16, 4), (1, 8, 8, 8, 4), (1, 4, 4, 4, 8), (1, 2, 2, 2, 8), (1, 1, 1, 1, 8)]

    ```"""

    config: C3DConfig
    _no_split_modules = ["C3DStage"]

    def __init__(self, config: C3DConfig):
        super().__init__(config)
        widths = [config.num_channels, *config.hidden_sizes]
        self.stages = nn.ModuleList(C3DStage(stage, *widths[stage : stage + 2]) for stage in range(len(STAGES)))
        self.post_init()


__all__ = ["C3DModel"]
