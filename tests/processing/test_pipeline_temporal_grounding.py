import functools
import http.server
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from fractions import Fraction
from pathlib import Path

import av
import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import code_image
from fresh_process import run_python
from torch.utils.data import Dataset, IterableDataset
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

import modeling_scada
from modeling_scada import (
    ReadLimits,
    ScadaForTemporalGrounding,
    ScadaProcessor,
    ScadaVideoProcessor,
    TemporalGroundingPipeline,
    VideoReadError,
)
from processing.video_io import read_frames


ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture
def make_pipe(tiny_model, tiny_tokenizer):
    """`make_pipe(window_seconds=None, dtype=torch.float32, **settings)`: a pipeline with the weights of `pipe`."""

    def make(window_seconds=None, dtype=torch.float32, **settings):
        video_processor = ScadaVideoProcessor(
            num_frames=16, size={"height": 32, "width": 32}, window_seconds=window_seconds
        )
        processor = ScadaProcessor(video_processor, tiny_tokenizer)
        return pipeline("temporal-grounding", model=tiny_model.to(dtype), processor=processor, **settings)

    return make


@pytest.fixture
def rows(clip, make_clip):
    """Five videos of 5, 3 and 2 s, with sentences of different numbers and lengths."""
    three = make_clip("three.mp4", num_frames=30, first_code=60)
    two = make_clip("two.mp4", num_frames=20, first_code=120)
    return [
        {"video": clip, "sentence": "a cat"},
        {"video": three, "sentence": ["the dog runs away.", "it is 7"]},
        {"video": two, "sentence": ["a", "and then the person sits down on the floor", "it is 7"]},
        {"video": three, "sentence": "the door opens very slowly"},
        {"video": clip, "sentence": ["the dog runs away."]},
    ]


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """`serve(path) -> str`: the address of a file in the test's folder, on a small server; `serve.requests` grows."""
    requests = []
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: requests.append(args))
    monkeypatch.setattr(ScadaVideoProcessor, "limits", ReadLimits(allow_private_addresses=True))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def address(path):
            return f"http://127.0.0.1:{server.server_port}/{path.name}"

        address.requests = requests
        yield address
        server.shutdown()


class Rows(Dataset):
    """A list as a data set; it notes in a file which processes have read from it."""

    def __init__(self, items, log=None):
        self.items, self.log = items, log

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()}\n")
        return self.items[index]


class Stream(IterableDataset):
    """A data set that does not know how long it is."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def by_hand(model, processor, video, sentence, settings=None, **post_process):
    """The same with the parts of the package that the pipeline is to join, for one sentence."""
    batch = processor(videos=video, text=sentence, return_timelines=True, **(settings or {}))
    timelines = batch.pop("timelines")
    batch["pixel_values_videos"] = batch["pixel_values_videos"].to(model.dtype)
    with torch.no_grad():
        outputs = model(**batch)
    ((result,),) = processor.post_process_temporal_grounding(outputs, timelines, **post_process)
    return [
        {"score": score, "start": start, "end": end}
        for score, (start, end) in zip(result["scores"].tolist(), result["segments"].tolist(), strict=True)
    ]


def check_close(found, expected, atol=1e-5):
    """The same nesting; scores up to `atol`, times up to `atol` of the clip's five seconds."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, list):
            check_close(one, other, atol)
            continue
        assert one.keys() == other.keys() and one.get("sentence") == other.get("sentence")
        assert one["score"] == pytest.approx(other["score"], abs=atol)
        assert [one["start"] / 5, one["end"] / 5] == pytest.approx([other["start"] / 5, other["end"] / 5], abs=atol)


def expect(pipe, rows, **post_process):
    """What the pipeline is to find in `rows`, by hand and one sentence at a time."""
    expected = []
    for row in rows:
        is_alone = isinstance(row["sentence"], str)
        of_video = []
        for sentence in [row["sentence"]] if is_alone else row["sentence"]:
            found = by_hand(pipe.model, pipe.processor, row["video"], sentence, **post_process)
            of_video.append(found if is_alone else [segment | {"sentence": sentence} for segment in found])
        expected.append(of_video[0] if is_alone else of_video)
    return expected


def rank(scores, segments, top_k, nms):
    """Soft non-maximum suppression with plain floats, or with `nms=None` the best scores as they are."""
    left = [(score, start, end) for score, (start, end) in zip(scores, segments, strict=True)]
    found = []
    while left and len(found) < top_k:
        left.sort(key=lambda proposal: -proposal[0])
        score, start, end = left.pop(0)
        found.append({"score": score, "start": start, "end": end})
        for index, (other_score, other_start, other_end) in enumerate(left if nms else []):
            overlap = max(0.0, min(end, other_end) - max(start, other_start))
            iou = overlap / ((end - start) + (other_end - other_start) - overlap)
            left[index] = (other_score * math.exp(-(iou**2) / nms), other_start, other_end)
    return found


def proposals(pipe, video, sentence, start_seconds=0.0, duration_seconds=5.0, **settings):
    """Scores and segments in seconds, of all proposals of the model, for one sentence."""
    batch = pipe.processor(videos=video, text=sentence, **settings)
    batch["pixel_values_videos"] = batch["pixel_values_videos"].to(pipe.model.dtype)
    with torch.no_grad():
        outputs = pipe.model(**batch)
    scores = [1 / (1 + math.exp(-logit)) for logit in outputs.logits[0, 0].tolist()]
    segments = outputs.pred_segments[0, 0].tolist()
    return scores, [[start_seconds + duration_seconds * edge for edge in segment] for segment in segments]


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


