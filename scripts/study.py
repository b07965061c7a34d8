r"""
Compares tuning modes on one data set over backbones and seeds, at equal steps and at equal training time.

    python scripts/study.py hub_configs/moving_shapes.json --output_dir outputs/study --num_train 1000 --num_test 200
    python scripts/study.py hub_configs/moving_shapes_crowded.json --output_dir outputs/study_crowded --crowded
    python scripts/study.py hub_configs/moving_shapes.json --output_dir outputs/placement --seeds 0 \
        --modes both both/reduction=4 'both/inner_layers="last 1"' 'outer/outer_layers="all"'
    python scripts/study.py hub_configs/moving_shapes.json --output_dir outputs/backbones_study \
        --backbones outputs/backbones/videomae_small hub_configs/moving_shapes_backbone \
        outputs/backbones/videomae_large outputs/backbones/c3d outputs/backbones/i3d \
        --modes frozen partial full lora tia both --seeds 0

`pretrain_backbone.py` makes the backbones of the last one.

Every run is `run_temporal_grounding.py` on the recipe with another `--tuning`, in a process of its own on one core,
two at a time. First all runs get the recipe's number of steps; then every mode named in `--equal_time` gets as many
steps as fit into the mean time that full fine-tuning of the same backbone took for them.

A run is a line in `results.jsonl`, with what a training step keeps for the backward pass (`bytes_kept`, as
`benchmark.py` counts it); a study that is started again goes on where it was. At the end stand `table.md` (mean and
standard deviation over the seeds, and the difference to the frozen backbone) and `study.png`.
"""

import argparse
import json
import math
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import chdir
from itertools import cycle, islice, product
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from benchmark import bytes_kept
from demo import METRICS, train
from make_moving_shapes import make_moving_shapes
from tqdm import tqdm

from modeling_scada.recipe_scada import build_model, parse_arguments
from modeling_scada.tuning_scada import prepare_tuning
from processing.annotations import load_annotations
from processing.collator import TemporalGroundingCollator
from processing.provenance import REPOSITORY, current_commit, read_rows
from processing.video_files import folder_of_videos


# What a name in the table stands for: arguments of run_temporal_grounding.py.
MODES = {
    "frozen": {"tuning": "frozen"},
    "partial": {"tuning": "partial"},
    "full": {"tuning": "full"},
    "lora": {"tuning": "lora"},
    "tia": {"tuning": "tia"},
    "inner": {"tuning": "scada", "scada_branches": "inner"},
    "outer": {"tuning": "scada", "scada_branches": "outer"},
    "both": {"tuning": "scada", "scada_branches": "both"},
}
BUDGETS = ("equal_steps", "equal_time")
MARKERS = "osD^vP*X<>"


