"""
Preparing annotations: every oddity of the published files, in files made here in the same formats.

What is expected was worked out by hand.
"""

import csv
import importlib
import io
import json
import logging
import math
import os
import sys
import time
import types
from pathlib import Path

import datasets
import numpy as np
import pytest

from processing.data import inspection as inspection_module
from processing.data import preparation as script
from processing.data.annotations import load_annotations


sys.path.append(str(Path(__file__).parents[3] / "scripts"))

REVERSED = "it ends before it starts"
EMPTY = "it has no length"
OUTSIDE = "it lies outside its video"


@pytest.fixture
def prepare(tmp_path):
    """`prepare(format, {file name: content}, **kwargs) -> (report, {split: rows})`, into `tmp_path / "out"`."""

    def run(format, files, durations=None, **kwargs):
        paths = [write(tmp_path / name, content) for name, content in files.items()]
        if durations is not None:
            kwargs["durations"] = [write(tmp_path / name, content) for name, content in durations.items()]
        output = kwargs.pop("output", tmp_path / "out")
        report = script.prepare_dataset(format, paths, output, **kwargs)
        assert json.loads((output / "report.json").read_text(encoding="utf-8")) == report
        splits = datasets.load_from_disk(str(output))
        return report, {name: load_annotations(str(output), name).to_list() for name in splits}

    return run


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, dict):
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return path


def where_and_why(dropped):
    return [(entry["where"], entry["reason"].partition(" (")[0].partition(" of ")[0]) for entry in dropped]


def charades_durations(lengths):
    """Charades' own csv: free text with commas, quotes and line breaks in front of the length."""
    columns = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length".split(",")
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    for name, length in lengths.items():
        script_text = 'A person, "awakening",\nputs a cup\r\non the shelf; then # leaves.'
        writer.writerow(
            [name, "HR43", "Kitchen", 6, 7, "Yes", script_text, "a;b", "A,\nB", "c092 11.90 21.20", length]
        )
    return file.getvalue().encode()


CHARADES_TRAIN = """A1B2C 0.0 6.9##a person is putting a cup on a shelf.
ZZ9ZZ 4.0 10.0##person closes door # 3 with the café's key.
A1B2C 24.3 32.2##person ends after the video.
A1B2C 20.0 12.5##person is annotated backwards.
A1B2C 30.7 31.0##person is wholly after the video.
ZZ9ZZ 3.0 3.0## person has no time.
ZZ9ZZ 1.0 2.0##a person says ## twice.  Two spaces.

ZZ9ZZ 1.0 2.0##
"""
CHARADES_ROWS = [
    {
        "video": "A1B2C.mp4",
        "video_id": "A1B2C",
        "duration": 30.66,
        "sentences": ["a person is putting a cup on a shelf.", "person ends after the video."],
        "segments": [[[0.0, 6.9]], [[24.3, 30.66]]],
    },
    {
        "video": "ZZ9ZZ.mp4",
        "video_id": "ZZ9ZZ",
        "duration": 10.0,
        "sentences": ["person closes door # 3 with the café's key.", "a person says ## twice.  Two spaces."],
        "segments": [[[4.0, 10.0]], [[1.0, 2.0]]],
    },
]


def test_charades_sta(prepare, tmp_path, capsys):
    """Also: two splits at once, and nothing is made of videos where none are at hand."""
    report, splits = prepare(
        "charades-sta",
        {"charades_sta_train.txt": CHARADES_TRAIN, "charades_sta_test.txt": "T0000 0.5 12.0##Test it.\n"},
        {
            "Charades_v1_train.csv": charades_durations({"A1B2C": 30.66, "OTHER": 5.0, "ZZ9ZZ": 10.0}),
            "Charades_v1_test.csv": charades_durations({"T0000": "12.00"}),
        },
    )
    test_row = {"video": "T0000.mp4", "video_id": "T0000", "duration": 12.0, "sentences": ["Test it."]}
    assert splits == {"train": CHARADES_ROWS, "test": [test_row | {"segments": [[[0.5, 12.0]]]}]}
    train = report["splits"]["train"]
    assert (train["read"], train["kept"], train["clipped"], train["repaired"], train["videos"]) == (8, 4, 1, 0, 2)
    assert where_and_why(train["dropped"]) == [
        ("charades_sta_train.txt:4", REVERSED),
        ("charades_sta_train.txt:5", OUTSIDE),
        ("charades_sta_train.txt:6", EMPTY),
        ("charades_sta_train.txt:9", "its text is empty"),
    ]
    assert report["splits"]["test"]["kept"] == report["splits"]["test"]["read"] == 1
    assert (report["read"], report["kept"], report["clipped"], report["repaired"]) == (9, 5, 1, 0)
    assert report["dropped"] == train["dropped"]
    assert report["missing_videos"] is None
    assert report["without_duration"] == []
    assert "broken_videos" not in report
    printed = capsys.readouterr().out
    assert "train (charades_sta_train.txt): 8 sentences read, 4 kept, of 2 videos; 1 clipped" in printed
    assert "1 because it ends before it starts, 1 because it lies outside its video, 1 because" in printed
    features = datasets.load_from_disk(str(tmp_path / "out"))["test"].features
    assert features == datasets.Features(
        {
            "video": datasets.Value("string"),
            "video_id": datasets.Value("string"),
            "duration": datasets.Value("float64"),
            "sentences": datasets.List(datasets.Value("string")),
            "segments": datasets.List(datasets.List(datasets.List(datasets.Value("float64")))),
        }
    )


def test_reversed_rows_swapped(prepare):
    """A swapped row is also clipped where it ends after its video; one of no length stays dropped."""
    content = "A 20.0 12.5##One.\nA 31.0 25.0##Two.\nA 3.0 3.0##Three.\n"
    report, splits = prepare(
        "charades-sta", {"train.txt": content}, {"d.csv": "id,length\nA,30\n"}, repair_reversed="swap"
    )
    assert splits["train"][0]["segments"] == [[[12.5, 20.0]], [[25.0, 30.0]]]
    assert (report["read"], report["kept"], report["clipped"], report["repaired"]) == (3, 2, 1, 2)
    assert where_and_why(report["dropped"]) == [("train.txt:3", EMPTY)]


def test_unknown_durations(prepare, capsys):
    """Ends are not clipped, and that is said."""
    content = "A 1.0 99.0##One.\nB 1.0 99.0##Two.\nC 1.0 99.0##Three.\n"
    report, splits = prepare("charades-sta", {"train.txt": content}, {"d.csv": "id,length\nB,30\nC,\n"})
    assert [(row["duration"], row["segments"]) for row in splits["train"]] == [
        (None, [[[1.0, 99.0]]]),
        (30.0, [[[1.0, 30.0]]]),
        (None, [[[1.0, 99.0]]]),
    ]
    assert report["clipped"] == 1
    assert report["without_duration"] == ["A.mp4", "C.mp4"]
    assert "2 videos have no known duration" in capsys.readouterr().out


LONG_SENTENCE = " ".join(f"word{number}" for number in range(82))
ACTIVITYNET = {
    "v_AbCdEfGhIjk": {
        "duration": 82.73,
        "timestamps": [[0.83, 19.86], [17, 60.81], [60, 82.83], [50.5, 40.0], [82.73, 82.75]],
        "sentences": ["A person  sits.", " They leave.\n", " One\n ends late.", "Backwards.", "After the end."],
    },
    "v_-_0000000-_": {
        "duration": 755,
        "timestamps": [[7, 7], [-1.5, 3], [0, 755], [1, 2], [0.1, 0.30000000000000004]],
        "sentences": [" No time.", "一个人 läuft…", LONG_SENTENCE, "\n", "a\r\n\r\n b\tc\u00a0 d\n"],
    },
    "v_nothing_left": {"duration": 1.58, "timestamps": [[1.58, 1.6]], "sentences": ["Gone."]},
}


def test_activitynet_captions(prepare):
    only_first = {"v_AbCdEfGhIjk": ACTIVITYNET["v_AbCdEfGhIjk"] | {"timestamps": [[1, 2]], "sentences": ["Other."]}}
    report, splits = prepare(
        "activitynet-captions", {"train.json": ACTIVITYNET, "val_1.json": only_first, "val_2.json": only_first}
    )
    first = {"video": "v_AbCdEfGhIjk.mp4", "video_id": "v_AbCdEfGhIjk", "duration": 82.73}
    assert splits["train"] == [
        first
        | {
            "sentences": ["A person  sits.", "They leave.", "One ends late."],
            "segments": [[[0.83, 19.86]], [[17.0, 60.81]], [[60.0, 82.73]]],
        },
        {
            "video": "v_-_0000000-_.mp4",
            "video_id": "v_-_0000000-_",
            "duration": 755.0,
            "sentences": ["一个人 läuft…", LONG_SENTENCE, "a b\tc\u00a0 d"],
            "segments": [[[0.0, 3.0]], [[0.0, 755.0]], [[0.1, 0.30000000000000004]]],
        },
    ]
    assert splits["val_1"] == splits["val_2"] == [first | {"sentences": ["Other."], "segments": [[[1.0, 2.0]]]}]
    train = report["splits"]["train"]
    assert (train["read"], train["kept"], train["clipped"], train["videos"]) == (11, 6, 2, 2)
    assert where_and_why(train["dropped"]) == [
        ("train.json: v_AbCdEfGhIjk[3]", REVERSED),
        ("train.json: v_AbCdEfGhIjk[4]", OUTSIDE),
        ("train.json: v_-_0000000-_[0]", EMPTY),
        ("train.json: v_-_0000000-_[3]", "its text is empty"),
        ("train.json: v_nothing_left[0]", OUTSIDE),
    ]
    assert (report["read"], report["kept"]) == (13, 8)


