"""
Batches of videos with their sentences: shapes, draws of sentences, labels that stay with their sentences, crops and
flips, and videos that cannot be read.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import EvalPrediction

from modeling_scada import VideoReadError, compute_metrics, ranked_ious
from processing.data import row_sampler
from processing.data.collator import TemporalGroundingCollator, crop_video
from processing.data.row_sampler import RowSampler, draw_crop
from processing.processing_scada import SegmentOutsideVideoError


DURATION_SECONDS = 2.0
# Each sentence tells its segment: "w3" is [0.3, 0.4] seconds and so on.
NUM_SENTENCES = 9


class SampledBatches:
    """Sampler and collator together, as a loader over a sampled data set joins them."""

    def __init__(self, processor, video_root=None, max_sentences=None, **settings):
        of_collator = ("broken_videos_log", "keep_in_memory", "do_normalize")
        joining = {name: settings.pop(name) for name in of_collator if name in settings}
        self.collator = TemporalGroundingCollator(processor, video_root, **joining)
        self.sampler = RowSampler(processor, max_sentences, **settings)
        self.set_epoch = self.sampler.set_epoch
        self.set_epoch(0)

    def __call__(self, rows):
        return self.collator(self.sampler.draw_rows(rows))


def augment_video(video, size, may_flip, generator):
    return crop_video(video, draw_crop(video.shape[-2:], may_flip, generator), size)


def segment_of(sentence):
    number = int(sentence[1:])
    return [number / 10, number / 10 + 0.1]


@pytest.fixture
def clip(make_clip):
    return make_clip(num_frames=20, fps=10)


@pytest.fixture
def row(clip):
    sentences = [f"w{number}" for number in range(1, NUM_SENTENCES + 1)]
    segments = [segment_of(sentence) for sentence in sentences]
    # With an id, what is drawn with a seed does not depend on the folder of the test.
    return {"video": str(clip), "video_id": "clip", "sentences": sentences, "segments": segments}


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


@pytest.mark.parametrize("augment", [False, True])
def test_videos_kept_in_memory_are_read_once(tiny_processor, row, short_row, tmp_path, monkeypatch, augment):
    """By path and by content, and what is drawn from them is the same as if they were read each time."""
    embedded = row | {"video": Path(row["video"]).read_bytes(), "video_id": "embedded"}
    rows = [row, short_row, embedded]
    settings = {"video_root": tmp_path, "augment": augment, "seed": 0}
    expected = SampledBatches(tiny_processor, **settings)
    collator = SampledBatches(tiny_processor, keep_in_memory=True, **settings)
    read = []
    preprocess = type(tiny_processor.video_processor).__call__

    def count(self, videos, **kwargs):
        read.append(videos)
        return preprocess(self, videos, **kwargs)

    batches = [expected(rows), expected(rows)]
    monkeypatch.setattr(type(tiny_processor.video_processor), "__call__", count)
    for batch in batches:
        for name, value in collator(rows).items():
            assert torch.equal(value, batch[name])
    assert len(read) == 3


def test_several_segments_of_a_sentence(tiny_processor, clip):
    row = {"video": str(clip), "sentences": ["a", "b"], "segments": [[[0.2, 0.4], [1.0, 2.0]], [[0.5, 1.5]]]}
    labels = TemporalGroundingCollator(tiny_processor)([row])["labels"]
    expected = [[[[0.1, 0.2], [0.5, 1.0]], [[0.25, 0.75], [-100, -100]]]]
    np.testing.assert_allclose(labels, expected, atol=1e-6)


@pytest.mark.parametrize("max_sentences", [1, 4, NUM_SENTENCES - 1])
def test_drawn_sentences_keep_their_segments(tiny_processor, row, short_row, tmp_path, max_sentences):
    torch.manual_seed(0)
    collator = SampledBatches(tiny_processor, tmp_path, max_sentences)
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
    generator = torch.Generator().manual_seed(0)
    sampler = RowSampler(tiny_processor, max_sentences=3)
    draws = [sampler._draw_sentences(NUM_SENTENCES, generator) for _ in range(900)]
    counts = np.bincount(np.concatenate(draws), minlength=NUM_SENTENCES)
    # 300 each, with a standard deviation of 14.
    assert counts.sum() == 2700 and counts.min() > 240 and counts.max() < 360


def test_rows_are_left_alone(tiny_processor, row):
    sentences, segments = list(row["sentences"]), [list(segment) for segment in row["segments"]]
    SampledBatches(tiny_processor, max_sentences=2)([row])
    assert (row["sentences"], row["segments"]) == (sentences, segments)


@pytest.mark.parametrize("max_sentences", [None, NUM_SENTENCES, NUM_SENTENCES + 5])
def test_all_sentences_in_their_order_where_there_are_not_too_many(tiny_processor, row, max_sentences):
    batch = SampledBatches(tiny_processor, max_sentences=max_sentences)([row])
    assert read_sentences(batch, tiny_processor.tokenizer) == [row["sentences"]]


@pytest.mark.parametrize("max_sentences", [0, -1])
def test_max_sentences_has_to_be_positive(tiny_processor, max_sentences):
    with pytest.raises(ValueError, match=f"max_sentences={max_sentences}"):
        SampledBatches(tiny_processor, max_sentences=max_sentences)


def test_sentences_of_others_have_no_segment(tiny_processor, row, short_row, tmp_path):
    """At most as many as a video has itself; never one that it has, in other letters or with a full stop."""
    others = ["w5", "W5.", " w3 ", *(f"n{number}" for number in range(20))]
    collator = SampledBatches(
        tiny_processor, tmp_path, max_sentences=4, negative_sentences=3, sentences_of_others=others, seed=0
    )
    drawn = set()
    for epoch in range(20):
        collator.set_epoch(epoch)
        batch = collator([row, short_row])
        first, second = read_sentences(batch, tiny_processor.tokenizer)
        check_labels({"labels": batch["labels"][:1, :4]}, first[:4])
        assert len(first) == 7 and len(second) == 2 and second[0] == "w5"
        negatives = first[4:]
        assert len(set(negatives)) == 3 and all(name.startswith("n") for name in negatives)
        assert (batch["labels"][0, 4:7] == -1).all() and (batch["labels"][1, 1] == -1).all()
        assert (batch["labels"][1, 2:] == -100).all()
        assert second[1].startswith("n") or second[1] == "w3"
        drawn |= set(negatives)
        torch.testing.assert_close(collator([row, short_row])["input_ids"], batch["input_ids"])
    assert len(drawn) == 20
    plain = SampledBatches(tiny_processor, tmp_path, max_sentences=4, seed=0)
    plain.set_epoch(epoch)
    torch.testing.assert_close(plain([row, short_row])["pixel_values_videos"], batch["pixel_values_videos"])
    assert read_sentences(plain([row, short_row]), tiny_processor.tokenizer)[0] == first[:4]


def test_sentences_of_the_batch_where_there_are_no_others(tiny_processor, row, short_row, tmp_path):
    collator = SampledBatches(tiny_processor, tmp_path, negative_sentences=99)
    first, second = read_sentences(collator([row, short_row]), tiny_processor.tokenizer)
    assert first == row["sentences"]  # the other video's only sentence is its own too
    assert second[0] == "w5" and len(second) == 2 and second[1] in set(row["sentences"]) - {"w5"}
    with pytest.raises(ValueError, match="negative_sentences=-1"):
        SampledBatches(tiny_processor, negative_sentences=-1)


def test_blind_replaces_the_pixels_alone(tiny_processor, row, short_row, tmp_path):
    torch.manual_seed(0)
    sighted = TemporalGroundingCollator(tiny_processor, tmp_path)([row, short_row])
    collator = SampledBatches(tiny_processor, tmp_path, blind=True)
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
    with pytest.raises(SegmentOutsideVideoError, match=r"clip\.mp4: .*\[1.5, 30\] s"):
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


# What is drawn


def drawn(batch, index, tokenizer):
    """Sentences and pixels of one video, to compare."""
    return tuple(read_sentences(batch, tokenizer)[index]), batch["pixel_values_videos"][index].numpy().tobytes()


def test_draws_follow_torchs_generator_without_a_seed(tiny_processor, row):
    collator = SampledBatches(tiny_processor, max_sentences=3, augment=True)
    draws = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        draws.append([drawn(collator([row]), 0, tiny_processor.tokenizer) for _ in range(3)])
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 3  # afresh each time


@pytest.mark.parametrize("draws", [{"max_sentences": 3}, {"augment": True}, {"blind": True}], ids=str)
def test_with_a_seed_draws_depend_on_seed_epoch_and_video_alone(tiny_processor, row, short_row, tmp_path, draws):
    def draw(rows, index=0, seed=3, epoch=5):
        collator = SampledBatches(tiny_processor, tmp_path, seed=seed, **draws)
        collator.set_epoch(epoch)
        return drawn(collator(rows), index, tiny_processor.tokenizer)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    expected = draw([row])
    assert torch.equal(torch.get_rng_state(), state)  # what dropout draws does not depend on how videos are read
    torch.manual_seed(1)
    # Whatever the batch and the order, in another object, and again with the same one.
    assert expected == draw([row, short_row]) == draw([short_row, row], index=1) == draw([row, row], index=1)
    collator = SampledBatches(tiny_processor, tmp_path, seed=3, **draws)
    for epoch in (5, 6, 5):
        collator.set_epoch(epoch)
        collator([short_row])
        again = drawn(collator([row]), 0, tiny_processor.tokenizer)
        assert (again == expected) == (epoch == 5)
    # By chance, a few of these draw the same three sentences of nine.
    assert len({draw([row], epoch=epoch) for epoch in range(8)}) > 5
    assert len({draw([row], seed=seed) for seed in range(8)}) > 5


def test_with_a_seed_each_video_has_its_own_draw(tiny_processor, row, make_clip):
    """By its id, or by its path where it has none."""
    other = make_clip("other.mp4")
    row = {name: value for name, value in row.items() if name != "video_id"}
    rows = [row, {**row, "video": str(other)}, {**row, "video_id": "a"}, {**row, "video_id": "b"}]
    rows.append({**rows[-1], "video": str(other)})
    pixels = SampledBatches(tiny_processor, blind=True, seed=0)(rows)["pixel_values_videos"]
    equal = [[torch.equal(a, b) for b in pixels] for a in pixels]
    assert equal == [[i == j or {i, j} == {3, 4} for j in range(5)] for i in range(5)]


def test_the_epoch_reaches_workers_that_live_on(tiny_processor, row, short_row, tmp_path):
    arguments = {"video_root": tmp_path, "max_sentences": 2, "augment": True, "seed": 3}
    collator = SampledBatches(tiny_processor, **arguments)
    sampled = collator.sampler.apply(Dataset.from_list([row, {**short_row, "video_id": "short"}])).select([0, 1])
    loader = DataLoader(
        sampled,
        batch_size=2,
        collate_fn=collator.collator,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    seen, workers = [], set()
    for epoch in (0, 1, 4, 0):
        collator.set_epoch(epoch)
        iterator = iter(loader)
        (there,) = list(iterator)
        workers |= {worker.pid for worker in iterator._workers}
        here = SampledBatches(tiny_processor, **arguments)
        here.set_epoch(epoch)
        expected = here([row, {**short_row, "video_id": "short"}])
        assert all(torch.equal(there[name], expected[name]) for name in expected)
        seen.append(there["pixel_values_videos"])
    assert len(workers) == 1
    assert torch.equal(seen[0], seen[3])
    assert not any(torch.equal(seen[i], seen[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


# Augmentation


def ramp(height, width, num_frames=3):
    """Channel 0 says where a pixel's centre lies from left to right, channel 1 from top to bottom."""
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    frame = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.ones(height, width)])
    return frame.expand(num_frames, 3, height, width)


