import functools
import http.server
import json
import math
import os
import threading

import av
import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata

from modeling_scada import ReadLimits, ScadaProcessor, ScadaVideoProcessor, Timeline, VideoReadError
from processing.video_io import read_frames


MEAN = (0.485, 0.456, 0.406)  # ImageNet's, written out: the processor takes them from transformers
STD = (0.229, 0.224, 0.225)
UNEVEN_SECONDS = [0, 0.04, 0.5, 0.51, 0.9, 1.7, 1.74, 1.78, 2.5, 3.0]  # the last frame is shown for 0.1 s, as stated
EVEN_SECONDS = [k / 10 for k in range(19)]


@pytest.fixture
def video_processor():
    return ScadaVideoProcessor(num_frames=8, size={"height": 24, "width": 32})


def as_uint8(pixel_values, mean=MEAN, std=STD):
    """(T, 3, H, W) normalised -> (T, H, W, 3) uint8, undoing the normalisation in plain numpy."""
    pixels = np.moveaxis(np.asarray(pixel_values, dtype=np.float64), 1, -1)
    return np.rint((pixels * std + mean) * 255).astype(np.uint8)


def decode_all(path):
    """All frames at their own size, by PyAV alone."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def random_frames(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# --- which frames ---


@pytest.mark.parametrize("num_frames", [1, 3, 8, 33])
@pytest.mark.parametrize(
    ("name", "times_seconds", "end_seconds", "kwargs"),
    [
        ("clip.mp4", EVEN_SECONDS, 1.9, {"num_frames": 19}),
        ("clip.mp4", EVEN_SECONDS, 1.9, {"num_frames": 19, "start_seconds": 5.0}),
        ("clip.mp4", UNEVEN_SECONDS, 3.1, {"times_seconds": UNEVEN_SECONDS}),
        ("clip.mkv", UNEVEN_SECONDS, 3.1, {"times_seconds": UNEVEN_SECONDS, "start_seconds": 5.0}),
    ],
    ids=["constant_rate", "start_offset", "variable_rate", "variable_rate_start_offset_mkv"],
)
def test_sampling_instants(
    name, times_seconds, end_seconds, kwargs, num_frames, make_clip, read_codes, video_processor
):
    path = make_clip(name, **kwargs)
    expected = []
    for k in range(num_frames):
        instant_seconds = 0.0 + (k + 0.5) * (end_seconds - 0.0) / num_frames
        assert min(abs(instant_seconds - t) for t in times_seconds) > 1e-4  # no instant hangs on rounding
        expected.append(sum(t <= instant_seconds for t in times_seconds) - 1)
    features = video_processor(path, num_frames=num_frames, return_timelines=True)
    assert read_codes(as_uint8(features["pixel_values_videos"][0])) == expected
    (timeline,) = features["timelines"]
    assert isinstance(timeline, Timeline)
    assert (timeline.start_seconds, timeline.end_seconds) == (0.0, pytest.approx(end_seconds, abs=1e-9))


def test_sampling_from_an_array(video_processor, read_codes, make_clip):
    """The same instants over frames that are shown for equally long."""
    frames = decode_all(make_clip(num_frames=11))
    features = video_processor(frames, video_metadata={"fps": 4}, num_frames=5, return_timelines=True)
    assert read_codes(as_uint8(features["pixel_values_videos"][0])) == [1, 3, 5, 7, 9]  # (k + 0.5) * 11 / 5, cut
    assert features["timelines"][0].end_seconds == 11 / 4
    upsampled = video_processor(frames[:3], video_metadata={"fps": 4}, num_frames=8)["pixel_values_videos"][0]
    assert read_codes(as_uint8(upsampled)) == [0, 0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("metadata", "end_seconds"), [({"fps": 2.5}, 4.0), ({"duration": 7.5}, 7.5), ({"duration": 7.5, "fps": 2.5}, 7.5)]
)
def test_duration_of_an_array(metadata, end_seconds, video_processor):
    features = video_processor(random_frames(10, 24, 32, 3), video_metadata=metadata, return_timelines=True)
    assert features["timelines"][0].duration_seconds == end_seconds


def test_frames_picked_from_a_longer_source(read_codes, make_clip):
    """As other readers pick them: which is nearest to each instant, against a loop; whole, and in windows."""
    frames = decode_all(make_clip(num_frames=40))
    indices = [0, 1, 5, 9, 20, 22, 38]
    metadata = VideoMetadata(total_num_frames=40, fps=8, frames_indices=indices)
    processor = in_windows(None, num_frames=16)
    features = processor(frames[indices], video_metadata=metadata, return_timelines=True)
    assert features["timelines"][0].end_seconds == 5.0
    nearest = [min(indices, key=lambda index: abs(index + 0.5 - (k + 0.5) * 40 / 16)) for k in range(16)]
    assert read_codes(as_uint8(features["pixel_values_videos"][0])) == nearest
    windows = in_windows(2.5, num_frames=8).iterate_windows(frames[indices], metadata)
    codes = [code for window in windows for code in read_codes(as_uint8(window["pixel_values_videos"][0]))]
    assert codes == nearest[:8] + nearest[4:12] + nearest[8:]
    spread = processor(frames[2::5], video_metadata={"total_num_frames": 40, "fps": 8}, return_timelines=True)
    assert spread["timelines"][0].end_seconds == 5.0
    assert read_codes(as_uint8(spread["pixel_values_videos"][0])) == [2 + 5 * (k // 2) for k in range(16)]


@pytest.mark.parametrize(
    "indices", [[0, 1, 2], [0, 2, 1, 3], [0, 1, 1, 3], [-1, 0, 1, 2], [0, 1, 2, 10], [[0, 1, 2, 3]]]
)
def test_frames_that_their_source_cannot_have(indices, video_processor):
    metadata = {"fps": 2, "total_num_frames": 10, "frames_indices": indices}
    with pytest.raises(
        ValueError, match="4 frames as an array with frames_indices=.*expected the index of each frame"
    ):
        video_processor(np.zeros((4, 8, 8, 3), np.uint8), video_metadata=metadata)


def test_timelines_only_if_asked_for(video_processor, make_clip):
    assert set(video_processor(make_clip())) == {"pixel_values_videos"}


# --- which pixels ---


@pytest.mark.parametrize("statistics", [None, ((0.1, 0.5, 0.7), (0.2, 0.4, 0.9))], ids=["imagenet", "own"])
def test_normalization(statistics):
    mean, std = statistics or (MEAN, STD)
    own = {} if statistics is None else {"image_mean": list(mean), "image_std": list(std)}
    processor = ScadaVideoProcessor(num_frames=4, size={"height": 10, "width": 14}, **own)
    frames = random_frames(4, 10, 14, 3)  # already of the right number and size
    pixel_values = processor(frames, video_metadata={"fps": 1})["pixel_values_videos"]
    expected = np.moveaxis((frames / 255.0 - np.array(mean)) / np.array(std), -1, 1)[None]
    assert pixel_values.dtype == torch.float32 and pixel_values.is_contiguous()
    np.testing.assert_allclose(pixel_values.numpy(), expected, atol=1e-5)


def test_frames_are_scaled_as_a_whole(video_processor):
    """Neither cropped nor letterboxed: marks at the four corners stay at the corners."""
    frames = np.zeros((1, 240, 320, 3), np.uint8)
    for level, (row, column) in zip((50, 100, 150, 200), [(0, 0), (0, -1), (-1, 0), (-1, -1)], strict=True):
        frames[:, 200 * -row :, 280 * -column :][:, :40, :40] = level
    small = as_uint8(video_processor(frames, video_metadata={"fps": 1})["pixel_values_videos"][0])[0, ..., 0]
    assert small.shape == (24, 32)
    assert [small[0, 0], small[0, -1], small[-1, 0], small[-1, -1]] == pytest.approx([50, 100, 150, 200], abs=1)
    assert small[12, 16] == 0


# --- the forms of a video ---


class OwnPath(os.PathLike):
    def __init__(self, path):
        self.path = str(path)

    def __fspath__(self):
        return self.path


def test_path_bytes_and_url(make_clip, video_processor, monkeypatch):
    path = make_clip(times_seconds=UNEVEN_SECONDS)
    expected = video_processor(str(path), return_timelines=True)
    assert expected["pixel_values_videos"].std() > 0.1
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(path.parent))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        with pytest.raises(VideoReadError, match="not a public address"):
            video_processor(url)
        video_processor.limits = ReadLimits(allow_private_addresses=True)
        for video in (path, OwnPath(path), path.read_bytes(), url):
            features = video_processor(video, return_timelines=True)
            assert torch.equal(features["pixel_values_videos"], expected["pixel_values_videos"])
            assert features["timelines"] == expected["timelines"]
        server.shutdown()


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        (lambda frames: torch.from_numpy(frames), 0),
        (lambda frames: frames.transpose(0, 3, 1, 2), 0),
        (lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2), 0),
        (lambda frames: frames / 255.0, 0),
        (lambda frames: (frames / 255.0).astype(np.float32), 0),
        (lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2) / 255, 0),
        (lambda frames: (torch.from_numpy(frames) / 255).half(), 0),
        (lambda frames: (torch.from_numpy(frames) / 255).bfloat16(), 1),  # has 8 bits, of which some are lost
    ],
    ids=["tensor", "channels_first", "tensor_first", "float64", "float32", "float_tensor_first", "half", "bfloat16"],
)
@pytest.mark.parametrize("num_frames", [3, 9])  # three frames look like three channels
def test_forms_of_an_array(form, tolerance, num_frames, video_processor):
    frames = random_frames(num_frames, 20, 36, 3)
    frames[0, 0, 0] = 0, 255, 255
    expected = video_processor(frames, video_metadata={"fps": 5})["pixel_values_videos"]
    given = video_processor(form(frames), video_metadata={"fps": 5})["pixel_values_videos"]
    if tolerance:
        assert np.abs(as_uint8(given[0]).astype(int) - as_uint8(expected[0])).max() <= tolerance
    else:
        assert torch.equal(given, expected)


def test_floats_are_rounded(video_processor):
    frames = np.full((2, 24, 32, 3), 100.6 / 255)
    assert (as_uint8(video_processor(frames, video_metadata={"fps": 1})["pixel_values_videos"][0]) == 101).all()


def test_array_is_near_its_file(make_clip, video_processor):
    path = make_clip()
    from_file = video_processor(path)["pixel_values_videos"]
    from_array = video_processor(decode_all(path), video_metadata={"fps": 10})["pixel_values_videos"]
    # Not the same: the file is scaled before, the array after the conversion to RGB.
    assert (from_array - from_file).abs().max() < 6 / 255 / min(STD)
    assert from_file.std() > 0.1


def test_several_videos(make_clip, video_processor):
    videos = [make_clip("a.mp4"), decode_all(make_clip("b.mp4", num_frames=30, first_code=40))]
    both = video_processor(videos, video_metadata=[None, {"fps": 10}], return_timelines=True)
    assert both["pixel_values_videos"].shape == (2, 8, 3, 24, 32)
    for index, metadata in enumerate([None, {"fps": 10}]):
        alone = video_processor(videos[index], video_metadata=metadata, return_timelines=True)
        assert torch.equal(both["pixel_values_videos"][index], alone["pixel_values_videos"][0])
        assert both["timelines"][index] == alone["timelines"][0]
    assert [timeline.end_seconds for timeline in both["timelines"]] == [pytest.approx(2.0), 3.0]


def test_one_metadata_for_all(video_processor):
    videos = (random_frames(4, 24, 32, 3), random_frames(6, 24, 32, 3))
    timelines = video_processor(videos, video_metadata={"fps": 2}, return_timelines=True)["timelines"]
    assert [timeline.end_seconds for timeline in timelines] == [2.0, 3.0]


# --- windows ---


def in_windows(window_seconds, **settings):
    return ScadaVideoProcessor(
        **{"num_frames": 8, "size": {"height": 24, "width": 32}, "window_seconds": window_seconds} | settings
    )


@pytest.mark.parametrize(
    ("duration_seconds", "count"),
    [
        (0.01, 1),
        (3.999, 1),
        (4.0, 1),  # W
        (4.001, 2),
        (5.999, 2),
        (6.0, 2),  # 1.5 W
        (6.001, 3),
        (8.0, 3),  # 2 W
        (8.001, 4),
        (40.0, 19),  # 10 W
        (40.001, 20),
    ],
)
def test_number_of_windows(duration_seconds, count, read_codes):
    """As few as can cover the video where each overlaps the next by half; by hand, for a window of 4 s."""
    video, metadata = random_frames(2, 8, 8, 3), {"duration": duration_seconds}
    processor = in_windows(4.0)
    assert processor.num_windows(video, metadata) == count
    assert len(list(processor.iterate_windows(video, metadata))) == count
    assert in_windows(4).num_windows(torch.from_numpy(video), metadata) == count
    assert in_windows(None).num_windows(video, metadata) == 1
    # Covered by no fewer.
    assert count == 1 or 4.0 * count / 2 < duration_seconds <= 4.0 * (count + 1) / 2


@pytest.mark.parametrize(("window_seconds", "count"), [(None, 1), (2.0, 1), (1.9, 2), (1.0, 3), (0.2, 19)])
def test_number_of_windows_of_a_file(window_seconds, count, make_clip):
    """Two seconds, whatever the times in the file."""
    for path in (make_clip(), make_clip("late.mkv", start_seconds=7.0)):
        for video in (path, str(path), path.read_bytes()):
            assert in_windows(window_seconds).num_windows(video) == count


WINDOWED = {
    "constant_rate": ("clip.mp4", {"num_frames": 47}, 4.7, [k / 10 for k in range(47)]),
    "b_frames": ("clip.mp4", {"num_frames": 47, "codec_options": {"bf": "3"}}, 4.7, [k / 10 for k in range(47)]),
    "start_offset": ("clip.mp4", {"num_frames": 47, "start_seconds": 5.0}, 4.7, [k / 10 for k in range(47)]),
    "variable_rate": ("clip.mp4", {"times_seconds": UNEVEN_SECONDS}, 3.1, UNEVEN_SECONDS),
    "variable_rate_mkv": ("clip.mkv", {"times_seconds": UNEVEN_SECONDS, "start_seconds": 5.0}, 3.1, UNEVEN_SECONDS),
}


@pytest.mark.parametrize(("window_seconds", "count_of_4_7_s"), [(0.37, 25), (1.7, 5), (2.9, 3), (4.6, 2)])
@pytest.mark.parametrize("num_frames", [2, 4, 8])
@pytest.mark.parametrize("name", WINDOWED)
def test_frames_of_windows(name, num_frames, window_seconds, count_of_4_7_s, make_clip, read_codes):
    file_name, kwargs, end_seconds, times_seconds = WINDOWED[name]
    path = make_clip(file_name, **kwargs)
    processor = in_windows(window_seconds, num_frames=num_frames)
    windows = list(processor.iterate_windows(path))  # all at once: they do not share their pixels
    count = processor.num_windows(path)
    assert len(windows) == count and (count == count_of_4_7_s or end_seconds != 4.7)
    length_seconds = end_seconds * 2 / (count + 1)
    for index, window in enumerate(windows):
        assert set(window) == {"pixel_values_videos", "timelines"}
        assert window["pixel_values_videos"].shape == (1, num_frames, 3, 24, 32)
        (timeline,) = window["timelines"]
        start_seconds = index * length_seconds / 2
        assert timeline.start_seconds == pytest.approx(start_seconds, abs=1e-9)
        assert timeline.end_seconds == pytest.approx(start_seconds + length_seconds, abs=1e-9)
        instants_seconds = [start_seconds + (k + 0.5) * length_seconds / num_frames for k in range(num_frames)]
        # No instant hangs on rounding.
        assert all(abs(instant - time) > 1e-6 for instant in instants_seconds for time in times_seconds)
        pixels = as_uint8(window["pixel_values_videos"][0])
        assert read_codes(pixels) == [sum(t <= instant for t in times_seconds) - 1 for instant in instants_seconds]
        np.testing.assert_array_equal(pixels, read_frames(path, instants_seconds, size=(24, 32)))


@pytest.mark.parametrize("duration_seconds", [4.0001, 5.0, 7.3, 61.0, 3600.0])
def test_windows_cover_the_video(duration_seconds):
    video, metadata = random_frames(3, 8, 8, 3), {"duration": duration_seconds}
    windows = list(in_windows(4.0, num_frames=2).iterate_windows(video, metadata))
    timelines = [timeline for window in windows for timeline in window["timelines"]]
    assert len(timelines) == len(windows) > 1 and {timeline.num_steps for timeline in timelines} == {1}
    assert timelines[0].start_seconds == 0.0
    assert timelines[-1].end_seconds == pytest.approx(duration_seconds, rel=1e-12)
    for timeline, following in zip(timelines, timelines[1:], strict=False):
        assert following.start_seconds > timeline.start_seconds
        half_seconds = (timeline.end_seconds - timeline.start_seconds) / 2
        assert timeline.end_seconds - following.start_seconds == pytest.approx(half_seconds, abs=1e-9)
    for timeline in timelines:
        assert 0 < timeline.end_seconds - timeline.start_seconds <= 4.0 * (1 + 1e-12)


@pytest.mark.parametrize("window_seconds", [None, 5.0, 60.0])
def test_a_video_that_fits_into_the_window(window_seconds, make_clip, video_processor):
    path = make_clip(num_frames=50)
    frames = read_frames(path, (np.arange(50) + 0.5) / 10)
    for video, metadata in [(path, None), (path.read_bytes(), None), (frames, {"fps": 10})]:
        for num_frames in (8, 5):  # odd ones are not refused
            expected = video_processor(video, video_metadata=metadata, num_frames=num_frames, return_timelines=True)
            (window,) = in_windows(window_seconds).iterate_windows(video, metadata, num_frames)
            assert torch.equal(window["pixel_values_videos"], expected["pixel_values_videos"])
            assert window["timelines"] == expected["timelines"]


@pytest.mark.parametrize(
    "form",
    [
        lambda frames: frames,
        lambda frames: torch.from_numpy(frames),
        lambda frames: frames.transpose(0, 3, 1, 2),
        lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2) / 255,
    ],
    ids=["array", "tensor", "channels_first", "float_tensor_first"],
)
def test_windows_of_arrays_are_those_of_the_file(form, make_clip):
    path = make_clip(num_frames=50)
    frames = read_frames(path, (np.arange(50) + 0.5) / 10, size=(24, 32))
    processor = in_windows(1.7)
    for metadata in ({"fps": 10}, {"duration": 5.0}):
        windows = list(processor.iterate_windows(form(frames), metadata))
        assert len(windows) == 5
        for window, of_file in zip(windows, processor.iterate_windows(path.read_bytes()), strict=True):
            assert torch.equal(window["pixel_values_videos"], of_file["pixel_values_videos"])
            assert window["timelines"][0].start_seconds == pytest.approx(of_file["timelines"][0].start_seconds)
            assert window["timelines"][0].end_seconds == pytest.approx(of_file["timelines"][0].end_seconds)


def test_windows_of_few_frames(make_clip, read_codes):
    """Three frames for 10 s: ten instants, of which each window of 4 s has four."""
    frames = decode_all(make_clip(num_frames=3))
    windows = in_windows(4.0, num_frames=4).iterate_windows(frames, {"duration": 10.0})
    codes = [read_codes(as_uint8(window["pixel_values_videos"][0])) for window in windows]
    assert codes == [[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 2], [1, 2, 2, 2]]


def test_frames_of_a_window_of_a_call(make_clip):
    path = make_clip(num_frames=50)
    expected = list(in_windows(2.0, num_frames=12).iterate_windows(path))
    windows = list(in_windows(2.0).iterate_windows(path, num_frames=12))
    assert [window["pixel_values_videos"].shape[1] for window in windows] == [12] * 4
    for window, other in zip(windows, expected, strict=True):
        assert torch.equal(window["pixel_values_videos"], other["pixel_values_videos"])


@pytest.mark.parametrize("num_frames", [1, 7])
def test_windows_need_an_even_number_of_frames(num_frames, make_clip):
    path = make_clip(num_frames=50)
    with pytest.raises(ValueError, match=f"num_frames={num_frames};.*even"):
        next(in_windows(2.0).iterate_windows(path, num_frames=num_frames))
    with pytest.raises(ValueError, match=f"num_frames={num_frames};.*even"):
        next(in_windows(2.0, num_frames=num_frames).iterate_windows(path))


def is_open(path):
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return any(os.path.islink(link) and os.readlink(link) == str(path) for link in links)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks for open files in /proc")
def test_windows_are_read_on_demand(make_clip):
    path = make_clip(num_frames=50)
    windows = in_windows(2.0).iterate_windows(path)
    next(windows)
    assert is_open(path)
    windows.close()
    assert not is_open(path)
    for _ in in_windows(2.0).iterate_windows(path):
        pass
    assert not is_open(path)


def test_windows_before_the_cut_of_a_file(make_clip):
    whole = make_clip(num_frames=100, container_options={"movflags": "faststart"}, codec_options={"g": "10"})
    expected = list(in_windows(2.0).iterate_windows(whole))
    assert len(expected) == 9
    data = whole.read_bytes()
    windows = in_windows(2.0).iterate_windows(data[: len(data) * 3 // 4])
    for index in range(3):
        assert torch.equal(next(windows)["pixel_values_videos"], expected[index]["pixel_values_videos"])
    with pytest.raises(VideoReadError, match="reading stopped at"):
        list(windows)


@pytest.mark.parametrize(
    ("video", "metadata", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.uint8), None, "fps"),
        (np.zeros((4, 8, 8), np.uint8), {"fps": 0.1}, r"shape \(4, 8, 8\)"),
        (np.full((4, 8, 8, 3), np.nan), {"fps": 0.1}, "NaN"),
        (None, None, "type NoneType"),
        (["clip.mp4"], None, "type list"),
    ],
)
def test_windows_of_no_video(video, metadata, message):
    with pytest.raises(ValueError, match=message):
        next(in_windows(2.0).iterate_windows(video, metadata))


@pytest.mark.parametrize("window_seconds", [0, -1.0, math.nan, math.inf, "60", True])
def test_bad_windows(window_seconds):
    with pytest.raises(ValueError, match="window_seconds="):
        in_windows(window_seconds)


# --- settings ---


def test_settings_of_a_call(make_clip, video_processor):
    path = make_clip()
    larger = video_processor(path, num_frames=5, size={"height": 12, "width": 20})["pixel_values_videos"]
    own = ScadaVideoProcessor(num_frames=5, size={"height": 12, "width": 20})
    assert larger.shape == (1, 5, 3, 12, 20)
    assert torch.equal(larger, own(path)["pixel_values_videos"])
    assert video_processor(path)["pixel_values_videos"].shape == (1, 8, 3, 24, 32)  # for that call alone


def test_defaults():
    processor = ScadaVideoProcessor()
    assert (processor.num_frames, processor.size["height"], processor.size["width"]) == (512, 160, 160)


def test_numpy(make_clip, video_processor):
    path = make_clip()
    pixel_values = video_processor(path, return_tensors="np")["pixel_values_videos"]
    assert isinstance(pixel_values, np.ndarray)
    np.testing.assert_array_equal(pixel_values, video_processor(path)["pixel_values_videos"].numpy())


@pytest.mark.parametrize("saved_in_a_processor", [False, True])
def test_save_and_load(saved_in_a_processor, make_clip, tiny_tokenizer, tmp_path):
    own = {"image_mean": [0.1, 0.5, 0.7], "image_std": [0.2, 0.4, 0.9]}
    processor = ScadaVideoProcessor(num_frames=5, size={"height": 12, "width": 20}, **own)
    saved = ScadaProcessor(processor, tiny_tokenizer) if saved_in_a_processor else processor
    saved.save_pretrained(tmp_path / "saved")
    loaded = ScadaVideoProcessor.from_pretrained(tmp_path / "saved")
    path = make_clip()
    assert type(loaded) is ScadaVideoProcessor
    assert torch.equal(loaded(path)["pixel_values_videos"], processor(path)["pixel_values_videos"])
    assert processor(path)["pixel_values_videos"].shape == (1, 5, 3, 12, 20)
    changed = ScadaVideoProcessor.from_pretrained(tmp_path / "saved", num_frames=7)
    assert changed(path)["pixel_values_videos"].shape == (1, 7, 3, 12, 20)


@pytest.mark.parametrize("saved_in_a_processor", [False, True])
@pytest.mark.parametrize("window_seconds", [None, 30, 12.5])
def test_the_window_is_saved(window_seconds, saved_in_a_processor, tiny_tokenizer, tmp_path):
    processor = in_windows(window_seconds)
    saved = ScadaProcessor(processor, tiny_tokenizer) if saved_in_a_processor else processor
    saved.save_pretrained(tmp_path)
    stored = [json.loads(path.read_text()) for path in tmp_path.glob("*processor_config.json")]
    assert [config.get("video_processor", config).get("window_seconds") for config in stored] == [window_seconds]
    assert ScadaVideoProcessor.from_pretrained(tmp_path).window_seconds == window_seconds
    # Settings of a call win, and with `None` there is no window any more.
    assert ScadaVideoProcessor.from_pretrained(tmp_path, window_seconds=7.5).window_seconds == 7.5
    assert ScadaVideoProcessor.from_pretrained(tmp_path, window_seconds=None).window_seconds is None
    with pytest.raises(ValueError, match="window_seconds=-1"):
        ScadaVideoProcessor.from_pretrained(tmp_path, window_seconds=-1)
    if saved_in_a_processor:
        assert ScadaProcessor.from_pretrained(tmp_path).video_processor.window_seconds == window_seconds


def test_a_processor_that_was_saved_without_a_window(tmp_path):
    in_windows(30.0).save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*processor_config.json")
    config = json.loads(path.read_text())
    for own in ({}, {"window_seconds": None}):
        path.write_text(json.dumps({name: value for name, value in config.items() if name != "window_seconds"} | own))
        assert ScadaVideoProcessor.from_pretrained(tmp_path).window_seconds is None


# --- as a backbone was pretrained ---

PRETRAINED = {"image_mean": [0.1, 0.5, 0.7], "image_std": [0.2, 0.4, 0.9]}
TALL = {"height": 24, "width": 16}
SQUARE = {"height": 20, "width": 20}


def from_config(folder, config, name="preprocessor_config.json", **kwargs):
    (folder / name).write_text(json.dumps(config))
    return ScadaVideoProcessor.from_backbone(str(folder), **kwargs)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "video_preprocessor_config.json"])
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"size": {"shortest_edge": 40}, "crop_size": TALL}, TALL),  # VideoMAE, CLIP, DINOv2
        ({"size": {"shortest_edge": 40}, "crop_size": TALL, "do_center_crop": True}, TALL),
        ({"size": 40, "crop_size": 20}, SQUARE),  # as CLIP's was written before 2022
        ({"size": {"shortest_edge": 40}, "crop_size": 20}, SQUARE),  # V-JEPA 2
        ({"size": TALL}, TALL),  # SigLIP
        ({"size": TALL, "crop_size": None, "do_center_crop": None}, TALL),  # DINOv3
        ({"size": TALL, "crop_size": SQUARE, "do_center_crop": False}, TALL),  # there, but not used
        ({"size": {"shortest_edge": 20}}, SQUARE),
        ({"size": 20}, SQUARE),
        ({"size": None}, {"height": 160, "width": 160}),
        ({}, {"height": 160, "width": 160}),
    ],
)
def test_size_and_pixels_of_a_backbone(sizes, expected, name, tmp_path):
    processor = from_config(tmp_path, {**PRETRAINED, **sizes}, name, num_frames=3)
    assert dict(processor.size) == expected and processor.num_frames == 3
    frames = random_frames(3, expected["height"], expected["width"], 3)  # so nothing is scaled
    pixels = processor(frames, video_metadata={"fps": 1})["pixel_values_videos"][0]
    expected_pixels = (frames / 255 - np.array(PRETRAINED["image_mean"])) / np.array(PRETRAINED["image_std"])
    np.testing.assert_allclose(np.moveaxis(pixels.numpy(), 1, -1), expected_pixels, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255},
        {"do_normalize": False},  # pixels in [0, 1], whatever mean there is
        {
            "do_normalize": False,
            "rescale_factor": 1 / 127.5,
            "offset": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },  # the published ViViT
        {"rescale_factor": 1 / 127.5, "offset": True},  # VivitImageProcessor's defaults: both
        {"rescale_factor": 1 / 127.5, "offset": False},
        {"do_rescale": False, "image_mean": [123.0, 117.0, 104.0], "image_std": [58.0, 57.0, 57.5]},
    ],
    ids=["usual", "not_normalised", "offset_alone", "offset_and_normalised", "another_factor", "of_255"],
)
def test_pixels_of_a_backbone_as_its_own_processor_makes_them(settings, tmp_path):
    """Written out in the order of transformers: scaled, moved, normalised."""
    config = {**PRETRAINED, **settings}
    processor = from_config(tmp_path, config, num_frames=2, size=SQUARE)
    frames = random_frames(2, 20, 20, 3)
    expected = frames.astype(np.float64)
    if config.get("do_rescale", True):
        expected = expected * config.get("rescale_factor", 1 / 255) - (1 if config.get("offset") else 0)
    if config.get("do_normalize", True):
        expected = (expected - np.array(config["image_mean"])) / np.array(config["image_std"])
    pixels = processor(frames, video_metadata={"fps": 1})["pixel_values_videos"][0]
    np.testing.assert_allclose(np.moveaxis(pixels.numpy(), 1, -1), expected, atol=1e-4)


def mean_and_size(processor):
    return list(processor.image_mean), list(processor.image_std), dict(processor.size)


def test_a_backbone_without_a_preprocessing_configuration(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "videomae", "image_size": 96}')
    processor = ScadaVideoProcessor.from_backbone(str(tmp_path), num_frames=16)
    assert mean_and_size(processor) == (list(MEAN), list(STD), {"height": 160, "width": 160})
    assert processor.num_frames == 16
    # Nor does one without these values change anything.
    assert mean_and_size(from_config(tmp_path, {"do_resize": True})) == mean_and_size(ScadaVideoProcessor())
    nothing = dict.fromkeys(["image_mean", "image_std", "size", "crop_size"])
    assert mean_and_size(from_config(tmp_path, nothing)) == mean_and_size(ScadaVideoProcessor())


@pytest.mark.parametrize("name", ["nobody/nothing", "./no_such_folder"])
def test_a_backbone_that_is_not_there(name):
    """ImageNet's values stand where a backbone says nothing, and not where there is none (or the Hub is away)."""
    with pytest.raises(OSError):
        ScadaVideoProcessor.from_backbone(name)