QVHIGHLIGHTS = [
    {"qid": 1, "query": "A chef cooks.", "duration": 150, "vid": "NUsG9BgSes0_210.0_360.0",
     "relevant_windows": [[82, 150], [0, 2]], "relevant_clip_ids": [41], "saliency_scores": [[1, 1, 2]]},
    {"qid": 2, "query": " Trees ", "duration": 126, "vid": "b.mkv_0.0_126.0", "relevant_windows": [[0, 130], [4, 4]]},
    {"qid": 3, "query": "The chef rests", "duration": 150, "vid": "NUsG9BgSes0_210.0_360.0",
     "relevant_windows": [[9, 8], [150, 152]]},
    {"qid": 4, "query": "Hidden", "duration": 150, "vid": "NUsG9BgSes0_210.0_360.0"},
]  # fmt: skip


def test_qvhighlights(prepare, capsys):
    """Several windows: the empty ones go, and the sentence where none is left. Names have dots in them."""
    report, splits = prepare("qvhighlights", {"highlight_val_release.jsonl": QVHIGHLIGHTS})
    assert splits["val"] == [
        {
            "video": "NUsG9BgSes0_210.0_360.0.mp4",
            "video_id": "NUsG9BgSes0_210.0_360.0",
            "duration": 150.0,
            "sentences": ["A chef cooks."],
            "segments": [[[82.0, 150.0], [0.0, 2.0]]],
        },
        {
            "video": "b.mkv_0.0_126.0.mp4",
            "video_id": "b.mkv_0.0_126.0",
            "duration": 126.0,
            "sentences": ["Trees"],
            "segments": [[[0.0, 126.0]]],
        },
    ]
    assert (report["read"], report["kept"], report["clipped"]) == (4, 2, 1)
    assert report["dropped"] == [
        {
            "where": "highlight_val_release.jsonl:3",
            "reason": "it ends before it starts (9 to 8 s); it lies outside its video (150 to 152 s of 150 s)",
        },
        {
            "where": "highlight_val_release.jsonl:4",
            "reason": "it has no relevant_windows, as in QVHighlights' test file",
        },
    ]
    assert where_and_why(report["dropped_segments"]) == [("highlight_val_release.jsonl:2", EMPTY)]
    assert "dropped segments of kept sentences: 1 because it has no length" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("format", "name", "content"),
    [
        ("jsonl", "test.jsonl", [{"video": "a.mp4", "sentences": ["A.", "B."], "segments": [[1, 2], []]}]),
        (
            "jsonl",
            "test.jsonl",
            [{"video": "a.mp4", "sentence": s, "segment": t} for s, t in (("A.", [1, 2]), ("B.", []))],
        ),
        ("csv", "test.csv", 'video,sentence,segment\na.mp4,A.,"[1, 2]"\na.mp4,B.,[]\n'),
        (
            "qvhighlights",
            "test.jsonl",
            [{"vid": "a", "query": s, "relevant_windows": t} for s, t in (("A.", [[1, 2]]), ("B.", []), ("C.", None))],
        ),
    ],
)
def test_sentences_that_are_not_in_their_video(prepare, capsys, format, name, content):
    """`[]` says so; no segment at all, or one that is cleaned away, does not."""
    report, splits = prepare(format, {name: content})
    (row,) = splits["test"]
    assert (row["sentences"], row["segments"]) == (["A.", "B."], [[[1.0, 2.0]], []])
    assert (report["kept"], report["not_there"]) == (2, 1)
    assert len(report["dropped"]) == (format == "qvhighlights")
    assert "marked as not in their video: 1" in capsys.readouterr().out


def test_a_prepared_sentence_that_is_not_there_is_read_again(prepare, tmp_path):
    prepare("jsonl", {"test.jsonl": [{"video": "a.mp4", "sentences": ["A.", "B."], "segments": [[1, 2], []]}]})
    assert load_annotations(str(tmp_path / "out"), "test")["segments"][0] == [[[1.0, 2.0]], []]


def test_qvhighlights_without_any_window(prepare, tmp_path):
    with pytest.raises(ValueError, match="No sentence of .*_test_release.jsonl was kept .1 because it has no rel"):
        prepare("qvhighlights", {"highlight_test_release.jsonl": [QVHIGHLIGHTS[3]]})
    assert not (tmp_path / "out").exists()


def test_tacos(prepare):
    """Times are in frames: 4 per second here."""
    entry = {
        "timestamps": [[2, 10], [0, 41], [5, 5]],
        "sentences": ["He cuts.", "He washes.", "He."],
        "fps": 4,
        "num_frames": 40,
    }
    report, splits = prepare("tacos", {"test.json": {"s13-d21.avi": entry, "s13-d25": entry | {"fps": 29.4}}})
    assert splits["test"][0] == {
        "video": "s13-d21.avi",
        "video_id": "s13-d21",
        "duration": 10.0,
        "sentences": ["He cuts.", "He washes."],
        "segments": [[[0.5, 2.5]], [[0.0, 10.0]]],
    }
    assert splits["test"][1]["video"] == "s13-d25.mp4"
    np.testing.assert_allclose(splits["test"][1]["segments"], [[[0.068027, 0.340136]], [[0, 1.360544]]], atol=1e-6)
    assert (report["read"], report["kept"], report["clipped"]) == (6, 4, 2)


CHANGED = {"duration": 30.5, "timestamps": [[1.2, 8.0], [20, 31]], "sentences": ["He sings.", "She digs."]}


@pytest.mark.parametrize("format", ["charades-cd", "activitynet-cd", "charades-cg"])
def test_splits_of_other_distributions(prepare, format):
    """Both test splits of a data set into one folder, under their names."""
    names = {
        "charades-cd": ["charades_test_iid.json", "charades_test_ood.json"],
        "activitynet-cd": ["anet_test_iid.json", "anet_test_ood.json"],
        "charades-cg": ["test_trivial.json", "novel_composition.json", "novel_word.json"],
    }[format]
    extra = {"charades-cg": [{}, {"novels": [{"v-n": [["sing", "song"]]}, {}]}, {"news": [{"NOUN": ["song"]}, {}]}]}
    entries = [CHANGED | more for more in extra.get(format, len(names) * [{}])]
    _, splits = prepare(format, {name: {"QWERT": entry} for name, entry in zip(names, entries, strict=True)})
    row = {"video": "QWERT.mp4", "video_id": "QWERT", "duration": 30.5, "sentences": ["He sings.", "She digs."]}
    row["segments"] = [[[1.2, 8.0]], [[20.0, 30.5]]]
    expected = {
        "charades-cg": ["test_trivial", "novel_composition", "novel_word"],
    }.get(format, ["test_iid", "test_ood"])
    assert splits == {name: [row] for name in expected}


def test_timelens_bench(prepare):
    entry = {"duration": 61, "spans": [[2, 7.5], [50, 64]], "queries": ["a dog digs", "the dog sleeps."]}
    _, splits = prepare("timelens-bench", {"charades-timelens.json": {"QWERT": entry}}, split="test")
    row = {"video": "QWERT.mp4", "video_id": "QWERT", "duration": 61.0, "sentences": ["a dog digs", "the dog sleeps."]}
    assert splits == {"test": [row | {"segments": [[[2.0, 7.5]], [[50.0, 61.0]]]}]}


def test_qv_m2(prepare):
    """Several moments a sentence."""
    row = {"qid": 1, "vid": "Ab-c_60.0_210.0", "query": "A dog digs.", "duration": 150, "relevant_clip_ids": [0, 1]}
    rows = [row | {"relevant_windows": [[0.0, 4.0], [20.0, 26.0], [148, 151]]}, row | {"relevant_windows": [[2, 4]]}]
    _, splits = prepare("qv-m2", {"test.jsonl": [rows[0], rows[1] | {"qid": 2, "query": "It stops."}]})
    expected = {"video": "Ab-c_60.0_210.0.mp4", "video_id": "Ab-c_60.0_210.0", "duration": 150.0}
    expected |= {"sentences": ["A dog digs.", "It stops."]}
    assert splits == {"test": [expected | {"segments": [[[0, 4], [20, 26], [148, 150]], [[2, 4]]]}]}


def nlq(*queries, **clip):
    """A file of Ego4D's, with one clip from 100 to 580 s of its video."""
    clip = {"clip_uid": "c-1", "video_start_sec": 100.0, "video_end_sec": 580.0, "source_clip_uid": "s", **clip}
    clip["annotations"] = [{"annotation_uid": "a", "language_queries": list(queries)}]
    videos = [{"video_uid": "v-1", "split": "val", "clips": [clip]}]
    return {"version": "1", "date": "1", "description": "made up", "videos": videos}


QUERY = {
    "clip_start_sec": 10.5,
    "clip_end_sec": 12,
    "video_start_sec": 110.5,
    "video_end_sec": 112,
    "video_start_frame": 3315,
    "video_end_frame": 3360,
    "template": "Objects: Where is object X?",
    "query": "Where is the spade?",
    "slot_x": "spade",
    "verb_x": "",
    "raw_tags": ["made up"],
}


