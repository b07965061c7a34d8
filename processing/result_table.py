"""Segments that were found, as lines of text."""

import math
from typing import Any


# From here on times are shown as minutes and seconds.
LONG_SECONDS = 60.0
# How much of its full colour a segment with a score of 0 has; one with a score of 1 has all of it.
FAINTEST = 0.1


def format_time(seconds: float, is_long: bool) -> str:
    """`"75.3"`, or in a long video `"01:15.3"` and from an hour on `"1:01:15.3"`. As `time` on the page."""
    tenths = math.floor(seconds * 10 + 0.5)
    if not is_long:
        return f"{tenths / 10:.1f}"
    hours, minutes = tenths // 36000, tenths // 600 % 60
    return f"{f'{hours}:' if hours else ''}{minutes:02}:{tenths % 600 / 10:04.1f}"


def format_score(segment: dict[str, Any]) -> str:
    """`"score 0.871"`, or `"score 0.021, not found"` of a segment under the threshold. As on the page."""
    return f"score {segment['score']:.3f}" + ("" if segment.get("found", True) else ", not found")


def strength(score: float) -> float:
    """How much of its full colour a segment has, from `FAINTEST` to 1. As on the page."""
    return FAINTEST + (1 - FAINTEST) * score


def format_table(record: dict[str, Any]) -> str:
    """
    Args:
        record (`dict`): What `scada ground --json` prints, or `scada search --json`: then with a column of videos.

    Returns:
        `str`: A line a segment, each sentence on the line of its best one.
    """
    is_long = record["duration"] >= LONG_SECONDS
    all_segments = [segment for result in record["results"] for segment in result["segments"]]
    says_found, says_video = (any(name in segment for segment in all_segments) for name in ("found", "video"))
    rows = [["sentence", "rank", "start", "end", "score", *["found"] * says_found, *["video"] * says_video]]
    for result in record["results"]:
        for index, segment in enumerate(result["segments"]):
            times = [format_time(segment[name], is_long) for name in ("start", "end")]
            sentence = "" if index else " ".join(result["sentence"].split())
            rows.append([sentence, str(index + 1), *times, f"{segment['score']:.3f}"])
            if says_found:
                rows[-1].append("yes" if segment["found"] else "no")
            if says_video:
                rows[-1].append(segment["video"])
    num_aligned = len(rows[0]) - says_video  # the last column has no width
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for sentence, *cells in rows:
        right = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:num_aligned], strict=False)]
        lines.append("  ".join([f"{sentence:{widths[0]}}", *right, *cells[num_aligned - 1 :]]))
    return "\n".join(lines)