def arguments_of(mode: str) -> dict:
    """
    The script's arguments that a mode stands for.

    Raises:
        ValueError: If the mode is unknown, or an argument after its slash is not `name=value` with a JSON value.
    """
    name, *pairs = re.split(r"/(?=\w+=)", mode)  # a value may be a path
    if name not in MODES:
        raise ValueError(f"Received the mode {mode!r}; expected one of {list(MODES)}, then /argument=value.")
    return MODES[name] | {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def bytes_kept_by(recipe: Path) -> int:
    """
    What a training step of a run keeps for the backward pass, see [`bytes_kept`], on the CPU.

    Args:
        recipe (`Path`): The run's own. The batch is the first rows of its data set, the same for all modes.

    Returns:
        `int`: Bytes.
    """
    with chdir(REPOSITORY):  # Where the runs start, too: a recipe's paths may be relative.
        model_args, data_args, training_args = parse_arguments([str(recipe)])
        base_model, processor = build_model(model_args)
        model: Any = prepare_tuning(base_model, model_args).train()
        if training_args.gradient_checkpointing:
            model.gradient_checkpointing_enable(training_args.gradient_checkpointing_kwargs)
        collator = TemporalGroundingCollator(
            processor,
            folder_of_videos(data_args.dataset, data_args.video_root),
            max_sentences=data_args.max_sentences,
            seed=training_args.seed,
        )
        rows = load_annotations(data_args.dataset, data_args.train_split, data_args.streaming)
        batch = collator(list(islice(rows, training_args.per_device_train_batch_size)))
        with torch.autocast("cpu", torch.bfloat16, enabled=training_args.bf16):
            return bytes_kept(model, batch)


def run_all(jobs: list[dict], video_models: dict[str, str], recipe: Path, output_dir: Path, num_workers: int) -> None:
    """
    Runs the jobs (`backbone`, `mode`, `budget`, `seed`, `max_steps`) that `results.jsonl` does not have yet;
    `video_models` says where a backbone is.
    """
    results_path = output_dir / "results.jsonl"
    rows = read_rows(results_path)
    key = itemgetter("backbone", "mode", "budget", "seed")
    done = {key(row) for row in rows}
    jobs = [job for job in jobs if key(job) not in done]
    kept_by = {(row["backbone"], row["mode"]): row["bytes_kept"] for row in rows}
    commit = current_commit()

    def run_dir(job: dict) -> Path:
        name = re.sub(r"[^\w=]+", "_", f"{job['mode']}_{job['budget']}_{job['seed']}")
        return output_dir / "runs" / job["backbone"] / name

    def run(job: dict) -> dict:
        overrides = arguments_of(job["mode"]) | {name: job[name] for name in ("seed", "max_steps")}
        overrides["video_model"] = video_models[job["backbone"]]
        return train(recipe, output_dir / "data", run_dir(job), **overrides)

    with ThreadPoolExecutor(num_workers) as pool:
        running = {pool.submit(run, job): job for job in jobs}
        try:
            for finished in tqdm(as_completed(running), total=len(jobs), desc="runs"):
                job, result = running[finished], finished.result()
                model = (job["backbone"], job["mode"])
                # Here and not in `run`, since loading a model is not safe in two threads at a time.
                if model not in kept_by:
                    kept_by[model] = bytes_kept_by(run_dir(job) / "recipe.json")
                facts = {"bytes_kept": kept_by[model], "date": time.strftime("%Y-%m-%d"), "commit": commit}
                with open(results_path, "a") as file:
                    file.write(json.dumps(job | result | facts) + "\n")
        finally:
            # After a failure, runs that nobody would read the results of do not start.
            pool.shutdown(cancel_futures=True)


def ordered_modes(rows: list[dict]) -> list[str]:
    """The modes of the rows, in the order of `MODES`."""
    return sorted({row["mode"] for row in rows}, key=lambda mode: (list(MODES).index(mode.split("/")[0]), mode))


def backbones_of(rows: list[dict]) -> list[str]:
    """The backbones of the rows, in the order of the rows."""
    return list(dict.fromkeys(row["backbone"] for row in rows))


def select(rows: list[dict], backbone: str, mode: str, budget: str) -> list[dict]:
    """The runs of a backbone in a mode and budget, one for each seed."""
    return [row for row in rows if (row["backbone"], row["mode"], row["budget"]) == (backbone, mode, budget)]


def mean_seconds(rows: list[dict], backbone: str, mode: str) -> float:
    """Mean training time of a backbone in a mode at equal steps, in seconds."""
    return statistics.mean(row["train_seconds"] for row in select(rows, backbone, mode, "equal_steps"))


def over_frozen(group: list[dict], frozen: list[dict]) -> float | None:
    """Mean difference in R@1, IoU=0.5 over the seeds that both have; `None` if there are none."""
    of_seed = {row["seed"]: row["R1@0.5"] for row in frozen}
    differences = [row["R1@0.5"] - of_seed[row["seed"]] for row in group if row["seed"] in of_seed]
    return statistics.mean(differences) if differences else None


def summarise(rows: list[dict]) -> list[dict]:
    """One row for each budget, backbone and mode: mean and standard deviation over the seeds."""
    summary = []
    for budget, backbone, mode in product(BUDGETS, backbones_of(rows), ordered_modes(rows)):
        group = select(rows, backbone, mode, budget)
        if not group:
            continue
        cells: dict = {"backbone": backbone, "mode": mode, "budget": budget, "seeds": len(group)}
        cells |= {name: group[0][name] for name in ("trainable_backbone", "bytes_kept")}
        cells |= {name: statistics.mean(row[name] for row in group) for name in ("steps", "train_seconds", *METRICS)}
        for name in METRICS:
            cells[f"{name}_sd"] = statistics.stdev(row[name] for row in group) if len(group) > 1 else 0.0
        frozen = [] if mode == "frozen" else select(rows, backbone, "frozen", budget)
        cells["over_frozen"] = over_frozen(group, frozen)
        summary.append(cells)
    return summary


def as_table(summary: list[dict]) -> str:
    """The summary as a markdown table; metrics in percent, mean ± standard deviation of several seeds."""
    titles = ["backbone", "mode", "budget", "seeds", "trainable in the backbone", "kept for backward, MiB"]
    titles += ["steps", "training, s", *METRICS, "R1@0.5, difference to frozen"]
    lines = [titles, ["---"] * len(titles)]
    for row in summary:
        lines.append(
            [
                *(row["backbone"], row["mode"], row["budget"].replace("_", " "), str(row["seeds"])),
                *(f"{row['trainable_backbone'] / 1e6:.3f} M", f"{row['bytes_kept'] / 2**20:.1f}"),
                *(f"{row['steps']:.0f}", f"{row['train_seconds']:.0f}"),
                *(f"{row[name]:.1f}" + f" ± {row[f'{name}_sd']:.1f}" * (row["seeds"] > 1) for name in METRICS),
                "" if row["over_frozen"] is None else f"{row['over_frozen']:+.1f}",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw_modes(rows: list[dict], path: Path) -> None:
    """R@1, IoU=0.5 of every run as a point over its mode, equal steps beside equal time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    modes = ordered_modes(rows)
    figure, axes = plt.subplots(figsize=(1.2 + 0.9 * len(modes), 3.6), layout="constrained")
    for shift, (budget, colour) in enumerate(zip(BUDGETS, ("#2f6690", "#d1495b"), strict=True)):
        for position, mode in enumerate(modes):
            values = [row["R1@0.5"] for row in rows if row["mode"] == mode and row["budget"] == budget]
            if values:
                place = position - 0.15 + 0.3 * shift
                axes.scatter([place] * len(values), values, color=colour, s=18)
                axes.hlines(statistics.mean(values), place - 0.12, place + 0.12, color=colour)
        axes.scatter([], [], color=colour, s=18, label=budget.replace("_", " "))
    axes.set(xticks=range(len(modes)), xticklabels=modes, ylabel="R@1, IoU=0.5 (%)")
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_backbones(summary: list[dict], path: Path) -> None:
    """
    R@1, IoU=0.5 of every row of the summary over the parameters that train in the backbone, and over what a training
    step keeps for the backward pass; points at equal time are hollow.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    modes = {mode: f"C{index}" for index, mode in enumerate(ordered_modes(summary))}
    markers = dict(zip(backbones_of(summary), cycle(MARKERS), strict=False))
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for row in summary:
        colour = modes[row["mode"]]
        style = {"color": colour, "marker": markers[row["backbone"]], "markersize": 8, "alpha": 0.85, "capsize": 3}
        style["markerfacecolor"] = colour if row["budget"] == "equal_steps" else "white"
        for axes, x in zip(panels, (row["trainable_backbone"], row["bytes_kept"] / 2**20), strict=True):
            axes.errorbar(x, row["R1@0.5"], yerr=row["R1@0.5_sd"] or None, **style)
    # Logarithmic but for the 0 of the frozen backbone.
    trained = [row["trainable_backbone"] for row in summary if row["trainable_backbone"]]
    decades = [math.floor(math.log10(count)) for count in trained or [1]]
    powers = [10.0**decade for decade in range(min(decades), max(decades) + 1)]
    panels[0].set_xscale("symlog", linthresh=powers[0])
    panels[0].set_xticks([0, *powers])
    panels[1].set_xscale("log")
    panels[0].set(xlabel="trainable parameters of the backbone", ylabel="R@1, IoU=0.5 (%)")
    panels[1].set(xlabel="kept for the backward pass (MiB)")
    for axes in panels:
        axes.spines[["right", "top"]].set_visible(False)

    def entry(label: str, marker: str = "s", colour: str = "#555555", face: str | None = None) -> Any:
        return plt.Line2D([], [], ls="", marker=marker, color=colour, markerfacecolor=face or colour, label=label)

    of_modes = [entry(mode, colour=colour) for mode, colour in modes.items()]
    if any(row["budget"] == "equal_time" for row in summary):
        of_modes.append(entry("equal time: hollow", face="white"))
    of_backbones = [entry(name, marker) for name, marker in markers.items()]
    look: dict[str, Any] = {"frameon": False, "fontsize": 9, "alignment": "left"}
    figure.legend(handles=of_modes, title="mode", loc="outside right upper", **look)
    figure.legend(handles=of_backbones, title="backbone", loc="outside right lower", **look)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Makes the data if it is not there, runs what is missing, and writes table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="A recipe of run_temporal_grounding.py.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/study"))
    parser.add_argument(
        "--modes",
        nargs="+",
        default=list(MODES),
        help=f"Any of {', '.join(MODES)}, with other arguments of the script after a slash: both/reduction=4.",
    )
    parser.add_argument(
        "--backbones", nargs="*", default=[], help="Video backbones, folders or Hub ids, to run each mode on."
    )
    parser.add_argument("--equal_time", nargs="*", default=[], help="Modes to run at equal time as well.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=None, help="Steps of a run; the recipe's if unset.")
    parser.add_argument("--num_workers", type=int, default=2, help="Runs at a time, one core each.")
    parser.add_argument("--crowded", action="store_true", help="The crowded variant of MovingShapes.")
    parser.add_argument("--num_train", type=int, default=1000, help="Videos to train on.")
    parser.add_argument("--num_test", type=int, default=200, help="Videos to evaluate on.")
    args = parser.parse_args()
    if args.equal_time and (missing := {"full", *args.equal_time} - set(args.modes)):
        parser.error(f"--equal_time goes by the time of equal steps; add to --modes: {' '.join(sorted(missing))}.")
    for mode in (*args.modes, *args.equal_time):
        if "video_model" in arguments_of(mode):
            parser.error(f"The mode {mode} names a backbone; name it in --backbones.")
    recipe = args.recipe.resolve()
    defaults = json.loads(recipe.read_text())
    if "video_model" not in defaults:
        parser.error(f"The recipe {recipe} has no video_model, whose tuning is what is compared.")
    # Absolute, as the runs start elsewhere; a Hub id stays what it is, and so does what the recipe names.
    names = [str(Path(name).resolve()) if Path(name).exists() else name for name in args.backbones]
    names = names or [defaults["video_model"]]
    video_models = {Path(name).name: name for name in names}
    if len(video_models) < len(names):
        parser.error(f"Received the backbones {names}, of which two have the same last name; the rows go by it.")
    output_dir = args.output_dir.resolve()
    if not (output_dir / "data" / "dataset_dict.json").exists():
        make_moving_shapes(output_dir / "data", num_train=args.num_train, num_test=args.num_test, crowded=args.crowded)
    max_steps = args.max_steps or defaults["max_steps"]

    jobs = [
        {"backbone": backbone, "mode": mode, "budget": "equal_steps", "seed": seed, "max_steps": max_steps}
        for seed, backbone, mode in product(args.seeds, video_models, args.modes)
    ]
    run_all(jobs, video_models, recipe, output_dir, args.num_workers)
    rows = read_rows(output_dir / "results.jsonl")
    jobs = [
        {
            "backbone": backbone,
            "mode": mode,
            "budget": "equal_time",
            "seed": seed,
            "max_steps": round(max_steps * mean_seconds(rows, backbone, "full") / mean_seconds(rows, backbone, mode)),
        }
        for seed, backbone, mode in product(args.seeds, video_models, args.equal_time)
    ]
    run_all(jobs, video_models, recipe, output_dir, args.num_workers)

    rows = read_rows(output_dir / "results.jsonl")
    summary = summarise(rows)
    table = as_table(summary)
    (output_dir / "table.md").write_text(table + "\n")
    if len(backbones_of(rows)) > 1:
        draw_backbones(summary, output_dir / "study.png")
    else:
        draw_modes(rows, output_dir / "study.png")
    print(table)


if __name__ == "__main__":
    main()
