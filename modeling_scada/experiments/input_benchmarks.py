"""Measure the input pipeline: read videos with a `DataLoader`, and compare with the time of a training step."""

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
from processing.data.synthetic_videos import (
    BITS_PER_PIXEL,
    draw_frames,
    synthetic_video_encoder,
    write_synthetic_video,
)
from processing.results.provenance import REPOSITORY

from .measuring import median_seconds
from .model_benchmarks import DEVICE, PIPELINE_MODE, batch_to_device, prepare_step
from .tables import format_numbers, to_markdown


NUM_WORKERS = (0, 1, 2)
# Dtype of the collator's pixels, and whether the collator normalizes them.
PIXELS = {"uint8": False, "float32": True}
# Typical of data sets of people's videos. Sizes are in pixels.
VIDEOS = {"num_videos": 12, "duration_seconds": 30, "fps": 25, "height": 360, "width": 480}
SMALL_VIDEOS = {"num_videos": 4, "duration_seconds": 2, "fps": 10, "height": 48, "width": 64}


def make_benchmark_videos(
    folder: Path, num_videos: int, duration_seconds: int, fps: int, height: int, width: int, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Write reproducible videos as h264 in mp4, or as MPEG-4 part 2 if PyAV was built without x264.

    Args:
        folder (`Path`): Folder to write to.
        num_videos (`int`): Number of videos.
        duration_seconds (`int`): Length of each video in seconds.
        fps (`int`): Frames per second.
        height (`int`), width (`int`): Even size of the frames in pixels.
        seed (`int`): Seed of the frames.

    Returns:
        `tuple`: Rows for the collator, with one sentence each, and the facts to record.
    """
    encoder = synthetic_video_encoder()
    # One thread and CPU-independent code, because otherwise equal frames give slightly different files.
    x264_options = {"preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}
    rows = []
    for index in range(num_videos):
        path = folder / f"{index}.mp4"
        frames = draw_frames(np.random.default_rng([seed, index]), duration_seconds * fps, height, width)
        bit_rate = int(BITS_PER_PIXEL * fps * height * width)
        write_synthetic_video(path, frames, fps, encoder, x264_options if encoder == "libx264" else {}, bit_rate)
        # Each video has its own pixels and segment, so that batches in another order differ in both.
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
    """Return a loader like the one of `Trainer`, but in the order of the rows and with one video per batch."""
    return DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=1,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=DEVICE.type == "cuda",
        # The check starts the workers once, because a real epoch has many more videos than this benchmark.
        persistent_workers=num_workers > 0,
    )


def check_same_batches(loaders: Mapping[int, Iterable[dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """
    Check that loaders yield equal batches in the same order.

    Args:
        loaders (`Mapping[int, Iterable]`): Loaders by number of workers.

    Returns:
        `dict[str, torch.Tensor]`: First batch.

    Raises:
        AssertionError: If a batch differs.
        ValueError: If a loader yields more batches than another.
    """
    first_batch: dict[str, torch.Tensor] = {}
    for index, batches in enumerate(zip(*loaders.values(), strict=True)):
        expected = batches[0]
        first_batch = first_batch or expected
        for num_workers, batch in zip(loaders, batches, strict=True):
            if set(batch) != set(expected) or not all(torch.equal(batch[name], expected[name]) for name in expected):
                raise AssertionError(
                    f"Batch {index} with {num_workers} workers differs from the batch with {next(iter(loaders))}."
                )
    return first_batch


def read_all(loader: Iterable[object]) -> None:
    """Iterate over all batches of a loader."""
    for _ in loader:
        pass


def benchmark_input_pipeline(
    plain: ScadaForTemporalGrounding, rows: list[dict[str, Any]], num_frames: int, repeats: int
) -> dict[str, Any]:
    """
    Compare the time to read a batch with the time of a training step.

    Args:
        plain (`ScadaForTemporalGrounding`): Model without an adapter, in float32, on the CPU.
        rows (`list[dict[str, Any]]`): Rows of the videos, see [`make_benchmark_videos`].
        num_frames (`int`): Number of frames sampled per video.
        repeats (`int`): Number of timed passes over all videos, and of timed steps.

    Returns:
        `dict[str, Any]`: Figures that `scripts/benchmark.py` describes, by dtype of the pixels and number of workers
        where applicable. A figure is `None` if the GPU ran out of memory.
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
    seconds = median_seconds(passes | {"step": partial(step, batch_to_device(batches["uint8"]))}, repeats)
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
    """Format results of [`benchmark_input_pipeline`], each with its `size` and `mode`, as a markdown table."""
    workers = " / ".join(map(str, NUM_WORKERS))
    return to_markdown(
        [
            {
                "size": row["size"],
                "mode": row["mode"],
                "pixels": pixels,
                "video, MB": format_numbers([row["pixel_bytes"][pixels] / 1e6]),
                f"videos per second: {workers} workers": format_numbers(row["videos_per_second"][pixels].values()),
                "step, s": format_numbers([row["step_seconds"]]),
                f"batch reading time / step time: {workers} workers": format_numbers(
                    row["pipeline_over_step"][pixels].values()
                ),
            }
            for row in rows
            for pixels in PIXELS
        ]
    )
