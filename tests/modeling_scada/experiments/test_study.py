"""The study: what a mode stands for, means over seeds, bytes kept, and a run that goes on where it was."""

import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import pytest
from transformers import VideoMAEConfig, VideoMAEModel


REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.append(str(REPOSITORY / "scripts"))

import study as script  # noqa: E402

from modeling_scada.experiments import study, study_results  # noqa: E402
from processing.data.moving_shapes import make_moving_shapes  # noqa: E402


RECIPE = REPOSITORY / "hub_configs" / "recipes" / "moving_shapes.json"


def row(
    mode: str,
    seed: int,
    value: float,
    budget: str = "equal_steps",
    seconds: float = 10.0,
    backbone: str = "c3d",
    num_bytes: int = 3 * 2**20,
) -> dict:
    return {
        "backbone": backbone,
        "mode": mode,
        "budget": budget,
        "seed": seed,
        "steps": 5,
        "train_seconds": seconds,
        "trainable_backbone": 0 if mode == "frozen" else 1500,
        "bytes_kept": num_bytes,
        **dict.fromkeys(study.METRICS, value),
        "curve": [{"step": step} | dict.fromkeys(study.METRICS, value * step / 4) for step in (1, 2, 3, 4)],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "data"
    make_moving_shapes(folder, num_train=4, num_test=2)
    return folder


@pytest.fixture
def other_backbone(tmp_path):
    """A random backbone, smaller than that of the recipe."""
    config = VideoMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32
    )
    VideoMAEModel(config).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_a_mode_may_carry_arguments_of_the_script():
    assert study.mode_arguments("frozen") == {"tuning": "frozen"}
    expected = {"tuning": "scada", "scada_branches": "both", "reduction": 4, "inner_layers": "last 1"}
    assert study.mode_arguments('both/reduction=4/inner_layers="last 1"') == expected


@pytest.mark.parametrize("mode", ["nothing", "both/reduction", ""])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ValueError, match="expected one of"):
        study.mode_arguments(mode)


def test_every_mode_is_one_that_the_script_takes():
    from transformers import HfArgumentParser

    from processing.recipe_arguments import ModelArguments

    for mode in study.MODES:
        arguments = [f"--{name}={value}" for name, value in study.mode_arguments(mode).items()]
        (parsed,) = HfArgumentParser(ModelArguments).parse_args_into_dataclasses(arguments)
        assert parsed.tuning == study.MODES[mode]["tuning"]


def test_mean_and_deviation_over_the_seeds():
    rows = [row("full", 0, 80.0), row("both", 1, 60.0), row("both", 0, 50.0), row("both", 0, 90.0, "equal_time")]
    summary = study_results.summarise(rows)
    assert [(cells["mode"], cells["budget"], cells["seeds"]) for cells in summary] == [
        ("full", "equal_steps", 1),
        ("both", "equal_steps", 2),
        ("both", "equal_time", 1),
    ]
    assert summary[1]["R1@0.5"] == 55.0
    assert summary[1]["R1@0.5_sd"] == pytest.approx(statistics.stdev([50.0, 60.0]))
    assert "55.0 ± 7.1" in study_results.as_table(summary).splitlines()[3]


def test_differences_are_to_the_frozen_backbone_of_the_same_seeds_and_budget():
    rows = [
        row("frozen", 0, 40.0),
        row("frozen", 1, 52.0),
        row("frozen", 0, 10.0, "equal_time"),
        row("frozen", 0, 20.0, backbone="i3d"),
        row("both", 1, 60.0, num_bytes=7 * 2**19),
        row("both", 0, 51.0),
        row("both", 2, 99.0),  # without a frozen run
        row("both", 0, 51.0, "equal_time"),
        row("both", 0, 15.0, backbone="i3d"),
        row("both", 0, 15.0, backbone="i3d", budget="equal_time"),
    ]
    summary = study_results.summarise(rows)
    found = {(cells["backbone"], cells["mode"], cells["budget"]): cells["over_frozen"] for cells in summary}
    assert found == {
        ("c3d", "frozen", "equal_steps"): None,
        ("c3d", "both", "equal_steps"): ((60 - 52) + (51 - 40)) / 2,
        ("c3d", "frozen", "equal_time"): None,
        ("c3d", "both", "equal_time"): 51 - 10,
        ("i3d", "frozen", "equal_steps"): None,
        ("i3d", "both", "equal_steps"): 15 - 20,
        ("i3d", "both", "equal_time"): None,
    }
    titles, _, first, second, *_ = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in study_results.as_table(summary).splitlines()
    )
    assert {len(titles), len(first), len(second)} == {14}
    assert (titles[5], first[:2], first[-1]) == ("saved activations, MiB", ["c3d", "frozen"], "")
    assert (second[:4], second[5], second[-1]) == (["c3d", "both", "equal steps", "3"], "3.5", "+9.5")