def test_a_model_in_the_mode_for_training(clip, tiny_model, tiny_processor):
    """As it comes out of a training, before or after the pipeline was made: dropout must not change answers."""
    expected = by_hand(tiny_model, tiny_processor, clip, SENTENCES[0])
    pipe = pipeline("temporal-grounding", model=tiny_model.train(), processor=tiny_processor)
    assert pipe(clip, SENTENCES[0]) == expected
    encoded = pipe.encode(clip)
    tiny_model.train()
    for found, segment in zip(pipe(encoded, SENTENCES[0]), expected, strict=True):
        assert found == pytest.approx(segment, abs=1e-5)


def test_several_sentences(pipe, clip, tiny_model, tiny_processor):
    found = pipe(clip, SENTENCES)
    assert len(found) == 3
    for sentence, of_sentence in zip(SENTENCES, found, strict=True):
        expected = by_hand(tiny_model, tiny_processor, clip, sentence)
        check_close(of_sentence, [segment | {"sentence": sentence} for segment in expected])
    assert found[0][0]["score"] != found[1][0]["score"]
    (alone,) = pipe(clip, SENTENCES[:1])  # a list of one stays a list
    assert alone == [segment | {"sentence": SENTENCES[0]} for segment in pipe(clip, SENTENCES[0])]
    assert pipe(clip, tuple(SENTENCES)) == found


BOTH_DTYPES = pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"]
)


@BOTH_DTYPES
def test_many_at_once_as_one_by_one(dtype, atol, clip, make_pipe):
    """Float64 tells rounding, which may differ, from sentences and their padding that act on each other."""
    pipe = make_pipe(dtype=dtype)
    sentences = [f"sentence {'very ' * k}long" for k in range(8)]
    found = pipe(clip, sentences)
    for sentence, together in zip(sentences, found, strict=True):
        alone = [segment | {"sentence": sentence} for segment in pipe(clip, sentence)]
        check_close(together, alone, atol)
    assert len({of_sentence[0]["score"] for of_sentence in found}) == 8


def test_times_count_from_the_first_frame(pipe, clip, make_clip):
    late = make_clip("late.mp4", num_frames=50, start_seconds=60.0)
    check_close(pipe(late, SENTENCES[0]), pipe(clip, SENTENCES[0]))


# --- the forms of a video ---


def test_forms_of_a_video(pipe, clip, serve):
    """All hold the same frames at the model's size, so that all results are the same to the bit."""
    sentence = SENTENCES[0]
    found = pipe(str(clip), sentence)
    frames = read_frames(clip, (np.arange(50) + 0.5) / 10, size=(32, 32))
    assert pipe(io.BytesIO(clip.read_bytes()), sentence) == found
    with open(clip, "rb") as file:
        for video in (clip, clip.read_bytes(), serve(clip), file):
            assert pipe(video, sentence) == found
            assert pipe({"video": video, "sentence": sentence}) == found
    assert pipe(video=str(clip), sentence=sentence) == found
    for video in (frames, torch.from_numpy(frames), frames.transpose(0, 3, 1, 2)):
        for metadata in ({"fps": 10}, {"duration": 5.0}):
            assert pipe(video, sentence, video_metadata=metadata) == found
            assert pipe({"video": video, "sentence": sentence, "video_metadata": metadata}) == found
            assert pipe({"video": video, "sentence": sentence}, video_metadata=metadata) == found
    # A dict's own metadata win. Frames that are said to be shown for twice as long:
    slower = pipe(
        {"video": frames, "sentence": sentence, "video_metadata": {"duration": 10.0}}, video_metadata={"fps": 10}
    )
    for one, other in zip(slower, found, strict=True):
        assert one == pytest.approx({**other, "start": 2 * other["start"], "end": 2 * other["end"]})


