"""Processor: conversion of videos, sentences and segments to model inputs, and of model outputs to segments."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from .pipeline_temporal_grounding import (
    TemporalGroundingPipeline,  # noqa: F401  so that `save_pretrained` copies it
    as_list,
    as_sentences,
)
from .post_processing import check_ranking, soft_nms
from .timeline import Timeline
from .video_processing_scada import ScadaVideoProcessor


logger = logging.get_logger(__name__)

# Segments that exceed the video by up to this time are clipped, because files are often slightly shorter than their
# annotations state (Charades-STA: up to 1.54 s).
SEGMENT_TOLERANCE_SECONDS = 2.0
PADDING_LABEL = -100.0
# Start and end of the only segment of a sentence absent from the video.
ABSENT_LABEL = -1.0


class SegmentOutsideVideoError(ValueError):
    """Error of a target segment outside the video; the annotation usually belongs to a longer version of the video."""


class ScadaProcessor(ProcessorMixin):
    r"""
    Processor that combines a [`ScadaVideoProcessor`] and a tokenizer.

    Args:
        video_processor ([`ScadaVideoProcessor`]): Video processor that reads and normalizes frames.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the sentence encoder.
        found_threshold (`float`, *optional*):
            Minimum score of a found segment, for a model trained with sentences absent from their video. The pipeline
            then returns `found` for each segment.

    Example:

    ```python
    >>> inputs = processor(videos="video.mp4", text=["a person sits down", "the door opens"])  # doctest: +SKIP
    >>> {name: tuple(tensor.shape) for name, tensor in inputs.items()}  # doctest: +SKIP
    {'pixel_values_videos': (1, 512, 3, 160, 160), 'input_ids': (1, 2, 6), 'attention_mask': (1, 2, 6),
     'sentence_mask': (1, 2)}

    ```"""

    def __init__(
        self,
        video_processor: ScadaVideoProcessor,
        tokenizer: PreTrainedTokenizerBase,
        found_threshold: float | None = None,
    ):
        self.found_threshold = found_threshold
        super().__init__(video_processor, tokenizer)

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
        """Check the class as transformers does, whose own check requires torchvision for video processors."""
        expected = {"video_processor": ScadaVideoProcessor, "tokenizer": PreTrainedTokenizerBase}[argument_name]
        # Compares names, because code from a Hub repository contains a copy of the class.
        names = {base.__name__ for base in type(argument).__mro__}
        if expected.__name__ not in names:
            raise TypeError(
                f"Received a {type(argument).__name__} as `{argument_name}`; expected a {expected.__name__}."
            )
        return expected

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        # AutoVideoProcessor requires torchvision, so this method uses the class directly.
        return [
            ScadaVideoProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs),
            AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs),
        ]

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values_videos", "input_ids", "attention_mask", "sentence_mask"]

    def __call__(
        self,
        videos: Any = None,
        text: str | list[str] | list[list[str]] | None = None,
        segments: list | None = None,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """
        Prepare videos, sentences and target segments for the model.

        Args:
            videos (`str`, `os.PathLike`, `bytes`, `np.ndarray`, `torch.Tensor` or a list of these):
                Video or list of videos, in any form that [`ScadaVideoProcessor`] accepts.
            text (`str`, `list[str]` or `list[list[str]]`):
                Sentence or list of sentences for one video; one such entry per video for a list of videos. NumPy,
                pandas and polars columns are also supported.
            segments (`list`, *optional*):
                Target segments in seconds from the first frame, nested like `text`. Pass `[start, end]` or a list of
                segments per sentence, and `[]` for a sentence absent from the video. They become `labels`.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                Tensor type, `"pt"` or `"np"`.
            **kwargs:
                Arguments of [`ScadaVideoProcessor`]: `num_frames`, `size`, `do_normalize`, `video_metadata`,
                `return_timelines`.

        Returns:
            `BatchFeature`: `pixel_values_videos` `(B, T, 3, H, W)`; `input_ids` and `attention_mask` `(B, M, L)`;
            `sentence_mask` `(B, M)`, 0 for padding; with `segments` also `labels` `(B, M, K, 2)` in `[0, 1]` of the
            video, padded with -100; with `return_timelines=True` also `timelines`, a list of [`Timeline`].

        Raises:
            ValueError: If the video or sentence is missing, a sentence is empty, the number of sentences or segments
                does not match, or a segment ends before it starts. A segment outside the video raises
                [`SegmentOutsideVideoError`].
            FileNotFoundError, VideoReadError: If a video is unreadable.
        """
        if videos is None:
            raise ValueError("Received no `videos`; pass a video or a list of videos.")
        is_batch = isinstance(videos, (list, tuple))
        sentences = _nest_text(text, len(videos) if is_batch else None)
        targets = None
        if segments is not None:
            targets = _nest_segments(segments if is_batch else [segments], text if is_batch else [text], sentences)
        keep_timelines = kwargs.pop("return_timelines", False)
        features = self.video_processor(videos, return_timelines=True, return_tensors=return_tensors, **kwargs)
        timelines = features.pop("timelines")
        data = {**features, **self._tokenize(sentences)}
        if targets is not None:
            data["labels"] = _labels(targets, timelines)
        batch = BatchFeature(data, tensor_type=return_tensors)
        if keep_timelines:
            batch["timelines"] = timelines
        return batch

    def encode_text(
        self, text: list[list[str]], segments: list | None = None, timelines: Sequence[Timeline] = ()
    ) -> dict[str, np.ndarray]:
        """
        Encode sentences and target segments without pixels, for videos read earlier.

        Args:
            text (`list[list[str]]`): Sentences of each of `B` videos.
            segments (`list`, *optional*): Target segments in seconds, nested like `text`: `[start, end]` or a list of
                segments per sentence.
            timelines (`Sequence[Timeline]`, *optional*): Timeline of each video, as returned by
                [`ScadaVideoProcessor`]; required with `segments`.

        Returns:
            `dict[str, np.ndarray]`: `input_ids` and `attention_mask` `(B, M, L)`, `sentence_mask` `(B, M)`, and with
            `segments` also `labels` `(B, M, K, 2)`.

        Raises:
            ValueError: Same cases as for a call of the processor.
        """
        sentences = _nest_text(text, len(text) if segments is None else len(timelines))
        encoded = self._tokenize(sentences)
        if segments is not None:
            encoded["labels"] = self.encode_segments(text, segments, timelines)
        return encoded

    def encode_segments(self, text: list[list[str]], segments: list, timelines: Sequence[Timeline]) -> np.ndarray:
        """
        Encode only the target segments.

        Args:
            text, segments, timelines: Same as for [`~ScadaProcessor.encode_text`].

        Returns:
            `np.ndarray`: `labels` of shape `(B, M, K, 2)`.

        Raises:
            ValueError: Same cases as for [`~ScadaProcessor.encode_text`].
        """
        sentences = _nest_text(text, len(timelines))
        return _labels(_nest_segments(segments, text, sentences), list(timelines))

    def _tokenize(self, sentences: list[list[str]]) -> dict[str, np.ndarray]:
        """Return `input_ids`, `attention_mask` `(B, M, L)` and `sentence_mask` `(B, M)` of the sentences."""
        flat = [sentence for video_items in sentences for sentence in video_items]
        tokens = self.tokenizer(flat, padding=True, truncation=True, return_attention_mask=True, return_tensors="np")
        self._warn_about_truncation(flat, tokens["attention_mask"].sum(1))
        sentence_mask = np.zeros((len(sentences), max(map(len, sentences))), dtype=np.int64)
        for row, video_items in zip(sentence_mask, sentences, strict=True):
            row[: len(video_items)] = 1
        length = tokens["input_ids"].shape[1]
        pad_token_id = self.tokenizer.pad_token_id or 0
        input_ids = np.full((*sentence_mask.shape, length), pad_token_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        input_ids[sentence_mask == 1] = tokens["input_ids"]
        attention_mask[sentence_mask == 1] = tokens["attention_mask"]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "sentence_mask": sentence_mask}

    def _warn_about_truncation(self, sentences: list[str], lengths: np.ndarray) -> None:
        """Warn once about each sentence above the maximum length of the sentence encoder."""
        max_length = self.tokenizer.model_max_length
        for sentence in (sentences[index] for index in np.flatnonzero(lengths == max_length)):
            count = len(self.tokenizer(sentence, verbose=False)["input_ids"])
            if count > max_length:
                logger.warning_once(
                    f"The sentence {sentence[:60]!r}... has {count} tokens, but the sentence encoder accepts "
                    f"{max_length}, so the rest is truncated. Shorten the sentence, or split it."
                )

    def post_process_temporal_grounding(
        self,
        outputs: Any,
        timelines: Sequence[Timeline],
        sentence_mask: torch.Tensor | np.ndarray | None = None,
        top_k: int = 5,
        threshold: float = 0.0,
        nms: float | None = 0.5,
        merge_windows: bool = False,
    ) -> list[list[dict[str, np.ndarray]]]:
        """
        Convert proposals to segments in seconds, ranked by soft non-maximum suppression.

        Args:
            outputs ([`ScadaTemporalGroundingOutput`]): Outputs of the model.
            timelines (`Sequence[Timeline]`): Timeline of each video, as returned by the processor.
            sentence_mask (`torch.Tensor` of shape `(B, M)`, *optional*): Mask of real sentences; by default all.
            top_k (`int`, *optional*, defaults to 5): Maximum number of segments per sentence.
            threshold (`float`, *optional*, defaults to 0.0):
                Minimum score of a segment. The best segment of each sentence is always returned.
            nms (`float`, *optional*, defaults to 0.5):
                Width of the decay of soft non-maximum suppression (see [`soft_nms`]); `None` ranks by score alone.
            merge_windows (`bool`, *optional*, defaults to `False`):
                Whether the rows of the outputs are windows of one video, as returned by `iterate_windows` of the video
                processor. The segments of all windows are then ranked together, and the result has one video.

        Returns:
            `list[list[dict]]`: Dict `{"scores": (k,), "segments": (k, 2)}` for each sentence of each video, float64.
            Scores are in `[0, 1]`, segments in seconds from the first frame.

        Raises:
            ValueError: If the number of timelines or the mask does not match the outputs, a setting is invalid (see
                [`check_ranking`]), or a score or segment is NaN.
        """
        return post_process_temporal_grounding(outputs, timelines, sentence_mask, top_k, threshold, nms, merge_windows)


def post_process_temporal_grounding(
    outputs: Any,
    timelines: Sequence[Timeline],
    sentence_mask: torch.Tensor | np.ndarray | None = None,
    top_k: int = 5,
    threshold: float = 0.0,
    nms: float | None = 0.5,
    merge_windows: bool = False,
) -> list[list[dict[str, np.ndarray]]]:
    """Same as [`~ScadaProcessor.post_process_temporal_grounding`]; also used during training."""
    logits = outputs["logits"].detach().double().cpu()
    pred_segments = outputs["pred_segments"].detach().double().cpu().numpy()
    if len(timelines) != len(logits):
        raise ValueError(
            f"Received {len(timelines)} timelines for the outputs of {len(logits)} videos; pass one per video."
        )
    check_ranking(top_k, threshold, nms)
    if torch.isnan(logits).any() or np.isnan(pred_segments).any():
        raise ValueError(
            "Received NaN scores or segments; the pixels or the weights contain NaN. Check the video, and train in "
            "bfloat16 or float32 instead of float16."
        )
    scores = logits.sigmoid().numpy()
    mask = np.ones(scores.shape[:2]) if sentence_mask is None else np.asarray(torch.as_tensor(sentence_mask).cpu())
    if mask.shape != scores.shape[:2]:
        raise ValueError(
            f"Received a `sentence_mask` of shape {mask.shape} for outputs of {scores.shape[0]} videos with "
            f"{scores.shape[1]} sentences; pass the mask of the model inputs."
        )
    videos = [range(len(timelines))] if merge_windows else [[index] for index in range(len(timelines))]
    windows = [Timeline(timeline.start_seconds, timeline.end_seconds) for timeline in timelines]
    results = []
    for rows in videos:
        video_items = []
        for sentence_index in np.flatnonzero(mask[rows[0]]):
            segments_seconds = [windows[row].grid_to_seconds(pred_segments[row, sentence_index]) for row in rows]
            kept_scores, kept_segments = soft_nms(
                np.concatenate([scores[row, sentence_index] for row in rows]),
                np.concatenate(segments_seconds),
                top_k,
                sigma=math.inf if nms is None else nms,
            )
            count = max(1, int((kept_scores >= threshold).sum()))
            video_items.append({"scores": kept_scores[:count], "segments": kept_segments[:count]})
        results.append(video_items)
    return results


def clip_targets(segments: list, sentences: list[str], timelines: Sequence[Timeline]) -> list[list[list[float]]]:
    """
    Clip target segments to the duration of the file, in the same way as the labels of training.

    Args:
        segments (`list`): Segment `[start, end]` in seconds, or a list of segments, per sentence; `[]` for a sentence
            absent from the video.
        sentences (`list[str]`): Sentences of the video.
        timelines (`Sequence[Timeline]`): Windows of the video, in order.

    Returns:
        `list[list[list[float]]]`: Segments of each sentence, in seconds.

    Raises:
        ValueError: Same cases as for [`~ScadaProcessor.encode_segments`].
    """
    start_seconds, end_seconds = timelines[0].start_seconds, timelines[-1].end_seconds
    (targets,) = _nest_segments([segments], [sentences], [sentences])
    for segments_seconds in targets:
        _check_segments(segments_seconds, Timeline(start_seconds, end_seconds))
    return [np.clip(segments_seconds, start_seconds, end_seconds).tolist() for segments_seconds in targets]


def _nest_text(text: Any, num_videos: int | None) -> list[list[str]]:
    """Return the sentences of each video as `list[list[str]]`; `num_videos` is `None` for a single video."""
    if text is None:
        raise ValueError("Received no `text`; pass a sentence, or a list of sentences, per video.")
    per_video = as_list(text) if num_videos is not None else [text]
    if not isinstance(per_video, list):
        raise ValueError(
            f"Received `text` of type {type(text).__name__} for a list of {num_videos} videos; pass a list with one "
            "sentence, or one list of sentences, per video."
        )
    if num_videos is not None and len(per_video) != num_videos:
        raise ValueError(
            f"Received {num_videos} videos but sentences for {len(per_video)}; pass one sentence, or one list of "
            "sentences, per video."
        )
    return [as_sentences(entry, f" for video {video_index}") for video_index, entry in enumerate(per_video)]


def _nest_segments(segments: Any, text: Any, sentences: list[list[str]]) -> list[list[np.ndarray]]:
    """Return the segments of each sentence of each video, `(K, 2)` in seconds; `text` is the original input."""
    if len(segments) != len(sentences):
        raise ValueError(
            f"Received segments of {len(segments)} videos for {len(sentences)} videos; pass one entry per video."
        )
    nested = []
    for video_index, (video_items, entry, own_sentences) in enumerate(zip(segments, text, sentences, strict=True)):
        # A video with one sentence accepts a single segment without a list. If the sentence is a plain string, its
        # segments have no extra list level either.
        if len(own_sentences) == 1 and len(video_items):
            if np.ndim(video_items[0]) == 0 or (isinstance(entry, str) and np.ndim(video_items[0]) == 1):
                video_items = [video_items]
        if len(video_items) != len(own_sentences):
            raise ValueError(
                f"Received {len(own_sentences)} sentences but segments of {len(video_items)} for video {video_index}; "
                "pass [start, end], or a list of segments, per sentence."
            )
        arrays = [np.asarray(sentence_arrays, dtype=np.float64) for sentence_arrays in video_items]
        arrays = [array.reshape(-1, 2) if array.shape in ((2,), (0,)) else array for array in arrays]
        for array, sentence in zip(arrays, own_sentences, strict=True):
            if array.shape != (0, 2) and (array.ndim != 2 or array.shape[1] != 2):
                raise ValueError(
                    f"Received segments of shape {array.shape} for {sentence!r}; expected [start, end], a list of "
                    "segments, or [] for a sentence absent from the video."
                )
        nested.append(arrays)
    return nested


def _labels(targets: list[list[np.ndarray]], timelines: list[Timeline]) -> np.ndarray:
    """
    Convert target segments in seconds to labels `(B, M, K, 2)`, float32 in `[0, 1]` of each video. Padding is -100; a
    sentence without segments has the label `[-1, -1]`.
    """
    num_sentences = max(map(len, targets))
    num_segments = max(1, *(len(array) for video_items in targets for array in video_items))
    labels = np.full((len(targets), num_sentences, num_segments, 2), PADDING_LABEL, dtype=np.float32)
    for video_index, (video_items, timeline) in enumerate(zip(targets, timelines, strict=True)):
        window = Timeline(timeline.start_seconds, timeline.end_seconds)
        for sentence_index, segments_seconds in enumerate(video_items):
            _check_segments(segments_seconds, window)
            unit = np.clip(window.seconds_to_grid(segments_seconds), 0.0, 1.0)
            labels[video_index, sentence_index, : len(unit)] = unit
            if not len(unit):
                labels[video_index, sentence_index, 0] = ABSENT_LABEL
    return labels


def _check_segments(segments_seconds: np.ndarray, window: Timeline) -> None:
    """
    Check the target segments of a sentence.

    An end up to `SEGMENT_TOLERANCE_SECONDS` after the window passes, because the caller clips it.

    Raises:
        ValueError: If a segment is not finite, ends before it starts, or lies outside the window.
    """
    for start_seconds, end_seconds in segments_seconds:
        segment = f"segment [{start_seconds:g}, {end_seconds:g}] s"
        if not np.isfinite([start_seconds, end_seconds]).all():
            raise ValueError(f"Received the {segment}; expected finite times.")
        if end_seconds <= start_seconds:
            raise ValueError(f"Received the {segment}: it does not end after it starts. Swap the times, or drop it.")
        inside = window.start_seconds <= start_seconds < window.end_seconds
        if not inside or end_seconds > window.end_seconds + SEGMENT_TOLERANCE_SECONDS:
            raise SegmentOutsideVideoError(
                f"Received the {segment}: it lies outside its video, which lasts from {window.start_seconds:g} to "
                f"{window.end_seconds:g} s. Times are in seconds from the first frame; clip or drop the segment."
            )


__all__ = ["ScadaProcessor"]
