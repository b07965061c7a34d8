"""
Reading and cutting videos: the only place of the package that imports PyAV.

Design choices:
- Time is what the frames carry. A frame's timestamp is its own `pts * time_base`, minus the first frame's; neither the
  number of frames nor the average rate that a container reports is used: both are missing or wrong in real files.
- A frame is on display from its timestamp until the next frame's.
- Nothing is made up: damage, a cut file and an instant after the end are errors, never a repeated or a skipped frame.
- Of a file whose packets say plainly what is shown when, only what the instants need is decoded: from the last key
  frame before each, without the frames on the way that no other refers to. Every frame has to come out with the time
  that its packet bears. Any other file, and one that surprises on the way, is decoded through from its start.
- Frames are scaled and converted only where an instant asks for them, in one step.
"""

import io
import math
import os
import time
import warnings
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from .video_url import VideoFetchError, VideoFetchLimitError, fetch_video, is_url, redact_url


try:
    import av
    import av.error
    from av.stream import Disposition
    from av.video.reformatter import Interpolation, VideoReformatter
except ImportError as error:
    raise ImportError("Reading videos needs PyAV, which is not installed; run `pip install av`.") from error

SMALL_FRAME_PIXELS = 256 * 256
# Without the flags, libswscale halves the chroma of what it scales to and truncates colours that it looks up: pictures
# come out 1.6 grey levels too dark on average. By number, since PyAV 17 has no names for them: SWS_FULL_CHR_H_INT and
# SWS_ACCURATE_RND.
SCALING_FLAGS = int(Interpolation.BILINEAR) | 0x2000 | 0x40000
LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
LIMITED_TO_FULL = np.rint((np.arange(256) - 16) * 255 / 219).clip(0, 255).astype(np.uint8)
# H.264 and HEVC let no more frames than this be stored before one that is shown earlier; other codecs fewer.
MAX_REORDERED_FRAMES = 16
# Their headers say where the key frames are.
INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# They have no place for times of display. If a codec's own frames do not tell them, FFmpeg counts packets instead.
FORMATS_WITHOUT_TIMES = ("avi", "asf", "mxf")
# A playlist is a file that has others opened, here or on the network.
NO_PLAYLISTS = ",".join(sorted(av.formats_available - {"concat", "dash", "hls", "imf", "rtsp", "sdp"}))
# To begin anew at a key frame, what is in the decoder has to come out first; it is quicker to decode a few frames.
MIN_SKIPPED_FRAMES = 4
MAX_TICK = 2**63 - 1
# So many packets are held at most while looking for a key frame to begin with.
MAX_QUEUED_PACKETS = 500


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
class VideoFacts:
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


def probe(source: VideoSource, limits: ReadLimits = DEFAULT_LIMITS) -> VideoFacts:
    """
    Find out how long and how large a video is.

    The file is read once, with one frame decoded: only its packets tell until when the last frame is shown.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): The video: a path, an http(s) URL, the content of
            a file, or a file opened for reading bytes.
        limits ([`ReadLimits`], *optional*): What reading may cost.

    Returns:
        [`VideoFacts`]: Times in seconds, sizes as displayed.

    Raises:
        `TypeError`: If `source` is none of these.
        `FileNotFoundError`: If there is no such file.
        `VideoReadError`: If the source holds no video stream or no frame, or cannot be read; as [`VideoLimitError`] if
            it would cost more than the limits allow.
    """
    with downloaded(source, limits) as file, _open_video(file, limits) as video:
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

        duration_ticks = _end_ticks(shown) - first_frame.pts
        # What the container states is a duration of decoding, which with B-frames at a variable rate can be off by
        # whole steps. It is kept where packets are missing: a cut file must show as one that ends before it should.
        stated_ticks = video.stream.duration or 0
        if decoded and _end_ticks(decoded) - min(decoded)[0] < stated_ticks:
            duration_ticks = stated_ticks
        if duration_ticks <= 0:
            raise video.error("its only frame does not say how long it is shown, so the video has no duration")
        duration_seconds = float(duration_ticks * video.time_base)
        if duration_seconds > limits.max_duration_seconds:
            raise video.limit_error(f"it lasts {duration_seconds:.0f} s", "max_duration_seconds")
        height, width = _displayed_size(video, first_frame)
        return VideoFacts(
            duration_seconds=duration_seconds,
            start_seconds=float(first_frame.pts * video.time_base),
            time_base=video.time_base,
            height=height,
            width=width,
            rotation_degrees=first_frame.rotation,
        )


