import functools
import http.server
import io
import threading
import time
import warnings
from fractions import Fraction
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
from conftest import code_image

from processing import video_opening, video_reading
from processing.results import cutting as video_cutting
from processing.results.cutting import cut_video
from processing.video_io import (
    ReadLimits,
    VideoLimitError,
    VideoReadError,
    check_video,
    downloaded,
    iterate_frames,
    probe,
    read_frames,
    resize_frames,
)


VP9 = {"codec": "libvpx-vp9", "codec_options": {"cpu-used": "8", "deadline": "realtime"}}
UNEVEN_SECONDS = [0, 0.04, 0.5, 0.51, 0.9, 1.7, 1.74, 1.78, 2.5, 3.0]

# What each clip is meant to hit, and how it is made.
CLIPS = {
    "constant_rate": ("clip.mp4", {}),
    "b_frames": ("clip.mp4", {"num_frames": 40, "codec_options": {"bf": "3", "g": "12"}}),
    "variable_rate": ("clip.mp4", {"times_seconds": UNEVEN_SECONDS, "codec_options": {"bf": "2"}}),
    "variable_rate_slow_start": (
        "clip.mp4",
        {"times_seconds": [0, 1, 2, 2.04, 2.08, 2.12, 2.16], "codec_options": {"bf": "2"}},
    ),
    "variable_rate_mkv": ("clip.mkv", {"times_seconds": UNEVEN_SECONDS}),
    "start_offset": ("clip.mp4", {"start_seconds": 5.0}),
    "start_offset_mkv": ("clip.mkv", {"start_seconds": 5.0, "times_seconds": UNEVEN_SECONDS}),
    "transport_stream": ("clip.ts", {"start_seconds": 5.0, "codec_options": {"g": "5"}}),
    "fragmented": ("clip.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "live_webm": ("clip.webm", {"container_options": {"live": "1"}, **VP9}),
    "vp9_with_alpha": ("clip.webm", {"pix_fmt": "yuva420p", **VP9}),
    "ten_bit_hevc": ("clip.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le"}),
    "flash": ("clip.flv", {}),
    "avi": ("clip.avi", {"codec": "mpeg4"}),
    "odd_size": ("clip.mp4", {"height": 51, "width": 63, "pix_fmt": "yuv444p"}),
}


@pytest.fixture(params=CLIPS)
def clip(request, make_clip):
    name, kwargs = CLIPS[request.param]
    return make_clip(name, **kwargs)