def test_array_is_near_its_file(pipe, clip):
    with av.open(str(clip)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    (from_array,) = pipe(frames, SENTENCES[0], video_metadata={"fps": 10}, top_k=1)
    (from_file,) = pipe(clip, SENTENCES[0], top_k=1)
    # Scaled before or after the conversion to RGB: nearly the same pixels.
    assert from_array["score"] == pytest.approx(from_file["score"], abs=0.02)


@pytest.mark.parametrize("column", [np.array, pd.Series, lambda sentences: pd.Series(sentences, index=[7, 5, 3])])
def test_sentences_as_a_column(column, pipe, clip):
    found = pipe(clip, column(SENTENCES))
    assert found == pipe(clip, SENTENCES)
    assert [type(segments[0]["sentence"]) for segments in found] == [str] * 3
    assert pipe({"video": clip, "sentence": column(SENTENCES)}) == found
    batch = pipe.processor(videos=clip, text=column(SENTENCES))
    assert torch.equal(batch["input_ids"], pipe.processor(videos=clip, text=SENTENCES)["input_ids"])


# --- several videos ---

SEVERAL = {
    "list": lambda rows: rows,
    "tuple": tuple,
    "generator": lambda rows: (row for row in rows),
    "data_set": Rows,
    "stream": Stream,
    "key_data_set": lambda rows: KeyDataset(Rows([{"id": k, "item": row} for k, row in enumerate(rows)]), "item"),
    "urls": None,
    "bytes": lambda rows: [row | {"video": row["video"].read_bytes()} for row in rows],
    "open_files": lambda rows: [row | {"video": open(row["video"], "rb")} for row in rows],
    "array_of_dicts": lambda rows: np.array(rows),
}


@pytest.mark.parametrize("form", SEVERAL)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_forms_of_several_videos(form, batch_size, rows, pipe, serve):
    expected = expect(pipe, rows)
    assert [type(of_video[0]) for of_video in expected] == [dict, list, list, dict, list]
    if form == "urls":
        inputs = [row | {"video": serve(row["video"])} for row in rows]
    else:
        inputs = SEVERAL[form](rows)
    found = pipe(inputs, batch_size=batch_size)
    assert isinstance(found, list) == (form not in ("generator", "data_set", "stream", "key_data_set"))
    check_close(list(found), expected)
    if form == "open_files":
        for row in inputs:
            row["video"].close()


def test_videos_and_sentences_side_by_side(rows, pipe):
    videos = [row["video"] for row in rows]
    expected = expect(pipe, rows)
    check_close(pipe(videos, [row["sentence"] for row in rows]), expected)
    check_close(pipe(tuple(videos), tuple(row["sentence"] for row in rows), batch_size=3), expected)
    # As many sentences as videos are one for each video, not all for each.
    check_close(pipe(videos[:2], SENTENCES[:2]), expect(pipe, as_rows(videos[:2], SENTENCES[:2])))
    check_close(pipe(videos[:1], SENTENCES[:1]), expect(pipe, as_rows(videos[:1], SENTENCES[:1])))


@pytest.mark.parametrize(
    "column", [np.array, pd.Series, lambda values: pd.Series(values, index=range(9, 9 - len(values), -1))]
)
def test_columns_side_by_side(column, rows, pipe):
    """Of NumPy and pandas, where an index of its own has no say in the order."""
    videos = [str(row["video"]) for row in rows]
    sentences = [f"sentence {k}" for k in range(5)]
    expected = pipe(as_rows(videos, sentences))
    for of_videos, of_sentences in (
        (column(videos), column(sentences)),
        (videos, column(sentences)),
        (column(videos), sentences),
        (column([Path(video) for video in videos]), tuple(sentences)),
    ):
        found = pipe(of_videos, of_sentences, batch_size=2)
        assert isinstance(found, list)
        check_close(found, expected)
    check_close(pipe(column(videos), SENTENCES[0]), pipe(videos, SENTENCES[0]))
    with pytest.raises(ValueError, match="5 videos but sentences for 4"):
        pipe(column(videos), column(sentences[:4]))
    lists = pd.Series([[sentence, "it is 7"] for sentence in sentences])
    check_close(pipe(column(videos), lists), pipe(as_rows(videos, lists.to_list())))


def as_rows(videos, sentences):
    return [{"video": video, "sentence": sentence} for video, sentence in zip(videos, sentences, strict=True)]


@pytest.mark.parametrize("form", ["list", "generator", "data_set", "key_data_set", "stream"])
def test_one_sentence_for_all_videos(form, rows, pipe):
    videos = [row["video"] for row in rows]
    inputs = {
        "list": videos,
        "generator": (video for video in videos),
        "data_set": Rows(videos),
        "key_data_set": KeyDataset(Rows(rows), "video"),
        "stream": Stream(videos),
    }[form]
    found = list(pipe(inputs, SENTENCES[0], batch_size=2))
    check_close(found, expect(pipe, as_rows(videos, [SENTENCES[0]] * 5)))


@BOTH_DTYPES
def test_batch_size_changes_nothing(dtype, atol, rows, make_pipe):
    """Five videos in batches of two and three, so that the last batch is smaller."""
    pipe = make_pipe(dtype=dtype)
    expected = [pipe(row) for row in rows]
    check_close(expected, expect(pipe, rows), atol)
    best = [of_video[0][0] if isinstance(of_video[0], list) else of_video[0] for of_video in expected]
    assert len({segment["score"] for segment in best}) == 5
    for batch_size in (1, 2, 3, 5, 7):
        check_close(pipe(rows, batch_size=batch_size), expected, atol)
    for batch_size in (2, 3):
        check_close(pipe(rows[::-1], batch_size=batch_size), expected[::-1], atol)
        check_close(make_pipe(dtype=dtype, batch_size=batch_size)(rows), expected, atol)


def test_batches_are_of_the_size_asked_for(rows, pipe, monkeypatch):
    sizes = []
    forward = type(pipe.model).forward

    def count(self, pixel_values_videos, **kwargs):
        sizes.append(len(pixel_values_videos))
        return forward(self, pixel_values_videos=pixel_values_videos, **kwargs)

    monkeypatch.setattr(type(pipe.model), "forward", count)
    for inputs in (rows, Rows(rows), (row for row in rows)):
        sizes.clear()
        assert len(list(pipe(inputs, batch_size=2))) == 5
        assert sizes == [2, 2, 1]


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("form", ["list", "data_set", "generator"])
def test_workers_change_nothing(form, num_workers, rows, pipe, tmp_path):
    expected = pipe(rows, batch_size=2)
    log = tmp_path / "processes"
    inputs = {"list": rows, "data_set": Rows(rows, log), "generator": (row for row in rows)}[form]
    assert list(pipe(inputs, batch_size=2, num_workers=num_workers)) == expected
    if form == "data_set":
        processes = log.read_text().split()
        assert len(processes) == 5 and len(set(processes)) == num_workers and str(os.getpid()) not in processes


def test_errors_in_workers(rows, pipe, tmp_path):
    (tmp_path / "bad.mp4").write_text("This is no video.")
    rows[3] = {"video": tmp_path / "bad.mp4", "sentence": "a cat"}
    for num_workers in (0, 1):
        with pytest.raises(VideoReadError, match="bad.mp4"):
            pipe(rows, num_workers=num_workers)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_generators_are_read_on_demand(batch_size, clip, pipe):
    asked = []

    def without_end():
        for number in itertools.count():
            asked.append(number)
            yield {"video": clip, "sentence": f"sentence {number}"}

    results = iter(pipe(without_end(), batch_size=batch_size))
    assert len(asked) <= 1  # transformers looks at the first
    for number in range(5):
        check_close(next(results), pipe(clip, f"sentence {number}"))
        assert len(asked) <= number + batch_size


def test_an_error_comes_after_the_results_before_it(clip, pipe, tmp_path):
    results = iter(pipe(Rows(as_rows([clip, tmp_path / "gone.mp4"], SENTENCES[:2]))))
    assert next(results) == pipe(clip, SENTENCES[0])
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        next(results)


def test_settings_of_several_videos(rows, pipe):
    found = pipe(rows, batch_size=2, top_k=2, num_frames=32, nms=None)
    check_close(found, [pipe(row, top_k=2, num_frames=32, nms=None) for row in rows])
    assert len(found[0]) == len(found[1][0]) == 2
    assert pipe(rows, batch_size=2, top_k=2, nms=None)[0][0]["score"] != found[0][0]["score"]


def test_no_video_at_all(pipe):
    assert pipe([], SENTENCES[0]) == []
    assert list(pipe((video for video in []), SENTENCES[0])) == []


def test_columns_of_a_data_set(rows, pipe):
    """`datasets` hands out columns that are no lists, and data sets that are not torch's."""
    videos = [str(row["video"]) for row in rows]
    data = datasets.Dataset.from_dict({"video": videos, "sentence": [f"sentence {k}" for k in range(5)], "id": videos})
    expected = expect(pipe, as_rows(videos, data["sentence"]))
    check_close(pipe(data["video"], data["sentence"], batch_size=2), expected)
    check_close(list(pipe(KeyDataset(data, "video"), SENTENCES[0])), expect(pipe, as_rows(videos, SENTENCES[:1] * 5)))
    check_close(list(pipe(data, batch_size=2)), expected)
    check_close(list(pipe(data.to_iterable_dataset(), batch_size=2)), expected)


@pytest.mark.parametrize("window_seconds", [None, 2.0])
def test_only_what_the_model_sees_goes_to_its_device(window_seconds, make_pipe, monkeypatch):
    """Not a whole video that came as a tensor."""
    shapes = []
    move = TemporalGroundingPipeline._ensure_tensor_on_device

    def note(self, inputs, device):
        if isinstance(inputs, torch.Tensor):
            shapes.append(tuple(inputs.shape))
        return move(self, inputs, device)

    monkeypatch.setattr(TemporalGroundingPipeline, "_ensure_tensor_on_device", note)
    video = torch.zeros(50, 40, 48, 3, dtype=torch.uint8)
    make_pipe(window_seconds)(video, SENTENCES[0], video_metadata={"fps": 10})
    assert shapes or window_seconds
    assert (50, 40, 48, 3) not in shapes


def test_the_caller_keeps_his_dicts(clip, pipe):
    row = {"video": clip, "sentence": SENTENCES[0]}
    pipe([row, row], batch_size=2)
    assert row == {"video": clip, "sentence": SENTENCES[0]}


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
        ({"nms": 0.1}, by_hand(tiny_model, tiny_processor, clip, sentence, nms=0.1)),
        ({"nms": None}, by_hand(tiny_model, tiny_processor, clip, sentence, nms=None)),
    ]:
        assert pipe(clip, sentence, **call) == expected
        settled = pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor, **call)
        assert settled(clip, sentence) == expected
        back = {"top_k": 7, "threshold": 0.0, "num_frames": 16, "nms": 0.5}
        assert settled(clip, sentence, **back) == pipe(clip, sentence, top_k=7)
        assert settled(clip, sentence) == expected
    assert len(pipe(clip, sentence)) == 5
    assert pipe(clip, sentence, num_frames=32) != pipe(clip, sentence)