def test_arguments_win_over_the_backbones(tmp_path):
    config = {**PRETRAINED, "size": TALL}
    mean, std, other_size = [0.3, 0.3, 0.3], [0.6, 0.6, 0.6], {"height": 32, "width": 48}
    own = [PRETRAINED["image_mean"], PRETRAINED["image_std"], TALL]
    for index, argument in enumerate([{"image_mean": mean}, {"image_std": std}, {"size": other_size}]):
        expected = [*own]
        (expected[index],) = argument.values()
        assert list(mean_and_size(from_config(tmp_path, config, **argument))) == expected
    processor = from_config(tmp_path, config, num_frames=48, window_seconds=7.5)
    assert (processor.num_frames, processor.window_seconds) == (48, 7.5)


def test_the_configuration_for_videos_comes_first(tmp_path):
    from_config(tmp_path, {**PRETRAINED, "size": TALL}, "video_preprocessor_config.json")
    processor = from_config(tmp_path, {"image_mean": [0.9] * 3, "image_std": [0.8] * 3, "size": SQUARE})
    assert mean_and_size(processor) == (PRETRAINED["image_mean"], PRETRAINED["image_std"], TALL)
    (tmp_path / "video_preprocessor_config.json").unlink()
    assert mean_and_size(ScadaVideoProcessor.from_backbone(tmp_path)) == ([0.9] * 3, [0.8] * 3, SQUARE)  # a `Path`