def decode_all(path, size):
    """All frames of the first video stream and their seconds from the first frame, by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames, times_seconds, durations = [], [], []
        for frame in container.decode(stream):
            times_seconds.append(frame.pts * stream.time_base)
            durations.append((frame.duration or 0) * stream.time_base)
            height, width = size if frame.rotation % 180 == 0 else size[::-1]
            scaled = frame.reformat(
                width=width, height=height, format="rgb24", interpolation=video_reading.SCALING_FLAGS
            )
            frames.append(np.rot90(scaled.to_ndarray(), frame.rotation // 90))
    end_seconds = times_seconds[-1] + (durations[-1] or times_seconds[-1] - times_seconds[-2])
    return frames, [float(t - times_seconds[0]) for t in times_seconds], float(end_seconds - times_seconds[0])


def shown_index(times_seconds, instant_seconds):
    """Number of the last frame whose timestamp is not after the instant, by a plain loop."""
    found_index = None
    for frame_index, time_seconds in enumerate(times_seconds):
        if time_seconds <= instant_seconds:
            found_index = frame_index
    return found_index


def check_against_brute_force(path, size, num_instants=20):
    frames, times_seconds, end_seconds = decode_all(path, size)
    assert probe(path).duration_seconds == pytest.approx(end_seconds, abs=1e-9)
    # Random instants in random order, plus the very timestamps, where the choice of frame changes.
    instants_seconds = np.random.default_rng(0).uniform(0, end_seconds, num_instants).tolist() + times_seconds[:10]
    read = read_frames(path, instants_seconds, size=size)
    assert read.shape == (len(instants_seconds), *size, 3) and read.dtype == np.uint8
    for instant_seconds, frame in zip(instants_seconds, read, strict=True):
        np.testing.assert_array_equal(frame, frames[shown_index(times_seconds, instant_seconds)])


# --- which frame comes ---


def test_frames_are_those_on_display(clip):
    check_against_brute_force(clip, size=(24, 32))


@pytest.mark.parametrize(
    "name", ["constant_rate", "variable_rate", "variable_rate_mkv", "start_offset_mkv", "live_webm"]
)
def test_frames_carry_the_expected_numbers(name, make_clip, read_codes):
    """Against the times that the clip was written with, so that PyAV is not compared with itself."""
    file_name, kwargs = CLIPS[name]
    path = make_clip(file_name, **kwargs)
    times_seconds = kwargs.get("times_seconds", [k / 10 for k in range(20)])
    instants_seconds = [time + 0.005 for time in times_seconds][::-1]
    assert read_codes(read_frames(path, instants_seconds)) == list(range(len(times_seconds)))[::-1]
    # Just before a frame, the one before it is still on display.
    instants_seconds = [time - 0.005 for time in times_seconds[1:]]
    assert read_codes(read_frames(path, instants_seconds)) == list(range(len(times_seconds) - 1))


def test_order_and_duplicates(make_clip, read_codes):
    frames = read_frames(make_clip(), [1.95, 0.0, 0.31, 0.31, 1.95, 0.39])
    assert read_codes(frames) == [19, 0, 3, 3, 19, 3]


@pytest.mark.parametrize(
    "name",
    [
        "one-by-one-person-detection.mp4",
        "nasa_13013.mp4",
        "bikes.mp4",
        "h265_video.mp4",
        "av1_video.mkv",
        "no_duration.webm",
        "video_90.mov",
    ],
)
def test_real_files(name, fixtures_dir):
    check_against_brute_force(fixtures_dir / "videos" / name, size=(48, 64))


def test_no_duration_webm(fixtures_dir):
    """74 frames with uneven steps and no duration anywhere: each instant gets its frame, up to the last."""
    path = fixtures_dir / "videos" / "no_duration.webm"
    properties = probe(path)
    assert properties.duration_seconds == pytest.approx(4.872 + 0.066)
    frames, times_seconds, _ = decode_all(path, (90, 160))
    assert len(frames) == 74
    centers_seconds = (np.arange(64) + 0.5) * properties.duration_seconds / 64
    for instant_seconds, frame in zip(centers_seconds, read_frames(path, centers_seconds, (90, 160)), strict=True):
        np.testing.assert_array_equal(frame, frames[shown_index(times_seconds, instant_seconds)])


def test_first_of_two_video_streams(tmp_path, read_codes):
    path = tmp_path / "two.mp4"
    with av.open(str(path), mode="w") as container:
        streams = []
        for height, width in ((48, 64), (96, 128)):
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        for k in range(10):
            for offset, stream in enumerate(streams):
                image = code_image(k + 100 * offset, stream.height, stream.width)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    assert (probe(path).height, probe(path).width) == (48, 64)
    assert read_codes(read_frames(path, [0.0, 0.55])) == [0, 5]


def test_edit_list(make_clip, tmp_path, read_codes):
    """A file cut on copy starts at a key frame before the cut; its edit list hides the frames up to the cut."""
    cut = tmp_path / "cut.mp4"
    with av.open(str(make_clip(num_frames=30))) as source, av.open(str(cut), mode="w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = round(0.5 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)
    assert probe(cut).duration_seconds == pytest.approx(2.5)
    assert read_codes(read_frames(cut, [0.0, 0.15, 2.45])) == [5, 6, 29]


def test_edit_list_that_ends_early(make_clip, read_codes):
    """The edit list's own length, shortened: the frames after it are in the file, but not shown."""
    data = bytearray(make_clip(num_frames=30, codec_options={"bf": "0"}).read_bytes())
    length_start = data.index(b"elst") + 12  # after the name, version, flags and number of entries
    assert int.from_bytes(data[length_start : length_start + 4], "big") == 3000
    data[length_start : length_start + 4] = (1200).to_bytes(4, "big")
    assert probe(bytes(data)).duration_seconds == pytest.approx(1.2)
    assert read_codes(read_frames(bytes(data), [0.0, 1.15])) == [0, 11]
    with pytest.raises(VideoReadError, match="time 1.500 s"):
        read_frames(bytes(data), [1.5])


