"""The benchmark of readers on tiny videos: it knows which frames a reader gave, and its table and record add up."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest


REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "scripts"))

import benchmark_reading as script  # noqa: E402

from processing.video_io import read_frames  # noqa: E402


CELL = script.SMALL_CELLS[0]
# A period and a bit of the next, with few enough pixels to be made in no time.
LONG_CELL = script.Cell("h264", 250, 2 * script.PERIOD_SECONDS, 64, 96, 30)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("videos")


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_reading.py", *arguments])
    script.main()


def make_row(cell: str, **speeds: float | str) -> dict:
    """A row with readers' frames per second, or what was wrong; `_` stands for a space."""
    return {
        "cell": cell,
        "readers": {
            name.replace("_", " "): {"error": value} if isinstance(value, str) else {"frames_per_second": value}
            for name, value in speeds.items()
        },
    }


@pytest.mark.parametrize("number", [0, 1, 341, 682, 749, 1023])
def test_a_drawn_number_is_read_back(number):
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    numbered = script.draw_number(image, number)
    assert script.drawn_numbers(numbered[None]) == [number]
    np.testing.assert_array_equal(numbered[8:], image[8:])


@pytest.mark.parametrize("cell", script.SMALL_CELLS, ids=lambda cell: cell.codec)
def test_numbers_survive_the_codec_and_scaling(cell, videos):
    path = script.make_video(cell, videos, seed=0)
    indices = np.arange(cell.duration_seconds * script.FPS)
    for size in (None, (160, 160), (40, 100)):
        frames = read_frames(path, (indices + 0.5) / script.FPS, size=size)
        np.testing.assert_array_equal(script.drawn_numbers(frames), indices)


def test_a_long_video_repeats_its_first_period(videos):
    path = script.make_video(LONG_CELL, videos, seed=0)
    num_frames = script.PERIOD_SECONDS * script.FPS
    indices = np.arange(0, 2 * num_frames)
    frames = read_frames(path, (indices + 0.5) / script.FPS, size=(40, 40))
    np.testing.assert_array_equal(script.drawn_numbers(frames), indices % num_frames)
    np.testing.assert_array_equal(frames[:num_frames], frames[num_frames:])
    assert [p.name for p in videos.iterdir() if p.stem in ("period", "whole")] == []


def test_all_cells_ask_for_different_frames_of_their_videos():
    for cell in (*script.CELLS, *script.SMALL_CELLS):
        assert cell.num_frames == len(set(cell.indices.tolist()))
        assert 0 <= cell.indices[0] < cell.indices[-1] < cell.duration_seconds * script.FPS
        assert cell.duration_seconds <= script.PERIOD_SECONDS or cell.duration_seconds % script.PERIOD_SECONDS == 0
    assert len({cell.name for cell in script.CELLS}) == len(script.CELLS)


def read_shifted(path, cell):
    return read_frames(path, (cell.indices + 1.5) / script.FPS, size=(script.SIDE, script.SIDE))


def read_first_too_late(path, cell):
    frames = script.read_with_ours(path, cell)
    frames[0] = read_shifted(path, cell)[0]
    return frames


def test_a_wrong_reader_gets_no_time(videos):
    def read_nothing(path, cell):
        raise OSError("[17:39:59] /src/a.cc:292: no\nsuch | codec")

    readers = {
        "ours": script.read_with_ours,
        "transformers": script.read_with_transformers,
        "shifted": read_shifted,
        "one shifted": read_first_too_late,
        "too few": lambda path, cell: script.read_with_ours(path, cell)[1:],
        "blue for red": lambda path, cell: script.read_with_ours(path, cell)[..., ::-1],
        "failing": read_nothing,
    }
    results = script.measure_cell(CELL, script.make_video(CELL, videos, seed=0), readers, repeats=1)
    errors = {name: result["error"] for name, result in results.items() if "error" in result}
    assert errors.pop("blue for red").startswith("other pixels, by ")
    assert errors == {
        "shifted": "wrong frames: 8 of 8",
        "one shifted": "wrong frames: 1 of 8",
        "too few": "wrong shape: (7, 160, 160, 3)",
        "failing": "OSError: no such / codec",
    }
    assert {name for name, result in results.items() if "seconds" in result} == {"ours", "transformers"}
    for name in ("ours", "transformers"):
        assert results[name]["frames_per_second"] == pytest.approx(8 / results[name]["seconds"])
    assert results["ours"]["mean_difference"] <= results["transformers"]["mean_difference"] < script.MAX_DIFFERENCE


