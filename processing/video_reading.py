"""
Reading of the frames displayed at given instants.

Design choices:
- A frame is displayed from its timestamp to the timestamp of the next frame.
- Damage, truncated files and instants after the end raise an error. The reader never repeats or skips a frame.
- If the packets give reliable display times, the reader decodes only the required frames. Decoding starts at the last
  key frame before each instant and skips frames without references. Each decoded frame must have the time of its
  packet. If a check fails, the reader decodes the file from its start.
- Only requested frames are scaled and converted, in one step.
"""

import math
import time
import warnings
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .video_opening import (
    DEFAULT_LIMITS,
    OpenVideo,
    ReadLimits,
    VideoLimitError,
    VideoReadError,
    VideoSource,
    av,
    can_seek,
    displayed_size,
    downloaded,
    is_file_object,
    open_video,
    probe,
    quarter_turns,
)


SMALL_FRAME_PIXELS = 256 * 256
# Without these flags, libswscale halves the chroma of the scaled picture and truncates colours from its tables.
# Pictures are then 1.6 grey levels too dark on average. The numbers are SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND,
# because PyAV 17 has no names for them.
SCALING_FLAGS = int(av.video.reformatter.Interpolation.BILINEAR) | 0x2000 | 0x40000
LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
LIMITED_TO_FULL = np.rint((np.arange(256) - 16) * 255 / 219).clip(0, 255).astype(np.uint8)
# Maximum number of reordered frames in H.264 and HEVC; other codecs allow fewer.
MAX_REORDERED_FRAMES = 16
# Formats with an index of key frames in the header.
INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Formats without display times. If the codec does not store them either, FFmpeg counts packets instead.
FORMATS_WITHOUT_TIMES = ("avi", "asf", "mxf")
# A restart at a key frame must first empty the decoder, so decoding a few frames is faster.
MIN_SKIPPED_FRAMES = 4
MAX_TICK = 2**63 - 1
# Maximum number of packets in memory during the search for the first key frame.
MAX_QUEUED_PACKETS = 500


def check_video(source: VideoSource, limits: ReadLimits = DEFAULT_LIMITS) -> None:
    """
    Decode every frame of a video, to check that the complete video is readable.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): Video, as for [`read_frames`].
        limits ([`ReadLimits`], *optional*): Limits of reading.

    Raises:
        Same errors as [`probe`], and `VideoReadError` if a frame is damaged or the video is truncated.
    """
    with downloaded(source, limits) as file:
        last_seconds = math.nextafter(probe(file, limits).duration_seconds, 0.0)
        with open_video(file, limits) as video:
            for _ in _read_through(video, np.array([last_seconds])):
                pass


