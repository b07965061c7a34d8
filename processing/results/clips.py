"""Cut found segments into clips."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..video_io import VideoReadError
from .cutting import cut_video
from .encoding import cut_video_exactly


# Containers kept for exact clips. Other containers lack the duration of the last frame, or all timestamps.
EXACT_EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
# Limit for the video name and for the sentence in a clip's name, because file systems allow 255 bytes in total.
MAX_NAME_BYTES = 90


class Clip(NamedTuple):
    """
    Clip of a segment.

    Args:
        path (`Path`): Path of the clip.
        requested_seconds (`tuple[float, float]`): Start and end of the segment, in seconds.
        covered_seconds (`tuple[float, float]`): Start and end of the clip, in seconds of the video.
    """

    path: Path
    requested_seconds: tuple[float, float]
    covered_seconds: tuple[float, float]


def cut_segments(
    record: dict[str, Any], folder: Path, exact: bool = False, on_error: str = "raise"
) -> Iterator[Clip | dict[str, str]]:
    """
    Write one clip per segment, named `<video>_01_<sentence>_rank1`.

    Clips keep the container of the video, but exact clips of some containers become MP4. Existing files are kept: a
    clip with the same name gets a number as suffix.

    Args:
        record (`dict`): Output of `scada ground --json` or `scada search --json`.
        folder (`Path`): Output folder.
        exact (`bool`, *optional*, defaults to `False`):
            Whether to re-encode clips, so that they start and end exactly with their segments. By default, clips are
            copied from the preceding key frame, which is faster.
        on_error (`str`, *optional*, defaults to `"raise"`):
            Handling of a missing video or a failed cut: `"raise"` raises the error, and `"return"` yields it instead
            of the clip, as a dict with `"video"`, `"error"` (name of the error) and `"reason"` (its message).

    Yields:
        [`Clip`] or `dict`: Written clip, or the error of a failed cut.

    Raises:
        OSError: If a video is missing, or the folder is not writable.
        VideoReadError: If a video is unreadable, or cannot be cut into its container.
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
    """Create an empty file with a unique name, to prevent conflicts with concurrent and earlier runs."""
    number = 1
    while True:
        path = folder / f"{name}{f'_{number}' if number > 1 else ''}{extension}"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path
