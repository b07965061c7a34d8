"""The README's Python blocks run, on a tiny model in the place of the demo's; its way from a csv to metrics too."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import pipeline

import modeling_scada  # noqa: F401  registers the task


README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_block_runs(block, tiny_model, tiny_processor, make_clip, tmp_path, monkeypatch):
    folder = tmp_path / "outputs" / "demo" / "scada"
    pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor, device="cpu").save_pretrained(folder)
    tiny_model.save_pretrained(tmp_path / "outputs" / "my_model")
    video = make_clip(num_frames=20)
    shutil.copy(video, tmp_path / "video.mp4")
    videos = tmp_path / "outputs" / "demo" / "data" / "videos"
    videos.mkdir(parents=True)
    shutil.copy(video, videos / "test_00000.mp4")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def command(script: str) -> list[str]:
    """The first command of the README that runs a script, as a list of arguments."""
    line = re.search(rf"^python (scripts/{script} (?:.*\\\n)*.*)$", README.read_text(), flags=re.MULTILINE)[1]
    path, *arguments = shlex.split(line.replace("\\\n", " "))
    return [sys.executable, str(README.parent / path), *arguments]


# The README's two lines, in one process each, and what is to come out of them.
ELSEWHERE = """
import sys
{package}
from transformers import pipeline
{line}
found = pipe(sys.argv[1], "a person opens the fridge", top_k=1)
print(type(pipe).__module__, found)
"""


def test_from_a_csv_to_a_model_on_the_hub(tiny_config, tiny_tokenizer, make_clip, tmp_path, hub):
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
    train += "--num_frames 16 --image_size 32 --head_hidden_size 16 --grid_size 16 --use_cpu --bf16 false".split()
    environment = os.environ | {"PYTHONPATH": str(README.parent)}
    for arguments in (command("prepare_dataset.py"), [*train, "--max_steps", "1"], command("evaluate.py")):
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "outputs" / "my_videos_train" / "metrics.json").read_text())
    assert (record["split"], record["sentences"], record["videos"]) == ("train", 2, 1)
    trained = json.loads((tmp_path / "outputs" / "my_videos" / "eval_results.json").read_text())
    for name in ("R1@0.3", "R5@0.3", "mIoU"):
        assert record["metrics"][name] == pytest.approx(trained[f"eval_{name}"], abs=1e-3)

    environment = hub.environment(tmp_path / "here", PYTHONPATH=str(README.parent))
    done = subprocess.run(
        command("push_to_hub.py"), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert f"{record['metrics']['mIoU']:.2f}" in hub.files("my-name/my-videos")["README.md"].decode()
    with_package, without = re.findall(r'^(pipe = pipeline.*"my-name/my-videos".*?\))', README.read_text(), flags=re.M)
    video = str(tmp_path / "videos" / "kitchen.mp4")
    code = ELSEWHERE.format(package="import modeling_scada", line=with_package)
    expected = hub.run(code, tmp_path / "there", video, PYTHONPATH=str(README.parent)).split(" ", 1)
    found = hub.run(
        ELSEWHERE.format(package="", line=without),
        tmp_path / "elsewhere",
        video,
        hidden=["modeling_scada", "processing"],
    ).split(" ", 1)
    assert (expected[0], found[0].split(".")[0]) == ("processing.pipeline_temporal_grounding", "transformers_modules")
    assert expected[1] == found[1] and "'start'" in found[1]


def test_ground(tiny_model, tiny_processor, make_clip, tmp_path):
    """The README's command, on a tiny model."""
    folder = tmp_path / "outputs" / "demo" / "scada"
    pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor, device="cpu").save_pretrained(folder)
    make_clip(name="video.mp4", num_frames=20)
    environment = os.environ | {"PYTHONPATH": str(README.parent)}
    done = subprocess.run(
        command("ground.py"), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "a person opens the fridge" in done.stdout
    assert (tmp_path / "found.png").stat().st_size > 1000 and (tmp_path / "found.html").stat().st_size > 1000
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 5


def test_the_readme_has_python_blocks_and_no_placeholder_is_left():
    assert len(BLOCKS) >= 2
    assert not re.search(r"PRINTED|[A-Z]+_TABLE|SENTENCE|\(to come\)", README.read_text())