def read_frames(
    source: VideoSource,
    seconds: ArrayLike,
    size: tuple[int, int] | None = None,
    allow_truncated: bool = False,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> np.ndarray:
    """
    Read the frames displayed at given instants.

    The displayed frame is the last one with a timestamp not after the instant. If the file allows, the function
    decodes only the required frames. The result is the same as for a full decode, except that damage outside the
    required frames is not detected.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): A path, an http(s) URL, the content of a file, or
            a file opened for reading bytes.
        seconds (`np.ndarray` of shape `(T,)`): Instants, in seconds from the first frame, in any order. Instants may
            repeat.
        size (`tuple[int, int]`, *optional*): Height and width of the returned frames. Defaults to the displayed size
            of the first frame.
        allow_truncated (`bool`, *optional*, defaults to `False`): Whether to return the readable frames of a truncated
            or damaged video, with a warning, instead of raising an error. Requires at least one readable frame.
        limits ([`ReadLimits`], *optional*): Limits of reading.

    Returns:
        `np.ndarray` of shape `(T, H, W, 3)`, uint8: Upright RGB frames, in the order of `seconds`. With
        `allow_truncated`, the array contains only the readable frames.

    Raises:
        `ValueError`: If `seconds` is not a non-empty list of finite, non-negative times, or `size` not two positive
            integers.
        `TypeError`: If `source` has another type.
        `FileNotFoundError`: If the file does not exist.
        `VideoReadError`: If the source is unreadable, damaged, or ends before the last instant; [`VideoLimitError`] if
            it exceeds the limits.
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
        warnings.warn(f"{error} Returning only the first {num_read} of {len(order)} frames.", stacklevel=2)
        frames = frames[np.sort(order[:num_read])]
    return frames


def iterate_frames(
    source: VideoSource,
    seconds: ArrayLike,
    size: tuple[int, int] | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[np.ndarray]:
    """
    Yield the frames displayed at instants in ascending order, one at a time. Memory holds only a few frames.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): Video, as for [`read_frames`].
        seconds (`np.ndarray` of shape `(T,)`): Instants, in seconds from the first frame, in ascending order.
        size (`tuple[int, int]`, *optional*): Height and width of the yielded frames. Defaults to the displayed size of
            the first frame.
        limits ([`ReadLimits`], *optional*): Limits of reading.

    Yields:
        `np.ndarray` of shape `(H, W, 3)`, uint8: Upright RGB frame displayed at each instant. Instants within the same
        frame yield the same array.

    Raises:
        Same errors as [`read_frames`], and `ValueError` if the instants are not in ascending order.
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
    """Yield frames until a deadline of `time.monotonic()`. Without a deadline, the time limit applies per frame."""
    # A shared reformatter reuses libswscale's tables across frames.
    reformatter = av.video.reformatter.VideoReformatter()
    for video, frame, num_due in frames_due(source, instant_seconds, limits, deadline_seconds):
        rgb = _upright_rgb(video, frame, *(size or video.displayed_size), reformatter)
        for _ in range(num_due):
            yield rgb
        if deadline_seconds is None:
            video.deadline_seconds = time.monotonic() + limits.timeout_seconds


def frames_due(
    source: VideoSource, instant_seconds: np.ndarray, limits: ReadLimits, deadline_seconds: float | None
) -> Iterator[tuple[OpenVideo, Any, int]]:
    """Yield the frames displayed at ascending instants, each with its video and its number of instants."""
    num_served = 0
    # A non-seekable stream allows only one pass.
    if not is_file_object(source) or can_seek(source):
        with open_video(source, limits, deadline_seconds) as video:
            try:
                for frame, num_due in _PacketReader(video).frames_due(instant_seconds):
                    yield video, frame, num_due
                    num_served += num_due
                return
            except (_IrregularVideo, av.error.FFmpegError):
                pass  # The full decode determines whether and where the file is damaged.
    with open_video(source, limits, deadline_seconds) as video:
        for frame, num_due in _read_through(video, instant_seconds[num_served:]):
            yield video, frame, num_due


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Scale frames in memory, with the same filter as [`read_frames`].

    Args:
        frames (`np.ndarray` of shape `(T, H, W, 3)`, uint8): RGB frames.
        size (`tuple[int, int]`): Height and width of the scaled frames.

    Returns:
        `np.ndarray` of shape `(T, size[0], size[1], 3)`, uint8: Scaled frames.

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
    reformatter = av.video.reformatter.VideoReformatter()
    for index, frame in enumerate(frames):
        source_frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
        resized[index] = _reformat(reformatter, source_frame, height, width)
    return resized


def _read_through(video: OpenVideo, instant_seconds: np.ndarray) -> Iterator[tuple[Any, int]]:
    """Decode all frames from the start; yield the requested frames, each with its number of instants."""
    num_served = 0
    for frame, until_seconds in _displayed_frames(video):
        # An instant before the timestamp of the next frame belongs to this frame; at the timestamp, to the next one.
        num_due = int(np.searchsorted(instant_seconds, until_seconds, side="left"))
        if num_due > num_served:
            yield frame, num_due - num_served
            num_served = num_due
        if num_served == len(instant_seconds):
            return
    if video.reached_seconds is None:
        raise video.error("it has no frame with a timestamp")
    raise video.error(
        f"it has no frame at the requested time {instant_seconds[-1]:.3f} s; the file is truncated, or the times "
        "belong to a longer version of the video"
    )


