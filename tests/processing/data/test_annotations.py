"""Annotations in the forms that `datasets` knows, to rows of one schema."""

import csv
import itertools
import json
import logging
import math
import os
from pathlib import Path

import datasets
import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Dataset, DatasetDict, IterableDataset, Video
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from processing.data.annotations import (
    CleanedSegment,
    clean_segment,
    clean_sentence,
    find_shared_videos,
    load_annotations,
)
from processing.data.files import VideoFiles, resolve_video_root


ROWS = [
    {
        "video": "a.mp4",
        "duration": 5.0,
        "sentences": ["he sits, then stands", "a door"],
        "segments": [[0.5, 1], [2, 4]],
    },
    {"video": "b.mp4", "duration": 9.5, "sentences": ["a cat"], "segments": [[3, 9.25]]},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `load_dataset` converts stays in the test's folder, and is not found by the next run."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_jsonl(path: Path, rows=ROWS) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_json(path: Path, rows=ROWS) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows=ROWS) -> str:
    Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


def write_saved(path: Path, rows=ROWS) -> str:
    Dataset.from_list(rows).save_to_disk(path)
    return str(path)


FORMS = {"rows.jsonl": write_jsonl, "rows.json": write_json, "rows.parquet": write_parquet, "rows": write_saved}


def load(tmp_path: Path, rows: list[dict], streaming: bool = False, form: str = "rows.jsonl") -> list[dict]:
    return list(load_annotations(FORMS[form](tmp_path / form, rows), "train", streaming))


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What transformers' logger, which hands nothing up by itself, warns of."""
    monkeypatch.setattr(logging.getLogger("processing"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return lambda name="processing.data.annotations": [r.message for r in caplog.records if r.name == name]


@pytest.mark.parametrize(
    ("name", "write"), [("rows.jsonl", write_jsonl), ("rows.json", write_json), ("rows.parquet", write_parquet)]
)
def test_file(tmp_path, name, write):
    loaded = load_annotations(write(tmp_path / name), "train")
    assert loaded.to_list() == ROWS


def test_several_segments_of_a_sentence(tmp_path):
    row = {"video": "a.mp4", "sentences": ["he sits", "a door"], "segments": [[[0.5, 1], [3, 4]], [[2, 4]]]}
    assert load_annotations(write_jsonl(tmp_path / "rows.jsonl", [row]), "train").to_list() == [row]


def test_folder_of_files_has_a_split_for_each(tmp_path):
    write_jsonl(tmp_path / "data" / "train.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "data" / "test.jsonl", ROWS[1:])
    assert load_annotations(str(tmp_path / "data"), "train").to_list() == ROWS[:1]
    assert load_annotations(str(tmp_path / "data"), "test").to_list() == ROWS[1:]


def test_saved_data_set_of_several_splits(tmp_path):
    splits = {"train": Dataset.from_list(ROWS[:1]), "test": Dataset.from_list(ROWS[1:])}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    for split, rows in (("train", ROWS[:1]), ("test", ROWS[1:])):
        loaded = load_annotations(str(tmp_path / "data"), split)
        assert isinstance(loaded, Dataset) and loaded.to_list() == rows


@pytest.mark.parametrize("split", [None, "test"])
def test_saved_data_set_of_one_split(tmp_path, split):
    """Its own name counts where it has one, as after `load_dataset`; otherwise it is "train"."""
    rows = Dataset.from_list(ROWS, split=None if split is None else datasets.NamedSplit(split))
    rows.save_to_disk(tmp_path / "data")
    own_name, other_name = (split, "train") if split else ("train", "test")
    assert load_annotations(str(tmp_path / "data"), own_name).to_list() == ROWS
    with pytest.raises(ValueError, match=other_name):
        load_annotations(str(tmp_path / "data"), other_name)


def test_missing_split_is_named_with_those_there_are(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=r"'validation' of .*rows\.jsonl; expected one of \['train'\]"):
        load_annotations(path, "validation")


@pytest.mark.parametrize("column", ["video", "sentences", "segments"])
def test_missing_column_is_named_with_those_there_are(tmp_path, column):
    rows = [{key: value for key, value in row.items() if key != column} for row in ROWS]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=rf"lacks the columns \['{column}'\]; it has \[.*'duration'"):
        load_annotations(path, "train")


@pytest.mark.parametrize("name", ["gone.json", "gone.jsonl", "gone.parquet"])
def test_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        load_annotations(str(tmp_path / name), "train")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", "", "but the file is empty; expected one row per video"),
        ("rows.json", "\n \n", "but the file is empty; expected one row per video"),
        ("rows.csv", "video,sentence,segment\n", "without any row; expected one row per sentence"),
        (
            "rows.txt",
            "A 1 2##One.\n",
            "expected .json, .jsonl, .parquet or .csv. Convert published annotations",
        ),
    ],
)
def test_a_file_of_another_kind_or_without_rows(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"Received .*{name}.*{message}"):
        load_annotations(str(tmp_path / name), "train")


SENTENCES = [
    {"split": "train", "video": "a.mp4", "sentence": "he sits, then stands", "start": 0.5, "end": 1},
    {"split": "test", "video": "b.mp4", "sentence": "a cat", "start": 3, "end": 9.25},
    {"split": "train", "video": "a.mp4", "sentence": "a door", "start": 2, "end": 4},
]


def write_csv(path: Path, rows=SENTENCES) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def as_columns(rows) -> list[tuple]:
    """The videos, sentences and segments, each segment as a list of `[start, end]`."""
    return [
        (
            row["video"],
            row["sentences"],
            [[pair] if not isinstance(pair[0], list) else pair for pair in row["segments"]],
        )
        for row in rows
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "write"),
    [("my.jsonl", write_jsonl), ("my.json", write_json), ("my.parquet", write_parquet), ("my.csv", write_csv)],
)
@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_column_tells_the_splits(tmp_path, name, write, where, streaming):
    """Of a row a sentence too, as people write them."""
    (tmp_path / "data").mkdir()
    rows = sorted(SENTENCES, key=lambda row: row["video"])  # in a stream, those of a video follow each other
    path = write(tmp_path / "data" / name, rows)
    path = path if where == "file" else str(tmp_path / "data")
    expected = {
        "train": [("a.mp4", ["he sits, then stands", "a door"], [[[0.5, 1]], [[2, 4]]])],
        "test": [("b.mp4", ["a cat"], [[[3, 9.25]]])],
    }
    for split, split_items in expected.items():
        assert as_columns(load_annotations(path, split, streaming)) == split_items
    with pytest.raises(ValueError, match=r"'dev' of .*; expected one of \['test', 'train'\]"):
        load_annotations(path, "dev", streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_annotations_with_videos_beside_them(tmp_path, make_clip, suffix, streaming):
    """The most natural folder: `datasets` would take it for a folder of videos."""
    (tmp_path / "data" / "videos" / "train").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "train/c.mp4"):
        make_clip().rename(tmp_path / "data" / "videos" / name)
    write = {"jsonl": write_jsonl, "json": write_json, "parquet": write_parquet, "csv": write_csv}[suffix]
    rows = [{name: value for name, value in row.items() if name != "split"} for row in SENTENCES]
    write(tmp_path / "data" / f"train.{suffix}", [rows[0], rows[2]])
    write(tmp_path / "data" / f"my_val.{suffix}", rows[1:2])
    write(tmp_path / "data" / f"notes.{suffix}", rows[1:2])
    for split, expected in {
        "train": [("a.mp4", ["he sits, then stands", "a door"], [[[0.5, 1]], [[2, 4]]])],
        "validation": [("b.mp4", ["a cat"], [[[3, 9.25]]])],
    }.items():
        loaded = list(load_annotations(str(tmp_path / "data"), split, streaming))
        assert as_columns(loaded) == expected
        root = resolve_video_root(str(tmp_path / "data"))
        assert VideoFiles(root).find(loaded[0]["video"]) == str(tmp_path / "data" / "videos" / expected[0][0])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stray_file_whose_name_has_a_split_among_its_words(tmp_path, warnings, streaming):
    data = tmp_path / "data"
    write_jsonl(data / "train-00000-of-00002.jsonl", ROWS[:1])
    write_jsonl(data / "train-00001-of-00002.jsonl", ROWS[1:])
    write_jsonl(data / "test.jsonl", ROWS[1:])
    (data / "notes of the test.jsonl").write_text("hello\n")
    assert list(load_annotations(str(data), "train", streaming)) == ROWS
    assert list(load_annotations(str(data), "test", streaming)) == ROWS[1:]
    assert "Ignoring notes of the test.jsonl in " in warnings()[0]


