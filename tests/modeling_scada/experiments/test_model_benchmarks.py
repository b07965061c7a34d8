"""The benchmark runs on tiny shapes and writes its record; bytes are counted by hand too, times are not judged."""

import gc
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
from fresh_process import run_python
from torch import nn
from torch.utils.checkpoint import checkpoint

from processing.data.collator import TemporalGroundingCollator
from processing.video_io import probe


REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.append(str(REPOSITORY / "scripts"))

import benchmark  # noqa: E402

from modeling_scada.experiments import (  # noqa: E402
    input_benchmarks,
    measuring,  # noqa: E402
)
from modeling_scada.experiments import model_benchmarks as script  # noqa: E402


class SumOf(nn.Module):
    """The loss is the sum of what `run` makes of the arguments; a sum keeps nothing."""

    def __init__(self, run, **parts):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.run = run

    def forward(self, pixel_values_videos, features):
        return SimpleNamespace(loss=self.run(self.parts, pixel_values_videos, features).sum())


@pytest.fixture
def batch():
    return {"pixel_values_videos": torch.randn(5, 8), "features": torch.randn(5, 8)}


def test_a_linear_layer_keeps_its_input(batch):
    model = SumOf(lambda parts, pixels, features: parts["linear"](features), linear=nn.Linear(8, 4))
    assert script.saved_activation_bytes(model, batch) == 5 * 8 * 4


def test_a_part_of_a_storage_counts_as_all_of_it_and_once(batch):
    def run(parts, pixels, features):
        return parts["first"](features[:2]) + parts["second"](features[2:4])

    model = SumOf(run, first=nn.Linear(8, 4), second=nn.Linear(8, 4))
    assert script.saved_activation_bytes(model, batch) == 5 * 8 * 4


def test_pixels_parameters_and_buffers_do_not_count(batch):
    def run(parts, pixels, features):
        # A product keeps the factor by which the other one's gradient is multiplied: the pixels, the running mean and
        # the weight, in this order.
        return pixels * parts["norm"].weight * parts["norm"].running_mean + parts["norm"].weight * parts["norm"].bias

    model = SumOf(run, norm=nn.BatchNorm1d(8))
    assert script.saved_activation_bytes(model, batch) == 0


def test_what_is_frozen_keeps_nothing(batch):
    model = SumOf(lambda parts, pixels, features: parts["linear"](features), linear=nn.Linear(8, 4))
    assert script.saved_activation_bytes(model.requires_grad_(False), batch) == 0


def test_layers_keep_their_inputs_and_a_checkpoint_its_own(batch):
    def run(parts, pixels, features):
        return parts["layers"](features)

    def run_checkpointed(parts, pixels, features):
        return checkpoint(parts["layers"], features, use_reentrant=False)

    layers = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 4))
    # The first layer's input, and the sigmoid's result, which is also the last layer's input.
    assert script.saved_activation_bytes(SumOf(run, layers=layers), batch) == (5 * 8 + 5 * 16) * 4
    assert script.saved_activation_bytes(SumOf(run_checkpointed, layers=layers), batch) == 5 * 8 * 4


def test_what_the_loss_does_not_need_is_not_counted_and_nothing_stays(batch):
    def run(parts, pixels, features):
        parts["other"](features).exp()
        return parts["linear"](features)

    model = SumOf(run, linear=nn.Linear(8, 4), other=nn.Linear(8, 32))
    assert script.saved_activation_bytes(model, batch) == 5 * 8 * 4
    assert not any(type(held) is measuring._Packed for held in gc.get_objects())


def test_what_does_not_fit_is_null_and_the_others_are_timed():
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    seconds = input_benchmarks.median_seconds({1: lambda: None, 4: too_large}, repeats=2)
    assert seconds[1] > 0 and seconds[4] is None
    with pytest.raises(ValueError, match="another"):
        script.none_if_out_of_memory(lambda: (_ for _ in ()).throw(ValueError("another")))


