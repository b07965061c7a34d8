"""Cutting without encoding: a cut's packets, frames and sound, read by PyAV alone, and those of its source."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import code_image

from processing.results.cutting import cut_video
from processing.video_io import VideoReadError, probe, read_frames


VP9 = {"codec": "libvpx-vp9", "codec_options": {"cpu-used": "8", "deadline": "realtime", "g": "10"}}
# A key frame every 0.7 s and nowhere else.
EVERY_7 = {"g": "7", "bf": "0", "sc_threshold": "0"}
UNEVEN_SECONDS = [0, 0.04, 0.5, 0.51, 0.9, 1.7, 1.74, 1.78, 2.5, 3.0]
CLIPS = {
    "mp4": ("clip.mp4", {"codec_options": {"g": "7", "bf": "0"}}),
    "b_frames": ("clip.mp4", {"codec_options": {"g": "12", "bf": "3"}}),
    # Frames that are stored after a key frame and shown before it: they need the part that is left out.
    "open_gop": (
        "clip.mp4",
        {"codec_options": {"g": "12", "bf": "3", "flags": "-cgop", "b_strategy": "0", "sc_threshold": "0"}},
    ),
    "b_frames_mkv": ("clip.mkv", {"codec_options": {"g": "12", "bf": "3"}}),
    "webm": ("clip.webm", VP9),
    "live_webm": ("clip.webm", {**VP9, "container_options": {"live": "1"}}),
    "fragmented": ("clip.mp4", {"codec_options": {"g": "7"}, "container_options": {"movflags": "frag_keyframe"}}),
    "transport_stream": ("clip.ts", {"start_seconds": 5.0, "codec_options": {"g": "5"}}),
    "late": ("clip.mp4", {"start_seconds": 5.0, "codec_options": {"g": "7"}}),
    "rotated": ("clip.mp4", {"rotation_degrees": 90, "codec_options": {"g": "7"}}),
    "avi": ("clip.avi", {"codec": "mpeg4", "codec_options": {"g": "7"}}),
    "uneven": ("clip.mkv", {"times_seconds": UNEVEN_SECONDS, "codec_options": {"g": "3", "bf": "0"}}),
}
WITHOUT_B_FRAMES = {"mp4", "webm", "live_webm", "avi", "uneven"}


def packets(path, kind="video"):
    """`(seconds from the first frame, is key frame, content)` of each packet, in the order they are stored."""
    first_seconds = probe(path).start_seconds
    with av.open(str(path)) as container:
        (stream,) = container.streams.get(**{kind: 0})
        return [
            (float(packet.pts * packet.time_base) - first_seconds, packet.is_keyframe, bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


@pytest.mark.parametrize("span", [(0.0, 0.45), (1.0, 1.6), (1.25, 2.75), (2.0, 99.0), (2.22, 2.22)])
@pytest.mark.parametrize("name", CLIPS)
def test_a_cut_holds_the_frames_from_the_key_frame_to_the_end(name, span, make_clip, read_codes, tmp_path):
    file_name, kwargs = CLIPS[name]
    times_seconds = np.array(kwargs.get("times_seconds", [k / 10 for k in range(30)]))
    video = make_clip(file_name, **{"num_frames": 30, **kwargs})
    path = tmp_path / f"cut_{file_name}"
    start_seconds, end_seconds = span
    covered = cut_video(video, start_seconds, end_seconds, path)

    key_seconds = max(seconds for seconds, is_key, _ in packets(video) if is_key and seconds <= start_seconds + 1e-6)
    assert covered[0] == pytest.approx(key_seconds, abs=1e-6)
    cut_packets = packets(path)
    assert cut_packets[0][1]
    with av.open(str(path)) as container:
        codes = read_codes(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))

    if name == "open_gop":
        order = [seconds for seconds, _, _ in packets(video)]
        assert any(order[k] > order[k + 1] for k, (_, is_key, _) in enumerate(packets(video)) if is_key)
    # All frames from the key frame to the end and none twice; B-frames may ask for up to four more.
    first = int(np.searchsorted(times_seconds, key_seconds - 1e-6))
    last = max(k for k, seconds in enumerate(times_seconds) if seconds < end_seconds or seconds <= start_seconds)
    assert codes == list(range(first, codes[-1] + 1))
    assert last <= codes[-1] <= last + (0 if name in WITHOUT_B_FRAMES else 4)
    cut_seconds = sorted(seconds for seconds, _, _ in cut_packets)
    np.testing.assert_allclose(cut_seconds, times_seconds[codes] - times_seconds[first], atol=0.0015)
    if len(codes) > 1:
        assert probe(path).duration_seconds == pytest.approx(covered[1] - covered[0], abs=0.002)


def test_nothing_is_encoded_anew(make_clip, tmp_path):
    video = make_clip(num_frames=30, codec_options=EVERY_7)
    assert cut_video(video, 1.0, 2.0, tmp_path / "cut.mp4") == (0.7, 2.0)
    expected = [content for seconds, _, content in packets(video) if 0.7 <= round(seconds, 3) < 2.0]
    assert [content for _, _, content in packets(tmp_path / "cut.mp4")] == expected
    instants_seconds = np.arange(13) / 10 + 0.05
    np.testing.assert_array_equal(
        read_frames(tmp_path / "cut.mp4", instants_seconds), read_frames(video, instants_seconds + 0.7)
    )


def test_no_time_at_all_is_the_frame_shown_then(make_clip, tmp_path):
    video = make_clip(num_frames=30, codec_options=EVERY_7)
    assert cut_video(video, 0.7, 0.7, tmp_path / "cut.mp4") == (0.7, 0.8)
    assert len(packets(tmp_path / "cut.mp4")) == 1


def test_orientation_is_kept(make_clip, tmp_path):
    video = make_clip(num_frames=30, rotation_degrees=90, codec_options=EVERY_7)
    cut_video(video, 1.0, 2.0, tmp_path / "cut.mp4")
    np.testing.assert_array_equal(read_frames(tmp_path / "cut.mp4", [0.35]), read_frames(video, [0.7 + 0.35]))


def write_with_sound(path):
    """
    Four seconds at 10 frames a second, a key frame every second, and at 1000 samples a second a sound of which each
    sample is its own number.
    """
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=10, options={**EVERY_7, "g": "10"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=1000, layout="mono")
        pictures, sounds = [], []
        for k in range(40):
            frame = av.VideoFrame.from_ndarray(code_image(k, 48, 64), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 10)
            pictures += stream.encode(frame)
            samples = np.arange(100 * k, 100 * k + 100, dtype=np.int16)[None]
            heard = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = 1000, 100 * k, Fraction(1, 1000)
            sounds += sound.encode(heard)
        pictures += stream.encode(None)
        container.mux(sounds)
        container.mux(pictures)
    return path


@pytest.mark.parametrize("name", ["sound.mov", "sound.mkv"])
def test_sound_stays_with_the_picture(name, read_codes, tmp_path):
    video = write_with_sound(tmp_path / name)
    covered = cut_video(video, 1.35, 2.5, tmp_path / f"cut_{name}")
    assert covered == (1.0, 2.5)
    with av.open(str(tmp_path / f"cut_{name}")) as container:
        heard = [(frame.pts * frame.time_base, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
    # The number of a sample is its time in milliseconds: the cut's own time and a second.
    for seconds, samples in heard:
        assert samples[0] == pytest.approx(1000 * seconds + 1000, abs=1)
    samples = np.concatenate([samples for _, samples in heard])
    np.testing.assert_array_equal(samples, np.arange(samples[0], samples[0] + len(samples)))
    # Whole packets are copied: those that begin within the cut.
    assert 1000 <= samples[0] < 1100 and 2500 <= samples[-1] + 1 < 2600
    assert read_codes(read_frames(tmp_path / f"cut_{name}", [0.05, 1.45])) == [10, 24]


def test_other_pictures_and_subtitles_are_left_out(fixtures_dir, tmp_path):
    video = fixtures_dir / "videos" / "nasa_13013.mp4"
    with av.open(str(video)) as container:
        assert [stream.type for stream in container.streams] == 2 * ["video", "audio", "subtitle"]
    covered = cut_video(video, 9.0, 10.0, tmp_path / "cut.mp4")
    assert covered[0] == pytest.approx(8.08) and 10.0 <= covered[1] < 10.2
    with av.open(str(tmp_path / "cut.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio", "audio"]
        assert float(container.streams.audio[0].duration * container.streams.audio[0].time_base) > 1.8
    np.testing.assert_array_equal(
        read_frames(tmp_path / "cut.mp4", np.arange(0.02, 1.9, 0.2)), read_frames(video, np.arange(8.10, 9.98, 0.2))
    )


@pytest.mark.parametrize("name", ["bikes.mp4", "h265_video.mp4", "av1_video.mkv", "no_duration.webm", "video_90.mov"])
def test_real_videos(name, fixtures_dir, tmp_path):
    video = fixtures_dir / "videos" / name
    duration_seconds = probe(video).duration_seconds
    path = tmp_path / name
    covered = cut_video(video, 0.5 * duration_seconds, 0.8 * duration_seconds, path)
    assert covered[0] <= 0.5 * duration_seconds and covered[1] >= 0.8 * duration_seconds - 1e-6
    assert probe(path).duration_seconds == pytest.approx(covered[1] - covered[0], abs=0.002)
    # In the middles of the frames, by their own times.
    starts_seconds = [seconds for seconds, _, _ in sorted(packets(path))][:-1]
    instants_seconds = np.array(starts_seconds[::5]) + 0.005
    np.testing.assert_array_equal(
        read_frames(path, instants_seconds, size=(90, 160)),
        read_frames(video, instants_seconds + covered[0], size=(90, 160)),
    )


def test_forms_of_a_source_and_another_container(make_clip, tmp_path):
    video = make_clip(num_frames=30, codec_options=EVERY_7)
    content = video.read_bytes()
    for source in (str(video), content, io.BytesIO(content)):
        assert cut_video(source, 1.0, 2.0, str(tmp_path / "cut.mkv")) == (0.7, 2.0)
        assert [kept for *_, kept in packets(tmp_path / "cut.mkv")] == [
            c for s, _, c in packets(video) if 0.65 < s < 1.95
        ]


# --- bad input ---


@pytest.mark.parametrize("span", [(-1, 2), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_bad_times(span, make_clip, tmp_path):
    with pytest.raises(ValueError, match="0 <= start <= end"):
        cut_video(make_clip(), *span, tmp_path / "cut.mp4")


def test_a_source_is_not_replaced(make_clip, tmp_path):
    video = make_clip()
    content = video.read_bytes()
    with pytest.raises(ValueError, match="would replace its source"):
        cut_video(video, 0, 1, tmp_path / "." / video.name)
    assert video.read_bytes() == content


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("cut.webm", "'webm' format does not support 'h264' codec"),
        ("cut.ogg", "cannot be copied.*Invalid argument"),  # refused only when the file has been begun
        ("cut.unknown", "output format"),
        ("no_folder/cut.mp4", "No such file"),
    ],
)
def test_what_cannot_be_written(target, reason, make_clip, tmp_path):
    video = make_clip()
    (tmp_path / "cut.webm").write_text("an earlier file")
    with pytest.raises(VideoReadError, match=f"clip.mp4 into .*{target}.*{reason}"):
        cut_video(video, 0, 1, tmp_path / target)
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "cut.webm"}
    assert (tmp_path / "cut.webm").read_text() == "an earlier file"


def test_bad_sources(make_clip, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        cut_video(tmp_path / "gone.mp4", 0, 1, tmp_path / "cut.mp4")
    with pytest.raises(VideoReadError, match="17 bytes"):
        cut_video(b"This is no video.", 0, 1, tmp_path / "cut.mp4")
    with pytest.raises(VideoReadError, match="ends at 2.000 s"):
        cut_video(make_clip(), 2.5, 3, tmp_path / "cut.mp4")
    assert not (tmp_path / "cut.mp4").exists()
