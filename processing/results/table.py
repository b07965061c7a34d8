"""Segments that were found, as lines of text."""

import math
from typing import Any

from .selection import is_near_zero


# From here on times are shown as minutes and seconds.
LONG_SECONDS = 60.0
# How much of its full colour a segment with a score of 0 has; one with a score of 1 has all of it.
FAINTEST = 0.1
# A line of a table on a terminal.
GREY = "\x1b[90m{}\x1b[0m"


def format_time(seconds: float, is_long: bool) -> str:
    """`"75.3"`, or in a long video `"01:15.3"` and from an hour on `"1:01:15.3"`. As `time` on the page."""
    tenths = math.floor(seconds * 10 + 0.5)
    if not is_long:
        return f"{tenths / 10:.1f}"
    hours, minutes = tenths // 36000, tenths // 600 % 60
    return f"{f'{hours}:' if hours else ''}{minutes:02}:{tenths % 600 / 10:04.1f}"


def format_score(segment: dict[str, Any]) -> str:
    """
    `"score 0.871"`; of a segment below the threshold `"score 0.021, not found"`; and where no threshold is known, of
    one with a score near zero, `"score 0.002, probably not in the video"`. As on the page.
    """
    score = f"score {segment['score']:.3f}"
    if "found" in segment:
        return score if segment["found"] else f"{score}, not found"
    return f"{score}, probably not in the video" if is_near_zero(segment) else score


def strength(score: float) -> float:
    """How much of its full colour a segment has, from `FAINTEST` to 1. As on the page."""
    return FAINTEST + (1 - FAINTEST) * score


def format_table(record: dict[str, Any], has_colours: bool = False) -> str:
    """
    Args:
        record (`dict`): What `scada ground --json` prints, or `scada search --json`: then with a column of videos.
        has_colours (`bool`, *optional*, defaults to `False`):
            Whether a terminal shows the table, where segments with a score near zero are grey.

    Returns:
        `str`: A line a segment, each sentence on the line of its best one.
    """
    is_long = record["duration"] >= LONG_SECONDS
    all_segments = [segment for result in record["results"] for segment in result["segments"]]
    says_found, says_video = (any(name in segment for segment in all_segments) for name in ("found", "video"))
    rows = [["sentence", "rank", "start", "end", "score", *["found"] * says_found, *["video"] * says_video]]
    is_grey = [False]
    for result in record["results"]:
        for index, segment in enumerate(result["segments"]):
            times = [format_time(segment[name], is_long) for name in ("start", "end")]
            sentence = "" if index else " ".join(result["sentence"].split())
            rows.append([sentence, str(index + 1), *times, f"{segment['score']:.3f}"])
            if says_found:
                rows[-1].append("yes" if segment["found"] else "no")
            if says_video:
                rows[-1].append(segment["video"])
            is_grey.append(has_colours and is_near_zero(segment))
    num_aligned = len(rows[0]) - says_video  # the last column has no width
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for (sentence, *cells), grey in zip(rows, is_grey, strict=True):
        right = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:num_aligned], strict=False)]
        line = "  ".join([f"{sentence:{widths[0]}}", *right, *cells[num_aligned - 1 :]])
        lines.append(GREY.format(line) if grey else line)
    return "\n".join(lines)
