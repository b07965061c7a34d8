"""Segments that were found, cut out of their video."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .video_io import VideoReadError, cut_video, cut_video_exactly


# Containers that exact clips keep: the others do not say until when the last frame is shown, or have no times at all.
EXACT_EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")


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


def cut_segments(
    record: dict[str, Any], folder: Path, exact: bool = False, on_error: str = "raise"
) -> Iterator[Clip | dict[str, str]]:
    """
    Writes each segment into a clip `01_<sentence>_rank1` in the container of the video; exact ones of some are MP4.

    Args:
        record (`dict`): What `scada ground --json` prints, or `scada search --json`.
        folder (`Path`): Where the clips go.
        exact (`bool`, *optional*, defaults to `False`): Whether to encode clips anew, so that they begin and end with
            their segments, instead of copying from the key frame before, which is quick.
        on_error (`str`, *optional*, defaults to `"raise"`):
            What becomes of a video that is missing or cannot be cut: `"raise"` its error, which ends the work, or
            `"return"` it in the place of the clip, as a dict with `"video"`, `"error"` (the error's name) and
            `"reason"` (its message).

    Yields:
        [`Clip`] or `dict`: Each one that was written.

    Raises:
        OSError, VideoReadError: If a video cannot be read, or not be cut into such a file.
    """
    cut = cut_video_exactly if exact else cut_video
    folder.mkdir(parents=True, exist_ok=True)
    for number, result in enumerate(record["results"], start=1):
        slug = re.sub(r"\W+", "_", result["sentence"].lower())[:40].strip("_") or "sentence"
        for rank, segment in enumerate(result["segments"], start=1):
            video = segment.get("video") or record["video"]
            extension = Path(video).suffix
            if exact and extension.lower() not in EXACT_EXTENSIONS:
                extension = ".mp4"
            path = folder / f"{number:02}_{slug}_rank{rank}{extension}"
            asked_seconds = (segment["start"], segment["end"])
            try:
                covered_seconds = cut(video, *asked_seconds, path)
            except (FileNotFoundError, VideoReadError) as error:
                if on_error == "raise":
                    raise
                yield {"video": str(video), "error": type(error).__name__, "reason": str(error)}
                continue
            yield Clip(path, asked_seconds, covered_seconds)
