"""The study: what a mode stands for, means over seeds, and a run that goes on where it was."""

import json
import statistics
import sys
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "scripts"))

import study  # noqa: E402


def row(mode: str, seed: int, value: float, budget: str = "equal_steps", seconds: float = 10.0) -> dict:
    metrics = dict.fromkeys(study.METRICS, value)
    return {
        "mode": mode,
        "budget": budget,
        "seed": seed,
        "steps": 5,
        "train_seconds": seconds,
        "trainable_backbone": 1500,
        **metrics,
    }


def test_a_mode_may_carry_arguments_of_the_script():
    assert study.arguments_of("frozen") == {"tuning": "frozen"}
    expected = {"tuning": "scada", "scada_branches": "both", "reduction": 4, "inner_layers": "last 1"}
    assert study.arguments_of('both/reduction=4/inner_layers="last 1"') == expected


@pytest.mark.parametrize("mode", ["nothing", "both/reduction", ""])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ValueError, match="expected one of"):
        study.arguments_of(mode)


def test_every_mode_is_one_that_the_script_takes():
    import run_temporal_grounding as script
    from transformers import HfArgumentParser

    for mode in study.MODES:
        arguments = [f"--{name}={value}" for name, value in study.arguments_of(mode).items()]
        (parsed,) = HfArgumentParser(script.ModelArguments).parse_args_into_dataclasses(arguments)
        assert parsed.tuning == study.MODES[mode]["tuning"]


def test_mean_and_deviation_over_the_seeds():
    rows = [row("full", 0, 80.0), row("both", 1, 60.0), row("both", 0, 50.0), row("both", 0, 90.0, "equal_time")]
    summary = study.summarise(rows)
    assert [(cells["mode"], cells["budget"], cells["seeds"]) for cells in summary] == [
        ("full", "equal_steps", 1),
        ("both", "equal_steps", 2),
        ("both", "equal_time", 1),
    ]
    assert summary[1]["R1@0.5"] == 55.0
    assert summary[1]["R1@0.5_sd"] == pytest.approx(statistics.stdev([50.0, 60.0]))
    assert "55.0 ± 7.1" in study.as_table(summary).splitlines()[3]


def test_the_time_that_others_get_is_that_of_equal_steps():
    rows = [row("full", 0, 1, seconds=10), row("full", 1, 1, seconds=20), row("full", 0, 1, "equal_time", 99)]
    assert study.mean_seconds(rows, "full") == 15


def test_a_study_runs_and_goes_on_where_it_was(tmp_path, monkeypatch):
    argv = ["study.py", str(REPOSITORY / "hub_configs" / "moving_shapes.json"), "--output_dir", str(tmp_path)]
    argv += ["--modes", "frozen", "--max_steps", "2", "--num_train", "4", "--num_test", "2", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", argv)
    study.main()
    (first,) = study.read_rows(tmp_path / "results.jsonl")
    assert (first["mode"], first["steps"], first["trainable_backbone"]) == ("frozen", 2, 0)
    evaluation = json.loads((tmp_path / "runs" / "frozen_equal_steps_0" / "eval_results.json").read_text())
    assert first["mIoU"] == round(evaluation["eval_mIoU"], 2)
    assert (tmp_path / "study.png").stat().st_size > 1000
    assert "| frozen | equal steps | 1 |" in (tmp_path / "table.md").read_text()

    monkeypatch.setattr(study, "train", None)  # a second run of the same would fail
    study.main()
    assert study.read_rows(tmp_path / "results.jsonl") == [first]


def test_each_mode_on_each_backbone(tmp_path, monkeypatch):
    backbones = [tmp_path / "backbones" / name for name in ("c3d", "i3d")]
    for folder in backbones:
        folder.mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_dict.json").touch()
    seen = []

    def train(recipe, data_dir, run_dir, **overrides):
        seen.append(overrides)
        return {name: value for name, value in row("", 0, 50.0).items() if name not in ("mode", "budget", "seed")}

    monkeypatch.setattr(study, "train", train)
    argv = ["study.py", str(REPOSITORY / "hub_configs" / "moving_shapes.json"), "--output_dir", str(tmp_path)]
    argv += ["--modes", "frozen", "both/reduction=4", "--seeds", "0", "--num_workers", "1"]
    monkeypatch.setattr(sys, "argv", [*argv, "--backbones", *map(str, backbones)])
    study.main()
    found = [(run["tuning"], run.get("reduction"), run["video_model"]) for run in seen]
    assert found == [
        (tuning, reduction, str(folder))
        for folder in backbones
        for tuning, reduction in (("frozen", None), ("scada", 4))
    ]
    monkeypatch.setattr(sys, "argv", [*argv, "full", "--backbones", str(backbones[0]), "--equal_time", "frozen"])
    with pytest.raises(SystemExit):
        study.main()