def test_the_time_that_others_get_is_that_of_equal_steps():
    rows = [row("full", 0, 1, seconds=10), row("full", 1, 1, seconds=20), row("full", 0, 1, "equal_time", 99)]
    rows.append(row("full", 0, 1, seconds=77, backbone="i3d"))
    assert study.mean_training_seconds(rows, "c3d", "full") == 15


def test_bytes_kept(data, tmp_path):
    def measure(mode: str, **others) -> int:
        recipe = json.loads(RECIPE.read_text()) | {"dataset": str(data), "output_dir": str(tmp_path / "run")}
        (tmp_path / "recipe.json").write_text(json.dumps(recipe | study.mode_arguments(mode) | others))
        return study.measure_saved_bytes(tmp_path / "recipe.json")

    frozen, both, full = (measure(mode, max_sentences=1) for mode in ("frozen", "both", "full"))
    assert frozen < both < full
    assert measure("full", max_sentences=1, gradient_checkpointing=True) < full
    # A step has four videos.
    assert measure("full", max_sentences=1, per_device_train_batch_size=1) == pytest.approx(full / 4, rel=0.25)
    # After the first inner branch each sentence has features of its own.
    assert measure("both") > 3 * both
    assert not (tmp_path / "run").exists()


def test_bytes_kept_is_that_of_a_model_made_by_hand(data, tmp_path):
    """Of the full backbone, on the first four videos with all their sentences."""
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    from modeling_scada import ScadaForTemporalGrounding, ScadaProcessor, ScadaVideoProcessor
    from modeling_scada.experiments.measuring import saved_activation_bytes

    recipe = json.loads(RECIPE.read_text()) | {"dataset": str(data), "output_dir": str(tmp_path), "tuning": "full"}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    model = ScadaForTemporalGrounding.from_backbones(
        REPOSITORY / recipe["video_model"],
        REPOSITORY / recipe["text_model"],
        hidden_size=64,
        grid_size=32,
        num_train_proposals=528,
    )
    rows = load_from_disk(str(data))["train"][:]
    processor = ScadaProcessor(
        ScadaVideoProcessor(num_frames=64, size={"height": 32, "width": 32}),
        AutoTokenizer.from_pretrained(REPOSITORY / recipe["text_model"]),
    )
    videos = [str(data / video) for video in rows["video"]]
    batch = processor(videos, rows["sentences"], segments=rows["segments"])
    assert study.measure_saved_bytes(tmp_path / "recipe.json") == saved_activation_bytes(
        model.float().train(), dict(batch)
    )


@pytest.mark.parametrize("budgets", [1, 2])
def test_the_picture_of_several_backbones(tmp_path, monkeypatch, budgets):
    from matplotlib import pyplot as plt

    rows = [
        row(mode, seed, 50.0 + 10 * seed, budget, backbone=backbone)
        for mode in ("frozen", "both")
        for seed in (0, 1)
        for budget in study.BUDGETS[:budgets]
        for backbone in ("c3d", "i3d")
    ]
    monkeypatch.setattr(plt, "close", lambda figure: None)
    study_results.draw_backbones(study_results.summarise(rows), tmp_path / "study.png")
    figure = plt.gcf()
    monkeypatch.undo()
    assert (tmp_path / "study.png").stat().st_size > 1000
    for axes, places in zip(figure.axes, ({0.0, 1500.0}, {3.0}), strict=True):
        points = [container.lines[0].get_xydata()[0].tolist() for container in axes.containers]
        assert len(points) == 4 * budgets
        assert {x for x, _ in points} == places and {y for _, y in points} == {55.0}
    texts = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    assert texts == [["frozen", "both", "equal time: hollow"][: 1 + budgets], ["c3d", "i3d"]]
    plt.close(figure)


