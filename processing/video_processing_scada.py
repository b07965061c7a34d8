"""Video processor: sampling of frames, scaling and normalization."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from io import TextIOBase
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.video_processing_utils import BaseVideoProcessor

from .timeline import Timeline
from .video_io import (
    DEFAULT_LIMITS,
    DownloadedVideo,
    can_seek,
    downloaded,
    is_file_object,
    iterate_frames,
    probe,
    read_frames,
    resize_frames,
)


class ScadaVideosKwargs(TypedDict, total=False):
    """Keyword arguments of [`ScadaVideoProcessor`]."""

    num_frames: int
    size: dict[str, int]
    window_seconds: float | None
    do_normalize: bool
    image_mean: list[float] | tuple[float, ...]
    image_std: list[float] | tuple[float, ...]


class ScadaVideoProcessor(BaseVideoProcessor):
    r"""
    Video processor that samples frames uniformly in time, scales and normalizes them. It requires neither torchvision
    nor Pillow.

    Frame `k` of `T` is the frame displayed at `start + (k + 0.5) * (end - start) / T` seconds. The processor scales
    the complete frame to `size` without a crop, to keep events at the edges ([D]; AdaTAD crops the centre).

    Args:
        num_frames (`int`, *optional*, defaults to 512):
            Number of frames per video, `T`; a multiple of the clip length of the backbone.
        size (`dict[str, int]`, *optional*, defaults to `{"height": 160, "width": 160}`):
            Size of the frames in pixels; multiples of the patch size of the backbone.
        window_seconds (`float`, *optional*):
            Maximum duration, in seconds, covered by `num_frames` frames. The pipeline reads a longer video in windows.
            By default, the duration is unlimited.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether to divide pixels by 255 and normalize them, as float32. With `False`, pixels stay `uint8` and use a
            quarter of the memory. The model's configuration must then contain the mean and standard deviation.
        image_mean (`list[float]`, *optional*, defaults to ImageNet's):
            Mean of each channel, for pixels in `[0, 1]`.
        image_std (`list[float]`, *optional*, defaults to ImageNet's):
            Standard deviation of each channel.

    The attribute `limits`, a [`ReadLimits`], sets the limits of reading a video. It is not saved with the processor.

    Raises:
        ValueError: If a size or `window_seconds` is not positive.
    """

    num_frames = 512
    size = {"height": 160, "width": 160}
    window_seconds = None
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    limits = DEFAULT_LIMITS
    valid_kwargs = ScadaVideosKwargs  # type: ignore[assignment]
    model_input_names = ["pixel_values_videos"]

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._check(self.num_frames, dict(self.size))
        seconds = self.window_seconds
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and 0 < seconds < math.inf):
            raise ValueError(f"Received window_seconds={self.window_seconds!r}; expected a positive number, or None.")

    @classmethod
    def from_backbone(cls, name_or_path: str, **kwargs) -> "ScadaVideoProcessor":
        """
        Create a processor with the mean, standard deviation and image size of a pretrained backbone.

        Args:
            name_or_path (`str`): Hub id or folder of the backbone. Without a preprocessing configuration, the values
                of ImageNet apply.
            **kwargs: Arguments of [`ScadaVideoProcessor`], which override the values of the backbone.
        """
        config = _preprocessing_config(str(name_or_path))
        found: dict[str, Any] = {}
        if config.get("image_mean") and config.get("image_std") or config.get("do_normalize") is False:
            # Input of the backbone: ((pixels * scale - offset) - mean) / std for pixels from 0 to 255.
            scale = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale") is not False else 255.0
            offset = 1.0 if config.get("offset") and config.get("do_rescale") is not False else 0.0
            normalized = config.get("do_normalize") is not False
            means = config["image_mean"] if normalized else [0.0] * 3
            stds = config["image_std"] if normalized else [1.0] * 3
            found["image_mean"] = [(offset + mean) / scale for mean in means]
            found["image_std"] = [std / scale for std in stds]
        crop_size = config.get("crop_size") if config.get("do_center_crop") is not False else None
        size = crop_size or config.get("size") or {}
        size = {"height": size, "width": size} if isinstance(size, int) else dict(size)
        side = size.get("shortest_edge")
        height, width = size.get("height", side), size.get("width", side)
        if height and width:
            found["size"] = {"height": height, "width": width}
        return cls(**found | kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings without the limits, which belong to the machine instead of the model."""
        return {name: value for name, value in super().to_dict().items() if name != "limits"}

    def _check(self, num_frames: int, size: dict[str, int]) -> tuple[int, tuple[int, int]]:
        check_num_frames(num_frames)
        height, width = size.get("height"), size.get("width")
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
            raise ValueError(f"Received size={size}; expected {{'height': pixels, 'width': pixels}}, both positive.")
        return num_frames, (height, width)

    def is_model_to_normalize(self, config: PreTrainedConfig) -> bool:
        """
        Return whether the model normalizes `uint8` pixels in the same way as this processor.

        Args:
            config ([`ScadaConfig`]): Configuration of the model; `image_mean` and `image_deviation` may be `None`.
        """
        own = [list(self.image_mean), list(self.image_std)]
        return config.image_mean is not None and own == [list(config.image_mean), list(config.image_deviation)]

    def downloaded(self, video: Any) -> AbstractContextManager[Any]:
        """
        Download a URL once for several calls, as a context manager.

        Args:
            video (`str`, `os.PathLike`, `bytes`, `BinaryIO`, `np.ndarray` or `torch.Tensor`): Video.

        Returns:
            Context manager. For a URL, its value is a temporary file, deleted at the end. Other videos stay unchanged.

        Raises:
            VideoReadError: On entry, if the download fails.
        """
        return downloaded(video, self.limits)

    def preprocess(
        self,
        videos: Any,
        video_metadata: Any = None,
        num_frames: int | None = None,
        size: dict[str, int] | None = None,
        return_timelines: bool = False,
        return_tensors: str | None = "pt",
        do_normalize: bool | None = None,
    ) -> BatchFeature:
        """
        Sample, scale and normalize the frames of videos.

        Args:
            videos (`str`, `os.PathLike`, `bytes`, `BinaryIO`, `np.ndarray`, `torch.Tensor` or a list of these):
                Path, http(s) URL, file content or frames of each video. Frames have the shape `(T, H, W, 3)` or
                `(T, 3, H, W)`, with `uint8` or floats in `[0, 1]`.
            video_metadata (`dict` or `list[dict]`, *optional*):
                Metadata of videos passed as arrays: `{"fps": ...}` or `{"duration": ...}` (seconds) per video. For
                frames from a longer source, pass the `fps` or `duration` of the source with `frames_indices` and
                `total_num_frames`, as in transformers' `VideoMetadata`.
            num_frames (`int`, *optional*):
                Number of frames instead of the processor's value.
            size (`dict[str, int]`, *optional*):
                Size in pixels instead of the processor's value.
            return_timelines (`bool`, *optional*, defaults to `False`):
                Whether to return the [`Timeline`] of each video, required by `post_process_temporal_grounding`.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                Tensor type, `"pt"` or `"np"`.
            do_normalize (`bool`, *optional*):
                Whether to normalize, instead of the processor's value.

        Returns:
            `BatchFeature` with `pixel_values_videos` of shape `(B, T, 3, height, width)`, float32, or uint8 without
            `do_normalize`. With `return_timelines=True`, it also contains `timelines`.

        Raises:
            FileNotFoundError: If a path does not exist.
            VideoReadError: If a file is not a readable video.
            ValueError: If an array is empty, contains NaN, has another shape or dtype, or has no known duration.
        """
        checked_num_frames, checked_size = self._check(
            self.num_frames if num_frames is None else num_frames, dict(self.size) if size is None else dict(size)
        )
        videos = list(videos) if isinstance(videos, (list, tuple)) else [videos]
        if not videos:
            raise ValueError("Received no video; pass at least one video.")
        metadata = video_metadata if isinstance(video_metadata, Sequence) else [video_metadata] * len(videos)
        if len(metadata) != len(videos):
            raise ValueError(
                f"Received {len(videos)} videos but {len(metadata)} `video_metadata` entries; pass one entry per "
                "video."
            )
        frames, timelines = [], []
        for video, facts in zip(videos, metadata, strict=True):
            sampled, timeline = self._sample(video, facts, checked_num_frames, checked_size)
            frames.append(self._pixels(sampled, do_normalize))
            timelines.append(timeline)
        data: dict[str, Any] = {"pixel_values_videos": torch.stack(frames)}
        features = BatchFeature(data, tensor_type=return_tensors)
        if return_timelines:
            features["timelines"] = timelines
        return features

    def num_windows(self, video: Any, video_metadata: dict | None = None) -> int:
        """
        Return the number of windows of a video: the minimum that covers the video. Each window lasts at most
        `window_seconds` and overlaps the next one by half.

        Args:
            video (`str`, `os.PathLike`, `bytes`, `BinaryIO`, `np.ndarray` or `torch.Tensor`): Video.
            video_metadata (`dict`, *optional*): Metadata of frames: `{"fps": ...}` or `{"duration": ...}`.

        Returns:
            `int`: Number of windows; 1 without `window_seconds`, or for a video up to `window_seconds` long.
        """
        # Without a limit, the video stays closed.
        return 1 if self.window_seconds is None else self._count_windows(self._duration_seconds(video, video_metadata))

    def _count_windows(self, duration_seconds: float) -> int:
        if self.window_seconds is None:
            return 1
        # n windows with an overlap of half a window cover n + 1 halves.
        return max(1, math.ceil(2 * duration_seconds / self.window_seconds) - 1)

    def iterate_windows(
        self,
        video: Any,
        video_metadata: dict | None = None,
        num_frames: int | None = None,
        do_normalize: bool | None = None,
    ) -> Iterator[BatchFeature]:
        """
        Yield the windows of a video in order, in one pass. Memory holds at most the frames of two windows.

        Args:
            video (`str`, `os.PathLike`, `bytes`, `BinaryIO`, `np.ndarray` or `torch.Tensor`): Video.
            video_metadata (`dict`, *optional*): Metadata of frames: `{"fps": ...}` or `{"duration": ...}`.
            num_frames (`int`, *optional*): Number of frames per window instead of the processor's value.
            do_normalize (`bool`, *optional*): Whether to normalize, instead of the processor's value.

        Yields:
            `BatchFeature` of each window with `pixel_values_videos` `(1, T, 3, height, width)` and `timelines`, a list
            with one [`Timeline`].

        Raises:
            ValueError: If the number of frames is odd and the video has several windows; see also `preprocess`.
            FileNotFoundError, VideoReadError: If the video is unreadable.
        """
        num_frames, size = self._check(self.num_frames if num_frames is None else num_frames, dict(self.size))
        with self.downloaded(video) as file:
            yield from self._iterate_windows(file, video_metadata, num_frames, size, do_normalize)

    def _iterate_windows(
        self,
        video: Any,
        video_metadata: dict | None,
        num_frames: int,
        size: tuple[int, int],
        do_normalize: bool | None,
    ) -> Iterator[BatchFeature]:
        duration_seconds = self._duration_seconds(video, video_metadata)
        count = self._count_windows(duration_seconds)
        if count == 1:
            yield self.preprocess(video, video_metadata, num_frames, do_normalize=do_normalize, return_timelines=True)
            return
        if num_frames % 2:
            raise ValueError(f"Received num_frames={num_frames}; overlapping windows require an even number.")
        halves = Timeline(0.0, duration_seconds, count + 1)
        sampling = Timeline(halves.start_seconds, halves.end_seconds, (count + 1) * num_frames // 2)
        if isinstance(video, (np.ndarray, torch.Tensor)):
            frames = _iterate_array(video, metadata=video_metadata, num_frames=sampling.num_steps, size=size)
        else:
            frames = iterate_frames(video, sampling.center_seconds(), size, self.limits)
        window = np.empty((num_frames, *size, 3), dtype=np.uint8)
        half = num_frames // 2
        for index, frame in enumerate(frames):
            # The second half of a window is the first half of the next one.
            if index >= num_frames and index % half == 0:
                window[:half] = window[half:]
            window[index if index < half else half + index % half] = frame
            if index >= half and index % half == half - 1:
                last = index // half
                start_seconds, end_seconds = halves.grid_to_seconds([last - 1, last + 1])
                pixels = self._pixels(window, do_normalize)[None]
                timelines = [Timeline(float(start_seconds), float(end_seconds))]
                yield BatchFeature({"pixel_values_videos": pixels, "timelines": timelines})

    def _sample(
        self, video: Any, metadata: dict | None, num_frames: int, size: tuple[int, int]
    ) -> tuple[np.ndarray, Timeline]:
        """Return the sampled frames `(T, height, width, 3)`, uint8, and the window of one video in any form."""
        if isinstance(video, (np.ndarray, torch.Tensor)):
            frames = _as_uint8_frames(video)
            timeline = Timeline(0.0, _array_duration_seconds(len(frames), metadata))
            return resize_frames(frames[_frame_positions(len(frames), metadata, num_frames)], size), timeline
        with self.downloaded(video) as file:
            timeline = Timeline(0.0, self._duration_seconds(file))
            sampling = Timeline(timeline.start_seconds, timeline.end_seconds, num_frames)
            return read_frames(file, sampling.center_seconds(), size=size, limits=self.limits), timeline

    def _duration_seconds(self, video: Any, metadata: dict | None = None) -> float:
        """Return the duration of a video in any form, in seconds."""
        if isinstance(video, (np.ndarray, torch.Tensor)):
            return _array_duration_seconds(len(video), metadata)
        is_file = is_file_object(video) and not isinstance(video, TextIOBase)
        if not (is_file or isinstance(video, (str, PathLike, bytes, DownloadedVideo))):
            raise ValueError(
                f"Received a video of type {type(video).__name__}; expected a path, an http(s) URL, bytes, a file "
                "opened for reading bytes, or frames as an array or tensor of shape (frames, height, width, 3)."
            )
        if is_file and not can_seek(video):
            raise ValueError(
                f"Received a non-seekable file of type {type(video).__name__}, but reading a video requires two "
                "passes; pass the content, `file.read()`."
            )
        return probe(video, self.limits).duration_seconds

    def _pixels(self, frames: np.ndarray, do_normalize: bool | None) -> torch.Tensor:
        """Convert uint8 `(T, H, W, 3)` to a new tensor `(T, 3, H, W)`, uint8 or normalized float32."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        if not (self.do_normalize if do_normalize is None else do_normalize):
            return pixels.clone(memory_format=torch.contiguous_format)
        mean = 255 * torch.tensor(self.image_mean).view(-1, 1, 1)
        std = 255 * torch.tensor(self.image_std).view(-1, 1, 1)
        return ((pixels.to(torch.float32) - mean) / std).contiguous()


def check_num_frames(num_frames: Any) -> None:
    """
    Check the number of frames.

    Raises:
        ValueError: If `num_frames` is not a positive integer.
    """
    if isinstance(num_frames, bool) or not isinstance(num_frames, Integral) or num_frames < 1:
        raise ValueError(f"Received num_frames={num_frames!r}; expected a positive number of frames.")


def _preprocessing_config(name_or_path: str) -> dict[str, Any]:
    missing: Any = {"_raise_exceptions_for_missing_entries": False}
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        if (path := cached_file(name_or_path, name, **missing)) is not None:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
            if name != "processor_config.json":
                return config
            if nested := config.get("video_processor") or config.get("image_processor"):
                return nested
    cached_file(name_or_path, "config.json")  # raises an error if the backbone does not exist
    return {}


def _as_uint8_frames(video: np.ndarray | torch.Tensor) -> np.ndarray:
    """Convert `(T, H, W, 3)` or `(T, 3, H, W)`, uint8 or floats in `[0, 1]`, to uint8 `(T, H, W, 3)`."""
    if isinstance(video, torch.Tensor):
        # NumPy does not support bfloat16.
        video = (video.float() if video.dtype == torch.bfloat16 else video).detach().cpu().numpy()
    frames = video
    if frames.ndim == 3 and 3 in (frames.shape[-1], frames.shape[0]):
        raise ValueError(
            f"Received a picture of shape {frames.shape} instead of a video; a list contains one entry per video. "
            "Stack the frames of one video with np.stack(frames)."
        )
    if frames.ndim != 4 or 3 not in (frames.shape[-1], frames.shape[1]):
        raise ValueError(
            f"Received a video of shape {frames.shape}; expected (frames, height, width, 3) or (frames, 3, height, "
            "width)."
        )
    if 0 in frames.shape:
        raise ValueError(
            f"Received a video of shape {frames.shape}, which has no frames or no pixels; pass at least one frame."
        )
    if frames.shape[-1] != 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.dtype == np.uint8:
        return frames
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"Received a video of dtype {frames.dtype}; expected uint8, or floats in [0, 1].")
    if not np.isfinite(frames).all():
        raise ValueError("Received a video with NaN or infinite pixels; expected uint8, or floats in [0, 1].")
    if frames.min() < 0 or frames.max() > 1:
        raise ValueError(
            f"Received a video of floats in [{frames.min():.3g}, {frames.max():.3g}]; expected [0, 1]. Divide pixels "
            "of 0 to 255 by 255, and pass frames without normalization."
        )
    return (frames * 255).round().astype(np.uint8)


def _iterate_array(
    video: np.ndarray | torch.Tensor, metadata: dict | None, num_frames: int, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yield `num_frames` frames of an array, evenly spaced in time, one at a time, scaled to `size`."""
    frames = _as_uint8_frames(video)
    for place in _frame_positions(len(frames), metadata, num_frames):
        yield resize_frames(frames[place : place + 1], size)[0]


def _frame_positions(length: int, metadata: dict | None, num_frames: int) -> np.ndarray:
    """
    Return the positions in an array of `length` frames that are nearest to `num_frames` evenly spaced instants.
    Without `frames_indices`, the frames of the array are also evenly spaced.
    """
    indices, num_source_frames = _source_frames(length, dict(metadata or {}))
    centers = Timeline(0.0, float(num_source_frames), num_frames).center_seconds()
    return np.searchsorted((indices[1:] + indices[:-1] + 1) / 2, centers, side="right")


def _source_frames(length: int, metadata: dict) -> tuple[np.ndarray, int]:
    """
    Return the indices of an array's frames in their source and the number of source frames, from metadata such as
    transformers' `VideoMetadata`. By default, the indices are evenly spaced, and the array contains all source frames.
    """
    indices = metadata.get("frames_indices")
    if indices is None:
        num_source_frames = metadata.get("total_num_frames") or length
        return (np.arange(length) + 0.5) * num_source_frames / max(length, 1) - 0.5, num_source_frames
    indices = np.asarray(indices)
    num_source_frames = metadata.get("total_num_frames") or int(indices.max(initial=-1)) + 1
    inside = [-1, *indices.tolist(), num_source_frames]
    if indices.shape != (length,) or any(one >= other for one, other in zip(inside, inside[1:], strict=False)):
        raise ValueError(
            f"Received {length} frames as an array with frames_indices={metadata['frames_indices']} and "
            f"total_num_frames={metadata.get('total_num_frames')}; expected the index of each frame in the source, "
            "in ascending order and counted from 0."
        )
    return indices, num_source_frames


def _array_duration_seconds(length: int, metadata: dict | None) -> float:
    """Return the duration of an array in seconds, from `duration`, or from `fps` and the number of source frames."""
    metadata = {} if metadata is None else dict(metadata)
    duration_seconds = metadata.get("duration")
    if duration_seconds is None and metadata.get("fps"):
        duration_seconds = _source_frames(length, metadata)[1] / metadata["fps"]
    if duration_seconds is None or not math.isfinite(duration_seconds) or duration_seconds <= 0:
        raise ValueError(
            f"Received {length} frames as an array with video_metadata={metadata or None}, so their duration is "
            "unknown. Pass video_metadata={'fps': ...} or {'duration': seconds}."
        )
    return float(duration_seconds)


__all__ = ["ScadaVideoProcessor"]
