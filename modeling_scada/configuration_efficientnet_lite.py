"""Configuration of EfficientNet-Lite."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    r"""
    Configuration of [`EfficientNetLiteModel`] (Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional
    Neural Networks", 2019, in the variant that Google published for phones: ReLU6 in place of swish, and no
    squeeze-and-excitation). The defaults are lite0.

    Its usual input are frames of 224 x 224 pixels, RGB, in terms of a processor `image_mean` 127/255 and `image_std`
    128/255.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Channels of a frame.
        image_size (`int`, *optional*, defaults to 224):
            Usual height and width of the frames in pixels. The model takes any size.
        embedding_size (`int`, *optional*, defaults to 32):
            Channels of the stem.
        hidden_sizes (`list[int]`, *optional*, defaults to `[16, 24, 40, 80, 112, 192, 320, 1280]`):
            Channels of the seven stages of blocks, and of the last stage, a convolution of 1 x 1. As many as `depths`
            for a model that ends before it, or earlier: one of lite0's first five stages has the first five of both.
        depths (`list[int]`, *optional*, defaults to `[1, 2, 2, 3, 3, 4, 1]`):
            Blocks of the stages of blocks.
        batch_norm_eps (`float`, *optional*, defaults to 0.001):
            Added to the variance in the batch norms.

    Raises:
        StrictDataclassClassValidationError: If there are not eight sizes and seven depths, or as many of both from
            one to seven, or a number is not positive.

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
        """Part of `@strict` validation."""
        sizes = [self.num_channels, self.image_size, self.embedding_size, *self.hidden_sizes, *self.depths]
        num_sizes, num_depths = len(self.hidden_sizes), len(self.depths)
        is_cut = 1 <= num_sizes == num_depths <= 7
        if not (is_cut or (num_sizes, num_depths) == (8, 7)) or min(sizes) < 1:
            raise ValueError(
                f"Received hidden_sizes={list(self.hidden_sizes)} and depths={list(self.depths)}; expected eight and "
                "seven positive numbers, or as many of both for the first stages alone, and other sizes that are "
                "positive."
            )


__all__ = ["EfficientNetLiteConfig"]
