"""The blocks of docs/training_from_python.md run, on tiny encoders that have the names of the real ones."""

import ast
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, pipeline


PAGE = Path(__file__).resolve().parents[3] / "docs" / "training_from_python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
ANNOTATIONS = re.search(r"```\n(\{.*?)```", PAGE.read_text(), flags=re.DOTALL)[1]
# What a test of seconds has smaller: of the second block nothing.
SMALLER = {
    "num_frames=512": "num_frames=16",
    "num_train_epochs=10": "num_train_epochs=2",
    "(video_model, text_model, ": "(video_model, text_model, hidden_size=16, grid_size=16, num_train_proposals=32, ",
}


def test_a_training_is_25_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 25


def test_the_blocks_run(tiny_config, tiny_tokenizer, make_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    # A folder of this name comes before the Hub.
    AutoModel.from_config(tiny_config.video_config).save_pretrained("MCG-NJU/videomae-base")
    AutoModel.from_config(tiny_config.text_config).save_pretrained("distilbert-base-uncased")
    tiny_tokenizer.save_pretrained("distilbert-base-uncased")
    Path("videos").mkdir()
    make_clip("videos/kitchen.mp4", num_frames=50, fps=2)
    for name in ("my_train.jsonl", "my_test.jsonl"):
        Path(name).write_text(ANNOTATIONS)

    names: dict = {}
    block = BLOCKS[0]
    for written, smaller in SMALLER.items():
        assert block.count(written) == 1
        block = block.replace(written, smaller)
    exec(compile(block, PAGE.name, "exec"), names)
    *_, found = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    # What was saved finds the same as what was trained.
    saved = pipeline("temporal-grounding", model="outputs/my_videos")
    segments = saved("videos/kitchen.mp4", "a person opens the fridge", top_k=1)
    assert segments == [pytest.approx(segment, rel=1e-4) for segment in ast.literal_eval(found)]

    exec(compile(BLOCKS[1], PAGE.name, "exec"), names)
    assert [names[name].state.global_step for name in ("trainer", "plain")] == [2, 1]
    for name in ("trainer", "plain"):
        metrics = next(entry for entry in names[name].state.log_history if "eval_mIoU" in entry)
        assert metrics["eval_sentences"] == 2 and 0 <= metrics["eval_R1@0.5"] <= 100
