"""The benchmark of encoding once runs on a tiny shape and writes its record; times are not judged."""

import json
import sys
from pathlib import Path

import pytest
from transformers import pipeline


sys.path.append(str(Path(__file__).resolve().parents[3] / "scripts"))

import benchmark_library  # noqa: E402


def test_the_record(tiny_model, tiny_processor, make_clip, tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    rows = []
    for index in range(5):
        make_clip(f"videos/{index}.mp4", num_frames=10)
        row = {"video": f"{index}.mp4", "duration": 1.0, "sentences": [f"opens {index}"], "segments": [[[0.0, 0.5]]]}
        rows.append(json.dumps(row))
    (tmp_path / "videos" / "test.jsonl").write_text("\n".join(rows))
    pipe = pipeline("temporal-grounding", model=tiny_model, processor=tiny_processor, device="cpu")
    pipe.save_pretrained(tmp_path / "model")
    command = ["benchmark_library.py", "--size", "tiny", "--num_frames", "16", "--modes", "scada_outer"]
    command += ["--repeats", "1", "--videos", str(tmp_path / "videos"), "--model", str(tmp_path / "model")]
    command += ["--num_windows", "5", "12", "--num_candidates", "3", "--data", str(tmp_path / "videos")]
    command += ["--output_dir", str(tmp_path), "--minutes", "0.1", "0.2", "--window_seconds", "2"]
    monkeypatch.setattr(sys, "argv", command)
    benchmark_library.main()
    record = json.loads((tmp_path / "benchmark_library.json").read_text())
    assert set(record["versions"]) == {"torch", "transformers", "peft"} and record["commit"] and record["seed"] == 0
    results = record["results"]
    (asking,) = results["asking"]
    # One window of 8 steps and 32 channels, and two outer branches of 8 in float32.
    assert asking["bytes"] > 8 * 32 * 4 and asking["ask_over_direct"] > 0
    # 6 and 12 seconds in windows of 2 that overlap by half, each of 8 steps and 32 channels in float32.
    assert [row["windows"] for row in results["long"]] == [5, 11]
    for row in results["long"]:
        assert row["bytes"] == row["windows"] * 8 * 32 * 4 < row["peak_bytes"]
        larger_seconds = max(row["read_seconds"], row["model_seconds"])
        assert (
            row["encode_over_larger"] == pytest.approx(row["encode_seconds"] / larger_seconds) and larger_seconds > 0
        )
    assert results["index"]["videos"] == 5 and results["index"]["index_bytes_per_video"] > 8 * 32 * 4
    assert [row["windows"] for row in results["search"]] == [5, 15]
    recall = results["recall"]
    assert (recall["windows"], recall["videos"], recall["sentences"], recall["videos_of_a_sentence"]) == (5, 5, 5, 1.0)
    # The first half is the segment of all; it is in one of five videos, and the first ten are all of them.
    assert recall["chance"] == {"R1@0.5": pytest.approx(20), "R10@0.5": 100}
    assert [row["num_candidates"] for row in recall["searches"]] == [3, 5]
    assert recall["video_known"]["video_R1"] == 100 and recall["searches"][1]["video_R1"] <= 100
    # Without a retrieval branch the head looks at all windows.
    metrics = [{name: row[name] for name in recall["video_known"]} for row in recall["searches"]]
    assert metrics[0] == metrics[1]
