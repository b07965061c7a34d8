"""Segments that were found, cut out of their video."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .video_io import cut_video


class Clip(NamedTuple):
    """
    A segment that was cut out.

    Args:
        path (`Path`): The clip.
        asked_seconds (`tuple[float, float]`): Start and end of the segment, in seconds.
        covered_seconds (`tuple[float, float]`): Start and end of the clip in the video, in seconds.
    """

    path: Path
    asked_seconds: tuple[float, float]
    covered_seconds: tuple[float, float]


def cut_segments(record: dict[str, Any], folder: Path) -> Iterator[Clip]:
    """
    Writes each segment into a clip `01_<sentence>_rank1` in the container of the video.

    Args:
        record (`dict`): What `scada ground --json` prints.
        folder (`Path`): Where the clips go.

    Yields:
        [`Clip`]: Each one that was written.

    Raises:
        VideoReadError: If the video cannot be cut without encoding it anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, result in enumerate(record["results"], start=1):
        slug = re.sub(r"\W+", "_", result["sentence"].lower())[:40].strip("_") or "sentence"
        for rank, segment in enumerate(result["segments"], start=1):
            path = folder / f"{number:02}_{slug}_rank{rank}{Path(record['video']).suffix}"
            asked_seconds = (segment["start"], segment["end"])
            yield Clip(path, asked_seconds, cut_video(record["video"], *asked_seconds, path))
