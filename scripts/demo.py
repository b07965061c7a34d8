r"""
The whole way once, on two cores and without the network: makes MovingShapes, trains, compares, reloads, draws.

    make demo
    python scripts/demo.py --output_dir outputs/demo

Four runs of `run_temporal_grounding.py` on the same recipe (hub_configs/moving_shapes.json), for the same number of
steps, one core each, two at a time; sentence encoder and head always train:
- `scada`: the backbone trains through the Sentence-Conditioned Adapter;
- `full`: the whole backbone trains;
- `frozen`: the backbone is frozen;
- `blind`: as the first, but every frame is noise.

Writes `results.json`, `grounding.png`, the four models and the data into the output folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from datasets import load_from_disk
from make_moving_shapes import make_moving_shapes
from transformers import pipeline

import modeling_scada  # noqa: F401  registers the task
from processing.provenance import REPOSITORY
from processing.timeline import Timeline
from processing.video_io import probe, read_frames


RECIPE = REPOSITORY / "hub_configs" / "moving_shapes.json"
METRICS = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")
PICTURE_FRAMES = 12
PICTURE_SENTENCES = 3


def train(recipe: Path, data_dir: Path, run_dir: Path, **overrides) -> dict[str, float]:
    """
    One run of the training script in a process of its own, on one core.

    Args:
        recipe (`Path`): The recipe.
        data_dir (`Path`): The data set.
        run_dir (`Path`): Where model, results and `train.log` go; a folder of an earlier run is replaced.
        **overrides: Arguments of the script that replace the recipe's.

    Returns:
        `dict[str, float]`: The evaluation's metrics in percent, `steps`, `train_seconds` (processor time, which is
        the time it takes alone on a core), and `trainable_backbone`, the number of parameters that trained in the
        backbone.

    Raises:
        RuntimeError: If the run fails; its output is in `train.log`.
    """
    if run_dir.exists():
        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True)
    arguments = json.loads(recipe.read_text()) | {"dataset": str(data_dir), "output_dir": str(run_dir), **overrides}
    (run_dir / "recipe.json").write_text(json.dumps(arguments, indent=2))
    command = [sys.executable, str(REPOSITORY / "scripts" / "run_temporal_grounding.py"), str(run_dir / "recipe.json")]
    print(f"{run_dir.name}: {arguments['max_steps']} steps, follow it in {run_dir / 'train.log'}", flush=True)
    with open(run_dir / "train.log", "w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment)
    if done.returncode:
        raise RuntimeError(f"The run {run_dir.name} failed; see {run_dir / 'train.log'}.")
    evaluation = json.loads((run_dir / "eval_results.json").read_text())
    training = json.loads((run_dir / "train_results.json").read_text())
    result = {metric: round(evaluation[f"eval_{metric}"], 2) for metric in METRICS}
    result |= {"steps": arguments["max_steps"], "train_seconds": round(training["train_processor_seconds"], 1)}
    result["trainable_backbone"] = training["trainable_backbone"]
    print(f"{run_dir.name}: {result}", flush=True)
    return result


def draw(video: Path, found: dict[str, tuple[list[dict], list[float]]], path: Path) -> None:
    """
    Frames along a time axis, and under them the found and the true segment of each sentence.

    Args:
        video (`Path`): The video file.
        found (`dict`): For each sentence the pipeline's segments, best first, and the true `[start, end]` in seconds.
        path (`Path`): Where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    duration_seconds = probe(video).duration_seconds
    instants_seconds = Timeline(0.0, duration_seconds, PICTURE_FRAMES).center_seconds()
    figure, (strip, lanes) = plt.subplots(
        2, 1, figsize=(12, 1.6 + 0.62 * len(found)), height_ratios=[1.0, 0.62 * len(found)], layout="constrained"
    )
    strip.imshow(
        np.concatenate(list(read_frames(video, instants_seconds)), axis=1),
        extent=(0, duration_seconds, 0, duration_seconds / PICTURE_FRAMES),
        aspect="auto",
    )
    strip.set_axis_off()
    for row, (sentence, (segments, (start_seconds, end_seconds))) in enumerate(found.items()):
        best = segments[0]
        lanes.barh(row - 0.17, end_seconds - start_seconds, 0.3, start_seconds, color="#9aa5b1")
        lanes.barh(row + 0.17, best["end"] - best["start"], 0.3, best["start"], color="#d1495b")
        lanes.text(0, row - 0.47, f"{sentence}  ({best['score']:.2f})", fontsize=9, va="center")
    lanes.barh(0, 0, color="#9aa5b1", label="true")
    lanes.barh(0, 0, color="#d1495b", label="found")
    lanes.set(xlim=(0, duration_seconds), ylim=(len(found) - 0.4, -0.7), yticks=[], xlabel="seconds")
    lanes.spines[["left", "right", "top"]].set_visible(False)
    lanes.legend(loc="lower right", bbox_to_anchor=(1, -0.05), ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Runs the demo and writes everything under the output folder, which must not hold an earlier one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--max_steps", type=int, default=None, help="Steps of a run; the recipe's if unset.")
    parser.add_argument("--num_train", type=int, default=1000, help="Videos to train on.")
    parser.add_argument("--num_test", type=int, default=100, help="Videos to evaluate on.")
    args = parser.parse_args()
    started = time.perf_counter()
    output_dir = args.output_dir.resolve()
    if output_dir.exists() and any(output_dir.iterdir()):
        kept = output_dir.with_name(f"{output_dir.name}_before_{time.strftime('%Y%m%d_%H%M%S')}")
        output_dir.rename(kept)
        print(f"An earlier demo was moved to {kept}.")
    make_moving_shapes(output_dir / "data", num_train=args.num_train, num_test=args.num_test)

    modes: dict[str, dict] = {
        "scada": {"tuning": "scada"},
        "full": {"tuning": "full"},
        "frozen": {"tuning": "frozen"},
        "blind": {"tuning": "scada", "blind": True},
    }
    if args.max_steps:
        modes = {name: mode | {"max_steps": args.max_steps} for name, mode in modes.items()}
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = {
            name: pool.submit(train, RECIPE, output_dir / "data", output_dir / name, **mode)
            for name, mode in modes.items()
        }
        results = {name: run.result() for name, run in runs.items()}

    pipe = pipeline("temporal-grounding", model=str(output_dir / "scada"), device="cpu")  # type: ignore[call-overload]
    row = load_from_disk(str(output_dir / "data"))["test"][0]
    video = output_dir / "data" / row["video"]
    sentences = row["sentences"][:PICTURE_SENTENCES]
    found = {}
    for sentence, segments, true in zip(sentences, pipe(str(video), sentences), row["segments"], strict=False):
        found[sentence] = (segments, true[0])
        best = segments[0]
        print(
            f"{sentence!r}: {best['start']:.1f} to {best['end']:.1f} s (score {best['score']:.2f}), "
            f"true {true[0][0]:.1f} to {true[0][1]:.1f} s"
        )
    draw(video, found, output_dir / "grounding.png")

    seconds = round(time.perf_counter() - started, 1)
    (output_dir / "results.json").write_text(json.dumps(results | {"seconds": seconds}, indent=2))
    print(f"\n| {'':16} | " + " | ".join(f"{metric:>6}" for metric in METRICS) + " |  steps | train s |")
    print("|" + "---|" * (len(METRICS) + 3))
    for name, result in results.items():
        cells = " | ".join(f"{result[metric]:6.1f}" for metric in METRICS)
        print(f"| {name:16} | {cells} | {result['steps']:6} | {result['train_seconds']:7.0f} |")
    print(f"\n{seconds:.0f} s in all; results, models and picture are in {output_dir}")


if __name__ == "__main__":
    main()
