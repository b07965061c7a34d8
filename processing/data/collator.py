"""Batches of videos. A sample is a video with all its sentences, so the model encodes each video only once."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..processing_scada import ScadaProcessor, SegmentOutsideVideoError
from ..timeline import Timeline
from ..video_io import VideoReadError
from .cropping import crop_video
from .files import VideoFiles, video_file_key, video_file_name
from .row_sampler import RowSampler


logger = logging.get_logger(__name__)


class TemporalGroundingCollator:
    """
    Data collator for rows of [`load_annotations`], with all sentences of each row.

    The collator reads the videos, in the workers of the `DataLoader`. To train on a random subset of the sentences,
    use a [`RowSampler`].

    Args:
        processor ([`ScadaProcessor`]): Processor for videos, sentences and labels.
        video_root (`str` or `Path`, *optional*): Root folder of relative paths, see [`VideoFiles`].
        broken_videos_log (`str` or `Path`, *optional*):
            File to log unreadable videos to. The collator appends the name of the video and the error as a line of
            JSON. It fills the pixels with zeros and the labels with -100, so loss and metrics ignore the video. By
            default, an unreadable video raises an error.
        keep_in_memory (`bool`, *optional*, defaults to `False`):
            Whether to cache the frames of each video, for small data sets. Each worker of the `DataLoader` uses 12
            bytes per pixel, or 3 without `do_normalize`.
        do_normalize (`bool`, *optional*):
            Whether to normalise pixels in the collator. Otherwise, pixels stay `uint8` for the model to normalise.
            Defaults to the setting of the processor. [`TemporalGroundingTrainer`] sets it to `False` if the model
            normalises pixels. Noise always consists of floats.
        drawing: Deprecated. Arguments of a [`RowSampler`], which then also samples during evaluation.

    Raises:
        FileNotFoundError, VideoReadError: If a video cannot be read and `broken_videos_log` is not set.
        ValueError: See [`ScadaProcessor`].
    """

    def __init__(
        self,
        processor: ScadaProcessor,
        video_root: str | Path | None = None,
        broken_videos_log: str | Path | None = None,
        keep_in_memory: bool = False,
        do_normalize: bool | None = None,
        **drawing: Any,
    ):
        self.processor = processor
        self.video_files = VideoFiles(video_root)
        self.broken_videos_log = broken_videos_log
        self._cache: dict[Any, Any] | None = {} if keep_in_memory else None
        self.do_normalize = do_normalize
        self.sampler: RowSampler | None = None
        if drawing:
            self.sampler = RowSampler(processor, **drawing)
            self.sampler.set_epoch(0)
            warnings.warn(
                f"The arguments {sorted(drawing)} of TemporalGroundingCollator are deprecated, because they also "
                "sample during evaluation. Pass them to RowSampler, and apply the sampler to the training set.",
                FutureWarning,
                stacklevel=2,
            )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Collate rows into a batch.

        Args:
            rows (`list[dict]`):
                `B` rows with `video`, `sentences` and `segments` (seconds), and the entries of a [`RowSampler`].

        Returns:
            `dict[str, torch.Tensor]`: Inputs of the model, as [`ScadaProcessor`] returns them, with `labels`.
        """
        if self.sampler is not None:
            rows = self.sampler.draw_rows(rows)
        pixels, timelines, segments, broken = [], [], [], []
        for index, row in enumerate(rows):
            row_segments = row["segments"]
            # Check all annotated sentences, not only the sampled ones, to surface errors in the first epoch.
            annotated = row.get("annotated", row)
            try:
                video, timeline = self._read(row)
                self.processor.encode_segments([annotated["sentences"]], [annotated["segments"]], [timeline])
            except (FileNotFoundError, VideoReadError, SegmentOutsideVideoError) as error:
                if self.broken_videos_log is None:
                    if isinstance(error, SegmentOutsideVideoError):
                        raise SegmentOutsideVideoError(f"{video_file_name(row['video'])}: {error}") from error
                    raise
                self._log_broken(row, error)
                broken.append(index)
                video = self._zero_video("noise_seed" in row)
                timeline, row_segments = Timeline(0.0, 1.0), [[0.0, 1.0]] * len(row["sentences"])
            pixels.append(video)
            timelines.append(timeline)
            segments.append(row_segments)
        batch = {"pixel_values_videos": torch.stack(pixels)}
        batch |= {
            name: torch.from_numpy(array)
            for name, array in self.processor.encode_text(
                [row["sentences"] for row in rows], segments, timelines
            ).items()
        }
        batch["labels"][broken] = -100
        return batch

    def _read(self, row: dict[str, Any]) -> tuple[torch.Tensor, Timeline]:
        """Read the video of a row as `(T, 3, H, W)`, floats or uint8, and its timeline."""
        video_processor = self.processor.video_processor
        size = video_processor.size["height"], video_processor.size["width"]
        crop = row.get("crop")
        height, width = size if crop is None else crop["read_size"]
        key = video_file_key(row["video"]), height, width
        if self._cache is not None and key in self._cache:
            features = self._cache[key]
        else:
            features = video_processor(
                self.video_files.find(row["video"]),
                size={"height": height, "width": width},
                return_timelines=True,
                do_normalize=self._should_normalize(),
            )
            if self._cache is not None:
                self._cache[key] = features
        video = features["pixel_values_videos"][0]
        if crop is not None:
            video = crop_video(video, crop, size)
        if "noise_seed" in row:
            video = torch.randn(video.shape, generator=torch.Generator().manual_seed(row["noise_seed"]))
        return video, features["timelines"][0]

    def _should_normalize(self) -> bool:
        return self.processor.video_processor.do_normalize if self.do_normalize is None else self.do_normalize

    def _zero_video(self, is_noise: bool) -> torch.Tensor:
        """Return zeros to replace an unreadable video."""
        video_processor = self.processor.video_processor
        shape = video_processor.num_frames, 3, video_processor.size["height"], video_processor.size["width"]
        return torch.zeros(shape, dtype=torch.float32 if is_noise or self._should_normalize() else torch.uint8)

    def _log_broken(self, row: dict[str, Any], error: Exception) -> None:
        name = video_file_name(row["video"])
        logger.warning(f"Skipping the unreadable video {name}: {error}")
        with open(str(self.broken_videos_log), "a", encoding="utf-8") as file:
            file.write(json.dumps({"video": name, "reason": str(error)}) + "\n")
