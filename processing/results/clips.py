"""Segments that were found, cut out of their video."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..video_io import VideoReadError
from .cutting import cut_video
from .encoding import cut_video_exactly


# Containers that exact clips keep: the others do not say until when the last frame is shown, or have no times at all.
EXACT_EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
# Of a video's name and of a sentence in the name of a clip; file systems take 255 bytes in all.
MAX_NAME_BYTES = 90


class Clip(NamedTuple):
    """
    A segment that was cut out.

    Args:
        path (`Path`): The clip.
        requested_seconds (`tuple[float, float]`): Start and end of the segment, in seconds.
        covered_seconds (`tuple[float, float]`): Start and end of the clip in the video, in seconds.
    """

    path: Path
    requested_seconds: tuple[float, float]
    covered_seconds: tuple[float, float]


def cut_segments(
    record: dict[str, Any], folder: Path, exact: bool = False, on_error: str = "raise"
) -> Iterator[Clip | dict[str, str]]:
    """
    Write each segment into a clip `<video>_01_<sentence>_rank1` in the container of the video; exact ones of some are
    MP4. Where a file of that name exists, it stays, and the clip gets a number after its name.

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
        OSError: If a video is gone, or the folder cannot be written to.
        VideoReadError: If a video cannot be read, or not be cut into such a file.
    """
    cut = cut_video_exactly if exact else cut_video
    folder.mkdir(parents=True, exist_ok=True)
    for number, result in enumerate(record["results"], start=1):
        sentence = re.sub(r"\W+", "_", result["sentence"].lower())[:40].strip("_") or "sentence"
        for rank, segment in enumerate(result["segments"], start=1):
            video = segment.get("video") or record["video"]
            extension = Path(video).suffix
            if exact and extension.lower() not in EXACT_EXTENSIONS:
                extension = ".mp4"
            name = f"{_shorten(Path(video).stem)}_{number:02}_{_shorten(sentence)}_rank{rank}"
            path = _reserve(folder, name, extension)
            requested_seconds = (segment["start"], segment["end"])
            try:
                covered_seconds = cut(video, *requested_seconds, path)
            except (FileNotFoundError, VideoReadError) as error:
                if on_error == "raise":
                    raise
                yield {"video": str(video), "error": type(error).__name__, "reason": str(error)}
                continue
            finally:
                if path.stat().st_size == 0:
                    path.unlink()
            yield Clip(path, requested_seconds, covered_seconds)


def _shorten(name: str) -> str:
    return name.encode(errors="surrogateescape")[:MAX_NAME_BYTES].decode(errors="ignore")


def _reserve(folder: Path, name: str, extension: str) -> Path:
    """An empty new file: another run, now or before, has or gets another name."""
    number = 1
    while True:
        path = folder / f"{name}{f'_{number}' if number > 1 else ''}{extension}"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path
