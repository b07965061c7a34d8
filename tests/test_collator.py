"""Batches of videos with their sentences: shapes, draws of sentences, and labels that stay with their sentences."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from processing.collator import TemporalGroundingCollator


DURATION_SECONDS = 2.0
# Each sentence tells its segment: "w3" is [0.3, 0.4] seconds and so on.
NUM_SENTENCES = 9


def segment_of(sentence):
    number = int(sentence[1:])
    return [number / 10, number / 10 + 0.1]


@pytest.fixture
def clip(make_clip):
    return make_clip(num_frames=20, fps=10)


@pytest.fixture
def row(clip):
    sentences = [f"w{number}" for number in range(1, NUM_SENTENCES + 1)]
    return {"video": str(clip), "sentences": sentences, "segments": [segment_of(sentence) for sentence in sentences]}


@pytest.fixture
def short_row(make_clip):
    """Another video of 4 seconds, named relative to its folder, with a single sentence."""
    make_clip("short.mp4", num_frames=40, fps=10, first_code=100)
    return {"video": "short.mp4", "duration": 4.0, "sentences": ["w5"], "segments": [[1.0, 3.0]]}


def read_sentences(batch, tokenizer):
    """Of each video, from its tokens."""
    return [
        [
            tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "").replace("##", "")
            for ids, there in zip(of_video, mask, strict=True)
            if there
        ]
        for of_video, mask in zip(batch["input_ids"], batch["sentence_mask"], strict=True)
    ]


def check_labels(batch, sentences):
    """Labels of the first video belong to its `sentences`."""
    expected = np.array([[segment_of(sentence)] for sentence in sentences]) / DURATION_SECONDS
    np.testing.assert_allclose(batch["labels"][0, : len(sentences)], expected, atol=1e-6)
    assert (batch["labels"][0, len(sentences) :] == -100).all()


def test_batch(tiny_processor, row, short_row, tmp_path):
    batch = TemporalGroundingCollator(tiny_processor, video_root=tmp_path)([row, short_row])
    assert type(batch) is dict
    assert set(batch) == {"pixel_values_videos", "input_ids", "attention_mask", "sentence_mask", "labels"}
    assert batch["pixel_values_videos"].shape == (2, 16, 3, 32, 32)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[:2] == batch["sentence_mask"].shape == (2, NUM_SENTENCES)
    assert batch["labels"].shape == (2, NUM_SENTENCES, 1, 2)
    assert batch["sentence_mask"].sum(1).tolist() == [NUM_SENTENCES, 1]
    assert read_sentences(batch, tiny_processor.tokenizer) == [row["sentences"], ["w5"]]
    check_labels(batch, row["sentences"])
    np.testing.assert_allclose(batch["labels"][1, 0, 0], [1.0 / 4.0, 3.0 / 4.0], atol=1e-6)
    assert (batch["labels"][1, 1:] == -100).all()


def test_pixels_are_the_videos_own(tiny_processor, row, short_row, tmp_path):
    collator = TemporalGroundingCollator(tiny_processor, video_root=str(tmp_path))
    pixels = collator([row, short_row])["pixel_values_videos"]
    assert not torch.equal(pixels[0], pixels[1])
    for index, path in enumerate((row["video"], tmp_path / "short.mp4")):
        assert torch.equal(pixels[index : index + 1], tiny_processor.video_processor(path)["pixel_values_videos"])


def test_video_as_path_bytes_and_dict(tiny_processor, row, clip):
    collator = TemporalGroundingCollator(tiny_processor)
    content = clip.read_bytes()
    forms = [str(clip), content, {"path": str(clip), "bytes": None}, {"path": None, "bytes": content}]
    pixels = collator([{**row, "video": video} for video in forms])["pixel_values_videos"]
    assert all(torch.equal(pixels[0], other) for other in pixels[1:])


def test_missing_video_is_an_error(tiny_processor, row, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        TemporalGroundingCollator(tiny_processor, tmp_path)([{**row, "video": "gone.mp4"}])


def test_several_segments_of_a_sentence(tiny_processor, clip):
    row = {"video": str(clip), "sentences": ["a", "b"], "segments": [[[0.2, 0.4], [1.0, 2.0]], [[0.5, 1.5]]]}
    labels = TemporalGroundingCollator(tiny_processor)([row])["labels"]
    expected = [[[[0.1, 0.2], [0.5, 1.0]], [[0.25, 0.75], [-100, -100]]]]
    np.testing.assert_allclose(labels, expected, atol=1e-6)


@pytest.mark.parametrize("max_sentences", [1, 4, NUM_SENTENCES - 1])
def test_drawn_sentences_keep_their_segments(tiny_processor, row, short_row, tmp_path, max_sentences):
    torch.manual_seed(0)
    collator = TemporalGroundingCollator(tiny_processor, tmp_path, max_sentences)
    draws = []
    for _ in range(10):
        batch = collator([row, short_row])
        assert batch["labels"].shape == (2, max_sentences, 1, 2)
        drawn, other = read_sentences(batch, tiny_processor.tokenizer)
        assert len(set(drawn)) == len(drawn) == max_sentences and set(drawn) <= set(row["sentences"])
        check_labels(batch, drawn)
        assert other == ["w5"]
        draws.append(tuple(drawn))
    assert len(set(draws)) > 3


def test_every_sentence_is_drawn_about_equally_often(tiny_processor):
    torch.manual_seed(0)
    collator = TemporalGroundingCollator(tiny_processor, max_sentences=3)
    counts = np.bincount(np.concatenate([collator._draw(NUM_SENTENCES) for _ in range(900)]), minlength=NUM_SENTENCES)
    # 300 each, with a standard deviation of 14.
    assert counts.sum() == 2700 and counts.min() > 240 and counts.max() < 360


def test_draws_follow_the_seed(tiny_processor):
    collator = TemporalGroundingCollator(tiny_processor, max_sentences=3)
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        draws.append([collator._draw(NUM_SENTENCES) for _ in range(5)])
    assert draws[0] == draws[1]


def test_rows_are_left_alone(tiny_processor, row):
    sentences, segments = list(row["sentences"]), [list(segment) for segment in row["segments"]]
    TemporalGroundingCollator(tiny_processor, max_sentences=2)([row])
    assert (row["sentences"], row["segments"]) == (sentences, segments)


@pytest.mark.parametrize("max_sentences", [None, NUM_SENTENCES, NUM_SENTENCES + 5])
def test_all_sentences_in_their_order_where_there_are_not_too_many(tiny_processor, row, max_sentences):
    batch = TemporalGroundingCollator(tiny_processor, max_sentences=max_sentences)([row])
    assert read_sentences(batch, tiny_processor.tokenizer) == [row["sentences"]]


@pytest.mark.parametrize("max_sentences", [0, -1])
def test_max_sentences_has_to_be_positive(tiny_processor, max_sentences):
    with pytest.raises(ValueError, match=f"max_sentences={max_sentences}"):
        TemporalGroundingCollator(tiny_processor, max_sentences=max_sentences)


def test_blind_replaces_the_pixels_alone(tiny_processor, row, short_row, tmp_path):
    torch.manual_seed(0)
    sighted = TemporalGroundingCollator(tiny_processor, tmp_path)([row, short_row])
    collator = TemporalGroundingCollator(tiny_processor, tmp_path, blind=True)
    blind, again = collator([row, short_row]), collator([row, short_row])
    assert set(blind) == set(sighted)
    for name in set(blind) - {"pixel_values_videos"}:
        assert torch.equal(blind[name], sighted[name])
    pixels = blind["pixel_values_videos"]
    assert (pixels.shape, pixels.dtype) == (sighted["pixel_values_videos"].shape, sighted["pixel_values_videos"].dtype)
    assert abs(pixels.mean()) < 0.05 and abs(pixels.std() - 1) < 0.05
    # Nothing of the video is left, and the noise is no fingerprint of it.
    flat = torch.stack([batch["pixel_values_videos"].flatten() for batch in (blind, again, sighted)])
    assert torch.corrcoef(flat).triu(1).abs().max() < 0.02


def test_segments_outside_the_video_are_refused(tiny_processor, row):
    row["segments"][2] = [1.5, 30.0]
    with pytest.raises(ValueError, match=r"\[1.5, 30\] s"):
        TemporalGroundingCollator(tiny_processor)([row])


def test_workers_of_a_data_loader_give_the_same_batch(tiny_processor, row, short_row, tmp_path):
    """As `Trainer` uses it: the collator goes to another process, with the processor in it."""
    collator = TemporalGroundingCollator(tiny_processor, tmp_path)
    here = collator([row, short_row])
    loader = DataLoader(
        [row, short_row], batch_size=2, collate_fn=collator, num_workers=1, multiprocessing_context="fork"
    )
    (there,) = list(loader)
    assert set(there) == set(here)
    assert all(torch.equal(there[name], here[name]) for name in here)
