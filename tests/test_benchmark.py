"""The benchmark runs on tiny shapes and writes its record; its times are not judged."""

import json
import subprocess
import sys
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_benchmark_checks_equality_and_writes_its_record(tmp_path):
    command = [sys.executable, "scripts/benchmark.py", "--small", "--repeats", "1", "--output_dir", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert {"versions", "device", "commit", "seed", "results"} <= set(record)
    assert set(record["results"]["proposal_features"]) == {"seconds", "csr_ratio", "literal_ratio"}
    assert set(record["results"]["sentences"]) == {"seconds", "4_sentences_ratio", "16_sentences_ratio"}
    assert all(value > 0 for times in record["results"].values() for value in times.values())
