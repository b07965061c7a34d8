r"""
Compares tuning modes on one data set over several seeds, at equal steps and at equal training time.

    python scripts/study.py hub_configs/moving_shapes.json --output_dir outputs/study --num_train 1000 --num_test 200
    python scripts/study.py hub_configs/moving_shapes_crowded.json --output_dir outputs/study_crowded --crowded
    python scripts/study.py hub_configs/moving_shapes.json --output_dir outputs/placement --seeds 0 \
        --modes both both/reduction=4 'both/inner_layers="last 1"' 'outer/outer_layers="all"'
    python scripts/study.py hub_configs/moving_shapes.json --output_dir outputs/backbones_study --seeds 0 \
        --modes frozen full both --backbones hub_configs/moving_shapes_backbone outputs/backbones/c3d

Every run is `run_temporal_grounding.py` on the recipe with another `--tuning`, in a process of its own on one core,
two at a time. First all runs get the recipe's number of steps; then every mode named in `--equal_time` gets as many
steps as fit into the mean time that full fine-tuning took for them.

A run is a line in `results.jsonl`; a study that is started again goes on where it was. At the end stand `table.md`
(mean and standard deviation over the seeds) and `study.png`.
"""

import argparse
import json
import re
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from demo import METRICS, REPOSITORY, train
from make_moving_shapes import make_moving_shapes
from tqdm import tqdm


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


def read_rows(path: Path) -> list[dict]:
    """The finished runs, one dict each."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_all(jobs: list[dict], recipe: Path, output_dir: Path, num_workers: int) -> None:
    """Runs the jobs (`mode`, `budget`, `seed`, `max_steps`) that `results.jsonl` does not have yet."""
    results_path = output_dir / "results.jsonl"
    done = {(row["mode"], row["budget"], row["seed"]) for row in read_rows(results_path)}
    jobs = [job for job in jobs if (job["mode"], job["budget"], job["seed"]) not in done]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=REPOSITORY)

    def run(job: dict) -> dict:
        name = re.sub(r"[^\w=]+", "_", f"{job['mode']}_{job['budget']}_{job['seed']}")
        overrides = arguments_of(job["mode"]) | {key: job[key] for key in ("seed", "max_steps")}
        result = train(recipe, output_dir / "data", output_dir / "runs" / name, **overrides)
        return job | result | {"date": time.strftime("%Y-%m-%d"), "commit": commit.stdout.strip()}

    with ThreadPoolExecutor(num_workers) as pool:
        running = [pool.submit(run, job) for job in jobs]
        for finished in tqdm(as_completed(running), total=len(jobs), desc="runs"):
            row = finished.result()
            with open(results_path, "a") as file:
                file.write(json.dumps(row) + "\n")


def ordered_modes(rows: list[dict]) -> list[str]:
    """The modes of the rows, in the order of `MODES`."""
    return sorted({row["mode"] for row in rows}, key=lambda mode: (list(MODES).index(mode.split("/")[0]), mode))


def mean_seconds(rows: list[dict], mode: str) -> float:
    """Mean training time of a mode at equal steps, in seconds."""
    return statistics.mean(
        row["train_seconds"] for row in rows if row["mode"] == mode and row["budget"] == "equal_steps"
    )


def summarise(rows: list[dict]) -> list[dict]:
    """One row for each budget and mode: mean and standard deviation over the seeds."""
    summary = []
    for budget in ("equal_steps", "equal_time"):
        for mode in ordered_modes(rows):
            group = [row for row in rows if (row["mode"], row["budget"]) == (mode, budget)]
            if not group:
                continue
            cells: dict = {"mode": mode, "budget": budget, "seeds": len(group)}
            cells["trainable_backbone"] = group[0]["trainable_backbone"]
            for name in ("steps", "train_seconds", *METRICS):
                values = [row[name] for row in group]
                cells[name] = statistics.mean(values)
                cells[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
            summary.append(cells)
    return summary


def as_table(summary: list[dict]) -> str:
    """The summary as a markdown table; metrics in percent, mean ± standard deviation."""
    lines = [
        "| mode | budget | seeds | trainable in the backbone | steps | training, s | " + " | ".join(METRICS) + " |",
        "|" + "---|" * (6 + len(METRICS)),
    ]
    for row in summary:
        metrics = " | ".join(f"{row[name]:.1f} ± {row[f'{name}_sd']:.1f}" for name in METRICS)
        lines.append(
            f"| {row['mode']} | {row['budget'].replace('_', ' ')} | {row['seeds']} | "
            f"{row['trainable_backbone'] / 1e6:.3f} M | {row['steps']:.0f} | {row['train_seconds']:.0f} | {metrics} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict], path: Path) -> None:
    """R@1, IoU=0.5 of every run as a point over its mode, equal steps beside equal time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    modes = ordered_modes(rows)
    figure, axes = plt.subplots(figsize=(1.2 + 0.9 * len(modes), 3.6), layout="constrained")
    for shift, (budget, colour) in enumerate((("equal_steps", "#2f6690"), ("equal_time", "#d1495b"))):
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
    if args.equal_time and "full" not in args.modes:
        parser.error("--equal_time measures against full fine-tuning; add full to --modes.")
    if args.equal_time and args.backbones:
        parser.error("--equal_time compares the modes of one backbone; name one at a time in the recipe.")
    for mode in (*args.modes, *args.equal_time):
        arguments_of(mode)
    # Absolute, as the runs start elsewhere; a Hub id stays what it is.
    names = [str(Path(name).resolve()) if Path(name).exists() else name for name in args.backbones]
    modes = [f"{mode}/video_model={json.dumps(name)}" for name in names for mode in args.modes] or args.modes
    output_dir = args.output_dir.resolve()
    if not (output_dir / "data" / "dataset_dict.json").exists():
        make_moving_shapes(output_dir / "data", num_train=args.num_train, num_test=args.num_test, crowded=args.crowded)
    recipe = args.recipe.resolve()
    max_steps = args.max_steps or json.loads(recipe.read_text())["max_steps"]

    jobs = [
        {"mode": mode, "budget": "equal_steps", "seed": seed, "max_steps": max_steps}
        for seed in args.seeds
        for mode in modes
    ]
    run_all(jobs, recipe, output_dir, args.num_workers)
    rows = read_rows(output_dir / "results.jsonl")
    jobs = [
        {
            "mode": mode,
            "budget": "equal_time",
            "seed": seed,
            "max_steps": round(max_steps * mean_seconds(rows, "full") / mean_seconds(rows, mode)),
        }
        for seed in args.seeds
        for mode in args.equal_time
    ]
    run_all(jobs, recipe, output_dir, args.num_workers)

    rows = read_rows(output_dir / "results.jsonl")
    table = as_table(summarise(rows))
    (output_dir / "table.md").write_text(table + "\n")
    draw(rows, output_dir / "study.png")
    print(table)


if __name__ == "__main__":
    main()
