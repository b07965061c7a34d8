import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

import modeling_scada
from modeling_scada import ScadaForTemporalGrounding, TemporalGroundingPipeline, VideoReadError


ROOT = Path(__file__).resolve().parents[1]
SENTENCES = ["a cat", "the dog runs away.", "it is 7"]


@pytest.fixture
def tiny_model(tiny_config, randomize_weights):
    """In place of the common one: always the same weights, and small ones, so that scores do not all end up at 1."""
    torch.manual_seed(0)
    return randomize_weights(ScadaForTemporalGrounding(tiny_config), std=0.05).eval()


@pytest.fixture
def pipe(tiny_model, tiny_processor):
    return pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor)


@pytest.fixture
def clip(make_clip):
    """Five seconds."""
    return make_clip(num_frames=50)


def by_hand(model, processor, video, sentence, settings=None, **post_process):
    """The same with the parts of the package that the pipeline is to join, for one sentence."""
    batch = processor(videos=video, text=sentence, return_timelines=True, **(settings or {}))
    timelines = batch.pop("timelines")
    with torch.no_grad():
        outputs = model(**batch)
    ((result,),) = processor.post_process_temporal_grounding(outputs, timelines, **post_process)
    return [
        {"score": score, "start": start, "end": end}
        for score, (start, end) in zip(result["scores"].tolist(), result["segments"].tolist(), strict=True)
    ]


def check_close(found, expected, atol=1e-5):
    """Scores up to `atol`, times up to `atol` of the clip's five seconds."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=atol)
        assert [one["start"] / 5, one["end"] / 5] == pytest.approx([other["start"] / 5, other["end"] / 5], abs=atol)


# --- results ---


def test_one_sentence(pipe, clip, tiny_model, tiny_processor):
    assert type(pipe) is TemporalGroundingPipeline
    found = pipe(clip, SENTENCES[0])
    assert len(found) == 5
    for segment in found:
        assert {name: type(value) for name, value in segment.items()} == {"score": float, "start": float, "end": float}
        assert 0 <= segment["start"] <= segment["end"] <= 5.0
        assert 0 <= segment["score"] <= 1
    assert found == sorted(found, key=lambda segment: -segment["score"])
    assert len({segment["start"] for segment in found}) > 1  # the model says something
    assert found == by_hand(tiny_model, tiny_processor, clip, SENTENCES[0])


def test_several_sentences(pipe, clip, tiny_model, tiny_processor):
    found = pipe(clip, SENTENCES)
    assert len(found) == 3
    for sentence, of_sentence in zip(SENTENCES, found, strict=True):
        check_close(of_sentence, by_hand(tiny_model, tiny_processor, clip, sentence))
    assert found[0] != found[1]
    (alone,) = pipe(clip, SENTENCES[:1])  # a list of one stays a list
    assert alone == pipe(clip, SENTENCES[0])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-7)], ids=["float32", "float64"])
def test_many_at_once_as_one_by_one(dtype, atol, clip, tiny_model, tiny_processor):
    """Float64 tells rounding, which may differ, from sentences and their padding that act on each other."""
    pipe = pipeline("temporal-grounding", model=tiny_model.to(dtype), processor=tiny_processor)
    sentences = [f"sentence {'very ' * k}long" for k in range(8)]
    found = pipe(clip, sentences)
    for sentence, together in zip(sentences, found, strict=True):
        check_close(together, pipe(clip, sentence), atol)
    assert len({of_sentence[0]["score"] for of_sentence in found}) == 8


def test_times_count_from_the_first_frame(pipe, clip, make_clip):
    late = make_clip("late.mp4", num_frames=50, start_seconds=60.0)
    check_close(pipe(late, SENTENCES[0]), pipe(clip, SENTENCES[0]))


def test_forms_of_a_video(pipe, clip):
    found = pipe(str(clip), SENTENCES[0])
    assert pipe(clip, SENTENCES[0]) == found
    assert pipe(clip.read_bytes(), SENTENCES[0]) == found
    assert pipe(video=str(clip), sentence=SENTENCES[0]) == found
    with av.open(str(clip)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    from_array = pipe(frames, SENTENCES[0], video_metadata={"fps": 10}, top_k=1)
    assert pipe(torch.from_numpy(frames), SENTENCES[0], video_metadata={"fps": 10}, top_k=1) == from_array
    # Scaled before or after the conversion to RGB: nearly the same pixels.
    assert from_array[0]["score"] == pytest.approx(found[0]["score"], abs=0.02)
    # Frames that are said to be shown for twice as long.
    (slower,) = pipe(frames, SENTENCES[0], video_metadata={"duration": 10.0}, top_k=1)
    doubled = {**from_array[0], "start": 2 * from_array[0]["start"], "end": 2 * from_array[0]["end"]}
    assert slower == pytest.approx(doubled)


# --- settings ---


def test_settings(clip, pipe, tiny_model, tiny_processor):
    """At the call and at the beginning; the call's win, and for that call alone."""
    sentence = SENTENCES[0]
    scores = [segment["score"] for segment in pipe(clip, sentence, top_k=40)]
    assert len(scores) == 40
    threshold = (scores[2] + scores[3]) / 2
    assert scores[2] > threshold > scores[3]
    for call, expected in [
        ({"top_k": 2}, by_hand(tiny_model, tiny_processor, clip, sentence, top_k=2)),
        ({"threshold": threshold}, by_hand(tiny_model, tiny_processor, clip, sentence)[:3]),
        ({"threshold": 1.0}, by_hand(tiny_model, tiny_processor, clip, sentence)[:1]),
        ({"num_frames": 32}, by_hand(tiny_model, tiny_processor, clip, sentence, {"num_frames": 32})),
    ]:
        assert pipe(clip, sentence, **call) == expected
        settled = pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor, **call)
        assert settled(clip, sentence) == expected
        assert settled(clip, sentence, top_k=7, threshold=0.0, num_frames=16) == pipe(clip, sentence, top_k=7)
        assert settled(clip, sentence) == expected
    assert len(pipe(clip, sentence)) == 5
    assert pipe(clip, sentence, num_frames=32) != pipe(clip, sentence)


