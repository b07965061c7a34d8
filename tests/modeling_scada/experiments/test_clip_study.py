"""The study on composed clips: folds by groups, the floor, pairs, and runs whose model another group chooses."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import write_clip
from datasets import Dataset, DatasetDict, load_from_disk

from modeling_scada.experiments import clip_study as study_clips
from modeling_scada.experiments import study, study_results


REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.append(str(REPOSITORY / "scripts"))

import study_clips as script  # noqa: E402


GROUPS = [f"S{number}" for number in range(1, 11)]


@pytest.mark.parametrize("num_folds", [2, 3, 10])
def test_every_group_is_tested_once_and_chosen_by_none_that_is(num_folds):
    folds = study_clips.assign_folds(GROUPS, num_folds, seed=0)
    assert len(folds) == num_folds
    assert sorted(group for tested, _ in folds for group in tested) == sorted(GROUPS)
    sizes = {len(tested) for tested, _ in folds}
    assert max(sizes) - min(sizes) <= 1
    for tested, chosen_by in folds:
        assert len(chosen_by) == 1 and not set(chosen_by) & set(tested)
    assert folds == study_clips.assign_folds(GROUPS[::-1], num_folds, seed=0)
    assert folds != study_clips.assign_folds(GROUPS, num_folds, seed=1)


@pytest.mark.parametrize(("groups", "num_folds"), [(GROUPS, 1), (GROUPS, 11), (GROUPS[:2], 2)])
def test_folds_that_leave_nothing_are_refused(groups, num_folds):
    with pytest.raises(ValueError, match=f"Received {num_folds} folds of {len(groups)} groups"):
        study_clips.assign_folds(groups, num_folds, seed=0)


def test_the_baseline_is_the_constant_segment_that_is_best_in_training(tmp_path):
    """In training one near [0.2, 0.4] of a video is right two times of three; what it reaches in test is by hand."""

    def rows(*segments: tuple[float, float]) -> Dataset:
        return Dataset.from_list(
            [{"duration": 20.0, "sentences": ["x"], "segments": [[[20 * a, 20 * b]]]} for a, b in segments]
        )

    train, test = rows((0.2, 0.4), (0.2, 0.4), (0.8, 1.0)), rows((0.2, 0.4), (0.2, 0.5), (0.6, 0.8), (0.0, 0.1))
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "data")
    baseline = study_clips.constant_baseline(tmp_path / "data")
    start, end = baseline["segment"]
    overlap = (min(end, 0.4) - max(start, 0.2)) / (max(end, 0.4) - min(start, 0.2))
    assert overlap >= 0.5 - 1e-9
    by_hand = [
        max(0.0, min(end, b) - max(start, a)) / (max(end, b) - min(start, a)) if min(end, b) > max(start, a) else 0.0
        for a, b in ((0.2, 0.4), (0.2, 0.5), (0.6, 0.8), (0.0, 0.1))
    ]
    assert baseline["R1@0.5"] == 100 * sum(iou >= 0.5 - 1e-9 for iou in by_hand) / 4
    assert baseline["mIoU"] == pytest.approx(100 * sum(by_hand) / 4, abs=0.01)


def test_differences_are_of_one_fold_and_seed():
    def row(mode: str, fold: int, seed: int, value: float) -> dict:
        return {"backbone": "b", "mode": mode, "budget": "equal_steps", "fold": fold, "seed": seed, "R1@0.5": value}

    rows = [row("frozen", 0, 0, 10), row("frozen", 1, 0, 30), row("frozen", 2, 0, 20)]
    rows += [row("both", 1, 0, 34), row("both", 0, 0, 12), row("both", 2, 1, 99), {"mode": "constant", "fold": 0}]
    # Of +4 and +2: mean 3, deviation 1.41, t = 3 / (1.41 / sqrt(2)).
    assert study_results.compare_to_frozen(rows) == ["both - frozen: +3.0 ± 1.4 over 2 pairs, t = 3.00"]


@pytest.fixture
def clips(tmp_path):
    lines = ["video,label,group"]
    for group in range(4):
        for label in range(4):
            name = f"s{group}_{label}.mp4"
            write_clip(tmp_path / name, 10, height=32, width=32, first_code=(4 * group + label) * 10)
            lines.append(f"{name},label {'abcd'[label]},s{group}")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_fold_runs_and_goes_on_where_it_was(clips, monkeypatch):
    recipe = json.loads((REPOSITORY / "hub_configs" / "recipes" / "moving_shapes.json").read_text()) | {
        "validation_split": "validation",
        "save_strategy": "steps",
        "save_only_model": True,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "validation_R1@0.5",
    }
    (clips / "recipe.json").write_text(json.dumps(recipe))
    argv = f"{clips}/recipe.json --table {clips}/clips.csv --videos {clips} --output_dir {clips}/out --max_steps 8"
    argv += " --modes outer --folds 2 --only_folds 1 --num_train 3 --num_validation 2 --num_test 2"
    script.main(argv.split())
    rows = study.read_jsonl_rows(clips / "out" / "results.jsonl")
    assert [(row["mode"], row["fold"]) for row in rows] == [("outer", 1), ("constant", 1)]
    assert rows[-1]["R1@0.5"] >= 0
    data = load_from_disk(str(clips / "out" / "fold_1" / "data"))
    assert [len(data[split]) for split in ("train", "validation", "test")] == [3, 2, 2]
    for row in rows[:-1]:
        folder = clips / "out" / "fold_1" / "runs" / "moving_shapes_backbone" / f"{row['mode']}_equal_steps_0"
        best_step = json.loads((folder / "trainer_state.json").read_text())["best_global_step"]
        assert [point["step"] for point in row["curve"]] == [2, 4, 6, 8]
        highest = max(point["validation_R1@0.5"] for point in row["curve"])
        (best,) = (point for point in row["curve"] if point["step"] == best_step)
        assert best["validation_R1@0.5"] == highest
        # What is tested in the end is the model that was chosen.
        assert {name: best[name] for name in study.METRICS} == {name: row[name] for name in study.METRICS}
    assert "| moving_shapes_backbone | outer |" in (clips / "out" / "table.md").read_text()
    monkeypatch.setattr(study, "train", None)  # a second run of the same would fail
    script.main(argv.split())
    assert study.read_jsonl_rows(clips / "out" / "results.jsonl") == rows


def test_without_gaps_and_distractors_the_asked_clips_tile_the_video(clips, monkeypatch):
    monkeypatch.setattr(study_clips, "run_study", lambda *args: [])
    for name in ("as_table", "draw_curves"):  # of no runs
        monkeypatch.setattr(script, name, lambda *args: "")
    argv = f"{REPOSITORY}/hub_configs/recipes/clips_efficientnet_lite0.json --table {clips}/clips.csv --videos {clips}"
    argv += f" --output_dir {clips}/out --folds 2 --only_folds 0 --num_train 4 --num_validation 2 --num_test 2"
    script.main([*argv.split(), "--max_distractors", "0", "--max_gap_seconds", "0"])
    for rows in load_from_disk(str(clips / "out" / "fold_0" / "data")).values():
        for row in rows:
            edges = [0.0, *(segments[0][1] for segments in row["segments"])]
            assert [segments[0] for segments in row["segments"]] == [list(pair) for pair in pairwise(edges)]
            assert edges[-1] == row["duration"]


def test_a_recipe_without_a_validation_split_is_refused(clips):
    argv = f"{REPOSITORY}/hub_configs/recipes/moving_shapes.json --table {clips}/clips.csv --videos {clips}"
    argv += f" --output_dir {clips}/out"
    with pytest.raises(ValueError, match="validation_split"):
        script.main(argv.split())
