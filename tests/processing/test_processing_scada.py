import json
import math
import os
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fresh_process import run_python
from transformers import AutoProcessor

from modeling_scada import ScadaProcessor, ScadaVideoProcessor, Timeline, VideoReadError
from processing import processing_scada
from processing.processing_scada import SegmentOutsideVideoError


ROOT = Path(__file__).resolve().parents[2]
SHORT, LONG, MIDDLE = "a cat", "the dog runs away.", "it is 7"


@pytest.fixture
def clip(make_clip):
    """Two seconds."""
    return make_clip()


@pytest.fixture
def other_clip(make_clip):
    """Five seconds."""
    return make_clip("other.mp4", num_frames=50, first_code=40)


def own_tokens(tokenizer, sentence):
    return tokenizer(sentence)["input_ids"]


def check_tokens(batch, sentences, tokenizer):
    """Tokens, masks and padding of each sentence, one at a time; `sentences` is a list per video."""
    num_sentences = max(len(of_video) for of_video in sentences)
    length = max(len(own_tokens(tokenizer, sentence)) for of_video in sentences for sentence in of_video)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(sentences), num_sentences, length)
    assert batch["sentence_mask"].shape == (len(sentences), num_sentences)
    assert {batch[name].dtype for name in ("input_ids", "attention_mask", "sentence_mask")} == {torch.int64}
    for video_index, of_video in enumerate(sentences):
        for sentence_index in range(num_sentences):
            there = sentence_index < len(of_video)
            tokens = own_tokens(tokenizer, of_video[sentence_index]) if there else []
            num_padding = length - len(tokens)
            where = video_index, sentence_index
            assert batch["sentence_mask"][where] == int(there)
            assert batch["input_ids"][where].tolist() == tokens + [tokenizer.pad_token_id] * num_padding
            assert batch["attention_mask"][where].tolist() == [1] * len(tokens) + [0] * num_padding


# --- batches ---


@pytest.mark.parametrize(
    "text", [LONG, [LONG], [SHORT, LONG, MIDDLE], (LONG, SHORT)], ids=["sentence", "list_of_one", "list", "tuple"]
)
def test_one_video(text, clip, tiny_processor, tiny_tokenizer):
    batch = tiny_processor(videos=clip, text=text)
    assert set(batch) == {"pixel_values_videos", "input_ids", "attention_mask", "sentence_mask"}
    assert set(batch) == set(tiny_processor.model_input_names)
    check_tokens(batch, [[text] if isinstance(text, str) else list(text)], tiny_tokenizer)
    expected = tiny_processor.video_processor(clip)["pixel_values_videos"]
    assert expected.shape == (1, 16, 3, 32, 32)
    assert torch.equal(batch["pixel_values_videos"], expected)


def test_several_videos(clip, other_clip, tiny_processor, tiny_tokenizer):
    batch = tiny_processor(videos=[clip, other_clip, clip], text=[[SHORT, LONG, MIDDLE], MIDDLE, [LONG, SHORT]])
    check_tokens(batch, [[SHORT, LONG, MIDDLE], [MIDDLE], [LONG, SHORT]], tiny_tokenizer)
    for index, video in enumerate([clip, other_clip, clip]):
        alone = tiny_processor.video_processor(video)["pixel_values_videos"][0]
        assert torch.equal(batch["pixel_values_videos"][index], alone)
    assert not torch.equal(batch["pixel_values_videos"][0], batch["pixel_values_videos"][1])


def test_lengths_differ(tiny_tokenizer):
    """What the tests above rest on."""
    assert len({len(own_tokens(tiny_tokenizer, sentence)) for sentence in (SHORT, LONG, MIDDLE)}) == 3
    assert tiny_tokenizer.pad_token_id not in own_tokens(tiny_tokenizer, LONG)


def test_long_sentences_are_cut(clip, tiny_processor, tiny_tokenizer):
    batch = tiny_processor(videos=clip, text=[SHORT, "long " * 100])
    assert batch["input_ids"].shape == (1, 2, tiny_tokenizer.model_max_length)


