"""Which of the segments that a model ranks count as found, and which of them people see."""

from typing import Any


# A lower score says that the sentence is probably not in the video.
NEAR_ZERO = 0.01
# A segment that overlaps a better one by more than this IoU is a near copy of it.
COPY_IOU = 0.5


def is_near_zero(segment: dict[str, Any]) -> bool:
    """Whether the score of a segment is below `NEAR_ZERO`. As on the page."""
    return segment["score"] < NEAR_ZERO


def is_found(segment: dict[str, Any]) -> bool:
    """Whether a segment counts as found: as its `found` says, or else if its score is not near zero."""
    return segment.get("found", not is_near_zero(segment))


def apply_threshold(results: list[dict[str, Any]], threshold: float | None) -> list[dict[str, Any]]:
    """
    Drop the segments below a threshold, but for the best one of each sentence, and mark the rest as found or not.

    Args:
        results (`list[dict]`): The `results` of the record that `scada ground --json` prints.
        threshold (`float`, *optional*): Lowest score of a segment that counts as found. `None` changes nothing.

    Returns:
        `list[dict]`: The same sentences. Each segment has `found`.
    """
    if threshold is None:
        return results
    return [
        result
        | {
            "segments": [
                segment | {"found": segment["score"] >= threshold}
                for rank, segment in enumerate(result["segments"])
                if rank == 0 or segment["score"] >= threshold
            ]
        }
        for result in results
    ]


def select_shown(record: dict[str, Any]) -> dict[str, Any]:
    """
    Select what people see: the best segment of each sentence, and those below it that are worth a look.

    Near copies of a better segment are left out, and segments with a score near zero, unless they count as found.

    Args:
        record (`dict`): What `scada ground --json` or `scada search --json` prints.

    Returns:
        `dict`: The same record with fewer segments.
    """
    results = []
    for result in record["results"]:
        shown: list[dict[str, Any]] = []
        for segment in result["segments"]:
            is_worth_it = not is_near_zero(segment) or segment.get("found", False)
            if not shown or (is_worth_it and not any(_is_copy(segment, better) for better in shown)):
                shown.append(segment)
        results.append(result | {"segments": shown})
    return record | {"results": results}


def _is_copy(segment: dict[str, Any], better: dict[str, Any]) -> bool:
    if segment.get("video") != better.get("video"):
        return False
    overlap = min(segment["end"], better["end"]) - max(segment["start"], better["start"])
    union = max(segment["end"], better["end"]) - min(segment["start"], better["start"])
    return overlap > COPY_IOU * union
