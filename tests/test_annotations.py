"""Annotations in the forms that `datasets` knows, to rows of one schema."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict, Video

from processing.annotations import load_annotations, resolve_video


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
    with pytest.raises(ValueError, match=r"'validation' of .*rows\.jsonl; it has \['train'\]"):
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
    resolved = resolve_video(video, None)
    assert (resolved if isinstance(resolved, bytes) else Path(resolved).read_bytes()) == clip.read_bytes()


@pytest.mark.parametrize(
    ("video", "root", "expected"),
    [
        ("a/b.mp4", "/videos", "/videos/a/b.mp4"),
        ("a/b.mp4", Path("/videos"), "/videos/a/b.mp4"),
        ("a/b.mp4", None, "a/b.mp4"),
        ("/there/b.mp4", "/videos", "/there/b.mp4"),
        ("http://host/b.mp4", "/videos", "http://host/b.mp4"),
        ("https://host/b.mp4", "/videos", "https://host/b.mp4"),
        ("https.mp4", "/videos", "/videos/https.mp4"),
        (b"content", "/videos", b"content"),
        (b"content", None, b"content"),
        ({"path": "b.mp4", "bytes": None}, "/videos", "/videos/b.mp4"),
        ({"path": "b.mp4"}, "/videos", "/videos/b.mp4"),
        ({"path": "b.mp4", "bytes": None}, None, "b.mp4"),
        ({"path": "b.mp4", "bytes": b"content"}, "/videos", b"content"),
        ({"path": None, "bytes": b"content"}, None, b"content"),
        ({"path": "https://host/b.mp4", "bytes": None}, "/videos", "https://host/b.mp4"),
    ],
)
def test_resolve_video(video, root, expected):
    resolved = resolve_video(video, root)
    assert (resolved, type(resolved)) == (expected, type(expected))
