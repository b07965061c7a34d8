"""A video encoded once by the pipeline: each answer is that of the direct call."""

import json
import re
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import test_adapter_scada
import test_video_features_scada
import torch
from peft import get_peft_model
from test_adapter_scada import run_code
from transformers import pipeline

from modeling_scada import EncodedVideo, ScadaAdapterConfig, ScadaProcessor, ScadaVideoProcessor, Timeline
from processing.fingerprint import hash_weights, weights_signature


# fixtures
make_model = test_adapter_scada.make_model
randomize_trainable = test_adapter_scada.randomize_trainable
make_tuned = test_video_features_scada.make_tuned

SENTENCES = ["a cat", "the dog runs away."]
each_mode = pytest.mark.parametrize("mode", ["frozen", "tia", "outer", "inner", "both"])


@pytest.fixture
def make_pipe(make_tuned, tiny_tokenizer):
    """`make_pipe(mode="frozen", window_seconds=None)`: a pipeline in float32."""

    def make(mode="frozen", window_seconds=None, model=None):
        video_processor = ScadaVideoProcessor(
            num_frames=16, size={"height": 32, "width": 32}, window_seconds=window_seconds
        )
        processor = ScadaProcessor(video_processor, tiny_tokenizer)
        return pipeline("temporal-grounding", model=make_tuned(mode) if model is None else model, processor=processor)

    return make


@pytest.fixture
def clip(make_clip):
    """Five seconds: four windows of 2 s."""
    return str(make_clip(num_frames=50))


def assert_same(found, expected):
    """Scores up to 1e-5, seconds up to 1e-5 of the video's five."""
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
        return
    assert found.keys() == expected.keys() and found.get("sentence") == expected.get("sentence")
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    for name in ("start", "end"):
        assert found[name] == pytest.approx(expected[name], abs=5e-5)


@each_mode
@pytest.mark.parametrize("window_seconds", [None, 2.0])
def test_answers_are_those_of_the_direct_call(make_pipe, clip, mode, window_seconds):
    pipe = make_pipe(mode, window_seconds)
    encoded = pipe.encode(clip)
    assert len(encoded.timelines) == (1 if window_seconds is None else 4) and encoded.name == clip
    expected = pipe(clip, SENTENCES, top_k=3)
    assert expected[0][0]["score"] != expected[1][0]["score"]
    assert_same(pipe(encoded, SENTENCES, top_k=3), expected)
    assert_same(pipe(encoded, SENTENCES[1], nms=None), pipe(clip, SENTENCES[1], nms=None))
    assert_same(pipe({"video": encoded, "sentence": SENTENCES[0]}), pipe(clip, SENTENCES[0]))


def test_in_lists(make_pipe, clip, make_clip):
    pipe = make_pipe("outer")
    other = str(make_clip("other.mp4", num_frames=30, first_code=60))
    videos, sentences = [clip, other, clip], ["a", ["b", "is 7"], SENTENCES]
    expected = pipe(videos, sentences)
    mixed = [pipe.encode(clip), other, pipe.encode(clip)]
    assert_same(pipe(mixed, sentences, batch_size=2), expected)
    assert_same(pipe(mixed, sentences, num_workers=1), expected)
    assert_same(list(pipe(iter(mixed), "a")), pipe(videos, "a"))


@pytest.mark.parametrize("mode", ["outer", "both"])
def test_from_a_file_in_a_fresh_process(make_pipe, clip, mode, tmp_path):
    pipe = make_pipe(mode, window_seconds=2.0)
    pipe.encode(clip).save(tmp_path / "video.safetensors")
    pipe.save_pretrained(tmp_path / "model")
    code = """
import json
from transformers import pipeline
from modeling_scada import EncodedVideo
pipe = pipeline("temporal-grounding", model="model")
json.dump(pipe(EncodedVideo.load("video.safetensors"), ["a cat", "the dog runs away."]), open("found.json", "w"))
"""
    run_code(code, cwd=tmp_path)
    assert_same(json.loads((tmp_path / "found.json").read_text()), pipe(clip, SENTENCES))


