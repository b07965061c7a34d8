"""The module of `evaluate`, loaded from the checkout as a user does, without a network."""

import doctest
import json
import socket
from pathlib import Path

import evaluate
import numpy as np
import pytest

from processing.metrics import temporal_grounding_metrics


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def metric(monkeypatch, tmp_path):
    def refuse(*args):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.chdir(ROOT)
    return evaluate.load("processing/temporal_grounding", cache_dir=str(tmp_path / "cache"))


def test_published_metrics_come_out(metric, fixtures_dir):
    folder = fixtures_dir / "metrics"
    predictions, annotations = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("sample_val_preds.jsonl", "highlight_val_release.jsonl")
    )
    results = metric.compute(
        predictions=[row["pred_relevant_windows"] for row in predictions],
        references=[row["relevant_windows"] for row in annotations],
    )
    assert [round(results[name], 2) for name in ("mAP", "R1@0.5", "R1@0.7")] == [32.20, 53.94, 34.84]


def test_nothing_is_rounded_on_the_way(metric):
    """These times and scores are no float32 numbers, in which the two scores would be equal."""
    predictions = [[[0.1, 1 / 3, 1 / 3], [0.0, 0.6, 1 / 3 + 1e-12]], [[0.1, 0.7, 0.5]]]
    references = [[[0.0, 1.0]], [[0.1, 0.8], [1 / 3, 2 / 3]]]
    results = metric.compute(predictions=predictions, references=references)
    assert results == temporal_grounding_metrics(predictions, references)
    assert all(type(value) is float for value in results.values())


def test_strict(metric):
    predictions, references = [[[0.0, 5.0, 0.9]]], [[[0.0, 10.0]]]
    assert metric.compute(predictions=predictions, references=references)["R1@0.5"] == 100
    assert metric.compute(predictions=predictions, references=references, strict=True)["R1@0.5"] == 0


def test_batches_without_predictions(metric):
    metric.add_batch(predictions=[[], []], references=[[[0.0, 1.0]], [[2.0, 3.0], [4.0, 5.0]]])
    metric.add_batch(predictions=[[[0.0, 1.0, 0.5]]], references=[[[0.0, 1.0]]])
    metric.add(prediction=[], reference=[[0.0, 1.0]])
    assert set(metric.compute().values()) == {25.0}
    results = metric.compute(predictions=[[], []], references=[[[0.0, 1.0]], [[2.0, 3.0]]])
    assert set(results.values()) == {0.0}


def test_arrays(metric):
    predictions = [np.float32([[0, 2, 0.9], [0, 4, 0.8]]), np.zeros((0, 3), dtype=np.float32)]
    references = [np.array([[0.0, 4.0]]), np.array([[1.0, 2.0]])]
    assert metric.compute(predictions=predictions, references=references)["mIoU"] == 25


@pytest.mark.parametrize(
    ("predictions", "references"),
    [([[]], []), ([[[0.0, 1.0]]], [[[0.0, 1.0]]]), ([[[0.0, 1.0, float("nan")]]], [[[0.0, 1.0]]]), ([[]], [[]])],
)
def test_bad_input_is_a_value_error(metric, predictions, references):
    with pytest.raises(ValueError):
        metric.compute(predictions=predictions, references=references)


def test_the_example_of_the_documentation_runs(metric):
    example = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, "example", None, None)
    assert len(example.examples) == 4
    assert doctest.DocTestRunner().run(example).failed == 0