def _start_decoding(video: OpenVideo) -> None:
    """Enable multithreaded decoding if the codec allows it; the presentation order stays the same."""
    codec = video.stream.codec_context
    # For small frames, starting threads takes longer than the time saved.
    codec.thread_type = "AUTO" if codec.width * codec.height > SMALL_FRAME_PIXELS else "NONE"


def _may_lack_times(video: OpenVideo) -> bool:
    """Return whether ascending packet times may be decoding times instead of display times."""
    return video.container.format.name in FORMATS_WITHOUT_TIMES and video.stream.codec_context.has_b_frames


def _displayed_frames(video: OpenVideo) -> Iterator[tuple[Any, float]]:
    """Yield each frame with its end time, in seconds from the first frame, in presentation order."""
    _start_decoding(video)
    shown = None
    first_pts = 0
    step_ticks = 1
    for frame in _frames_with_times(video):
        # A frame that the decoder concealed counts as damaged, and so do the frames after it.
        if frame.is_corrupt:
            raise video.error("a frame is damaged")
        # Like players, skip a frame that is late or has no timestamp, because it has no display time. This hides no
        # damage: if all later times go back, the video ends at that point.
        if frame.pts is None or (shown is not None and frame.pts < shown.pts):
            continue
        if shown is None:
            first_pts = frame.pts
            video.displayed_size = displayed_size(video, frame)
        else:
            yield shown, video.seconds_between(first_pts, frame.pts)
            step_ticks = frame.pts - shown.pts or step_ticks
        shown = frame
        video.reached_seconds = video.seconds_between(first_pts, frame.pts)
    if shown is not None:
        # The last frame lasts for its own duration, or as long as the previous frame. One extra step is allowed,
        # because containers round durations.
        step_ticks = shown.duration or step_ticks
        yield shown, video.seconds_between(first_pts, shown.pts + 2 * step_ticks)


def _frames_with_times(video: OpenVideo) -> Iterator[Any]:
    """Yield all frames in the order of the decoder, and assign decoding times in the same order."""
    packets = video.packets()
    first = list(islice(packets, MAX_REORDERED_FRAMES + 1)) if _may_lack_times(video) else []
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


class _IrregularVideo(Exception):
    """Error of a file whose packets do not match the decoded frames, or lack required times."""


