"""Evaluating a model: predictions in seconds, metrics that are the training script's, and what is written."""

import importlib.util
import json
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from modeling_scada import (
    ScadaForTemporalGrounding,
    ScadaProcessor,
    TemporalGroundingCollator,
    TemporalGroundingTrainer,
    TemporalGroundingTrainingArguments,
    compute_metrics,
    load_annotations,
    multi_segment_metrics,
    temporal_grounding_metrics,
)
from modeling_scada.inference import evaluation
from processing.commands import main as command_line
from processing.video_io import VideoReadError


SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
sys.path.append(str(SCRIPTS))
# By its path: `import evaluate` is the library.
SPEC = importlib.util.spec_from_file_location("evaluate_script", SCRIPTS / "evaluate.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


@pytest.fixture
def saved(tiny_model, tiny_processor, make_clip, tmp_path):
    """A model's folder, and two videos with three sentences, the last of which has two segments."""
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    make_clip("a.mp4", num_frames=20, fps=10)
    make_clip("b.webm", num_frames=40, fps=10, codec="libvpx-vp9")
    rows = [
        {"video": "a.mp4", "video_id": "a", "sentences": ["it begins", "it ends"], "segments": [[[0.0, 1]], [[1, 2]]]},
        {"video": "b.mp4", "video_id": "b", "sentences": ["it is there"], "segments": [[[0, 1.5], [2, 4]]]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def evaluate(folder: Path, *arguments: str, data: str = "rows.jsonl") -> tuple[dict, list[dict]]:
    command = [str(folder / "model"), str(folder / data), "--split", "train", "--num_workers", "0"]
    script.main([*command, "--video_root", str(folder), "--output_dir", str(folder / "out"), *arguments])
    record = json.loads((folder / "out" / "metrics.json").read_text())
    return record, [json.loads(line) for line in (folder / "out" / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.smoke
def test_predictions_are_the_models_and_metrics_follow_from_them(saved):
    record, predictions = evaluate(saved)
    model = ScadaForTemporalGrounding.from_pretrained(saved / "model").eval()
    processor = ScadaProcessor.from_pretrained(saved / "model")
    inputs = processor(str(saved / "a.mp4"), ["it begins", "it ends"], return_timelines=True)
    timelines = inputs.pop("timelines")
    with torch.no_grad():
        (expected,) = processor.post_process_temporal_grounding(model(**inputs), timelines, top_k=10)
    for prediction, of_sentence in zip(predictions, expected, strict=False):
        found = np.array(prediction["segments"])
        np.testing.assert_allclose(found[:, :2], of_sentence["segments"], rtol=1e-12)
        np.testing.assert_allclose(found[:, 2], of_sentence["scores"], rtol=1e-12)
    assert [(row["video"], row["sentence"]) for row in predictions] == [
        ("a", "it begins"),
        ("a", "it ends"),
        ("b", "it is there"),
    ]
    assert [row["targets"] for row in predictions] == [[[0, 1]], [[1, 2]], [[0, 1.5], [2, 4]]]

    def iou(segment, target):
        shared = max(0.0, min(segment[1], target[1]) - max(segment[0], target[0]))
        return shared / (segment[1] - segment[0] + target[1] - target[0] - shared)

    best = [max(iou(row["segments"][0], target) for target in row["targets"]) for row in predictions]
    assert record["metrics"]["mIoU"] == pytest.approx(100 * sum(best) / 3)
    assert record["metrics"]["R1@0.3"] == pytest.approx(100 * sum(value >= 0.3 for value in best) / 3)
    assert (record["split"], record["videos"], record["sentences"], record["broken_videos"]) == ("train", 2, 3, [])
    assert record["how"]["num_frames"] == 16 and record["how"]["top_k"] == 10


@pytest.mark.parametrize("window_seconds", [None, 5.0])
def test_trainer_and_evaluation_measure_the_same(saved, window_seconds):
    """Of two videos in a batch: an annotation that ends after its file, several targets, and a sentence without."""
    rows = [json.loads(line) for line in (saved / "rows.jsonl").read_text().splitlines()]
    rows[0]["segments"][1] = [[1.0, 3.5]]  # the file has 2 s
    rows[0] |= {"sentences": [*rows[0]["sentences"], "it never was"], "segments": [*rows[0]["segments"], []]}
    rows[1]["segments"] = [[[0.0, 0.7], [3.1, 5.2]]]
    (saved / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    processor = ScadaProcessor.from_pretrained(saved / "model")
    processor.video_processor.window_seconds = window_seconds
    processor.found_threshold = 0.3
    processor.save_pretrained(saved / "model")
    trainer = TemporalGroundingTrainer(
        ScadaForTemporalGrounding.from_pretrained(saved / "model"),
        TemporalGroundingTrainingArguments(str(saved / "run"), use_cpu=True, disable_tqdm=True),
        eval_dataset=load_annotations(str(saved / "rows.jsonl"), "train"),
        data_collator=TemporalGroundingCollator(processor, saved),
        compute_metrics=partial(compute_metrics, found_threshold=0.3),
    )
    expected = trainer.evaluate()
    record, predictions = evaluate(saved)
    shared = [name for name in record["metrics"] if f"eval_{name}" in expected]
    assert {"R1@0.5", "R5@0.7", "mIoU", "AUROC", "RejF1"} <= set(shared) and expected["eval_mIoU"] > 1
    for name in shared:
        assert record["metrics"][name] == pytest.approx(expected[f"eval_{name}"], rel=1e-6), name
    assert [row["targets"] for row in predictions] == [[[0, 1]], [[1, 2]], [], [[0, 0.7], [3.1, 4.0]]]
    # Both refuse what lies outside.
    rows[0]["segments"][1] = [[1.0, 30.0]]
    (saved / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ValueError, match=r"a\.mp4: .*\[1, 30\] s"):
        evaluate(saved)
    left_out = evaluate(saved, "--skip_broken_videos")[0]
    assert left_out["sentences"] == 1 and left_out["broken_videos"][0]["video"] == "a.mp4"


def test_sentences_that_are_all_not_there(saved):
    """Predictions are written, and how many sentences are rejected; nothing else can be measured."""
    rows = [json.loads(line) for line in (saved / "rows.jsonl").read_text().splitlines()]
    rows = [row | {"segments": [[] for _ in row["sentences"]]} for row in rows]
    (saved / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    processor = ScadaProcessor.from_pretrained(saved / "model")
    processor.found_threshold = 2.0
    processor.save_pretrained(saved / "model")
    record, predictions = evaluate(saved)
    assert record["metrics"] == {"RejF1": 100.0, "found_threshold": 2.0}
    assert [len(row["segments"]) > 0 and row["targets"] for row in predictions] == [[], [], []]
    ranked = np.array([[[-1, -1, -1, -1, -1, 0.4], [-1, -1, -1, -1, -1, 0.6]]])
    metrics = compute_metrics(EvalPrediction(predictions=ranked, label_ids=None), found_threshold=0.5)
    assert metrics == {"sentences": 0, "RejF1": pytest.approx(100 * 2 / 3), "found_threshold": 0.5}


def test_sentences_with_several_segments_have_metrics_of_their_own(saved):
    record, predictions = evaluate(saved)
    columns = [[row[name] for row in predictions] for name in ("segments", "targets")]
    expected = temporal_grounding_metrics(*columns) | multi_segment_metrics(*columns)
    assert {"G-mAP", "mAP@2tgt", "mR@2"} <= set(expected) and record["metrics"] == pytest.approx(expected)
    rows = [json.loads(line) for line in (saved / "rows.jsonl").read_text().splitlines()]
    rows = [row | {"segments": [of_sentence[:1] for of_sentence in row["segments"]]} for row in rows]
    (saved / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert "G-mAP" not in evaluate(saved)[0]["metrics"]


def test_sentences_that_are_not_there_are_rejected_or_not(saved):
    """Of no segment: they are in no R@n, and AUROC and F1 follow from the scores of the first segments."""
    plain, _ = evaluate(saved)
    row = json.loads((saved / "rows.jsonl").read_text().splitlines()[0])
    row = row | {"sentences": [*row["sentences"], "it never was", "nor this"], "segments": [*row["segments"], [], []]}
    other = (saved / "rows.jsonl").read_text().splitlines()[1]
    (saved / "more.jsonl").write_text(json.dumps(row) + "\n" + other)
    processor = ScadaProcessor.from_pretrained(saved / "model")
    processor.found_threshold = 2.0  # rejects all: precision 2/5, recall 1
    processor.save_pretrained(saved / "model")
    record, predictions = evaluate(saved, data="more.jsonl")
    metrics = record["metrics"]
    assert {name: metrics[name] for name in plain["metrics"]} == pytest.approx(plain["metrics"])
    scores = {True: [], False: []}
    for prediction in predictions:
        scores[bool(prediction["targets"])].append(prediction["segments"][0][2])
    assert [len(scores[True]), len(scores[False])] == [3, 2]
    wins = [(a > b) + (a == b) / 2 for a in scores[True] for b in scores[False]]
    assert metrics["AUROC"] == pytest.approx(100 * sum(wins) / 6)
    assert metrics["RejF1"] == pytest.approx(100 * 2 * 2 / (5 + 2)) and metrics["found_threshold"] == 2.0


def test_a_broken_video_stops_the_evaluation_or_is_left_out_and_named(saved):
    whole, _ = evaluate(saved)
    (saved / "b.webm").write_bytes((saved / "b.webm").read_bytes()[:100])
    with pytest.raises(VideoReadError, match=r"b\.webm"):
        evaluate(saved)
    record, predictions = evaluate(saved, "--skip_broken_videos")
    assert [row["video"] for row in predictions] == ["a", "a"]
    assert (record["videos"], record["sentences"]) == (1, 2) and whole["sentences"] == 3
    (broken,) = record["broken_videos"]
    assert broken["video"] == "b.mp4" and "b.webm" in broken["reason"] and broken["sentences"] == 1


def test_videos_that_break_in_different_ways_are_counted(saved, make_clip, capsys):
    """One that is missing, and a long one that ends too early, which is found out window by window."""
    processor = ScadaProcessor.from_pretrained(saved / "model")
    processor.video_processor.window_seconds = 2.0
    processor.save_pretrained(saved / "model")
    expected = evaluate(saved)[1]
    cut = make_clip("cut.mp4", num_frames=100, container_options={"movflags": "faststart"}, codec_options={"g": "10"})
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
    rows = (saved / "rows.jsonl").read_text().splitlines()
    for name in ("gone.mp4", "cut.mp4"):
        rows.insert(0, json.dumps(json.loads(rows[-2]) | {"video": name, "video_id": name}))
    (saved / "rows.jsonl").write_text("\n".join(rows))
    for num_workers in ("0", "2"):
        record, predictions = evaluate(saved, "--skip_broken_videos", "--num_workers", num_workers)
        assert predictions == expected
        assert (record["videos"], record["sentences"]) == (2, 3)
        assert [(video["video"], video["sentences"]) for video in record["broken_videos"]] == [
            ("cut.mp4", 2),
            ("gone.mp4", 2),
        ]
        assert [
            re.search(r"reading stopped at|Could not find the video", video["reason"])[0]
            for video in record["broken_videos"]
        ] == [
            "reading stopped at",
            "Could not find the video",
        ]
        assert "Skipped 2 videos with 4 sentences, which could not be read." in capsys.readouterr().out
    with pytest.raises(VideoReadError, match="cut.mp4"):
        evaluate(saved)


def test_no_video_can_be_read(saved):
    for name in ("a.mp4", "b.webm"):
        (saved / name).write_bytes(b"")
    with pytest.raises(VideoReadError, match=r"All 2 videos are unreadable.*a\.mp4: it is empty"):
        evaluate(saved, "--skip_broken_videos")


def test_results_that_cannot_be_written(saved, monkeypatch, capsys):
    """One line of error, before a model is loaded or a video read."""
    monkeypatch.setattr(evaluation, "load_pipeline", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    (saved / "afile").write_text("")
    command = ["evaluate", str(saved / "model"), str(saved / "rows.jsonl"), "--split", "train"]
    for folder, reason in (("afile/out", "Not a directory"), ("afile", "File exists")):
        assert command_line.main([*command, "--output_dir", str(saved / folder)]) == 1
        assert re.fullmatch(rf"scada evaluate: .*{reason}: '.*{folder}'\n", capsys.readouterr().err)
    options = ["--output_dir", str(saved / "out"), "--qvhighlights", str(saved / "gone.jsonl")]
    assert command_line.main([*command, *options]) == 1
    assert re.fullmatch(r"scada evaluate: Found no annotation file .*gone\.jsonl\.\n", capsys.readouterr().err)


def test_workers_and_streams_find_the_same(saved):
    expected = evaluate(saved)[1]
    assert evaluate(saved, "--num_workers", "2")[1] == expected
    assert evaluate(saved, "--streaming")[1] == expected


def test_a_stream_of_several_files_is_evaluated_as_that_of_one(saved):
    rows = (saved / "rows.jsonl").read_text().splitlines()
    rows.append(json.dumps(json.loads(rows[1]) | {"video_id": "c", "sentences": ["it is still there"]}))
    results = []
    for name, shards in (("one", [rows]), ("three", [[row] for row in rows])):
        (saved / name).mkdir()
        for index, shard in enumerate(shards):
            (saved / name / f"train-{index}.jsonl").write_text("\n".join(shard))
        results.append(evaluate(saved, "--streaming", "--num_workers", "2", data=name))
    (one, predictions), (three, others) = results
    assert one["sentences"] == three["sentences"] == 4 and one["metrics"] == three["metrics"]
    assert sorted(predictions, key=lambda row: row["sentence"]) == sorted(others, key=lambda row: row["sentence"])


def test_submission_to_qvhighlights(saved):
    annotations = [
        {"qid": 7, "query": "it ends ", "vid": "a", "relevant_windows": [[1, 2]]},
        {"qid": 9, "query": "it is\nthere", "vid": "b"},
    ]
    path = saved / "highlight_val_release.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in annotations))
    _, predictions = evaluate(saved, "--qvhighlights", str(path))
    lines = [json.loads(line) for line in (saved / "out" / "submission.jsonl").read_text().splitlines()]
    assert [(line["qid"], line["query"], line["vid"]) for line in lines] == [
        (7, "it ends ", "a"),
        (9, "it is\nthere", "b"),
    ]
    assert [line["pred_relevant_windows"] for line in lines] == [row["segments"] for row in predictions[1:]]
    path.write_text(json.dumps(annotations[0] | {"query": "it was not asked"}))
    with pytest.raises(ValueError, match="it was not asked.*qid 7"):
        evaluate(saved, "--qvhighlights", str(path))