def test_names_with_spaces_tell_the_splits_where_no_others_do(tmp_path):
    write_jsonl(tmp_path / "data" / "my train.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "data" / "my test.jsonl", ROWS[1:])
    assert load_annotations(str(tmp_path / "data"), "train").to_list() == ROWS[:1]
    assert load_annotations(str(tmp_path / "data"), "test").to_list() == ROWS[1:]


def test_a_folder_of_videos_alone(tmp_path, make_clip):
    (tmp_path / "data" / "videos").mkdir(parents=True)
    make_clip().rename(tmp_path / "data" / "videos" / "a.mp4")
    with pytest.raises(ValueError, match="data, which contains videos but no annotations. Add annotation files"):
        load_annotations(str(tmp_path / "data"), "train")


def test_a_folder_with_files_of_several_kinds(tmp_path):
    write_jsonl(tmp_path / "data" / "train.jsonl")
    write_csv(tmp_path / "data" / "test.csv")
    with pytest.raises(ValueError, match="several formats: test.csv, train.jsonl. Pass one"):
        load_annotations(str(tmp_path / "data"), "train")


def test_rows_without_a_split_among_rows_with_one(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [SENTENCES[0], SENTENCES[1] | {"split": None}])
    with pytest.raises(
        ValueError, match=r"the splits \['train', None\] in .*rows.jsonl; expected the name of a split"
    ):
        load_annotations(path, "train")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", json.dumps(ROWS[0]) + "\n{not json\n", "rows.jsonl cannot be read: .*JSON parse error"),
        (
            "rows.jsonl",
            json.dumps(ROWS[1]).encode().replace(b"a cat", b"caf\xe9"),
            "rows.jsonl is not UTF-8 .*byte 0xe9",
        ),
        ("rows.parquet", b"PK\x03\x04", "rows.parquet cannot be read: .*Parquet file size is 4 bytes"),
        (
            "rows.jsonl",
            json.dumps(ROWS[1] | {"segments": 3}),
            "Received 1 sentences but 3 as segments in .*rows.jsonl",
        ),
        ("rows.jsonl", json.dumps(ROWS[1] | {"sentences": [3]}), "Received the sentence 3 in .*; expected a string"),
        ("rows.jsonl", json.dumps(ROWS[1] | {"video": 3}), "Received the video 3 in .*; expected a path"),
        ("rows.jsonl", json.dumps(ROWS[1] | {"video": None}), "Received the video None in .*; expected a path"),
        (
            "rows.json",
            json.dumps({f"v_{k}": ROWS[0] for k in range(12)}),
            "rows.json lacks the columns .*'v_9'] and 2 more. Rename",
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message, streaming):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        list(load_annotations(str(tmp_path / name), "train", streaming))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "JSON parse error"),
        (json.dumps({"video": "b.mp4", "sentences": ["b"], "segments": [[[0, 1], [2, 3]]]}), ""),
        (json.dumps({"video": "b.mp4", "sentences": ["b"], "segments": [[0, 1]], "other": 1}), "Couldn't cast"),
    ],
)
def test_a_stream_that_breaks_after_its_first_rows_is_named(tmp_path, line, message):
    """`datasets` reads 10 MiB at once."""
    long = {"video": "a.mp4", "sentences": [11 * 2**20 * "a"], "segments": [[0.5, 1]]}
    path = write_jsonl(tmp_path / "rows.jsonl", [long])
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    rows = load_annotations(path, "train", streaming=True)
    with pytest.raises(ValueError, match=f"(?s)rows.jsonl cannot be read: {message}.* write all segments as lists of"):
        list(rows)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="./gone/data/ does not exist, and the name is not a Hub id"):
        load_annotations("./gone/data/", "train")


def test_hidden_files_are_no_annotations(tmp_path):
    """As a Mac leaves them on a drive."""
    write_jsonl(tmp_path / "data" / "train.jsonl")
    (tmp_path / "data" / "._train.jsonl").write_bytes(b"\x00\x05\x16\x07")
    assert load_annotations(str(tmp_path / "data"), "train").to_list() == ROWS


def test_a_csv_with_times_that_are_wrong(tmp_path):
    path = write_csv(tmp_path / "rows.csv", [SENTENCES[0] | {"start": 3, "end": 2}])
    with pytest.raises(ValueError, match=r"the segment \[3.0, 2.0\] in row 0 of .*rows.csv \(a.mp4\); expected"):
        load_annotations(path, "train")