def test_ego4d_nlq(prepare):
    """Times are those of the clip; queries without length or text go, and are counted."""
    queries = [QUERY, QUERY | {"clip_end_sec": 10.5}, QUERY | {"query": None}, QUERY | {"query": "Who dug?"}]
    report, splits = prepare("ego4d-nlq", {"nlq_val.json": nlq(*queries)})
    row = {"video": "c-1.mp4", "video_id": "c-1", "duration": 480.0, "sentences": ["Where is the spade?", "Who dug?"]}
    assert splits == {"val": [row | {"segments": [[[10.5, 12.0]], [[10.5, 12.0]]]}]}
    place = "nlq_val.json: videos[0]: clips[0]: annotations[0]: language_queries"
    assert where_and_why(report["dropped"]) == [(f"{place}[1]", EMPTY), (f"{place}[2]", "its text is empty")]


def test_didemo(prepare):
    """Chunks of five seconds, the last of which the video ends within; what most annotators chose."""
    row = {"annotation_id": 1, "video": "1@N02_2.mov", "description": "a dog digs", "num_segments": 6, "dl_link": "x"}
    rows = [
        row | {"times": [[0, 0], [1, 2], [1, 2], [0, 3]]},
        row | {"times": [[5, 5], [4, 5]], "description": "it stops"},
    ]
    _, splits = prepare("didemo", {"val_data.json": json.dumps(rows)}, {"d.csv": "id,length\n1@N02_2,28.2\n"})
    expected = {
        "video": "1@N02_2.mov",
        "video_id": "1@N02_2",
        "duration": 28.2,
        "sentences": ["a dog digs", "it stops"],
    }
    assert splits == {"val": [expected | {"segments": [[[5.0, 15.0]], [[25.0, 28.2]]]}]}


UNKNOWN = {"video_fps": 24, "framestamps": [[1]], "decode_fps": 4, "encoded_sentences": [[1]]}


@pytest.mark.parametrize(
    ("format", "name", "content"),
    [
        ("charades-cd", "test_ood.json", {"A": CHANGED | UNKNOWN | {"video_duration": 30.5}, "B": CHANGED | UNKNOWN}),
        ("charades-cd", "a.json", {"A": {**CHANGED, **UNKNOWN, "video_duration": 30.5, "duration": 30.5}}),
        ("charades-cg", "a.json", {"A": CHANGED | UNKNOWN | {"novels": []}}),
        ("activitynet-captions", "a.json", {"A": CHANGED | UNKNOWN}),
        ("tacos", "a.json", {"A": CHANGED | UNKNOWN | {"fps": 1, "num_frames": 30.5, "duration": 30.5}}),
        ("timelens-bench", "a.json", {"A": UNKNOWN | {"duration": 3, "spans": [[1, 2]], "queries": ["A."]}}),
        ("qvhighlights", "a.jsonl", [QVHIGHLIGHTS[0] | UNKNOWN, QVHIGHLIGHTS[1] | UNKNOWN]),
        ("qv-m2", "a.jsonl", [QVHIGHLIGHTS[0] | UNKNOWN, QVHIGHLIGHTS[1] | UNKNOWN]),
        ("ego4d-nlq", "a.json", nlq(QUERY | UNKNOWN)),
        (
            "didemo",
            "a.json",
            json.dumps([{"video": "a", "description": "A.", "times": [[0, 0]], "dl_link": "x", **UNKNOWN}]),
        ),
        ("jsonl", "a.jsonl", [{"video": "a", "sentence": "A.", "start": 1, "end": 2, **UNKNOWN}]),
        (
            "csv",
            "a.csv",
            "video,video_fps,sentence,start,framestamps,end,decode_fps,encoded_sentences,\na,24,A.,1,2,3,4,5,\n",
        ),
    ],
)
def test_fields_that_a_format_does_not_have_are_named_once(prepare, warnings, format, name, content):
    """They stand in published files, so they are no error; `duration` of TACoS is one of them."""
    report, _ = prepare(format, {name: content})
    assert report["kept"] >= 1 and report["dropped"] == []
    (warning,) = warnings()
    said, _, named = warning.partition(": ignoring fields that the format does not have: ")
    expected = set(UNKNOWN) | ({"duration"} if format == "tacos" else set())
    assert said == name and set(named.removesuffix(".").split(", ")) == expected


def test_charades_cd_may_call_the_duration_otherwise(prepare):
    entry = {"video_duration": 30.5, "timestamps": [[20, 31]], "sentences": ["She digs."]}
    _, splits = prepare("charades-cd", {"charades_test_ood.json": {"A": entry}})
    assert (splits["test_ood"][0]["duration"], splits["test_ood"][0]["segments"]) == (30.5, [[[20.0, 30.5]]])


@pytest.mark.parametrize("format", ["qv-m2", "qvhighlights"])
@pytest.mark.parametrize(
    ("durations", "longest", "count"),
    [([133, 134], 134, 1), ([134, 133], 134, 1), ([150, 150], 150, 0), ([200, 202, 201], 202, 1), ([9, 10], 10, 1)],
)
def test_durations_that_differ_by_rounding(prepare, capsys, format, durations, longest, count):
    """QV-M2's `val.jsonl` has a video of 133 and 134 s: the longer one is taken, and counted."""
    rows = [QVHIGHLIGHTS[0] | {"vid": "a", "duration": d, "relevant_windows": [[0, 999]]} for d in durations]
    report, splits = prepare(format, {"val.jsonl": [*rows, QVHIGHLIGHTS[1]]})
    assert splits["val"][0]["duration"] == longest
    assert splits["val"][0]["segments"] == [[[0.0, longest]]] * len(durations)
    assert report["unequal_durations"] == report["splits"]["val"]["unequal_durations"] == count
    line = "videos with several durations (using the longest): 1"
    assert (line in capsys.readouterr().out) == bool(count)


def test_durations_of_a_table_that_differ_by_rounding(prepare):
    _, splits = prepare("charades-sta", {"a.txt": "A 1 99##One.\n"}, {"d.csv": "id,length\nA,30.4\nA,31\nA,30\n"})
    assert splits["train"][0]["duration"] == 31.0


SPLIT_ROWS = [
    ("train", "a.mp4", "A.", 0, 1),
    ("val", "b.mp4", "B.", 1, 2),
    ("train", "c.mp4", "C.", 2, 3),
    ("train", "a.mp4", "D.", 3, 4),
    ("test_1", "d.mp4", "E.", 4, 5),
]


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_column_tells_the_splits(prepare, warnings, format):
    names = ["split", "video", "sentence", "start", "end"]
    if format == "csv":
        content = "".join(",".join(map(str, row)) + "\n" for row in [names, *SPLIT_ROWS])
    else:
        content = [dict(zip(names, row, strict=True)) for row in SPLIT_ROWS]
    report, splits = prepare(format, {f"my_test.{format}": content})
    found = {
        name: [(row["video"], row["sentences"], row["segments"]) for row in rows] for name, rows in splits.items()
    }
    assert found == {
        "train": [("a.mp4", ["A.", "D."], [[[0, 1]], [[3, 4]]]), ("c.mp4", ["C."], [[[2, 3]]])],
        "val": [("b.mp4", ["B."], [[[1, 2]]])],
        "test_1": [("d.mp4", ["E."], [[[4, 5]]])],
    }
    assert {name: split["read"] for name, split in report["splits"].items()} == {"train": 3, "val": 1, "test_1": 1}
    assert not warnings() and "shared_videos" not in report


def test_a_column_of_splits_and_a_name_for_all(prepare):
    content = "split,video,sentence,start,end\ntrain,a,A.,1,2\n"
    with pytest.raises(ValueError, match="--split dev, but a.csv contains the split of each sentence; remove --split"):
        prepare("csv", {"a.csv": content}, split="dev")


def test_files_with_the_same_split_in_their_columns(prepare):
    content = "split,video,sentence,start,end\ndev,a,A.,1,2\n"
    with pytest.raises(ValueError, match=r"two files of the same split: dev \(a.csv\), dev \(b.csv\)"):
        prepare("csv", {"a.csv": content, "b.csv": content})


def test_shares_are_drawn_by_video(prepare, tmp_path):
    """Of 40 videos 8 and 4; the names of one file stay together, and the order of rows changes nothing."""
    (tmp_path / "videos").mkdir()
    for k in range(40):
        (tmp_path / "videos" / f"{k}.mp4").touch()
    lines = [f"{k}{end},A {k} {end}.,0,1,9\n" for k in range(40) for end in ("", ".mp4", ".MP4")]
    header = "video,sentence,start,end,duration\n"
    arguments = {"videos": tmp_path / "videos", "validation_share": 0.2, "test_share": 0.1, "num_workers": 1}
    drawn = []
    for seed, order in ((0, 1), (0, -1), (1, 1)):
        report, splits = prepare("csv", {"my.csv": header + "".join(lines[::order])}, seed=seed, **arguments)
        drawn.append({name: {row["video"] for row in rows} for name, rows in splits.items()})
        assert {name: len(videos) for name, videos in drawn[-1].items()} == {"train": 28, "validation": 8, "test": 4}
        assert set.union(*drawn[-1].values()) == {f"{k}.mp4" for k in range(40)}
        assert {name: split["kept"] for name, split in report["splits"].items()} == {
            "train": 84,
            "validation": 24,
            "test": 12,
        }
        assert "shared_videos" not in report
    assert drawn[0] == drawn[1] != drawn[2]


def test_shares_where_there_is_such_a_split(prepare):
    content = "split,video,sentence,start,end\ntrain,a,A.,1,2\ntest,b,A.,1,2\n"
    with pytest.raises(ValueError, match="shares for test, .* the annotations have the splits train, test"):
        prepare("csv", {"a.csv": content}, test_share=0.2)


