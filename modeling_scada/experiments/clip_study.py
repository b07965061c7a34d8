"""
Run a study with cross-validation on videos composed of short clips.

The groups of the clips, such as people, are split into folds. Each fold is the test set once, and all modes run on it.
One group outside the fold serves as the validation set that selects the checkpoint, the same group for all modes.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_from_disk

from processing.data.composition import CompositionSettings, compose, read_clip_table
from processing.metrics import recall_at
from processing.post_processing import temporal_iou
from processing.results.provenance import read_jsonl_rows

from .study import run_study


# Number of equal steps of a video where a constant segment may start and end.
CONSTANT_STEPS = 20


def assign_folds(groups: Sequence[str], num_folds: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """
    Split groups into folds of about equal size.

    Args:
        groups (`Sequence[str]`): Names of the groups.
        num_folds (`int`): Number of folds.
        seed (`int`): Seed of the random order of the groups.

    Returns:
        `list[tuple[list[str], list[str]]]`: Test groups and validation group of each fold. The validation group is the
        first group of the next fold.

    Raises:
        ValueError: If there are fewer than two folds, or no group is left for training.
    """
    if not 2 <= num_folds <= len(groups) or len(groups) < 3:
        raise ValueError(
            f"Received {num_folds} folds of {len(groups)} groups; expected at least two folds, at least three groups, "
            "and at least one group per fold."
        )
    order = np.random.default_rng(seed).permutation(sorted(groups)).tolist()
    folds = [order[first::num_folds] for first in range(num_folds)]
    return [(fold, [folds[(index + 1) % num_folds][0]]) for index, fold in enumerate(folds)]


def constant_baseline(data_dir: Path) -> dict[str, Any]:
    """
    Return the metrics of a constant segment on the test split.

    The segment is a fixed share of each video, selected on the training split.
    """
    ious: dict[str, np.ndarray] = {}
    edges = np.arange(CONSTANT_STEPS + 1) / CONSTANT_STEPS
    candidates = np.array(list(combinations(edges, 2)))
    for split, rows in load_from_disk(str(data_dir)).items():
        targets = [np.array(segments[0]) / row["duration"] for row in rows for segments in row["segments"]]
        ious[split] = temporal_iou(candidates, np.array(targets))
    best = int((ious["train"] >= 0.5).mean(1).argmax())
    metrics = recall_at(ious["test"][best][:, None])
    return {"segment": candidates[best].tolist()} | {name: round(value, 2) for name, value in metrics.items()}


def study_clips(
    recipe: Path,
    table: Path,
    videos: Path,
    output_dir: Path,
    modes: list[str],
    num_folds: int,
    only_folds: Sequence[int],
    seeds: list[int],
    max_steps: int,
    num_workers: int,
    composition: CompositionSettings,
) -> list[dict]:
    """
    Compose the videos of each fold if needed, and run all jobs that the fold's `results.jsonl` does not contain yet.

    Args:
        recipe (`Path`): Recipe with a `validation_split`.
        table (`Path`), videos (`Path`): Table and folder of the clips, see [`compose`].
        output_dir (`Path`):
            Folder of the study. It gets a subfolder per fold, such as `fold_0`, with the videos and runs, and a
            `results.jsonl` over all folds.
        modes (`list[str]`): Modes, see [`mode_arguments`].
        num_folds (`int`): Number of folds.
        only_folds (`Sequence[int]`): Folds to run now.
        seeds (`list[int]`): Seeds of the runs.
        max_steps (`int`): Number of steps per run.
        num_workers (`int`): Number of parallel runs, on one core each.
        composition ([`CompositionSettings`]): Settings of the videos, without groups.

    Returns:
        `list[dict]`: Rows of `results.jsonl`, each with its `fold`, including one row of the mode "constant" per fold.

    Raises:
        ValueError: If the recipe has no video model or no validation split, or as for [`assign_folds`] and
            [`compose`].
        RuntimeError: If a run fails.
    """
    defaults = json.loads(recipe.read_text(encoding="utf-8"))
    if missing := {"video_model", "validation_split"} - set(defaults):
        raise ValueError(f"The recipe {recipe} lacks {sorted(missing)}; a clip study requires both arguments.")
    groups = sorted({clip.group for clip in read_clip_table(table)})
    folds = assign_folds(groups, num_folds, seed=0)
    rows = []
    for fold, (test_groups, validation_groups) in enumerate(folds):
        fold_dir = output_dir / f"fold_{fold}"
        if fold in only_folds:
            if not (fold_dir / "data" / "dataset_dict.json").exists():
                settings = replace(composition, validation_groups=validation_groups, test_groups=test_groups)
                compose(table, videos, fold_dir / "data", settings)
            video_models = {Path(defaults["video_model"]).name: defaults["video_model"]}
            run_study(recipe, fold_dir, modes, video_models, [], seeds, max_steps, num_workers)
        if (fold_dir / "results.jsonl").exists():
            fold_rows = read_jsonl_rows(fold_dir / "results.jsonl")
            rows += [row | {"fold": fold, "test_groups": test_groups} for row in fold_rows]
            rows.append({"mode": "constant", "fold": fold} | constant_baseline(fold_dir / "data"))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (output_dir / "results.jsonl").write_text(text, encoding="utf-8")
    return rows
