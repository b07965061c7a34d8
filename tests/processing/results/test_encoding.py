"""Cutting to the frame: what a clip shows and sounds like, read by PyAV alone, beside what its source was made of."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import code_image
from test_cutting import CLIPS, UNEVEN_SECONDS

from processing.results.encoding import cut_video_exactly
from processing.video_io import VideoReadError, probe, read_frames


def decode(path):
    """Seconds from the clip's first frame, and picture, of each frame."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return [seconds - frames[0][0] for seconds, _ in frames], np.stack([picture for _, picture in frames])


@pytest.mark.parametrize("span", [(0.0, 0.45), (1.0, 1.6), (1.25, 2.75), (2.0, 99.0), (2.22, 2.22)])
@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_begins_and_ends_to_the_frame(name, span, make_clip, read_codes, tmp_path):
    file_name, kwargs = CLIPS[name]
    begin_seconds = kwargs.get("times_seconds", [k / 10 for k in range(30)])
    video = make_clip(file_name, **{"num_frames": 30, **kwargs})
    duration_seconds = probe(video).duration_seconds
    path = tmp_path / f"cut_{file_name}".replace(".avi", ".mp4")
    covered = cut_video_exactly(video, *span, path)

    start_seconds, end_seconds = span
    # An AVI has no ticks but its frames.
    tick_seconds = 0.1 if name == "avi" else 0.001
    shown = [k for k, begin in enumerate(begin_seconds) if begin <= covered[0] + 1e-6][-1:]
    shown += [k for k, begin in enumerate(begin_seconds) if covered[0] + 1e-6 < begin < covered[1] - 1e-6]
    assert covered[0] == pytest.approx(start_seconds, abs=0.51 * tick_seconds)
    if end_seconds > start_seconds:
        assert covered[1] == pytest.approx(min(end_seconds, duration_seconds), abs=0.51 * tick_seconds)
    else:
        assert covered[1] == pytest.approx(next(begin for begin in begin_seconds if begin > start_seconds), abs=0.001)

    seconds, pictures = decode(path)
    assert read_codes(pictures) == shown
    expected_seconds = [max(0.0, begin_seconds[k] - covered[0]) for k in shown]
    np.testing.assert_allclose(seconds, expected_seconds, atol=0.0015)
    # What a transport stream says of its last frame's end is that it comes some time.
    if name != "transport_stream":
        assert probe(path).duration_seconds == pytest.approx(covered[1] - covered[0], abs=0.0015)


def test_every_frame_can_be_the_first_and_the_last(make_clip, read_codes, tmp_path):
    video = make_clip(num_frames=30, codec_options={"g": "30", "bf": "3"})
    for first in range(0, 30, 4):
        for last in range(first, 30, 7):
            cut_video_exactly(video, first / 10, (last + 1) / 10, tmp_path / "cut.mp4")
            assert read_codes(decode(tmp_path / "cut.mp4")[1]) == list(range(first, last + 1))


def test_between_two_frames(make_clip, tmp_path):
    """The clip's clock begins with it, not with the frame that it finds on display."""
    video = make_clip(times_seconds=UNEVEN_SECONDS, name="clip.mkv")
    assert cut_video_exactly(video, 1.3, 1.76, tmp_path / "cut.mkv") == (1.3, 1.76)
    seconds, pictures = decode(tmp_path / "cut.mkv")
    np.testing.assert_allclose(seconds, [0, 0.4, 0.44], atol=1e-6)
    assert probe(tmp_path / "cut.mkv").duration_seconds == pytest.approx(0.46, abs=1e-6)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_orientation_is_kept(degrees, make_clip, tmp_path):
    video = make_clip(num_frames=30, rotation_degrees=degrees)
    cut_video_exactly(video, 1.0, 2.0, tmp_path / "cut.mp4")
    difference = read_frames(tmp_path / "cut.mp4", [0.35]).astype(int) - read_frames(video, [1.35])
    assert abs(difference).max() < 12
    assert probe(tmp_path / "cut.mp4").rotation_degrees == probe(video).rotation_degrees


@pytest.mark.parametrize(
    ("pix_fmt", "expected", "size"),
    [
        ("yuv420p", "yuv420p", (48, 64)),
        ("yuv444p", "yuv444p", (48, 64)),
        ("yuv420p10le", "yuv420p10le", (48, 64)),
        ("yuv444p", "yuv444p", (48, 62)),
    ],
)
def test_pictures_stay_as_they_are(pix_fmt, expected, size, make_clip, tmp_path):
    video = make_clip("clip.mkv", num_frames=20, pix_fmt=pix_fmt, height=size[0], width=size[1])
    cut_video_exactly(video, 0.5, 1.5, tmp_path / "cut.mkv")
    with av.open(str(tmp_path / "cut.mkv")) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, context.height, context.width) == (expected, *size)
    for seconds in (0.05, 0.95):
        difference = read_frames(tmp_path / "cut.mkv", [seconds]).astype(int) - read_frames(video, [0.5 + seconds])
        assert abs(difference).mean() < 2


