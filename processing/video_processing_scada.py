"""Video processor: which instants of a video the model sees, and how frames become pixels."""

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
    """Arguments of [`ScadaVideoProcessor`]; see there."""

    num_frames: int
    size: dict[str, int]
    window_seconds: float | None
    do_normalize: bool
    image_mean: list[float] | tuple[float, ...]
    image_std: list[float] | tuple[float, ...]


class ScadaVideoProcessor(BaseVideoProcessor):
    r"""
    Samples frames uniformly in time, scales them and normalises them. Needs neither torchvision nor Pillow.

    Frame `k` of `T` is the one on display at `start + (k + 0.5) * (end - start) / T` seconds. Frames are scaled to
    `size` as a whole, without a crop: what happens at the side of the picture counts too ([D]; AdaTAD crops the
    centre).

    Args:
        num_frames (`int`, *optional*, defaults to 512):
            Frames a video, `T`; a multiple of the backbone's clip length.
        size (`dict[str, int]`, *optional*, defaults to `{"height": 160, "width": 160}`):
            Size of the frames in pixels; multiples of the backbone's patch size.
        window_seconds (`float`, *optional*):
            Longest stretch of video, in seconds, that `num_frames` frames stand for; the pipeline reads a longer video
            in windows. If not given, there is no limit.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether pixels are divided by 255 and normalised, to float32. Without, they stay `uint8`, a quarter of the
            bytes, for a model whose configuration has the mean and standard deviation.
        image_mean (`list[float]`, *optional*, defaults to ImageNet's):
            Mean of the channels, for pixels in `[0, 1]`.
        image_std (`list[float]`, *optional*, defaults to ImageNet's):
            Standard deviation of the channels.

    What reading a video may cost is in the attribute `limits`, a [`ReadLimits`]. It is not saved with the processor.

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
        A processor with the mean and standard deviation that a pretrained backbone was trained with, and its image
        size unless another is given.

        Args:
            name_or_path (`str`): Hub id or folder of the backbone. Without a preprocessing configuration there,
                ImageNet's values stand.
            **kwargs: Arguments of [`ScadaVideoProcessor`], which come first.
        """
        config = _preprocessing_config(str(name_or_path))
        found: dict[str, Any] = {}
        if config.get("image_mean") and config.get("image_std") or config.get("do_normalize") is False:
            # The backbone got ((pixels * scale - offset) - mean) / std for pixels from 0 to 255.
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
        """As in the base class, without the limits: they are the machine's, not the model's."""
        return {name: value for name, value in super().to_dict().items() if name != "limits"}

    def _check(self, num_frames: int, size: dict[str, int]) -> tuple[int, tuple[int, int]]:
        check_num_frames(num_frames)
        height, width = size.get("height"), size.get("width")
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
            raise ValueError(f"Received size={size}; expected {{'height': pixels, 'width': pixels}}, both positive.")
        return num_frames, (height, width)

    def is_model_to_normalize(self, config: PreTrainedConfig) -> bool:
        """
        Whether a model gives with `do_normalize=False` what it gives with pixels that were normalised here.

        Args:
            config ([`ScadaConfig`]): The model's configuration, with `image_mean` and `image_deviation`, or without.
        """
        own = [list(self.image_mean), list(self.image_std)]
        return config.image_mean is not None and own == [list(config.image_mean), list(config.image_deviation)]

    def downloaded(self, video: Any) -> AbstractContextManager[Any]:
        """
        Download a URL once, for several calls; a context, whose value stands for the video in them.

        Args:
            video (`str`, `os.PathLike`, `bytes`, `BinaryIO`, `np.ndarray` or `torch.Tensor`): A video.

        Returns:
            A context manager: of a URL for a file that is deleted at the end, of all else for what came.

        Raises:
            VideoReadError: On entering, if the video cannot be downloaded.
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
        Args:
            videos (`str`, `os.PathLike`, `bytes`, `BinaryIO`, `np.ndarray`, `torch.Tensor` or a list of these):
                Each a path, an http(s) URL, a file's content, or the frames themselves: `(T, H, W, 3)` or
                `(T, 3, H, W)`, `uint8` or floats in `[0, 1]`.
            video_metadata (`dict` or `list[dict]`, *optional*):
                For frames given as arrays: `{"fps": ...}` or `{"duration": ...}` (seconds) of each video. If they were
                picked from a longer source, its `fps` or `duration` with `frames_indices` and `total_num_frames`, as
                in transformers' `VideoMetadata`.
            num_frames (`int`, *optional*):
                Overrides the processor's.
            size (`dict[str, int]`, *optional*):
                Overrides the processor's, in pixels.
            return_timelines (`bool`, *optional*, defaults to `False`):
                Whether to return the [`Timeline`] of each video, which `post_process_temporal_grounding` needs.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                `"pt"` or `"np"`.
            do_normalize (`bool`, *optional*):
                Overrides the processor's.

        Returns:
            `BatchFeature` with `pixel_values_videos`, `(B, T, 3, height, width)`, float32 or, without
            `do_normalize`, uint8; and `timelines` if asked for.

        Raises:
            FileNotFoundError: If a path does not exist.
            VideoReadError: If a file cannot be read as video.
            ValueError: If frames given as arrays have no frames, NaN, another shape or type, or no length in seconds.
        """
        checked_num_frames, checked_size = self._check(
            self.num_frames if num_frames is None else num_frames, dict(self.size) if size is None else dict(size)
        )
        videos = list(videos) if isinstance(videos, (list, tuple)) else [videos]
        if not videos:
            raise ValueError("Received no video; pass at least one.")
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
        How many windows a video is to be read in: as few as cover it, each no longer than `window_seconds` and
        overlapping the next by half.

        Args:
            video (`str`, `os.PathLike`, `bytes`, `BinaryIO`, `np.ndarray` or `torch.Tensor`): The video.
            video_metadata (`dict`, *optional*): For frames given as arrays: `{"fps": ...}` or `{"duration": ...}`.

        Returns:
            `int`: 1 if there is no `window_seconds`, or the video is no longer.
        """
        # Without a limit the video need not even be opened.
        return 1 if self.window_seconds is None else self._count_windows(self._duration_seconds(video, video_metadata))

    def _count_windows(self, duration_seconds: float) -> int:
        if self.window_seconds is None:
            return 1
        # n windows that overlap by half have n + 1 halves.
        return max(1, math.ceil(2 * duration_seconds / self.window_seconds) - 1)

    def iterate_windows(
        self,
        video: Any,
        video_metadata: dict | None = None,
        num_frames: int | None = None,
        do_normalize: bool | None = None,
    ) -> Iterator[BatchFeature]:
        """
        Reads a video in the windows that `num_windows` counts, from the beginning to the end, once, and with no more
        than the frames of two windows in memory.

        Args:
            video (`str`, `os.PathLike`, `bytes`, `BinaryIO`, `np.ndarray` or `torch.Tensor`): The video.
            video_metadata (`dict`, *optional*): For frames given as arrays: `{"fps": ...}` or `{"duration": ...}`.
            num_frames (`int`, *optional*): Frames of each window; overrides the processor's.
            do_normalize (`bool`, *optional*): Overrides the processor's.

        Yields:
            `BatchFeature` with `pixel_values_videos` `(1, T, 3, height, width)` and `timelines`, one [`Timeline`], for
            each window.

        Raises:
            ValueError: If there are several windows and the number of frames is odd, or see `preprocess`.
            FileNotFoundError, VideoReadError: If the video cannot be read.
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
            raise ValueError(f"Received num_frames={num_frames}; windows that overlap by half need an even number.")
        halves = Timeline(0.0, duration_seconds, count + 1)
        sampling = Timeline(halves.start_seconds, halves.end_seconds, (count + 1) * num_frames // 2)
        if isinstance(video, (np.ndarray, torch.Tensor)):
            frames = _iterate_array(video, metadata=video_metadata, num_frames=sampling.num_steps, size=size)
        else:
            frames = iterate_frames(video, sampling.center_seconds(), size, self.limits)
        window = np.empty((num_frames, *size, 3), dtype=np.uint8)
        half = num_frames // 2
        for index, frame in enumerate(frames):
            # The second half of a window is the first one of the next.
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
        """One video in any form -> frames `(T, height, width, 3)` uint8, and the window they were sampled from."""
        if isinstance(video, (np.ndarray, torch.Tensor)):
            frames = _as_uint8_frames(video)
            timeline = Timeline(0.0, _array_duration_seconds(len(frames), metadata))
            return resize_frames(frames[_frame_positions(len(frames), metadata, num_frames)], size), timeline
        with self.downloaded(video) as file:
            timeline = Timeline(0.0, self._duration_seconds(file))
            sampling = Timeline(timeline.start_seconds, timeline.end_seconds, num_frames)
            return read_frames(file, sampling.center_seconds(), size=size, limits=self.limits), timeline

    def _duration_seconds(self, video: Any, metadata: dict | None = None) -> float:
        """Length of a video in any form, in seconds."""
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
                f"Received a file of type {type(video).__name__} that cannot go back to its beginning, and a video is "
                "read twice; pass its content, `file.read()`."
            )
        return probe(video, self.limits).duration_seconds

    def _pixels(self, frames: np.ndarray, do_normalize: bool | None) -> torch.Tensor:
        """uint8 `(T, H, W, 3)` -> `(T, 3, H, W)` of its own memory, uint8 or normalised float32."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        if not (self.do_normalize if do_normalize is None else do_normalize):
            return pixels.clone(memory_format=torch.contiguous_format)
        mean = 255 * torch.tensor(self.image_mean).view(-1, 1, 1)
        std = 255 * torch.tensor(self.image_std).view(-1, 1, 1)
        return ((pixels.to(torch.float32) - mean) / std).contiguous()


def check_num_frames(num_frames: Any) -> None:
    """
    Raises:
        ValueError: If `num_frames` is no positive integer.
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
    cached_file(name_or_path, "config.json")  # raises if there is no backbone at all
    return {}


