"""C3D: five stages of 3 x 3 x 3 convolutions (Tran et al., 2015)."""

from collections import OrderedDict

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_c3d import C3DConfig
from .modeling_stages import StagesModel


# Per stage, as in the original: the convolutions and the pooling that follows them.
STAGES = (
    (("conv1",), "pool1"),
    (("conv2",), "pool2"),
    (("conv3a", "conv3b"), "pool3"),
    (("conv4a", "conv4b"), "pool4"),
    (("conv5a", "conv5b"), "pool5"),
)


class C3DStage(GradientCheckpointingLayer, nn.Sequential):
    """
    Convolutions, each with a ReLU, and a max pooling: `(B, C, T, H, W)` -> `(B, C', T', H', W')`. The members have the
    original's names.

    Args:
        stage (`int`): Which of the five.
        in_channels (`int`): `C`.
        out_channels (`int`): `C'`.
    """

    def __init__(self, stage: int, in_channels: int, out_channels: int):
        names, pool_name = STAGES[stage]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name in names:
            layers[name] = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)
            layers[name.replace("conv", "relu")] = nn.ReLU(inplace=True)
            in_channels = out_channels
        # Caffe rounds up: at 112 pixels pool5 makes 4 x 4 of 7 x 7, its last windows half outside. Ports that pad both
        # sides by one instead get 4 x 4 as well, of other windows.
        layers[pool_name] = nn.MaxPool3d(kernel_size=(2 if stage else 1, 2, 2), ceil_mode=True)
        super().__init__(layers)


class C3DModel(StagesModel):
    r"""
    The convolutional part of C3D. Each of its `stages` takes one tensor and returns one, `(B, C, T, H, W)`.

    A stage ends with its pooling, so the last one gives one step of time for each 16 frames: at the usual input, 16
    frames of 112 x 112 pixels, 1 x 4 x 4 positions of 512 channels. The fully connected layers that follow in the
    original (fc6, fc7 and a classifier) see a clip of one size as a vector; they are no part of this model.

    Args:
        config ([`C3DConfig`]): The configuration.

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