def test_the_table_is_relative_to_full_and_names_what_did_not_fit():
    rows = [
        {
            "size": "giant",
            "mode": mode,
            "trainable_parameters": {"backbone": backbone, "head": 3_000_000},
            "bytes_kept": kept,
            "step_seconds": {1: seconds},
        }
        for mode, backbone, kept, seconds in (
            ("full", 1_000_000_000, {1: 2**34, 4: 2**34, 8: None}, 8.0),
            ("scada_outer", 14_000_000, {1: 2**30, 4: 2**31, 8: 2**32}, 2.0),
        )
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in script.tuning_table(rows).split("\n")]
    full, outer = (dict(zip(lines[0], line, strict=True)) for line in lines[2:])
    assert lines[0][:2] == ["size", "mode"] and not any("peak" in title for title in lines[0])
    assert full["saved activations, GiB: 1 / 4 / 8 sentences"] == "16.000 / 16.000 / out of memory"
    assert outer["saved activations, GiB: 1 / 4 / 8 sentences"] == "1.000 / 2.000 / 4.000"
    assert outer["trainable, M: backbone + head"] == "14.00 + 3.00"
    assert outer["saved activations, relative to full"].startswith("0.062 / 0.125 / ")
    assert outer["step, s"] == "2.000" and outer["step, relative to full"] == "0.250"


