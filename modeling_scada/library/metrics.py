"""Evaluate a search over many videos against their annotations."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from processing.post_processing import temporal_iou


def targets_by_sentence(annotations: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[list[float]]]]:
    """
    Group annotations by sentence.

    Args:
        annotations (`Iterable[dict]`): Rows with `video`, `sentences` and `segments`.

    Returns:
        `dict[str, dict[str, list[list[float]]]]`: Segments by sentence and video. Videos whose segments of a sentence
        are `[]` are left out.
    """
    found: dict[str, dict[str, list[list[float]]]] = {}
    for row in annotations:
        for sentence, segments in zip(row["sentences"], row["segments"], strict=True):
            videos = found.setdefault(sentence, {})
            if len(segments):
                videos.setdefault(row["video"], []).extend(np.reshape(segments, (-1, 2)).tolist())
    return found


def library_metrics(
    results: Sequence[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    ks: Sequence[int] = (1, 10),
    iou_threshold: float = 0.5,
) -> dict[str, float]:
    """
    Compute the recall of a search over all videos, in percent of the sentences.

    If several videos contain a sentence, a hit in any of them counts. A result that matches no annotation counts as a
    miss, even if the video contains an unannotated occurrence. Sentences that no video contains are left out.

    Args:
        results (`Sequence[dict]`): Output of [`search`], with `sentence` and the sorted `segments`.
        annotations (`Iterable[dict]`): Rows with `video` (named as in the results), `sentences` and `segments`.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 10)`): Ranks.
        iou_threshold (`float`, *optional*, defaults to 0.5): Minimum IoU of a hit.

    Returns:
        `dict[str, float]`: `R{k}@{iou_threshold}` is the share of sentences where one of the first `k` segments
        reaches the IoU with an annotated segment. `video_R{k}` is the share where one of them is in a video that
        contains the sentence.

    Raises:
        ValueError: If there are no results, a sentence is not annotated, or no video contains any of the sentences.
    """
    if not results:
        raise ValueError("Received no results of a search; expected results of at least one sentence.")
    targets = targets_by_sentence(annotations)
    hits: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        if result["sentence"] not in targets:
            raise ValueError(
                f"Received results of {result['sentence']!r}, a sentence that the annotations do not contain."
            )
        videos = targets[result["sentence"]]
        if not videos:
            continue
        video_hits = [segment["video"] in videos for segment in result["segments"]]
        segment_hits = [
            is_video_hit and _is_hit([segment["start"], segment["end"]], videos[segment["video"]], iou_threshold)
            for segment, is_video_hit in zip(result["segments"], video_hits, strict=True)
        ]
        for k in ks:
            hits[f"R{k}@{iou_threshold}"].append(any(segment_hits[:k]))
            hits[f"video_R{k}"].append(any(video_hits[:k]))
    if not hits:
        raise ValueError("Received results only of sentences that no video contains; expected at least one other.")
    return {name: 100 * float(np.mean(values)) for name, values in hits.items()}


def _is_hit(segment: list[float], targets: list[list[float]], iou_threshold: float) -> bool:
    return bool(temporal_iou(np.array(segment), np.array(targets)).max() >= iou_threshold)


__all__ = ["library_metrics"]