def test_recording_that_starts_between_key_frames(make_clip, tmp_path, read_codes):
    """Frames before the first key frame cannot be shown: the video starts at that key frame, and is shorter for it."""
    whole = make_clip("whole.ts", num_frames=30, codec_options={"g": "10", "bf": "0", "sc_threshold": "0"})
    cut = tmp_path / "cut.ts"
    with av.open(str(whole)) as source, av.open(str(cut), mode="w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.dts is not None and number >= 4:
                packet.stream = copy
                target.mux(packet)
    properties = probe(cut)
    assert properties.duration_seconds == pytest.approx(2.0)
    assert read_codes(read_frames(cut, [0.0, properties.duration_seconds - 0.01])) == [10, 29]


def test_times_that_go_back_end_the_video(make_clip, read_codes):
    """Two recordings in one file, each counting from 0: the second is not shown, and asking for it is an error."""
    first = make_clip("first.ts", num_frames=10, codec_options={"bf": "0"})
    second = make_clip("second.ts", num_frames=8, first_code=100, codec_options={"bf": "0"})
    joined = first.read_bytes() + second.read_bytes()
    assert read_codes(read_frames(joined, [0.05, 0.55, 0.95])) == [0, 5, 9]
    with pytest.raises(VideoReadError, match="time 1.500 s"):
        read_frames(joined, [0.05, 1.5])


# --- one frame at a time ---


@pytest.mark.parametrize("size", [(24, 32), None])
def test_frames_one_at_a_time(clip, size):
    instants_seconds = np.sort(np.random.default_rng(1).uniform(0, probe(clip).duration_seconds, 15))
    expected = read_frames(clip, instants_seconds, size)
    frames = list(iterate_frames(clip, instants_seconds, size))
    assert len(frames) == 15
    for frame, other in zip(frames, expected, strict=True):
        assert frame.shape == other.shape and frame.dtype == np.uint8
        np.testing.assert_array_equal(frame, other)


def test_repeated_instants(make_clip, read_codes):
    path = make_clip()
    instants_seconds = [0.0, 0.0, 0.05, 0.31, 0.31, 0.39, 1.95, 1.95]
    assert read_codes(np.stack(list(iterate_frames(path, instants_seconds)))) == [0, 0, 0, 3, 3, 3, 19, 19]
    assert read_codes(np.stack(list(iterate_frames(path.read_bytes(), [1.95])))) == [19]


@pytest.mark.parametrize("instants_seconds", [[0.5, 0.4], [0.0, 1.0, 0.999], [1.95, 0.0]])
def test_unordered_instants(instants_seconds, make_clip):
    with pytest.raises(ValueError, match="ascending order"):
        list(iterate_frames(make_clip(), instants_seconds))


def test_other_bad_arguments_of_iterate_frames(make_clip):
    for instants_seconds in ([], [-1.0, 0.0], [0.0, float("nan")], [0.0, float("inf")]):
        with pytest.raises(ValueError, match="Received"):
            list(iterate_frames(make_clip(), instants_seconds))
    with pytest.raises(ValueError, match="two positive integers"):
        list(iterate_frames(make_clip(), [0.0], size=(0, 4)))


def test_frames_come_before_the_cut_is_noticed(make_clip, read_codes):
    whole = make_clip(num_frames=100, container_options={"movflags": "faststart"}, codec_options={"g": "10"})
    data = whole.read_bytes()
    frames = iterate_frames(data[: len(data) * 3 // 4], np.arange(100) / 10 + 0.05)
    assert read_codes(np.stack([next(frames) for _ in range(40)])) == list(range(40))
    with pytest.raises(VideoReadError, match="reading stopped at [4-9]"):
        list(frames)


class CountedFile(io.BytesIO):
    """Knows how much of it was read, in bytes."""

    num_bytes = 0

    def read(self, size=-1):
        data = super().read(size)
        self.num_bytes += len(data)
        return data


def test_no_more_is_read_than_asked_for(make_clip):
    data = make_clip("clip.mkv", num_frames=250, height=192, width=256, codec="mpeg4").read_bytes()
    file = CountedFile(data)
    frames = iterate_frames(file, np.arange(250) / 10 + 0.05)
    assert file.num_bytes == 0
    next(frames)
    # FFmpeg reads ahead, but not all of it.
    assert 0 < file.num_bytes < len(data) * 2 / 3
    assert len(list(frames)) == 249
    assert file.num_bytes > len(data) * 0.9
    # Nor after the last instant.
    file = CountedFile(data)
    assert len(list(iterate_frames(file, [0.0, 0.5]))) == 2
    assert file.num_bytes < len(data) * 2 / 3


def test_frames_can_be_left_early(make_clip, read_codes):
    """The file is closed, and another reading starts at its beginning."""
    path = make_clip()
    with open(path, "rb") as file:
        frames = iterate_frames(file, [0.05, 1.05])
        assert read_codes(next(frames)[None]) == [0]
        frames.close()
        with pytest.raises(StopIteration):
            next(frames)
        assert read_codes(np.stack(list(iterate_frames(file, [0.05, 1.05])))) == [0, 10]


# --- what is decoded ---

# What each clip is meant to hit, how it is made, and whether its packets say all that has to be known of it.
STRUCTURES = {
    "closed_groups": ("clip.mp4", {"g": "12"}, True),
    "one_group": ("clip.mp4", {"g": "250"}, True),
    "open_groups": ("clip.mp4", {"g": "12", "x264-params": "open-gop=1:bframes=3:scenecut=0"}, True),
    "open_groups_mkv": ("clip.mkv", {"g": "12", "x264-params": "open-gop=1:bframes=3:scenecut=0"}, True),
    "open_groups_without_an_index": ("clip.ts", {"g": "12", "x264-params": "open-gop=1:bframes=3:scenecut=0"}, True),
    "many_b_frames": ("clip.mkv", {"g": "40", "x264-params": "bframes=8:b-adapt=0:b-pyramid=normal:ref=5"}, True),
    # From its key frames on, the decoder needs some more to have the whole picture.
    "intra_refresh": ("clip.mp4", {"x264-params": "intra-refresh=1:keyint=12"}, False),
    "hevc_open_groups": ("hevc.mp4", {"x265-params": "keyint=12:bframes=4:open-gop=1:log-level=0"}, True),
    "vp9": ("vp9.webm", {"g": "12", "deadline": "realtime", "cpu-used": "8"}, True),
    "mpeg4": ("mpeg4.avi", {"g": "12", "bf": "2"}, True),
    "mpeg2": ("mpeg2.ts", {"g": "12", "bf": "2"}, True),
}
CODECS = {"clip": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "mpeg4": "mpeg4", "mpeg2": "mpeg2video"}


def write_moving_clip(path, options, num_frames=120):
    """A texture that moves, so that every frame differs from those before it and refers to them."""
    texture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.stem], rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for k in range(num_frames):
            top, left = k % 140 // 2, k % 140
            image = np.ascontiguousarray(texture[top : top + 64, left : left + 96])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


class ReadingThrough(video_reading._PacketReader):
    """Gives up at once, so that all is decoded from the start."""

    def __init__(self, video):
        raise video_reading._IrregularVideo


@pytest.mark.parametrize("threads_above_pixels", [0, 10**9], ids=["threads", "one thread"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_same_frames_as_reading_through(name, threads_above_pixels, tmp_path, monkeypatch):
    file_name, options, is_regular = STRUCTURES[name]
    path = write_moving_clip(tmp_path / file_name, options)
    monkeypatch.setattr(video_reading, "SMALL_FRAME_PIXELS", threads_above_pixels)
    duration_seconds = probe(path).duration_seconds
    rng = np.random.default_rng(0)
    draws = [np.sort(rng.uniform(0, duration_seconds, count)) for count in (1, 1, 1, 2, 3, 5, 8, 20, 100)]
    with monkeypatch.context() as patch:
        patch.setattr(video_reading, "_PacketReader", ReadingThrough)
        expected = [read_frames(path, draw) for draw in draws]
    num_irregular = 0
    for draw, frames in zip(draws, expected, strict=True):
        np.testing.assert_array_equal(read_frames(path, draw), frames)
        with video_opening.open_video(path) as video:
            try:
                found = list(video_reading._PacketReader(video).frames_due(draw))
                assert sum(num_due for _, num_due in found) == len(draw)
            except video_reading._IrregularVideo:
                num_irregular += 1
    assert (num_irregular == 0) == is_regular
    assert len({frame.tobytes() for frame in expected[-1]}) > 50  # they do differ


@pytest.mark.parametrize("name", ["clip.avi", "clip.asf", "clip.mxf", "mpeg4.avi"])
def test_containers_without_times_of_display(name, tmp_path):
    """Times are those of decoding there, in an order that the B-frames' display is not in."""
    codec = Path(name).stem
    # x264's assembly writes other frames now and then, depending on what the process's memory held before.
    options = {"g": "12", "bf": "3", **({"x264-params": "asm=0"} if codec == "clip" else {})}
    instants_seconds = np.arange(120) / 25 + 0.02
    frames = read_frames(write_moving_clip(tmp_path / name, options), instants_seconds)
    # The same encoder's frames in a container that has such times.
    expected = read_frames(write_moving_clip(tmp_path / f"{codec}.mkv", options), instants_seconds)
    np.testing.assert_array_equal(frames, expected)
    for index in (0, 1, 17, 118):
        np.testing.assert_array_equal(read_frames(tmp_path / name, [index / 25 + 0.02])[0], expected[index])
    assert probe(tmp_path / name).duration_seconds == pytest.approx(120 / 25, abs=0.1)  # ASF counts its preroll


def test_no_more_is_decoded_than_needed(tmp_path, monkeypatch):
    path = write_moving_clip(tmp_path / "clip.mp4", {"x264-params": "keyint=20:min-keyint=20:bframes=2:b-adapt=0"})
    fed = []
    feed = video_reading._PacketReader._feed

    def watched(reader, packet):
        found = feed(reader, packet)
        fed.append((round(packet.pts * packet.time_base * 25), reader._codec.skip_frame))
        return found

    monkeypatch.setattr(video_reading._PacketReader, "_feed", watched)
    # Frame 95 needs those of its group before it that others refer to: key frame 80, and every third.
    read_frames(path, [95.5 / 25])
    assert sorted(number for number, skip in fed if skip == "DEFAULT") == [95]
    assert all(80 <= number <= 98 for number, _ in fed)
    fed.clear()
    read_frames(path, [10.5 / 25, 50.5 / 25, 51.5 / 25, 119.5 / 25])
    assert sorted(number for number, skip in fed if skip == "DEFAULT") == [10, 50, 51, 119]
    assert not {20, 30, 60, 75, 80, 99} & {number for number, _ in fed}


@pytest.mark.parametrize("name", ["one_group", "open_groups_without_an_index"])
def test_few_packets_are_held(name, tmp_path, monkeypatch):
    """However far it is to the next instant, with key frames on the way or without."""
    file_name, options, _ = STRUCTURES[name]
    path = write_moving_clip(tmp_path / file_name, options)
    instants_seconds = [0.01, 1.51, 1.73, 4.7]
    expected = read_frames(path, instants_seconds)
    monkeypatch.setattr(video_reading, "MAX_QUEUED_PACKETS", 30)
    lengths = []
    read_packet = video_reading._PacketReader._read_packet

    def watched(reader):
        found = read_packet(reader)
        lengths.append(len(reader._queue))
        return found

    monkeypatch.setattr(video_reading._PacketReader, "_read_packet", watched)
    np.testing.assert_array_equal(read_frames(path, instants_seconds), expected)
    assert len(lengths) > 100 and max(lengths) <= 31


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_what_lies_between_is_not_read(name, tmp_path):
    """A jump in the file, where its header says where the key frames are."""
    path = write_moving_clip(tmp_path / name, {"g": "10", "qp": "1"}, num_frames=1000)
    file = CountedFile(path.read_bytes())
    read_frames(file, [0.1, 39.0])
    assert file.num_bytes < path.stat().st_size / 3


# --- facts ---


def test_probe(make_clip):
    properties = probe(make_clip(fps=25, num_frames=50, start_seconds=3.0, height=48, width=80))
    assert properties.duration_seconds == pytest.approx(2.0)
    assert properties.start_seconds == pytest.approx(3.0)
    assert isinstance(properties.time_base, Fraction) and properties.time_base > 0
    assert (properties.height, properties.width, properties.rotation_degrees) == (48, 80, 0)


def test_last_frame_without_a_duration_is_shown_as_long_as_the_one_before():
    assert video_opening.end_ticks([(0, 0), (120, 0), (40, 0)]) == 200
    assert video_opening.end_ticks([(0, 40), (120, 10), (40, 40)]) == 130
    assert video_opening.end_ticks([(7, 0)]) == 7


def without_default_duration(path):
    """Overwrite Matroska's DefaultDuration by a void element, as in files that give no duration anywhere."""
    data = path.read_bytes()
    start = data.index(b"\x23\xe3\x83\x84")
    return data[:start] + b"\xec\x86" + bytes(6) + data[start + 8 :]


def test_no_duration_anywhere(make_clip, read_codes):
    data = without_default_duration(
        make_clip("live.webm", times_seconds=UNEVEN_SECONDS, container_options={"live": "1"}, **VP9)
    )
    assert probe(data).duration_seconds == pytest.approx(3.5)  # the last step is from 2.5 to 3.0
    assert read_codes(read_frames(data, [2.99, 3.49])) == [8, 9]
    with pytest.raises(VideoReadError, match="time 4.010 s"):
        read_frames(data, [4.01])


def test_single_frame_without_a_duration(make_clip):
    data = without_default_duration(make_clip("one.webm", num_frames=1, container_options={"live": "1"}, **VP9))
    with pytest.raises(VideoReadError, match="no duration"):
        probe(data)
    assert read_frames(data, [0.0]).shape == (1, 48, 64, 3)


# --- size and rotation ---


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation(degrees, make_clip):
    path = make_clip(rotation_degrees=degrees, num_frames=3)
    stored = code_image(1, 48, 64)
    upright = np.rot90(stored, degrees // 90)  # counter-clockwise, as PyAV's `rotation` is
    properties = probe(path)
    assert properties.rotation_degrees % 360 == degrees
    assert (properties.height, properties.width) == upright.shape[:2]
    frame = read_frames(path, [0.15])[0]
    assert frame.shape == upright.shape
    assert np.abs(frame.astype(int) - upright).mean() < 4
    # The size asked for is the displayed one.
    scaled = read_frames(path, [0.15], size=(20, 40))[0]
    assert scaled.shape == (20, 40, 3)
    assert np.abs(scaled.astype(int) - resize_frames(upright[None], (20, 40))[0]).mean() < 6


def test_rotation_of_a_phone_video(fixtures_dir):
    """A keyboard that lies on its side in the stored frames. Looked at: upright, the dark space bar is bottom left."""
    path = fixtures_dir / "videos" / "video_90.mov"
    properties = probe(path)
    assert (properties.height, properties.width, properties.rotation_degrees) == (568, 320, -90)
    frame = read_frames(path, [0.0])[0]
    assert frame.shape == (568, 320, 3)
    corners = [frame[490:540, 10:130], frame[490:540, 190:310], frame[20:70, 10:130], frame[20:70, 190:310]]
    assert np.argmin([corner.std() for corner in corners]) == 0


def test_odd_rotation_is_refused(make_clip):
    path = make_clip(rotation_degrees=45, num_frames=3)
    with pytest.raises(VideoReadError, match="rotated by 45 degrees"):
        probe(path)


def test_size_defaults_to_the_stored_one(make_clip):
    assert read_frames(make_clip(height=50, width=70), [0.0, 1.0]).shape == (2, 50, 70, 3)


def test_colours_are_rgb(tmp_path):
    path = tmp_path / "red.mp4"
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        image = np.zeros((48, 64, 3), np.uint8)
        image[..., 0], image[..., 1] = 200, 60
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(read_frames(path, [0.0]).mean(axis=(0, 1, 2)), [200, 60, 0], atol=6)


def test_resize_frames(make_clip):
    path = make_clip(height=96, width=128)
    instants_seconds = [0.05, 1.05]
    resized = resize_frames(read_frames(path, instants_seconds), (24, 32))
    assert resized.shape == (2, 24, 32, 3) and resized.dtype == np.uint8
    assert np.abs(resized.astype(int) - read_frames(path, instants_seconds, (24, 32))).max() <= 6
    # Views that are not contiguous are read as they look.
    frames = np.ascontiguousarray(read_frames(path, instants_seconds)[:, ::2, ::-1])
    np.testing.assert_array_equal(
        resize_frames(read_frames(path, instants_seconds)[:, ::2, ::-1], (24, 32)), resize_frames(frames, (24, 32))
    )


def test_resize_averages_when_it_scales_down():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.abs(resize_frames(stripes, (8, 8))[:, 1:-1].astype(int) - 100).max() < 12


@pytest.mark.parametrize(
    "frames", [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 3, 4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.float32)]
)
def test_resize_frames_refuses(frames):
    with pytest.raises(ValueError, match="expected \\(T, H, W, 3\\) and uint8"):
        resize_frames(frames, (2, 2))


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (4,), (4, 4, 3), (4.5, 4), (float("nan"), 4)])
def test_size_errors(size, make_clip):
    with pytest.raises(ValueError, match="two positive integers"):
        read_frames(make_clip(), [0.0], size=size)
    with pytest.raises(ValueError, match="two positive integers"):
        resize_frames(np.zeros((1, 4, 4, 3), np.uint8), size)


# --- sources ---


def test_all_kinds_of_source(make_clip, tmp_path, monkeypatch):
    path = make_clip()
    expected = read_frames(path, [0.25, 1.05])
    properties = probe(path)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, open(path, "rb") as file:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        limits = ReadLimits(allow_private_addresses=True)
        for source in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), file, f"{url}/{path.name}"):
            assert probe(source, limits) == properties
            np.testing.assert_array_equal(read_frames(source, [0.25, 1.05], limits=limits), expected)
            np.testing.assert_array_equal(read_frames(source, [0.25, 1.05], limits=limits), expected)
        with downloaded(f"{url}/{path.name}", limits) as source:
            path.rename(path.with_name("elsewhere.mp4"))
            assert probe(source) == properties
            np.testing.assert_array_equal(np.stack(list(iterate_frames(source, [0.25, 1.05]))), expected)
        assert source.file.closed
        with pytest.raises(VideoReadError, match="nowhere.mp4.*HTTP 404"):
            probe(f"{url}/nowhere.mp4", limits)
        with pytest.raises(VideoReadError, match=r"http://\*\*\*@127.*not a public address"):
            probe(url.replace("://", "://ann:secret@"))
        server.shutdown()