@pytest.mark.parametrize("calls", [1, 2])
def test_videos_in_several_splits_are_named(prepare, tmp_path, capsys, calls):
    """In another spelling and with another extension too; also of an earlier call."""
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "videos" / name).touch()
    files = {"train.csv": ["a.mp4", "b.mp4", "gone.mp4"], "test.csv": ["A.MOV", "c.mp4", "gone"]}
    files = {
        name: "video,sentence,start,end,duration\n" + "".join(f"{video},A.,0,1,9\n" for video in videos)
        for name, videos in files.items()
    }
    for some in [files] if calls == 1 else [{name: content} for name, content in files.items()]:
        capsys.readouterr()
        report, _ = prepare("csv", some, videos=tmp_path / "videos")
    assert report["shared_videos"] == [
        {"video": "a", "splits": ["train", "test"]},
        {"video": "gone", "splits": ["train", "test"]},
    ]
    printed = capsys.readouterr().out
    assert (
        "Warning: 2 videos are in several splits. Do not train on one" in printed
        and "a (train, test), gone" in printed
    )


OWN_ROWS = [
    {
        "video": "kitchen.mp4",
        "video_id": "kitchen",
        "duration": None,
        "sentences": ["A man, who is tall, leaves.", "He is back."],
        "segments": [[[12.4, 15.1]], [[1.0, 2.5], [7.0, 9.0]]],
    },
    {
        "video": "sub/garden.webm",
        "video_id": "sub/garden",
        "duration": 20.0,
        "sentences": ["Ein Käfer fliegt."],
        "segments": [[[3.0, 20.0]]],
    },
]


@pytest.mark.parametrize("names", ["video,sentence,segment,duration", "Video, sentences ,segments,duration"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv(prepare, names, mark):
    content = (
        f'{mark}{names}\r\nkitchen.mp4,"A man, who is tall,\r\nleaves.","[12.4, 15.1]",\r\n'
        'sub/garden.webm,Ein Käfer fliegt. ,"[3, 22]",20\r\n\r\n,,,\r\n'
        'kitchen.mp4,He is back.,"[[1.0, 2.5], [7, 9]]",\r\nkitchen.mp4,Never.,"[2, 1]",\r\n'
    )
    report, splits = prepare("csv", {"my.csv": content})
    assert splits == {"train": OWN_ROWS}
    assert (report["read"], report["kept"], report["clipped"]) == (4, 3, 1)
    # Lines of the file, of which the first sentence takes two.
    assert where_and_why(report["dropped"]) == [("my.csv:8", REVERSED)]


def test_csv_with_start_and_end(prepare):
    content = "start,end,video,video_id,sentence\n1,2.5,a.mp4,first,He sits.\n"
    _, splits = prepare("csv", {"my.csv": content}, split="holdout")
    row = {"video": "a.mp4", "video_id": "first", "duration": None, "sentences": ["He sits."]}
    assert splits == {"holdout": [row | {"segments": [[[1.0, 2.5]]]}]}


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What transformers' logger, which hands nothing up by itself, warns of."""
    monkeypatch.setattr(logging.getLogger("processing"), "propagate", True)
    return lambda: [record.message for record in caplog.records if record.name.startswith("processing.")]


@pytest.mark.parametrize(("separator", "said"), [(";", "semicolons"), ("\t", "tabs"), (",", None)])
@pytest.mark.parametrize("decimal_mark", [",", "."])
def test_csv_as_excel_writes_it(prepare, warnings, separator, said, decimal_mark):
    """Cells are between semicolons or tabs where a comma is the decimal mark, and that is said."""
    if separator == ",":
        decimal_mark = "."
    times = [time.replace(".", decimal_mark) for time in ("1.5", "2.25", "30.5")]
    rows = [
        ["video", "sentence", "start", "end", "duration"],
        ["a.mp4", '"He sits, then; leaves."', *times],
        ["b.mp4", "She runs.", "0", "1", ""],
    ]
    content = "\ufeff" + "".join(separator.join(cells) + "\r\n" for cells in rows)
    _, splits = prepare("csv", {"my.csv": content})
    row = {"video": "a.mp4", "video_id": "a", "duration": 30.5, "sentences": ["He sits, then; leaves."]}
    assert splits["train"][0] == row | {"segments": [[[1.5, 2.25]]]}
    assert splits["train"][1]["segments"] == [[[0.0, 1.0]]]
    line = f"my.csv: the header separates cells by {said}, so 1,5 is read as 1.5."
    assert warnings() == ([line] if said else [])


def test_durations_in_a_csv_with_semicolons(prepare):
    _, splits = prepare("charades-sta", {"train.txt": "A 1.0 99.0##One.\n"}, {"d.csv": "id;length\nA;30,5\n"})
    assert splits["train"][0]["segments"] == [[[1.0, 30.5]]]


CLOCK_TIMES = [
    ("0:01", 1),
    ("0:01.25", 1.25),
    ("1:02:03.5", 3723.5),
    ("90:00", 5400),
    ("00:00:07", 7),
    (" 12:30 ", 750),
]


@pytest.mark.parametrize(("written", "seconds"), CLOCK_TIMES)
def test_times_as_people_write_them(prepare, written, seconds):
    """In columns of a csv, in its segments and in jsonl; durations too."""
    segment = json.dumps([written, "3:00:00"]).replace('"', '""')
    expected = [[[float(seconds), 10800.0]]]
    files = [
        ("csv", "a.csv", f"video,sentence,start,end,duration\na,A.,{written},3:00:00,4:00:00\n"),
        ("csv", "a.csv", f'video,sentence,segment,duration\na,A.,"{segment}",14400\n'),
        ("jsonl", "a.jsonl", [LINE | {"segment": [written, "3:00:00"], "duration": "4:00:00"}]),
        (
            "jsonl",
            "a.jsonl",
            [{"video": "a", "sentences": ["A."], "segments": [[[written, 10800]]], "duration": 14400}],
        ),
    ]
    for format, name, content in files:
        _, splits = prepare(format, {name: content})
        assert (splits["train"][0]["segments"], splits["train"][0]["duration"]) == (expected, 14400.0)


def test_a_clock_time_with_a_decimal_comma(prepare):
    _, splits = prepare("csv", {"a.csv": "video;sentence;start;end\na;A.;0:01,5;1:02:03,5\n"})
    assert splits["train"][0]["segments"] == [[[1.5, 3723.5]]]


def test_jsonl(prepare):
    """A line a sentence or a line a video, in one file too."""
    lines = [
        {"video": "kitchen.mp4", "sentence": " A man, who is tall,\nleaves.", "segment": [12.4, 15.1]},
        {"video": "sub/garden.webm", "duration": 20, "sentences": ["Ein Käfer fliegt."], "segments": [[3, 22]]},
        {
            "video": "kitchen.mp4",
            "sentences": ["He is back.", "Never."],
            "segments": [[[1.0, 2.5], [7, 9]], [2, 1]],
        },
    ]
    report, splits = prepare("jsonl", {"test_annotations.jsonl": lines})
    assert splits == {"test": OWN_ROWS}
    assert where_and_why(report["dropped"]) == [("test_annotations.jsonl:3[1]", REVERSED)]


def test_prepared_rows_are_a_format_of_their_own(prepare, tmp_path):
    _, splits = prepare("jsonl", {"a.jsonl": OWN_ROWS})
    assert splits["train"] == OWN_ROWS


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("charades_sta_train.txt", "train"),
        ("charades_sta_test.txt", "test"),
        ("train.json", "train"),
        ("val_1.json", "val_1"),
        ("val_2.json", "val_2"),
        ("val.json", "val"),
        ("test.json", "test"),
        ("highlight_val_release.jsonl", "val"),
        ("highlight_train_release.jsonl", "train"),
        ("My-Test.csv", "test"),
        ("validation.jsonl", "validation"),
        ("trains_and_tests_of_valves.csv", "train"),
        ("latest_val_2017.csv", "val"),
        ("contest.csv", "train"),
        # Of Charades-CD, ActivityNet-CD and Charades-CG.
        ("charades_test_iid.json", "test_iid"),
        ("anet_test_ood.json", "test_ood"),
        ("test_trivial.json", "test_trivial"),
        ("novel_composition.json", "novel_composition"),
        ("novel_word.json", "novel_word"),
        ("test_oodles.json", "test"),
    ],
)
def test_split_names(name, split):
    assert script.split_name(Path("test") / name) == split


# As many rows as the published files have.


def test_scale_of_charades_sta(prepare):
    """
    5,338 videos of 30.06 s, one row each, and 7,070 more of which a video gets up to 11; 1,805 rows end up to 1.54 s
    too late, and the last four are reversed.
    """
    lines = [f"V{k:04d} 5.0 {30.1 + (k % 16) / 10 if k < 1805 else 20.0:.1f}##person {k}." for k in range(5338)]
    lines += [f"V{k // 11:04d} 2.5 9.9##person {k} again." for k in range(7066)]
    lines += [f"V{k:04d} 9.9 2.5##person {k} backwards." for k in range(4)]
    lengths = charades_durations({f"V{k:04d}": 30.06 for k in range(5338)})
    started_seconds = time.process_time()
    report, splits = prepare("charades-sta", {"charades_sta_train.txt": "\n".join(lines)}, {"d.csv": lengths})
    assert time.process_time() - started_seconds < 20
    rows = splits["train"]
    assert (report["read"], report["kept"], report["clipped"], report["videos"]) == (12408, 12404, 1805, 5338)
    assert where_and_why(report["dropped"]) == [(f"charades_sta_train.txt:{12405 + k}", REVERSED) for k in range(4)]
    assert [row["video_id"] for row in rows] == [f"V{k:04d}" for k in range(5338)]
    assert rows[3]["sentences"] == ["person 3.", *(f"person {k} again." for k in range(33, 44))]
    assert rows[3]["segments"] == [[[5.0, 30.06]], *[[[2.5, 9.9]]] * 11]
    assert sum(len(row["sentences"]) for row in rows) == 12404