def test_a_file_holds_what_was_encoded(make_pipe, clip, tmp_path):
    encoded = make_pipe("outer", window_seconds=3.0).encode(clip, num_frames=32)
    encoded.save(tmp_path / "video.safetensors")
    loaded = EncodedVideo.load(tmp_path / "video.safetensors")
    assert (loaded.name, loaded.timelines, loaded.fingerprint) == (
        encoded.name,
        encoded.timelines,
        encoded.fingerprint,
    )
    assert loaded.timelines[0] == Timeline(0.0, 2.5) and loaded.num_bytes == encoded.num_bytes > 0
    assert loaded.tensors.keys() == encoded.tensors.keys()
    for name, tensor in encoded.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor) and len(tensor) == 3


def test_a_file_that_is_cut_off_or_another(make_pipe, clip, tmp_path):
    path = tmp_path / "video.safetensors"
    make_pipe().encode(clip).save(path)
    content = path.read_bytes()
    for damaged in (b"", content[:4], content[:100], content[:-1], b"no safetensors file, but a longer text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"Received {re.escape(str(path))}, which is truncated or not"):
            EncodedVideo.load(path)
    with pytest.raises(FileNotFoundError):
        EncodedVideo.load(tmp_path / "nowhere")


def test_a_file_that_cannot_be_written_in_full(make_pipe, clip, tmp_path):
    """As on a full disk: the error names the file, nothing stays of it, and an earlier one is as it was."""
    encoded, path = make_pipe().encode(clip), tmp_path / "video.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for before in (None, b"before"):
        if before is not None:
            path.write_bytes(before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(OSError, match=f"File too large: '{re.escape(str(path))}'"):
                encoded.save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [one.read_bytes() for one in tmp_path.glob("video*")] == ([] if before is None else [before])


def test_the_number_of_frames_and_videos_as_frames(make_pipe, clip):
    pipe = make_pipe()
    encoded = pipe.encode(clip, num_frames=32)
    assert_same(pipe(encoded, "a"), pipe(clip, "a", num_frames=32))
    assert_same(pipe(encoded, "a", num_frames=32), pipe(clip, "a", num_frames=32))
    with pytest.raises(ValueError, match="encoded with num_frames=32, but the current settings are num_frames=16"):
        pipe(encoded, "a", num_frames=16)
    frames = torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8)
    metadata = {"fps": 10}
    assert_same(pipe(pipe.encode(frames, video_metadata=metadata), "a"), pipe(frames, "a", video_metadata=metadata))
    with pytest.raises(ValueError, match="num_frames=0"):
        pipe.encode(clip, num_frames=0)


def test_another_model_or_other_settings_are_refused(make_pipe, make_tuned, clip, tmp_path):
    pipe = make_pipe("tia")
    encoded = pipe.encode(clip)
    assert encoded.fingerprint == pipe.fingerprint() == make_pipe("tia").fingerprint()
    with pytest.raises(ValueError, match="with window_seconds=None, but the current settings are window_seconds=9.0"):
        make_pipe("tia", window_seconds=9.0)(encoded, "a")
    others = [make_pipe("frozen"), make_pipe("lora"), make_pipe(model=make_tuned("tia").to(torch.bfloat16))]
    for other in others:
        with pytest.raises(ValueError, match=re.escape(clip) + ", which was encoded with the weights"):
            other(encoded, "a")
    (failure, found) = others[0]([encoded, clip], "a", on_error="return")
    assert failure["video"] == clip and failure["error"] == "ValueError" and len(found) == 5
    with pipe.model.disable_adapter(), pytest.raises(ValueError, match="the weights"):
        pipe(encoded, "a")
    assert len(pipe(encoded, "a")) == 5
    with torch.no_grad():
        next(pipe.model.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="the weights"):
        pipe(encoded, "a")
    pipe.to_features(encoded.tensors).save(tmp_path / "features.safetensors")
    with pytest.raises(ValueError, match="with the format None; expected scada-encoded-video-1"):
        EncodedVideo.load(tmp_path / "features.safetensors")


def test_one_changed_element_is_noticed(make_pipe):
    """Of each parameter and buffer, by `.data` and by optimizers, none of which raise the version of a tensor."""
    pipe = make_pipe("both")
    model = pipe.model.get_base_model()
    model.batch_norm = torch.nn.BatchNorm1d(3).half()
    model.wide = wide = torch.nn.Parameter(torch.randn(3, 1100))
    seen = [weights_signature(pipe.model)]

    def assert_noticed(what):
        seen.append(weights_signature(pipe.model))
        assert seen[-1] not in seen[:-1], what

    for name, tensor in model.state_dict(keep_vars=True).items():
        values, version = tensor.data.view(-1), tensor._version
        values[len(values) // 2] += 1
        assert tensor._version == version
        assert_noticed(name)
    wide.data[0, 7], wide.data[2, 900] = wide[2, 900].item(), wide[0, 7].item()
    assert_noticed("swapped")
    wide.data[1] = wide[1].roll(1)
    assert_noticed("rolled")
    before = pipe.fingerprint()["model"]
    for optimizer, learning_rate in ((torch.optim.AdamW, 0.1), (torch.optim.SGD, 0.5)):
        wide.grad = torch.zeros_like(wide)
        wide.grad[1, 1] = 1
        optimizer([wide], lr=learning_rate, weight_decay=0, fused=True).step()
        assert_noticed(optimizer)
    with torch.inference_mode():
        wide.mul_(1.5)
    assert_noticed("in inference mode")
    assert pipe.fingerprint()["model"] == hash_weights(pipe.model) != before


def test_a_training_between_encoding_and_asking(make_pipe, clip):
    pipe = make_pipe()
    encoded = pipe.encode(clip)
    weight = next(iter(pipe.model.head.parameters()))
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], fused=True).step()
    with pytest.raises(ValueError, match="which was encoded with the weights"):
        pipe(encoded, "a")