def test_file_names_are_no_protocols(make_clip, monkeypatch):
    path = make_clip("clip:10% of it.mp4")
    monkeypatch.chdir(path.parent)
    assert probe(path.name).duration_seconds == pytest.approx(2.0)


def test_unknown_kind_of_source():
    with pytest.raises(TypeError, match="type ndarray"):
        probe(np.zeros(3))


# --- bad input ---


def test_missing_file(tmp_path):
    for function in (probe, lambda source: read_frames(source, [0.0])):
        with pytest.raises(FileNotFoundError, match="gone.mp4"):
            function(tmp_path / "gone.mp4")


def write_audio(path, codec):
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream(codec, rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_cover_picture_only(path):
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
        stream.disposition = av.stream.Disposition.attached_pic
        container.mux(stream.encode(av.VideoFrame.from_ndarray(code_image(0, 48, 64), format="rgb24")))
    return path


def write_bytes(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: write_audio(folder / "bad.wav", "pcm_s16le"), "no video stream .found: audio"),
        (lambda folder: write_audio(folder / "bad.mp4", "aac"), "no video stream .found: audio"),
        (lambda folder: write_cover_picture_only(folder / "bad.mp4"), "no video stream"),
        (lambda folder: write_bytes(folder / "bad.mp4", b""), "it is empty"),
        (lambda folder: write_bytes(folder / "bad.mp4", b"This is no video.\n" * 40), "Invalid data"),
        (lambda folder: folder, "directory"),
    ],
    ids=["wav", "audio_mp4", "cover_picture", "empty", "text", "folder"],
)
def test_no_video_in_it(make, message, tmp_path):
    path = make(tmp_path)
    for function in (probe, lambda source: read_frames(source, [0.0])):
        with pytest.raises(VideoReadError, match=message) as caught:
            function(path)
        assert path.name in str(caught.value)
        assert "no frame was read" in str(caught.value)


