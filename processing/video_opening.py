"""
A video file: opening it, what opening and reading may cost, and what is known of it without decoding it as a whole.
The only place that imports PyAV for reading.

Time is what the packets and frames carry: `pts * time_base`, minus the first frame's. Neither the number of frames nor
the average rate that a container reports is used: both are missing or wrong in real files.
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


# In `try`, or transformers asks for it before it loads code from the Hub. The other modules import `av` from here.
try:
    import av
    import av.error
    import av.video.reformatter
    from av.stream import Disposition
except ImportError as error:
    raise ImportError("Reading videos needs PyAV, which is not installed; run `pip install av`.") from error

# A playlist is a file that has others opened, here or on the network.
NO_PLAYLISTS = ",".join(sorted(av.formats_available - {"concat", "dash", "hls", "imf", "rtsp", "sdp"}))
# file://, s3:// and so on, also as `Path` leaves them; a drive of Windows has one letter.
OTHER_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


@dataclass(frozen=True)
class ReadLimits:
    """
    What reading a video may cost, as a guard against files that lie or come from strangers.

    FFmpeg makes room for what a file's tables claim before anything can be checked: a file of 3 kB took 1.5 GB. Who
    reads strangers' files sets a limit of memory for the process too.

    Args:
        timeout_seconds (`float`): Time in seconds for downloading, and again for reading. [`iterate_frames`] counts it
            anew from each frame that it yields.
        max_duration_seconds (`float`): Length of the longest video, in seconds, as [`probe`] finds it.
        max_frames (`int`): Number of frames of the longest video.
        max_pixels (`int`): Pixels of the largest frame, as it is stored.
        max_download_bytes (`int`): Size of the largest file that is downloaded from a URL.
        allow_private_addresses (`bool`): Whether to download from addresses that are not public, such as those of this
            machine and its network.
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
    """A video from a URL, in a temporary file; made by [`downloaded`]."""

    url: str
    file: BinaryIO


# A path, an http(s) URL, the bytes of a file, or a binary file object (read from its beginning).
VideoSource = str | os.PathLike | bytes | BinaryIO | DownloadedVideo


class VideoReadError(RuntimeError):
    """A video that cannot be read as asked. The message names the source, the reason, and how far reading got."""


class VideoLimitError(VideoReadError):
    """A video that would cost more than the [`ReadLimits`] allow."""


@dataclass(frozen=True)
class VideoProperties:
    """
    What is known of a video without decoding it as a whole.

    Args:
        duration_seconds (`float`): Seconds from the first frame's timestamp to the end of the last frame's display.
        start_seconds (`float`): The first frame's timestamp on the container's own clock, in seconds.
        time_base (`Fraction`): Length of one tick of the stream's timestamps, in seconds.
        height (`int`): Height of the frames as displayed, that is after rotation, in stored pixels.
        width (`int`): Width of the frames as displayed, that is after rotation, in stored pixels.
        rotation_degrees (`int`): Angle by which stored frames are turned counter-clockwise for display.
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
    Download a URL once, for the functions here to read it more than once.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): The video, as for [`read_frames`].
        limits ([`ReadLimits`], *optional*): What downloading may cost.

    Yields:
        What the functions here take as `source`: of a URL a temporary file, which is deleted at the end of the
        context; everything else as it came.

    Raises:
        `VideoReadError`: If the video cannot be downloaded; as [`VideoLimitError`] if that would cost more than the
            limits allow.
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
    Find out how long and how large a video is.

    The file is read once, with one frame decoded: only its packets tell until when the last frame is shown.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): The video: a path, an http(s) URL, the content of
            a file, or a file opened for reading bytes.
        limits ([`ReadLimits`], *optional*): What reading may cost.

    Returns:
        [`VideoProperties`]: Times in seconds, sizes as displayed.

    Raises:
        `TypeError`: If `source` is none of these.
        `FileNotFoundError`: If there is no such file.
        `VideoReadError`: If the source holds no video stream or no frame, or cannot be read; as [`VideoLimitError`] if
            it would cost more than the limits allow.
    """
    with downloaded(source, limits) as file, open_video(file, limits) as video:
        first_frame = None
        # (time, duration) of the packets, in ticks, on the clock of display and on that of decoding.
        shown: list[tuple[int, int]] = []
        decoded: list[tuple[int, int]] = []
        for packet in video.packets():
            if first_frame is None:
                first_frame = next((frame for frame in packet.decode() if frame.pts is not None), None)
            if packet.dts is not None:
                decoded.append((packet.dts, packet.duration or 0))
            # Discarded packets are those that an edit list hides.
            if packet.pts is not None and not packet.is_discard:
                shown.append((packet.pts, packet.duration or 0))
                video.reached_seconds = video.seconds_between(shown[0][0], packet.pts)
        if first_frame is None or not shown:
            raise video.error("it has no frame with a timestamp")

        duration_ticks = end_ticks(shown) - first_frame.pts
        # What the container states is a duration of decoding, which with B-frames at a variable rate can be off by
        # whole steps. It is kept where packets are missing: a cut file must show as one that ends before it should.
        stated_ticks = video.stream.duration or 0
        if decoded and end_ticks(decoded) - min(decoded)[0] < stated_ticks:
            duration_ticks = stated_ticks
        if duration_ticks <= 0:
            raise video.error("its only frame does not say how long it is shown, so the video has no duration")
        duration_seconds = float(duration_ticks * video.time_base)
        if duration_seconds > limits.max_duration_seconds:
            raise video.limit_error(f"it lasts {duration_seconds:.0f} s", "max_duration_seconds")
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
    """An opened file, its video stream, and how far reading has got, in seconds from the first frame."""

    name: str
    container: Any
    stream: Any
    time_base: Fraction
    limits: ReadLimits
    # Of `time.monotonic()`.
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
        """The packets of the video, and of other streams, from where the file stands; as many as the limits allow."""
        # Left to be collected, PyAV's generator leaks a packet.
        with closing(self.container.demux(self.stream, *other_streams)) as packets:
            while True:
                try:
                    packet = next(packets)
                except (StopIteration, IndexError):
                    # Where more streams appear on the way, PyAV may end with an IndexError, after our last packet.
                    return
                # The last packets are dummies.
                self.num_packets += packet.size > 0 and packet.stream_index == self.stream.index
                if self.num_packets > self.limits.max_frames:
                    raise self.limit_error("it has more frames", "max_frames")
                if time.monotonic() > self.deadline_seconds:
                    raise self.limit_error("reading it takes long", "timeout_seconds")
                yield packet

    def seconds_between(self, first_pts: int, pts: int) -> float:
        return float((pts - first_pts) * self.time_base)