@pytest.mark.parametrize("part", ["image_processor", "video_processor"])
def test_a_whole_processor_saved_by_transformers_5(part, tmp_path):
    """Its parts are in one file since then: what `CLIPProcessor.save_pretrained` writes has no other."""
    config = {"processor_class": "CLIPProcessor", part: {**PRETRAINED, "crop_size": TALL}}
    processor = from_config(tmp_path, config, "processor_config.json")
    assert mean_and_size(processor) == (PRETRAINED["image_mean"], PRETRAINED["image_std"], TALL)


# --- bad input ---


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), r"shape \(0, 8, 8, 3\).*no frames"),
        (np.zeros((4, 0, 8, 3), np.uint8), r"shape \(4, 0, 8, 3\).*no pixels"),
        (
            np.zeros((8, 8, 3), np.uint8),
            r"picture of shape \(8, 8, 3\) instead of a video; a list contains one entry.*np.stack",
        ),
        (
            list(np.zeros((4, 3, 8, 8))),
            r"picture of shape \(3, 8, 8\) instead of a video; a list contains one entry.*np.stack",
        ),
        (np.zeros((4, 8, 8), np.uint8), r"video of shape \(4, 8, 8\)"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"shape \(4, 8, 8, 4\)"),
        (np.zeros((1, 4, 8, 8, 3), np.uint8), r"shape \(1, 4, 8, 8, 3\)"),
        (np.full((4, 8, 8, 3), np.nan), "NaN"),
        (np.full((4, 8, 8, 3), np.inf, np.float32), "infinite"),
        (np.zeros((4, 8, 8, 3), np.int64), "dtype int64"),
        (torch.zeros((4, 8, 8, 3), dtype=torch.bool), "dtype bool"),
        (np.full((4, 8, 8, 3), 200.0), r"floats in \[200, 200\]"),
        (np.full((4, 8, 8, 3), -0.5), r"floats in \[-0.5, -0.5\]"),
        (None, "type NoneType"),
        (7, "type int"),
        ({"path": "clip.mp4"}, "type dict"),
        ([], "no video"),
        ([np.zeros((4, 8, 8, 3), np.uint8), 7], "type int"),
    ],
)
def test_bad_videos(video, message, video_processor):
    with pytest.raises(ValueError, match=message):
        video_processor(video, video_metadata={"fps": 1})