def _as_uint8_frames(video: np.ndarray | torch.Tensor) -> np.ndarray:
    """Frames `(T, H, W, 3)` or `(T, 3, H, W)`, uint8 or floats in `[0, 1]` -> uint8 `(T, H, W, 3)`."""
    if isinstance(video, torch.Tensor):
        # NumPy has no bfloat16.
        video = (video.float() if video.dtype == torch.bfloat16 else video).detach().cpu().numpy()
    frames = video
    if frames.ndim == 3 and 3 in (frames.shape[-1], frames.shape[0]):
        raise ValueError(
            f"Received a picture of shape {frames.shape} for a video; a list holds several videos, so join the frames "
            "of one, as with np.stack(frames)."
        )
    if frames.ndim != 4 or 3 not in (frames.shape[-1], frames.shape[1]):
        raise ValueError(
            f"Received a video of shape {frames.shape}; expected (frames, height, width, 3) or (frames, 3, height, "
            "width)."
        )
    if 0 in frames.shape:
        raise ValueError(
            f"Received a video of shape {frames.shape}: it has no frames or no pixels. Pass at least one."
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
            "of 0 to 255 by 255, and pass frames that are not normalised."
        )
    return (frames * 255).round().astype(np.uint8)


def _iterate_array(
    video: np.ndarray | torch.Tensor, metadata: dict | None, num_frames: int, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """So many frames of a video that came as an array, evenly over its length, one at a time, scaled to `size`."""
    frames = _as_uint8_frames(video)
    for place in _frame_positions(len(frames), metadata, num_frames):
        yield resize_frames(frames[place : place + 1], size)[0]


def _frame_positions(length: int, metadata: dict | None, num_frames: int) -> np.ndarray:
    """
    Where in an array of `length` frames those lie that are nearest to `num_frames` instants, evenly over the video's
    length. Without `frames_indices` the array's own frames are spread evenly, too.
    """
    indices, num_source_frames = _source_frames(length, dict(metadata or {}))
    centers = Timeline(0.0, float(num_source_frames), num_frames).center_seconds()
    return np.searchsorted((indices[1:] + indices[:-1] + 1) / 2, centers, side="right")


def _source_frames(length: int, metadata: dict) -> tuple[np.ndarray, int]:
    """
    Which frames of their source those of an array are, and how many the source has, by metadata such as transformers'
    `VideoMetadata`. Where they do not say which, the frames are spread evenly; where not how many, they are all.
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
            f"total_num_frames={metadata.get('total_num_frames')}; expected for each frame its place in the source, "
            "in order and from 0."
        )
    return indices, num_source_frames


def _array_duration_seconds(length: int, metadata: dict | None) -> float:
    """Length of a video that came as an array, from its duration, or its source's frame rate and number of frames."""
    metadata = {} if metadata is None else dict(metadata)
    duration_seconds = metadata.get("duration")
    if duration_seconds is None and metadata.get("fps"):
        duration_seconds = _source_frames(length, metadata)[1] / metadata["fps"]
    if duration_seconds is None or not math.isfinite(duration_seconds) or duration_seconds <= 0:
        raise ValueError(
            f"Received {length} frames as an array with video_metadata={metadata or None}: how long they last is "
            "not known. Pass video_metadata={'fps': ...} or {'duration': seconds}."
        )
    return float(duration_seconds)


__all__ = ["ScadaVideoProcessor"]