@pytest.mark.parametrize("nms", [None, 0.1, 0.5, 3.0])
def test_ranking(nms, clip, pipe):
    """Against plain floats; the settings do differ."""
    scores, segments = proposals(pipe, clip, SENTENCES[1])
    assert len(scores) > 100
    expected = rank(scores, segments, 12, nms)
    check_close(pipe(clip, SENTENCES[1], top_k=12, nms=nms), expected, atol=1e-6)
    check_close(pipe(clip, SENTENCES[1], top_k=3, nms=nms), expected[:3], atol=1e-6)
    if nms is None:
        assert [segment["score"] for segment in expected] == sorted(scores, reverse=True)[:12]
    else:
        assert [segment["start"] for segment in expected] != [s["start"] for s in rank(scores, segments, 12, None)]


@pytest.mark.parametrize("window_seconds", [None, 2.0])
def test_bfloat16(window_seconds, rows, make_pipe):
    exact = make_pipe(window_seconds)(rows, batch_size=2, top_k=1)
    found = make_pipe(window_seconds, dtype=torch.bfloat16)(rows, batch_size=2, top_k=1)
    assert found != exact
    check_close(found, exact, atol=0.05)


# --- windows ---


def windows_by_hand(pipe, video, sentence, windows_seconds, top_k=5, nms=0.5, num_frames=16):
    """
    Each window through the processor and the model alone, as frames read at its own instants; all proposals ranked
    together with plain floats.
    """
    scores, segments = [], []
    for start_seconds, end_seconds in windows_seconds:
        duration_seconds = end_seconds - start_seconds
        instants_seconds = start_seconds + (np.arange(num_frames) + 0.5) * duration_seconds / num_frames
        frames = read_frames(video, instants_seconds, size=(32, 32))
        metadata = {"duration": duration_seconds}
        own_scores, own_segments = proposals(
            pipe, frames, sentence, start_seconds, duration_seconds, video_metadata=metadata, num_frames=num_frames
        )
        scores += own_scores
        segments += own_segments
    # Only the best 256 take part (see `soft_nms`).
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[:256]
    return rank([scores[index] for index in best], [segments[index] for index in best], top_k, nms)


