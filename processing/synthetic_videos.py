"""Videos that are made here: pictures that a codec has some work with, and writing them into a file."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import nn


# At this rate they took about as long to decode, for their size, as real h264 videos did.
BITS_PER_PIXEL = 0.1


def available_encoder() -> str:
    """The encoder of h264, or of MPEG-4 part 2 where PyAV comes without x264."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: int,
    encoder: str,
    options: dict[str, str],
    bit_rate: int | None = None,
) -> None:
    """
    Encodes frames into a file, whose extension names the container.

    Args:
        path (`Path`): The file.
        frames (`Iterable[np.ndarray]` of shape `(height, width, 3)`, uint8): RGB frames, at least one, of even sides.
        fps (`int`): Frames per second.
        encoder (`str`): Such as `libx264`.
        options (`dict[str, str]`): Of the encoder.
        bit_rate (`int`, *optional*): In bits per second; what the options say if not given.
    """
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=fps, options=options)
        for k, image in enumerate(frames):
            if k == 0:
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                if bit_rate is not None:
                    stream.bit_rate = bit_rate
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def draw_frames(rng: np.random.Generator, num_frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """
    Frames that a codec has some work with: a camera that swings over a texture, another part of it in the middle that
    goes the other way, and grain.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        num_frames (`int`): How many.
        height (`int`), width (`int`): Of the frames, in pixels.

    Yields:
        `np.ndarray` of shape `(height, width, 3)`, uint8: RGB frames.
    """
    canvas_size = (2 * height, 2 * width)
    texture = np.zeros((*canvas_size, 3))
    for cell in (3, 12, 48):
        noise = torch.from_numpy(rng.random((1, 3, canvas_size[0] // cell + 1, canvas_size[1] // cell + 1)))
        texture += nn.functional.interpolate(noise, canvas_size, mode="bilinear")[0].permute(1, 2, 0).numpy() / 3
    canvas = (240 * texture).astype(np.uint8)
    phases, periods = rng.uniform(0, 2 * np.pi, 2), np.array([250, 380])
    for k in range(num_frames):
        y, x = ((1 + np.sin(phases + 2 * np.pi * k / periods)) / 2 * (height, width)).astype(int)
        frame = canvas[y : y + height, x : x + width].copy()
        patch = canvas[height - y : 2 * height - y, width - x : 2 * width - x]
        middle = np.s_[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
        frame[middle] = patch[middle]
        yield frame + rng.integers(0, 12, frame.shape, dtype=np.uint8)
