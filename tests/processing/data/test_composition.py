"""
Composing: clips whose frames carry numbers, so that each frame of a composed video says which clip, and which frame of
it, is shown.
"""

import csv
import hashlib
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import write_clip
from datasets import load_from_disk

from processing.commands.main import main
from processing.data.composition import CompositionSettings, compose, read_clip_table
from processing.video_io import probe, read_frames


LABELS = [f"Label{letter}" for letter in "ABCDEFGH"]
GROUPS = ["g01", "g02", "g03", "g04"]
FRAMES = 8  # of each clip, numbered on from clip to clip: 4 groups of 8 labels have the 256 numbers there are
FEW = {"num_train": 8, "num_test": 4}


def write_table(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of clips at 10 frames a second, and their rows."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for g, group in enumerate(GROUPS):
        for k, label in enumerate(LABELS):
            name = f"{group}_{label}.mp4"
            write_clip(folder / name, FRAMES, first_code=(8 * g + k) * FRAMES)
            rows.append({"video": name, "label": label, "group": group})
    return folder, rows


@pytest.fixture
def composed(folder, tmp_path):
    """`composed(name="out", rows=None, num_workers=1, **options)`: compose a data set and return its folder."""
    clips, all_rows = folder

    def make(name: str = "out", rows: list[dict] | None = None, num_workers: int = 1, **options) -> Path:
        table = write_table(tmp_path / f"{name}.csv", all_rows if rows is None else rows)
        compose(table, clips, tmp_path / name, CompositionSettings(**FEW | options), num_workers)
        return tmp_path / name

    return make


def shown(path: Path, read_codes) -> np.ndarray:
    """`(frames, 3)`: number of the group, the label and the frame that each frame of a video shows."""
    num_frames = round(probe(path).duration_seconds * 10)
    codes = np.array(read_codes(read_frames(path, (np.arange(num_frames) + 0.5) / 10)))
    return np.stack([codes // 64, codes // FRAMES % 8, codes % FRAMES], axis=1)


def test_segments_are_exact_to_the_frame_and_groups_never_meet(composed, read_codes):
    out = composed()
    groups_of, gaps, distractors = {}, 0, 0
    for split, count in (("train", 8), ("test", 4)):
        rows = load_from_disk(str(out))[split]
        assert len(rows) == count
        for row in rows:
            frames = shown(out / row["video"], read_codes)
            assert row["duration"] == pytest.approx(len(frames) / 10)
            assert len(set(frames[:, 0])) == 1
            groups_of.setdefault(split, set()).add(int(frames[0, 0]))
            assert 3 <= len(row["sentences"]) <= 6 and len(set(row["sentences"])) == len(row["sentences"])
            asked = np.zeros(len(frames), dtype=bool)
            for sentence, ((start_seconds, end_seconds),) in zip(row["sentences"], row["segments"], strict=True):
                first, last = start_seconds * 10, end_seconds * 10
                assert first == pytest.approx(round(first)) and last == pytest.approx(round(last))
                part = np.arange(round(first), round(last))
                # The clip from its first frame to its last one, and no other frame of its label in the video.
                label = [f"label {letter}" for letter in "abcdefgh"].index(sentence)
                assert np.flatnonzero(frames[:, 1] == label).tolist() == part.tolist()
                assert frames[part, 2].tolist() == list(range(FRAMES))
                asked[part] = True
            others = frames[~asked]
            gaps += len(others)
            whole = "".join(map(str, range(FRAMES)))
            distractors += "".join(map(str, others[:, 2])).count(whole)
    assert not groups_of["train"] & groups_of["test"] and len(groups_of["train"] | groups_of["test"]) == 4
    assert gaps and distractors


def test_the_same_seed_gives_the_same_files(composed):
    def digests(out: Path) -> dict:
        files = [*sorted((out / "videos").iterdir()), out / "generation.json"]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    first, again, other = composed("a"), composed("b", num_workers=2), composed("c", seed=1)
    assert digests(first) == digests(again)
    assert not set(digests(first).values()) & set(digests(other).values())
    for split in ("train", "test"):
        assert load_from_disk(str(first))[split][:] == load_from_disk(str(again))[split][:]


def test_groups_are_where_they_are_asked_for(composed, read_codes):
    out = composed(test_groups=["g02"], validation_groups=["g03", "g04"], num_validation=4)
    rows = load_from_disk(str(out))
    found = {
        split: {int(shown(out / row["video"], read_codes)[0, 0]) for row in rows[split]}
        for split in ("train", "validation", "test")
    }
    assert found == {"train": {0}, "validation": {2, 3}, "test": {1}}


def test_only_clips_of_a_scene_are_joined(folder, composed, read_codes):
    rows = [row | {"scene": str(LABELS.index(row["label"]) // 4)} for row in folder[1]]
    out = composed(rows=rows, min_clips=2, max_clips=3)
    scenes = [set(shown(out / row["video"], read_codes)[:, 1] // 4) for row in load_from_disk(str(out))["train"]]
    assert all(len(scene) == 1 for scene in scenes) and {0} in scenes and {1} in scenes


def test_sentences_stand_for_labels_and_a_clip_without_one_is_never_asked_for(folder, composed):
    rows = [row | {"sentence": "" if row["label"] == "LabelA" else f"see {row['label']}"} for row in folder[1]]
    out = composed(rows=rows, min_clips=7, max_clips=7, max_distractors=1)
    for row in load_from_disk(str(out))["train"]:
        assert sorted(row["sentences"]) == [f"see Label{letter}" for letter in "BCDEFGH"]


def test_of_the_clips_of_a_label_one_with_a_sentence_is_asked_for(folder, composed, read_codes):
    """One group of everything: each label has four clips, of which the last alone has a sentence."""
    rows = [row | {"group": "all", "sentence": "see it" * (row["group"] == "g04")} for row in folder[1]]
    rows += [row | {"group": "rest", "video": f"{row['video'][:-4]}"} for row in rows]
    out = composed(rows=rows, test_groups=["rest"], max_gap_seconds=0, max_distractors=0)
    for row in load_from_disk(str(out))["train"]:
        assert set(shown(out / row["video"], read_codes)[:, 0]) == {3} and set(row["sentences"]) == {"see it"}


def test_without_gaps_and_distractors_clips_follow_each_other(composed, read_codes):
    out = composed(max_gap_seconds=0, max_distractors=0, min_clips=8, max_clips=8)
    for row in load_from_disk(str(out))["test"]:
        frames = shown(out / row["video"], read_codes)
        assert len(frames) == 64 and set(frames[:, 1]) == set(range(8))
        assert [start for ((start, _),) in row["segments"]] == pytest.approx([0.8 * k for k in range(8)])


def test_gaps_are_no_longer_than_asked_for(composed):
    lengths = set()
    out = composed(max_gap_seconds=0.3, max_distractors=0, num_train=16)
    for row in load_from_disk(str(out))["train"]:
        edges = [0.0, *(time for pair in row["segments"] for time in pair[0]), row["duration"]]
        lengths |= {round(10 * (after - before)) for before, after in zip(edges[::2], edges[1::2], strict=True)}
    assert lengths == {0, 1, 2, 3}


def test_another_rate_and_size(composed):
    """A rate of 5 shows every second frame; the picture is cropped in the middle, not squeezed."""
    out = composed(fps=5, size=(48, 32), max_gap_seconds=0, max_distractors=0)
    row = load_from_disk(str(out))["test"][0]
    ((start_seconds, end_seconds),) = row["segments"][0]
    assert end_seconds - start_seconds == pytest.approx(0.8)
    frames = read_frames(out / row["video"], np.array([0.1, 0.3, 0.5, 0.7]))
    assert frames.shape == (4, 48, 32, 3)
    # Of 64 columns the middle 32: the left half carries the low digit, which counts up from frame to frame.
    low = np.rint((frames[:, :, :8].mean(axis=(1, 2, 3)) - 20) / 14)
    assert np.diff(low).tolist() == [2, 2, 2]


def test_the_script_takes_a_table(folder, tmp_path, capsys, caplog, monkeypatch):
    """And says where the data set is, what is in it, and what to type next."""
    monkeypatch.setattr(logging.getLogger("processing"), "propagate", True)
    table = write_table(tmp_path / "clips.csv", [row | {"note": "mine"} for row in folder[1]])
    out = tmp_path / "my data"
    arguments = f"--table {table} --videos {folder[0]} --num_train 2 --num_test 1 --num_workers 1 --test_groups g04"
    assert main(["compose", *arguments.split(), "--output_dir", str(out), "--size", "24", "32"]) == 0
    rows = load_from_disk(str(out))
    sentences = {split: sum(map(len, rows[split]["sentences"])) for split in ("train", "test")}
    assert capsys.readouterr().out.splitlines() == [
        f"train: 2 videos, {sentences['train']} sentences, groups used: 3",
        f"test: 1 videos, {sentences['test']} sentences, groups used: 1",
        f"Data set saved to {out}, videos to {out / 'videos'}.",
        f"To train on it: scada train RECIPE.json --dataset '{out}' --eval_split test",
        f"To evaluate a model on it: scada evaluate MODEL '{out}' --split test",
    ]
    assert "clips.csv: ignoring fields that the format does not have: note." in caplog.messages
    assert [len(rows[split]) for split in ("train", "test")] == [2, 1] and "validation" not in rows
    assert read_frames(tmp_path / "my data" / rows["test"][0]["video"], [0.0]).shape == (1, 24, 32, 3)


def test_the_script_says_what_is_wrong_in_one_line(folder, tmp_path, capsys):
    arguments = f"--table {tmp_path / 'gone.csv'} --videos {folder[0]} --output_dir {tmp_path / 'out'}"
    assert main(["compose", *arguments.split()]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scada compose: ") and "gone.csv" in line


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"group": ""}, {}, "a cell is empty"),
        ({"video": "g01_LabelB.mp4"}, {}, "clips.csv:3: the clip g01_LabelB.mp4 is listed twice"),
        ({"video": "nothing.mp4"}, {}, "Could not find the video 'nothing.mp4'"),
        ({}, {"test_groups": ["g09"]}, r"\['g09'\], but the table only has \['g01',"),
        (
            {},
            {"test_groups": ["g01"], "validation_groups": ["g01"], "num_validation": 1},
            "for both validation and test",
        ),
        ({}, {"test_groups": GROUPS}, "No group remains for training out of 4"),
        ({}, {"validation_groups": ["g01"]}, "num_validation=0"),
        ({}, {"min_clips": 8, "max_clips": 8}, "have 8 labels, 8 with a sentence. Each video needs 9"),
        ({}, {"min_clips": 4, "max_clips": 3}, "`max_clips` must be at least 4, got 3"),
        ({}, {"num_train": 0}, "`num_train` must be at least 1, got 0"),
        ({}, {"size": (47, 64)}, "two even numbers"),
        ({}, {"fps": 1}, "lasts 0.800 s, less than one frame at 1 frames per second"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(folder, tmp_path, change, options, message):
    clips, rows = folder
    table = write_table(tmp_path / "clips.csv", [rows[0] | change, *rows[1:]])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compose(table, clips, tmp_path / "out", CompositionSettings(**FEW | options), num_workers=1)
    assert not (tmp_path / "out").exists()


def test_a_table_without_groups_is_refused(folder, tmp_path):
    table = write_table(tmp_path / "clips.csv", [{"video": "g01_LabelA.mp4", "label": "LabelA"}])
    with pytest.raises(ValueError, match="a column `group`"):
        compose(table, folder[0], tmp_path / "out")


def test_a_folder_that_is_in_use_is_left_as_it_is(composed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or empty folder"):
        composed()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_pages_tables_are_those_of_the_folders_as_users_have_them(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for name in (
        "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "UCF-101/HandstandPushups/v_HandStandPushups_g01_c02.avi",
        "kinetics/train/air drumming/-0q0nBZ3Jxg_000010_000020.mp4",
        "kinetics/val/zumba/zzzzzzzzzzz_000001_000011.mp4",
        "splits/brush_hair_test_split1.txt",
        "splits/brush_hair_test_split2.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a.avi 1 \nb.avi 2 \nc.avi 0 \n" if "split1" in name else "a.avi 2 \n")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "data.md", "exec"), {})
    found = {
        name: [(clip.video, clip.sentence, clip.group) for clip in read_clip_table(tmp_path / f"{name}.csv")]
        for name in ("ucf101", "hmdb51", "kinetics")
    }
    assert found == {
        "ucf101": [
            ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "apply eye makeup", "g08"),
            ("HandstandPushups/v_HandStandPushups_g01_c02.avi", "handstand pushups", "g01"),
        ],
        "hmdb51": [("brush_hair/a.avi", "brush hair", "train"), ("brush_hair/b.avi", "brush hair", "test")],
        "kinetics": [
            ("train/air drumming/-0q0nBZ3Jxg_000010_000020.mp4", "air drumming", "train"),
            ("val/zumba/zzzzzzzzzzz_000001_000011.mp4", "zumba", "val"),
        ],
    }
