"""
The frames of a video that are on display at given instants.

Design choices:
- A frame is on display from its timestamp until the next frame's.
- Nothing is made up: damage, a cut file and an instant after the end are errors, never a repeated or a skipped frame.
- Of a file whose packets say plainly what is shown when, only what the instants need is decoded: from the last key
  frame before each, without the frames on the way that no other refers to. Every frame has to come out with the time
  that its packet bears. Any other file, and one that surprises on the way, is decoded through from its start.
- Frames are scaled and converted only where an instant asks for them, in one step.
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
# Without the flags, libswscale halves the chroma of what it scales to and truncates colours that it looks up: pictures
# come out 1.6 grey levels too dark on average. By number, since PyAV 17 has no names for them: SWS_FULL_CHR_H_INT and
# SWS_ACCURATE_RND.
SCALING_FLAGS = int(av.video.reformatter.Interpolation.BILINEAR) | 0x2000 | 0x40000
LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
LIMITED_TO_FULL = np.rint((np.arange(256) - 16) * 255 / 219).clip(0, 255).astype(np.uint8)
# H.264 and HEVC let no more frames than this be stored before one that is shown earlier; other codecs fewer.
MAX_REORDERED_FRAMES = 16
# Their headers say where the key frames are.
INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# They have no place for times of display. If a codec's own frames do not tell them, FFmpeg counts packets instead.
FORMATS_WITHOUT_TIMES = ("avi", "asf", "mxf")
# To begin anew at a key frame, what is in the decoder has to come out first; it is quicker to decode a few frames.
MIN_SKIPPED_FRAMES = 4
MAX_TICK = 2**63 - 1
# So many packets are held at most while looking for a key frame to begin with.
MAX_QUEUED_PACKETS = 500


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
    """The frames on display at instants in ascending order, each with its file and how many instants it serves."""
    num_served = 0
    # A stream that cannot go back is read through at once.
    if not is_file_object(source) or can_seek(source):
        with open_video(source, limits, deadline_seconds) as video:
            try:
                for frame, num_due in _PacketReader(video).frames_due(instant_seconds):
                    yield video, frame, num_due
                    num_served += num_due
                return
            except (_IrregularVideo, av.error.FFmpegError):
                pass  # Whether it is damaged, and from where on, is for reading it through to say.
    with open_video(source, limits, deadline_seconds) as video:
        for frame, num_due in _read_through(video, instant_seconds[num_served:]):
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
    reformatter = av.video.reformatter.VideoReformatter()
    for index, frame in enumerate(frames):
        source_frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
        resized[index] = _reformat(reformatter, source_frame, height, width)
    return resized


def _read_through(video: OpenVideo, instant_seconds: np.ndarray) -> Iterator[tuple[Any, int]]:
    """Decode all frames from the first one on; yield those on display, with the number of instants they serve."""
    num_served = 0
    for frame, until_seconds in _displayed_frames(video):
        # Instants before the next frame's timestamp fall on this frame; at that very moment the next one is shown.
        num_due = int(np.searchsorted(instant_seconds, until_seconds, side="left"))
        if num_due > num_served:
            yield frame, num_due - num_served
            num_served = num_due
        if num_served == len(instant_seconds):
            return
    if video.reached_seconds is None:
        raise video.error("it has no frame with a timestamp")
    raise video.error(
        f"no frame is shown any more at {instant_seconds[-1]:.3f} s, which was asked for; the file is cut short, "
        "or the times belong to a longer version of it"
    )


def _start_decoding(video: OpenVideo) -> None:
    """Several frames are decoded at once where the codec allows; they still come out in presentation order."""
    codec = video.stream.codec_context
    # On small frames, starting the threads takes longer than they save.
    codec.thread_type = "AUTO" if codec.width * codec.height > SMALL_FRAME_PIXELS else "NONE"


def _may_lack_times(video: OpenVideo) -> bool:
    """Whether times that ascend from packet to packet are no times of display."""
    return video.container.format.name in FORMATS_WITHOUT_TIMES and video.stream.codec_context.has_b_frames


def _displayed_frames(video: OpenVideo) -> Iterator[tuple[Any, float]]:
    """Yield each frame with the end of its display, in seconds from the first frame, in presentation order."""
    _start_decoding(video)
    shown = None
    first_pts = 0
    step_ticks = 1
    for frame in _frames_with_times(video):
        # A frame patched up by the decoder is damage as much as one that it refuses; so are those that follow.
        if frame.is_corrupt:
            raise video.error("a frame is damaged")
        # A frame that is late, or carries no time at all, has no moment of its own on display; players drop it.
        # That hides nothing: should all later times go back, the video ends where they did.
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
        # The last frame is shown for its own duration, or as long as the one before it. One such step more is
        # allowed, since containers round their durations.
        step_ticks = shown.duration or step_ticks
        yield shown, video.seconds_between(first_pts, shown.pts + 2 * step_ticks)


def _frames_with_times(video: OpenVideo) -> Iterator[Any]:
    """All frames in the decoder's order. Times of decoding are given to the frames in that order too."""
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
    """What comes out of a file is not what its packets announced, or they do not announce enough."""