@pytest.mark.parametrize(
    ("videos", "shared"),
    [
        ({"train": ["a", "b", "a"], "test": ["c"]}, []),
        ({"train": ["a", "b", "a"], "test": ["b", "c"], "val": ["c", "b"]}, ["b", "c"]),
        ({}, []),
    ],
)
def test_find_shared_videos(videos, shared):
    assert find_shared_videos(videos) == shared


def test_missing_and_empty_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("gone", "empty"):
        with pytest.raises(FileNotFoundError, match=name):
            load_annotations(str(tmp_path / name), "train")


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_videos_are_not_decoded(tmp_path, make_clip, form):
    """A row's video comes as path and bytes; decoding would need torchcodec, which is not there."""
    clip = make_clip()
    rows = Dataset.from_list([{**ROWS[0], "video": str(clip)}]).cast_column("video", Video())
    if form == "disk":
        path = tmp_path / "data"
        rows.save_to_disk(path)
    else:
        path = tmp_path / "rows.parquet"
        rows.to_parquet(str(path))
    loaded = load_annotations(str(path), "train")
    assert loaded.features["video"] == Video(decode=False)
    video = loaded[0]["video"]
    assert set(video) == {"path", "bytes"}
    found = VideoFiles().find(video)
    assert (found if isinstance(found, bytes) else Path(found).read_bytes()) == clip.read_bytes()


# Published data sets

# In the likeness of `lmms-lab/charades_sta`, of which each row is a sentence.
CHARADES_ROWS = [
    {"video": "B2C3D.mp4", "caption": "a person opens a door.", "timestamp": [0.0, 6.9]},
    {"video": "A1B2C.mp4", "caption": "person sits down#quickly.", "timestamp": [10.1, 20.5]},
    {"video": "B2C3D.mp4", "caption": "the person\nlaughs. ", "timestamp": [3.5, 9.25]},
    {"video": "C3D4E.mp4", "caption": "a person runs.", "timestamp": [8.0, 2.0]},
    {"video": "A1B2C.mp4", "caption": "a person stands.", "timestamp": [4.0, 4.0]},
]
# In the likeness of `friedrichor/ActivityNet_Captions`, of which each row is a video.
ACTIVITYNET_ROWS = [
    {
        "video_id": "v_AbCdEfGhIjk",
        "video": "v_AbCdEfGhIjk.mp4",
        "caption": "A man runs. He stops. He sits.",
        "source": "ActivityNet_Captions",
        "duration": 82.73,
        "timestamps": [[0.83, 19.86], [17.0, 82.81], [60.0, 50.0]],
        "sentences": ["A man runs.", " He\nstops.  ", " He sits."],
    },
    {
        "video_id": "v_all-dropped_",
        "video": "v_all-dropped_.mp4",
        "caption": "Nothing. Never.",
        "source": "ActivityNet_Captions",
        "duration": 10.0,
        "timestamps": [[5.0, 5.0], [10.5, 12.0]],
        "sentences": ["Nothing.", "Never."],
    },
    {
        "video_id": "v_12345678901",
        "video": "v_12345678901.mp4",
        "caption": "Une fête.",
        "source": "ActivityNet_Captions",
        "duration": 30.5,
        "timestamps": [[-0.5, 30.6], [31.0, 40.0], [1.0, 2.0]],
        "sentences": ["Une fête.", "It is over.", "He waves."],
    },
]
ACTIVITYNET_EXPECTED = [
    {**ACTIVITYNET_ROWS[0], "sentences": ["A man runs.", "He stops."], "segments": [[0.83, 19.86], [17.0, 82.73]]},
    {**ACTIVITYNET_ROWS[2], "sentences": ["Une fête.", "He waves."], "segments": [[0.0, 30.5], [1.0, 2.0]]},
]
for _row in ACTIVITYNET_EXPECTED:
    del _row["timestamps"]


@pytest.mark.parametrize("form", FORMS)
def test_charades_of_the_hub(tmp_path, warnings, form):
    """Rows of one sentence come together by video, in the order in which the videos are named first."""
    assert load(tmp_path, CHARADES_ROWS, form=form) == [
        {
            "video": "B2C3D.mp4",
            "sentences": ["a person opens a door.", "the person laughs."],
            "segments": [[0.0, 6.9], [3.5, 9.25]],
        },
        {"video": "A1B2C.mp4", "sentences": ["person sits down#quickly."], "segments": [[10.1, 20.5]]},
    ]
    (warning,) = warnings()
    assert "dropped 2 sentences: " in warning
    assert "1 because it ends before it starts" in warning and "1 because it has no length" in warning


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_activitynet_of_the_hub(tmp_path, warnings, form, streaming):
    """Segments are clipped, what is then empty goes, and so does a video of which nothing is left."""
    assert load(tmp_path, ACTIVITYNET_ROWS, streaming, form) == ACTIVITYNET_EXPECTED
    (warning,) = warnings()
    assert "dropped 4 sentences: " in warning
    # However long the videos are, the reason is one.
    for reason in ("1 because it ends before it starts", "1 because it has no length", "2 because it lies outside"):
        assert reason in warning


def test_no_warning_without_reason(tmp_path, warnings):
    for rows in (ROWS, CHARADES_ROWS[:3]):
        load(tmp_path, rows)
        (tmp_path / "rows.jsonl").unlink()
    assert warnings() == []


@pytest.mark.parametrize("form", FORMS)
def test_own_rows_of_one_sentence(tmp_path, form):
    """The schema's own names, a sentence a row; several segments of a sentence and other columns stay."""
    rows = [
        {"video": "a.mp4", "video_id": "a", "sentences": "he sits", "segments": [[0.5, 1.0], [3.0, 4.0]], "note": 7},
        {"video": "b.mp4", "video_id": "b", "sentences": " a  door", "segments": [[2.0, 4.0]], "note": 8},
        {"video": "a.mp4", "video_id": "a", "sentences": "he stands", "segments": [[5.0, 6.0]], "note": 9},
    ]
    assert load(tmp_path, rows, form=form) == [
        {
            "video": "a.mp4",
            "video_id": "a",
            "sentences": ["he sits", "he stands"],
            "segments": [[[0.5, 1.0], [3.0, 4.0]], [[5.0, 6.0]]],
            "note": 7,
        },
        # As they are: what is in the package's own schema has been cleaned.
        {"video": "b.mp4", "video_id": "b", "sentences": [" a  door"], "segments": [[[2.0, 4.0]]], "note": 8},
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_sentence_belong_together_by_id_where_there_is_one(tmp_path, streaming):
    """Two copies of a file are one video if their id says so, and one file can be two."""
    rows = [
        {"video": "480p/a.mp4", "video_id": "a", "caption": "one", "timestamp": [0.0, 1.0]},
        {"video": "720p/a.mp4", "video_id": "a", "caption": "two", "timestamp": [0.0, 2.0]},
        {"video": "720p/a.mp4", "video_id": "b", "caption": "three", "timestamp": [0.0, 3.0]},
    ]
    loaded = load(tmp_path, rows, streaming)
    assert [(row["video_id"], row["sentences"]) for row in loaded] == [("a", ["one", "two"]), ("b", ["three"])]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["rows.parquet", "rows"])