class _PacketReader:
    """
    Reader of the frames displayed at given instants, which decodes only the required frames.

    The reader reads packets ahead of the decoder until their times determine the displayed frame. It skips packets
    before the last usable key frame, with a seek if the file has an index.

    Args:
        video (`OpenVideo`): Opened video, before any read.
    """

    def __init__(self, video: OpenVideo):
        _start_decoding(video)
        self._video = video
        self._codec = video.stream.codec_context
        if video.container.format.name == "matroska,webm":
            # Matroska loads its index at the first seek.
            video.container.seek(video.stream.start_time or 0, stream=video.stream)
        self._packets = video.packets()
        # Packets not yet decoded, and whether earlier packets were skipped.
        self._queue: deque[Any] = deque()
        self._follows_gap = False
        # Display times of the packets since the last seek, in order.
        self._times: list[int] = []
        self._last_packet: Any = None
        self._is_reordered = False
        self._first_pts = 0
        # Instants in ticks: latest possible timestamp of the displayed frame.
        self._instants: list[int] = []
        # Decoded frames required by an instant, in order.
        self._decoded: deque[Any] = deque()
        # (time, number of instants) of the next frames to yield.
        self._due: deque[tuple[int, int]] = deque()

    def frames_due(self, instant_seconds: np.ndarray) -> Iterator[tuple[Any, int]]:
        """
        Yield the frames displayed at ascending instants, each with its number of instants.

        Raises:
            _IrregularVideo: If the file requires a full decode for the remaining instants.
        """
        self._decode_first_frame()
        self._instants = [self._last_tick(seconds) for seconds in instant_seconds]
        num_found = 0
        while num_found < len(self._instants):
            shown_pts = self._find_shown(self._instants[num_found])
            num_due = bisect_left(self._instants, self._end_tick(shown_pts)) - num_found
            self._due.append((shown_pts, num_due))
            num_found += num_due
            yield from self._pop_due_frames()
            # The frame may already be in the decoder, because the decoding order differs from the display order.
            if any(packet.pts == shown_pts for packet in self._queue):
                fed_pts = None
                while fed_pts != shown_pts:
                    fed_pts = self._feed(self._queue.popleft())
                    yield from self._pop_due_frames()
        self._empty_decoder()
        yield from self._pop_due_frames()
        if self._due:
            raise _IrregularVideo

    def _decode_first_frame(self) -> None:
        """Determine the timestamp of the first frame, the origin of the instants."""
        while not self._decoded and self._read_packet():
            self._take(self._queue.popleft().decode())
        if not self._decoded:
            self._empty_decoder()
        self._read_ahead(self._times[0] if self._times else 0)
        # The packets must also identify the first displayed frame.
        if not self._decoded or self._decoded[0].pts != self._times[0]:
            raise _IrregularVideo
        if _may_lack_times(self._video) and not self._is_reordered:
            raise _IrregularVideo
        self._video.displayed_size = displayed_size(self._video, self._decoded[0])
        self._first_pts = self._times[0]

    def _last_tick(self, seconds: float) -> int:
        """Return the latest timestamp not after an instant."""
        tick = self._first_pts + math.floor(Fraction(seconds) / self._video.time_base)
        # The comparison of floats may differ, and is the one that counts.
        while self._video.seconds_between(self._first_pts, tick + 1) <= seconds:
            tick += 1
        while self._video.seconds_between(self._first_pts, tick) > seconds:
            tick -= 1
        return min(tick, MAX_TICK)

    def _find_shown(self, instant: int) -> int:
        """Return the timestamp of the frame displayed at an instant, and read its packets without decoding."""
        self._seek_towards(instant)
        self._read_ahead(instant)
        place = bisect_right(self._times, instant)
        if not place:
            raise _IrregularVideo
        shown_pts = self._times[place - 1]
        if place == len(self._times):
            # Up to this end, the last frame is certainly displayed; later instants require the full decode.
            step = self._last_packet.duration or (shown_pts - self._times[-2] if place > 1 else 0)
            if self._instants[-1] >= shown_pts + step:
                raise _IrregularVideo
        return shown_pts

    def _seek_towards(self, instant: int) -> None:
        """Seek to the last indexed key frame displayed before an instant, unless already read."""
        if self._video.container.format.name not in INDEXED_FORMATS or self._last_packet.dts is None:
            return
        entries = self._video.stream.index_entries
        place = entries.search_timestamp(instant)
        if place < 0 or entries[place].timestamp <= self._last_packet.dts:
            return
        self._empty_decoder()
        # The index has decoding times, so the key frame may be displayed after the instant.
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
        """Read packets until all later packets are displayed after an instant."""
        for place in reversed(range(len(self._queue))):
            if self._skip(place, instant):
                break
        while len(self._times) - bisect_right(self._times, instant) <= MAX_REORDERED_FRAMES and self._read_packet():
            if not self._skip(len(self._queue) - 1, instant) and len(self._queue) > MAX_QUEUED_PACKETS:
                self._feed(self._queue.popleft())

    def _skip(self, place: int, instant: int) -> bool:
        """Drop the packets before a queued key frame, if decoding for the instant can start there."""
        packet = self._queue[place]
        if not packet.is_keyframe or packet.is_discard or packet.pts > instant:
            return False
        if place >= MIN_SKIPPED_FRAMES:
            for _ in range(place):
                self._queue.popleft()
            self._follows_gap = True
        return True

    def _read_packet(self) -> bool:
        """Read a packet into the queue; return `False` at the end of the file."""
        packet = next(self._packets, None)
        # The last packets are empty and have no time.
        if packet is None or not packet.size:
            return False
        # After a damaged packet, the displayed frame may be missing. FFmpeg also marks packets where transport streams
        # were joined, so the decoder must determine whether a frame is damaged.
        if packet.pts is None or packet.is_corrupt:
            raise _IrregularVideo
        self._queue.append(packet)
        self._last_packet = packet
        # An edit list marks hidden packets as discarded.
        if not packet.is_discard:
            place = bisect_left(self._times, packet.pts)
            is_known = place < len(self._times) and self._times[place] == packet.pts
            if is_known or len(self._times) - place > MAX_REORDERED_FRAMES:
                raise _IrregularVideo
            self._is_reordered |= place < len(self._times)
            self._times.insert(place, packet.pts)
        return True

    def _end_tick(self, pts: int) -> float:
        """Return the display time of the next frame, if its packet has been read."""
        place = bisect_right(self._times, pts)
        return self._times[place] if place < len(self._times) else math.inf

    def _is_wanted(self, pts: int) -> bool:
        return bisect_left(self._instants, pts) < bisect_left(self._instants, self._end_tick(pts))

    def _feed(self, packet: Any) -> int:
        """Decode a packet, unless neither an instant nor another frame requires its frame."""
        if self._follows_gap:
            # Otherwise, the decoder would use stale frames as references.
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

    def _pop_due_frames(self) -> Iterator[tuple[Any, int]]:
        """Yield the decoded frames that are due."""
        while self._decoded and self._due:
            frame = self._decoded.popleft()
            shown_pts, num_due = self._due[0]
            if frame.pts > shown_pts:
                raise _IrregularVideo
            if frame.pts == shown_pts:
                self._due.popleft()
                self._video.reached_seconds = self._video.seconds_between(self._first_pts, shown_pts)
                yield frame, num_due


