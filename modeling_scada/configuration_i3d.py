"""Configuration of I3D."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


# Channels at `base_channels=64`: of the first two stages, and of the branches b0, b1a, b1b, b2a, b2b and b3b of each
# block (Szegedy et al., "Going Deeper with Convolutions", 2014, table 1).
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
    Dataset", 2017): Inception-v1 with its filters inflated in time. The defaults are the network of the paper.

    Its usual input are frames of 224 x 224 pixels, RGB in `[-1, 1]`. In terms of a processor: `image_mean` and
    `image_std` 0.5.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Channels of a frame; 2 for optical flow.
        num_frames (`int`, *optional*, defaults to 16):
            Frames of a clip (the paper trains with 64). The model takes any number; whoever cuts videos into clips
            reads it here.
        image_size (`int` or `list[int]`, *optional*, defaults to 224):
            Usual size of the frames in pixels, or height and width. The model takes any size.
        base_channels (`int`, *optional*, defaults to 64):
            Channels of the first stage; all others are in proportion, rounded down, at least one.
        batch_norm_eps (`float`, *optional*, defaults to 0.001):
            Added to the variance in the batch norms.
        batch_norm_momentum (`float`, *optional*, defaults to 0.01):
            Weight of a batch in the running statistics.
        freeze_batch_norm (`bool`, *optional*, defaults to `True`):
            Whether the batch norms use their running statistics in training too, and leave them as they are; their
            scales and shifts are trained like other weights. This is for pretrained weights [D]: the clips of one or a
            few videos look alike, so their own statistics say little, a video's features would depend on its
            neighbours in the batch, and in evaluation they would be others. To train from scratch, set it to `False`.

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
        """The paper's numbers of channels at this configuration's width."""
        return tuple(max(1, width * self.base_channels // STEM_WIDTHS[0]) for width in widths)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of the five stages."""
        sizes = list(self.scale(STEM_WIDTHS))
        for name in ("Mixed_3c", "Mixed_4f", "Mixed_5c"):
            b0, _, b1b, _, b2b, b3b = self.scale(MIXED_WIDTHS[name])
            sizes.append(b0 + b1b + b2b + b3b)
        return sizes

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages."""
        return len(self.hidden_sizes)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.hidden_sizes[-1]

    @property
    def stage_strides(self) -> tuple[tuple[int, int, int], ...]:
        """For each stage, how many frames, rows and columns of the input one step of its output stands for."""
        return (2, 2, 2), (2, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32)

    def validate_sizes(self):
        """Part of `@strict` validation."""
        image_size = [self.image_size] if isinstance(self.image_size, int) else self.image_size
        if min(self.num_channels, self.num_frames, self.base_channels, *image_size) < 1:
            raise ValueError(
                f"Received num_channels={self.num_channels}, num_frames={self.num_frames}, "
                f"image_size={self.image_size}, base_channels={self.base_channels}; all have to be positive."
            )


__all__ = ["I3DConfig"]