FOUR_WINDOWS = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (3.0, 5.0)]  # of 5 s, none longer than 2 s


@BOTH_DTYPES
def test_windows_by_hand(dtype, atol, clip, make_pipe):
    pipe = make_pipe(window_seconds=2.0, dtype=dtype)
    expected = windows_by_hand(pipe, clip, SENTENCES[0], FOUR_WINDOWS, top_k=12)
    assert max(segment["end"] for segment in expected) > 3 and min(segment["start"] for segment in expected) < 2
    check_close(pipe(clip, SENTENCES[0], top_k=12), expected, atol)
    found = pipe(clip, SENTENCES)
    for sentence, of_sentence in zip(SENTENCES, found, strict=True):
        expected = windows_by_hand(pipe, clip, sentence, FOUR_WINDOWS)
        check_close(of_sentence, [segment | {"sentence": sentence} for segment in expected], atol)


@pytest.mark.parametrize(
    ("window_seconds", "windows_seconds"),
    [
        (4.0, [(0.0, 10 / 3), (5 / 3, 5.0)]),  # two windows, of equal length
        (4.999, [(0.0, 10 / 3), (5 / 3, 5.0)]),
        (1.7, [(k * 5 / 6, k * 5 / 6 + 5 / 3) for k in range(5)]),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"num_frames": 32}, {"nms": None}])
def test_windows_of_other_lengths(window_seconds, windows_seconds, settings, clip, make_pipe):
    pipe = make_pipe(window_seconds)
    expected = windows_by_hand(pipe, clip, SENTENCES[1], windows_seconds, **settings)
    check_close(pipe(clip, SENTENCES[1], **settings), expected)


def test_threshold_across_windows(clip, make_pipe):
    """At least the best segment of the video comes, not that of each window."""
    pipe = make_pipe(window_seconds=2.0)
    assert pipe(clip, SENTENCES[0], threshold=1.0) == pipe(clip, SENTENCES[0])[:1]


def test_a_url_is_downloaded_once_and_for_windows_again(clip, make_pipe, serve):
    make_pipe(window_seconds=50.0)(serve(clip), SENTENCES)
    assert len(serve.requests) == 1
    make_pipe(window_seconds=2.0)(serve(clip), SENTENCES)
    assert len(serve.requests) == 3


def test_forms_of_a_long_video(clip, make_pipe, serve):
    pipe = make_pipe(window_seconds=2.0)
    found = pipe(clip, SENTENCES)
    frames = read_frames(clip, (np.arange(50) + 0.5) / 10, size=(32, 32))
    for video in (str(clip), clip.read_bytes(), serve(clip)):
        assert pipe(video, SENTENCES) == found
    for video in (frames, torch.from_numpy(frames), frames.transpose(0, 3, 1, 2)):
        assert pipe(video, SENTENCES, video_metadata={"fps": 10}) == found
        assert pipe({"video": video, "sentence": SENTENCES, "video_metadata": {"duration": 5.0}}) == found
    # Shown for so short a time that the frames fit into a window.
    assert pipe(frames, SENTENCES, video_metadata={"fps": 25}) == make_pipe()(
        frames, SENTENCES, video_metadata={"fps": 25}
    )


@pytest.mark.parametrize("window_seconds", [5.0, 7.5, 1e6])
def test_a_video_that_fits_into_the_window(window_seconds, clip, make_pipe):
    without = make_pipe()
    pipe = make_pipe(window_seconds)
    frames = read_frames(clip, (np.arange(50) + 0.5) / 10, size=(32, 32))
    for video in (clip, clip.read_bytes(), frames):
        assert pipe(video, SENTENCES, video_metadata={"fps": 10}) == without(
            video, SENTENCES, video_metadata={"fps": 10}
        )
    assert pipe([clip, clip], SENTENCES[:2], batch_size=2) == without([clip, clip], SENTENCES[:2], batch_size=2)
    assert pipe(clip, SENTENCES[0], num_frames=48) == without(clip, SENTENCES[0], num_frames=48)


@BOTH_DTYPES
def test_long_and_short_videos_in_one_batch(dtype, atol, rows, make_pipe):
    """The videos last 5, 3, 2, 3 and 5 s: with windows of 3 s two of them, with 2 s four are long."""
    for window_seconds, long in [(3.0, [0, 4]), (2.0, [0, 1, 3, 4])]:
        pipe = make_pipe(window_seconds, dtype=dtype)
        expected = [pipe(row) for row in rows]
        whole = make_pipe(dtype=dtype)(rows)
        assert [index for index in range(5) if expected[index] != whole[index]] == long
        for batch_size in (1, 2, 3, 5):
            check_close(pipe(rows, batch_size=batch_size), expected, atol)
        check_close(list(pipe((row for row in rows[::-1]), batch_size=3)), expected[::-1], atol)


def test_long_videos_with_workers(rows, make_pipe):
    pipe = make_pipe(window_seconds=2.0)
    expected = pipe(rows, batch_size=2)
    for num_workers in (1, 2):
        assert pipe(rows, batch_size=2, num_workers=num_workers) == expected


def test_two_windows_are_in_memory(clip, make_pipe, monkeypatch):
    """One that waits for the model or is in it, and one that is read meanwhile."""
    pipe = make_pipe(window_seconds=1.0)
    alive, calls = weakref.WeakSet(), 0
    iterate_windows = ScadaVideoProcessor.iterate_windows
    forward = type(pipe.model).forward

    def read(self, *args, **kwargs):
        for window in iterate_windows(self, *args, **kwargs):
            alive.add(window["pixel_values_videos"])
            patience = itertools.count()
            while len(alive) > 2:  # the model may just be through with the first of three
                assert next(patience) < 1000
                time.sleep(0.01)
            yield window
            del window

    def run(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ScadaVideoProcessor, "iterate_windows", read)
    monkeypatch.setattr(type(pipe.model), "forward", run)
    pipe(clip, SENTENCES[0])
    assert calls == 9 and not alive


