"""
Synthetic videos: frames that are realistic to encode and decode, a video writer, and a data set writer.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import nn
from tqdm import tqdm


# At this bit rate, decoding took about as long as for real h264 videos of the same size.
BITS_PER_PIXEL = 0.1
# Options for data sets. One thread, because the processes already run in parallel. "cpu-independent" makes
# equal frames give equal files. Without it, some pixels differ by a few levels.
H264_OPTIONS = {"crf": "18", "preset": "fast", "threads": "1", "x264-params": "cpu-independent=1"}


def synthetic_video_encoder() -> str:
    """Return the name of the h264 encoder, or of MPEG-4 part 2 if PyAV has no x264."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def write_synthetic_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: int,
    encoder: str,
    options: dict[str, str],
    bit_rate: int | None = None,
) -> None:
    """
    Encode frames to a video file.

    Args:
        path (`Path`): Output path. The extension determines the container.
        frames (`Iterable[np.ndarray]` of shape `(height, width, 3)`, uint8):
            At least one RGB frame. Height and width are even.
        fps (`int`): Frames per second.
        encoder (`str`): Name of the encoder, such as `libx264`.
        options (`dict[str, str]`): Options of the encoder.
        bit_rate (`int`, *optional*): Bits per second. By default, the options determine it.
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
    Generate frames with realistic motion: a camera swings over a texture, a patch in the middle moves the opposite
    way, and each frame has grain.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        num_frames (`int`): Number of frames.
        height (`int`), width (`int`): Size of the frames, in pixels.

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


def make_data_set(
    output_dir: Path,
    make_example: Callable[[Any], dict],
    tasks: dict[str, list],
    arguments: dict[str, Any],
    num_workers: int | None,
) -> None:
    """
    Write a data set of videos: the folder `videos`, a `datasets.DatasetDict`, and `generation.json`.

    Args:
        output_dir (`Path`): New or empty output folder.
        make_example (`Callable`):
            Function that writes the video of a task and returns its annotation row. Worker processes must be able to
            import the function.
        tasks (`dict[str, list]`): Inputs of `make_example` for each split.
        arguments (`dict[str, Any]`):
            Arguments that determine the data set. Equal arguments give an equal `generation.json`.
        num_workers (`int` or `None`): Number of processes. `None` for one per CPU.

    Raises:
        ValueError: If `output_dir` is not empty, or `num_workers` is not positive.
    """
    # Imported here, because worker processes import this file but do not need `datasets`.
    import datasets

    from .preparation import FEATURES

    num_workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    if num_workers < 1:
        raise ValueError(f"`num_workers` must be at least 1, got {num_workers}.")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"`output_dir` must be a new or empty folder, got {output_dir}.")
    (output_dir / "videos").mkdir(parents=True)
    all_tasks = [task for split_tasks in tasks.values() for task in split_tasks]
    if num_workers == 1:
        rows = [make_example(task) for task in tqdm(all_tasks, desc="videos")]
    else:
        # Use "spawn", because a forked child of a process with threads (torch, pyarrow) may hang.
        with multiprocessing.get_context("spawn").Pool(min(num_workers, len(all_tasks))) as pool:
            rows = list(tqdm(pool.imap(make_example, all_tasks, chunksize=4), total=len(all_tasks), desc="videos"))
    remaining = iter(rows)
    splits = {split: list(islice(remaining, len(split_tasks))) for split, split_tasks in tasks.items()}
    datasets.DatasetDict(
        {split: datasets.Dataset.from_list(part, features=FEATURES) for split, part in splits.items()}
    ).save_to_disk(output_dir)
    versions = {"av": version("av"), "numpy": np.__version__, "datasets": datasets.__version__}
    record = {"arguments": arguments, "versions": versions}
    (output_dir / "generation.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