class _PacketReader:
    """
    Reads the frames on display at given instants, and decodes no more than these need.

    Packets are read ahead of the decoder until their times tell which frame is on display. Those before the last key
    frame that it can be decoded from are passed over, by a jump in the file where its index allows.

    Args:
        video (`OpenVideo`): The video, of which nothing has been read.
    """

    def __init__(self, video: OpenVideo):
        _start_decoding(video)
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
            num_due = bisect_left(self._instants, self._end_tick(shown_pts)) - num_found
            self._due.append((shown_pts, num_due))
            num_found += num_due
            yield from self._pop_due_frames()
            # It may be in the decoder already, which gets packets in another order than that of display.
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
        """Find out the timestamp of the first frame, from which instants count."""
        while not self._decoded and self._read_packet():
            self._take(self._queue.popleft().decode())
        if not self._decoded:
            self._empty_decoder()
        self._read_ahead(self._times[0] if self._times else 0)
        # What is shown first has to be known from the packets as well.
        if not self._decoded or self._decoded[0].pts != self._times[0]:
            raise _IrregularVideo
        if _may_lack_times(self._video) and not self._is_reordered:
            raise _IrregularVideo
        self._video.displayed_size = displayed_size(self._video, self._decoded[0])
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
            if self._skip(place, instant):
                break
        while len(self._times) - bisect_right(self._times, instant) <= MAX_REORDERED_FRAMES and self._read_packet():
            if not self._skip(len(self._queue) - 1, instant) and len(self._queue) > MAX_QUEUED_PACKETS:
                self._feed(self._queue.popleft())

    def _skip(self, place: int, instant: int) -> bool:
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

    def _end_tick(self, pts: int) -> float:
        """When the frame after another is shown, as far as that is read."""
        place = bisect_right(self._times, pts)
        return self._times[place] if place < len(self._times) else math.inf

    def _is_wanted(self, pts: int) -> bool:
        return bisect_left(self._instants, pts) < bisect_left(self._instants, self._end_tick(pts))

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

    def _pop_due_frames(self) -> Iterator[tuple[Any, int]]:
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


def _upright_rgb(
    video: OpenVideo, frame: Any, height: int, width: int, reformatter: av.video.reformatter.VideoReformatter
) -> np.ndarray:
    """A decoded frame as `(height, width, 3)` RGB, upright. Scaled first, since that leaves less to turn."""
    turns = quarter_turns(video, frame)
    if turns % 2:
        height, width = width, height
    try:
        rgb = _reformat(reformatter, frame, height, width)
    except av.error.FFmpegError as error:
        kind = f"pixel format {frame.format.name}, matrix {int(frame.colorspace)} of ITU-T H.273"
        raise video.error(f"its colours cannot be converted to RGB ({kind})") from error
    return np.rot90(rgb, turns)


def _reformat(reformatter: av.video.reformatter.VideoReformatter, frame: Any, height: int, width: int) -> np.ndarray:
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