def test_windows_need_an_even_number_of_frames(clip, make_pipe):
    with pytest.raises(ValueError, match="num_frames=17.*even"):
        make_pipe(window_seconds=2.0)(clip, SENTENCES[0], num_frames=17)


def test_a_long_video_that_is_cut_short(make_clip, make_pipe):
    """Its end cannot be grounded, so nothing is, as with a short one."""
    path = make_clip(num_frames=100, container_options={"movflags": "faststart"}, codec_options={"g": "10"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    for window_seconds in (2.0, None):
        with pytest.raises(VideoReadError, match="clip.mp4.*reading stopped at"):
            make_pipe(window_seconds)(path, SENTENCES[0])


def test_saving_keeps_the_window(clip, make_pipe, tmp_path):
    pipe = make_pipe(window_seconds=2.0)
    pipe.save_pretrained(tmp_path / "saved")
    assert pipeline("temporal-grounding", model=str(tmp_path / "saved"))(clip, SENTENCES) == pipe(clip, SENTENCES)


def write_long_video(path, minutes):
    """Two frames a second, which change all the time."""
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=2, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for k in range(minutes * 120):
            frame = av.VideoFrame.from_ndarray(code_image(k % 256, 48, 64), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# Not `ru_maxrss`, which on Linux also counts the process that this one was started from.
PEAK_OF_A_VIDEO = """
import json, re, sys
import modeling_scada
from pathlib import Path
from transformers import pipeline

found = pipeline("temporal-grounding", model=sys.argv[1])(sys.argv[2], ["a cat", "the dog runs away."])
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps([peak, found]))
"""


@pytest.mark.slow
def test_an_hour_in_bounded_memory(tiny_config, tiny_tokenizer, tmp_path):
    """
    119 windows of a minute, of 128 frames of 96 x 96 pixels each: all frames at once were 210 MB as bytes, and 1.7 GB
    as what goes into the model.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("reads the peak memory from /proc")
    tiny_config.video_config.image_size, tiny_config.video_config.patch_size = 96, 32
    video_processor = ScadaVideoProcessor(num_frames=128, size={"height": 96, "width": 96}, window_seconds=60.0)
    torch.manual_seed(0)
    folder = tmp_path / "saved"
    ScadaForTemporalGrounding(tiny_config).save_pretrained(folder)
    ScadaProcessor(video_processor, tiny_tokenizer).save_pretrained(folder)

    peaks = {}
    for minutes in (5, 60):
        video = tmp_path / f"{minutes}.mp4"
        write_long_video(video, minutes)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PEAK_OF_A_VIDEO, str(folder), str(video)]
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        peaks[minutes], found = json.loads(process.stdout.splitlines()[-1])
        assert [len(of_sentence) for of_sentence in found] == [5, 5]
        for segment in itertools.chain(*found):
            assert 0 <= segment["start"] <= segment["end"] <= minutes * 60 + 1e-6
            assert segment["end"] - segment["start"] <= 60 + 1e-6
    print(f"peak resident memory in kB by minutes of video: {peaks}")
    assert peaks[60] <= 1.2 * peaks[5]


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
# Nobody said `trust_remote_code`: the installed code runs, not the copy of it that was saved.
assert type(pipe) is modeling_scada.TemporalGroundingPipeline
assert not [name for name in sys.modules if name.startswith("transformers_modules.")]
print(json.dumps([shape, pipe(video, sentences)]))
"""


@pytest.mark.parametrize("blocked", ["", "PIL torchvision torchcodec matplotlib"], ids=["everything", "bare"])
def test_save_and_load(blocked, pipe, clip, tmp_path):
    folder = tmp_path / "saved"
    pipe.save_pretrained(folder)
    expected = pipe(clip, SENTENCES)
    loaded = pipeline("temporal-grounding", model=str(folder))
    assert type(loaded) is TemporalGroundingPipeline and type(loaded.model) is ScadaForTemporalGrounding
    assert loaded(clip, SENTENCES) == expected

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = ["-c", IN_A_FRESH_PROCESS, folder, clip, json.dumps(SENTENCES), blocked]
    process = run_python(command, tmp_path, environment)
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
        ([["a cat"]], r"sentence \['a cat'\]"),
        (["a cat", None], "sentence None"),
        (7, "type int"),
    ],
)
def test_bad_sentences(sentence, message, pipe, clip):
    """One by one and among others."""
    with pytest.raises(ValueError, match=message):
        pipe(clip, sentence)
    with pytest.raises(ValueError, match=message):
        pipe({"video": clip, "sentence": sentence})
    with pytest.raises(ValueError, match=message):
        pipe([clip, clip], ["a cat", sentence])
    with pytest.raises(ValueError, match=message):
        list(pipe(Rows(as_rows([clip, clip], ["a cat", sentence])), batch_size=2))


def test_missing_sentence(pipe, clip):
    with pytest.raises(ValueError, match="no sentence"):
        pipe(clip)
    with pytest.raises(ValueError, match="no sentence"):
        pipe([clip, clip])
    with pytest.raises(ValueError, match="no sentence"):
        list(pipe(video for video in [clip, clip]))


def test_a_bad_sentence_is_noticed_before_the_video_is_read(pipe, tmp_path):
    with pytest.raises(ValueError, match="sentence ''"):
        pipe(tmp_path / "gone.mp4", "")


@pytest.mark.parametrize("sentences", [[], ["a cat"], ["a cat"] * 3, [["a cat", "it is 7"]]])
def test_wrong_number_of_sentences(sentences, pipe, clip):
    with pytest.raises(ValueError, match=f"2 videos but sentences for {len(sentences)}"):
        pipe([clip, clip], sentences)


MANY_FORMS = [lambda row: row, lambda row: [row], lambda row: (each for each in [row]), lambda row: Rows([row])]


@pytest.mark.parametrize("form", MANY_FORMS, ids=["dict", "list", "generator", "data_set"])
def test_bad_dicts(form, pipe, clip):
    for row in ({"video": clip}, {"sentence": "a cat"}, {"path": clip, "sentence": "a cat"}, {}):
        with pytest.raises(ValueError, match="expected .*video.*sentence"):
            list(pipe(form(row)))
    with pytest.raises(ValueError, match="no other sentence"):
        list(pipe(form({"video": clip, "sentence": "a cat"}), "it is 7"))
    with pytest.raises(ValueError, match="no sentence"):
        list(pipe(form({"video": clip, "sentence": None})))


def test_dicts_with_a_list_of_sentences_beside_them(pipe, clip):
    with pytest.raises(ValueError, match="no other sentence"):
        pipe([{"video": clip, "sentence": "a cat"}] * 2, SENTENCES[:2])


@pytest.mark.parametrize("window_seconds", [None, 2.0])
@pytest.mark.parametrize("form", MANY_FORMS, ids=["dict", "list", "generator", "data_set"])
def test_several_videos_in_one_dict(form, window_seconds, make_pipe, clip):
    for videos in ([clip, clip], [clip], (clip, clip), []):
        with pytest.raises(ValueError, match=f"type {type(videos).__name__}"):
            list(make_pipe(window_seconds)(form({"video": videos, "sentence": "a cat"})))


def test_bad_videos(pipe, clip, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        pipe(tmp_path / "gone.mp4", SENTENCES[0])
    with pytest.raises(VideoReadError, match="17 bytes"):
        pipe(b"This is no video.", SENTENCES[0])
    with pytest.raises(ValueError, match="type NoneType"):
        pipe(None, SENTENCES[0])
    with pytest.raises(ValueError, match="type NoneType"):
        pipe([clip, None], SENTENCES[0])
    with pytest.raises(ValueError, match="type int"):
        pipe(7, SENTENCES[0])
    with pytest.raises(ValueError, match="fps"):
        pipe(np.zeros((4, 32, 32, 3), np.uint8), SENTENCES[0])


class WithoutWayBack(io.RawIOBase):
    """A file as it comes from a pipe or a socket."""

    def __init__(self, content):
        self.rest = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.rest.readinto(buffer)


@pytest.mark.parametrize("window_seconds", [None, 2.0])
def test_addresses_and_files_that_are_none(window_seconds, make_pipe, clip):
    """One error that says what came and what to do, whether a video is read at once or in windows."""
    pipe = make_pipe(window_seconds)
    with pytest.raises(FileNotFoundError, match="^Received '' as a video; expected a path or an http"):
        pipe("", SENTENCES[0])
    for address in (clip.as_uri(), Path(clip.as_uri()), "s3://bucket/clip.mp4", "FTP://ann:secret@host/clip.mp4"):
        with pytest.raises(
            FileNotFoundError, match=f"^Received the address {str(address)[:4]}.*without file://"
        ) as caught:
            pipe(address, SENTENCES[0])
        assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="type TextIOWrapper.*opened for reading bytes"), open(clip) as file:
        pipe(file, SENTENCES[0])
    with pytest.raises(ValueError, match=r"non-seekable file of type WithoutWayBack.*file\.read\(\)"):
        pipe(WithoutWayBack(clip.read_bytes()), SENTENCES[0])


def test_names_that_look_like_addresses(pipe, make_clip, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file:").mkdir()
    clip = make_clip("file:/clip.mp4")
    assert pipe("file:/clip.mp4", SENTENCES[0]) == pipe(clip, SENTENCES[0])


@pytest.mark.parametrize("settings", [{"topk": 3}, {"fps": 3}, {"window_seconds": 3.0}, {"nms_sigma": 0.5}])
def test_unknown_settings(settings, pipe, clip, tiny_model, tiny_processor):
    (name,) = settings
    with pytest.raises(TypeError, match=name):
        pipe(clip, SENTENCES[0], **settings)
    with pytest.raises(TypeError, match=name):
        pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor, **settings)


BAD_SETTINGS = [
    *({"top_k": top_k} for top_k in (0, "3", 1.5, True, [3], math.nan)),
    *({"num_frames": num_frames} for num_frames in (0, "16", 16.0, True)),
    *({"nms": nms} for nms in (0, -0.5, math.nan, "0.5")),
    *({"threshold": threshold} for threshold in ("0.5", math.nan)),
    *({"on_error": on_error} for on_error in ("skip", True, "")),
]


@pytest.mark.parametrize("settings", BAD_SETTINGS)
def test_bad_settings(settings, pipe, clip, tiny_model, tiny_processor, tmp_path):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
        pipe(clip, SENTENCES[0], **settings)
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
        pipe([clip, clip], SENTENCES[0], batch_size=2, **settings)
    # Before a video is read, and before there is one.
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
        pipe(tmp_path / "gone.mp4", SENTENCES[0], **({"on_error": "return"} | settings))
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
        pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor, **settings)


