"""The README's Python blocks run, on a tiny model in the place of the demo's."""

import re
import shutil
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


def test_the_readme_has_python_blocks_and_no_placeholder_is_left():
    assert len(BLOCKS) >= 2
    assert not re.search(r"PRINTED|[A-Z]+_TABLE|SENTENCE|\(to come\)", README.read_text())
