"""Video-centric batches: a sample is a video with its sentences, so it is read and encoded once for all of them."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers.utils import logging

from ..processing_scada import ScadaProcessor, SegmentOutsideVideoError
from ..timeline import Timeline
from ..video_io import VideoReadError
from .files import VideoFiles, video_key, video_name
from .row_sampler import RowSampler


logger = logging.get_logger(__name__)


class TemporalGroundingCollator:
    """
    Join rows of [`load_annotations`] to a batch of the model, with all sentences that a row has. Draw fewer of them
    for training with a [`RowSampler`]. Videos are read here, so in the workers of the `DataLoader`.

    Args:
        processor ([`ScadaProcessor`]): Reads videos, tokenizes sentences, turns seconds into labels.
        video_root (`str` or `Path`, *optional*): Folder that relative paths start from; see [`VideoFiles`].
        broken_videos_log (`str` or `Path`, *optional*):
            A file to which the name of each video that cannot be read, and the reason, are added as a line of JSON;
            its place in the batch is then filled with zeros and its labels with -100, so that loss and metrics leave
            it out. If not given, such a video is an error.
        keep_in_memory (`bool`, *optional*, defaults to `False`):
            Keeps the frames of each video once they were read, for data sets that are small enough: 12 bytes a pixel,
            or 3 without `do_normalize`, in each worker of the `DataLoader`.
        do_normalize (`bool`, *optional*):
            Whether pixels are normalised here, or leave as `uint8` for the model to do so. By default as the processor
            has it, but [`TemporalGroundingTrainer`] leaves it to a model that can. Noise is made of floats.
        drawing: Deprecated: the arguments of a [`RowSampler`], which then draws for evaluations too.

    Raises:
        FileNotFoundError, VideoReadError: If a video cannot be read, unless there is a `broken_videos_log`.
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
        self._kept: dict[Any, Any] | None = {} if keep_in_memory else None
        self.do_normalize = do_normalize
        self.sampler: RowSampler | None = None
        if drawing:
            self.sampler = RowSampler(processor, **drawing)
            self.sampler.set_epoch(0)
            warnings.warn(
                f"The arguments {sorted(drawing)} of TemporalGroundingCollator are deprecated: it draws for "
                "evaluations too. Pass them to RowSampler, and apply that to the training set.",
                FutureWarning,
                stacklevel=2,
            )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows (`list[dict]`): `B` rows with `video`, `sentences` and `segments` (seconds), and what a [`RowSampler`]
                added.

        Returns:
            `dict[str, torch.Tensor]`: As [`ScadaProcessor`] makes it, with `labels`.
        """
        if self.sampler is not None:
            rows = self.sampler.draw_rows(rows)
        pixels, timelines, segments, broken = [], [], [], []
        for index, row in enumerate(rows):
            own_segments = row["segments"]
            # All of them, not those drawn alone: what is wrong shows in the first epoch, and whose it is.
            annotated = row.get("annotated", row)
            try:
                video, timeline = self._read(row)
                self.processor.encode_segments([annotated["sentences"]], [annotated["segments"]], [timeline])
            except (FileNotFoundError, VideoReadError, SegmentOutsideVideoError) as error:
                if self.broken_videos_log is None:
                    if isinstance(error, SegmentOutsideVideoError):
                        raise SegmentOutsideVideoError(f"{video_name(row['video'])}: {error}") from error
                    raise
                self._log_broken(row, error)
                broken.append(index)
                video = self._no_video("noise_seed" in row)
                timeline, own_segments = Timeline(0.0, 1.0), [[0.0, 1.0]] * len(row["sentences"])
            pixels.append(video)
            timelines.append(timeline)
            segments.append(own_segments)
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
        """A row's video as `(T, 3, H, W)`, floats or uint8, and its window."""
        video_processor = self.processor.video_processor
        size = video_processor.size["height"], video_processor.size["width"]
        crop = row.get("crop")
        height, width = size if crop is None else crop["read_size"]
        key = video_key(row["video"]), height, width
        if self._kept is not None and key in self._kept:
            features = self._kept[key]
        else:
            features = video_processor(
                self.video_files.find(row["video"]),
                size={"height": height, "width": width},
                return_timelines=True,
                do_normalize=self._is_to_normalize(),
            )
            if self._kept is not None:
                self._kept[key] = features
        video = features["pixel_values_videos"][0]
        if crop is not None:
            video = crop_video(video, crop, size)
        if "noise_seed" in row:
            video = torch.randn(video.shape, generator=torch.Generator().manual_seed(row["noise_seed"]))
        return video, features["timelines"][0]

    def _is_to_normalize(self) -> bool:
        return self.processor.video_processor.do_normalize if self.do_normalize is None else self.do_normalize

    def _no_video(self, is_noise: bool) -> torch.Tensor:
        """Zeros in the place of a video that cannot be read."""
        video_processor = self.processor.video_processor
        shape = video_processor.num_frames, 3, video_processor.size["height"], video_processor.size["width"]
        return torch.zeros(shape, dtype=torch.float32 if is_noise or self._is_to_normalize() else torch.uint8)

    def _log_broken(self, row: dict[str, Any], error: Exception) -> None:
        name = video_name(row["video"])
        logger.warning(f"Left out {name}, which is broken: {error}")
        with open(str(self.broken_videos_log), "a", encoding="utf-8") as file:
            file.write(json.dumps({"video": name, "reason": str(error)}) + "\n")


def crop_video(video: torch.Tensor, crop: dict[str, Any], size: tuple[int, int]) -> torch.Tensor:
    """
    Crop, flip and scale a video, the same for all frames, so that motion stays what it was.

    Args:
        video (`torch.Tensor` of shape `(T, 3, H, W)`): Pixels, floats or uint8.
        crop (`dict[str, Any]`): As [`draw_crop`] gives it for `(H, W)`.
        size (`tuple[int, int]`): Height and width of the result, in pixels.

    Returns:
        `torch.Tensor` of shape `(T, 3, *size)` and the same type; uint8 to one level of what floats would be.
    """
    top, left, height, width = crop["box"]
    cropped = video[..., top : top + height, left : left + width]
    if crop["flip"]:
        cropped = cropped.flip(-1)
    return F.interpolate(cropped, size, mode="bilinear", antialias=True)
