"""
Opening of video files, resource limits, and video properties without a full decode. For reading, only this module
imports PyAV.

Times come from the timestamps of packets and frames: `pts * time_base`, relative to the first frame. The reader
ignores the frame count and the average rate of the container, because both are missing or wrong in real files.
"""

import io
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from .video_url import VideoFetchError, VideoFetchLimitError, fetch_video, is_url, redact_url


# The `try` keeps transformers from requiring `av` before it loads code from the Hub. Other modules import `av` here.
try:
    import av
    import av.error
    import av.video.reformatter
    from av.stream import Disposition
except ImportError as error:
    raise ImportError("Reading videos needs PyAV, which is not installed; run `pip install av`.") from error

# A playlist makes FFmpeg open other files, locally or on the network.
NO_PLAYLISTS = ",".join(sorted(av.formats_available - {"concat", "dash", "hls", "imf", "rtsp", "sdp"}))
# Matches file://, s3:// etc., including the form after `Path` (file:/). A Windows drive has only one letter.
OTHER_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


@dataclass(frozen=True)
class ReadLimits:
    """
    Resource limits for reading a video, as protection against corrupt or untrusted files.

    FFmpeg allocates memory for the sizes stated in a file before any check is possible. A file of 3 kB allocated
    1.5 GB. For untrusted files, also set a memory limit for the process.

    Args:
        timeout_seconds (`float`): Maximum time in seconds for the download, and again for reading. [`iterate_frames`]
            restarts the time at each frame that it yields.
        max_duration_seconds (`float`): Maximum duration in seconds, as returned by [`probe`].
        max_frames (`int`): Maximum number of frames.
        max_pixels (`int`): Maximum number of pixels per frame, as stored.
        max_download_bytes (`int`): Maximum size of a file downloaded from a URL.
        allow_private_addresses (`bool`): Whether to download from private addresses, such as addresses of this machine
            and its network.
    """

    timeout_seconds: float = 600.0
    max_duration_seconds: float = 24 * 3600.0
    max_frames: int = 24 * 3600 * 60
    max_pixels: int = 8192 * 8192
    max_download_bytes: int = 4 * 2**30
    allow_private_addresses: bool = False


DEFAULT_LIMITS = ReadLimits()


@dataclass(frozen=True)
class DownloadedVideo:
    """Temporary file with a video downloaded from a URL by [`downloaded`]."""

    url: str
    file: BinaryIO


# A path, an http(s) URL, the bytes of a file, or a binary file object (read from the start).
VideoSource = str | os.PathLike | bytes | BinaryIO | DownloadedVideo


class VideoReadError(RuntimeError):
    """Error of an unreadable video. The message contains the source, the reason, and the last time read."""


class VideoLimitError(VideoReadError):
    """Error of a video that exceeds the [`ReadLimits`]."""


@dataclass(frozen=True)
class VideoProperties:
    """
    Properties of a video, available without a full decode.

    Args:
        duration_seconds (`float`): Time in seconds from the start of the first frame to the end of the last frame.
        start_seconds (`float`): Timestamp of the first frame on the container's clock, in seconds.
        time_base (`Fraction`): Length of one tick of the stream's timestamps, in seconds.
        height (`int`): Height of the displayed frames (after rotation), in stored pixels.
        width (`int`): Width of the displayed frames (after rotation), in stored pixels.
        rotation_degrees (`int`): Counter-clockwise rotation from stored to displayed frames, in degrees.
    """

    duration_seconds: float
    start_seconds: float
    time_base: Fraction
    height: int
    width: int
    rotation_degrees: int


