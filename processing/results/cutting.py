"""Cut a part out of a video by copying its packets, without decoding or re-encoding."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..video_opening import (
    DEFAULT_LIMITS,
    OpenVideo,
    ReadLimits,
    VideoReadError,
    VideoSource,
    av,
    downloaded,
    end_ticks,
    open_video,
    probe,
)


def cut_video(
    source: VideoSource,
    start_seconds: float,
    end_seconds: float,
    path: str | os.PathLike,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> tuple[float, float]:
    """
    Copy the pictures and sound of a part of a video into a new file, without re-encoding.

    The copy begins with the last key frame at or before the start, because playback can only begin with a key frame.
    It ends with the last frame displayed before the end. If that frame references later frames, the copy includes
    these, too. The function reads the file three times and holds only a few packets in memory.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): Video, in the same formats as [`read_frames`].
        start_seconds (`float`): Start, in seconds from the first frame.
        end_seconds (`float`): End, in seconds from the first frame. Times after the end of the video select its end.
        path (`str` or `os.PathLike`):
            Output path, whose extension selects the container. An existing file is replaced.
        limits ([`ReadLimits`], *optional*): Limits of reading the source.

    Returns:
        `tuple[float, float]`: Start and end of the copied part, in seconds from the source's first frame. The start is
        negative if the key frame precedes the first displayed frame of the source.

    Raises:
        `ValueError`: If not `0 <= start_seconds <= end_seconds`, or if `path` is the source itself.
        `TypeError`: If `source` has another type.
        `FileNotFoundError`: If the source does not exist.
        `VideoReadError`: If the source is unreadable, ends before the start, or contains no key frame before it; or if
            writing fails, such as for a container without support for the source's codecs. A
            [`VideoLimitError`] if the source exceeds the limits.
    """
    path = Path(path)
    check_cut(source, start_seconds, end_seconds, path)
    with downloaded(source, limits) as file:
        return _cut(file, start_seconds, end_seconds, path, limits)


def check_cut(source: VideoSource, start_seconds: float, end_seconds: float, path: Path) -> None:
    """
    Check the times and the output path of a cut.

    Raises:
        `ValueError`: If not `0 <= start_seconds <= end_seconds`, or if `path` is the source itself.
    """
    if not 0 <= start_seconds <= end_seconds < math.inf:
        raise ValueError(f"Received a cut from {start_seconds} to {end_seconds} s, expected 0 <= start <= end.")
    if isinstance(source, str | os.PathLike) and path.exists() and path.resolve() == Path(source).resolve():
        raise ValueError(f"The cut would replace its source {path}; choose another name.")


@contextmanager
def new_file(path: Path, video_name: str, how: str) -> Iterator[Any]:
    """
    Open a container for a cut. `how` ("copied" or "encoded") appears in the error message.

    A failure leaves no partial file, and keeps an existing file.

    Raises:
        `VideoReadError`: If writing fails.
    """
    partial = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        with av.open(f"file:{partial}", mode="w") as output:
            yield output
        partial.replace(path)
    except (av.error.FFmpegError, ValueError) as error:
        # PyAV and FFmpeg raise a ValueError for a codec that the container does not support.
        why = f"its streams cannot be {how} into this container: " if isinstance(error, ValueError) else ""
        raise VideoReadError(f"Could not cut the video {video_name} into {path}: {why}{error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _cut(
    source: VideoSource, start_seconds: float, end_seconds: float, path: Path, limits: ReadLimits
) -> tuple[float, float]:
    """Implement [`cut_video`] for a source that can be opened repeatedly."""
    properties = probe(source, limits)
    first_pts = round(properties.start_seconds / properties.time_base)
    start_pts = first_pts + round(start_seconds / properties.time_base)
    # Even the shortest part includes the frame displayed at its start.
    end_pts = max(first_pts + round(end_seconds / properties.time_base), start_pts + 1)

    with open_video(source, limits) as video:
        if start_seconds > properties.duration_seconds:
            raise ends_before(video, properties.duration_seconds, start_seconds)
        key_pts = None
        for packet in video.packets():
            # Later packets are displayed after the start, because decoding precedes display.
            if packet.dts is not None and packet.dts > start_pts:
                break
            if packet.is_keyframe and packet.pts is not None and packet.pts <= start_pts:
                key_pts = packet.pts
        if key_pts is None:
            raise video.error(f"it has no key frame at or before {start_seconds:.3f} s")

    with open_video(source, limits) as video, new_file(path, video.name, "copied") as output:
        shown = _copy_packets(video, output, key_pts, end_pts)
    return (
        float((key_pts - first_pts) * properties.time_base),
        float((end_ticks(shown) - first_pts) * properties.time_base),
    )


def ends_before(video: OpenVideo, duration_seconds: float, start_seconds: float) -> VideoReadError:
    return video.error(f"it ends at {duration_seconds:.3f} s, before the cut from {start_seconds:.3f} s")


def _copy_packets(video: OpenVideo, output: Any, key_pts: int, end_pts: int) -> list[tuple[int, int]]:
    """Copy packets from a key frame to an end and return `(pts, duration)` per copied frame, all in ticks."""
    # The output cannot describe a stream without a decoder, such as the spatial sound of some phones.
    sounds = [stream for stream in video.container.streams.audio if stream.codec_context is not None]
    outputs, parts = {}, {}
    for stream in (video.stream, *sounds):
        # `opaque`, because a decoder such as dav1d is no encoder.
        outputs[stream.index] = output.add_stream_from_template(stream, opaque=True)
        parts[stream.index] = [round(pts * video.time_base / stream.time_base) for pts in (key_pts, end_pts)]
    offsets = {index: begin for index, (begin, _) in parts.items()}
    shown: list[tuple[int, int]] = []
    held: list[Any] = []
    started = False
    for packet in video.packets(*sounds):
        index = packet.stream_index
        # A packet without a time ends its stream. `parts` lacks streams whose part is complete.
        if packet.pts is None or index not in parts:
            continue
        begin_pts, stop_pts = parts[index]
        if packet.dts is not None and packet.dts >= stop_pts:
            del parts[index]
            if not parts:
                break
            continue
        if index == video.stream.index:
            started = started or (packet.is_keyframe and packet.pts == key_pts)
            # Frames decoded after the key frame but displayed before it reference frames outside the cut.
            if started and packet.pts >= key_pts:
                held.append(packet)
            # Copy a frame after the end only if a frame before the end follows, because the latter may reference it.
            # Also copy all held frames, to prevent jumps during playback.
            ready, held = (held, []) if packet.pts < stop_pts else ([], held)
            shown += [(frame.pts, frame.duration or 0) for frame in ready]
            parts[index][1] = max([stop_pts, *(frame.pts + 1 for frame in ready)])
        else:
            ready = [packet] if begin_pts <= packet.pts < stop_pts else []
        for copied in ready:
            copied.pts -= offsets[index]
            if copied.dts is not None:
                copied.dts -= offsets[index]
            copied.stream = outputs[index]
            output.mux(copied)
    return shown
