"""Measure the input pipeline: read videos, and ground them through `pipeline`."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from modeling_scada import (
    ScadaForTemporalGrounding,
    ScadaProcessor,
    ScadaVideoProcessor,
    TemporalGroundingCollator,
)
from processing.data.synthetic_videos import BITS_PER_PIXEL, available_encoder, draw_frames, write_video
from processing.results.provenance import REPOSITORY

from .measuring import median_seconds, to_markdown
from .model_benchmarks import DEVICE, PIPELINE_MODE, numbers_text, prepare_step, to_device


NUM_WORKERS = (0, 1, 2)
# How pixels leave the collator, and whether it normalises them.
PIXELS = {"uint8": False, "float32": True}
# Such as data sets of people's videos hold; sizes in pixels.
VIDEOS = {"num_videos": 12, "duration_seconds": 30, "fps": 25, "height": 360, "width": 480}
SMALL_VIDEOS = {"num_videos": 4, "duration_seconds": 2, "fps": 10, "height": 48, "width": 64}


def make_videos(
    folder: Path, num_videos: int, duration_seconds: int, fps: int, height: int, width: int, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Writes videos, which the seed determines, as h264 in mp4, or as MPEG-4 part 2 where PyAV comes without x264.

    Args:
        folder (`Path`): To write to.
        num_videos (`int`): How many.
        duration_seconds (`int`): Length of each, in seconds.
        fps (`int`): Frames per second.
        height (`int`), width (`int`): In pixels, even.
        seed (`int`): Of all randomness.

    Returns:
        `tuple`: Their rows, as the collator takes them, with one sentence each; and what the record says of them.
    """
    encoder = available_encoder()
    # One thread, and no instructions of this CPU alone: otherwise equal frames give slightly different files.
    x264_options = {"preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}
    rows = []
    for index in range(num_videos):
        path = folder / f"{index}.mp4"
        frames = draw_frames(np.random.default_rng([seed, index]), duration_seconds * fps, height, width)
        bit_rate = int(BITS_PER_PIXEL * fps * height * width)
        write_video(path, frames, fps, encoder, x264_options if encoder == "libx264" else {}, bit_rate)
        # Another segment for each video, as its pixels are others too: batches in another order differ in both.
        start_seconds = duration_seconds * index / (2 * num_videos)
        segment = [start_seconds, start_seconds + duration_seconds / 4]
        rows.append({"video": str(path), "sentences": ["the red circle moves left"], "segments": [[segment]]})
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    facts = {
        "encoder": encoder,
        "num_videos": num_videos,
        "duration_seconds": duration_seconds,
        "fps": fps,
        "height": height,
        "width": width,
        "megabits_per_second": 8e-6 * num_bytes / (num_videos * duration_seconds),
    }
    return rows, facts


def make_loader(rows: list[dict[str, Any]], collator: TemporalGroundingCollator, num_workers: int) -> DataLoader:
    """The loader that `Trainer` makes of the rows, but in their order and with one video a batch."""
    return DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=1,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=DEVICE.type == "cuda",
        # Started once, by the check: an epoch is many more videos than there are here.
        persistent_workers=num_workers > 0,
    )


def check_same_batches(loaders: Mapping[int, Iterable[dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """
    Checks that loaders give equal batches in the same order.

    Args:
        loaders (`Mapping[int, Iterable]`): By number of workers.

    Returns:
        `dict[str, torch.Tensor]`: The first batch.

    Raises:
        AssertionError: If a batch differs.
        ValueError: If one of the loaders gives more batches than another.
    """
    first_batch: dict[str, torch.Tensor] = {}
    for index, batches in enumerate(zip(*loaders.values(), strict=True)):
        expected = batches[0]
        first_batch = first_batch or expected
        for num_workers, batch in zip(loaders, batches, strict=True):
            if set(batch) != set(expected) or not all(torch.equal(batch[name], expected[name]) for name in expected):
                raise AssertionError(f"Batch {index} with {num_workers} workers is not that of {next(iter(loaders))}.")
    return first_batch


def read_all(loader: Iterable[object]) -> None:
    """A pass over all batches of the loader."""
    for _ in loader:
        pass


def benchmark_input_pipeline(
    plain: ScadaForTemporalGrounding, rows: list[dict[str, Any]], num_frames: int, repeats: int
) -> dict[str, Any]:
    """
    Args:
        plain (`ScadaForTemporalGrounding`): The model without an adapter, in float32, on the CPU.
        rows (`list[dict[str, Any]]`): Of the videos, see [`make_videos`].
        num_frames (`int`): Frames sampled from a video.
        repeats (`int`): Passes over all videos, and steps, that are timed.

    Returns:
        `dict[str, Any]`: The figures that the module's docstring names, by type of the pixels and number of workers
        where there are several; `None` for those that the GPU's memory was not enough for.
    """
    image_size = plain.config.video_config.image_size
    processor = ScadaProcessor(
        ScadaVideoProcessor(num_frames=num_frames, size={"height": image_size, "width": image_size}),
        AutoTokenizer.from_pretrained(REPOSITORY / "hub_configs" / "models" / "moving_shapes_text"),
    )
    batches: dict[str, dict[str, torch.Tensor]] = {}
    passes: dict[Any, Callable[[], object]] = {}
    for pixels, do_normalize in PIXELS.items():
        collator = TemporalGroundingCollator(processor, do_normalize=do_normalize)
        loaders = {num_workers: make_loader(rows, collator, num_workers) for num_workers in NUM_WORKERS}
        batches[pixels] = check_same_batches(loaders)
        passes |= {(pixels, num_workers): partial(read_all, loader) for num_workers, loader in loaders.items()}
    _, _, step = prepare_step(plain, PIPELINE_MODE)
    seconds = median_seconds(passes | {"step": partial(step, to_device(batches["uint8"]))}, repeats)
    step_seconds = seconds.pop("step")
    figures: dict[str, Any] = {
        "pixel_bytes": {pixels: batch["pixel_values_videos"].nbytes for pixels, batch in batches.items()},
        "videos_per_second": {pixels: {} for pixels in PIXELS},
        "step_seconds": step_seconds,
        "pipeline_over_step": {pixels: {} for pixels in PIXELS},
    }
    for (pixels, num_workers), pass_seconds in seconds.items():
        figures["videos_per_second"][pixels][num_workers] = len(rows) / pass_seconds
        ratio = None if step_seconds is None else pass_seconds / len(rows) / step_seconds
        figures["pipeline_over_step"][pixels][num_workers] = ratio
    return figures


def pipeline_table(rows: list[dict[str, Any]]) -> str:
    """Lines for each of the results of [`benchmark_input_pipeline`] with their `size` and `mode`."""
    workers = " / ".join(map(str, NUM_WORKERS))
    return to_markdown(
        [
            {
                "size": row["size"],
                "mode": row["mode"],
                "pixels": pixels,
                "a video, MB": numbers_text([row["pixel_bytes"][pixels] / 1e6]),
                f"videos per second: {workers} workers": numbers_text(row["videos_per_second"][pixels].values()),
                "step, s": numbers_text([row["step_seconds"]]),
                f"reading a batch, of a step: {workers} workers": numbers_text(
                    row["pipeline_over_step"][pixels].values()
                ),
            }
            for row in rows
            for pixels in PIXELS
        ]
    )