@pytest.fixture
def one_thread():
    """Where tests run side by side, several threads would mostly wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    rows, _ = input_benchmarks.make_benchmark_videos(
        tmp_path_factory.mktemp("videos"), **input_benchmarks.SMALL_VIDEOS, seed=0
    )
    return rows


def test_the_videos_are_as_said_and_follow_from_the_seed(videos, tmp_path):
    shape = input_benchmarks.SMALL_VIDEOS
    for name in ("again", "other"):
        (tmp_path / name).mkdir()
    again, facts = input_benchmarks.make_benchmark_videos(tmp_path / "again", **shape, seed=0)
    other, _ = input_benchmarks.make_benchmark_videos(tmp_path / "other", **shape, seed=1)
    assert {name: facts[name] for name in shape} == shape
    assert len({Path(row["video"]).read_bytes() for row in [*videos, *other]}) == 2 * shape["num_videos"]
    for row, row_again in zip(videos, again, strict=True):
        assert Path(row["video"]).read_bytes() == Path(row_again["video"]).read_bytes()
        seen = probe(row["video"])
        assert (seen.duration_seconds, seen.height, seen.width) == (2.0, shape["height"], shape["width"])
        with av.open(row["video"]) as container:
            assert container.streams.video[0].codec_context.name == "h264"


def test_without_x264_the_videos_are_mpeg4(tmp_path, tiny_processor, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    rows, facts = input_benchmarks.make_benchmark_videos(tmp_path, **input_benchmarks.SMALL_VIDEOS, seed=0)
    assert facts["encoder"] == "mpeg4" and facts["megabits_per_second"] > 0
    with av.open(rows[0]["video"]) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert TemporalGroundingCollator(tiny_processor)(rows)["pixel_values_videos"].std() > 0.1


def test_loaders_have_to_give_the_same_batches_in_the_same_order(videos, tiny_processor):
    collator = TemporalGroundingCollator(tiny_processor)
    batches = [collator([row]) for row in videos]
    kept = input_benchmarks.check_same_batches(
        {0: batches, 1: input_benchmarks.make_loader(videos, collator, num_workers=1)}
    )
    assert kept is batches[0]
    assert input_benchmarks.check_same_batches({0: batches, 1: [dict(batch) for batch in batches]}) is batches[0]
    with pytest.raises(AssertionError, match="Batch 0 with 1 workers"):
        input_benchmarks.check_same_batches(
            {0: batches, 1: input_benchmarks.make_loader(videos[::-1], collator, num_workers=0)}
        )
    for name in batches[-1]:
        changed = batches[-1][name].clone()
        changed.view(-1)[-1] += 1
        with pytest.raises(AssertionError, match="Batch 3 with 2 workers"):
            input_benchmarks.check_same_batches(
                {0: batches, 1: batches, 2: [*batches[:-1], batches[-1] | {name: changed}]}
            )
        without = {key: value for key, value in batches[-1].items() if key != name}
        with pytest.raises(AssertionError, match="Batch 3 with 1 workers"):
            input_benchmarks.check_same_batches({0: batches, 1: [*batches[:-1], without]})
    with pytest.raises(ValueError, match="shorter"):
        input_benchmarks.check_same_batches({0: batches, 1: batches[:-1]})


@pytest.fixture
def plain():
    return script.ScadaForTemporalGrounding(script.model_config("tiny"))


def test_other_batches_are_found_before_anything_is_timed(plain, videos, monkeypatch, one_thread):
    make_loader = input_benchmarks.make_loader
    monkeypatch.setattr(input_benchmarks, "NUM_WORKERS", (0, 1))
    monkeypatch.setattr(
        input_benchmarks, "make_loader", lambda rows, collator, n: make_loader(rows[:: 1 - 2 * n], collator, 0)
    )
    monkeypatch.setattr(
        input_benchmarks, "median_seconds", lambda functions, repeats: pytest.fail("something was timed")
    )
    with pytest.raises(AssertionError, match="Batch 0 with 1 workers"):
        input_benchmarks.benchmark_input_pipeline(plain, videos, num_frames=16, repeats=1)


@pytest.mark.parametrize("step_seconds, ratios", [(0.5, {0: 2.0, 1: 0.5}), (None, {0: None, 1: None})])
def test_the_pipeline_is_compared_video_by_video(plain, videos, monkeypatch, one_thread, step_seconds, ratios):
    def median_seconds(functions, repeats):
        for function in functions.values():
            function()
        seconds = {0: 4.0, 1: 1.0}
        return (
            {("uint8", n): seconds[n] for n in seconds}
            | {("float32", n): 2 * seconds[n] for n in seconds}
            | {"step": step_seconds}
        )

    monkeypatch.setattr(input_benchmarks, "NUM_WORKERS", (0, 1))
    monkeypatch.setattr(input_benchmarks, "median_seconds", median_seconds)
    figures = input_benchmarks.benchmark_input_pipeline(plain, videos, num_frames=16, repeats=1)
    assert figures["pixel_bytes"] == {"uint8": 16 * 3 * 32 * 32, "float32": 4 * 16 * 3 * 32 * 32}
    assert figures["videos_per_second"] == {"uint8": {0: 1.0, 1: 4.0}, "float32": {0: 0.5, 1: 2.0}}
    assert figures["step_seconds"] == step_seconds and figures["pipeline_over_step"]["uint8"] == ratios
    table = input_benchmarks.pipeline_table([{"size": "tiny", "mode": "scada"} | figures])
    assert (
        "| tiny | scada | uint8 | 0.049 | 1.000 / 4.000 | " in table
        and "| 0.500 / 2.000 |" in table
        and ("out of memory" in table) == (step_seconds is None)
    )


def run_small(output_dir, *parts):
    command = ["scripts/benchmark.py", "--small", "--repeats", "1", "--output_dir", output_dir]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}  # See `one_thread`.
    done = run_python([*command, "--parts", *parts], REPOSITORY, environment)
    assert done.returncode == 0, done.stderr
    return json.loads((output_dir / "benchmark.json").read_text())


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("bench")
    return run_small(output_dir, "proposal_features", "tuning", "backbone", "input_pipeline")


def test_the_record_says_where_it_comes_from(record):
    assert {"device", "device_name", "dtype", "threads", "commit", "seed", "date", "num_frames"} <= set(record)
    assert set(record["versions"]) == {"torch", "transformers", "peft"}


def test_the_ways_of_the_proposal_features_are_timed(record):
    times = record["results"]["proposal_features"]
    assert times.pop("device") == "cpu"
    assert set(times) == {"seconds", "csr_ratio", "literal_ratio"}
    assert all(value > 0 for value in times.values())


def test_each_mode_has_its_figures(record):
    rows = record["results"]["tuning"]
    assert [(row["size"], row["mode"]) for row in rows] == [("tiny", mode) for mode in script.MODES]
    for row in rows:
        assert set(row["bytes_kept"]) == {"1", "4", "8"} and row["step_seconds"]["1"] > 0
        assert ("bytes_kept_checkpointed" in row) == (
            row["mode"] in ("full", "scada_both", "scada_outer", "scada_pooling")
        )
        assert ("inference_seconds" in row) == (row["mode"] not in ("full", "partial", "lora", "tia"))
        assert all(seconds > 0 for seconds in row.get("inference_seconds", {"1": 1.0}).values())


def test_the_counts_are_as_the_placement_of_the_weights_demands(record):
    rows = {row["mode"]: row for row in record["results"]["tuning"]}
    kept = {mode: {int(n): value for n, value in row["bytes_kept"].items()} for mode, row in rows.items()}
    trainable = {mode: row["trainable_parameters"]["backbone"] for mode, row in rows.items()}
    assert trainable["frozen"] == 0
    assert trainable["scada_both"] == trainable["scada_inner"] + trainable["scada_outer"]
    assert trainable["tia"] < trainable["scada_inner"] < trainable["partial"] < trainable["full"]
    assert len({row["trainable_parameters"]["head"] for row in rows.values()}) == 1
    for n in (1, 4, 8):
        assert kept["frozen"][n] < kept["scada_outer"][n] < kept["full"][n]
        assert kept["tia"][n] < kept["full"][n]
        # A sentence of a pooling branch keeps vectors of width `r` for each place, an inner branch those of layers.
        assert kept["scada_outer"][n] < kept["scada_pooling"][n] < kept["scada_inner"][n]
    # The backbone's share, as `frozen` has the head's: a video's sentences share it, but for inner branches'.
    backbone = {mode: {n: kept[mode][n] - kept["frozen"][n] for n in (1, 4, 8)} for mode in kept}
    assert backbone["full"][8] < 1.01 * backbone["full"][1]
    assert backbone["scada_outer"][8] < 1.5 * backbone["scada_outer"][1]
    assert backbone["scada_inner"][8] > 6 * backbone["scada_inner"][1]
    for mode in ("full", "scada_both"):
        assert all(value < kept[mode][int(n)] for n, value in rows[mode]["bytes_kept_checkpointed"].items())


def test_the_backbone_is_beside_its_limit(record):
    (row,) = record["results"]["backbone"]
    # Of 4 clips and 4 layers of width 32: 32 tokens of 2 x 16 x 16 x 3 pixels each, four projections, an MLP of 64.
    linear = 2 * 4 * 32 * (1536 * 32 + 4 * (4 * 32 * 32 + 2 * 32 * 64))
    attention = 4 * 4 * 2 * 2 * 32 * 32 * 32
    assert row["size"] == "tiny" and row["operations"] == linear + attention
    assert "float32" in row["seconds"]  # and bfloat16 where there are instructions for it
    for dtype in row["seconds"]:
        limit_seconds = row["operations"] / row["operations_per_second"][dtype]
        assert row["of_limit"][dtype] == pytest.approx(limit_seconds / row["seconds"][dtype])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch.compile's kernels is not installed")
def test_the_compiled_model_is_beside_the_other(tmp_path):
    (row,) = run_small(tmp_path, "graph")["results"]["graph"]
    assert set(row) == {"size", "inference", "step"}
    for what in ("inference", "step"):
        assert row[what]["first_call_seconds"] > row[what]["seconds"] > 0 and row[what]["over_eager"] > 0


def test_the_input_pipeline_has_its_figures(record):
    pipeline = record["results"]["input_pipeline"]
    (row,) = pipeline.pop("rows")
    assert set(pipeline) == {"encoder", "megabits_per_second", *input_benchmarks.SMALL_VIDEOS}
    assert (row["size"], row["mode"]) == ("tiny", "scada_pooling")
    assert set(row["videos_per_second"]) == set(row["pipeline_over_step"]) == {"uint8", "float32"}
    for pixels, rates in row["videos_per_second"].items():
        assert set(rates) == set(row["pipeline_over_step"][pixels]) == {"0", "1", "2"}
        for workers, rate in rates.items():
            assert rate > 0 and row["step_seconds"] > 0
            assert row["pipeline_over_step"][pixels][workers] == pytest.approx(1 / rate / row["step_seconds"])


def test_nothing_is_timed_if_not_asked_for(tmp_path, monkeypatch, capsys, one_thread):
    arguments = ["--small", "--no_time", "--parts", "tuning", "--modes", "scada_outer", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    benchmark.main()
    results = json.loads((tmp_path / "benchmark.json").read_text())["results"]
    assert set(results) == {"tuning"}
    figures = {"size", "mode", "trainable_parameters", "bytes_kept", "bytes_kept_checkpointed"}
    assert [set(row) for row in results["tuning"]] == [figures]
    assert "| tiny | scada_outer |" in capsys.readouterr().out