def test_settings_reach_the_video_processor(clip, tiny_processor):
    frames = np.zeros((6, 8, 8, 3), np.uint8)
    batch = tiny_processor(
        videos=[clip, frames],
        text=[SHORT, SHORT],
        num_frames=4,
        size={"height": 16, "width": 48},
        video_metadata=[None, {"fps": 2}],
        return_timelines=True,
    )
    assert batch["pixel_values_videos"].shape == (2, 4, 3, 16, 48)
    assert [timeline.end_seconds for timeline in batch["timelines"]] == [pytest.approx(2.0), 3.0]
    with pytest.raises(TypeError, match="framerate"):
        tiny_processor(videos=clip, text=SHORT, framerate=4)


def test_numpy(clip, tiny_processor):
    arguments = {"videos": clip, "text": [SHORT, LONG], "segments": [[0.5, 1.0], [0.0, 2.0]]}
    arrays, tensors = tiny_processor(**arguments, return_tensors="np"), tiny_processor(**arguments)
    assert set(arrays) == set(tensors) and "labels" in tensors
    for name, array in arrays.items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, tensors[name].numpy())


# --- labels ---


@pytest.mark.parametrize(
    ("text", "segments", "expected"),
    [
        (SHORT, [0.5, 1.5], [[[0.25, 0.75]]]),
        (SHORT, [[0.5, 1.5]], [[[0.25, 0.75]]]),
        (SHORT, [[[0.5, 1.5]]], [[[0.25, 0.75]]]),
        (SHORT, [[0.5, 1.5], [0.0, 2.0], [1.0, 1.5]], [[[0.25, 0.75], [0.0, 1.0], [0.5, 0.75]]]),
        ([SHORT], [0.5, 1.5], [[[0.25, 0.75]]]),
        ([SHORT], [[[0.5, 1.5], [0.0, 2.0]]], [[[0.25, 0.75], [0.0, 1.0]]]),
        ([SHORT, LONG], [[0.5, 1.5], [1.0, 2.0]], [[[0.25, 0.75]], [[0.5, 1.0]]]),
        ([SHORT, LONG], np.array([[0.5, 1.5], [1.0, 2.0]]), [[[0.25, 0.75]], [[0.5, 1.0]]]),
        (
            [SHORT, LONG],
            [[0.5, 1.5], [[1.0, 2.0], [0.0, 0.5]]],
            [[[0.25, 0.75], [-100, -100]], [[0.5, 1.0], [0.0, 0.25]]],
        ),
    ],
)
def test_labels_of_one_video(text, segments, expected, clip, tiny_processor):
    labels = tiny_processor(videos=clip, text=text, segments=segments)["labels"]
    assert labels.dtype == torch.float32
    assert labels.shape == np.shape([expected])
    np.testing.assert_allclose(labels.numpy(), [expected], atol=1e-6)


def test_labels_of_several_videos(clip, other_clip, tiny_processor):
    batch = tiny_processor(
        videos=[clip, other_clip],
        text=[[SHORT, LONG], LONG],
        segments=[[[[0.5, 1.5]], [[0.0, 1.0], [1.0, 2.0], [0.2, 0.4]]], [[1.0, 4.0], [2.0, 5.0]]],
    )
    padding = [-100, -100]
    expected = [
        [[[0.25, 0.75], padding, padding], [[0.0, 0.5], [0.5, 1.0], [0.1, 0.2]]],
        [[[0.2, 0.8], [0.4, 1.0], padding], [padding] * 3],
    ]
    assert batch["labels"].shape == (2, 2, 3, 2)
    np.testing.assert_allclose(batch["labels"].numpy(), expected, atol=1e-6)
    assert ((batch["labels"] != -100).any(dim=(2, 3)) == batch["sentence_mask"].bool()).all()


def test_labels_count_from_the_first_frame(make_clip, tiny_processor):
    video = make_clip(start_seconds=30.0)
    labels = tiny_processor(videos=video, text=SHORT, segments=[0.5, 1.5])["labels"]
    np.testing.assert_allclose(labels.numpy(), [[[[0.25, 0.75]]]], atol=1e-6)


@pytest.mark.parametrize(("end_seconds", "label"), [(1.9, 0.95), (2.0, 1.0), (2.1, 1.0), (3.99, 1.0)])
def test_an_end_slightly_beyond_is_clipped(end_seconds, label, clip, tiny_processor):
    labels = tiny_processor(videos=clip, text=SHORT, segments=[1.0, end_seconds])["labels"]
    np.testing.assert_allclose(labels.numpy(), [[[[0.5, label]]]], atol=1e-6)


