"""Selection of found segments and of displayed segments."""

from typing import Any


# Below this score, the sentence is probably not in the video.
NEAR_ZERO = 0.01
# Above this IoU with a better segment, a segment is a near duplicate.
DUPLICATE_IOU = 0.5


def is_near_zero(segment: dict[str, Any]) -> bool:
    """Return whether the score of a segment is below `NEAR_ZERO`. The script of page.html does the same."""
    return segment["score"] < NEAR_ZERO


def is_found(segment: dict[str, Any]) -> bool:
    """Return the `found` value of a segment, or without one, whether its score is not near zero."""
    return segment.get("found", not is_near_zero(segment))


def apply_threshold(results: list[dict[str, Any]], threshold: float | None) -> list[dict[str, Any]]:
    """
    Drop segments below a threshold, except for the best segment per sentence, and mark the others as found or not.

    Args:
        results (`list[dict]`): `results` of the output of `scada ground --json`.
        threshold (`float`, *optional*): Minimum score of a found segment. With `None`, the results are unchanged.

    Returns:
        `list[dict]`: Results with the same sentences, and with `found` per segment.
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
    Select the segments for display.

    The selection keeps the best segment per sentence. It drops near duplicates of better segments. It also drops
    segments with a score near zero, unless they are marked as found.

    Args:
        record (`dict`): Output of `scada ground --json` or `scada search --json`.

    Returns:
        `dict`: Record with only the selected segments.
    """
    results = []
    for result in record["results"]:
        shown: list[dict[str, Any]] = []
        for segment in result["segments"]:
            is_relevant = not is_near_zero(segment) or segment.get("found", False)
            if not shown or (is_relevant and not any(_is_duplicate(segment, better) for better in shown)):
                shown.append(segment)
        results.append(result | {"segments": shown})
    return record | {"results": results}


def _is_duplicate(segment: dict[str, Any], better: dict[str, Any]) -> bool:
    if segment.get("video") != better.get("video"):
        return False
    overlap = min(segment["end"], better["end"]) - max(segment["start"], better["start"])
    union = max(segment["end"], better["end"]) - min(segment["start"], better["start"])
    return overlap > DUPLICATE_IOU * union