def recover(augmented):
    """
    (left, top, width, height) of the crop and whether it was flipped, from a `ramp` that was enlarged: between the
    outermost pixels' centres, which are held constant beyond, interpolation is linear.
    """
    rows, columns = augmented.shape[-2:]
    spans = []
    for line in (augmented[0, 0, rows // 2].double(), augmented[0, 1, :, columns // 2].double()):
        size, middle = len(line), len(line) // 2
        per_pixel = line[middle] - line[middle - 1]
        center = (line[middle] + line[middle - 1]) / 2
        length = (abs(per_pixel) * size).item()
        spans.append((center.item() - length / 2, length, per_pixel < 0))
    (left, width, is_flipped), (top, height, is_upside_down) = spans
    assert not is_upside_down
    return left, top, width, height, bool(is_flipped)


SIDE = 40


@pytest.fixture(scope="module")
def crops():
    """Of 300 draws, with all of which the same generator goes on."""
    generator = torch.Generator().manual_seed(0)
    video, size = ramp(SIDE, SIDE, num_frames=1), (4 * SIDE, 4 * SIDE)
    return np.array([recover(augment_video(video, size, True, generator)) for _ in range(300)])


def test_crops_lie_within_the_picture_on_whole_pixels(crops):
    bounds = crops[:, :4]
    np.testing.assert_allclose(bounds, bounds.round(), atol=0.02)
    left, top, width, height = bounds.round().T
    assert left.min() == top.min() == 0
    assert (left + width).max() == (top + height).max() == SIDE
    assert min(width.min(), height.min()) >= 1
    # Wherever there is room, the first and the last place included.
    for start, length in ((left, width), (top, height)):
        free = (SIDE - length)[length < SIDE - 4]
        start = start[length < SIDE - 4]
        assert abs((start / free).mean() - 0.5) < 0.08
        assert (start == 0).any() and (start == free).any()


def test_areas_and_ratios_of_crops(crops):
    width, height = crops[:, 2:4].round().T
    half = 0.5  # sides are rounded to pixels
    assert ((width + half) * (height + half) >= 0.08 * SIDE**2).all()
    assert ((width + half) / (height - half) >= 3 / 4).all()
    assert ((width - half) / (height + half) <= 4 / 3).all()
    # All of the bounds is used, areas evenly; the largest are the likeliest not to fit.
    share, ratio = width * height / SIDE**2, width / height
    assert share.min() < 0.12 and share.max() > 0.9 and 0.35 < share.mean() < 0.56
    assert ratio.min() < 0.8 and ratio.max() > 1.25 and abs(np.log(ratio).mean()) < 0.05


def test_about_half_is_flipped(crops):
    # 150, with a standard deviation of 8.7.
    assert 115 < crops[:, 4].sum() < 185


def test_a_flip_is_a_mirror_image_of_the_same_crop():
    video = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    num_flipped = 0
    for seed in range(20):
        with_flip, without = (
            augment_video(video, (20, 20), may_flip, torch.Generator().manual_seed(seed)) for may_flip in (True, False)
        )
        is_flipped = not torch.equal(with_flip, without)
        num_flipped += is_flipped
        torch.testing.assert_close(with_flip, without.flip(-1) if is_flipped else without, rtol=0, atol=1e-5)
    assert 0 < num_flipped < 20


def test_no_flip_where_it_may_not_be():
    generator = torch.Generator().manual_seed(0)
    video = ramp(12, 12, num_frames=1)
    assert not any(recover(augment_video(video, (48, 48), False, generator))[4] for _ in range(50))


@pytest.mark.parametrize("size", [(20, 20), (12, 30), (60, 50)])
def test_one_crop_for_all_frames(size):
    """Frames that differ by a constant before do so after, which holds for no two different crops."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.tensor([0.0, 0.0, 1.0, -2.0, 5.0])[:, None, None, None]
    frame = torch.randn(1, 3, 24, 24, generator=generator)
    for _ in range(10):
        augmented = augment_video(frame + steps, size, True, generator)
        assert augmented.shape == (5, 3, *size)
        torch.testing.assert_close(augmented - steps, augmented[:1].expand_as(augmented), rtol=0, atol=1e-5)
        assert augmented[0].std() > 0.1


def test_augmented_videos_stay_consistent_over_time(tiny_processor, make_clip):
    """A clip of two frames: what the model sees are still two frames, each for as long as before."""
    clip = make_clip("two.mp4", times_seconds=[0.0, 1.0], first_code=14)
    row = {"video": str(clip), "video_id": "two", "sentences": ["a"], "segments": [[0.0, 0.5]]}

    def equal_frames(pixels):
        return [torch.equal(frame, other) for frame in pixels for other in pixels]

    plain = TemporalGroundingCollator(tiny_processor)([row])
    expected = equal_frames(plain["pixel_values_videos"][0])
    assert 16 < sum(expected) < 16 * 16
    collator = SampledBatches(tiny_processor, augment=True, seed=0)
    num_changed = 0
    for epoch in range(5):
        collator.set_epoch(epoch)
        batch = collator([row])
        pixels = batch["pixel_values_videos"][0]
        assert pixels.shape == (16, 3, 32, 32) and pixels.dtype == torch.float32
        assert equal_frames(pixels) == expected
        assert torch.equal(batch["labels"], plain["labels"])
        num_changed += not torch.equal(pixels, plain["pixel_values_videos"][0])
    assert num_changed >= 3  # a crop across the middle of this simple picture may look like the whole


@pytest.mark.parametrize(
    ("sentences", "may_flip"),
    [
        (["a cat"], True),
        (["a cat", "he turns left"], False),
        (["LEFT of it", "a cat"], False),
        (["the Right door"], False),
        (["the leftmost door"], False),
        (["with his right-hand"], False),
        (["right"], False),
        (["at the bottom-left."], False),
        (["the light is bright", "he stands upright", "a copyright notice", "a cleft"], True),
    ],
)
def test_no_flip_where_a_sentence_says_left_or_right(tiny_processor, clip, monkeypatch, sentences, may_flip):
    """Sentences that are not drawn count too: the picture is one for all epochs' draws."""
    received = []

    def spy(read_size, may_flip, generator):
        received.append((read_size, may_flip))
        return draw_crop(read_size, may_flip, generator)

    monkeypatch.setattr(row_sampler, "draw_crop", spy)
    row = {"video": str(clip), "sentences": sentences, "segments": [[0.0, 1.0]] * len(sentences)}
    collator = SampledBatches(tiny_processor, max_sentences=1, augment=True, seed=0)
    for epoch in range(4):
        collator.set_epoch(epoch)
        assert collator([row])["pixel_values_videos"].shape == (1, 16, 3, 32, 32)
    # Read somewhat larger, as AdaTAD does: 182 pixels for 160.
    assert received == [([36, 36], may_flip)] * 4


def test_flips_show_in_the_batch(tiny_processor, make_clip):
    """The clip is bright on the left and dark on the right."""
    clip = make_clip("two.mp4", times_seconds=[0.0, 1.0], first_code=14)

    def brighter_side(sentence, epoch):
        row = {"video": str(clip), "video_id": "two", "sentences": [sentence], "segments": [[0.0, 0.5]]}
        collator = SampledBatches(tiny_processor, augment=True, seed=0)
        collator.set_epoch(epoch)
        pixels = collator([row])["pixel_values_videos"]
        difference = float(pixels[..., 0].mean() - pixels[..., -1].mean())
        return None if abs(difference) < 0.5 else "left" if difference > 0 else "right"  # None: of one side alone

    sides = [brighter_side("a cat", epoch) for epoch in range(24)]
    assert min(sides.count("left"), sides.count("right")) >= 3
    assert {brighter_side("a cat to the left", epoch) for epoch in range(24)} <= {"left", None}


# Videos that cannot be read


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


@pytest.fixture(params=["cut", "cut_with_index", "no_video", "empty", "missing", "outside"])
def broken(request, make_clip, tmp_path):
    """A row that cannot be used, the error it is, and a part of the reason."""
    row = {"video": "broken.mp4", "sentences": ["w7", "w8 and more"], "segments": [[[0.5, 1.0]], [[0.0, 0.5], [1, 2]]]}
    if request.param == "cut":  # the index is at the end
        cut(make_clip("broken.mp4"), 0.7)
    elif request.param == "cut_with_index":
        options = {"movflags": "faststart"}
        cut(make_clip("broken.mp4", num_frames=60, height=96, width=128, container_options=options), 0.6)
    elif request.param == "no_video":
        (tmp_path / "broken.mp4").write_text("This video is gone.")
    elif request.param == "empty":
        (tmp_path / "broken.mp4").write_bytes(b"")
    elif request.param == "outside":
        make_clip("broken.mp4")
        row["segments"][1] = [[0.0, 0.5], [31.0, 32.0]]
        return row, SegmentOutsideVideoError, "[31, 32] s"
    if request.param == "missing":
        return row, FileNotFoundError, "not find the video"
    return row, VideoReadError, "Could not read"


def test_a_broken_video_stops_with_its_name(tiny_processor, short_row, tmp_path, broken):
    row, error, reason = broken
    with pytest.raises(error, match="broken.mp4") as caught:
        TemporalGroundingCollator(tiny_processor, tmp_path)([short_row, row])
    assert reason in str(caught.value)


@pytest.mark.parametrize("is_first", [False, True])
def test_a_broken_video_is_left_out_and_logged(tiny_processor, short_row, tmp_path, broken, is_first):
    row, _, reason = broken
    log = tmp_path / "broken.jsonl"
    collator = TemporalGroundingCollator(tiny_processor, tmp_path, broken_videos_log=log)
    alone = collator([short_row])
    assert not log.exists()
    batch = collator([row, short_row] if is_first else [short_row, row])
    good, bad = (1, 0) if is_first else (0, 1)
    assert batch["pixel_values_videos"].shape == (2, 16, 3, 32, 32) and batch["labels"].shape[:2] == (2, 2)
    assert (batch["pixel_values_videos"][bad] == 0).all() and (batch["labels"][bad] == -100).all()
    # The other one as it is alone, but for padding.
    padding = {"labels": -100, "input_ids": tiny_processor.tokenizer.pad_token_id}
    for name, tensor in batch.items():
        expected = torch.full_like(tensor[good], padding.get(name, 0))
        expected[tuple(slice(length) for length in alone[name][0].shape)] = alone[name][0]
        assert torch.equal(tensor[good], expected), name
    (line,) = log.read_text(encoding="utf-8").splitlines()
    entry = json.loads(line)
    assert entry.keys() == {"video", "reason"}
    assert entry["video"] == "broken.mp4" and reason in entry["reason"]


def test_loss_and_metrics_leave_a_broken_video_out(tiny_processor, tiny_model, row, short_row, tmp_path, broken):
    tiny_model.double()
    collator = TemporalGroundingCollator(tiny_processor, tmp_path, broken_videos_log=tmp_path / "broken.jsonl")
    results = []
    for rows in ([row, short_row], [row, broken[0], short_row]):
        batch = collator(rows)
        tiny_model.zero_grad()
        outputs = tiny_model(**batch)
        outputs.loss.backward()
        gradients = torch.cat([weight.grad.flatten() for weight in tiny_model.parameters()])
        ious = ranked_ious((outputs.logits.detach(), outputs.pred_segments.detach()), batch["labels"])
        metrics = compute_metrics(EvalPrediction(predictions=ious.numpy(), label_ids=batch["labels"][:, :, 0].numpy()))
        results.append((outputs.loss.item(), gradients, metrics))
    (loss, gradients, metrics), (loss_with, gradients_with, metrics_with) = results
    assert loss_with == pytest.approx(loss, rel=1e-5) and loss > 0.1
    # The loss itself is computed in float32.
    torch.testing.assert_close(gradients_with, gradients, rtol=1e-4, atol=1e-5 * gradients.abs().max().item())
    assert metrics_with == pytest.approx(metrics) and metrics["sentences"] == NUM_SENTENCES + 1


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)])
def test_a_batch_of_broken_videos_has_no_loss(tiny_processor, tiny_model, tmp_path, broken, num_items):
    row = broken[0]
    collator = TemporalGroundingCollator(tiny_processor, tmp_path, broken_videos_log=tmp_path / "broken.jsonl")
    outputs = tiny_model.train()(**collator([row, row]), num_items_in_batch=num_items)
    assert outputs.loss.item() == 0
    outputs.loss.backward()
    assert all((weight.grad == 0).all() for weight in tiny_model.parameters())
    assert torch.isfinite(outputs.logits).all()
    assert len((tmp_path / "broken.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("draws", [{"max_sentences": 1}, {"augment": True}, {"blind": True}], ids=str)
def test_broken_videos_of_training(tiny_processor, short_row, tmp_path, draws):
    """Whatever else happens to videos; in a worker, which adds to the log that there is."""
    log = tmp_path / "broken.jsonl"
    log.write_text('{"video": "earlier.mp4", "reason": "gone"}\n')
    row = {"video": "gäne.mp4", "sentences": ["a", "b"], "segments": [[0, 1], [3, 4]]}
    collator = SampledBatches(tiny_processor, tmp_path, broken_videos_log=str(log), seed=0, **draws)
    loader = DataLoader([row, short_row], 2, collate_fn=collator, num_workers=1, multiprocessing_context="fork")
    (batch,) = list(loader)
    assert (batch["pixel_values_videos"][0] == 0).all() and (batch["labels"][0] == -100).all()
    expected = collator([short_row])["pixel_values_videos"][0]
    assert torch.equal(batch["pixel_values_videos"][1], expected) and expected.std() > 0.1
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [entry["video"] for entry in entries] == ["earlier.mp4", "gäne.mp4"]


@pytest.mark.parametrize("has_log", [False, True])
def test_annotations_that_no_video_could_have_stop_in_any_case(tiny_processor, row, tmp_path, has_log):
    """They are wrong whatever the file, and are refused when rows are loaded; nothing is to be made of them."""
    row["segments"][0] = [1.0, 0.5]
    collator = TemporalGroundingCollator(tiny_processor, broken_videos_log=tmp_path / "log" if has_log else None)
    with pytest.raises(ValueError, match="does not end after it starts") as caught:
        collator([row])
    assert not isinstance(caught.value, SegmentOutsideVideoError)
    assert not (tmp_path / "log").exists()