def test_videos_of_one_name_in_different_folders_stay_apart(tmp_path, make_clip, form, streaming):
    """A saved data set keeps of a file its content and the last part of its path."""
    clips = []
    for folder, first_code in (("x", 0), ("y", 50)):
        (tmp_path / folder).mkdir()
        clips.append(make_clip(f"{folder}/clip.mp4", first_code=first_code))
    rows = [{"video": str(clip), "sentences": f"in {clip.parent.name}", "segments": [0.0, 1.0]} for clip in clips]
    table = Dataset.from_list(rows).cast_column("video", Video())
    path = tmp_path / form
    table.to_parquet(str(path)) if form == "rows.parquet" else table.save_to_disk(path)
    loaded = list(load_annotations(str(path), "train", streaming))
    assert [row["sentences"] for row in loaded] == [["in x"], ["in y"]]
    for row, clip in zip(loaded, clips, strict=True):
        found = VideoFiles().find(row["video"])
        assert (found if isinstance(found, bytes) else Path(found).read_bytes()) == clip.read_bytes()


# Streams


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [ROWS, sorted(CHARADES_ROWS, key=lambda row: row["video"])], ids=["own", "charades"])
def test_a_stream_gives_the_same_rows(tmp_path, form, rows):
    """Rows of a video follow each other here."""
    path = FORMS[form](tmp_path / form, rows)
    stream = load_annotations(path, "train", streaming=True)
    assert isinstance(stream, IterableDataset)
    expected = load_annotations(path, "train").to_list()
    assert list(stream) == expected and len(expected) == 2
    assert list(stream) == expected  # once more: the next epoch


def test_a_stream_of_a_saved_data_set_of_several_splits(tmp_path):
    splits = {"train": Dataset.from_list(ROWS[:1]), "test": Dataset.from_list(ROWS[1:])}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    assert list(load_annotations(str(tmp_path / "data"), "test", streaming=True)) == ROWS[1:]
    with pytest.raises(ValueError, match="'val'"):
        load_annotations(str(tmp_path / "data"), "val", streaming=True)


def test_a_stream_of_several_files(tmp_path):
    rows = [{**ROWS[1], "video": f"{index}.mp4"} for index in range(6)]
    for index in range(3):
        write_parquet(tmp_path / f"train-{index}.parquet", rows[2 * index : 2 * index + 2])
    assert list(load_annotations(str(tmp_path), "train", streaming=True)) == rows


def test_a_missing_column_shows_in_a_stream_too(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"video": "a.mp4", "sentences": ["a"]}])
    with pytest.raises(ValueError, match=r"lacks the columns \['segments'\]"):
        load_annotations(path, "train", streaming=True)


@pytest.mark.parametrize("kind", ["own", "published"])
@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_a_stream_does_not_decode_videos(tmp_path, make_clip, form, kind):
    clip = make_clip()
    row = {**ROWS[0], "video": str(clip)}
    if kind == "published":
        row["timestamps"] = row.pop("segments")
    rows = Dataset.from_list([row]).cast_column("video", Video())
    path = tmp_path / ("data" if form == "disk" else "rows.parquet")
    rows.save_to_disk(path) if form == "disk" else rows.to_parquet(str(path))
    (loaded,) = load_annotations(str(path), "train", streaming=True)
    assert set(loaded["video"]) == {"path", "bytes"}
    found = VideoFiles().find(loaded["video"])
    assert (found if isinstance(found, bytes) else Path(found).read_bytes()) == clip.read_bytes()
    assert loaded["segments"] == ROWS[0]["segments"]


@pytest.fixture
def stream(tmp_path):
    rows = [{**ROWS[1], "video": f"{index}.mp4"} for index in range(12)]
    return load_annotations(write_jsonl(tmp_path / "rows.jsonl", rows), "train", streaming=True)


def test_a_stream_can_be_shuffled(stream):
    """As `Trainer` does: another order each epoch, the same for the same epoch."""
    shuffled = stream.shuffle(seed=1, buffer_size=6)
    orders = []
    for epoch in (0, 1, 0):
        shuffled.set_epoch(epoch)
        orders.append([int(Path(row["video"]).stem) for row in shuffled])
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert orders[0] == orders[2] and orders[0] != orders[1] and orders[0] != list(range(12))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_goes_through_a_data_loader(stream, num_workers):
    """Each row once, also where there are more workers than files."""
    context = "fork" if num_workers else None
    loader = DataLoader(
        stream, batch_size=5, collate_fn=list, num_workers=num_workers, multiprocessing_context=context
    )
    batches = [[row["video"] for row in batch] for batch in loader]
    assert sorted(sum(batches, [])) == sorted(f"{index}.mp4" for index in range(12))


NUM_ROWS = 12


@pytest.fixture(params=["row a video", "row a sentence"])
def stream_of(tmp_path, request):
    """`stream_of(num_shards)`: a stream of so many files, of videos 0 to 11; and each video's sentences."""

    def make(num_shards: int) -> IterableDataset:
        folder = tmp_path / f"of_{num_shards}"
        folder.mkdir()
        for shard in range(num_shards):
            rows = []
            for index in range(shard, NUM_ROWS, num_shards):
                sentences = [f"{index} first", f"{index} second"]
                if request.param == "row a video":
                    rows.append(
                        {"video": f"{index}.mp4", "sentences": sentences, "segments": [[0.0, 1.0], [1.0, 2.0]]}
                    )
                else:
                    rows += [{"video": f"{index}.mp4", "caption": text, "timestamp": [0.0, 1.0]} for text in sentences]
            write_parquet(folder / f"train-{shard}.parquet", rows)
        stream = load_annotations(str(folder), "train", streaming=True)
        assert stream.num_shards == num_shards
        return stream

    return make


def videos_of(batches) -> list[int]:
    """Numbers of the videos in batches of rows, each of which has the video's own two sentences."""
    videos = []
    for row in itertools.chain(*batches):
        index = int(Path(row["video"]).stem)
        assert row["sentences"] == [f"{index} first", f"{index} second"]
        videos.append(index)
    return videos