def test_scale_of_activitynet_captions(prepare):
    """10,009 videos of 3 sentences, of which 308 have 24 more and one 2 more; 261 rows end 0.1 s too late."""
    entries = {}
    for k in range(10009):
        count = 27 if k < 308 else 5 if k == 308 else 3
        end_seconds = 100.1 if k < 261 else 90.0
        entries[f"v_{k:011d}"] = {
            "duration": 100.0,
            "timestamps": [[1, 2]] * (count - 1) + [[50.5, end_seconds]],
            "sentences": [f"{' ' if i % 3 else ''}Person {k} does {i}." for i in range(count)],
        }
    for k, segment in zip((5000, 6000, 7000, 8000), ([9, 8], [3, 3], [7.5, 7.25], [0, 0]), strict=True):
        entries[f"v_{k:011d}"]["timestamps"][1] = segment
    report, splits = prepare("activitynet-captions", {"train.json": entries})
    assert (report["read"], report["kept"], report["clipped"], report["videos"]) == (37421, 37417, 261, 10009)
    assert where_and_why(report["dropped"]) == [
        ("train.json: v_00000005000[1]", REVERSED),
        ("train.json: v_00000006000[1]", EMPTY),
        ("train.json: v_00000007000[1]", REVERSED),
        ("train.json: v_00000008000[1]", EMPTY),
    ]
    rows = splits["train"]
    assert rows[260]["segments"][-1] == [[50.5, 100.0]]
    assert rows[308]["sentences"] == [f"Person 308 does {i}." for i in range(5)]
    assert rows[5000]["sentences"] == ["Person 5000 does 0.", "Person 5000 does 2."]


def test_qvhighlights_file_of_the_fixtures(fixtures_dir, tmp_path):
    path = fixtures_dir / "metrics" / "highlight_val_release.jsonl"
    report = script.prepare_dataset("qvhighlights", [path], tmp_path / "out")
    annotated = [json.loads(line) for line in path.read_text().splitlines()]
    expected = {}
    for entry in annotated:
        expected.setdefault(entry["vid"], []).append((entry["query"].strip(), entry["relevant_windows"]))
    rows = load_annotations(str(tmp_path / "out"), "val").to_list()
    got = {row["video_id"]: list(zip(row["sentences"], row["segments"], strict=True)) for row in rows}
    assert got == expected
    assert list(got) == list(expected)
    assert report["read"] == report["kept"] == len(annotated) == 1550
    assert (report["clipped"], report["dropped"], report["without_duration"]) == (0, [], [])


# The output folder.


def test_splits_are_added_and_replaced(prepare, tmp_path):
    durations = {"d.csv": "id,length\nA,30\n"}
    first, _ = prepare("charades-sta", {"charades_sta_train.txt": "A 2.0 1.0##No.\nA 1.0 2.0##Old.\n"}, durations)
    second, splits = prepare("charades-sta", {"charades_sta_test.txt": "A 3.0 4.0##Test.\n"}, durations)
    assert {name: rows[0]["sentences"] for name, rows in splits.items()} == {"train": ["Old."], "test": ["Test."]}
    # Totals are of the call, but how the other split was made is not forgotten.
    assert (second["read"], second["dropped"]) == (1, [])
    assert second["splits"]["train"] == first["splits"]["train"]
    third, splits = prepare("charades-sta", {"charades_sta_train.txt": "A 5.0 6.0##New.\n"}, durations)
    assert {name: rows[0]["sentences"] for name, rows in splits.items()} == {"train": ["New."], "test": ["Test."]}
    assert list(third["splits"]) == ["train", "test"]
    assert third["splits"]["train"]["read"] == 1
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("has_earlier", [False, True])
def test_killed_while_writing(prepare, tmp_path, monkeypatch, has_earlier):
    """The folder is as it was, and the next call does not stumble over what lies about."""
    if has_earlier:
        prepare("charades-sta", {"test.txt": "A 1.0 2.0##One.\n"})

    def save_half(splits, folder):
        Path(folder, "train").mkdir(parents=True)
        Path(folder, "dataset_dict.json").write_text('{"splits": ["train"]}')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script.DatasetDict, "save_to_disk", save_half)
        prepare("charades-sta", {"train.txt": "A 1.0 2.0##Two.\n"})
    assert (tmp_path / "out").exists() == has_earlier
    if has_earlier:
        assert load_annotations(str(tmp_path / "out"), "test")["sentences"][0] == ["One."]
    _, splits = prepare("charades-sta", {"train.txt": "A 1.0 2.0##Two.\n"})
    assert set(splits) == ({"train", "test"} if has_earlier else {"train"})
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("step", ["between the renames", "before the old one is removed"])
def test_killed_while_swapping(prepare, tmp_path, step):
    """No earlier split is lost."""
    prepare("charades-sta", {"test.txt": "A 1.0 2.0##One.\n"})
    if step == "between the renames":
        (tmp_path / "out").rename(tmp_path / ".out.prepare_dataset.old")
        (tmp_path / ".out.prepare_dataset.new").mkdir()
    else:
        (tmp_path / ".out.prepare_dataset.old" / "test").mkdir(parents=True)
    _, splits = prepare("charades-sta", {"train.txt": "A 1.0 2.0##Two.\n"})
    assert set(splits) == {"train", "test"}
    assert not list(tmp_path.glob(".*"))


def test_output_folder_with_something_else(prepare, tmp_path):
    files = {"train.txt": "A 1.0 2.0##One.\n"}
    (tmp_path / "out").mkdir()
    prepare("charades-sta", files)  # empty is fine
    (tmp_path / "out" / "videos").mkdir()
    with pytest.raises(ValueError, match=r"out contains \['videos'\]. Choose a new or empty folder"):
        prepare("charades-sta", files)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "notes.txt", "mine")
    with pytest.raises(ValueError, match="other exists, but is not the output folder of an earlier call"):
        prepare("charades-sta", files, output=tmp_path / "other")
    with pytest.raises(ValueError, match="notes.txt exists, but is not the output folder"):
        prepare("charades-sta", files, output=tmp_path / "other" / "notes.txt")
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1]})}).save_to_disk(str(tmp_path / "third"))
    write(tmp_path / "third" / "report.json", "{}")
    with pytest.raises(ValueError, match="third contains other columns than `scada prepare` writes"):
        prepare("charades-sta", files, output=tmp_path / "third")


def test_push_to_hub(prepare, monkeypatch):
    """All splits of the folder go."""
    pushed = []
    monkeypatch.setattr(
        script.DatasetDict, "push_to_hub", lambda self, name: pushed.append((name, sorted(self), self["test"][0]))
    )
    prepare("charades-sta", {"test.txt": "A 1.0 2.0##One.\n"})
    assert pushed == []
    _, splits = prepare("charades-sta", {"train.txt": "A 1.0 2.0##Two.\n"}, push_to_hub="me/charades")
    assert pushed == [("me/charades", ["test", "train"], splits["test"][0])]


# Videos.


def test_videos_are_found(prepare, make_clip, tmp_path, capsys):
    """With any extension, with or without `v_`; rows of missing videos are kept."""
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    for name in ("sub/plain.webm", "v_there.mkv", "dotted_0.0_2.5.mp4", "s13-d21.mp4"):
        (tmp_path / "videos" / name).write_bytes(b"not opened")
    entry = {"duration": 9.0, "timestamps": [[1, 2]], "sentences": ["A."]}
    names = {
        "v_sub/plain": None,
        "there": "v_there.mkv",
        "v_there": "v_there.mkv",
        "dotted_0.0_2.5": "dotted_0.0_2.5.mp4",
        "s13-d21.avi": "s13-d21.mp4",
        "sub/v_plain": "sub/plain.webm",
        "v_gone": None,
    }
    both = {"val_1.json": dict.fromkeys(names, entry), "val_2.json": {"v_gone": entry}}
    report, splits = prepare("activitynet-captions", both, videos=tmp_path / "videos")
    fallback = {"v_sub/plain": "v_sub/plain.mp4", "v_gone": "v_gone.mp4"}
    assert [row["video"] for row in splits["val_1"]] == [path or fallback[name] for name, path in names.items()]
    assert [row["video_id"] for row in splits["val_1"]][:2] == ["v_sub/plain", "there"]
    # v_gone is in both.
    assert (report["missing_videos"], report["missing"]) == (2, ["v_sub/plain.mp4", "v_gone.mp4"])
    assert report["splits"]["val_1"]["missing_videos"] == 2
    assert report["splits"]["val_2"]["missing_videos"] == 1
    assert report["kept"] == report["read"] == 8
    assert "2 of 7 videos are missing: v_sub/plain.mp4, v_gone.mp4" in capsys.readouterr().out


def test_videos_in_another_spelling_are_found_and_said(prepare, make_clip, tmp_path, capsys):
    (tmp_path / "videos" / "sub1").mkdir(parents=True)
    for name in ("cafe\u0301.mp4", "sub1/clip.mp4", "UPPER.MP4", "plain.mp4"):
        make_clip().rename(tmp_path / "videos" / name)
    names = ["caf\u00e9.mp4", "sub1\\clip.mp4", "upper.mp4", "plain.mp4"]
    content = "video,sentence,start,end\n" + "".join(f"{name},A.,0,1\n" for name in names)
    report, splits = prepare("csv", {"a.csv": content}, videos=tmp_path / "videos")
    found = ["cafe\u0301.mp4", "sub1/clip.mp4", "UPPER.MP4", "plain.mp4"]
    assert [row["video"] for row in splits["train"]] == found
    assert report["missing_videos"] == 0
    pairs = list(zip(names, found, strict=True))[:3]
    assert report["respelled_videos"] == [{"video": name, "file": file} for name, file in pairs]
    out = capsys.readouterr().out
    assert "3 videos were found in another spelling:" in out and "\n  sub1\\clip.mp4: sub1/clip.mp4\n" in out


