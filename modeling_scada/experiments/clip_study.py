"""
A study on short clips: videos are composed of them, groups (persons, say) are dealt into folds, each tested once, and
the modes run on each fold. Which of a run's models counts, a group of the training part chooses, the same for all.
"""

import json
import math
import statistics
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

from .study import run_study, select
from .study_results import paired_differences


# Of a video, that a constant segment may begin and end at.
CONSTANT_STEPS = 20


def assign_folds(groups: Sequence[str], num_folds: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """
    Groups in folds of about equal size.

    Args:
        groups (`Sequence[str]`): Names of groups.
        num_folds (`int`): How many.
        seed (`int`): Of the order in which they are dealt out.

    Returns:
        `list[tuple[list[str], list[str]]]`: Of each fold the groups to test on, and the one to choose a model by: the
        first of the next fold.

    Raises:
        ValueError: If there are fewer than two folds, or no group would be left to train on.
    """
    if not 2 <= num_folds <= len(groups) or len(groups) < 3:
        raise ValueError(
            f"Received {num_folds} folds of {len(groups)} groups; expected two folds or more and three groups or "
            "more, a fold having at least one."
        )
    order = np.random.default_rng(seed).permutation(sorted(groups)).tolist()
    tested = [order[first::num_folds] for first in range(num_folds)]
    return [(fold, [tested[(index + 1) % num_folds][0]]) for index, fold in enumerate(tested)]


def constant_floor(data_dir: Path) -> dict[str, Any]:
    """What a constant segment, a share of the video, reaches in the test part: the one best in the training part."""
    ious: dict[str, np.ndarray] = {}
    edges = np.arange(CONSTANT_STEPS + 1) / CONSTANT_STEPS
    candidates = np.array(list(combinations(edges, 2)))
    for split, rows in load_from_disk(str(data_dir)).items():
        targets = [np.array(segments[0]) / row["duration"] for row in rows for segments in row["segments"]]
        ious[split] = temporal_iou(candidates, np.array(targets))
    best = int((ious["train"] >= 0.5).mean(1).argmax())
    reached = recall_at(ious["test"][best][:, None])
    return {"segment": candidates[best].tolist()} | {name: round(value, 2) for name, value in reached.items()}


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
    Composes the videos of each fold where they are not there yet, and runs what its `results.jsonl` does not have.

    Args:
        recipe (`Path`): A recipe with a `validation_split`.
        table (`Path`), videos (`Path`): The clips, see [`compose`].
        output_dir (`Path`): A folder `fold_0` and so on with videos and runs of each fold, and `results.jsonl` of all.
        modes (`list[str]`): See [`arguments_of`].
        num_folds (`int`): Folds.
        only_folds (`Sequence[int]`): Those to run now.
        seeds (`list[int]`): Of the runs.
        max_steps (`int`): Steps of a run.
        num_workers (`int`): Runs at a time, one core each.
        composition ([`CompositionSettings`]): Settings of the videos, without groups.

    Returns:
        `list[dict]`: The lines of `results.jsonl`, each with its `fold`, and of each fold one of the mode "constant".

    Raises:
        ValueError: If the recipe has no video model or validation split, or see [`assign_folds`] and [`compose`].
        RuntimeError: If a run fails.
    """
    defaults = json.loads(recipe.read_text(encoding="utf-8"))
    if missing := {"video_model", "validation_split"} - set(defaults):
        raise ValueError(f"The recipe {recipe} lacks {sorted(missing)}; a study on clips needs both.")
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
            fold_rows = [
                json.loads(line) for line in (fold_dir / "results.jsonl").read_text(encoding="utf-8").splitlines()
            ]
            rows += [row | {"fold": fold, "test_groups": test_groups} for row in fold_rows]
            rows.append({"mode": "constant", "fold": fold} | constant_floor(fold_dir / "data"))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (output_dir / "results.jsonl").write_text(text, encoding="utf-8")
    return rows


def compare_to_frozen(rows: list[dict]) -> list[str]:
    """A line for each mode: its difference to frozen in R@1, IoU=0.5: mean, deviation, and Student's paired t."""
    rows = [row for row in rows if row["mode"] != "constant"]
    lines = []
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        frozen = select(rows, backbone, "frozen", "equal_steps")
        for mode in dict.fromkeys(row["mode"] for row in rows if row["mode"] != "frozen"):
            differences = paired_differences(select(rows, backbone, mode, "equal_steps"), frozen)
            if len(differences) < 2:
                continue
            mean, deviation = statistics.mean(differences), statistics.stdev(differences)
            t = mean / (deviation / math.sqrt(len(differences))) if deviation else math.inf
            lines.append(f"{mode} - frozen: {mean:+.1f} ± {deviation:.1f} over {len(differences)} pairs, t = {t:.2f}")
    return lines