def test_labels_train_the_model(clip, tiny_processor, tiny_model):
    batch = tiny_processor(videos=clip, text=[SHORT, LONG], segments=[[0.5, 1.5], [[0.0, 1.0], [1.5, 2.0]]])
    assert torch.isfinite(tiny_model(**batch).loss)


# --- bad input ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no `text`"),
        ([], "no sentence for video 0"),
        ("", "sentence '' for video 0"),
        (" \n", "for video 0; expected a text"),
        ([LONG, ""], "sentence '' for video 0"),
        ([LONG, 7], "sentence 7 for video 0"),
        ([LONG, [SHORT]], r"sentence \['a cat'\] for video 0"),
        (7, "type int for video 0"),
    ],
)
def test_bad_text_for_one_video(text, message, clip, tiny_processor):
    with pytest.raises(ValueError, match=message):
        tiny_processor(videos=clip, text=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no `text`"),
        (LONG, "type str for a list of 2 videos"),
        ([LONG], "2 videos but sentences for 1"),
        ([LONG, SHORT, MIDDLE], "2 videos but sentences for 3"),
        ([LONG, []], "no sentence for video 1"),
        ([LONG, [SHORT, " "]], "sentence ' ' for video 1"),
        ([LONG, None], "type NoneType for video 1"),
    ],
)
def test_bad_text_for_several_videos(text, message, clip, tiny_processor):
    with pytest.raises(ValueError, match=message):
        tiny_processor(videos=[clip, clip], text=text)


def test_no_video(tiny_processor):
    with pytest.raises(ValueError, match="no `videos`"):
        tiny_processor(text=SHORT)
    with pytest.raises(ValueError, match="no video"):
        tiny_processor(videos=[], text=[])


@pytest.mark.parametrize(
    ("text", "segments", "message"),
    [
        ([SHORT, LONG], [[0.5, 1.0]], "2 sentences but segments of 1 for video 0"),
        ([SHORT, LONG], [[0.5, 1.0]] * 3, "2 sentences but segments of 3 for video 0"),
        ([SHORT], [[0.5, 1.0], [0.0, 1.0]], "1 sentences but segments of 2 for video 0"),
        (SHORT, [], "1 sentences but segments of 0 for video 0"),
        ([SHORT, LONG], [[0.5, 1.0], [[]]], r"shape \(1, 0\) for 'the dog runs away.'"),
        (SHORT, [0.5, 1.0, 1.5], r"shape \(3,\) for 'a cat'"),
        ([SHORT, LONG], [0.5, 1.0], r"shape \(\) for 'a cat'"),
        (SHORT, [1.5, 0.5], r"segment \[1.5, 0.5\] s: it does not end after it starts"),
        (SHORT, [1.5, 1.5], r"segment \[1.5, 1.5\] s: it does not end after it starts"),
        (SHORT, [-0.5, 1.0], r"segment \[-0.5, 1\] s: it lies outside its video, which lasts from 0 to 2 s"),
        (SHORT, [2.5, 3.0], r"segment \[2.5, 3\] s: it lies outside"),
        (SHORT, [2.0, 3.0], r"segment \[2, 3\] s: it lies outside"),
        (SHORT, [1.0, 4.1], r"segment \[1, 4.1\] s: it lies outside"),
        ([SHORT, LONG], [[0.5, 1.0], [[0.0, 1.0], [1.0, 9.0]]], r"segment \[1, 9\] s: it lies outside"),
        (SHORT, [math.nan, 1.0], r"segment \[nan, 1\] s; expected finite"),
        (SHORT, [0.0, math.inf], r"segment \[0, inf\] s; expected finite"),
    ],
)
def test_bad_segments(text, segments, message, clip, tiny_processor):
    with pytest.raises(ValueError, match=message):
        tiny_processor(videos=clip, text=text, segments=segments)


def test_bad_segments_of_several_videos(clip, other_clip, tiny_processor):
    arguments = {"videos": [clip, other_clip], "text": [SHORT, LONG]}
    with pytest.raises(ValueError, match="segments of 1 videos for 2 videos"):
        tiny_processor(**arguments, segments=[[0.5, 1.0]])
    tiny_processor(**arguments, segments=[[0.5, 1.0], [4.5, 5.0]])
    with pytest.raises(ValueError, match=r"segment \[4.5, 5\] s: it lies outside its video.*0 to 2 s"):
        tiny_processor(**arguments, segments=[[4.5, 5.0], [0.5, 1.0]])


