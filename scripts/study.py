r"""
Compare tuning modes on one data set over backbones and seeds, at equal steps and at equal training time.

    python scripts/study.py hub_configs/recipes/moving_shapes.json --output_dir outputs/study --num_train 1000 \
        --num_test 200
    python scripts/study.py hub_configs/recipes/moving_shapes_crowded.json --output_dir outputs/study_crowded --crowded
    python scripts/study.py hub_configs/recipes/moving_shapes.json --output_dir outputs/placement --seeds 0 \
        --modes both both/reduction=4 'both/inner_layers="last 1"' 'outer/outer_layers="all"'
    python scripts/study.py hub_configs/recipes/moving_shapes.json --output_dir outputs/backbones_study \
        --backbones outputs/backbones/videomae_small hub_configs/models/moving_shapes_backbone \
        outputs/backbones/videomae_large outputs/backbones/c3d outputs/backbones/i3d \
        --modes frozen partial full lora tia both --seeds 0

`pretrain_backbone.py` creates the backbones of the last example.

Each run is `run_temporal_grounding.py` on the recipe with another `--tuning`, in a separate process on one core, two
runs at a time. First, all runs use the number of steps of the recipe. Then each mode in `--equal_time` uses the number
of steps that fits into the mean training time of full fine-tuning of the same backbone.

Each run adds a line to `results.jsonl`, including the bytes saved per training step for the backward pass
(`bytes_kept`, counted as in `benchmark.py`). Repeat the command to resume an interrupted study. The final results are
`table.md` (mean and standard deviation over the seeds, and the difference to the frozen backbone), `study.png`, and
the learning curves in `curves.png`.
"""

import argparse
import json
from pathlib import Path

from modeling_scada.experiments.study import MODES, mode_arguments, run_study
from modeling_scada.experiments.study_results import (
    as_table,
    draw_backbones,
    draw_curves,
    draw_modes,
    list_backbones,
    summarise,
)
from processing.data.moving_shapes import make_moving_shapes


def main() -> None:
    """Generate missing data, run missing runs, and write table and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="Recipe of run_temporal_grounding.py.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/study"))
    parser.add_argument(
        "--modes",
        nargs="+",
        default=list(MODES),
        help=f"Modes from {', '.join(MODES)}; other arguments of the script follow a slash: both/reduction=4.",
    )
    parser.add_argument(
        "--backbones", nargs="*", default=[], help="Folders or Hub ids of video backbones for each mode."
    )
    parser.add_argument("--equal_time", nargs="*", default=[], help="Modes to also run at equal time.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--max_steps", type=int, default=None, help="Number of steps per run; by default as in the recipe."
    )
    parser.add_argument("--num_workers", type=int, default=2, help="Number of parallel runs, one core each.")
    parser.add_argument("--crowded", action="store_true", help="Use the crowded variant of MovingShapes.")
    parser.add_argument("--num_train", type=int, default=1000, help="Number of training videos.")
    parser.add_argument("--num_test", type=int, default=200, help="Number of test videos.")
    args = parser.parse_args()
    if args.equal_time and (missing := {"full", *args.equal_time} - set(args.modes)):
        parser.error(f"--equal_time needs the time at equal steps; add to --modes: {' '.join(sorted(missing))}.")
    for mode in (*args.modes, *args.equal_time):
        if "video_model" in mode_arguments(mode):
            parser.error(f"The mode {mode} sets a backbone; pass it in --backbones instead.")
    recipe = args.recipe.resolve()
    defaults = json.loads(recipe.read_text(encoding="utf-8"))
    if "video_model" not in defaults:
        parser.error(f"The recipe {recipe} has no video_model; the study compares the tuning of video backbones.")
    # Use absolute paths, because the runs start in another folder. Keep Hub ids and the name in the recipe.
    names = [str(Path(name).resolve()) if Path(name).exists() else name for name in args.backbones]
    names = names or [defaults["video_model"]]
    video_models = {Path(name).name: name for name in names}
    if len(video_models) < len(names):
        parser.error(f"Received the backbones {names}; expected distinct folder names, because they label the rows.")
    output_dir = args.output_dir.resolve()
    if not (output_dir / "data" / "dataset_dict.json").exists():
        make_moving_shapes(output_dir / "data", num_train=args.num_train, num_test=args.num_test, crowded=args.crowded)
    max_steps = args.max_steps or defaults["max_steps"]

    rows = run_study(
        recipe, output_dir, args.modes, video_models, args.equal_time, args.seeds, max_steps, args.num_workers
    )
    summary = summarise(rows)
    table = as_table(summary)
    (output_dir / "table.md").write_text(table + "\n", encoding="utf-8")
    if len(list_backbones(rows)) > 1:
        draw_backbones(summary, output_dir / "study.png")
    else:
        draw_modes(rows, output_dir / "study.png")
        draw_curves(rows, output_dir / "curves.png")
    print(table)


if __name__ == "__main__":
    main()