def load_in_batches(stream, num_workers: int) -> DataLoader:
    context = "fork" if num_workers else None
    return DataLoader(stream, batch_size=5, collate_fn=list, num_workers=num_workers, multiprocessing_context=context)


@pytest.mark.parametrize("num_shards", [1, 2, 3, 5])
def test_workers_get_each_row_of_a_stream_once(stream_of, num_shards):
    """As they are and shuffled, in two epochs."""
    stream = stream_of(num_shards)
    for num_workers in range(5):
        assert sorted(videos_of(load_in_batches(stream, num_workers))) == list(range(NUM_ROWS))
    shuffled = stream.shuffle(seed=1, buffer_size=4)
    for num_workers in (0, 3):
        orders = []
        for epoch in (0, 1):
            shuffled.set_epoch(epoch)
            orders.append(videos_of(load_in_batches(shuffled, num_workers)))
        assert sorted(orders[0]) == sorted(orders[1]) == list(range(NUM_ROWS))
        assert orders[0] != orders[1]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_processes_get_each_row_of_a_stream_once(stream_of, num_shards, num_workers):
    """Divided by `datasets`, which gives each whole shards where that comes out even, or by accelerate."""
    stream = stream_of(num_shards)
    by_datasets = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
    shares = [videos_of(load_in_batches(share, num_workers)) for share in by_datasets]
    assert sorted(sum(shares, [])) == list(range(NUM_ROWS)) and all(shares)
    shares = [
        # Batches of 2: without workers three for each process. Where that is uneven, accelerate repeats rows.
        videos_of(
            prepare_data_loader(
                DataLoader(stream, batch_size=2, collate_fn=list, num_workers=num_workers),
                num_processes=2,
                process_index=rank,
                dispatch_batches=False,
            )
        )
        for rank in range(2)
    ]
    assert set(sum(shares, [])) == set(range(NUM_ROWS))
    if num_workers == 0:
        assert len(sum(shares, [])) == NUM_ROWS


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_stream_of_several_shards_goes_on_where_it_was(stream_of, num_shards, num_workers):
    """By the stream's own state, and as `Trainer` does: the batches that were seen are skipped."""
    stream = stream_of(num_shards)
    whole = list(load_in_batches(stream, num_workers))
    assert list(skip_first_batches(load_in_batches(stream, num_workers), 1)) == whole[1:]
    rows = iter(stream)
    seen = videos_of([[next(rows) for _ in range(7)]])
    state = stream.state_dict()
    stream.load_state_dict(state)
    rest = videos_of([stream])
    assert sorted(seen + rest) == list(range(NUM_ROWS)) and len(rest) == 5


def test_a_stream_goes_on_where_it_was(stream):
    """As after a checkpoint in the middle of an epoch."""
    rows = iter(stream)
    for _ in range(5):
        next(rows)
    state = stream.state_dict()
    rest = [row["video"] for row in rows]
    stream.load_state_dict(state)
    assert [row["video"] for row in stream] == rest == [f"{index}.mp4" for index in range(5, 12)]


# Segments


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("segment", [[3.0, 3.0], [4.0, 3.0], [math.nan, 3.0]], ids=str)
@pytest.mark.parametrize("several", [False, True])
def test_segments_of_the_own_schema_have_to_be_right(tmp_path, segment, several, streaming):
    """Nothing is repaired in silence here; the row is named, by its number or its video."""
    segments = [[[0.0, 1.0], segment]] if several else [segment]
    rows = [ROWS[1], {"video": "bad.mp4", "sentences": ["a cat"], "segments": segments}]
    if several:
        rows[0] = {**ROWS[1], "segments": [ROWS[1]["segments"]]}
    with pytest.raises(ValueError, match=r"Received the segment .* in .*bad\.mp4") as caught:
        load(tmp_path, rows, streaming, "rows.parquet")
    assert str(segment) in str(caught.value) and "rows.parquet" in str(caught.value)