# --- text and targets of videos that were read before ---


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ([[SHORT, LONG, MIDDLE], [MIDDLE]], [[[0.5, 1.0], [0.0, 2.0], [1.0, 1.25]], [[2.5, 5.0]]]),
        # Several segments of a sentence, and an end that is clipped.
        ([[LONG], [SHORT, MIDDLE]], [[[[0.5, 1.0], [1.5, 3.5]]], [[[1.0, 2.0]], [[0.0, 1.0], [2, 3], [4, 5]]]]),
        ([[LONG], [SHORT]], [[[0.5, 1.0]], [[1.0, 2.0]]]),
        ([[LONG], [SHORT]], [[0.5, 1.0], [1.0, 2.0]]),
    ],
)
def test_encode_text_is_what_calling_the_processor_gives(text, segments, clip, other_clip, tiny_processor):
    whole = tiny_processor([clip, other_clip], text, segments, return_timelines=True)
    timelines = [
        tiny_processor.video_processor(video, return_timelines=True)["timelines"][0] for video in (clip, other_clip)
    ]
    encoded = tiny_processor.encode_text(text, segments, timelines)
    assert set(encoded) == set(whole) - {"pixel_values_videos", "timelines"}
    for name, array in encoded.items():
        assert isinstance(array, np.ndarray)
        assert torch.equal(torch.from_numpy(array), whole[name]) and whole[name].dtype == torch.from_numpy(array).dtype


@pytest.mark.parametrize(
    ("text", "segments", "message"),
    [
        ([[SHORT]], [[[0.5, 1.0]], [[0.5, 1.0]]], "2 videos but sentences for 1"),
        ([[SHORT], [LONG]], [[[0.5, 1.0]]], "segments of 1 videos for 2"),
        ([[SHORT], []], [[[0.5, 1.0]], []], "no sentence for video 1"),
        ([[SHORT], [" "]], [[[0.5, 1.0]], [[0.5, 1.0]]], "sentence ' ' for video 1"),
        ([[SHORT], [LONG, MIDDLE]], [[[0.5, 1.0]], [[0.5, 1.0]]], "2 sentences but segments of 1 for video 1"),
        ([[SHORT], [LONG]], [[[0.5, 1.0]], [[1.0, 0.5]]], "does not end after it starts"),
    ],
)
def test_bad_text_to_encode(text, segments, message, tiny_processor):
    """As when calling the processor."""
    with pytest.raises(ValueError, match=message):
        tiny_processor.encode_text(text, segments, [Timeline(0.0, 2.0), Timeline(0.0, 5.0)])


@pytest.mark.parametrize(
    "text", [[[SHORT]], [[SHORT, LONG, MIDDLE], [MIDDLE]], [[MIDDLE], [SHORT, LONG]], [(SHORT, MIDDLE)], [LONG, SHORT]]
)
def test_encode_text_alone(text, tiny_processor, tiny_tokenizer):
    """Without targets nothing of the videos is needed."""
    encoded = tiny_processor.encode_text(text)
    assert set(encoded) == {"input_ids", "attention_mask", "sentence_mask"}
    assert all(isinstance(array, np.ndarray) for array in encoded.values())
    sentences = [[of_video] if isinstance(of_video, str) else list(of_video) for of_video in text]
    check_tokens({name: torch.from_numpy(array) for name, array in encoded.items()}, sentences, tiny_tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([[SHORT], []], "no sentence for video 1"),
        ([[]], "no sentence for video 0"),
        ([[SHORT, ""]], "sentence '' for video 0"),
        ([[SHORT], [LONG, " "]], "sentence ' ' for video 1"),
        ([[SHORT], None], "type NoneType for video 1"),
        ([[SHORT, 7]], "sentence 7 for video 0"),
        ([[[SHORT]]], "for video 0"),
        (SHORT, "type str"),
    ],
)
def test_bad_text_alone(text, message, tiny_processor):
    with pytest.raises(ValueError, match=message):
        tiny_processor.encode_text(text)