@contextmanager
def downloaded(source: VideoSource, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[VideoSource]:
    """
    Download a URL once, so that several functions of this module can read it.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): Video, as for [`read_frames`].
        limits ([`ReadLimits`], *optional*): Limits of the download.

    Yields:
        Value for the argument `source` of the functions in this module. A URL yields a temporary file, deleted at the
        end of the context. Any other source is yielded unchanged.

    Raises:
        `VideoReadError`: If the download fails; [`VideoLimitError`] if it exceeds the limits.
    """
    if not (isinstance(source, str) and is_url(source)):
        yield source
        return
    name = redact_url(source)
    try:
        file = fetch_video(source, limits.max_download_bytes, limits.timeout_seconds, limits.allow_private_addresses)
    except (VideoFetchError, ValueError) as error:
        kind = VideoLimitError if isinstance(error, VideoFetchLimitError) else VideoReadError
        raise kind(_message(name, str(error).rstrip("."), None)) from error
    with file:
        yield DownloadedVideo(name, file)


def probe(source: VideoSource, limits: ReadLimits = DEFAULT_LIMITS) -> VideoProperties:
    """
    Return the duration and size of a video.

    The function reads all packets once, because only the packets give the end of the last frame. It decodes only the
    first frame.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): A path, an http(s) URL, the content of a file, or
            a file opened for reading bytes.
        limits ([`ReadLimits`], *optional*): Limits of reading.

    Returns:
        [`VideoProperties`]: Times in seconds, sizes as displayed.

    Raises:
        `TypeError`: If `source` has another type.
        `FileNotFoundError`: If the file does not exist.
        `VideoReadError`: If the source has no video stream or no frame, or is unreadable; [`VideoLimitError`] if it
            exceeds the limits.
    """
    with downloaded(source, limits) as file, open_video(file, limits) as video:
        first_frame = None
        # (time, duration) of the packets in ticks: presentation times and decoding times.
        shown: list[tuple[int, int]] = []
        decoded: list[tuple[int, int]] = []
        for packet in video.packets():
            if first_frame is None:
                first_frame = next((frame for frame in packet.decode() if frame.pts is not None), None)
            if packet.dts is not None:
                decoded.append((packet.dts, packet.duration or 0))
            # An edit list marks hidden packets as discarded.
            if packet.pts is not None and not packet.is_discard:
                shown.append((packet.pts, packet.duration or 0))
                video.reached_seconds = video.seconds_between(shown[0][0], packet.pts)
        if first_frame is None or not shown:
            raise video.error("it has no frame with a timestamp")

        duration_ticks = end_ticks(shown) - first_frame.pts
        # The container states the decoding duration. With B-frames at a variable rate, it can differ by whole steps.
        # If packets are missing, the stated duration is used, so that reading detects the truncated file.
        stated_ticks = video.stream.duration or 0
        if decoded and end_ticks(decoded) - min(decoded)[0] < stated_ticks:
            duration_ticks = stated_ticks
        if duration_ticks <= 0:
            raise video.error("its only frame has no duration, so the video has no duration")
        duration_seconds = float(duration_ticks * video.time_base)
        if duration_seconds > limits.max_duration_seconds:
            raise video.limit_error(f"its duration is {duration_seconds:.0f} s", "max_duration_seconds")
        height, width = displayed_size(video, first_frame)
        return VideoProperties(
            duration_seconds=duration_seconds,
            start_seconds=float(first_frame.pts * video.time_base),
            time_base=video.time_base,
            height=height,
            width=width,
            rotation_degrees=first_frame.rotation,
        )


@dataclass
class OpenVideo:
    """Opened file, its video stream, and the last time read, in seconds from the first frame."""

    name: str
    container: Any
    stream: Any
    time_base: Fraction
    limits: ReadLimits
    # Value of `time.monotonic()`.
    deadline_seconds: float
    num_packets: int = 0
    reached_seconds: float | None = None
    # Height and width of the first frame.
    displayed_size: tuple[int, int] = (0, 0)

    def error(self, reason: str) -> VideoReadError:
        return _read_error(self.name, reason, self.reached_seconds)

    def limit_error(self, what: str, limit: str) -> VideoLimitError:
        return _limit_error(self.name, what, self.limits, limit, self.reached_seconds)

    def packets(self, *other_streams: Any) -> Iterator[Any]:
        """Yield the packets of the video and of other streams from the current position, within the limits."""
        # Without an explicit close, PyAV's generator leaks a packet.
        with closing(self.container.demux(self.stream, *other_streams)) as packets:
            while True:
                try:
                    packet = next(packets)
                except (StopIteration, IndexError):
                    # If new streams appear during reading, PyAV may raise an IndexError after our last packet.
                    return
                # The last packets are empty.
                self.num_packets += packet.size > 0 and packet.stream_index == self.stream.index
                if self.num_packets > self.limits.max_frames:
                    raise self.limit_error("it has too many frames", "max_frames")
                if time.monotonic() > self.deadline_seconds:
                    raise self.limit_error("reading takes too long", "timeout_seconds")
                yield packet

    def seconds_between(self, first_pts: int, pts: int) -> float:
        return float((pts - first_pts) * self.time_base)


@contextmanager
def open_video(
    source: VideoSource, limits: ReadLimits = DEFAULT_LIMITS, deadline_seconds: float | None = None
) -> Iterator[OpenVideo]:
    """
    Open the first video stream that is not a cover picture, and convert PyAV's errors to [`VideoReadError`]. Download
    a URL first.
    """
    file, name = _file_and_name(source)
    if deadline_seconds is None:
        deadline_seconds = time.monotonic() + limits.timeout_seconds
    video = None
    options = {
        "max_pixels": str(limits.max_pixels),
        "format_whitelist": NO_PLAYLISTS,
        "protocol_whitelist": "file" if isinstance(file, str) else "none",
    }
    try:
        # Metadata of downloaded files may have any encoding.
        with av.open(
            file, mode="r", metadata_errors="replace", options=options, timeout=limits.timeout_seconds
        ) as container:
            pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not pictures:
                kinds = sorted({s.type for s in container.streams}) or ["nothing"]
                raise _read_error(name, f"it has no video stream (found: {', '.join(kinds)})")
            # FFmpeg opens a still picture as a video of 1/25 s.
            if container.format.name == "image2" or container.format.name.endswith("_pipe"):
                raise _read_error(name, f"it is a still picture ({container.format.name}), expected a video")
            stream = next((s for s in pictures if s.codec_context is not None), None)
            if stream is None:
                raise _read_error(name, "FFmpeg has no decoder for its video stream")
            size = stream.codec_context.width, stream.codec_context.height
            if size[0] * size[1] > limits.max_pixels:
                raise _limit_error(name, f"its frames have {size[0]} x {size[1]} pixels", limits, "max_pixels")
            # Frames may be larger than the header states.
            stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
            ticks = stream.time_base
            time_base = Fraction(ticks.numerator, ticks.denominator)
            video = OpenVideo(name, container, stream, time_base, limits, deadline_seconds)
            yield video
    except av.error.FFmpegError as error:
        reached_seconds = None if video is None else video.reached_seconds
        if isinstance(error, av.error.ExitError):  # PyAV interrupts FFmpeg with this error.
            raise _limit_error(name, "reading takes too long", limits, "timeout_seconds", reached_seconds) from error
        raise _read_error(name, str(error), reached_seconds) from error


def _file_and_name(source: VideoSource) -> tuple[Any, str]:
    if isinstance(source, bytes):
        if not source:
            raise _read_error("<0 bytes>", "it is empty")
        return io.BytesIO(source), f"<{len(source)} bytes>"
    if isinstance(source, DownloadedVideo):
        source.file.seek(0)
        return source.file, source.url
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not os.fspath(source):
            raise FileNotFoundError("Received '' as a video; expected a path or an http(s) URL.")
        if not path.exists():
            if OTHER_ADDRESS.match(str(source)):
                raise FileNotFoundError(
                    f"Received the address {redact_url(str(source))} as a video; expected a path or an http(s) URL. "
                    "For a local file, pass the path without file://. Download a remote file first."
                )
            raise FileNotFoundError(f"There is no video file at {path}; check the folder and the extension.")
        if path.is_file() and path.stat().st_size == 0:
            raise _read_error(str(path), "it is empty")
        # With an explicit protocol, FFmpeg does not interpret parts of the file name as a protocol or a pattern.
        return f"file:{path}", str(path)
    if not is_file_object(source) or isinstance(source, io.TextIOBase):
        raise TypeError(
            f"Received a video of type {type(source).__name__}, expected a path, an http(s) URL, bytes or a file "
            "opened for reading bytes; pass arrays to the video processor instead."
        )
    # `probe` and `read_frames` share one file object.
    if can_seek(source):
        source.seek(0)
    return source, str(getattr(source, "name", f"<{type(source).__name__}>"))


def is_file_object(source: Any) -> bool:
    """Return whether an object has a `read` method."""
    return callable(getattr(source, "read", None))


def can_seek(file: Any) -> bool:
    return hasattr(file, "seekable") and file.seekable()


def _read_error(name: str, reason: str, reached_seconds: float | None = None) -> VideoReadError:
    return VideoReadError(_message(name, reason, reached_seconds))


def _limit_error(
    name: str, what: str, limits: ReadLimits, limit: str, reached_seconds: float | None = None
) -> VideoLimitError:
    reason = f"{what}, above the limit {limit}={getattr(limits, limit)}; to raise the limit, pass `ReadLimits`"
    return VideoLimitError(_message(name, reason, reached_seconds))


def _message(name: str, reason: str, reached_seconds: float | None) -> str:
    reached = "no frame was read" if reached_seconds is None else f"reading stopped at {reached_seconds:.3f} s"
    return f"Could not read the video {name}: {reason} ({reached})."


def end_ticks(packets: list[tuple[int, int]]) -> int:
    """Return the end of the last packet in ticks, from the `(time, duration)` of all packets in any order."""
    packets = sorted(packets)
    last_pts, last_duration = packets[-1]
    if not last_duration and len(packets) > 1:
        last_duration = last_pts - packets[-2][0]
    return last_pts + last_duration


def displayed_size(video: OpenVideo, frame: Any) -> tuple[int, int]:
    return (frame.width, frame.height) if quarter_turns(video, frame) % 2 else (frame.height, frame.width)


def quarter_turns(video: OpenVideo, frame: Any) -> int:
    """Return the counter-clockwise quarter turns from the stored to the displayed frame, as for `np.rot90`."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise video.error(f"its frames are rotated by {frame.rotation} degrees, expected a multiple of 90")
    return turns
