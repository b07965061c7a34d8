"""Random crops and flips of videos in training."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F


CROP_AREAS = (0.08, 1.0)
CROP_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10


def draw_crop(read_size: Sequence[int], may_flip: bool, generator: torch.Generator) -> dict[str, Any]:
    """
    Sample a random resized crop and a random horizontal flip.

    Args:
        read_size (`Sequence[int]`): Height and width of the frames, in pixels.
        may_flip (`bool`): Whether to flip half of the crops.
        generator (`torch.Generator`): Random number generator.

    Returns:
        `dict[str, Any]`: `read_size`, `box` (top, left, height and width, in pixels of `read_size`) and `flip`.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    height, width = read_size
    crop_height, crop_width = height, width
    for _ in range(CROP_TRIES):
        area = uniform(*CROP_AREAS) * height * width
        ratio = math.exp(uniform(*map(math.log, CROP_RATIOS)))
        tried_height, tried_width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < tried_height <= height and 0 < tried_width <= width:
            crop_height, crop_width = tried_height, tried_width
            break
    top = int(uniform(0, height - crop_height + 1))
    left = int(uniform(0, width - crop_width + 1))
    flip = may_flip and uniform(0, 1) < 0.5
    return {"read_size": [height, width], "box": [top, left, crop_height, crop_width], "flip": flip}


def crop_video(video: torch.Tensor, crop: dict[str, Any], size: tuple[int, int]) -> torch.Tensor:
    """
    Crop, flip and resize a video. All frames share the same crop, so motion is preserved.

    Args:
        video (`torch.Tensor` of shape `(T, 3, H, W)`): Pixels, floats or uint8.
        crop (`dict[str, Any]`): Crop of [`draw_crop`] for `(H, W)`.
        size (`tuple[int, int]`): Height and width of the output, in pixels.

    Returns:
        `torch.Tensor` of shape `(T, 3, *size)` and the same type. In uint8, levels differ from floats by at most one.
    """
    top, left, height, width = crop["box"]
    cropped = video[..., top : top + height, left : left + width]
    if crop["flip"]:
        cropped = cropped.flip(-1)
    return F.interpolate(cropped, size, mode="bilinear", antialias=True)
