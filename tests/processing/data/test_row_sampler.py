"""Rows that are sampled when they are read: data sets, streams and what is left alone."""

import copy

import pytest
from datasets import Dataset

from modeling_scada import RowSampler


@pytest.fixture
def rows():
    return [
        {
            "video": f"{index}.mp4",
            "duration": 9.0 + index,
            "sentences": [f"w{index} {number}" for number in range(4)],
            "segments": [[[float(number), number + 1.0]] for number in range(4)],
        }
        for index in range(5)
    ]


def test_a_data_set_and_a_stream_give_what_is_drawn_for_rows(tiny_processor, rows):
    sampler = RowSampler(tiny_processor, 2, 1, ["n1", "n2", "n3"], augment=True, blind=True, seed=0)
    dataset = Dataset.from_list(rows)
    sampled, stream = sampler.apply(dataset), sampler.apply(dataset.to_iterable_dataset(2))
    of_epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        expected = sampler.draw_rows(rows)
        of_epochs.append(expected)
        assert list(sampled) == list(stream) == sampled.__getitems__(list(range(5))) == expected
        for before, drawn in zip(rows, expected, strict=True):
            assert drawn["annotated"] == {name: before[name] for name in ("sentences", "segments")}
            own = dict(zip(before["sentences"], before["segments"], strict=True))
            assert drawn["segments"][:2] == [own[sentence] for sentence in drawn["sentences"][:2]]
            assert drawn["sentences"][2][0] == "n" and drawn["segments"][2:] == [[]]
    assert of_epochs[0] == of_epochs[2] != of_epochs[1]
    assert rows[0]["sentences"] == [f"w0 {number}" for number in range(4)]


def test_other_columns_are_the_data_sets_own(tiny_processor, rows):
    """Such as durations, which a trainer that groups videos by length reads when it is made."""
    sampler = RowSampler(tiny_processor, max_sentences=1, seed=0)
    sampled = sampler.apply(Dataset.from_list(rows))
    assert list(sampled.select_columns("duration")["duration"]) == [9.0, 10.0, 11.0, 12.0, 13.0]
    sampler.on_init_end(None, None, None)
    assert list(sampled["duration"]) == [9.0, 10.0, 11.0, 12.0, 13.0]
    assert sampled.column_names == list(rows[0])


def test_negatives_come_from_the_rows_of_a_batch(tiny_processor, rows):
    sampler = RowSampler(tiny_processor, negative_sentences=1)
    stream = sampler.apply(Dataset.from_list(rows).to_iterable_dataset(), batch_size=2)
    drawn = [row["sentences"][4:] for row in stream]
    assert [of_row[0][:2] for of_row in drawn[:4]] == ["w1", "w0", "w3", "w2"] and drawn[4] == []


def test_a_seed_without_an_epoch_is_refused(tiny_processor, rows):
    """Each epoch would draw the same, without a word."""
    sampled = RowSampler(tiny_processor, max_sentences=1, seed=7).apply(Dataset.from_list(rows))
    with pytest.raises(ValueError, match=r"seed=7, but the epoch is not set.*callbacks=\[sampler\]"):
        sampled[0]


def test_a_copy_is_told_the_epoch(tiny_processor, rows):
    sampler = RowSampler(tiny_processor, max_sentences=1, seed=0)
    sampled = copy.deepcopy(sampler.apply(Dataset.from_list(rows))).shuffle(seed=0).select(range(3))
    sampler.set_epoch(2)
    names = [row["video"] for row in sampled]
    expected = sampler.draw_rows([row for name in names for row in rows if row["video"] == name])
    assert list(sampled) == expected
