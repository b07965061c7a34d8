"""Configuration of C3D."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


NUM_STAGES = 5


@strict
class C3DConfig(PreTrainedConfig):
    r"""
    Configuration of [`C3DModel`] (Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks",
    2015). The defaults yield the network of section 3.3 of the paper.

    The original model reads clips of 16 frames, scaled to 128 x 171 pixels and cropped to 112 x 112. It subtracts the
    mean color of Sports-1M. For a processor with RGB pixels in `[0, 1]`, set `image_mean` to (101.41, 97.66, 90.25) /
    255 and `image_std` to 1 / 255. The original reads BGR; `scripts/convert_checkpoint.py` flips the channels of the
    first convolution.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Number of channels per frame.
        num_frames (`int`, *optional*, defaults to 16):
            Number of frames per clip. The model accepts any number; [`VideoBackbone`] reads this value to split videos
            into clips.
        image_size (`int` or `list[int]`, *optional*, defaults to 112):
            Side length of the frames in pixels, or their height and width. The model accepts any size.
        hidden_sizes (`list[int]`, *optional*, defaults to `[64, 128, 256, 512, 512]`):
            Number of output channels of each of the five stages.

    Raises:
        StrictDataclassClassValidationError: If a size is not positive, or if `hidden_sizes` does not have five
            values.

    Example:

    ```python
    >>> from modeling_scada.configuration_c3d import C3DConfig

    >>> config = C3DConfig(hidden_sizes=[4, 4, 8, 8, 8], image_size=32)
    >>> config.hidden_size, config.stage_strides[-1]
    (8, (16, 32, 32))

    ```"""

    model_type = "c3d"

    num_channels: int = 3
    num_frames: int = 16
    image_size: int | list[int] | tuple[int, int] = 112
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512, 512)

    @property
    def num_hidden_layers(self) -> int:
        """Return the number of stages."""
        return NUM_STAGES

    @property
    def hidden_size(self) -> int:
        """Return the number of channels of the last stage."""
        return self.hidden_sizes[-1]

    @property
    def stage_strides(self) -> tuple[tuple[int, int, int], ...]:
        """Return the total stride of each stage over the input's frames, rows and columns."""
        return tuple((max(2**stage // 2, 1), 2**stage, 2**stage) for stage in range(1, NUM_STAGES + 1))

    def validate_sizes(self):
        """Validate the sizes; `@strict` calls this method."""
        if len(self.hidden_sizes) != NUM_STAGES:
            raise ValueError(f"Received hidden_sizes={self.hidden_sizes}; C3D has {NUM_STAGES} stages.")
        image_size = [self.image_size] if isinstance(self.image_size, int) else self.image_size
        if min(self.num_channels, self.num_frames, *image_size, *self.hidden_sizes) < 1:
            raise ValueError(
                f"Received num_channels={self.num_channels}, num_frames={self.num_frames}, "
                f"image_size={self.image_size}, hidden_sizes={self.hidden_sizes}; all must be positive."
            )


__all__ = ["C3DConfig"]