@pytest.mark.parametrize("segment", [[2.0, 3.0], [30.0, 31.0], [0.5, 4.1], [-0.5, 1.0]], ids=str)
def test_a_segment_outside_its_video_is_an_error_of_its_own(segment, clip, tiny_processor):
    """So that whoever reads many videos can tell it from a mistake in the call."""
    assert issubclass(SegmentOutsideVideoError, ValueError)
    with pytest.raises(SegmentOutsideVideoError, match="outside its video"):
        tiny_processor(clip, SHORT, segment)
    with pytest.raises(SegmentOutsideVideoError, match="outside its video"):
        tiny_processor.encode_text([[SHORT]], [[segment]], [Timeline(0.0, 2.0)])


@pytest.mark.parametrize("segment", [[1.0, 0.5], [1.0, 1.0], [math.nan, 1.0]], ids=str)
def test_other_mistakes_are_no_segments_outside(segment, clip, tiny_processor):
    with pytest.raises(ValueError) as caught:
        tiny_processor(clip, SHORT, segment)
    assert not isinstance(caught.value, SegmentOutsideVideoError)


def write_audio(path):
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_files_that_are_no_video(clip, make_clip, tmp_path, tiny_processor):
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        tiny_processor(videos=[clip, tmp_path / "gone.mp4"], text=[SHORT, SHORT])

    (tmp_path / "text.mp4").write_text("This is no video.\n" * 40)
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:-200])  # its index stands at the end
    whole = make_clip("whole.mp4", num_frames=100, container_options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "cut_behind_index.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    write_audio(tmp_path / "audio.mp4")
    for name in ("text.mp4", "cut.mp4", "cut_behind_index.mp4", "audio.mp4"):
        with pytest.raises(VideoReadError, match=f"Could not read the video .*{name}"):
            tiny_processor(videos=[clip, tmp_path / name], text=[SHORT, SHORT])
    with pytest.raises(VideoReadError, match="17 bytes"):
        tiny_processor(videos=b"This is no video.", text=SHORT)


@pytest.mark.parametrize(
    ("name", "expected"), [("video_processor", "ScadaVideoProcessor"), ("tokenizer", "Tokenizer")]
)
def test_parts_of_a_wrong_class(name, expected, tiny_tokenizer):
    parts = {"video_processor": ScadaVideoProcessor(), "tokenizer": tiny_tokenizer}
    ScadaProcessor(**parts)
    with pytest.raises(TypeError, match=f"Received a dict as `{name}`; expected a .*{expected}"):
        ScadaProcessor(**{**parts, name: {}})
    with pytest.raises(TypeError, match="as `video_processor`"):
        ScadaProcessor(video_processor=tiny_tokenizer, tokenizer=parts["video_processor"])


# --- saving and loading ---

LOAD_AND_RUN = """
import pickle, sys
import modeling_scada
from transformers import AutoProcessor

folder, video, target = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
batch = processor(videos=video, text=["a cat", "the dog runs away."], segments=[[0.5, 1], [1, 2]])
with open(target, "wb") as file:
    pickle.dump((type(processor).__name__, {name: tensor.numpy() for name, tensor in batch.items()}), file)
"""


def test_save_and_load(clip, tiny_tokenizer, tmp_path):
    # Nothing is at its default, so nothing can be equal for want of having been saved.
    video_processor = ScadaVideoProcessor(
        num_frames=6, size={"height": 12, "width": 20}, image_mean=[0.1, 0.5, 0.7], image_std=[0.2, 0.4, 0.9]
    )
    processor = ScadaProcessor(video_processor, tiny_tokenizer)
    folder = tmp_path / "saved"
    processor.save_pretrained(folder)
    arguments = {"videos": clip, "text": [SHORT, LONG], "segments": [[0.5, 1], [1, 2]]}
    expected = processor(**arguments)
    assert expected["pixel_values_videos"].shape == (1, 6, 3, 12, 20)

    for loaded in (ScadaProcessor.from_pretrained(folder), AutoProcessor.from_pretrained(folder)):
        assert type(loaded) is ScadaProcessor
        batch = loaded(**arguments)
        assert set(batch) == set(expected)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_python(["-c", LOAD_AND_RUN, folder, clip, tmp_path / "batch.pickle"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    class_name, arrays = pickle.loads((tmp_path / "batch.pickle").read_bytes())
    assert class_name == "ScadaProcessor" and set(arrays) == set(expected)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name].numpy())


def test_saved_names(tiny_processor, tmp_path):
    """What `AutoProcessor` goes by."""
    tiny_processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "ScadaProcessor"


# --- post-processing ---


def outputs_like(num_videos, num_sentences, num_proposals, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.rand(num_videos, num_sentences, num_proposals, 2, generator=generator).sort(-1).values
    logits = 2 * torch.randn(num_videos, num_sentences, num_proposals, generator=generator)
    return {"logits": logits, "pred_segments": edges}


def slow_post_process(logits, segments, start_seconds, end_seconds, top_k, nms=0.5):
    """
    One sentence with plain floats: sigmoid, take the best, let the others decay by their overlap (unless `nms` is
    `None`), seconds.
    """
    left = [(1 / (1 + math.exp(-logit)), *segment) for logit, segment in zip(logits, segments, strict=True)]
    found = []
    while left and len(found) < top_k:
        left.sort(reverse=True)
        score, start, end = left.pop(0)
        length_seconds = end_seconds - start_seconds
        found.append((score, start_seconds + start * length_seconds, start_seconds + end * length_seconds))
        decayed = []
        for other_score, other_start, other_end in left:
            overlap = max(0.0, min(end, other_end) - max(start, other_start))
            iou = overlap / ((end - start) + (other_end - other_start) - overlap)
            decay = math.exp(-(iou**2) / nms) if nms else 1.0
            decayed.append((other_score * decay, other_start, other_end))
        left = decayed
    return found


@pytest.mark.parametrize(
    ("top_k", "settings"),
    [(1, {}), (5, {}), (200, {}), (200, {"nms": 0.5}), (40, {"nms": 0.05}), (40, {"nms": 2}), (40, {"nms": None})],
)
def test_post_processing_against_a_slow_one(top_k, settings, tiny_processor):
    outputs = outputs_like(2, 3, 120)
    timelines = [Timeline(0.0, 30.0), Timeline(12.5, 20.0, num_steps=7)]  # the second as of a sliding window
    results = tiny_processor.post_process_temporal_grounding(outputs, timelines, top_k=top_k, **settings)
    assert [len(of_video) for of_video in results] == [3, 3]
    for video_index, timeline in enumerate(timelines):
        for sentence_index in range(3):
            result = results[video_index][sentence_index]
            expected = slow_post_process(
                outputs["logits"][video_index, sentence_index].double().tolist(),
                outputs["pred_segments"][video_index, sentence_index].double().tolist(),
                timeline.start_seconds,
                timeline.end_seconds,
                top_k,
                **settings,
            )
            assert len(expected) == min(top_k, 120)
            assert result["segments"].shape == (len(expected), 2) and result["segments"].dtype == np.float64
            np.testing.assert_allclose(result["scores"], [score for score, _, _ in expected], rtol=1e-9)
            np.testing.assert_allclose(result["segments"], [segment for _, *segment in expected], rtol=1e-9)
            assert (np.diff(result["scores"]) <= 0).all()


def test_window_with_a_start(tiny_processor):
    outputs = {"logits": torch.zeros(1, 1, 1), "pred_segments": torch.tensor([[[[0.25, 0.75]]]])}
    ((result,),) = tiny_processor.post_process_temporal_grounding(outputs, [Timeline(10.0, 30.0)])
    assert result["segments"].tolist() == [[15.0, 25.0]] and result["scores"].tolist() == [0.5]


@pytest.mark.parametrize("settings", [{}, {"nms": 0.1}, {"nms": None}])
def test_windows_of_one_video_are_ranked_together(settings, tiny_processor):
    """Three windows that overlap by half, against all their segments in seconds in one list."""
    outputs = outputs_like(3, 2, 60)
    timelines = [Timeline(0.0, 8.0), Timeline(4.0, 12.0), Timeline(8.0, 16.0)]
    (merged,) = tiny_processor.post_process_temporal_grounding(
        outputs, timelines, top_k=30, merge_windows=True, **settings
    )
    assert len(merged) == 2
    for sentence_index, result in enumerate(merged):
        logits, seconds = [], []
        for window_index, start_seconds in enumerate((0.0, 4.0, 8.0)):
            logits += outputs["logits"][window_index, sentence_index].double().tolist()
            edges = outputs["pred_segments"][window_index, sentence_index].double().tolist()
            seconds += [[start_seconds + 8.0 * edge for edge in segment] for segment in edges]
        expected = slow_post_process(logits, seconds, 0.0, 1.0, 30, **settings)
        np.testing.assert_allclose(result["scores"], [score for score, _, _ in expected], rtol=1e-9)
        np.testing.assert_allclose(result["segments"], [segment for _, *segment in expected], rtol=1e-9)
    # Ranked apart, and joined, they would be other ones.
    apart = tiny_processor.post_process_temporal_grounding(outputs, timelines, top_k=30, **settings)
    assert len(apart) == 3 and len(apart[0][0]["scores"]) == len(merged[0]["scores"]) == 30
    joined = np.sort(np.concatenate([of_window[0]["scores"] for of_window in apart]))[::-1][:30]
    assert settings == {"nms": None} or np.abs(joined - merged[0]["scores"]).max() > 1e-3


def test_one_window_is_a_video(tiny_processor):
    outputs = outputs_like(1, 2, 60)
    ((merged,), (alone,)) = (
        tiny_processor.post_process_temporal_grounding(outputs, [Timeline(3.0, 9.0)], merge_windows=merge_windows)
        for merge_windows in (True, False)
    )
    for result, expected in zip(merged, alone, strict=True):
        np.testing.assert_array_equal(result["scores"], expected["scores"])
        np.testing.assert_array_equal(result["segments"], expected["segments"])


def test_threshold_and_padding_of_windows(tiny_processor):
    """The best segment always comes back: of the video, not of each window."""
    outputs = {
        "logits": torch.logit(torch.tensor([[[0.2, 0.6], [0.5, 0.5]], [[0.7, 0.1], [0.5, 0.5]]])),
        "pred_segments": torch.tensor([[[0.0, 0.1], [0.2, 0.3]]]).expand(2, 2, 2, 2),
    }
    arguments = {
        "timelines": [Timeline(0.0, 10.0), Timeline(5.0, 15.0)],
        "sentence_mask": torch.tensor([[1, 0], [1, 0]]),
        "merge_windows": True,
    }
    for threshold, expected in [(0.0, [7, 6, 2, 1]), (0.5, [7, 6]), (0.65, [7]), (0.99, [7])]:
        ((result,),) = tiny_processor.post_process_temporal_grounding(outputs, threshold=threshold, **arguments)
        np.testing.assert_allclose(result["scores"], np.array(expected) / 10, atol=1e-6)
    ((result,),) = tiny_processor.post_process_temporal_grounding(outputs, **arguments)
    np.testing.assert_allclose(result["segments"], [[5, 6], [2, 3], [0, 1], [7, 8]], atol=1e-6)


def test_labels_come_back_as_seconds(clip, tiny_processor):
    batch = tiny_processor(videos=clip, text=SHORT, segments=[0.4, 1.3], return_timelines=True)
    outputs = {"logits": torch.zeros(1, 1, 1), "pred_segments": batch["labels"]}
    ((result,),) = tiny_processor.post_process_temporal_grounding(outputs, batch["timelines"])
    np.testing.assert_allclose(result["segments"], [[0.4, 1.3]], atol=1e-6)


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 4), (0.3, 3), (0.6, 2), (0.85, 1), (1.0, 1)])
def test_threshold(threshold, count, tiny_processor):
    scores = torch.tensor([0.2, 0.8, 0.5, 0.7])  # of segments that do not overlap, so that none decays
    starts = torch.tensor([0.0, 0.25, 0.5, 0.75])
    segments = torch.stack([starts, starts + 0.2], dim=-1)
    outputs = {"logits": torch.logit(scores)[None, None], "pred_segments": segments[None, None]}
    arguments = {"outputs": outputs, "timelines": [Timeline(0.0, 1.0)], "threshold": threshold}
    ((result,),) = tiny_processor.post_process_temporal_grounding(**arguments)
    np.testing.assert_allclose(result["scores"], [0.8, 0.7, 0.5, 0.2][:count], atol=1e-6)
    np.testing.assert_allclose(result["segments"][:, 0], [0.25, 0.75, 0.5, 0.0][:count], atol=1e-6)
    ((result,),) = tiny_processor.post_process_temporal_grounding(**arguments, top_k=2)
    assert len(result["scores"]) == len(result["segments"]) == min(count, 2)


