"""
Run a study: a recipe in several modes, on several backbones and with several seeds.

Each run has its own process. Modes are compared at equal steps and at equal training time. A restarted study skips
the finished runs.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import chdir
from itertools import islice, product
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from processing.data.annotations import load_annotations
from processing.data.collator import TemporalGroundingCollator
from processing.data.files import resolve_video_root
from processing.data.row_sampler import RowSampler
from processing.results.provenance import REPOSITORY, append_jsonl_row, get_commit, read_jsonl_rows

from ..training.recipe import build_model, parse_arguments
from ..training.tuning import prepare_tuning
from .measuring import saved_activation_bytes


# Recipe arguments by mode.
MODES = {
    "frozen": {"tuning": "frozen"},
    "partial": {"tuning": "partial"},
    "full": {"tuning": "full"},
    "lora": {"tuning": "lora"},
    "tia": {"tuning": "tia"},
    "inner": {"tuning": "scada", "scada_branches": "inner"},
    "outer": {"tuning": "scada", "scada_branches": "outer"},
    "both": {"tuning": "scada", "scada_branches": "both"},
    "pooling": {"tuning": "scada", "scada_branches": "pooling"},
}
BUDGETS = ("equal_steps", "equal_time")
VALIDATION_METRIC = "validation_R1@0.5"
METRICS = ("R1@0.3", "R1@0.5", "R1@0.7", "R5@0.5", "mIoU")
# Settings of glibc. By default, it returns large tensors to the system, which zeroes them again in every step. This
# takes a sixth of a tiny model's training time.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
# Number of evaluations during a run. Their time does not count as training time.
CURVE_POINTS = 4
# Loss in the lines that `Trainer` prints every `logging_steps`.
LOGGED_LOSS = re.compile(r"'loss': '?([^',}]+)")


def train(recipe: Path, data_dir: Path, run_dir: Path, **overrides) -> dict[str, Any]:
    """
    Run a recipe in a separate process, on one core.

    Args:
        recipe (`Path`): Recipe file.
        data_dir (`Path`): Folder of the data set.
        run_dir (`Path`): Folder for the model, the results and `train.log`. An existing folder is replaced.
        **overrides: Arguments that override the recipe.

    Returns:
        `dict[str, Any]`: Metrics of the evaluation in percent, `steps`, `train_seconds` (processor time without
        evaluations, which equals the time on an otherwise idle core), `trainable_backbone` (number of trainable
        parameters in the backbone), and `curve` (metrics of each evaluation with its `step`). If the recipe has a
        `validation_split`, the curve includes its R@1, IoU=0.5.

    Raises:
        RuntimeError: If the run fails. Its output is in `train.log`.
    """
    if run_dir.exists():
        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True)
    arguments = json.loads(recipe.read_text(encoding="utf-8")) | {
        "dataset": str(data_dir),
        "output_dir": str(run_dir),
        **overrides,
    }
    (run_dir / "recipe.json").write_text(json.dumps(arguments, indent=2), encoding="utf-8")
    command = [sys.executable, "-m", "processing.commands.main", "train", str(run_dir / "recipe.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | KEEP_FREED_MEMORY
    with (
        open(run_dir / "train.log", "w", encoding="utf-8") as log,
        tqdm(total=arguments["max_steps"], desc=run_dir.name, unit="step") as bar,
        subprocess.Popen(
            [*command, "--disable_tqdm", "True"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        ) as process,
    ):
        for line in process.stdout or ():
            log.write(line)
            if found := LOGGED_LOSS.search(line):
                bar.set_postfix(loss=found[1], refresh=False)
                bar.update(min(arguments["logging_steps"], bar.total - bar.n))
    if process.returncode:
        raise RuntimeError(f"The run {run_dir.name} failed; see {run_dir / 'train.log'}.")
    evaluation = json.loads((run_dir / "eval_results.json").read_text(encoding="utf-8"))
    training = json.loads((run_dir / "train_results.json").read_text(encoding="utf-8"))
    result = {metric: round(evaluation[f"eval_{metric}"], 2) for metric in METRICS}
    result |= {"steps": arguments["max_steps"], "train_seconds": round(training["train_processor_seconds"], 1)}
    result["trainable_backbone"] = training["trainable_backbone"]
    log = json.loads((run_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    # With a validation split, an evaluation has two entries, and the final test evaluation adds a third.
    prefix = "eval_test_" if arguments.get("validation_split") else "eval_"
    points: dict[int, dict] = {}
    for entry in log:
        points.setdefault(entry["step"], {}).update(entry)
    result["curve"] = [
        {"step": step}
        | {metric: round(entry[prefix + metric], 2) for metric in METRICS}
        | {name: round(entry[f"eval_{name}"], 2) for name in [VALIDATION_METRIC] if f"eval_{name}" in entry}
        for step, entry in points.items()
        if f"{prefix}mIoU" in entry
    ]
    return result


def mode_arguments(mode: str) -> dict:
    """
    Return the recipe arguments of a mode, such as `outer` or `frozen/learning_rate=0.001`.

    Raises:
        ValueError: If the mode is unknown, or an argument after a slash is not `name=value` with a JSON value.
    """
    name, *pairs = re.split(r"/(?=\w+=)", mode)  # a value may be a path
    if name not in MODES:
        raise ValueError(f"Received the mode {mode!r}; expected one of {list(MODES)}, followed by /argument=value.")
    return MODES[name] | {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def measure_saved_bytes(recipe: Path) -> int:
    """
    Measure the activations that a training step saves for the backward pass, on the CPU.

    Args:
        recipe (`Path`): Recipe of the run. The batch consists of the first rows of its data set, equal in all modes.

    Returns:
        `int`: Number of bytes, see [`saved_activation_bytes`].
    """
    with chdir(REPOSITORY):  # the runs start there too, and a recipe's paths may be relative
        model_args, data_args, training_args = parse_arguments([str(recipe)])
        base_model, processor = build_model(model_args)
        model: Any = prepare_tuning(base_model, model_args).train()
        if training_args.gradient_checkpointing:
            # transformers 5.18 has only the second name, which later releases deprecate.
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable(training_args.gradient_checkpointing_kwargs)
        collator = TemporalGroundingCollator(processor, resolve_video_root(data_args.dataset, data_args.video_root))
        sampler = RowSampler(processor, data_args.max_sentences, seed=training_args.seed)
        sampler.set_epoch(0)
        rows = sampler.apply(load_annotations(data_args.dataset, data_args.train_split, data_args.streaming))
        batch = collator(list(islice(rows, training_args.per_device_train_batch_size)))
        with torch.autocast("cpu", torch.bfloat16, enabled=training_args.bf16):
            return saved_activation_bytes(model, batch)


def _run_all(jobs: list[dict], video_models: dict[str, str], recipe: Path, output_dir: Path, num_workers: int) -> None:
    """
    Run the jobs that `results.jsonl` does not contain yet.

    Args:
        jobs (`list[dict]`): Jobs, each with `backbone`, `mode`, `budget`, `seed` and `max_steps`.
        video_models (`dict[str, str]`): Checkpoint of each backbone.
        recipe (`Path`): Recipe file.
        output_dir (`Path`): Folder of the study.
        num_workers (`int`): Number of parallel runs, on one core each.
    """
    results_path = output_dir / "results.jsonl"
    rows = read_jsonl_rows(results_path)
    key = itemgetter("backbone", "mode", "budget", "seed")
    done = {key(row) for row in rows}
    jobs = [job for job in jobs if key(job) not in done]
    saved_bytes = {(row["backbone"], row["mode"]): row["bytes_kept"] for row in rows}
    commit = get_commit()

    def run_dir(job: dict) -> Path:
        name = re.sub(r"[^\w=]+", "_", f"{job['mode']}_{job['budget']}_{job['seed']}")
        return output_dir / "runs" / job["backbone"] / name

    def run(job: dict) -> dict:
        overrides = mode_arguments(job["mode"]) | {name: job[name] for name in ("seed", "max_steps")}
        overrides["video_model"] = video_models[job["backbone"]]
        steps = max(1, job["max_steps"] // CURVE_POINTS)
        # If the recipe selects a checkpoint on its validation split, each of these is a candidate.
        overrides |= {"eval_strategy": "steps", "eval_steps": steps, "save_steps": steps}
        return train(recipe, output_dir / "data", run_dir(job), **overrides)

    with ThreadPoolExecutor(num_workers) as pool:
        running = {pool.submit(run, job): job for job in jobs}
        try:
            for finished in tqdm(as_completed(running), total=len(jobs), desc="runs"):
                job, result = running[finished], finished.result()
                model = (job["backbone"], job["mode"])
                # Not in `run`, because loading models in two threads at once is not safe.
                if model not in saved_bytes:
                    saved_bytes[model] = measure_saved_bytes(run_dir(job) / "recipe.json")
                facts = {"bytes_kept": saved_bytes[model], "date": time.strftime("%Y-%m-%d"), "commit": commit}
                append_jsonl_row(results_path, job | result | facts)
        finally:
            # After a failure, the remaining runs do not start, because their results would be lost.
            pool.shutdown(cancel_futures=True)


def run_study(
    recipe: Path,
    output_dir: Path,
    modes: list[str],
    video_models: dict[str, str],
    equal_time: list[str],
    seeds: list[int],
    max_steps: int,
    num_workers: int,
) -> list[dict]:
    """
    Run all jobs of a study that `results.jsonl` does not contain yet.

    First, all modes run for the same number of steps. Then the modes in `equal_time` run for as many steps as fit into
    the mean training time of full fine-tuning of the same backbone.

    Args:
        recipe (`Path`): Recipe file.
        output_dir (`Path`): Folder of the study, with the data set in `data`.
        modes (`list[str]`): Modes, see [`mode_arguments`].
        video_models (`dict[str, str]`): Checkpoint of each backbone, by name.
        equal_time (`list[str]`): Modes that also run at equal time.
        seeds (`list[int]`): Seeds of the runs.
        max_steps (`int`): Number of steps per run.
        num_workers (`int`): Number of parallel runs, on one core each.

    Returns:
        `list[dict]`: Rows of `results.jsonl`.

    Raises:
        RuntimeError: If a run fails.
    """
    jobs = [
        {"backbone": backbone, "mode": mode, "budget": "equal_steps", "seed": seed, "max_steps": max_steps}
        for seed, backbone, mode in product(seeds, video_models, modes)
    ]
    _run_all(jobs, video_models, recipe, output_dir, num_workers)
    rows = read_jsonl_rows(output_dir / "results.jsonl")
    jobs = [
        {
            "backbone": backbone,
            "mode": mode,
            "budget": "equal_time",
            "seed": seed,
            "max_steps": round(
                max_steps * mean_training_seconds(rows, backbone, "full") / mean_training_seconds(rows, backbone, mode)
            ),
        }
        for seed, backbone, mode in product(seeds, video_models, equal_time)
    ]
    _run_all(jobs, video_models, recipe, output_dir, num_workers)
    return read_jsonl_rows(output_dir / "results.jsonl")


def select_runs(rows: list[dict], backbone: str, mode: str, budget: str) -> list[dict]:
    """Return the runs of a backbone in a mode and budget, one per seed."""
    return [row for row in rows if (row["backbone"], row["mode"], row["budget"]) == (backbone, mode, budget)]


def mean_training_seconds(rows: list[dict], backbone: str, mode: str) -> float:
    """Return the mean training time of a backbone in a mode at equal steps, in seconds."""
    return statistics.mean(row["train_seconds"] for row in select_runs(rows, backbone, mode, "equal_steps"))