def _upright_rgb(
    video: OpenVideo, frame: Any, height: int, width: int, reformatter: av.video.reformatter.VideoReformatter
) -> np.ndarray:
    """Convert a decoded frame to upright RGB `(height, width, 3)`. Scaling first makes the rotation cheaper."""
    turns = quarter_turns(video, frame)
    if turns % 2:
        height, width = width, height
    try:
        rgb = _reformat(reformatter, frame, height, width)
    except av.error.FFmpegError as error:
        kind = f"pixel format {frame.format.name}, matrix {int(frame.colorspace)} of ITU-T H.273"
        raise video.error(f"FFmpeg cannot convert its colours to RGB ({kind})") from error
    return np.rot90(rgb, turns)


def _reformat(reformatter: av.video.reformatter.VideoReformatter, frame: Any, height: int, width: int) -> np.ndarray:
    # By default, libswscale uses a thread pool, which takes longer than the scaling itself.
    scaled = reformatter.reformat(
        frame, width=width, height=height, format="rgb24", interpolation=SCALING_FLAGS, threads=1
    )
    rgb = scaled.to_ndarray()
    # libswscale treats grey as full range, regardless of the file.
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
            f"Received the instant {bad_seconds[0]} s, expected finite times of at least 0; count seconds "
            "from the video's first frame, regardless of its timestamp in the file."
        )
    return instant_seconds


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or any(not math.isfinite(side) or side != int(side) or side < 1 for side in size):
        raise ValueError(f"Received the size {size}, expected (height, width) in pixels, two positive integers.")
    return int(size[0]), int(size[1])