@pytest.mark.parametrize("form", [torch.tensor, np.array, lambda mask: torch.tensor(mask).bool()])
def test_padding_is_dropped(form, tiny_processor):
    outputs = outputs_like(2, 3, 10)
    timelines = [Timeline(0.0, 5.0), Timeline(0.0, 8.0)]
    everything = tiny_processor.post_process_temporal_grounding(outputs, timelines)
    mask = form([[1, 0, 0], [1, 1, 0]])
    kept = tiny_processor.post_process_temporal_grounding(outputs, timelines, sentence_mask=mask)
    assert [len(of_video) for of_video in kept] == [1, 2]
    for of_video, all_of_video in zip(kept, everything, strict=True):
        for result, expected in zip(of_video, all_of_video, strict=False):
            np.testing.assert_array_equal(result["segments"], expected["segments"])


def test_half_precision_outputs(tiny_processor):
    outputs = outputs_like(1, 2, 50)
    exact = tiny_processor.post_process_temporal_grounding(outputs, [Timeline(0.0, 5.0)])
    outputs = {"logits": outputs["logits"].bfloat16(), "pred_segments": outputs["pred_segments"].bfloat16()}
    rough = tiny_processor.post_process_temporal_grounding(outputs, [Timeline(0.0, 5.0)])
    assert rough[0][0]["scores"].dtype == np.float64
    np.testing.assert_allclose(rough[0][0]["scores"], exact[0][0]["scores"], atol=0.02)