def test_one_nan_pixel(video_processor):
    frames = torch.rand(40, 8, 8, 3)
    video_processor(frames, video_metadata={"fps": 1})
    frames[1, 2, 3, 0] = math.nan  # in a frame that is not even sampled
    with pytest.raises(ValueError, match="NaN"):
        video_processor(frames, video_metadata={"fps": 1})


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"fps": None}, {"fps": 0}, {"fps": -5}, {"fps": math.nan}, {"fps": math.inf}, {"duration": 0}],
)
def test_array_of_unknown_duration(metadata, video_processor):
    with pytest.raises(ValueError, match="4 frames.*fps"):
        video_processor(np.zeros((4, 8, 8, 3), np.uint8), video_metadata=metadata)


@pytest.mark.parametrize("num_metadata", [0, 1, 3])
def test_wrong_number_of_metadata(num_metadata, video_processor):
    with pytest.raises(ValueError, match=f"2 videos but {num_metadata} `video_metadata`"):
        video_processor([np.zeros((4, 8, 8, 3), np.uint8)] * 2, video_metadata=[{"fps": 1}] * num_metadata)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": -4}, "num_frames=-4"),
        ({"num_frames": 2.5}, "num_frames=2.5"),
        ({"num_frames": True}, "num_frames=True"),
        ({"size": {"height": 0, "width": 4}}, "size="),
        ({"size": {"height": 4.5, "width": 4}}, "size="),
        ({"size": {"shortest_edge": 4}}, "size="),
    ],
)
def test_bad_settings(settings, message, video_processor):
    with pytest.raises(ValueError, match=message):
        video_processor(np.zeros((4, 8, 8, 3), np.uint8), video_metadata={"fps": 1}, **settings)
    with pytest.raises(ValueError, match=message):
        ScadaVideoProcessor(**settings)


def test_unknown_settings(video_processor):
    with pytest.raises(TypeError, match="frames"):
        video_processor(np.zeros((4, 8, 8, 3), np.uint8), video_metadata={"fps": 1}, frames=4)