def test_odd_sizes_become_even(make_clip, tmp_path):
    video = make_clip("clip.mkv", num_frames=20, codec="ffv1", pix_fmt="yuv420p", height=47, width=61)
    cut_video_exactly(video, 0.5, 1.5, tmp_path / "cut.mp4")
    assert read_frames(tmp_path / "cut.mp4", [0.05]).shape == (1, 46, 60, 3)


def write_with_beeps(path, encoder="aac", starts_seconds=(0.0,), rate=16000, layout="stereo"):
    """
    Six seconds at 10 frames a second; each stream of sound is silent but for a tone from 2.5 to 3.0 s, and begins at
    its start.
    """
    with av.open(str(path), mode="w") as container:
        codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        sounds = [container.add_stream(encoder, rate=rate, layout=layout) for _ in starts_seconds]
        packets = []
        for k in range(60):
            frame = av.VideoFrame.from_ndarray(code_image(k, 48, 64), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 10)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for sound, start_seconds in zip(sounds, starts_seconds, strict=True):
            seconds = np.arange(round(start_seconds * rate), 6 * rate) / rate
            wave = 0.5 * np.sin(2 * np.pi * 440 * seconds) * ((seconds >= 2.5) & (seconds < 3.0))
            waves = np.tile(wave.astype(np.float32), (sound.codec_context.layout.nb_channels, 1))
            heard = av.AudioFrame.from_ndarray(waves, "fltp", layout)
            heard.sample_rate, heard.pts = rate, round(start_seconds * rate)
            packets += sound.encode(heard) + sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def loud_span(path, index=0):
    """From when to when a stream of sound is loud, on the clock of the clip's first frame, and when it ends."""
    first_seconds = probe(path).start_seconds
    with av.open(str(path)) as container:
        planar = av.AudioResampler("fltp")
        frames = [planar.resample(frame)[0] for frame in container.decode(audio=index)]
    parts = [(frame.time - first_seconds, frame.sample_rate, abs(frame.to_ndarray()).max(axis=0)) for frame in frames]
    rate = parts[0][1]
    seconds = np.concatenate([begin + np.arange(len(levels)) / rate for begin, _, levels in parts])
    levels = np.concatenate([levels for _, _, levels in parts])
    loud = seconds[levels > 0.2 * levels.max()]
    return loud[0], loud[-1], seconds[-1]


@pytest.mark.parametrize(
    ("name", "encoder", "rate"),
    [
        ("sound.mp4", "aac", 16000),
        ("sound.mkv", "aac", 44100),
        ("sound.mov", "pcm_f32le", 16000),
        ("sound.webm", "libopus", 48000),
        # Rates that AAC does not have, or not at every bit rate.
        ("sound.mkv", "flac", 11000),
        ("sound.mov", "pcm_s16le", 8000),
    ],
)
def test_sound_stays_with_the_picture(name, encoder, rate, read_codes, tmp_path):
    video = write_with_beeps(tmp_path / name, "pcm_s16le" if encoder == "pcm_f32le" else encoder, rate=rate)
    source_loud = loud_span(video)
    assert source_loud[:2] == pytest.approx((2.5, 3.0), abs=0.02)
    assert cut_video_exactly(video, 1.35, 4.25, tmp_path / f"cut_{name}") == (1.35, 4.25)
    begin_seconds, end_seconds, last_seconds = loud_span(tmp_path / f"cut_{name}")
    assert (begin_seconds, end_seconds) == pytest.approx((2.5 - 1.35, 3.0 - 1.35), abs=0.02)
    # An encoder fills its last block.
    assert 2.9 - 0.001 <= last_seconds < 2.9 + 0.08
    assert read_codes(decode(tmp_path / f"cut_{name}")[1]) == list(range(13, 43))


def test_surround_becomes_stereo(tmp_path):
    video = write_with_beeps(tmp_path / "sound.mkv", "ac3", rate=48000, layout="5.1(side)")
    for name in ("cut.mkv", "cut.webm"):
        cut_video_exactly(video, 1.35, 4.25, tmp_path / name)
        assert loud_span(tmp_path / name)[:2] == pytest.approx((2.5 - 1.35, 3.0 - 1.35), abs=0.02)
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.audio[0].codec_context.layout.name == "stereo"


def test_a_cut_inside_a_tone_begins_loud(tmp_path):
    video = write_with_beeps(tmp_path / "sound.mp4")
    cut_video_exactly(video, 2.6, 2.9, tmp_path / "cut.mp4")
    begin_seconds, end_seconds, _ = loud_span(tmp_path / "cut.mp4")
    assert begin_seconds < 0.02 and end_seconds > 0.28