def test_a_video_with_other_numbers_is_noticed(tmp_path, monkeypatch):
    draw_number = script.draw_number
    monkeypatch.setattr(script, "draw_number", lambda image, number: draw_number(image, number + 1))
    path = script.make_video(CELL, tmp_path, seed=0)
    with pytest.raises(AssertionError):
        script.measure_cell(CELL, path, {}, repeats=1)


def test_opencv_seeks_only_where_that_spares_frames():
    peers = {"opencv": "5.0.0"}
    assert set(script.readers_for(script.Cell("h264", 12, 30, 64, 96, 64), peers)) == {
        "ours",
        "transformers",
        "opencv grab",
        "opencv seek",
    }
    assert "opencv seek" not in script.readers_for(script.Cell("h264", 250, 30, 64, 96, 64), peers)


def test_table():
    rows = [
        make_row(
            "a", ours=100.0, transformers=50.0, opencv_grab=20.0, opencv_seek=80.0, decord="wrong frames: 3 of 8"
        ),
        make_row("b", ours=300.0, transformers=37.5, opencv_grab=600.0, decord=100.0),
        make_row("c", ours="wrong frames: 1 of 8", transformers=10.0, opencv_grab=5.0, decord="OSError: no"),
    ]
    # Of transformers 2 and 8, of decord 3 alone, of OpenCV 1.25 and 0.5, which are the smallest of their rows too.
    assert script.markdown_table(rows).splitlines() == [
        "| cell | ours, frames/s | ours / transformers | ours / decord | ours / opencv | smallest ratio |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | 100.0 | 2.00 | wrong frames: 3 of 8 | 1.25 seek | 1.25 |",
        "| b | 300.0 | 8.00 | 3.00 | 0.50 grab | 0.50 |",
        "| c | wrong frames: 1 of 8 | - | OSError: no | - | - |",
        "| geometric mean (cells) | - | 4.00 (2) | 3.00 (1) | 0.79 (2) | 0.79 (2) |",
    ]
    assert f"{(1.25 * 0.5) ** 0.5:.2f}" == "0.79"


def test_small_run_and_resumption(tmp_path, monkeypatch):
    arguments = ["--small", "--repeats", "1", "--output_dir", str(tmp_path)]
    run(monkeypatch, *arguments, "--cells", "vp9")
    results_path = tmp_path / "results.jsonl"
    first_line = results_path.read_text()
    row = json.loads(first_line)
    assert row["cell"] == script.SMALL_CELLS[1].name
    assert {"date", "commit", "cores", "device", "seed"} <= row.keys()
    assert row["versions"].keys() | row["missing"].keys() == {"av", "transformers", "torch", *script.PEER_MODULES}
    assert {"ours", "transformers"} <= row["readers"].keys()
    assert {name: result["error"] for name, result in row["readers"].items() if "error" in result} == {}

    measured = []
    measure_cell = script.measure_cell
    monkeypatch.setattr(script, "measure_cell", lambda cell, *rest: measured.append(cell) or measure_cell(cell, *rest))
    run(monkeypatch, *arguments)
    run(monkeypatch, *arguments)
    assert measured == [script.SMALL_CELLS[0]]
    assert results_path.read_text().startswith(first_line)
    assert len((tmp_path / "table.md").read_text().splitlines()) == 2 + len(script.SMALL_CELLS) + 1


def test_cells_that_are_none_are_refused(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--cells", "av1", "--output_dir", str(tmp_path))
    assert "av1 is part of no name" in capsys.readouterr().err