def test_several_videos_in_another_spelling_stop_the_run(prepare, make_clip, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("UPPER.mp4", "Upper.mp4"):
        make_clip().rename(tmp_path / "videos" / name)
    with pytest.raises(ValueError, match="'upper.mp4', but several names .*UPPER.mp4, .*Upper.mp4. Write the name"):
        prepare("csv", {"a.csv": "video,sentence,start,end\nupper.mp4,A.,0,1\n"}, videos=tmp_path / "videos")


@pytest.mark.parametrize("there", [[], ["x.mp4", "deep/y.mkv", "notes.txt"]])
def test_no_video_is_found(prepare, tmp_path, there):
    """That is no success: it says what was looked for, what is there, and what to do; nothing is written."""
    for name in there:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    (tmp_path / "videos").mkdir(exist_ok=True)
    content = "video,sentence,start,end\n" + "".join(f"{k}.mp4,A.,0,1\n" for k in range(18))
    with pytest.raises(
        FileNotFoundError, match="Could not find any of the 18 videos, such as '0.mp4', in '.*videos'"
    ) as caught:
        prepare("csv", {"a.csv": content}, videos=tmp_path / "videos")
    listed = "The folder contains x.mp4, deep/y.mkv." if there else "The folder contains no videos."
    assert listed in str(caught.value) and "omit --videos" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_repeated_rows_are_counted(prepare, capsys):
    """They are kept: published files have some, and are counted with them."""
    rows = ["a.mp4, A man.,0,1", "a.mp4,A man.,1,2", "b.mp4,A man.,0,1", "a.mp4,A man. ,0.0,1", "a.mp4,A man.,0,1"]
    report, splits = prepare("csv", {"a.csv": "\n".join(["video,sentence,start,end", *rows])})
    assert (report["read"], report["kept"], report["repeated"]) == (5, 5, 2)
    assert "  repeated, and kept: 2\n" in capsys.readouterr().out
    assert [len(row["sentences"]) for row in splits["train"]] == [4, 1]


def test_videos_that_lie_elsewhere_are_found_and_said(prepare, make_clip, tmp_path, capsys):
    """Below the folder, where one has the name; with the folder's own name before them; DiDeMo's by their stem."""
    for name in ("one/deep/a.mp4", "two/b.mp4", "c.mp4", "1@N02_2.mp4"):
        (tmp_path / "my videos" / name).parent.mkdir(parents=True, exist_ok=True)
        make_clip().rename(tmp_path / "my videos" / name)
    names = ["a.mp4", "b", "my videos/c.mp4", "my videos/two/b.mp4", "1@N02_2.xyz"]
    content = "video,sentence,start,end\n" + "".join(f"{name},A.,0,1\n" for name in names)
    report, splits = prepare("csv", {"a.csv": content}, videos=tmp_path / "my videos", num_workers=1)
    found = ["one/deep/a.mp4", "two/b.mp4", "c.mp4", "two/b.mp4", "1@N02_2.mp4"]
    assert [row["video"] for row in splits["train"]] == found
    assert report["missing_videos"] == 0
    moved = [{"video": name, "file": file} for name, file in zip(names[:4], found, strict=False)]
    assert report["moved_videos"] == moved
    assert report["respelled_videos"] == [{"video": "1@N02_2.xyz", "file": "1@N02_2.mp4"}]
    out = capsys.readouterr().out
    assert "4 videos were found in another folder:\n  a.mp4: one/deep/a.mp4\n" in out
    assert f"--video_root '{tmp_path}/my videos' --eval_split train" in out


def test_durations_from_the_videos(prepare, make_clip, tmp_path):
    """Where no file says them; URLs are not opened."""
    make_clip("two_seconds.mkv", num_frames=20)
    write(tmp_path / "broken.mp4", "this is no video")
    content = "video,sentence,start,end,duration\n" + "".join(
        f"{name},One.,1,9,{duration}\n"
        for name, duration in [("two_seconds", ""), ("broken", ""), ("gone", ""), ("https://a.b/c.mp4", "")]
    )
    report, splits = prepare("csv", {"my.csv": content}, videos=tmp_path, num_workers=1)
    assert [(row["video"], row["duration"], row["segments"]) for row in splits["train"]] == [
        ("two_seconds.mkv", pytest.approx(2.0), [[[1.0, pytest.approx(2.0)]]]),
        ("broken.mp4", None, [[[1.0, 9.0]]]),
        ("gone", None, [[[1.0, 9.0]]]),
        ("https://a.b/c.mp4", None, [[[1.0, 9.0]]]),
    ]
    assert report["clipped"] == 1
    assert report["without_duration"] == ["broken", "gone", "https://a.b/c.mp4"]
    assert report["missing"] == ["gone"]
    assert [entry["video"] for entry in report["broken_videos"]] == ["broken"]
    assert "different_durations" not in report


def test_a_video_of_another_length_than_annotated_is_said(prepare, make_clip, tmp_path, capsys):
    """Without `check_videos` too; the annotation stays, and what a file says up to 1 s beside it is no matter."""
    for name, num_frames in (("longer", 50), ("almost", 39), ("same", 30)):
        make_clip(f"{name}.mp4", num_frames=num_frames)
    entry = {"duration": 3.0, "timestamps": [[1, 2]], "sentences": ["A."]}
    report, splits = prepare(
        "activitynet-captions",
        {"train.json": dict.fromkeys(["longer", "almost", "same", "gone"], entry)},
        videos=tmp_path,
        num_workers=1,
    )
    assert report["different_durations"] == [
        {"video": "longer.mp4", "annotated_seconds": 3.0, "own_seconds": pytest.approx(5.0)}
    ]
    assert "broken_videos" not in report
    assert [(row["duration"], row["segments"]) for row in splits["train"]] == [(3.0, [[[1.0, 2.0]]])] * 4
    said = "1 videos differ from their annotated duration by more than 1 s. Their annotations were not changed:\n"
    assert f"{said}  longer.mp4: 5.00 s, annotated as 3.00 s\n" in capsys.readouterr().out


@pytest.fixture
def cut_clip(make_clip):
    """Whole by what it says of itself, but the last tenth of the file is missing."""
    path = make_clip("cut.mp4", num_frames=30, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    return path


def test_check_videos(prepare, make_clip, cut_clip, tmp_path, capsys):
    make_clip("good.mp4", num_frames=30)
    make_clip("longer.mp4", num_frames=41)
    make_clip("almost.mp4", num_frames=39)
    (tmp_path / "empty.mp4").touch()
    names = ["good", "cut", "gone", "longer", "almost", "empty"]
    entry = {"duration": 3.0, "timestamps": [[1, 2]], "sentences": ["A."]}
    report, splits = prepare(
        "activitynet-captions",
        {"train.json": dict.fromkeys(names, entry)},
        videos=tmp_path,
        check_videos=True,
        num_workers=2,
    )
    broken = {item["video"]: item["reason"] for item in report["broken_videos"]}
    assert list(broken) == ["cut.mp4", "empty.mp4"]
    assert "reading stopped at" in broken["cut.mp4"]
    assert "it is empty" in broken["empty.mp4"]
    assert report["different_durations"] == [
        {"video": "longer.mp4", "annotated_seconds": 3.0, "own_seconds": pytest.approx(4.1)}
    ]
    assert report["missing"] == ["gone.mp4"]
    assert [row["duration"] for row in splits["train"]] == [3.0] * 6
    captured = capsys.readouterr()
    assert "2 videos are broken:\n  cut.mp4: Could not read the video" in captured.out
    assert "longer.mp4: 4.10 s, annotated as 3.00 s" in captured.out
    assert "5/5" in captured.err


def test_inspection_reads_all_of_a_video(make_clip, cut_clip):
    """Damage in the middle and a missing end show; whole videos of all kinds do not."""
    whole = [
        make_clip("b_frames.mp4", num_frames=50, codec_options={"bf": "3"}),
        make_clip("uneven.mkv", times_seconds=[0, 0.1, 0.35, 0.4, 1.9]),
        make_clip("late.mp4", num_frames=12, fps=30, start_seconds=1.25),
        make_clip("vp9.webm", num_frames=20, codec="libvpx-vp9"),
        make_clip("stream.ts", num_frames=20, fps=25),
    ]
    assert [inspection_module.inspect_video(path, decode=True).problem for path in whole] == [None] * 5
    assert inspection_module.inspect_video(cut_clip, decode=False) == inspection_module.Inspection(
        pytest.approx(3.0), None
    )
    assert "cut.mp4" in inspection_module.inspect_video(cut_clip, decode=True).problem
    damaged = make_clip("damaged.mp4", num_frames=200, container_options={"movflags": "faststart"})
    content = bytearray(damaged.read_bytes())
    middle = len(content) * 3 // 4
    content[middle : middle + 200] = bytes(200)
    damaged.write_bytes(content)
    inspection = inspection_module.inspect_video(damaged, decode=True)
    assert inspection.duration_seconds == pytest.approx(20.0)
    assert "damaged.mp4" in inspection.problem


def test_inspection_reports_what_nobody_expected(make_clip, monkeypatch):
    monkeypatch.setattr(inspection_module, "check_video", lambda *args: 1 / 0)
    inspection = inspection_module.inspect_video(make_clip(), decode=True)
    assert inspection == (pytest.approx(2.0), "ZeroDivisionError: division by zero")


def halve_or_die(number):
    if number % 10 == 3:
        os._exit(1)
    if number < 0:
        raise ValueError(f"Received {number}")
    return number / 2


def test_a_crash_takes_nothing_along():
    items = [2, 3, 4, 13, 6, 8]
    assert inspection_module.map_isolated(halve_or_die, items, 2, "halving") == [1, None, 2, None, 3, 4]
    with pytest.raises(ValueError, match="Received -1"):
        inspection_module.map_isolated(halve_or_die, [-1, 2, 4], 1, "halving")


def test_a_script_that_does_not_guard_its_main_part(tmp_path, monkeypatch, capfd):
    """Its processes import it, and so call it again: one error, after one process, says so."""
    script_path = tmp_path / "my_script.py"
    script_path.write_text("from processing.data.inspection import map_isolated\nmap_isolated(abs, [1], 1, '')\n")
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    sys.modules["__main__"].__file__ = str(script_path)
    with pytest.raises(RuntimeError, match='call this function under `if __name__ == "__main__":`'):
        inspection_module.map_isolated(abs, [-1, -2, -3], 3, "")
    assert capfd.readouterr().err.count(f'File "{script_path}"') == 1


def test_crashed_videos_are_broken(monkeypatch):
    monkeypatch.setattr(inspection_module, "map_isolated", lambda function, items, *args: [None for _ in items])
    inspections = inspection_module.inspect_videos({"a": "a.mp4"}, Path("videos"), True, 4)
    assert inspections == {"a": (None, "the decoding process crashed or was killed")}


def test_prepared_data_trains(prepare, make_clip, tiny_processor, tmp_path):
    """From a csv and clips to labels, through the collator: fractions of the videos' own durations."""
    from processing.data.collator import TemporalGroundingCollator

    make_clip("v_first.mkv", num_frames=40)
    make_clip("second.mp4", num_frames=25, first_code=100)
    content = 'video,sentence,segment\nfirst,a man,"[1, 3]"\nsecond.mp4,b,"[0, 9]"\nfirst,c,"[[0, 0.4], [2.0, 4.5]]"\n'
    report, _ = prepare("csv", {"my.csv": content}, videos=tmp_path, num_workers=1)
    assert (report["clipped"], report["without_duration"]) == (2, [])
    rows = load_annotations(str(tmp_path / "out"), "train")
    batch = TemporalGroundingCollator(tiny_processor, video_root=tmp_path)([rows[0], rows[1]])
    expected = [[[[0.25, 0.75], [-100, -100]], [[0, 0.1], [0.5, 1]]], [[[0, 1], [-100, -100]], [[-100, -100]] * 2]]
    np.testing.assert_allclose(batch["labels"], expected, atol=1e-6)
    assert batch["sentence_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["pixel_values_videos"].shape == (2, 16, 3, 32, 32)


# Errors: where it is, what came, what was expected.

ENTRY = {"duration": 9.0, "timestamps": [[1, 2]], "sentences": ["A."]}
LINE = {"video": "a.mp4", "sentence": "A.", "segment": [1, 2]}
MALFORMED = [
    ("charades-sta", "a.txt", "A 1 2##One.\nA 1 2 3##Two.\n", "a.txt:2: received 'A 1 2 3##Two.', expected `VIDEO"),
    ("charades-sta", "a.txt", "A 1 2#One.\n", "a.txt:1: .*expected `VIDEO start end##sentence`"),
    ("charades-sta", "a.txt", "A one 2##One.\n", "a.txt:1: received 'one', expected a number"),
    ("charades-sta", "a.txt", "A nan 2##One.\n", "a.txt:1: received 'nan', expected a number"),
    ("charades-sta", "a.txt", b"A 1 2##caf\xe9.\n", "a.txt is not UTF-8 .*Save it as UTF-8"),
    ("charades-sta", "a.txt", "\n", "No sentence of .*a.txt was kept"),
    ("activitynet-captions", "a.json", '{"v_a": ', "a.json .*expected a JSON object with one entry per video"),
    ("activitynet-captions", "a.json", [ENTRY, ENTRY], "a.json .*expected a JSON object with one entry per video"),
    ("activitynet-captions", "a.json", "[]", "a.json: received 'list', expected a JSON object"),
    ("activitynet-captions", "a.json", b'{"\xff": 1}', "a.json is not UTF-8"),
    ("activitynet-captions", "a.json", {"v_a": [1]}, r"a.json: v_a: received '\[1\]', expected an object"),
    ("activitynet-captions", "a.json", {"v_a": {"sentences": []}}, "a.json: v_a: .*expected also 'timestamps'"),
    (
        "activitynet-captions",
        "a.json",
        {"v_a": ENTRY | {"sentences": ["A.", "B."]}},
        "a.json: v_a: received '2 sentences and 1 segments', expected two lists of equal length",
    ),
    (
        "activitynet-captions",
        "a.json",
        {"v_a": ENTRY | {"timestamps": [[1, "x"]]}},
        r"a.json: v_a\[0\]: received 'x', expected a number",
    ),
    ("activitynet-captions", "a.json", {"v_a": ENTRY | {"timestamps": [[1]]}}, r"a.json: v_a\[0\]: .*\[start, end\]"),
    ("activitynet-captions", "a.json", {"v_a": ENTRY | {"sentences": [5]}}, r"v_a\[0\]: .*expected a sentence"),
    ("activitynet-captions", "a.json", {"v_a": ENTRY | {"duration": 0}}, "v_a: .*expected a positive duration"),
    ("tacos", "a.json", {"s1": ENTRY}, "a.json: s1: .*expected also 'fps'"),
    ("tacos", "a.json", {"s1": ENTRY | {"fps": 0, "num_frames": 9}}, "s1: .*a positive number of frames per second"),
    ("qvhighlights", "a.jsonl", [{"vid": "a", "relevant_windows": [[1, 2]]}], "a.jsonl:1: .*expected also 'query'"),
    ("qvhighlights", "a.jsonl", [{"vid": "a", "query": 3}], "a.jsonl:1: received '3', expected a string"),
    (
        "qvhighlights",
        "a.jsonl",
        [{"vid": "a", "query": "A.", "relevant_windows": [[1, 2], [True, 3]]}],
        "a.jsonl:1: received 'True', expected a number",
    ),
    ("jsonl", "a.jsonl", '{"video": "a.mp4"\n', "a.jsonl:1 .*expected one JSON object per line"),
    ("jsonl", "a.jsonl", "1\n", "a.jsonl:1: .*expected one JSON object per line"),
    ("jsonl", "a.jsonl", "[\n{}\n]", "a.jsonl:1: .*expected one JSON object per line; write each object of the list"),
    ("jsonl", "a.jsonl", [LINE | {"sentence": 5}], "a.jsonl:1: received '5', expected a string as 'sentence', or"),
    ("jsonl", "a.jsonl", [LINE | {"sentence": None}], "a.jsonl:1: received 'None', expected a string as 'sentence'"),
    ("jsonl", "a.jsonl", '{"video": "a", "sentence": "\\uD83D"}\n', "a.jsonl:1 .*surrogates.* one JSON object per"),
    ("jsonl", "a.jsonl", f'{{"video": 1{5000 * "0"}}}\n', "a.jsonl:1 .*5001 digits.* one JSON object per line"),
    ("activitynet-captions", "a.json", 100_000 * "[", "a.json .*recursion.*expected a JSON object with one entry"),
    ("jsonl", "a.jsonl", [LINE, {"video": "a.mp4", "sentence": "A."}], "a.jsonl:2: .*expected also 'segment'"),
    ("jsonl", "a.jsonl", [{"sentence": "A.", "segment": [1, 2]}], "a.jsonl:1: .*expected also 'video'"),
    ("jsonl", "a.jsonl", [LINE | {"segment": [[]]}], r"a.jsonl:1: .*expected `\[start, end\]`"),
    ("jsonl", "a.jsonl", [LINE | {"segment": [[1, 2], 3]}], r"a.jsonl:1: .*expected `\[start, end\]`"),
    ("jsonl", "a.jsonl", [LINE | {"video": ""}], "a.jsonl:1: received '', expected a string that is not empty"),
    (
        "jsonl",
        "a.jsonl",
        [LINE | {"duration": 9}, LINE, LINE | {"duration": 7.9}],
        "a.jsonl:3: received 'the duration 7.9', expected 9.0 as above for a.mp4, within 1 s or 1 %",
    ),
    (
        # Each is a second from the one before, and the last two from the first.
        "jsonl",
        "a.jsonl",
        [LINE | {"duration": duration} for duration in (9, 10, 11)],
        "a.jsonl:3: received 'the duration 11.0', expected 10.0 as above for a.mp4",
    ),
    ("jsonl", "a.jsonl", [LINE | {"split": "train"}, LINE], "a.jsonl:2: received 'no split', expected a split for"),
    ("jsonl", "a.jsonl", [LINE | {"split": 3}], "a.jsonl:1: received '3', expected a string that is not empty"),
    ("csv", "a.csv", "video,sentence,start,end,split\na,A,1,2,../up\n", "a.csv:2: received '../up', expected a split"),
    (
        "csv",
        "a.csv",
        "video,sentence,start,end,split\na,A,1,2,\nb,B,1,2,test\n",
        "a.csv:3: received 'test', expected a split for each sentence or for no sentence",
    ),
    (
        "csv",
        "a.csv",
        "video,sentence,start,end,start\na,A,1,2,3\n",
        "a.csv: received '2 columns `start`', expected one of each name",
    ),
    ("csv", "a.csv", "", "a.csv: .*expected a column `video`"),
    ("csv", "a.csv", "video,text,segment\na,b,c\n", r"a.csv: .*\['video', 'text', 'segment'\].*`sentence`"),
    ("csv", "a.csv", "video|sentence|segment\n", "a.csv: .*column `video`, separated by commas"),
    ("csv", "a.csv", "video,sentence,start\n", "a.csv: .*a column `segment` or `segments` or `start` and `end`"),
    ("csv", "a.csv", "video,sentence,segment\na,A.,[1, 2]\n", "a.csv:2: received '4 cells', expected 3, as in"),
    ("csv", "a.csv", "video,sentence,segment\na,A.,1-2\n", r"a.csv:2 .*received '1-2', expected `\[start, end\]`"),
    ("csv", "a.csv", 'video,sentence,segment\na,"A.,[1]\n', "a.csv:2: received 'unexpected end of data', expected"),
    ("csv", "a.csv", "video,sentence,start,end\na,A.,1,\n", "a.csv:2: received '', expected a number"),
    ("csv", "a.csv", "video,sentence,start,end,duration\na,A.,1,2,x\n", "a.csv:2: received 'x', expected a number"),
    ("csv", "a.csv", "video;sentence;start;end\na;A;1,5;2;3\n", "a.csv:2: received '5 cells'.*a cell with semicolons"),
    ("csv", "a.csv", "video;sentence;start;end\na;A;1.000,5;2\n", "a.csv:2: received '1.000,5', expected a number"),
    ("csv", "a.csv", 'video,sentence,start,end\na,A,"1,5",2\n', "a.csv:2: received '1,5', expected a number"),
    ("csv", "a.csv", "video,sentence,start,end\na,A,0:61,2\n", "received '0:61', .*a time like 0:01 .*the video 'a'"),
    ("csv", "a.csv", "video,sentence,start,end\na,A,1:60:00,2\n", "received '1:60:00', expected a number of seconds"),
    ("jsonl", "a.jsonl", [LINE, LINE | {"segment": [None, 2]}], "a.jsonl:2: received 'None', .*the video 'a.mp4'"),
    ("jsonl", "a.jsonl", [LINE, LINE | {"segment": [1, math.nan]}], "a.jsonl:2: received 'nan', .*the video 'a.mp4'"),
    ("jsonl", "a.jsonl", [LINE | {"segment": ["0:1", 2]}], "a.jsonl:1: received '0:1', expected a number of seconds"),
    ("jsonl", "a.jsonl", [LINE | {"segment": ["-0:10", 2]}], "a.jsonl:1: received '-0:10', expected a number"),
    ("tacos", "a.json", {"s1": ENTRY | {"fps": 1, "num_frames": 9, "timestamps": [["0:01", 2]]}}, "received '0:01'"),
    ("charades-cd", "a.json", {"A": ENTRY | {"duration": None}, "B": {}}, "a.json: B: .*expected also 'duration'"),
    ("activitynet-cd", "a.json", {"A": {"duration": 3, "sentences": []}}, "a.json: A: .*expected also 'timestamps'"),
    ("timelens-bench", "a.json", {"A": CHANGED}, r"A: received .*'sentences', 'timestam.*, expected also 'queries'"),
    ("timelens-bench", "a.json", {"A": [1]}, r"a.json: A: received '\[1\]', expected an object with `queries`"),
    ("qv-m2", "a.jsonl", [QVHIGHLIGHTS[3]], "a.jsonl:1: .*expected also 'relevant_windows'"),
    ("ego4d-nlq", "a.json", nlq(QUERY | {"query": 7}), r"language_queries\[0\]: received '7', expected a string as"),
    ("ego4d-nlq", "a.json", nlq({"query": "Where?"}), r"language_queries\[0\]: .*expected also 'clip_start_sec'"),
    ("ego4d-nlq", "a.json", nlq(QUERY, video_end_sec=100), r"clips\[0\]: received '0.0', expected a positive"),
    ("ego4d-nlq", "a.json", nlq(QUERY, clip_uid=None), r"clips\[0\]: received 'None', expected a string"),
    ("ego4d-nlq", "a.json", {"videos": [{"clips": 3}]}, r"a.json: videos\[0\]: clips: received '3', expected a list"),
    ("ego4d-nlq", "a.json", {"videos": [[]]}, r"a.json: videos\[0\]: received '\[\]', expected an object"),
    ("ego4d-nlq", "a.json", {"A": ENTRY}, r"a.json: received .*'A'.*, expected also 'videos'"),
    ("ego4d-nlq", "a.json", "[]", r"a.json: received '\[\]', expected Ego4D's JSON object"),
    ("didemo", "a.json", '[{"video": "a", "when": 1}]', r"a.json\[0\]: .*'when'.*, expected also 'description'"),
    ("didemo", "a.json", '[{"video": "a", "description": "A."}]', r"a.json\[0\]: .*expected also 'times'"),
    ("didemo", "a.json", '[{"video": "a", "description": "A.", "times": []}]', r"\[0\]: received '\[\]', expected"),
    ("didemo", "a.json", {"A": ENTRY}, "a.json: received .*expected a list of objects"),
    ("csv", "a.csv", b"video,sentence,start,end\na,caf\xe9,1,2\n", "a.csv is not UTF-8 .*in Excel: 'CSV UTF-8'"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "name", "content", "message"), MALFORMED)
def test_malformed_files(prepare, tmp_path, format, name, content, message):
    with pytest.raises(ValueError, match=message):
        prepare(format, {name: content})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,seconds\nA,3\n", r"d.csv: .*\['id', 'seconds'\].*a column `length` or `duration`"),
        ("name,length\nA,3\n", "d.csv: .*a column `id`"),
        ("id,length\nA,-3\n", "d.csv:2: received '-3', expected a positive duration"),
        ("id,length\nA,3\nA,4.1\n", "d.csv:3: received '4.1', expected the same duration as above for A"),
    ],
)
def test_malformed_durations(prepare, content, message):
    with pytest.raises(ValueError, match=message):
        prepare("charades-sta", {"train.txt": "A 1 2##One.\n"}, {"d.csv": content})


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"format": "charades"}, ValueError, "format='charades'; expected one of"),
        ({"repair_reversed": "flip"}, ValueError, "repair_reversed='flip'; expected 'drop' or 'swap'"),
        ({"num_workers": 0}, ValueError, "num_workers=0; expected at least 1"),
        ({"annotations": ["nowhere.txt"]}, FileNotFoundError, "The file nowhere.txt does not exist"),
        ({"durations": ["nowhere.csv"]}, FileNotFoundError, "The file nowhere.csv does not exist"),
        ({"videos": "nowhere"}, FileNotFoundError, "The folder nowhere does not exist"),
        ({"check_videos": True}, ValueError, "--check_videos without --videos"),
        ({"split": "../up"}, ValueError, "--split '../up'; expected letters, digits and underscores"),
        ({"annotations": 2}, ValueError, r"two files of the same split: train \(a.txt\), train \(a.txt\)"),
        ({"validation_share": 1.0}, ValueError, "--validation_share 1.0; expected a share from 0 to below 1"),
        ({"test_share": -0.1}, ValueError, "--test_share -0.1; expected a share from 0 to below 1"),
        ({"test_share": 0.5, "validation_share": 0.5}, ValueError, "which leave no training videos"),
        ({"test_share": 0.5}, ValueError, "1 videos are too few to draw test from and keep a training split"),
        (
            {"test_share": 0.5, "split": "dev"},
            ValueError,
            "require a split train and no other .* the splits dev. Omit",
        ),
        ({"annotations": 2, "split": "x"}, ValueError, "--split x for 2 files"),
    ],
)
def test_arguments(tmp_path, kwargs, error, message):
    path = write(tmp_path / "a.txt", "A 1 2##One.\n")
    arguments = {"format": "charades-sta", "annotations": [path], "output": tmp_path / "out"} | kwargs
    if isinstance(arguments["annotations"], int):
        arguments["annotations"] = [path] * arguments["annotations"]
    with pytest.raises(error, match=message):
        script.prepare_dataset(**arguments)
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path, monkeypatch, capsys):
    train = write(tmp_path / "charades_sta_train.txt", "A 1.0 2.0##One.\nA 2.0 1.0##Two.\nB 1.0 2.0##Three.\n")
    (tmp_path / "B.mp4").touch()
    durations = write(tmp_path / "d.csv", "id,length\nA,30\nB,30\n")
    command = ["prepare_dataset.py", "--format", "charades-sta", "--annotations", str(train), "--split", "dev"]
    command += ["--durations", str(durations), "--videos", str(tmp_path), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--repair_reversed", "swap"])
    assert importlib.import_module("prepare_dataset").main() == 0
    assert load_annotations(str(tmp_path / "out"), "dev")["segments"][0] == [[[1.0, 2.0]], [[1.0, 2.0]]]
    printed = capsys.readouterr().out
    assert "dev (charades_sta_train.txt): 3 sentences read, 3 kept, of 2 videos; 0 clipped" in printed
    assert "1 of 2 videos are missing: A.mp4" in printed
    out = tmp_path / "out"
    assert f"evaluate MODEL {out} --split dev --video_root {tmp_path}" in printed and "To train" not in printed


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    path = write(tmp_path / "a.csv", "video,sentence\n")
    arguments = ["--format", "csv", "--annotations", str(path), "--output", str(tmp_path / "out")]
    assert importlib.import_module("prepare_dataset").main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prepare_dataset.py: a.csv: received \"the columns ['video', 'sentence']\"")
