"""Configuration of I3D."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


# Numbers of channels at `base_channels=64` of the first two stages, and of the branches b0, b1a, b1b, b2a, b2b and b3b
# of each block (Szegedy et al., "Going Deeper with Convolutions", 2014, table 1).
STEM_WIDTHS = (64, 192)
MIXED_WIDTHS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


@strict
class I3DConfig(PreTrainedConfig):
    r"""
    Configuration of [`I3DModel`] (Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics
    Dataset", 2017). I3D is Inception-v1 with filters inflated in time. The defaults yield the network of the paper.

    The original model reads RGB frames of 224 x 224 pixels in `[-1, 1]`. For a processor, set `image_mean` and
    `image_std` to 0.5.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Number of channels per frame; 2 for optical flow.
        num_frames (`int`, *optional*, defaults to 16):
            Number of frames per clip (64 during training in the paper). The model accepts any number;
            [`VideoBackbone`] reads this value to split videos into clips.
        image_size (`int` or `list[int]`, *optional*, defaults to 224):
            Side length of the frames in pixels, or their height and width. The model accepts any size.
        base_channels (`int`, *optional*, defaults to 64):
            Number of channels of the first stage. All other widths scale in proportion, rounded down to at least one.
        batch_norm_eps (`float`, *optional*, defaults to 0.001):
            Epsilon added to the variance in the batch norm layers.
        batch_norm_momentum (`float`, *optional*, defaults to 0.01):
            Weight of the current batch in the running statistics.
        freeze_batch_norm (`bool`, *optional*, defaults to `True`):
            Whether to freeze the running statistics of the batch norm layers and use them during training. Their
            scales and shifts are trained like other weights. The default suits pretrained weights [D], because the
            clips of a few videos look alike and yield poor batch statistics. With batch statistics, the features of a
            video would depend on the other videos of the batch and differ between training and evaluation. Set it to
            `False` to train from scratch.

    Raises:
        StrictDataclassClassValidationError: If a size is not positive.

    Example:

    ```python
    >>> from modeling_scada.configuration_i3d import I3DConfig

    >>> I3DConfig().hidden_sizes
    [64, 192, 480, 832, 1024]
    >>> I3DConfig(base_channels=8).hidden_sizes
    [8, 24, 60, 104, 128]

    ```"""

    model_type = "i3d"

    num_channels: int = 3
    num_frames: int = 16
    image_size: int | list[int] | tuple[int, int] = 224
    base_channels: int = 64
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01
    freeze_batch_norm: bool = True

    def scale(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        """Scale the paper's numbers of channels to `base_channels`."""
        return tuple(max(1, width * self.base_channels // STEM_WIDTHS[0]) for width in widths)

    @property
    def hidden_sizes(self) -> list[int]:
        """Return the number of output channels of each of the five stages."""
        sizes = list(self.scale(STEM_WIDTHS))
        for name in ("Mixed_3c", "Mixed_4f", "Mixed_5c"):
            b0, _, b1b, _, b2b, b3b = self.scale(MIXED_WIDTHS[name])
            sizes.append(b0 + b1b + b2b + b3b)
        return sizes

    @property
    def num_hidden_layers(self) -> int:
        """Return the number of stages."""
        return len(self.hidden_sizes)

    @property
    def hidden_size(self) -> int:
        """Return the number of channels of the last stage."""
        return self.hidden_sizes[-1]

    @property
    def stage_strides(self) -> tuple[tuple[int, int, int], ...]:
        """Return the total stride of each stage over the input's frames, rows and columns."""
        return (2, 2, 2), (2, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32)

    def validate_sizes(self):
        """Validate the sizes; `@strict` calls this method."""
        image_size = [self.image_size] if isinstance(self.image_size, int) else self.image_size
        if min(self.num_channels, self.num_frames, self.base_channels, *image_size) < 1:
            raise ValueError(
                f"Received num_channels={self.num_channels}, num_frames={self.num_frames}, "
                f"image_size={self.image_size}, base_channels={self.base_channels}; all must be positive."
            )


__all__ = ["I3DConfig"]