def test_bfloat16(clip, tiny_model, tiny_processor):
    exact = pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor)(clip, SENTENCES[0])
    pipe = pipeline("temporal-grounding", model=tiny_model.bfloat16(), processor=tiny_processor)
    assert pipe(clip, SENTENCES[0])[0]["score"] == pytest.approx(exact[0]["score"], abs=0.05)


# --- registration, saving and loading ---


def test_registering_twice():
    before = PIPELINE_REGISTRY.check_task("temporal-grounding")
    modeling_scada._register()
    modeling_scada._register()
    after = PIPELINE_REGISTRY.check_task("temporal-grounding")
    assert after == before and after[1] is before[1]  # not replaced, about which transformers would warn
    assert PIPELINE_REGISTRY.get_supported_tasks().count("temporal-grounding") == 1
    assert before[1]["impl"] is TemporalGroundingPipeline


IN_A_FRESH_PROCESS = """
import json, sys

folder, video, sentences, blocked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4].split()


class Without:
    # A finder that does not find these; everything else it leaves to the one it stands for.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


if blocked:
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    for name in blocked:
        try:
            __import__(name)
        except ImportError:
            continue
        raise SystemExit(f"{name} can still be imported")

import modeling_scada
from transformers import pipeline

processor = modeling_scada.ScadaProcessor.from_pretrained(folder)
shape = list(processor(videos=video, text=sentences)["pixel_values_videos"].shape)
pipe = pipeline("temporal-grounding", model=folder)
assert not set(blocked) & set(sys.modules)
print(json.dumps([shape, pipe(video, sentences)]))
"""


@pytest.mark.parametrize("blocked", ["", "PIL torchvision torchcodec matplotlib"], ids=["everything", "bare"])
def test_save_and_load(blocked, pipe, clip, tmp_path):
    folder = tmp_path / "saved"
    pipe.save_pretrained(folder)
    assert "custom_pipelines" not in json.loads((folder / "config.json").read_text())
    expected = pipe(clip, SENTENCES)
    assert pipeline("temporal-grounding", model=str(folder))(clip, SENTENCES) == expected

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(folder), str(clip), json.dumps(SENTENCES), blocked]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    shape, found = json.loads(process.stdout.splitlines()[-1])
    assert shape == [1, 16, 3, 32, 32]
    assert found == expected


# --- bad input ---


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        (None, "no sentence"),
        ("", "sentence ''"),
        (["a cat", " "], "sentence ' '"),
        ([], "no sentence"),
    ],
)
def test_bad_sentences(sentence, message, pipe, clip):
    with pytest.raises(ValueError, match=message):
        pipe(clip, sentence)


def test_missing_sentence(pipe, clip):
    with pytest.raises(ValueError, match="no sentence"):
        pipe(clip)


def test_bad_videos(pipe, clip, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        pipe(tmp_path / "gone.mp4", SENTENCES[0])
    with pytest.raises(VideoReadError, match="17 bytes"):
        pipe(b"This is no video.", SENTENCES[0])
    with pytest.raises(ValueError, match="list of 2 videos"):
        pipe([clip, clip], [SENTENCES[0], SENTENCES[1]])


@pytest.mark.parametrize("settings", [{"topk": 3}, {"fps": 3}])
def test_unknown_settings(settings, pipe, clip, tiny_model, tiny_processor):
    (name,) = settings
    with pytest.raises(TypeError, match=name):
        pipe(clip, SENTENCES[0], **settings)
    with pytest.raises(TypeError, match=name):
        pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor, **settings)


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"num_frames": 0}])
def test_bad_settings(settings, pipe, clip):
    with pytest.raises(ValueError, match="=0"):
        pipe(clip, SENTENCES[0], **settings)
