"""Cut a part out of a video with frame accuracy, by re-encoding its pictures and sound."""

import heapq
import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..video_opening import DEFAULT_LIMITS, ReadLimits, VideoSource, av, downloaded, open_video, probe
from ..video_reading import FORMATS_WITHOUT_TIMES, frames_due
from .cutting import check_cut, ends_before, new_file


# Encoders of pictures and sound, with options for pictures close to the source. WebM supports only the listed ones.
# Without B-frames, packets are in display order, as required by containers without display times.
ENCODERS = {".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6"}, "libopus")}
DEFAULT_ENCODERS = ("libx264", {"crf": "18", "preset": "veryfast", "bf": "0"}, "aac")
# Samples per second. All sound encoders support this rate with one or two channels.
SOUND_RATE = 48000
# Lead time of sound decoding before the cut, because a packet may depend on earlier ones.
LEAD_SECONDS = 1.0
# Shorter gaps in the sound come from rounded times in the container.
MAX_JITTER_SECONDS = 0.03


def cut_video_exactly(
    source: VideoSource,
    start_seconds: float,
    end_seconds: float,
    path: str | os.PathLike,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> tuple[float, float]:
    """
    Re-encode the pictures and sound of a part of a video into a new file.

    The clip begins with the frame displayed at the start, and displays its last frame until the end. This function is
    slower than [`cut_video`], which copies packets from a key frame.

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file object): Video, in the same formats as [`read_frames`].
        start_seconds (`float`): Start, in seconds from the first frame.
        end_seconds (`float`): End, in seconds from the first frame. Times after the end of the video select its end.
            If it equals the start, the clip contains one frame.
        path (`str` or `os.PathLike`): Output path, whose extension selects the container. Pictures are encoded as
            H.264 and sound as AAC in mono or stereo, and in `.webm` as VP9 and Opus. An existing file is replaced. (A
            transport stream does not store the duration of its last frame.)
        limits ([`ReadLimits`], *optional*): Limits of reading the source. The time limit applies per frame.

    Returns:
        `tuple[float, float]`: Start and end of the clip, in seconds from the source's first frame, with the
        precision of the source's time base.

    Raises:
        `ValueError`: If not `0 <= start_seconds <= end_seconds`, or if `path` is the source itself.
        `TypeError`: If `source` has another type.
        `FileNotFoundError`: If the source does not exist.
        `VideoReadError`: If the source is unreadable or ends before the start; or if writing fails, such as for a
            container without support for these codecs. A [`VideoLimitError`] if the source exceeds the limits.
    """
    path = Path(path)
    check_cut(source, start_seconds, end_seconds, path)
    picture_encoder, options, sound_encoder = ENCODERS.get(path.suffix.lower(), DEFAULT_ENCODERS)
    with downloaded(source, limits) as file:
        properties = probe(file, limits)
        first_pts = round(properties.start_seconds / properties.time_base)
        start_pts = first_pts + round(start_seconds / properties.time_base)
        last_pts = first_pts + round(properties.duration_seconds / properties.time_base)
        with open_video(file, limits) as video:
            if start_pts >= last_pts:
                raise ends_before(video, properties.duration_seconds, start_seconds)
            shown = sorted(
                {packet.pts for packet in video.packets() if packet.pts is not None and not packet.is_discard}
            )
        end_pts = min(first_pts + round(end_seconds / properties.time_base), last_pts)
        if end_pts <= start_pts:
            end_pts = [*shown[bisect_right(shown, start_pts) :], last_pts][0]
        # Relative to the clip's start: the frame displayed at the start, and the frames that begin after it.
        begins = [0, *(pts - start_pts for pts in shown[bisect_right(shown, start_pts) : bisect_left(shown, end_pts)])]
        instant_seconds = np.array([float((start_pts - first_pts + begin) * properties.time_base) for begin in begins])
        ends = [*begins[1:], end_pts - start_pts]

        with open_video(file, limits) as video, new_file(path, video.name, "encoded") as output:
            if output.format.name in FORMATS_WITHOUT_TIMES:
                raise ValueError(f"{path.suffix} does not store display times; choose .mp4, .mkv, .mov or .webm")
            picture = output.add_stream(picture_encoder, rate=video.stream.average_rate or 25, options=options)
            picture.time_base = picture.codec_context.time_base = properties.time_base
            if properties.rotation_degrees:
                picture.set_display_rotation(properties.rotation_degrees)
            begin_seconds, length_seconds = (
                float(ticks * properties.time_base) for ticks in (start_pts, end_pts - start_pts)
            )
            sounds = _encode_sounds(video, output, sound_encoder, begin_seconds, length_seconds)
            pictures = _encode_pictures(file, picture, instant_seconds, begins, ends, limits)
            for packet in heapq.merge(sounds, pictures, key=lambda packet: packet.dts * packet.time_base):
                output.mux(packet)
    return float((start_pts - first_pts) * properties.time_base), float((end_pts - first_pts) * properties.time_base)


def _encode_pictures(
    source: VideoSource,
    output: Any,
    instant_seconds: np.ndarray,
    begins: list[int],
    ends: list[int],
    limits: ReadLimits,
) -> Iterator[Any]:
    """Yield packets of the frames displayed at given instants, each with a begin and an end, in ticks of the clip."""
    context = output.codec_context
    reformatter = av.video.reformatter.VideoReformatter()
    duration_ticks: dict[int, int] = {}
    num_served = 0
    for video, frame, num_due in frames_due(source, instant_seconds, limits, None):
        if not num_served:
            known = {pixel_format.name for pixel_format in context.codec.video_formats}
            context.pix_fmt = frame.format.name if frame.format.name in known else "yuv420p"
            # Subsampled chroma requires even sides.
            context.width, context.height = (max(2, side // 2 * 2) for side in (frame.width, frame.height))
            context.sample_aspect_ratio = video.stream.codec_context.sample_aspect_ratio or 1
            for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
                setattr(context, name, getattr(frame, name))
        shaped = reformatter.reformat(frame, context.width, context.height, context.pix_fmt)
        shaped.pts, shaped.time_base = begins[num_served], context.time_base
        # Let this encoder select its key frames.
        shaped.pict_type = 0
        num_served += num_due
        duration_ticks[shaped.pts] = ends[num_served - 1] - shaped.pts
        yield from _with_durations(output.encode(shaped), duration_ticks)
        video.deadline_seconds = time.monotonic() + limits.timeout_seconds
    yield from _with_durations(output.encode(None), duration_ticks)


def _with_durations(packets: list[Any], duration_ticks: dict[int, int]) -> Iterator[Any]:
    for packet in packets:
        packet.duration = duration_ticks[packet.pts]
        yield packet


def _encode_sounds(video: Any, output: Any, encoder: str, begin_seconds: float, length_seconds: float) -> list[Any]:
    """
    Return the sound packets of a part in time order. `begin_seconds` refers to the clock of the file.
    """
    # Skip a stream without a decoder, such as the spatial sound of some phones.
    sounds = {
        s.index: _Sound(s, output, encoder) for s in video.container.streams.audio if s.codec_context is not None
    }
    open_indices = set(sounds)
    packets: list[Any] = []
    streams = [sound.source for sound in sounds.values()]
    for packet in video.packets(*streams) if sounds else ():
        if packet.stream_index not in open_indices:
            continue
        sound = sounds[packet.stream_index]
        at_seconds = None if packet.pts is None else float(packet.pts * packet.time_base)
        if at_seconds is not None and at_seconds >= begin_seconds + length_seconds:
            open_indices.remove(packet.stream_index)
            if not open_indices:
                break
        elif at_seconds is None or at_seconds >= begin_seconds - LEAD_SECONDS:
            for frame in packet.decode():
                packets += sound.encode(frame, begin_seconds, length_seconds)
    for sound in sounds.values():
        packets += sound.output.encode(None)
    return sorted(packets, key=lambda packet: packet.dts * packet.time_base)


class _Sound:
    """Encoder of a sound stream, with each sample at its time."""

    def __init__(self, source: Any, output: Any, encoder: str):
        self.source = source
        self.layout = "mono" if source.codec_context.layout.nb_channels == 1 else "stereo"
        self.output = output.add_stream(encoder, rate=SOUND_RATE, layout=self.layout)
        self.resampler: Any = av.AudioResampler("fltp", self.layout, SOUND_RATE)
        self.num_encoded = 0

    def encode(self, frame: Any, begin_seconds: float, length_seconds: float) -> list[Any]:
        """Return the packets of a frame's samples within the part from `begin_seconds` on."""
        if frame.pts is None:
            return []
        packets = []
        for resampled in self.resampler.resample(frame):
            samples: Any = resampled.to_ndarray()
            at = round((float(resampled.pts * resampled.time_base) - begin_seconds) * SOUND_RATE)
            missing = at - self.num_encoded
            if 0 < missing <= MAX_JITTER_SECONDS * SOUND_RATE and self.num_encoded:
                missing = 0
            # Fill gaps with silence, and drop repeated samples and samples outside the part.
            silence = np.zeros((len(samples), max(0, missing)), samples.dtype)
            samples = np.concatenate([silence, samples[:, max(0, -missing) :]], axis=1)
            samples = samples[:, : max(0, round(length_seconds * SOUND_RATE) - self.num_encoded)]
            if samples.shape[1]:
                heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", self.layout)
                heard.sample_rate, heard.pts = SOUND_RATE, self.num_encoded
                packets += self.output.encode(heard)
                self.num_encoded += samples.shape[1]
        return packets