def check_video(source: VideoSource, limits: ReadLimits = DEFAULT_LIMITS) -> None:
    """
    Decode every frame of a video, to find out whether all of it can be read.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): The video, as for [`read_frames`].
        limits ([`ReadLimits`], *optional*): What reading may cost.

    Raises:
        As [`probe`], and `VideoReadError` if a frame is damaged or the video ends before it should.
    """
    with downloaded(source, limits) as file:
        last_seconds = math.nextafter(probe(file, limits).duration_seconds, 0.0)
        with _open_video(file, limits) as video:
            for _ in video.frames_due(np.array([last_seconds])):
                pass


def read_frames(
    source: VideoSource,
    seconds: ArrayLike,
    size: tuple[int, int] | None = None,
    allow_truncated: bool = False,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> np.ndarray:
    """
    Read the frames on display at given instants.

    The frame on display is the last one whose timestamp is not after the instant. No more is decoded than the frames
    asked for need, where the file allows, and the frames are the same as if it had been decoded through from its
    start; but damage to what none of them needs goes unnoticed.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): The video: a path, an http(s) URL, the content of
            a file, or a file opened for reading bytes.
        seconds (`np.ndarray` of shape `(T,)`): Instants, in seconds from the first frame, in any order; an instant may
            occur more than once.
        size (`tuple[int, int]`, *optional*): Height and width to scale to, as displayed. Defaults to the first
            frame's.
        allow_truncated (`bool`, *optional*, defaults to `False`): Whether to return, with a warning, the frames up to
            where a video ends or breaks off before the last instant, if there is one.
        limits ([`ReadLimits`], *optional*): What reading may cost.

    Returns:
        `np.ndarray` of shape `(T, H, W, 3)`, uint8: RGB frames, upright, in the order of `seconds`; without those
        after the end of a truncated video.

    Raises:
        `ValueError`: If `seconds` is not a non-empty list of finite, non-negative times, or `size` not two positive
            integers.
        `TypeError`: If `source` is none of these.
        `FileNotFoundError`: If there is no such file.
        `VideoReadError`: If the source cannot be read, or is damaged or ends before the last instant asked for; as
            [`VideoLimitError`] if it would cost more than the limits allow.
    """
    instant_seconds = _check_instants(seconds)
    if size is not None:
        size = _check_size(size)
    order = np.argsort(instant_seconds, kind="stable")
    frames = np.empty(0, dtype=np.uint8)
    num_read = 0
    try:
        with downloaded(source, limits) as file:
            deadline_seconds = time.monotonic() + limits.timeout_seconds
            for frame in _iterate_frames(file, instant_seconds[order], size, limits, deadline_seconds):
                if not num_read:
                    frames = np.empty((len(order), *frame.shape), dtype=np.uint8)
                frames[order[num_read]] = frame
                num_read += 1
    except VideoReadError as error:
        if not allow_truncated or not num_read or isinstance(error, VideoLimitError):
            raise
        warnings.warn(f"{error} Only the first {num_read} of {len(order)} frames are there.", stacklevel=2)
        frames = frames[np.sort(order[:num_read])]
    return frames


def iterate_frames(
    source: VideoSource,
    seconds: ArrayLike,
    size: tuple[int, int] | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[np.ndarray]:
    """
    As [`read_frames`], one frame at a time and for instants in ascending order, so in the memory of a few frames.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): The video, as for [`read_frames`].
        seconds (`np.ndarray` of shape `(T,)`): Instants, in seconds from the first frame, none before the one before.
        size (`tuple[int, int]`, *optional*): Height and width to scale to, as displayed. Defaults to the first
            frame's.
        limits ([`ReadLimits`], *optional*): What reading may cost.

    Yields:
        `np.ndarray` of shape `(H, W, 3)`, uint8: The RGB frame on display at each instant, upright. Instants that fall
        on the same frame yield the same array.

    Raises:
        As [`read_frames`], and `ValueError` if the instants are not in order.
    """
    instant_seconds = _check_instants(seconds)
    if (np.diff(instant_seconds) < 0).any():
        raise ValueError("Received instants that are not in ascending order; sort them, or use `read_frames`.")
    if size is not None:
        size = _check_size(size)
    with downloaded(source, limits) as file:
        yield from _iterate_frames(file, instant_seconds, size, limits)


def _iterate_frames(
    source: VideoSource,
    instant_seconds: np.ndarray,
    size: tuple[int, int] | None,
    limits: ReadLimits,
    deadline_seconds: float | None = None,
) -> Iterator[np.ndarray]:
    """As [`iterate_frames`], up to a deadline of `time.monotonic()`; without one, each frame has the limits' time."""
    # One reformatter for all frames keeps libswscale's tables from one frame to the next.
    reformatter = VideoReformatter()
    for video, frame, num_due in _frames_due(source, instant_seconds, limits, deadline_seconds):
        rgb = _upright_rgb(video, frame, *(size or video.displayed_size), reformatter)
        for _ in range(num_due):
            yield rgb
        if deadline_seconds is None:
            video.deadline_seconds = time.monotonic() + limits.timeout_seconds


def _frames_due(
    source: VideoSource, instant_seconds: np.ndarray, limits: ReadLimits, deadline_seconds: float | None
) -> Iterator[tuple["_OpenVideo", Any, int]]:
    """The frames on display at instants in ascending order, each with its file and how many instants it serves."""
    num_served = 0
    # A stream that cannot go back is read through at once.
    if not is_file_object(source) or _can_seek(source):
        with _open_video(source, limits, deadline_seconds) as video:
            try:
                for frame, num_due in _PacketReader(video).frames_due(instant_seconds):
                    yield video, frame, num_due
                    num_served += num_due
                return
            except (_IrregularVideo, av.error.FFmpegError):
                pass  # Whether it is damaged, and from where on, is for reading it through to say.
    with _open_video(source, limits, deadline_seconds) as video:
        for frame, num_due in video.frames_due(instant_seconds[num_served:]):
            yield video, frame, num_due


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Scale frames that are already in memory, with the filter of [`read_frames`].

    Args:
        frames (`np.ndarray` of shape `(T, H, W, 3)`, uint8): RGB frames.
        size (`tuple[int, int]`): Height and width to scale to.

    Returns:
        `np.ndarray` of shape `(T, size[0], size[1], 3)`, uint8: The scaled frames.

    Raises:
        `ValueError`: If the frames have another shape or dtype, or `size` is not two positive integers.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"Received frames of shape {frames.shape} and dtype {frames.dtype}, expected (T, H, W, 3) and uint8; move "
            "the channels last, and scale values to 0..255."
        )
    height, width = _check_size(size)
    resized = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    reformatter = VideoReformatter()
    for index, frame in enumerate(frames):
        source_frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
        resized[index] = _reformat(reformatter, source_frame, height, width)
    return resized


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
    if not 0 <= start_seconds <= end_seconds < math.inf:
        raise ValueError(f"Received a cut from {start_seconds} to {end_seconds} s, expected 0 <= start <= end.")
    path = Path(path)
    if isinstance(source, str | os.PathLike) and path.exists() and path.resolve() == Path(source).resolve():
        raise ValueError(f"The cut would replace {path}, which it is cut from; choose another name.")
    with downloaded(source, limits) as file:
        return _cut(file, start_seconds, end_seconds, path, limits)


def _cut(
    source: VideoSource, start_seconds: float, end_seconds: float, path: Path, limits: ReadLimits
) -> tuple[float, float]:
    """As [`cut_video`], of a source that can be opened several times."""
    facts = probe(source, limits)
    first_pts = round(facts.start_seconds / facts.time_base)
    start_pts = first_pts + round(start_seconds / facts.time_base)
    # However short the part is, the frame that is shown at its start belongs to it.
    end_pts = max(first_pts + round(end_seconds / facts.time_base), start_pts + 1)

    with _open_video(source, limits) as video:
        if start_seconds > facts.duration_seconds:
            raise video.error(f"it ends at {facts.duration_seconds:.3f} s, before the cut from {start_seconds:.3f} s")
        key_pts = None
        for packet in video.packets():
            # Nothing is shown before it is decoded, so what comes from here on is shown after the start.
            if packet.dts is not None and packet.dts > start_pts:
                break
            if packet.is_keyframe and packet.pts is not None and packet.pts <= start_pts:
                key_pts = packet.pts
        if key_pts is None:
            raise video.error(f"it has no key frame at or before {start_seconds:.3f} s to begin a cut with")

    # A failure leaves no half a file, and an earlier one as it was.
    partial = path.with_name(f"{path.stem}.part{path.suffix}")
    with _open_video(source, limits) as video:
        try:
            with av.open(f"file:{partial}", mode="w") as output:
                shown = _copy_packets(video, output, key_pts, end_pts)
            partial.replace(path)
        except (av.error.FFmpegError, ValueError) as error:
            # From PyAV as from FFmpeg, a container that has no place for a codec comes as a ValueError.
            why = "its streams cannot be copied into such a file: " if isinstance(error, ValueError) else ""
            raise VideoReadError(f"Could not cut the video {video.name} into {path}: {why}{error}.") from error
        finally:
            partial.unlink(missing_ok=True)
    return (
        float((key_pts - first_pts) * facts.time_base),
        float((_end_ticks(shown) - first_pts) * facts.time_base),
    )


def _copy_packets(video: "_OpenVideo", output: Any, key_pts: int, end_pts: int) -> list[tuple[int, int]]:
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


@dataclass
class _OpenVideo:
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

    def frames_due(self, instant_seconds: np.ndarray) -> Iterator[tuple[Any, int]]:
        """Decode all frames from the first one on; yield those on display, with the number of instants they serve."""
        num_served = 0
        for frame, until_seconds in self._displayed_frames():
            # Instants before the next frame's timestamp fall on this frame; at that very moment the next one is shown.
            num_due = int(np.searchsorted(instant_seconds, until_seconds, side="left"))
            if num_due > num_served:
                yield frame, num_due - num_served
                num_served = num_due
            if num_served == len(instant_seconds):
                return
        if self.reached_seconds is None:
            raise self.error("it has no frame with a timestamp")
        raise self.error(
            f"no frame is shown any more at {instant_seconds[-1]:.3f} s, which was asked for; the file is cut short, "
            "or the times belong to a longer version of it"
        )

    def start_decoding(self) -> None:
        """Several frames are decoded at once where the codec allows; they still come out in presentation order."""
        codec = self.stream.codec_context
        # On small frames, starting the threads takes longer than they save.
        codec.thread_type = "AUTO" if codec.width * codec.height > SMALL_FRAME_PIXELS else "NONE"

    def may_lack_times(self) -> bool:
        """Whether times that ascend from packet to packet are no times of display."""
        return self.container.format.name in FORMATS_WITHOUT_TIMES and self.stream.codec_context.has_b_frames

    def _displayed_frames(self) -> Iterator[tuple[Any, float]]:
        """Yield each frame with the end of its display, in seconds from the first frame, in presentation order."""
        self.start_decoding()
        shown = None
        first_pts = 0
        step_ticks = 1
        for frame in self._frames_with_times():
            # A frame patched up by the decoder is damage as much as one that it refuses; so are those that follow.
            if frame.is_corrupt:
                raise self.error("a frame is damaged")
            # A frame that is late, or carries no time at all, has no moment of its own on display; players drop it.
            # That hides nothing: should all later times go back, the video ends where they did.
            if frame.pts is None or (shown is not None and frame.pts < shown.pts):
                continue
            if shown is None:
                first_pts = frame.pts
                self.displayed_size = _displayed_size(self, frame)
            else:
                yield shown, self.seconds_between(first_pts, frame.pts)
                step_ticks = frame.pts - shown.pts or step_ticks
            shown = frame
            self.reached_seconds = self.seconds_between(first_pts, frame.pts)
        if shown is not None:
            # The last frame is shown for its own duration, or as long as the one before it. One such step more is
            # allowed, since containers round their durations.
            step_ticks = shown.duration or step_ticks
            yield shown, self.seconds_between(first_pts, shown.pts + 2 * step_ticks)

    def _frames_with_times(self) -> Iterator[Any]:
        """All frames in the decoder's order. Times of decoding are given to the frames in that order too."""
        packets = self.packets()
        first = list(islice(packets, MAX_REORDERED_FRAMES + 1)) if self.may_lack_times() else []
        times = [packet.pts for packet in first if packet.size]
        lacks_times = bool(times) and None not in times and times == sorted(times)
        times_of_decoding: deque[int | None] = deque()
        for packet in chain(first, packets):
            if lacks_times and packet.size:
                times_of_decoding.append(packet.pts)
            for frame in packet.decode():
                if lacks_times:
                    frame.pts = times_of_decoding.popleft() if times_of_decoding else None
                yield frame

    def seconds_between(self, first_pts: int, pts: int) -> float:
        return float((pts - first_pts) * self.time_base)


class _IrregularVideo(Exception):
    """What comes out of a file is not what its packets announced, or they do not announce enough."""


class _PacketReader:
    """
    Reads the frames on display at given instants, and decodes no more than these need.

    Packets are read ahead of the decoder until their times tell which frame is on display. Those before the last key
    frame that it can be decoded from are passed over, by a jump in the file where its index allows.

    Args:
        video (`_OpenVideo`): The video, of which nothing has been read.
    """

    def __init__(self, video: _OpenVideo):
        video.start_decoding()
        self._video = video
        self._codec = video.stream.codec_context
        if video.container.format.name == "matroska,webm":
            # It reads its index at the first jump.
            video.container.seek(video.stream.start_time or 0, stream=video.stream)
        self._packets = video.packets()
        # Read, but not decoded; and whether packets before them were passed over.
        self._queue: deque[Any] = deque()
        self._follows_gap = False
        # Of the packets read since the last jump: when they are shown, in order.
        self._times: list[int] = []
        self._last_packet: Any = None
        self._is_reordered = False
        self._first_pts = 0
        # Instants, in ticks: the latest timestamp that a frame on display can have.
        self._instants: list[int] = []
        # Decoded frames that some instant needs, in order.
        self._decoded: deque[Any] = deque()
        # (time, number of instants) of the frames that are to come out next.
        self._due: deque[tuple[int, int]] = deque()

    def frames_due(self, instant_seconds: np.ndarray) -> Iterator[tuple[Any, int]]:
        """
        Yield the frames on display at instants in ascending order, with the number of instants that each serves.

        Raises:
            _IrregularVideo: If the file has to be read through instead, from the first instant on that was not served.
        """
        self._decode_first_frame()
        self._instants = [self._last_tick(seconds) for seconds in instant_seconds]
        num_found = 0
        while num_found < len(self._instants):
            shown_pts = self._find_shown(self._instants[num_found])
            num_due = bisect_left(self._instants, self._end_of(shown_pts)) - num_found
            self._due.append((shown_pts, num_due))
            num_found += num_due
            yield from self._come_out()
            # It may be in the decoder already, which gets packets in another order than that of display.
            if any(packet.pts == shown_pts for packet in self._queue):
                fed_pts = None
                while fed_pts != shown_pts:
                    fed_pts = self._feed(self._queue.popleft())
                    yield from self._come_out()
        self._empty_decoder()
        yield from self._come_out()
        if self._due:
            raise _IrregularVideo

    def _decode_first_frame(self) -> None:
        """Find out the timestamp of the first frame, from which instants count."""
        while not self._decoded and self._read_packet():
            self._take(self._queue.popleft().decode())
        if not self._decoded:
            self._empty_decoder()
        self._read_ahead(self._times[0] if self._times else 0)
        # What is shown first has to be known from the packets as well.
        if not self._decoded or self._decoded[0].pts != self._times[0]:
            raise _IrregularVideo
        if self._video.may_lack_times() and not self._is_reordered:
            raise _IrregularVideo
        self._video.displayed_size = _displayed_size(self._video, self._decoded[0])
        self._first_pts = self._times[0]

    def _last_tick(self, seconds: float) -> int:
        """The latest timestamp that is not after an instant."""
        tick = self._first_pts + math.floor(Fraction(seconds) / self._video.time_base)
        # As floats they may compare differently, and that comparison counts.
        while self._video.seconds_between(self._first_pts, tick + 1) <= seconds:
            tick += 1
        while self._video.seconds_between(self._first_pts, tick) > seconds:
            tick -= 1
        return min(tick, MAX_TICK)

    def _find_shown(self, instant: int) -> int:
        """The timestamp of the frame on display at an instant. What it is decoded from is read but not decoded."""
        self._jump_towards(instant)
        self._read_ahead(instant)
        place = bisect_right(self._times, instant)
        if not place:
            raise _IrregularVideo
        shown_pts = self._times[place - 1]
        if place == len(self._times):
            # Of how long the last frame is shown, only that it is so long is taken from here.
            step = self._last_packet.duration or (shown_pts - self._times[-2] if place > 1 else 0)
            if self._instants[-1] >= shown_pts + step:
                raise _IrregularVideo
        return shown_pts

    def _jump_towards(self, instant: int) -> None:
        """Go to the last key frame of the index that is shown before an instant, unless it is read already."""
        if self._video.container.format.name not in INDEXED_FORMATS or self._last_packet.dts is None:
            return
        entries = self._video.stream.index_entries
        place = entries.search_timestamp(instant)
        if place < 0 or entries[place].timestamp <= self._last_packet.dts:
            return
        self._empty_decoder()
        # The index has the times of decoding: the key frame may turn out to be shown after the instant.
        while place >= 0:
            self._video.container.seek(entries[place].timestamp, stream=self._video.stream)
            self._packets = self._video.packets()
            self._queue.clear()
            self._times.clear()
            if not self._read_packet() or not self._queue[0].is_keyframe:
                break
            if self._queue[0].pts <= instant:
                return
            place = entries.search_timestamp(entries[place].timestamp - 1)
        raise _IrregularVideo

    def _read_ahead(self, instant: int) -> None:
        """Read until no packet can follow that is shown up to an instant."""
        for place in reversed(range(len(self._queue))):
            if self._pass_over(place, instant):
                break
        while len(self._times) - bisect_right(self._times, instant) <= MAX_REORDERED_FRAMES and self._read_packet():
            if not self._pass_over(len(self._queue) - 1, instant) and len(self._queue) > MAX_QUEUED_PACKETS:
                self._feed(self._queue.popleft())

    def _pass_over(self, place: int, instant: int) -> bool:
        """Drop the packets before one in the queue, if what is on display then can be decoded from it."""
        packet = self._queue[place]
        if not packet.is_keyframe or packet.is_discard or packet.pts > instant:
            return False
        if place >= MIN_SKIPPED_FRAMES:
            for _ in range(place):
                self._queue.popleft()
            self._follows_gap = True
        return True

    def _read_packet(self) -> bool:
        """Read a packet into the queue; whether there was one."""
        packet = next(self._packets, None)
        # The last packets are dummies, without a time.
        if packet is None or not packet.size:
            return False
        # What follows a damaged packet may be missing, and be what is on display. (FFmpeg also marks packets where
        # transport streams were joined; so it is for the decoder to say whether a frame is damaged.)
        if packet.pts is None or packet.is_corrupt:
            raise _IrregularVideo
        self._queue.append(packet)
        self._last_packet = packet
        # Discarded packets are those that an edit list hides.
        if not packet.is_discard:
            place = bisect_left(self._times, packet.pts)
            is_known = place < len(self._times) and self._times[place] == packet.pts
            if is_known or len(self._times) - place > MAX_REORDERED_FRAMES:
                raise _IrregularVideo
            self._is_reordered |= place < len(self._times)
            self._times.insert(place, packet.pts)
        return True

    def _end_of(self, pts: int) -> float:
        """When the frame after another is shown, as far as that is read."""
        place = bisect_right(self._times, pts)
        return self._times[place] if place < len(self._times) else math.inf

    def _is_wanted(self, pts: int) -> bool:
        return bisect_left(self._instants, pts) < bisect_left(self._instants, self._end_of(pts))

    def _feed(self, packet: Any) -> int:
        """Decode a packet, unless it is of a frame that neither an instant nor another frame needs."""
        if self._follows_gap:
            # The decoder would take what it still holds for what the packets now refer to.
            self._empty_decoder()
            self._follows_gap = False
        self._codec.skip_frame = "DEFAULT" if self._is_wanted(packet.pts) else "NONREF"
        self._take(packet.decode())
        return packet.pts

    def _empty_decoder(self) -> None:
        self._take(self._codec.decode(None))
        self._codec.flush_buffers()

    def _take(self, frames: list[Any]) -> None:
        for frame in frames:
            if frame.pts is None or frame.is_corrupt:
                raise _IrregularVideo
            if not self._instants or self._is_wanted(frame.pts):
                self._decoded.append(frame)

    def _come_out(self) -> Iterator[tuple[Any, int]]:
        """Yield those of the decoded frames that are due."""
        while self._decoded and self._due:
            frame = self._decoded.popleft()
            shown_pts, num_due = self._due[0]
            if frame.pts > shown_pts:
                raise _IrregularVideo
            if frame.pts == shown_pts:
                self._due.popleft()
                self._video.reached_seconds = self._video.seconds_between(self._first_pts, shown_pts)
                yield frame, num_due


@contextmanager
def _open_video(
    source: VideoSource, limits: ReadLimits = DEFAULT_LIMITS, deadline_seconds: float | None = None
) -> Iterator[_OpenVideo]:
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
            video = _OpenVideo(name, container, stream, time_base, limits, deadline_seconds)
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
        if not path.exists():
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
    if _can_seek(source):
        source.seek(0)
    return source, str(getattr(source, "name", f"<{type(source).__name__}>"))


def is_file_object(source: Any) -> bool:
    """Whether something can be read like a file."""
    return callable(getattr(source, "read", None))


def _can_seek(file: Any) -> bool:
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


def _end_ticks(packets: list[tuple[int, int]]) -> int:
    """End of the last packet's time, in ticks, from the `(time, duration)` of all packets in any order."""
    packets = sorted(packets)
    last_pts, last_duration = packets[-1]
    if not last_duration and len(packets) > 1:
        last_duration = last_pts - packets[-2][0]
    return last_pts + last_duration


def _displayed_size(video: _OpenVideo, frame: Any) -> tuple[int, int]:
    return (frame.width, frame.height) if _quarter_turns(video, frame) % 2 else (frame.height, frame.width)


def _quarter_turns(video: _OpenVideo, frame: Any) -> int:
    """Counter-clockwise quarter turns from the stored to the displayed frame, which is also what `np.rot90` takes."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise video.error(f"it is to be shown rotated by {frame.rotation} degrees, which is no multiple of 90")
    return turns


def _upright_rgb(video: _OpenVideo, frame: Any, height: int, width: int, reformatter: VideoReformatter) -> np.ndarray:
    """A decoded frame as `(height, width, 3)` RGB, upright. Scaled first, since that leaves less to turn."""
    turns = _quarter_turns(video, frame)
    if turns % 2:
        height, width = width, height
    try:
        rgb = _reformat(reformatter, frame, height, width)
    except av.error.FFmpegError as error:
        kind = f"pixel format {frame.format.name}, matrix {int(frame.colorspace)} of ITU-T H.273"
        raise video.error(f"its colours cannot be converted to RGB ({kind})") from error
    return np.rot90(rgb, turns)


def _reformat(reformatter: VideoReformatter, frame: Any, height: int, width: int) -> np.ndarray:
    # By default libswscale hands every frame to a pool of threads, which takes longer than scaling it.
    scaled = reformatter.reformat(
        frame, width=width, height=height, format="rgb24", interpolation=SCALING_FLAGS, threads=1
    )
    rgb = scaled.to_ndarray()
    # libswscale takes grey for full range, whatever the file says.
    if frame.format.name.startswith(("gray", "ya")) and frame.color_range == LIMITED_RANGE:
        rgb = LIMITED_TO_FULL[rgb]
    return rgb


def _check_instants(seconds: ArrayLike) -> np.ndarray:
    instant_seconds = np.asarray(seconds, dtype=np.float64)
    if instant_seconds.ndim != 1 or instant_seconds.size == 0:
        raise ValueError(
            f"Received instants of shape {instant_seconds.shape}, expected a non-empty list of seconds of shape (T,)."
        )
    bad_seconds = instant_seconds[~np.isfinite(instant_seconds) | (instant_seconds < 0)]
    if bad_seconds.size:
        raise ValueError(
            f"Received the instant {bad_seconds[0]} s, expected finite times from 0 on; count seconds from the "
            "video's first frame, whatever its timestamp in the file."
        )
    return instant_seconds


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or any(not math.isfinite(side) or side != int(side) or side < 1 for side in size):
        raise ValueError(f"Received the size {size}, expected (height, width) in pixels, two positive integers.")
    return int(size[0]), int(size[1])
