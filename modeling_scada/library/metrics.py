"""How well a search over many videos finds what is annotated in them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from processing.post_processing import temporal_iou


def group_by_sentence(annotations: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[list[float]]]]:
    """
    Rows of annotations the other way round: for each sentence its videos, and their segments of it. A video that does
    not have the sentence (its segments are `[]`) is none of them.
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
    Recall over a library, in percent of the sentences. A sentence that several videos have is found in any of them;
    what a video has beside its annotations counts as missed. A sentence that no video has is left out.

    Args:
        results (`Sequence[dict]`): What [`search`] gives: for each sentence `{"sentence", "segments"}`, best first.
        annotations (`Iterable[dict]`): Rows with `video` (named as in the results), `sentences` and `segments`.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 10)`): Ranks.
        iou_threshold (`float`, *optional*, defaults to 0.5): What a segment has to reach.

    Returns:
        `dict[str, float]`: `R{k}@{iou_threshold}`: one of the first `k` segments of all videos reaches that IoU with a
        segment of the sentence; `video_R{k}`: one of them is in a video of the sentence.

    Raises:
        ValueError: If there is no result, a sentence that the annotations do not have, or no sentence that a video
            has.
    """
    if not results:
        raise ValueError("Received no results of a search; expected those of one sentence or more.")
    truth = group_by_sentence(annotations)
    hits: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        if result["sentence"] not in truth:
            raise ValueError(
                f"Received results of {result['sentence']!r}, a sentence that the annotations do not have."
            )
        videos = truth[result["sentence"]]
        if not videos:
            continue
        in_video = [found["video"] in videos for found in result["segments"]]
        right = [
            here and _reaches([found["start"], found["end"]], videos[found["video"]], iou_threshold)
            for found, here in zip(result["segments"], in_video, strict=True)
        ]
        for k in ks:
            hits[f"R{k}@{iou_threshold}"].append(any(right[:k]))
            hits[f"video_R{k}"].append(any(in_video[:k]))
    if not hits:
        raise ValueError("Received results of sentences that no video has, so there is nothing to be found.")
    return {name: 100 * float(np.mean(values)) for name, values in hits.items()}


def _reaches(segment: list[float], targets: list[list[float]], iou_threshold: float) -> bool:
    return bool(temporal_iou(np.array(segment), np.array(targets)).max() >= iou_threshold)


__all__ = ["library_metrics"]