def test_numbers_of_numpy_as_settings(pipe, clip):
    settings = {"top_k": np.int64(2), "num_frames": np.int32(32), "nms": np.float32(0.5), "threshold": np.float64(0.1)}
    assert pipe(clip, SENTENCES[0], **settings) == pipe(
        clip, SENTENCES[0], top_k=2, num_frames=32, nms=0.5, threshold=0.1
    )


# --- going on after an error ---


@pytest.fixture
def with_broken(rows, clip, make_clip, tmp_path):
    """The five videos of `rows` and seven that are broken in different ways; name, error and a part of its reason."""
    (tmp_path / "text.mp4").write_text("This is no video.")
    (tmp_path / "empty.mp4").write_bytes(b"")
    cut = make_clip("cut.mp4", num_frames=100, container_options={"movflags": "faststart"}, codec_options={"g": "10"})
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
    broken = [
        (tmp_path / "gone.mp4", "a cat", str(tmp_path / "gone.mp4"), "FileNotFoundError", "no video file at"),
        (str(tmp_path / "text.mp4"), ["a cat"], str(tmp_path / "text.mp4"), "VideoReadError", "Invalid data"),
        (tmp_path / "empty.mp4", "a cat", str(tmp_path / "empty.mp4"), "VideoReadError", "it is empty"),
        (tmp_path / "cut.mp4", "a cat", str(tmp_path / "cut.mp4"), "VideoReadError", "reading stopped at"),
        (b"This is no video.", "a cat", "<17 bytes>", "VideoReadError", "17 bytes"),
        (clip, ["a cat", ""], str(clip), "ValueError", "sentence ''"),
        (
            "ftp://ann:secret@host/clip.mp4",
            "a",
            "ftp://***@host/clip.mp4",
            "FileNotFoundError",
            "Received the address",
        ),
    ]
    items = [*rows]
    reasons = {}
    for place, (video, sentence, *reason) in zip((0, 2, 3, 6, 8, 9, 11), broken, strict=True):
        items.insert(place, {"video": video, "sentence": sentence})
        reasons[place] = reason
    return items, reasons