@pytest.mark.parametrize("segment", [[3.0, 3.0], [4.0, 3.0]], ids=str)
def test_segments_of_own_rows_of_one_sentence_have_to_be_right(tmp_path, segment):
    rows = [
        {"video": "a.mp4", "sentences": "a cat", "segments": [0.0, 1.0]},
        {"video": "bad.mp4", "sentences": "a dog", "segments": segment},
    ]
    with pytest.raises(ValueError, match=r"Received the segment .* in row 1 of .*rows\.jsonl"):
        load(tmp_path, rows)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ([[0.0, 1.0]], [[None, 2.0]], r"the segment \[None, 2\.0\]"),
        ([[0.0, 1.0]], [[math.nan, 2.0]], r"the segment \[nan, 2\.0\]"),
        ([[[0.0, 1.0]]], [[[0.0, 1.0], [3.0, None]]], r"the segment \[3\.0, None\]"),
        ([[0.0, 1.0]], [None], "the segment None"),
        ([[0.0, 1.0]], None, "1 sentences but null as segments"),
        ([0.0, 1.0], [None, 2.0], r"the segment \[None, 2\.0\]"),
    ],
)
def test_a_time_that_is_null_is_named_with_its_row(tmp_path, good, bad, message, streaming):
    a_sentence = ["a cat"] if not isinstance(good[0], float) else "a cat"
    rows = [
        {"video": "a.mp4", "sentences": a_sentence, "segments": good},
        {"video": "b.mp4", "sentences": a_sentence, "segments": good},
        {"video": "a.mp4", "sentences": a_sentence, "segments": bad},
    ]
    where = r"video a\.mp4 of .*rows\.jsonl" if streaming else r"row 2 of .*rows\.jsonl \(a\.mp4\)"
    with pytest.raises(ValueError, match=f"Received {message} in {where}"):
        load(tmp_path, rows, streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_times_that_are_texts_are_refused_with_who_reads_them(tmp_path, streaming):
    """They compare as texts do: 0:10 would come before 0:9."""
    rows = [{"video": "a.mp4", "sentences": ["a cat"], "segments": [["0:01", "0:05"]]}]
    with pytest.raises(
        ValueError, match=r"the segment \['0:01', '0:05'\] in .*a\.mp4.*scada prepare` also reads times"
    ):
        load(tmp_path, rows, streaming)


def test_one_segment_and_several_in_a_stream_are_refused_with_what_to_do(tmp_path):
    """`datasets` makes texts of them."""
    rows = [ROWS[1], ROWS[1] | {"segments": [[[0.0, 1.0], [2.0, 3.0]]]}]
    assert len(load(tmp_path, rows)) == 2
    with pytest.raises(ValueError, match=r"the segment .*rows\.jsonl.* write all segments as lists of \[start, end\]"):
        load(tmp_path, rows, streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_time_that_is_null_in_published_data_is_left_out_and_said(tmp_path, warnings, streaming):
    rows = [{"video": "a.mp4", "caption": "a cat", "timestamp": times} for times in ([None, 2.0], [0.0, 1.0])]
    assert [row["segments"] for row in load(tmp_path, rows, streaming)] == [[[0.0, 1.0]]]
    (warning,) = warnings()
    assert "dropped 1 sentences: 1 because its times are not finite" in warning


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["segments", "timestamps"])
def test_as_many_segments_as_sentences(tmp_path, column, streaming):
    """Checked when loading, not when a training run comes across it."""
    rows = [{"video": "bad.mp4", "duration": 9.5, "sentences": ["a cat", "a dog"], column: [[3.0, 9.25]]}]
    with pytest.raises(ValueError, match="Received 2 sentences but 1 segments"):
        load(tmp_path, rows, streaming)


def test_a_row_without_sentences_is_treated_alike_in_a_stream(tmp_path):
    path = write_parquet(tmp_path / "rows.parquet", [*ROWS, {**ROWS[0], "sentences": [], "segments": []}])
    assert list(load_annotations(path, "train", streaming=True)) == load_annotations(path, "train").to_list() == ROWS


CLEAN_SEGMENTS = [
    # segment, duration, kept, clipped, why not
    ([1.0, 2.0], 10.0, [1.0, 2.0], False, None),
    ([1, 2], 10, [1.0, 2.0], False, None),
    ((1.0, 2.0), None, [1.0, 2.0], False, None),
    # The bounds themselves are inside.
    ([0.0, 10.0], 10.0, [0.0, 10.0], False, None),
    ([9.0, 10.000001], 10.0, [9.0, 10.0], True, None),
    ([-0.5, 3.0], 10.0, [0.0, 3.0], True, None),
    ([-0.5, 12.0], 10.0, [0.0, 10.0], True, None),
    # Without a duration only the start can be clipped.
    ([5.0, 1e6], None, [5.0, 1e6], False, None),
    ([-1.0, 1e6], None, [0.0, 1e6], True, None),
    # Nothing is left.
    ([3.0, 3.0], 10.0, None, False, "no length"),
    ([0.0, 0.0], None, None, False, "no length"),
    ([12.0, 12.0], 10.0, None, False, "no length"),
    ([10.0, 11.0], 10.0, None, False, "outside"),
    ([12.0, 15.0], 10.0, None, False, "outside"),
    ([-3.0, -1.0], 10.0, None, False, "outside"),
    ([-3.0, 0.0], None, None, False, "outside"),
    ([0.0, 1.0], 0.0, None, False, "outside"),
    # Backwards.
    ([2.0, 1.0], 10.0, None, False, "ends before it starts"),
    ([2.0, 1.0], None, None, False, "ends before it starts"),
    ([math.nan, 1.0], 10.0, None, False, "not finite"),
    ([1.0, math.nan], 10.0, None, False, "not finite"),
    ([1.0, math.inf], 10.0, None, False, "not finite"),
    ([-math.inf, 1.0], None, None, False, "not finite"),
]


@pytest.mark.parametrize(("segment", "duration", "kept", "is_clipped", "reason"), CLEAN_SEGMENTS)
def test_clean_segment(segment, duration, kept, is_clipped, reason):
    cleaned = clean_segment(segment, duration)
    assert cleaned[:3] == (kept, is_clipped, False)
    assert cleaned.reason is None if reason is None else reason in cleaned.reason
    assert kept is None or all(type(time) is float for time in cleaned.segment)
    if reason != "ends before it starts":
        assert clean_segment(segment, duration, repair_reversed="swap") == cleaned


@pytest.mark.parametrize(
    ("segment", "duration", "kept", "is_clipped", "reason"),
    [
        ([2.0, 1.0], 10.0, [1.0, 2.0], False, None),
        ([2.0, 1.0], None, [1.0, 2.0], False, None),
        # First swapped, then clipped: the other way round, the segment would be another.
        ([12.0, 5.0], 10.0, [5.0, 10.0], True, None),
        ([3.0, -1.0], 10.0, [0.0, 3.0], True, None),
        ([15.0, 12.0], 10.0, None, False, "outside"),
        ([-1.0, -2.0], 10.0, None, False, "outside"),
    ],
)
def test_clean_segment_swaps(segment, duration, kept, is_clipped, reason):
    cleaned = clean_segment(segment, duration, repair_reversed="swap")
    assert isinstance(cleaned, CleanedSegment)
    assert (cleaned.segment, cleaned.is_clipped) == (kept, is_clipped)
    if kept is None:
        assert reason in cleaned.reason
    else:
        assert cleaned.is_repaired and cleaned.reason is None


def test_clean_segment_drops_by_default():
    assert clean_segment([2.0, 1.0], 10.0) == clean_segment([2.0, 1.0], 10.0, "drop")
    assert clean_segment([2.0, 1.0], 10.0).segment is None


@pytest.mark.parametrize("repair_reversed", ["swop", "", None])
def test_a_repair_that_there_is_not(repair_reversed):
    with pytest.raises(ValueError, match=f"repair_reversed={repair_reversed!r}; expected 'drop' or 'swap'"):
        clean_segment([1.0, 2.0], 10.0, repair_reversed)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("He sits.", "He sits."),
        (" They sit. ", "They sit."),
        ("\tHe sits.\n", "He sits."),
        ("He\nsits.", "He sits."),
        ("He \r\n \n sits.", "He sits."),
        # Nothing else changes.
        ("He  sits#  A café, “it” is.", "He  sits#  A café, “it” is."),
        (" \n ", ""),
    ],
)
def test_clean_sentence(sentence, expected):
    assert clean_sentence(sentence) == expected


@pytest.mark.parametrize(("segment", "duration"), [([-3.0, -1.0], None), ([12.0, 15.0], 10.0)])
def test_the_reason_says_no_nonsense(segment, duration):
    """A video whose duration is not known does not last forever."""
    reason = clean_segment(segment, duration).reason
    assert "inf" not in reason and f"{segment[0]:g} to {segment[1]:g}" in reason
    assert duration is None or f"{duration:g} s" in reason


