"""
The Python blocks of the README and of the pages in docs/ run, on a tiny model in the place of trained ones; so does
the README's way from a csv to metrics and the Hub.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from fresh_process import run_python
from transformers import pipeline

import modeling_scada  # noqa: F401  registers the task


REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
PAGES = {page.name: page.read_text() for page in (README, *sorted((REPOSITORY / "docs").glob("*.md")))}
# Of training_from_python.md the blocks go on from each other;
# tests/modeling_scada/training/test_training_from_python.py runs them.
BLOCKS = [
    pytest.param(block, id=f"{name}-{index}")
    for name, page in PAGES.items()
    if name != "training_from_python.md"
    for index, block in enumerate(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
]


@pytest.fixture
def folder(tiny_model, tiny_processor, make_clip, tmp_path) -> Path:
    """A folder with the models and the videos that the pages name; the models are tiny."""
    pipe = pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor, device="cpu")
    for name in ("hub_configs/models/moving_shapes_model", "outputs/my_videos"):
        pipe.save_pretrained(tmp_path / name)
    tiny_model.save_pretrained(tmp_path / "outputs" / "my_model")
    video = make_clip("video.mp4", num_frames=20)
    videos = tmp_path / "outputs" / "demo" / "data" / "videos"
    videos.mkdir(parents=True)
    shutil.copy(video, videos / "test_00000.mp4")
    for name in ("moving_shapes_backbone", "moving_shapes_text"):
        shutil.copytree(REPOSITORY / "hub_configs" / "models" / name, tmp_path / "hub_configs" / "models" / name)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    shutil.copy(REPOSITORY / "docs" / "images" / "example.mp4", tmp_path / "docs" / "images")
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), {})


def commands(page: str) -> list[list[str]]:
    """The scripts that the page runs, each as the path of the script and its arguments."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL))
    lines = re.findall(r"^(?:python|accelerate launch) (?:.*\\\n)*.*$", blocks, flags=re.MULTILINE)
    words = [shlex.split(line.replace("\\\n", " "), comments=True) for line in lines]
    starts = [next(place for place, word in enumerate(line) if word.startswith("scripts/")) for line in words]
    return [line[start:] for line, start in zip(words, starts, strict=True)]


def command(script: str) -> list[str]:
    """The README's first command that runs a script, as a list of arguments."""
    path, *arguments = next(words for words in commands(PAGES["README.md"]) if words[0] == f"scripts/{script}")
    return [str(REPOSITORY / path), *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted({words[0] for page in PAGES.values() for words in commands(page)}))
def test_the_options_of_the_commands_exist(script):
    done = run_python([REPOSITORY / script, "--help"], env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    known = set(re.findall(r"--\w+", done.stdout))
    used = {
        word.split("=")[0]
        for page in PAGES.values()
        for path, *arguments in commands(page)
        if path == script
        for word in arguments
        if word.startswith("--")
    }
    assert used <= known


# The README's two lines, in one process each, and what is to come out of them.
ELSEWHERE = """
import sys
{package}
from transformers import pipeline
{line}
found = pipe(sys.argv[1], "a person opens the fridge", top_k=1)
print(type(pipe).__module__, found)
"""


@pytest.mark.smoke
def test_from_a_csv_to_a_model_on_the_hub(tiny_config, tiny_tokenizer, make_clip, tmp_path, hub, monkeypatch):
    """The README's csv and commands, on tiny encoders and a video of 35 s."""
    from transformers import AutoModel

    encoders = {"--video_model": tiny_config.video_config, "--text_model": tiny_config.text_config}
    for name, config in encoders.items():
        AutoModel.from_config(config).save_pretrained(tmp_path / name)
    tiny_tokenizer.save_pretrained(tmp_path / "--text_model")
    (tmp_path / "videos").mkdir()
    make_clip("videos/kitchen.mp4", num_frames=70, fps=2)
    csv = re.search(r"```\n(video,sentence,segment\n.*?)```", README.read_text(), flags=re.DOTALL)[1]
    (tmp_path / "my_videos.csv").write_text(csv)

    train = command("run_temporal_grounding.py")
    train = [str(tmp_path / train[i - 1]) if train[i - 1] in encoders else train[i] for i in range(len(train))]
    train += "--num_frames 16 --image_size 32 --head_hidden_size 16 --grid_size 16 --use_cpu".split()
    monkeypatch.chdir(tmp_path)
    for script, *arguments in (command("prepare_dataset.py"), [*train, "--max_steps", "1"], command("evaluate.py")):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        try:  # in this process, because a new one imports torch first
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stopped:
            assert not stopped.code
    record = json.loads((tmp_path / "outputs" / "my_videos_train" / "metrics.json").read_text())
    assert (record["split"], record["sentences"], record["videos"]) == ("train", 2, 1)
    trained = json.loads((tmp_path / "outputs" / "my_videos" / "eval_results.json").read_text())
    for name in ("R1@0.3", "R5@0.3", "mIoU"):
        assert record["metrics"][name] == pytest.approx(trained[f"eval_{name}"], abs=1e-3)

    environment = hub.environment(tmp_path / "here", PYTHONPATH=str(REPOSITORY))
    done = run_python(command("push_to_hub.py"), tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert f"{record['metrics']['mIoU']:.2f}" in hub.files("my-name/my-videos")["README.md"].decode()
    with_package, without = re.findall(r'^(pipe = pipeline.*"my-name/my-videos".*?\))', README.read_text(), flags=re.M)
    video = str(tmp_path / "videos" / "kitchen.mp4")
    code = ELSEWHERE.format(package="import modeling_scada", line=with_package)
    expected = hub.run(code, tmp_path / "there", video, PYTHONPATH=str(REPOSITORY)).split(" ", 1)
    found = hub.run(
        ELSEWHERE.format(package="", line=without),
        tmp_path / "elsewhere",
        video,
        hidden=["modeling_scada", "processing"],
    ).split(" ", 1)
    assert (expected[0], found[0].split(".")[0]) == ("processing.pipeline_temporal_grounding", "transformers_modules")
    assert expected[1] == found[1] and "'start'" in found[1]


def scada_command(page: str, name: str) -> list[str]:
    """The page's first command `scada name`, as a list of arguments."""
    line = re.search(rf"^scada {name} (?:.*\\\n)*.*$", page, flags=re.MULTILINE)[0]
    return ["-m", "processing.commands", *shlex.split(line.replace("\\\n", " "))[1:]]


def test_ground(folder):
    """The README's command, on a tiny model."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = run_python(scada_command(PAGES["README.md"], "ground"), folder, environment)
    assert done.returncode == 0, done.stderr
    assert "the green triangle moves left" in done.stdout
    assert (folder / "found.png").stat().st_size > 1000 and (folder / "found.html").stat().st_size > 1000
    assert [path.name for path in (folder / "clips").iterdir()] == [
        "example_01_the_green_triangle_moves_left_rank1.mp4"
    ]


def test_the_links_between_pages_lead_somewhere():
    for name, page in PAGES.items():
        folder = REPOSITORY if name == "README.md" else REPOSITORY / "docs"
        for target in re.findall(r"\]\(([^)#]+)", page):
            assert "://" in target or (folder / target).exists(), f"{name} links to {target}"


def test_the_pages_have_python_blocks_and_no_placeholder_is_left():
    assert len(BLOCKS) >= 2
    for page in PAGES.values():
        assert not re.search(r"PRINTED|[A-Z]+_TABLE|SENTENCE|\(to come\)", page)
