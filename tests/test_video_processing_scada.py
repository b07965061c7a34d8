import functools
import http.server
import math
import os
import threading

import av
import numpy as np
import pytest
import torch

from modeling_scada import ScadaProcessor, ScadaVideoProcessor, Timeline


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


# --- bad input ---


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), r"shape \(0, 8, 8, 3\).*no frames"),
        (np.zeros((4, 0, 8, 3), np.uint8), r"shape \(4, 0, 8, 3\).*no pixels"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\)"),
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