@pytest.mark.parametrize("name", ["logits", "pred_segments"])
def test_nan_outputs(name, tiny_processor):
    outputs = outputs_like(1, 2, 10)
    outputs[name][0, 1, 3] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        tiny_processor.post_process_temporal_grounding(outputs, [Timeline(0.0, 5.0)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timelines": []}, "0 timelines for the outputs of 2 videos"),
        ({"timelines": [Timeline(0.0, 5.0)] * 3}, "3 timelines for the outputs of 2 videos"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"nms": 0}, "nms=0"),
        ({"nms": -0.5}, "nms=-0.5"),
        ({"nms": math.nan}, "nms=nan"),
        ({"timelines": [Timeline(0.0, 5.0)], "merge_windows": True}, "1 timelines for the outputs of 2 videos"),
        ({"sentence_mask": torch.ones(2, 2)}, r"shape \(2, 2\) for outputs of 2 videos with 3 sentences"),
        ({"sentence_mask": torch.ones(3)}, r"shape \(3,\)"),
    ],
)
def test_bad_post_processing(arguments, message, tiny_processor):
    arguments = {"outputs": outputs_like(2, 3, 10), "timelines": [Timeline(0.0, 5.0)] * 2, **arguments}
    with pytest.raises(ValueError, match=message):
        tiny_processor.post_process_temporal_grounding(**arguments)