@contextmanager
def open_video(
    source: VideoSource, limits: ReadLimits = DEFAULT_LIMITS, deadline_seconds: float | None = None
) -> Iterator[OpenVideo]:
    """
    Open the first video stream that is not a cover picture; turn PyAV's errors into [`VideoReadError`]. A URL has to
    be downloaded before.
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
        # Titles of downloaded files are in any encoding.
        with av.open(
            file, mode="r", metadata_errors="replace", options=options, timeout=limits.timeout_seconds
        ) as container:
            pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not pictures:
                kinds = sorted({s.type for s in container.streams}) or ["nothing"]
                raise _read_error(name, f"it has no video stream (found: {', '.join(kinds)})")
            # FFmpeg takes a still picture for a video of 1/25 s.
            if container.format.name == "image2" or container.format.name.endswith("_pipe"):
                raise _read_error(name, f"it is a still picture ({container.format.name}), expected a video")
            stream = next((s for s in pictures if s.codec_context is not None), None)
            if stream is None:
                raise _read_error(name, "there is no decoder for its video stream")
            size = stream.codec_context.width, stream.codec_context.height
            if size[0] * size[1] > limits.max_pixels:
                raise _limit_error(name, f"its frames are {size[0]} x {size[1]} pixels large", limits, "max_pixels")
            # Its frames may turn out larger than its header says.
            stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
            ticks = stream.time_base
            time_base = Fraction(ticks.numerator, ticks.denominator)
            video = OpenVideo(name, container, stream, time_base, limits, deadline_seconds)
            yield video
    except av.error.FFmpegError as error:
        reached_seconds = None if video is None else video.reached_seconds
        if isinstance(error, av.error.ExitError):  # PyAV stops FFmpeg so.
            raise _limit_error(name, "reading it takes long", limits, "timeout_seconds", reached_seconds) from error
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
                    "Of a file on this machine pass the path, without file://; what lies elsewhere, download first."
                )
            raise FileNotFoundError(f"There is no video file at {path}; check the folder and the extension.")
        if path.is_file() and path.stat().st_size == 0:
            raise _read_error(str(path), "it is empty")
        # With the protocol spelled out, FFmpeg takes no part of a file's name for a protocol or a pattern.
        return f"file:{path}", str(path)
    if not is_file_object(source) or isinstance(source, io.TextIOBase):
        raise TypeError(
            f"Received a video of type {type(source).__name__}, expected a path, an http(s) URL, bytes or a file "
            "opened for reading bytes; pass videos that are arrays to the video processor instead."
        )
    # The same file object is first probed and then read.
    if can_seek(source):
        source.seek(0)
    return source, str(getattr(source, "name", f"<{type(source).__name__}>"))


def is_file_object(source: Any) -> bool:
    """Whether something can be read like a file."""
    return callable(getattr(source, "read", None))


def can_seek(file: Any) -> bool:
    return hasattr(file, "seekable") and file.seekable()


def _read_error(name: str, reason: str, reached_seconds: float | None = None) -> VideoReadError:
    return VideoReadError(_message(name, reason, reached_seconds))


def _limit_error(
    name: str, what: str, limits: ReadLimits, limit: str, reached_seconds: float | None = None
) -> VideoLimitError:
    reason = f"{what}, and no more than {limit}={getattr(limits, limit)} is allowed; to allow more, pass `ReadLimits`"
    return VideoLimitError(_message(name, reason, reached_seconds))


def _message(name: str, reason: str, reached_seconds: float | None) -> str:
    reached = "no frame was read" if reached_seconds is None else f"reading got to {reached_seconds:.3f} s"
    return f"Could not read the video {name}: {reason} ({reached})."


def end_ticks(packets: list[tuple[int, int]]) -> int:
    """End of the last packet's time, in ticks, from the `(time, duration)` of all packets in any order."""
    packets = sorted(packets)
    last_pts, last_duration = packets[-1]
    if not last_duration and len(packets) > 1:
        last_duration = last_pts - packets[-2][0]
    return last_pts + last_duration


def displayed_size(video: OpenVideo, frame: Any) -> tuple[int, int]:
    return (frame.width, frame.height) if quarter_turns(video, frame) % 2 else (frame.height, frame.width)


def quarter_turns(video: OpenVideo, frame: Any) -> int:
    """Counter-clockwise quarter turns from the stored to the displayed frame, which is also what `np.rot90` takes."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise video.error(f"it is to be shown rotated by {frame.rotation} degrees, which is no multiple of 90")
    return turns