def test_empty_bytes():
    with pytest.raises(VideoReadError, match="empty"):
        probe(b"")


def test_raw_stream_without_timestamps(make_clip):
    with pytest.raises(VideoReadError, match="no frame with a timestamp"):
        probe(make_clip("clip.h264"))
    with pytest.raises(VideoReadError, match="no frame with a timestamp"):
        read_frames(make_clip("clip.h264"), [0.0])


def test_stream_without_frames(make_clip):
    data = make_clip("clip.mkv", codec="ffv1", pix_fmt="yuv444p").read_bytes()
    headers_only = data[: data.index(b"\x1f\x43\xb6\x75")]  # up to Matroska's first cluster
    for function in (probe, lambda source: read_frames(source, [0.0])):
        with pytest.raises(VideoReadError, match="no frame"):
            function(headers_only)


def test_codec_without_decoder(make_clip):
    data = make_clip("clip.mkv", codec="ffv1", pix_fmt="yuv444p").read_bytes().replace(b"V_FFV1", b"V_XXXX")
    with pytest.raises(VideoReadError, match="decoder"):
        probe(data)


def test_cut_before_the_index(make_clip):
    """mp4 with its index at the end: nothing can be read of the cut file."""
    data = make_clip(num_frames=100).read_bytes()
    with pytest.raises(VideoReadError, match="no frame was read"):
        probe(data[: len(data) * 9 // 10])


def test_cut_after_the_index(make_clip, read_codes):
    """mp4 with its index in front: the facts are those of the whole, and reading past the cut says where it ended."""
    whole = make_clip(num_frames=100, container_options={"movflags": "faststart"}, codec_options={"g": "10"})
    cut = whole.with_name("cut.mp4")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 9 // 10])
    properties = probe(cut)
    assert properties.duration_seconds == pytest.approx(10.0)
    centers_seconds = (np.arange(20) + 0.5) * properties.duration_seconds / 20
    assert read_codes(read_frames(cut, centers_seconds[:6])) == [2, 7, 12, 17, 22, 27]
    with pytest.raises(VideoReadError, match="cut.mp4.*reading stopped at [5-9]\\.\\d+ s"):
        read_frames(cut, centers_seconds)


def test_cut_matroska_ends_early(make_clip, read_codes):
    whole = make_clip("clip.mkv", num_frames=100, codec_options={"g": "10"})
    data = whole.read_bytes()[: whole.stat().st_size // 2]
    assert 0 < probe(data).duration_seconds < 9
    with pytest.raises(VideoReadError, match="time 9.500 s"):
        read_frames(data, [0.0, 9.5])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_damage_is_not_skipped(name, make_clip, read_codes):
    """A damaged packet in the middle: its frame cannot be read, nor does it pass unseen; all others can."""
    path = make_clip(name, codec="libx264", num_frames=30, codec_options={"g": "5", "bf": "0"})
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][15]
        content, length = bytes(packet), packet.size
    data = bytearray(path.read_bytes())
    start = data.index(content)
    data[start + 5 : start + length] = b"\xff" * (length - 5)
    assert read_codes(read_frames(bytes(data), [0.0, 0.55, 1.45, 1.65, 2.55])) == [0, 5, 14, 16, 25]
    for read in (lambda source: read_frames(source, [0.0, 1.55]), check_video):
        with pytest.raises(VideoReadError, match="reading stopped at 1.400"):
            read(bytes(data))
    check_video(path)


def test_damage_patched_up_by_the_decoder_is_not_shown(fixtures_dir):
    """PyAV reports no error here, and all 250 frames come; frame 124 is marked as damaged."""
    data = bytearray((fixtures_dir / "videos" / "bikes.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    assert read_frames(bytes(data), [4.0], size=(8, 8)).shape == (1, 8, 8, 3)
    with pytest.raises(VideoReadError, match="a frame is damaged"):
        read_frames(bytes(data), [5.2], size=(8, 8))
    # From the next key frame on, nothing refers to it.
    assert read_frames(bytes(data), [5.5], size=(8, 8)).shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("instants_seconds", "message"),
    [
        ([-0.001], "instant -0.001 s"),
        ([0.0, float("nan")], "instant nan s"),
        ([float("inf")], "instant inf s"),
        ([], "shape \\(0,\\)"),
        ([[0.0]], "shape \\(1, 1\\)"),
        (0.0, "shape \\(\\)"),
    ],
)
def test_instants_that_are_none(instants_seconds, message, make_clip):
    with pytest.raises(ValueError, match=message):
        read_frames(make_clip(), instants_seconds)


def test_instants_after_the_end(make_clip, read_codes):
    path = make_clip()  # 2.0 s in steps of 0.1 s
    assert read_codes(read_frames(path, [1.999, 2.05])) == [19, 19]  # within a step, as containers round
    with pytest.raises(VideoReadError, match=r"requested time 2\.150 s; .*reading stopped at 1\.900 s"):
        read_frames(path, [0.0, 2.15])
    with pytest.raises(VideoReadError, match="no frame at the requested time"):
        read_frames(path, [1e16])  # more ticks than 64 bits


def test_frames_before_a_cut_if_asked_for(make_clip, read_codes):
    whole = make_clip(num_frames=100, container_options={"movflags": "faststart"}, codec_options={"g": "10"})
    data = whole.read_bytes()[: whole.stat().st_size * 9 // 10]
    instants_seconds = (np.arange(100) / 10 + 0.05)[::-1]
    with pytest.warns(UserWarning, match=r"Could not read.*Returning only the first \d+ of 100 frames"):
        frames = read_frames(data, instants_seconds, allow_truncated=True)
    # In the order of the instants, of which the latest came first.
    assert 50 <= len(frames) < 100
    assert read_codes(frames) == list(range(len(frames)))[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_frames(whole, instants_seconds, allow_truncated=True)) == 100
    # Where no frame is left there is nothing to return, whatever is allowed.
    with pytest.raises(VideoReadError, match="time 11.000 s"):
        read_frames(whole, [11.0], allow_truncated=True)


# --- limits ---


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_duration_seconds": 1.9}, "its duration is 2 s, above the limit max_duration_seconds=1.9"),
        ({"max_frames": 19}, "it has too many frames, above the limit max_frames=19"),
        ({"max_pixels": 48 * 64 - 1}, "its frames have 64 x 48 pixels"),
        ({"timeout_seconds": 0.0}, "limit timeout_seconds=0.0"),
    ],
)
def test_limits(limits, message, make_clip):
    path = make_clip()
    within = ReadLimits(max_duration_seconds=2.0, max_frames=20, max_pixels=48 * 64, timeout_seconds=60)
    assert probe(path, within) == probe(path)
    with pytest.raises(VideoLimitError, match=message):
        probe(path, ReadLimits(**limits))
    assert len(read_frames(path, [0.0, 1.95], limits=within)) == 2
    if "max_duration_seconds" not in limits:
        for read in (read_frames, lambda *args, **kwargs: list(iterate_frames(*args, **kwargs))):
            with pytest.raises(VideoLimitError, match=message):
                read(path, [k / 10 + 0.05 for k in range(20)], limits=ReadLimits(**limits))
        with pytest.raises(VideoLimitError, match=message):
            read_frames(path, [k / 10 + 0.05 for k in range(20)], allow_truncated=True, limits=ReadLimits(**limits))


def test_cutting_has_limits_too(make_clip, tmp_path):
    path = make_clip()
    with pytest.raises(VideoLimitError, match="max_frames=19"):
        cut_video(path, 0.0, 2.0, tmp_path / "cut.mp4", ReadLimits(max_frames=19))
    # The limit is met in the middle of the copy.
    with pytest.raises(VideoLimitError), mock.patch.object(video_cutting, "probe", lambda *_: probe(path)):
        cut_video(path, 0.5, 2.0, tmp_path / "cut.mp4", ReadLimits(max_frames=19))
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_limit_of_a_download_is_one(monkeypatch):
    def fetch(url, max_bytes, timeout_seconds, allow_private_addresses):
        raise video_opening.VideoFetchLimitError("the file has 9 bytes, more than the limit of 8 bytes")

    monkeypatch.setattr(video_opening, "fetch_video", fetch)
    with pytest.raises(VideoLimitError, match="http://host/a.mp4: the file has 9 bytes"):
        read_frames("http://host/a.mp4", [0.0])


def test_downloading_and_reading_have_a_time_each(make_clip, monkeypatch):
    data = make_clip().read_bytes()

    def fetch(*_):
        time.sleep(0.7)
        return io.BytesIO(data)

    monkeypatch.setattr(video_opening, "fetch_video", fetch)
    assert len(read_frames("http://host/a.mp4", [0.0], limits=ReadLimits(timeout_seconds=0.6))) == 1


def test_errors_say_how_far_frames_were_read(make_clip):
    frames = iterate_frames(make_clip(num_frames=100), np.arange(100) / 10 + 0.05, limits=ReadLimits(max_frames=60))
    with pytest.raises(VideoLimitError, match=r"reading stopped at [2-5]\.\d+ s"):
        list(frames)


def test_time_of_a_caller_does_not_count(make_clip):
    frames = iterate_frames(make_clip(), [0.05, 1.05, 1.95], limits=ReadLimits(timeout_seconds=0.5))
    for _ in range(3):
        next(frames)
        time.sleep(0.6)


def test_a_gif_that_claims_to_be_huge(tmp_path):
    """17 GB as a canvas."""
    path = tmp_path / "clip.gif"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb8"
        for k in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), k, np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    assert read_frames(path, [0.05]).shape == (1, 48, 64, 3)
    data = bytearray(path.read_bytes())
    data[6:10] = b"\xff" * 4
    for read in (probe, lambda source: read_frames(source, [0.05])):
        with pytest.raises(VideoReadError):
            read(bytes(data))
    assert max_resident_bytes() < 4e9


def test_a_frame_larger_than_the_header_says(make_clip):
    """Small and large frames in one stream: the large ones are not decoded either."""
    data = make_clip("small.ts").read_bytes() + make_clip("large.ts", height=480, width=640).read_bytes()
    limits = ReadLimits(max_pixels=48 * 64)
    assert len(read_frames(data, [0.05, 1.05], limits=limits)) == 2
    instants_seconds = np.arange(0, 3.9, 0.1)
    with pytest.raises(VideoReadError):
        read_frames(data, instants_seconds, limits=limits)


def max_resident_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_a_playlist_opens_no_other_file(make_clip, tmp_path):
    """Of FFmpeg's formats, some name other files: of those in a video that was sent, none is read."""
    path = make_clip()
    playlist = f"ffconcat version 1.0\nfile '{path}'\n".encode()
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\nfile://{path}\n#EXT-X-ENDLIST\n".encode()
    for number, content in enumerate((playlist, hls, b"ffconcat version 1.0\nfile clip.mp4\n")):
        named = tmp_path / f"up{number}.mp4"
        named.write_bytes(content)
        for source in (content, named):
            with pytest.raises(VideoReadError):
                probe(source)


def test_errors_survive_pickling(tmp_path):
    """`DataLoader` rebuilds a worker's error from its message alone."""
    with pytest.raises(VideoReadError) as caught:
        probe(b"")
    assert str(type(caught.value)(str(caught.value))) == str(caught.value)