def test_a_compiled_model_is_the_same_model(make_pipe, make_tuned, clip):
    """Whole or in part: the names of its weights differ, what they are does not."""
    pipe, part = make_pipe("tia"), make_tuned("tia")
    encoded = pipe.encode(clip)
    part.base_model.model.head = torch.compile(part.base_model.model.head, backend="eager")
    for model in (torch.compile(make_tuned("tia"), backend="eager"), part):
        compiled = make_pipe(model=model)
        assert compiled.fingerprint() == encoded.fingerprint
        assert_same(compiled(encoded, "a cat"), pipe(clip, "a cat"))


def test_a_model_whose_first_layer_depends_on_the_sentence(make_pipe, make_model, clip):
    model = get_peft_model(make_model(dtype=torch.float32), ScadaAdapterConfig(inner_layers=[0], outer_layers=[]))
    with pytest.raises(ValueError, match="nothing to keep but the pixels"):
        make_pipe(model=model).encode(clip)


def test_a_window_is_encoded_while_the_next_is_read(make_pipe, clip, monkeypatch):
    """Of the four windows no more than the next."""
    pipe, num_read, num_encoded, changed = make_pipe(window_seconds=2.0), 0, 0, threading.Condition()
    read, encode = ScadaVideoProcessor.iterate_windows, type(pipe.model).encode_video

    def iterate_windows(*arguments, **settings):
        nonlocal num_read
        for window in read(*arguments, **settings):
            with changed:
                num_read += 1
                changed.notify_all()
            yield window

    def encode_video(self, pixels):
        nonlocal num_encoded
        assert len(pixels) == 1
        num_encoded += 1
        with changed:
            assert changed.wait_for(lambda: num_read == min(num_encoded + 1, 4), timeout=60)
            assert not changed.wait_for(lambda: num_read > num_encoded + 1, timeout=0.05)
        return encode(self, pixels)

    monkeypatch.setattr(ScadaVideoProcessor, "iterate_windows", iterate_windows)
    monkeypatch.setattr(type(pipe.model), "encode_video", encode_video)
    pipe.encode(clip)
    assert num_encoded == num_read == 4


@pytest.mark.parametrize("mode", ["outer", "both"])
def test_many_threads(make_pipe, make_clip, mode):
    pipe = make_pipe(mode)
    videos = [str(make_clip(f"{index}.mp4", first_code=20 * index)) for index in range(4)]
    expected = [pipe(video, SENTENCES) for video in videos]
    with ThreadPoolExecutor(4) as pool:
        encoded = list(pool.map(pipe.encode, videos))
        found = list(pool.map(lambda index: pipe(encoded[index % 4], SENTENCES), range(16)))
    for index, one in enumerate(found):
        assert_same(one, expected[index % 4])
