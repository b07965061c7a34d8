"""Video-centric batches: a sample is a video with its sentences, so it is read and encoded once for all of them."""

import json
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers.utils import logging

from .processing_scada import ScadaProcessor, SegmentOutsideVideoError
from .timeline import Timeline
from .video_files import VideoFiles, video_key, video_name
from .video_io import VideoReadError


logger = logging.get_logger(__name__)

# As AdaTAD augments (OpenTAD's configurations: frames are read at 182 pixels for crops that become 160; the rest are
# the usual bounds of a random resized crop).
READ_MARGIN = 182 / 160
CROP_AREAS = (0.08, 1.0)
CROP_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10
NEGATIVE_TRIES = 10
SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


class TemporalGroundingCollator:
    """
    Rows of [`load_annotations`] to a batch of the model. Videos are read here, so in the workers of the `DataLoader`.

    Args:
        processor ([`ScadaProcessor`]): Reads videos, tokenizes sentences, turns seconds into labels.
        video_root (`str` or `Path`, *optional*): Folder that relative paths start from; see [`VideoFiles`].
        max_sentences (`int`, *optional*):
            At most so many sentences of a video, drawn afresh each time; all of them if not given.
        augment (`bool`, *optional*, defaults to `False`):
            A random resized crop, and a flip if no sentence of the video says left or right: one for the whole video.
        blind (`bool`, *optional*, defaults to `False`):
            Replaces the pixels by noise: what the annotations alone let a model guess.
        broken_videos_log (`str` or `Path`, *optional*):
            A file to which the name of each video that cannot be read, and the reason, are added as a line of JSON;
            its place in the batch is then filled with zeros and its labels with -100, so that loss and metrics leave
            it out. If not given, such a video is an error.
        negative_sentences (`int`, *optional*, defaults to 0):
            At most so many sentences of other videos beside a video's own, and no more than these: they are not there,
            and have no segment. One with the words of an own sentence is not drawn.
        sentences_of_others (`Sequence[str]`, *optional*):
            What they are drawn from, such as all sentences of the data set; those of the batch if not given.
        keep_in_memory (`bool`, *optional*, defaults to `False`):
            Keeps the frames of each video once they were read, for data sets that are small enough: 12 bytes a pixel,
            or 3 without `do_normalize`, in each worker of the `DataLoader`.
        seed (`int`, *optional*):
            Makes what is drawn for a video depend on the seed, the epoch (see `set_epoch`) and the video alone, so
            that a run that was stopped goes on as if it had not been; a video is known by its `video_id`, or else by
            its path. If not given, it comes from torch's generator.
        do_normalize (`bool`, *optional*):
            Whether pixels are normalised here, or leave as `uint8` for the model to do so. By default as the processor
            has it, but [`TemporalGroundingTrainer`] leaves it to a model that can. With `blind` they are floats.

    Raises:
        ValueError: If `max_sentences` is not positive, `negative_sentences` is negative, or see [`ScadaProcessor`].
        FileNotFoundError, VideoReadError: If a video cannot be read, unless there is a `broken_videos_log`.
    """

    def __init__(
        self,
        processor: ScadaProcessor,
        video_root: str | Path | None = None,
        max_sentences: int | None = None,
        augment: bool = False,
        blind: bool = False,
        negative_sentences: int = 0,
        sentences_of_others: Sequence[str] | None = None,
        broken_videos_log: str | Path | None = None,
        keep_in_memory: bool = False,
        seed: int | None = None,
        do_normalize: bool | None = None,
    ):
        if max_sentences is not None and max_sentences < 1:
            raise ValueError(f"Received max_sentences={max_sentences}; expected a positive number, or None for all.")
        if negative_sentences < 0:
            raise ValueError(f"Received negative_sentences={negative_sentences}; expected a number from 0 on.")
        self.processor = processor
        self.video_files = VideoFiles(video_root)
        self.max_sentences = max_sentences
        self.augment = augment
        self.blind = blind
        self.negative_sentences = negative_sentences
        self.sentences_of_others = sentences_of_others
        self.broken_videos_log = broken_videos_log
        self._kept: dict[str, Any] | None = {} if keep_in_memory else None
        self.seed = seed
        self.do_normalize = do_normalize
        # Shared, so that workers that live on from epoch to epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """What is drawn with a `seed` is drawn afresh for each `epoch` (`int`)."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows (`list[dict]`): `B` rows with `video`, `sentences` and `segments` (seconds).

        Returns:
            `dict[str, torch.Tensor]`: As [`ScadaProcessor`] makes it, with `labels`.
        """
        pixels, timelines, sentences, segments, broken = [], [], [], [], []
        for index, row in enumerate(rows):
            generator = self._generator(row)
            drawn = self._draw(len(row["sentences"]), generator)
            own_sentences = [row["sentences"][i] for i in drawn]
            own_segments = [row["segments"][i] for i in drawn]
            try:
                video, timeline = self._read(row, generator)
                # All of them, not those drawn alone: what is wrong shows in the first epoch, and whose it is.
                self.processor.encode_segments([row["sentences"]], [row["segments"]], [timeline])
            except (FileNotFoundError, VideoReadError, SegmentOutsideVideoError) as error:
                if self.broken_videos_log is None:
                    if isinstance(error, SegmentOutsideVideoError):
                        raise SegmentOutsideVideoError(f"{video_name(row['video'])}: {error}") from error
                    raise
                self._log_broken(row, error)
                broken.append(index)
                video = self._no_video()
                timeline, own_segments = Timeline(0.0, 1.0), [[0.0, 1.0]] * len(drawn)
            if self.negative_sentences:
                negatives = self._draw_negatives(rows, index, len(drawn), generator)
                own_sentences, own_segments = own_sentences + negatives, own_segments + [[]] * len(negatives)
            pixels.append(video)
            timelines.append(timeline)
            sentences.append(own_sentences)
            segments.append(own_segments)
        batch = {"pixel_values_videos": torch.stack(pixels)}
        batch |= {
            name: torch.from_numpy(array)
            for name, array in self.processor.encode_text(sentences, segments, timelines).items()
        }
        batch["labels"][broken] = -100
        return batch

    def _generator(self, row: dict[str, Any]) -> torch.Generator:
        generator = torch.Generator()
        if self.seed is None:
            # Where nothing is drawn, nothing is taken from the generator that the model draws from too.
            draws = self.max_sentences is not None or self.augment or self.blind or self.negative_sentences
            return generator.manual_seed(int(torch.randint(2**62, ()))) if draws else generator
        name = f"{row.get('video_id') or video_name(row['video'])} {row['sentences'][0]}"
        return generator.manual_seed(zlib.crc32(f"{self.seed} {int(self._epoch)} {name}".encode()))

    def _draw(self, num_sentences: int, generator: torch.Generator) -> list[int]:
        if self.max_sentences is None or num_sentences <= self.max_sentences:
            return list(range(num_sentences))
        return sorted(torch.randperm(num_sentences, generator=generator)[: self.max_sentences].tolist())

    def _draw_negatives(
        self, rows: list[dict[str, Any]], index: int, most: int, generator: torch.Generator
    ) -> list[str]:
        """Sentences that the video of a row does not have, at most `most` and `negative_sentences`."""
        others = self.sentences_of_others
        if others is None:
            others = [sentence for row in rows[:index] + rows[index + 1 :] for sentence in row["sentences"]]
        taken = {_words(sentence) for sentence in rows[index]["sentences"]}
        drawn: list[str] = []
        for _ in range(NEGATIVE_TRIES * most if others else 0):
            if len(drawn) == min(most, self.negative_sentences):
                break
            sentence = others[int(torch.randint(len(others), (), generator=generator))]
            if _words(sentence) not in taken:
                taken.add(_words(sentence))
                drawn.append(sentence)
        return drawn

    def _read(self, row: dict[str, Any], generator: torch.Generator) -> tuple[torch.Tensor, Timeline]:
        """A row's video as `(T, 3, H, W)`, floats or uint8, and its window."""
        video_processor = self.processor.video_processor
        height, width = video_processor.size["height"], video_processor.size["width"]
        read_size = {"height": height, "width": width}
        if self.augment:
            read_size = {side: round(READ_MARGIN * pixels) for side, pixels in read_size.items()}
        key = video_key(row["video"])
        if self._kept is not None and key in self._kept:
            features = self._kept[key]
        else:
            features = video_processor(
                self.video_files.find(row["video"]),
                size=read_size,
                return_timelines=True,
                do_normalize=self._is_to_normalize(),
            )
            if self._kept is not None:
                self._kept[key] = features
        video = features["pixel_values_videos"][0]
        if self.augment:
            may_flip = not any(SIDES.search(sentence) for sentence in row["sentences"])
            video = augment_video(video, (height, width), may_flip, generator)
        if self.blind:
            video = torch.randn(video.shape, generator=generator)
        return video, features["timelines"][0]

    def _is_to_normalize(self) -> bool:
        own = self.processor.video_processor.do_normalize if self.do_normalize is None else self.do_normalize
        return own or self.blind

    def _no_video(self) -> torch.Tensor:
        """Zeros in the place of a video that cannot be read."""
        video_processor = self.processor.video_processor
        shape = video_processor.num_frames, 3, video_processor.size["height"], video_processor.size["width"]
        return torch.zeros(shape, dtype=torch.float32 if self._is_to_normalize() else torch.uint8)

    def _log_broken(self, row: dict[str, Any], error: Exception) -> None:
        name = video_name(row["video"])
        logger.warning(f"Left out {name}, which is broken: {error}")
        with open(str(self.broken_videos_log), "a", encoding="utf-8") as file:
            file.write(json.dumps({"video": name, "reason": str(error)}) + "\n")


def _words(sentence: str) -> str:
    return " ".join(sentence.casefold().split()).rstrip(" .")


def augment_video(
    video: torch.Tensor, size: tuple[int, int], may_flip: bool, generator: torch.Generator
) -> torch.Tensor:
    """
    A random resized crop and a random horizontal flip, the same for all frames, so that motion stays what it was.

    Args:
        video (`torch.Tensor` of shape `(T, 3, H, W)`): Pixels, floats or uint8.
        size (`tuple[int, int]`): Height and width of the result.
        may_flip (`bool`): Whether half of the videos are flipped.
        generator (`torch.Generator`): Of the random numbers.

    Returns:
        `torch.Tensor` of shape `(T, 3, *size)` and the same type; uint8 to one level of what floats would be.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    height, width = video.shape[-2:]
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
    crop = video[..., top : top + crop_height, left : left + crop_width]
    if may_flip and uniform(0, 1) < 0.5:
        crop = crop.flip(-1)
    return F.interpolate(crop, size, mode="bilinear", antialias=True)
