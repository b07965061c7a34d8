"""The model that is committed: what it states comes out again, and the first minute runs with it."""

import json
import re
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk


REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "scripts"))

import demo  # noqa: E402

from modeling_scada.inference.evaluation import evaluate_model  # noqa: E402
from processing.data.moving_shapes import make_moving_shapes  # noqa: E402
from processing.post_processing import temporal_iou  # noqa: E402


MODEL = REPOSITORY / "hub_configs" / "models" / "moving_shapes_model"


def test_the_model_is_small_and_names_no_path_of_a_machine():
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 6_000_000
    for path in MODEL.glob("*.json"):
        assert not re.search(r'": "(/|[A-Z]:)', path.read_text()), path.name


def test_the_stated_metrics_come_out_on_the_test_split(tmp_path):
    """The test videos do not depend on how many there are to train on."""
    make_moving_shapes(tmp_path / "data", num_train=1, num_test=100)
    record = evaluate_model(str(MODEL), str(tmp_path / "data"), "test", tmp_path / "results", num_workers=0)
    stated = json.loads((MODEL / "eval_results.json").read_text())
    assert stated["eval_R1@0.5"] > 95
    # Codecs and processors differ a little; a sentence is 0.2 %.
    for name in ("R1@0.5", "R1@0.7", "R5@0.5", "mIoU"):
        assert record["metrics"][name] == pytest.approx(stated[f"eval_{name}"], abs=0.8), name


@pytest.mark.smoke
def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output_dir", str(tmp_path)])
    demo.main()
    printed = re.findall(
        r"([\d.]+) to +([\d.]+) s \(score [\d.]+\), true +([\d.]+) to +([\d.]+) s", capsys.readouterr().out
    )
    assert len(printed) == demo.NUM_VIDEOS * demo.NUM_SENTENCES
    targets = [
        segments[0] for row in load_from_disk(str(tmp_path / "data"))["test"] for segments in row["segments"][:3]
    ]
    hits = 0
    for numbers, target in zip(printed, targets, strict=True):
        *found, start_seconds, end_seconds = map(float, numbers)
        assert [start_seconds, end_seconds] == pytest.approx(target, abs=0.051)
        hits += float(temporal_iou([found], [target])[0, 0]) > 0.5
    assert hits >= 10
    for index in range(demo.NUM_VIDEOS):
        assert (tmp_path / f"test_{index:05d}.png").stat().st_size > 5000
        assert "the " in (tmp_path / f"test_{index:05d}.html").read_text()
