"""The console command: quick to answer, the same functions as the scripts, one line where something is wrong."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from modeling_scada.training import publishing
from processing.commands.main import main
from processing.data import preparation as dataset_preparation


REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = ("ground", "cut", "index", "search", "app", "prepare", "compose", "train", "evaluate", "push")

HELP = """
import sys
from processing.commands.main import main

for command in sys.argv[1:]:
    try:
        main([command, "--help"])
    except SystemExit as stopped:
        assert stopped.code == 0
heavy = {"av", "datasets", "huggingface_hub", "numpy", "torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_needs_nothing_heavy():
    command = [sys.executable, "-c", HELP, *COMMANDS]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in (
        "VIDEO",
        "FOUND.json",
        "activitynet-captions",
        "--inner_layers",
        "--dataset",
        "--qvhighlights",
        "repo_id",
    ):
        assert name in done.stdout


def test_every_argument_of_a_recipe_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    for path in (REPOSITORY / "hub_configs" / "recipes").glob("*.json"):
        recipe = json.loads(path.read_text())
        names = {"video_model", "text_model", "tuning", "num_frames", "dataset", "max_sentences"} & set(recipe)
        assert len(names) >= 5 and all(f"--{name} " in shown for name in names)


@pytest.mark.smoke
def test_from_a_csv_to_metrics_and_clips(recipe, tmp_path, monkeypatch, capsys):
    lines = ["video,sentence,segment", '0.mp4,it begins,"[0, 0.5]"', '1.mp4,it ends,"[1.5, 2]"']
    (tmp_path / "my.csv").write_text("\n".join(lines))
    data = str(tmp_path / "data")
    command = ["prepare", "--format", "csv", "--annotations", str(tmp_path / "my.csv"), "--output", data]
    assert main([*command, "--videos", str(tmp_path), "--num_workers", "1"]) == 0
    assert "2 sentences read, 2 kept" in capsys.readouterr().out

    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = ["train", str(tmp_path / "recipe.json"), "--dataset", data, "--video_root", str(tmp_path)]
    assert main([*command, "--max_steps", "1"]) == 0
    # What to type next, and these are commands of this program.
    printed = capsys.readouterr().out.splitlines()
    following = [shlex.split(line) for line in printed if line.startswith("  scada ")]
    assert [words[1] for words in following] == ["evaluate", "ground", "push"]
    assert all(recipe["output_dir"] in words for words in following)
    assert following[0][2:] == [recipe["output_dir"], data, "--split", "train", "--video_root", str(tmp_path)]
    model = recipe["output_dir"]
    trained = json.loads((Path(model) / "eval_results.json").read_text())
    assert json.loads((Path(model) / "train_results.json").read_text())["steps"] == 1

    capsys.readouterr()
    command = ["evaluate", model, data, "--split", "train", "--video_root", str(tmp_path), "--num_workers", "0"]
    assert main([*command, "--output_dir", str(tmp_path / "measured")]) == 0
    record = json.loads((tmp_path / "measured" / "metrics.json").read_text())
    assert record["metrics"]["mIoU"] == pytest.approx(trained["eval_mIoU"], abs=1e-3)
    printed = capsys.readouterr().out
    assert "2 sentences in 2 videos" in printed and f"mIoU {record['metrics']['mIoU']:.2f}" in printed

    command = ["ground", str(tmp_path / "0.mp4"), "it begins", "--model", model, "--top_k", "2", "--json"]
    assert main([*command, "--cut", str(tmp_path / "at once")]) == 0
    (tmp_path / "found.json").write_text(capsys.readouterr().out)
    cut = ["cut", str(tmp_path / "found.json"), "--top_k", "2"]
    assert main([*cut, str(tmp_path / "later")]) == 0
    clips = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("at once", "later")]
    assert clips[0] == clips[1] and "0_01_it_begins_rank1.mp4" in clips[0]

    assert main([*cut, str(tmp_path / "exact"), "--exact"]) == 0
    assert "; re-encoded)" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "exact").iterdir()} == set(clips[0])

    asked = []
    monkeypatch.setattr(publishing, "push_folder", lambda *arguments: asked.append(arguments) or "https://hub/me/it")
    assert main(["push", model, "me/it", "--metrics", str(tmp_path / "measured" / "metrics.json")]) == 0
    assert capsys.readouterr().out.strip() == "https://hub/me/it"
    assert asked == [(Path(model), "me/it", None, tmp_path / "measured" / "metrics.json", None)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ground", "gone.mp4", "it", "--model", "m"], "scada ground: There is no video file at gone.mp4."),
        (["cut", "gone.json", "clips"], "scada cut: .*No such file or directory: 'gone.json'"),
        (["cut", "other.json", "clips"], "scada cut: other.json is not an output of `scada ground --json`; save that"),
        (["cut", "list.json", "clips"], "scada cut: list.json is not an output"),
        (["cut", "no.json", "clips"], "scada cut: no.json is not an output"),
        (["cut", "text.json", "clips"], "scada cut: Segment 2 of 'it' in text.json has end='12.5'; expected a number"),
        (["cut", "gone.json", "clips"], "scada cut: No such file or directory: 'gone.json'"),
        (["search", "gone", "it"], "scada search: There is no index at gone; create one with `scada index`."),
        (["app", "--index", "gone"], "scada app: There is no index at gone; create one with `scada index`."),
        (["app", "--model", "./gone"], "scada app: There is no model at ./gone; check the path, or pass a Hub id"),
        (["index", "empty", "--model", "./gone", "--output", "o"], "scada index: There is no model at ./gone; check"),
        (
            ["index", "empty", "--model", "m", "--output", "o", "--ray", "--device", "cpu"],
            "scada index: Received --device with --ray, whose workers choose",
        ),
        (["evaluate", "./gone", "data", "--split", "test"], "scada evaluate: There is no model at ./gone; check"),
        (
            ["evaluate", "m", "data", "--split", "test", "--video_root", "gone"],
            "scada evaluate: There is no folder of videos at gone",
        ),
        (["push", "gone", "me/it"], "scada push: There is no folder gone"),
        (
            ["prepare", "--format", "csv", "--annotations", "gone.csv", "--output", "out"],
            "scada prepare: The file gone.csv does not exist; check the path.",
        ),
        (["push", "empty", "me/it"], "scada push: empty has neither model.safetensors nor"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"video": "a.mp4", "results": [{"sentence": "it"}]}')
    (tmp_path / "list.json").write_text("[1, 2]")
    segments = [{"score": 0.9, "start": 1, "end": 2.5}, {"score": 0.8, "start": 10.5, "end": "12.5"}]
    (tmp_path / "text.json").write_text(
        json.dumps({"video": "a.mp4", "results": [{"sentence": "it", "segments": segments}]})
    )
    (tmp_path / "no.json").write_bytes(b"\xff\xfe no JSON")
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert re.match(message, err), err


TRAINS_AT_ONCE = """
import sys
from processing.commands.main import main

try:
    code = main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
assert not {"av", "datasets", "torch"} & set(sys.modules)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone.json"], 1, r"scada train: .*No such file or directory: 'gone.json'"),
        (["list.json"], 1, r"scada train: The recipe list.json contains \[1, 2\]; expected a JSON object"),
        (["no.json"], 1, "scada train: The recipe no.json is not JSON: "),
        (["--dataset", "a/b/gone"], 1, "scada train: Received --dataset a/b/gone, which does not exist. Check"),
        (
            ["--dataset", "d", "--video_root", "gone"],
            1,
            "scada train: Received --video_root gone, which is not a folder. Pass",
        ),
        (
            ["--dataset", "d", "--text_model", "../gone"],
            1,
            "scada train: Received --text_model ../gone, which does not",
        ),
        (["--num_frames", "64"], 2, "usage: .*RECIPE.*: error: the following arguments are required: --dataset"),
        (["--dataset", "d", "--tuning", "all"], 2, "usage: .*: error: argument --tuning: invalid choice: 'all'"),
    ],
)
def test_what_is_wrong_with_a_training_is_said_before_anything_heavy_is_imported(
    arguments, code, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "no.json").write_text("{")
    monkeypatch.setitem(sys.modules, "modeling_scada.training.recipe", None)  # importing it fails
    try:
        found = main(["train", *arguments])
    except SystemExit as stopped:
        found = stopped.code
    out, err = capsys.readouterr()
    assert found == code and out == "" and len(err.splitlines()) == code
    assert re.match(message, " ".join(err.split())), err


def test_a_wrong_training_needs_nothing_heavy(tmp_path):
    command = [sys.executable, "-c", TRAINS_AT_ONCE, "train", "--dataset", "data", "--video_root", "gone"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("scada train: Received --video_root gone"), done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_root": "empty"}, r"scada train: Could not find the video '\d.mp4' in "),
        ({"video_root": "empty", "dataloader_num_workers": 1}, r"scada train: Could not find the video '\d.mp4' in "),
        ({"video_model": "no weights"}, r"scada train: Could not load the model no weights: .*--video_model"),
        ({"model_name_or_path": "empty"}, r"scada train: Could not load the model empty: .*--model_name"),
        ({"eval_split": "test"}, r"scada train: Received split 'test' of .*; expected one of ..train..\."),
        (
            {"learning_rat": 1e-3},
            "scada train: The recipe .* contains the unknown arguments ..learning_rat..; --help",
        ),
        ({"tuning": "all"}, "scada train: Received tuning='all'; expected one of frozen"),
        (
            {"tuning": "full", "learning_rate": 1e18, "optim": "sgd", "max_grad_norm": 0, "max_steps": 30},
            r"scada train: The (loss|norm of the gradient) of step \d+ is .*; learning rates: .*1e\+18 \(head\)",
        ),
    ],
)
def test_a_training_that_cannot_go_on_is_one_line(recipe, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.copytree(recipe["video_model"], tmp_path / "no weights", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"lr_scheduler_type": "constant"} | change))
    assert main(["train", str(tmp_path / "recipe.json")]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scada train")]
    assert len(said) == 1 and re.match(message, said[0]), said
    assert "Traceback" not in said[0]


def test_a_name_that_is_no_argument_of_a_training(recipe, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(tmp_path / "recipe.json"), "--learning_rat", "1"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["scada train: error: unrecognized arguments: --learning_rat 1"]


def test_cut_writes_the_best_unless_asked_for_more(make_clip, tmp_path, capsys):
    segments = [
        {"score": score, "start": start, "end": start + 0.5}
        for score, start in ((0.9, 0.0), (0.5, 0.1), (0.4, 1.0), (0.3, 1.5))
    ]
    faint = [{"score": 0.001, "start": 0.0, "end": 0.5}]
    results = [{"sentence": "it", "segments": segments}, {"sentence": "a dog", "segments": faint}]
    (tmp_path / "found.json").write_text(json.dumps({"video": str(make_clip(num_frames=20)), "results": results}))
    for options, covered in (
        ([], ["0.0 to 0.5"]),
        (["--top_k", "9"], ["0.0 to 0.5", "1.0 to 1.5", "1.5 to 2.0"]),
        (["--top_k", "9", "--threshold", "0.4"], ["0.0 to 0.5", "1.0 to 1.5"]),
        (["--threshold", "0"], ["0.0 to 0.5", "0.0 to 0.5"]),
    ):
        assert main(["cut", str(tmp_path / "found.json"), str(tmp_path / "clips"), "--exact", *options]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert [re.search(r": (.*) s \(segment", line)[1] for line in lines if line.startswith("Wrote")] == covered
        assert any(line.startswith("No clip for 'a dog'") for line in lines) == (options != ["--threshold", "0"])


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"scada {version}\n"


BAD_PATHS = """
import sys
from processing.commands.main import main

for line in sys.stdin:
    assert main(line.split()) == 1, line
heavy = {"datasets", "huggingface_hub", "torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_bad_path_needs_nothing_heavy(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    lines = [
        "ground gone.mp4 it --model m",
        "ground a.mp4 it --model ./gone",
        "ground a.mp4 it --model m",
        "cut gone.json clips",
        "search gone it",
        "index gone --model m --output o",
        "index . --model ./gone --output o",
        "app --index gone",
        "app --model ./gone",
        "evaluate ./gone data --split test",
        "evaluate m data --split test --video_root gone",
        "push gone me/it",
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", BAD_PATHS]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, input="\n".join(lines), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(lines)


@pytest.mark.parametrize("arguments", [[], ["undo"], ["ground", "a.mp4", "it", "--model", "m", "--top_k", "-1"]])
def test_bad_arguments(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_the_wheel_has_the_command_and_the_files_that_the_code_reads():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    module, function = project["project"]["scripts"]["scada"].split(":")
    assert getattr(importlib.import_module(module), function) is main
    package_data = project["tool"]["setuptools"]["package-data"]
    for package in ("modeling_scada", "processing"):
        for path in (REPOSITORY / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                folder = ".".join(path.relative_to(REPOSITORY).parts[:-1])
                assert any(fnmatch(path.name, pattern) for pattern in package_data[folder]), path


def test_a_data_set_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    """Found out before the annotations and the videos are read."""
    monkeypatch.setattr(dataset_preparation, "prepare_dataset", lambda **kwargs: pytest.fail("something was read"))
    (tmp_path / "afile").write_text("")
    command = [
        "prepare",
        "--format",
        "csv",
        "--annotations",
        "my.csv",
        "--output",
        str(tmp_path / "afile" / "out" / "data"),
    ]
    assert main(command) == 1
    assert re.fullmatch(r"scada prepare: .*Not a directory: '.*afile/out'\n", capsys.readouterr().err)
