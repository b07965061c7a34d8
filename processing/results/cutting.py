"""Cutting a part out of a video as a copy of its packets: nothing is decoded, and nothing encoded anew."""

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
    Copy a part of a video into a file of its own, pictures and sound, without encoding anything anew.

    A copy can only begin with a key frame: it begins with the last one at or before the start, so often earlier than
    asked for. It ends with the last frame that is shown before the end, or a few frames later if that one is stored as
    a difference to them. The file is gone through three times, with a few packets in memory at a time.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): The video, as for [`read_frames`].
        start_seconds (`float`): Start, in seconds from the first frame.
        end_seconds (`float`): End, in seconds from the first frame; one after the video's own means that.
        path (`str` or `os.PathLike`): Where the copy goes; the extension picks the container. A file there is
            replaced.
        limits ([`ReadLimits`], *optional*): What reading may cost.

    Returns:
        `tuple[float, float]`: Start and end of what was copied, in seconds from the source's first frame. The start is
        negative if the key frame is one before the first frame that the source itself hides.

    Raises:
        `ValueError`: If not `0 <= start_seconds <= end_seconds`, or if `path` is the source itself.
        `TypeError`: If `source` is none of these.
        `FileNotFoundError`: If there is no such file.
        `VideoReadError`: If the source cannot be read, ends before the start, or has no key frame to begin with; or if
            the copy cannot be written, as when its container does not hold the source's codecs. As
            [`VideoLimitError`] if reading would cost more than the limits allow.
    """
    path = Path(path)
    check_cut(source, start_seconds, end_seconds, path)
    with downloaded(source, limits) as file:
        return _cut(file, start_seconds, end_seconds, path, limits)


def check_cut(source: VideoSource, start_seconds: float, end_seconds: float, path: Path) -> None:
    """
    Raises:
        `ValueError`: If not `0 <= start_seconds <= end_seconds`, or if `path` is the source itself.
    """
    if not 0 <= start_seconds <= end_seconds < math.inf:
        raise ValueError(f"Received a cut from {start_seconds} to {end_seconds} s, expected 0 <= start <= end.")
    if isinstance(source, str | os.PathLike) and path.exists() and path.resolve() == Path(source).resolve():
        raise ValueError(f"The cut would replace {path}, which it is cut from; choose another name.")


@contextmanager
def new_file(path: Path, video_name: str, how: str) -> Iterator[Any]:
    """
    A container to write a cut into, `how` ("copied" or "encoded"). A failure leaves no half a file, and an earlier one
    as it was.

    Raises:
        `VideoReadError`: If it cannot be written.
    """
    partial = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        with av.open(f"file:{partial}", mode="w") as output:
            yield output
        partial.replace(path)
    except (av.error.FFmpegError, ValueError) as error:
        # From PyAV as from FFmpeg, a container that has no place for a codec comes as a ValueError.
        why = f"its streams cannot be {how} into such a file: " if isinstance(error, ValueError) else ""
        raise VideoReadError(f"Could not cut the video {video_name} into {path}: {why}{error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _cut(
    source: VideoSource, start_seconds: float, end_seconds: float, path: Path, limits: ReadLimits
) -> tuple[float, float]:
    """As [`cut_video`], of a source that can be opened several times."""
    properties = probe(source, limits)
    first_pts = round(properties.start_seconds / properties.time_base)
    start_pts = first_pts + round(start_seconds / properties.time_base)
    # However short the part is, the frame that is shown at its start belongs to it.
    end_pts = max(first_pts + round(end_seconds / properties.time_base), start_pts + 1)

    with open_video(source, limits) as video:
        if start_seconds > properties.duration_seconds:
            raise ends_before(video, properties.duration_seconds, start_seconds)
        key_pts = None
        for packet in video.packets():
            # Nothing is shown before it is decoded, so what comes from here on is shown after the start.
            if packet.dts is not None and packet.dts > start_pts:
                break
            if packet.is_keyframe and packet.pts is not None and packet.pts <= start_pts:
                key_pts = packet.pts
        if key_pts is None:
            raise video.error(f"it has no key frame at or before {start_seconds:.3f} s to begin a cut with")

    with open_video(source, limits) as video, new_file(path, video.name, "copied") as output:
        shown = _copy_packets(video, output, key_pts, end_pts)
    return (
        float((key_pts - first_pts) * properties.time_base),
        float((end_ticks(shown) - first_pts) * properties.time_base),
    )


def ends_before(video: OpenVideo, duration_seconds: float, start_seconds: float) -> VideoReadError:
    return video.error(f"it ends at {duration_seconds:.3f} s, before the cut from {start_seconds:.3f} s")


def _copy_packets(video: OpenVideo, output: Any, key_pts: int, end_pts: int) -> list[tuple[int, int]]:
    """Copy from a key frame to an end, in ticks; returns `(pts, duration)`, in ticks, of the copied frames."""
    # A stream without a decoder, such as some phones' spatial sound, cannot be described to the output either.
    sounds = [stream for stream in video.container.streams.audio if stream.codec_context is not None]
    outputs, parts = {}, {}
    for stream in (video.stream, *sounds):
        # Opaque: what is decoded by dav1d, say, need not be encoded by it.
        outputs[stream.index] = output.add_stream_from_template(stream, opaque=True)
        parts[stream.index] = [round(pts * video.time_base / stream.time_base) for pts in (key_pts, end_pts)]
    offsets = {index: begin for index, (begin, _) in parts.items()}
    shown: list[tuple[int, int]] = []
    held: list[Any] = []
    started = False
    for packet in video.packets(*sounds):
        index = packet.stream_index
        # No time: the end of a stream. Not in parts: the part of this stream is over.
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
            # What follows a key frame but is shown before it is a difference to frames that are left out.
            if started and packet.pts >= key_pts:
                held.append(packet)
            # A frame after the end is copied only if one before the end follows, which may be a difference to it; and
            # with it, for the picture not to jump, all that are shown before it.
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