def check_broken(found, items, reasons, pipe):
    assert len(found) == len(items) == 12
    for place, (result, item) in enumerate(zip(found, items, strict=True)):
        if place not in reasons:
            check_close([result], [pipe(item)])
            continue
        name, error, reason = reasons[place]
        assert result.keys() == {"video", "error", "reason"}
        assert (result["video"], result["error"]) == (name, error)
        assert reason in result["reason"] and "secret" not in result["reason"]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("form", ["list", "generator", "data_set", "stream"])
def test_errors_in_place_of_results(form, batch_size, with_broken, pipe):
    """As if each good video had come alone; the broken ones say what is wrong with them."""
    items, reasons = with_broken
    found = list(pipe(SEVERAL[form](items), batch_size=batch_size, on_error="return"))
    check_broken(found, items, reasons, pipe)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_errors_in_place_of_results_from_workers(num_workers, with_broken, pipe):
    items, reasons = with_broken
    check_broken(list(pipe(Rows(items), num_workers=num_workers, on_error="return")), items, reasons, pipe)


@pytest.mark.parametrize("batch_size", [1, 2, 12])
def test_errors_of_long_videos(batch_size, with_broken, make_pipe):
    """They are read in windows, while the model runs: one that ends too early fails there, after its first window."""
    items, reasons = with_broken
    pipe = make_pipe(window_seconds=2.0, on_error="return")
    check_broken(list(pipe(SEVERAL["generator"](items), batch_size=batch_size)), items, reasons, pipe)
    with pytest.raises(VideoReadError, match="cut.mp4"):
        pipe(items[6], on_error="raise")


def test_one_video_with_its_error(pipe, tmp_path):
    found = pipe(tmp_path / "gone.mp4", "a cat", on_error="return")
    reason = f"There is no video file at {tmp_path / 'gone.mp4'}; check the folder and the extension."
    assert found == {"video": str(tmp_path / "gone.mp4"), "error": "FileNotFoundError", "reason": reason}
    assert pipe(io.BytesIO(b"no video"), "a", on_error="return")["video"] == "<BytesIO>"


def test_no_video_can_be_read(pipe, tmp_path):
    found = pipe([tmp_path / f"{k}.mp4" for k in range(3)], "a cat", on_error="return", batch_size=2)
    assert [Path(result["video"]).name for result in found] == ["0.mp4", "1.mp4", "2.mp4"]


@pytest.mark.parametrize("on_error", [{}, {"on_error": "raise"}])
def test_errors_end_a_run_unless_asked(on_error, with_broken, pipe):
    items, _ = with_broken
    for place, error in ((0, FileNotFoundError), (2, VideoReadError), (9, ValueError)):
        with pytest.raises(error):
            pipe([items[1], items[place]], **on_error)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyboardInterrupt, MemoryError])
def test_faults_of_the_program_are_no_results(error, rows, pipe, monkeypatch):
    """What says nothing of a video ends the run all the same."""

    def fail(*args, **kwargs):
        raise error("a fault")

    monkeypatch.setattr(type(pipe.model), "forward", fail)
    with pytest.raises(error, match="a fault"):
        pipe(rows, on_error="return")


def test_a_threshold_says_what_was_found(pipe, clip):
    plain = pipe(str(clip), ["it begins", "it ends"], top_k=3)
    assert all(segment.keys() == {"score", "start", "end", "sentence"} for one in plain for segment in one)
    scores = sorted(segment["score"] for one in plain for segment in one)
    pipe.processor.found_threshold = scores[3]
    for of_sentence, expected in zip(pipe(str(clip), ["it begins", "it ends"], top_k=3), plain, strict=True):
        for segment, before in zip(of_sentence, expected, strict=True):
            assert segment == before | {"found": before["score"] >= scores[3]}
