"""Configuration of EfficientNet-Lite."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    r"""
    Configuration of [`EfficientNetLiteModel`] (Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional
    Neural Networks", 2019). This is the variant that Google published for phones, with ReLU6 instead of swish and
    without squeeze-and-excitation. The defaults yield lite0.

    The original model reads RGB frames of 224 x 224 pixels. For a processor, set `image_mean` to 127/255 and
    `image_std` to 128/255.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Number of channels per frame.
        image_size (`int`, *optional*, defaults to 224):
            Height and width of the frames in pixels. The model accepts any size.
        embedding_size (`int`, *optional*, defaults to 32):
            Number of channels of the stem.
        hidden_sizes (`list[int]`, *optional*, defaults to `[16, 24, 40, 80, 112, 192, 320, 1280]`):
            Number of output channels of each of the seven block stages and of the last stage, a 1 x 1 convolution. For
            a truncated model without that convolution, pass as many values as in `depths`. For example, the first five
            values of both yield the first five stages of lite0.
        depths (`list[int]`, *optional*, defaults to `[1, 2, 2, 3, 3, 4, 1]`):
            Number of blocks of each block stage.
        batch_norm_eps (`float`, *optional*, defaults to 0.001):
            Epsilon added to the variance in the batch norm layers.

    Raises:
        StrictDataclassClassValidationError: If a number is not positive, or if `hidden_sizes` and `depths` have
            neither eight and seven values nor one to seven values each.

    Example:

    ```python
    >>> from modeling_scada.configuration_efficientnet_lite import EfficientNetLiteConfig

    >>> EfficientNetLiteConfig().hidden_sizes[-1]
    1280

    ```"""

    model_type = "efficientnet_lite"

    num_channels: int = 3
    image_size: int = 224
    embedding_size: int = 32
    hidden_sizes: list[int] | tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320, 1280)
    depths: list[int] | tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    batch_norm_eps: float = 1e-3

    def validate_sizes(self):
        """Validate the sizes; `@strict` calls this method."""
        sizes = [self.num_channels, self.image_size, self.embedding_size, *self.hidden_sizes, *self.depths]
        num_sizes, num_depths = len(self.hidden_sizes), len(self.depths)
        is_cut = 1 <= num_sizes == num_depths <= 7
        if not (is_cut or (num_sizes, num_depths) == (8, 7)) or min(sizes) < 1:
            raise ValueError(
                f"Received hidden_sizes={list(self.hidden_sizes)} and depths={list(self.depths)}; expected eight and "
                "seven positive numbers, or an equal number of both (at most seven) for the first stages only. All "
                "other sizes must be positive."
            )


__all__ = ["EfficientNetLiteConfig"]