# Files of videos


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ("a/b.mp4", "{root}/a/b.mp4"),
        ("{other}/b.mp4", "{other}/b.mp4"),
        ("http://host/b.mp4", "http://host/b.mp4"),
        ("https://host/b.mp4", "https://host/b.mp4"),
        ("https.mp4", "{root}/https.mp4"),
        (b"content", b"content"),
        ({"path": "a/b.mp4", "bytes": None}, "{root}/a/b.mp4"),
        ({"path": "a/b.mp4"}, "{root}/a/b.mp4"),
        ({"path": "gone.mp4", "bytes": b"content"}, b"content"),
        ({"path": None, "bytes": b"content"}, b"content"),
        ({"path": "https://host/b.mp4", "bytes": None}, "https://host/b.mp4"),
    ],
)
@pytest.mark.parametrize("root_as", ["str", "Path", "current folder"])
def test_forms_of_a_video(tmp_path, monkeypatch, video, expected, root_as):
    root, other = touch(tmp_path / "root", "a/b.mp4", "https.mp4"), touch(tmp_path / "other", "b.mp4")
    if isinstance(video, str):
        video = video.format(other=other)
    if root_as == "current folder":
        monkeypatch.chdir(root)
    files = VideoFiles({"str": str(root), "Path": root, "current folder": None}[root_as])
    if isinstance(expected, str):
        expected = expected.format(root=root, other=other) if root_as != "current folder" else expected
        expected = expected.replace("{root}/", "").format(other=other)
    found = files.find(video)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("there", "video", "expected"),
    [
        # Any extension, also instead of the one named; with or without `v_`.
        (["abc.mkv"], "abc.mp4", "abc.mkv"),
        (["abc.MP4"], "abc.mp4", "abc.MP4"),
        (["abc.WebM"], "abc", "abc.WebM"),
        (["abc.mov"], "abc", "abc.mov"),
        (["abc.mp4"], "abc.MKV", "abc.mp4"),
        (["abc.webm"], "v_abc", "abc.webm"),
        (["v_abc.webm"], "abc", "v_abc.webm"),
        (["v_abc.mkv"], "abc.mp4", "v_abc.mkv"),
        (["abc.mkv"], "v_abc.mp4", "abc.mkv"),
        # Several: the name as it is, the best known extension, the name without or with `v_`.
        (["abc.webm", "abc.mkv", "abc.mp4"], "abc", "abc.mp4"),
        (["abc.webm", "abc.mkv"], "abc", "abc.mkv"),
        (["abc.webm", "abc.avi", "abc.mov"], "abc.mp4", "abc.webm"),
        (["abc.webm", "abc.MP4"], "abc", "abc.MP4"),
        (["abc.webm", "abc.mkv", "abc.mp4"], "abc.webm", "abc.webm"),
        (["v_abc.mp4", "abc.webm"], "abc", "abc.webm"),
        (["v_abc.webm", "abc.mp4"], "v_abc", "v_abc.webm"),
        # Dots that begin no extension, as in QVHighlights and TACoS.
        (["abc_210.0_360.0.mp4"], "abc_210.0_360.0.mp4", "abc_210.0_360.0.mp4"),
        (["abc_210.0_360.0.mp4"], "abc_210.0_360.0", "abc_210.0_360.0.mp4"),
        (["abc_210.0_360.0.mkv", "abc_210.0_300.0.mp4"], "abc_210.0_360.0.mp4", "abc_210.0_360.0.mkv"),
        (["s13-d21.avi"], "s13-d21", "s13-d21.avi"),
        # Folders below, the name's own or an absolute one.
        (["val/v_abc.mkv", "abc.mp4"], "val/abc.mp4", "val/v_abc.mkv"),
        (["val/abc.mkv", "abc.mp4"], "abc", "abc.mp4"),
        (["v_v_abc.mp4"], "v_abc", "v_v_abc.mp4"),
        # A name as it is may have any extension, or none.
        (["abc.vid", "abc.mp4"], "abc.vid", "abc.vid"),
        (["abc", "abc.mp4"], "abc", "abc"),
    ],
)
def test_find(tmp_path, there, video, expected):
    files = VideoFiles(touch(tmp_path, *there))
    assert files.find(video) == str(tmp_path / expected)
    assert files.find({"path": str(tmp_path / video), "bytes": None}) == str(tmp_path / expected)


COMPOSED, DECOMPOSED = "caf\u00e9.mp4", "cafe\u0301.mp4"


@pytest.mark.parametrize(
    ("there", "video", "expected"),
    [
        # Accents composed otherwise, as on a Mac; in the names of folders too.
        ([DECOMPOSED], COMPOSED, DECOMPOSED),
        ([COMPOSED], DECOMPOSED, COMPOSED),
        ([f"{DECOMPOSED}/a.mp4"], f"{COMPOSED}/a.mp4", f"{DECOMPOSED}/a.mp4"),
        # Folders as Windows writes them.
        (["sub1/clip.mp4", "clip.mp4"], "sub1\\clip.mp4", "sub1/clip.mp4"),
        (["sub1/two/clip.webm"], "sub1\\two\\clip.mp4", "sub1/two/clip.webm"),
        (["sub1/clip.mp4", "sub1/Clip.mp4"], "sub1\\clip.mp4", "sub1/clip.mp4"),
        # Capitals.
        (["UPPER.MP4"], "upper.mp4", "UPPER.MP4"),
        (["upper.mp4"], "UPPER.MP4", "upper.mp4"),
        (["UPPER.MP4", "UPPER.mkv"], "upper.mp4", "UPPER.MP4"),
        (["Sub/v_Clip.webm"], "sub/clip.mp4", "Sub/v_Clip.webm"),
        (["V_clip.webm"], "v_clip", "V_clip.webm"),
        (["a/clip.mp4", "A/other.mp4"], "A\\CLIP", None),
        (["a/one.mp4", "A/two.mp4"], "a\\TWO.mp4", None),
        # All at once.
        ([f"SUB/{DECOMPOSED}"], f"sub\\{COMPOSED.upper()}", f"SUB/{DECOMPOSED}"),
    ],
)
def test_a_name_in_another_spelling(tmp_path, warnings, there, video, expected):
    files = VideoFiles(touch(tmp_path, *there))
    if expected is None:
        with pytest.raises(FileNotFoundError, match=r"and other spellings"):
            files.find(video)
        return
    for _ in range(2):
        assert files.find(video) == str(tmp_path / expected)
    assert files.respelled == {video: str(tmp_path / expected)}
    (warning,) = warnings("processing.data.files")
    assert f"Using {tmp_path / expected} for the video {video!r}, which is spelled differently." in warning


def test_names_as_they_are_need_no_words(tmp_path, warnings):
    files = VideoFiles(touch(tmp_path, "clip.MP4", "back\\slash.mp4", COMPOSED, DECOMPOSED, "Clip.mp4"))
    for video, expected in [
        ("clip.mp4", "clip.MP4"),
        ("back\\slash.mp4", "back\\slash.mp4"),
        (COMPOSED, COMPOSED),
        (DECOMPOSED, DECOMPOSED),
        ("Clip.mkv", "Clip.mp4"),
    ]:
        assert files.find(video) == str(tmp_path / expected)
    assert not files.respelled and not warnings("processing.data.files")