def test_all_streams_of_sound_are_kept_also_one_that_begins_late(tmp_path):
    video = write_with_beeps(tmp_path / "sound.mp4", starts_seconds=(0.0, 2.0))
    cut_video_exactly(video, 1.0, 3.5, tmp_path / "cut.mp4")
    for index in range(2):
        assert loud_span(tmp_path / "cut.mp4", index)[:2] == pytest.approx((1.5, 2.0), abs=0.02)


def test_real_video_with_sound(fixtures_dir, tmp_path):
    video = fixtures_dir / "videos" / "nasa_13013.mp4"
    assert cut_video_exactly(video, 9.0, 10.0, tmp_path / "cut.mp4") == pytest.approx((9.0, 10.0), abs=1e-3)
    with av.open(str(tmp_path / "cut.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio", "audio"]
        assert float(container.streams.audio[0].duration * container.streams.audio[0].time_base) == pytest.approx(
            1, abs=0.05
        )
    instants_seconds = np.arange(0.02, 1.0, 0.1)
    found = read_frames(tmp_path / "cut.mp4", instants_seconds).astype(int)
    assert abs(found - read_frames(video, instants_seconds + 9.0)).mean() < 2.5


@pytest.mark.parametrize("name", ["bikes.mp4", "h265_video.mp4", "av1_video.mkv", "no_duration.webm", "video_90.mov"])
def test_real_videos(name, fixtures_dir, tmp_path):
    video = fixtures_dir / "videos" / name
    duration_seconds = probe(video).duration_seconds
    start_seconds, end_seconds = 0.5 * duration_seconds, min(0.5 * duration_seconds + 1, 0.8 * duration_seconds)
    covered = cut_video_exactly(video, start_seconds, end_seconds, tmp_path / name)
    assert covered == pytest.approx((start_seconds, end_seconds), abs=0.001)
    assert probe(tmp_path / name).duration_seconds == pytest.approx(end_seconds - start_seconds, abs=0.002)
    instants_seconds = np.linspace(0.01, end_seconds - start_seconds - 0.01, 5)
    found = read_frames(tmp_path / name, instants_seconds, size=(90, 160)).astype(int)
    assert abs(found - read_frames(video, instants_seconds + covered[0], size=(90, 160))).mean() < 4


def test_forms_of_a_source_and_another_container(make_clip, read_codes, tmp_path):
    video = make_clip(num_frames=30)
    content = video.read_bytes()
    for source in (str(video), content, io.BytesIO(content)):
        assert cut_video_exactly(source, 1.0, 2.0, str(tmp_path / "cut.webm")) == (1.0, 2.0)
        assert read_codes(decode(tmp_path / "cut.webm")[1]) == list(range(10, 20))


# --- bad input ---


@pytest.mark.parametrize("span", [(-1, 2), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_bad_times(span, make_clip, tmp_path):
    with pytest.raises(ValueError, match="0 <= start <= end"):
        cut_video_exactly(make_clip(), *span, tmp_path / "cut.mp4")


def test_a_source_is_not_replaced(make_clip, tmp_path):
    video = make_clip()
    content = video.read_bytes()
    with pytest.raises(ValueError, match="would replace its source"):
        cut_video_exactly(video, 0, 1, tmp_path / "." / video.name)
    assert video.read_bytes() == content


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("cut.ogg", "cannot be encoded|Invalid argument"),
        ("cut.unknown", "output format"),
        ("no_folder/cut.mp4", "No such"),
    ],
)
def test_what_cannot_be_written(target, reason, make_clip, tmp_path):
    video = make_clip()
    (tmp_path / "cut.ogg").write_text("an earlier file")
    with pytest.raises(VideoReadError, match=f"clip.mp4 into .*{target}.*({reason})"):
        cut_video_exactly(video, 0, 1, tmp_path / target)
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "cut.ogg"}
    assert (tmp_path / "cut.ogg").read_text() == "an earlier file"


def test_damage_is_an_error(make_clip, tmp_path):
    video = make_clip(num_frames=50, container_options={"movflags": "faststart"})
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(VideoReadError, match="Could not read the video"):
        cut_video_exactly(video, 0, 5, tmp_path / "cut.mp4")
    assert not (tmp_path / "cut.mp4").exists()


def test_bad_sources(make_clip, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        cut_video_exactly(tmp_path / "gone.mp4", 0, 1, tmp_path / "cut.mp4")
    with pytest.raises(VideoReadError, match="17 bytes"):
        cut_video_exactly(b"This is no video.", 0, 1, tmp_path / "cut.mp4")
    for start_seconds in (2.0, 2.5):
        with pytest.raises(VideoReadError, match="ends at 2.000 s"):
            cut_video_exactly(make_clip(), start_seconds, 3, tmp_path / "cut.mp4")
    assert not (tmp_path / "cut.mp4").exists()
