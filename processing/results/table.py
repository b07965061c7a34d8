"""Text table of found segments."""

import math
from typing import Any

from .selection import is_near_zero


# Minimum video duration for times in minutes and seconds.
LONG_SECONDS = 60.0
# Colour intensity of a segment with a score of 0. A score of 1 has full intensity.
FAINTEST = 0.1
# Grey line on a terminal.
GREY = "\x1b[90m{}\x1b[0m"


def format_time(seconds: float, is_long: bool) -> str:
    """Format a time as `"75.3"`, or for long videos as `"01:15.3"` or `"1:01:15.3"`. Matches `time` in page.html."""
    tenths = math.floor(seconds * 10 + 0.5)
    if not is_long:
        return f"{tenths / 10:.1f}"
    hours, minutes = tenths // 36000, tenths // 600 % 60
    return f"{f'{hours}:' if hours else ''}{minutes:02}:{tenths % 600 / 10:04.1f}"


def format_score(segment: dict[str, Any]) -> str:
    """
    Format the score of a segment, such as `"score 0.871"`.

    Below the threshold, the text is `"score 0.021, not found"`. Without a threshold, a score near zero gives
    `"score 0.002, probably not in the video"`. Matches the script of page.html.
    """
    score = f"score {segment['score']:.3f}"
    if "found" in segment:
        return score if segment["found"] else f"{score}, not found"
    return f"{score}, probably not in the video" if is_near_zero(segment) else score


def score_strength(score: float) -> float:
    """Return the colour intensity for a score, from `FAINTEST` to 1. Matches the script of page.html."""
    return FAINTEST + (1 - FAINTEST) * score


def format_table(record: dict[str, Any], has_colours: bool = False) -> str:
    """
    Format a record as a table.

    Args:
        record (`dict`):
            Output of `scada ground --json`, or of `scada search --json`, which adds a video column.
        has_colours (`bool`, *optional*, defaults to `False`):
            Whether to print segments with a score near zero in grey, for a terminal.

    Returns:
        `str`: Table with one line per segment. The first line of a sentence contains its text.
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