@pytest.mark.parametrize(
    ("there", "video", "listed"),
    [
        (["UPPER.mp4", "Upper.mp4", "lower.mp4"], "upper.mp4", ["UPPER.mp4", "Upper.mp4"]),
        (["CAF\u00c9.mp4", DECOMPOSED], COMPOSED, ["CAF\u00c9.mp4", DECOMPOSED]),
        (["Sub/a.mp4", "SUB/a.webm"], "sub/a.mp4", ["SUB/a.webm", "Sub/a.mp4"]),
    ],
)
def test_several_files_in_another_spelling_are_listed(tmp_path, there, video, listed):
    paths = ", ".join(str(tmp_path / name) for name in sorted(listed))
    with pytest.raises(ValueError) as caught:
        VideoFiles(touch(tmp_path, *there)).find(video)
    assert f"No video is called {video!r}" in str(caught.value) and paths in str(caught.value)


@pytest.mark.parametrize(
    ("there", "video"),
    [
        ([], "abc.mp4"),
        (["abc.json", "abc.txt", "abc.jpg", "abc.mp4.part", "abc.mp4.txt", "abc"], "v_abc"),
        (["abcd.mp4", "ab.mp4", "x_abc.mp4", "v_v_abc.mp4"], "abc"),
        (["abc_210.0_300.0.mp4", "abc_210.mp4"], "abc_210.0_360.0"),
        (["abc.mp4"], "train/abc.mp4"),
        ([".mp4"], "abc"),
        # A name with a folder is looked for in that one alone, and what follows a dot may be a number.
        (["val/abc.mp4"], "test/abc.mp4"),
        (["rec_2024.mp4"], "rec_2024.03"),
    ],
)
def test_a_missing_file_is_named_with_its_folder(tmp_path, there, video):
    files = VideoFiles(touch(tmp_path, *there))
    with pytest.raises(FileNotFoundError) as caught:
        files.find(video)
    assert repr(video) in str(caught.value)
    assert str((tmp_path / video).parent) in str(caught.value)


@pytest.mark.parametrize(
    ("there", "video", "expected"),
    [
        (["val/abc.mp4"], "abc.mp4", "val/abc.mp4"),
        (["val/deep/v_abc.mkv", "val/abcd.mp4"], "abc", "val/deep/v_abc.mkv"),
        (["val/ABC.mp4"], "abc.mp4", "val/ABC.mp4"),
        (["one/abc.mp4", "one/abc.mkv"], "abc", "one/abc.mp4"),
        (["abc.mp4"], "root/abc.mp4", "abc.mp4"),
        (["val/Abc.mp4"], "root/val/abc", "val/Abc.mp4"),
        (["one/abc.mp4", "two/abc.mp4"], "abc.mp4", None),
        (["one/abc.mp4", "two/v_abc.mp4"], "abc.mp4", "one/abc.mp4"),
    ],
)
def test_a_name_in_another_folder(tmp_path, warnings, there, video, expected):
    """Where one alone fits; a link to a folder above is no reason to look forever."""
    files = VideoFiles(touch(tmp_path / "root", *there))
    (tmp_path / "root" / there[0]).parent.joinpath("loop").symlink_to(tmp_path / "root")
    if expected is None:
        with pytest.raises(
            ValueError, match="'abc.mp4', but several names .*one/abc.mp4, .*two/abc.mp4. Write the name"
        ):
            files.find(video)
        return
    for _ in range(2):
        assert files.find(video) == str(tmp_path / "root" / expected)
    assert files.moved == {video: str(tmp_path / "root" / expected)} and not files.respelled
    (warning,) = warnings("processing.data.files")
    assert f"for the video {video!r}, which names another folder." in warning


def test_the_current_folder_is_not_searched_through(tmp_path, monkeypatch):
    """Without a root, anything may be below."""
    monkeypatch.chdir(touch(tmp_path, "val/abc.mp4"))
    with pytest.raises(FileNotFoundError, match="'abc.mp4'"):
        VideoFiles().find("abc.mp4")


@pytest.mark.parametrize(
    ("video", "file"),
    [
        ("1@N02_2.MOV", "1@N02_2.mp4"),
        ("1@N02_2.xyz", "1@N02_2.mp4"),
        ("1@N02_2.MOV", "1@N02_2.MOV.mp4"),
        ("1@N02_2.xyz", "1@N02_2.xyz.avi"),
        ("1@N02_2.xyz", "1@n02_2.mp4"),
    ],
)
def test_names_of_didemo_are_found_by_their_stem(tmp_path, video, file):
    """The annotations say extensions that the files do not have, or that stand before the file's own."""
    assert VideoFiles(touch(tmp_path, file, "1@N02_3.mp4")).find(video) == str(tmp_path / file)


def test_videos_beside_the_annotations(tmp_path, warnings):
    """A name is in the folder or in its `videos`, without a word."""
    files = VideoFiles(touch(tmp_path, "a.mp4", "videos/b.mp4", "videos/sub/c.mkv", "clips/b.mp4"))
    for video, expected in [
        ("a", "a.mp4"),
        ("b.mp4", "videos/b.mp4"),
        ("videos/b.mp4", "videos/b.mp4"),
        ("sub/c.mp4", "videos/sub/c.mkv"),
    ]:
        assert files.find(video) == str(tmp_path / expected)
    assert not files.moved and not files.respelled and not warnings("processing.data.files")


def test_a_folder_is_no_video(tmp_path):
    touch(tmp_path, "abc/frame.jpg", "abc.mp4/frame.jpg")
    for video in ("abc", "abc.mp4", "v_abc"):
        with pytest.raises(FileNotFoundError, match=video):
            VideoFiles(tmp_path).find(video)
    touch(tmp_path, "abc.webm")
    assert VideoFiles(tmp_path).find("abc") == str(tmp_path / "abc.webm")


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    """Listing thousands of files for each video would take longer than reading it."""
    touch(tmp_path, *(f"a/{index}.webm" for index in range(5)), "b/0.mkv")
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or scandir(path))
    files = VideoFiles(tmp_path)
    for index in range(5):
        assert files.find(f"a/{index}.mp4") == str(tmp_path / f"a/{index}.webm")
    assert files.find("b/v_0") == str(tmp_path / "b/0.mkv")
    with pytest.raises(FileNotFoundError):
        files.find("a/5.mp4")
    assert listed == [tmp_path / "a", tmp_path / "b"]