def test_a_sentence_that_is_cut_is_warned_of_once(tiny_processor, monkeypatch):
    """The tokenizer spells, so 70 letters and the two ends are 72 tokens; 62 letters just fit into 64."""
    warnings = []
    monkeypatch.setattr(processing_scada.logger, "warning", warnings.append)
    for _ in range(3):
        encoded = tiny_processor.encode_text([["a cat", "b" * 62, "c" * 70], ["c" * 70, "d" * 63]])
        assert encoded["input_ids"].shape == (2, 3, 64)
    assert len(warnings) == 2
    assert f"The sentence '{'c' * 60}'... has 72 tokens, but the sentence encoder accepts 64" in warnings[0]
    assert f"'{'d' * 60}'... has 65 tokens" in warnings[1]


def test_a_sentence_that_is_not_there_has_a_label_of_its_own(tiny_processor, make_clip):
    clip = str(make_clip(num_frames=20, fps=10))
    batch = tiny_processor(videos=clip, text=["sits", "stands"], segments=[[], [[0.0, 1.0], [1.5, 2.0]]])
    expected = torch.tensor([[[[-1.0, -1.0], [-100, -100]], [[0, 0.5], [0.75, 1]]]])
    torch.testing.assert_close(batch["labels"], expected)
    assert tiny_processor(videos=clip, text=["sits"], segments=[[]])["labels"].tolist() == [[[[-1, -1]]]]


def test_the_threshold_is_saved(tiny_processor, tmp_path):
    assert tiny_processor.found_threshold is None
    tiny_processor.found_threshold = 0.25
    tiny_processor.save_pretrained(tmp_path)
    assert ScadaProcessor.from_pretrained(tmp_path).found_threshold == 0.25