def test_curves_are_means_over_the_seeds_at_equal_steps(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    rows = [row("full", 0, 80.0), row("full", 1, 40.0), row("both", 0, 20.0), row("full", 0, 99.0, "equal_time")]
    monkeypatch.setattr(plt, "close", lambda figure: None)
    study_results.draw_curves(rows, tmp_path / "curves.png")
    figure = plt.gcf()
    monkeypatch.undo()
    drawn = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert drawn[0] == drawn[1] == [[1, 15.0], [2, 30.0], [3, 45.0], [4, 60.0]]
    assert drawn[2] == drawn[3] == [[1, 5.0], [2, 10.0], [3, 15.0], [4, 20.0]]
    plt.close(figure)


def test_the_front_shows_means_over_prices(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    rows = [row("frozen", 0, 80.0), row("frozen", 1, 40.0), row("both", 0, 20.0), row("both", 0, 99.0, "equal_time")]
    prices = [
        {"mode": "frozen", "ask_over_direct": 0.03, "bytes": 4e6},
        {"mode": "scada_both", "ask_over_direct": 0.3, "bytes": 8e6},
    ]
    monkeypatch.setattr(plt, "close", lambda figure: None)
    study_results.draw_front(rows, prices, tmp_path / "front.png")
    figure = plt.gcf()
    monkeypatch.undo()
    points = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert points == {"frozen, 2 MB": (0.03, 60.0), "both, 4 MB": (0.3, 20.0)}
    plt.close(figure)
    with pytest.raises(ValueError, match=r"prices of \['frozen'\]; expected also those of \['both'\]"):
        study_results.draw_front(rows, prices[:1], tmp_path / "front.png")


def test_a_study_runs_and_goes_on_where_it_was(data, other_backbone, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "study" / "data")
    argv = ["study.py", str(RECIPE), "--output_dir", str(tmp_path / "study"), "--max_steps", "2", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", [*argv, "--modes", "frozen"])
    script.main()
    (first,) = study.read_jsonl_rows(tmp_path / "study" / "results.jsonl")
    assert (first["backbone"], first["mode"]) == ("moving_shapes_backbone", "frozen")
    assert (first["steps"], first["trainable_backbone"]) == (2, 0)
    run_dir = tmp_path / "study" / "runs" / "moving_shapes_backbone" / "frozen_equal_steps_0"
    evaluation = json.loads((run_dir / "eval_results.json").read_text())
    assert first["mIoU"] == round(evaluation["eval_mIoU"], 2)
    assert [point["step"] for point in first["curve"]] == [1, 2]
    assert first["curve"][-1] == {"step": 2} | {name: first[name] for name in study.METRICS}
    assert (tmp_path / "study" / "curves.png").stat().st_size > 1000
    assert first["bytes_kept"] == study.measure_saved_bytes(run_dir / "recipe.json")
    assert (tmp_path / "study" / "study.png").stat().st_size > 1000
    table = (tmp_path / "study" / "table.md").read_text()
    assert "| moving_shapes_backbone | frozen | equal steps | 1 |" in table

    # The other backbone runs, the first one does not again.
    backbones = [
        "--backbones",
        str(REPOSITORY / "hub_configs" / "models" / "moving_shapes_backbone"),
        str(other_backbone),
    ]
    monkeypatch.setattr(sys, "argv", [*argv, "--modes", "frozen", *backbones])
    script.main()
    rows = study.read_jsonl_rows(tmp_path / "study" / "results.jsonl")
    assert rows[0] == first
    assert [row["backbone"] for row in rows] == ["moving_shapes_backbone", "other"]
    arguments = json.loads(
        (tmp_path / "study" / "runs" / "other" / "frozen_equal_steps_0" / "recipe.json").read_text()
    )
    assert arguments["video_model"] == str(other_backbone)

    monkeypatch.setattr(study, "train", None)  # a second run of the same would fail
    script.main()
    assert study.read_jsonl_rows(tmp_path / "study" / "results.jsonl") == rows


@pytest.fixture
def stub_study(tmp_path, monkeypatch):
    """`script.main` without training, in `tmp_path`: (its arguments, overrides of the runs, recipes measured)."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_dict.json").touch()
    runs, measured = [], []

    def train(recipe, data_dir, run_dir, **overrides):
        runs.append(overrides)
        seconds = (20.0 if overrides["tuning"] == "full" else 10.0) * (3 if "i3d" in str(run_dir) else 1)
        result = row("", 0, 50.0, seconds=seconds if overrides["tuning"] != "frozen" else 5.0)
        facts = ("steps", "train_seconds", "trainable_backbone", "curve", *study.METRICS)
        return {name: result[name] for name in facts}

    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(study, "measure_saved_bytes", lambda recipe: measured.append(recipe) or len(measured))
    return ["study.py", str(RECIPE), "--output_dir", str(tmp_path), "--num_workers", "1"], runs, measured


def folders(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    return [str(tmp_path / name) for name in names]


def test_each_mode_on_each_backbone(tmp_path, monkeypatch, stub_study):
    argv, runs, measured = stub_study
    backbones = folders(tmp_path, "b/c3d", "b/i3d")
    argv += ["--modes", "frozen", "both/reduction=4", "--seeds", "0", "1", "--backbones", *backbones]
    monkeypatch.setattr(sys, "argv", argv)
    script.main()
    found = [(run["seed"], run["video_model"], run["tuning"], run.get("reduction")) for run in runs]
    assert found == [
        (seed, folder, tuning, reduction)
        for seed in (0, 1)
        for folder in backbones
        for tuning, reduction in (("frozen", None), ("scada", 4))
    ]
    rows = study.read_jsonl_rows(tmp_path / "results.jsonl")
    # In the order in which they end.
    assert sorted((row["backbone"], row["mode"], row["seed"]) for row in rows) == [
        (backbone, mode, seed)
        for backbone in ("c3d", "i3d")
        for mode in ("both/reduction=4", "frozen")
        for seed in (0, 1)
    ]
    # Once for each backbone and mode, and the same for both seeds.
    assert len(measured) == 4 and len({path.parent for path in measured}) == 4
    assert {path.name for path in measured} == {"recipe.json"}
    kept = {(row["seed"], row["backbone"], row["mode"]): row["bytes_kept"] for row in rows}
    assert len(kept) == 8 and sorted(set(kept.values())) == [1, 2, 3, 4]
    assert all(kept[0, backbone, mode] == kept[1, backbone, mode] for _, backbone, mode in kept)

    # Nor again for another seed later.
    monkeypatch.setattr(sys, "argv", [*argv, "--seeds", "2"])
    script.main()
    assert (len(runs), len(measured)) == (12, 4)


def test_after_a_failure_no_further_run_starts(tmp_path, monkeypatch, stub_study):
    argv, runs, _ = stub_study
    train = study.train

    def train_or_fail(recipe, data_dir, run_dir, **overrides):
        if overrides["seed"] == 1:
            runs.append(overrides)
            time.sleep(0.2)  # time to be noticed in
            raise RuntimeError("no memory")
        time.sleep(0.2)
        return train(recipe, data_dir, run_dir, **overrides)

    monkeypatch.setattr(study, "train", train_or_fail)
    monkeypatch.setattr(sys, "argv", [*argv, "--modes", "frozen", "--seeds", *map(str, range(9))])
    with pytest.raises(RuntimeError, match="no memory"):
        script.main()
    assert 2 <= len(runs) <= 4
    assert [row["seed"] for row in study.read_jsonl_rows(tmp_path / "results.jsonl")] == [0]


def test_equal_time_is_that_of_full_fine_tuning_of_the_same_backbone(tmp_path, monkeypatch, stub_study):
    argv, runs, _ = stub_study
    argv += ["--modes", "full", "frozen", "--seeds", "0", "--max_steps", "100", "--equal_time", "frozen"]
    monkeypatch.setattr(sys, "argv", [*argv, "--backbones", *folders(tmp_path, "b/c3d", "b/i3d")])
    script.main()
    rows = study.read_jsonl_rows(tmp_path / "results.jsonl")
    found = {row["backbone"]: row["max_steps"] for row in rows if row["budget"] == "equal_time"}
    assert found == {"c3d": 100 * 20 / 5, "i3d": 100 * 60 / 5}
    assert [run["max_steps"] for run in runs] == [100] * 4 + [400, 1200]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbones", "one/c3d", "MCG/c3d/"], "expected distinct folder names"),
        (["--modes", "frozen", "--equal_time", "frozen"], "add to --modes: full"),
        (["--modes", "full", "--equal_time", "lora"], "add to --modes: lora"),
        (["--modes", 'full/video_model="a/b"'], "--backbones"),
    ],
)
def test_bad_arguments_are_one_clear_error(monkeypatch, capsys, stub_study, arguments, message):
    argv, runs, _ = stub_study
    monkeypatch.setattr(sys, "argv", argv + arguments)
    with pytest.raises(SystemExit):
        script.main()
    assert message in capsys.readouterr().err and not runs
