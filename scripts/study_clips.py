r"""
Compare tuning modes on videos composed of short clips, with cross-validation over groups of clips, such as people.
Models test each fold once, and do not train on its groups.

    python scripts/study_clips.py hub_configs/recipes/clips_efficientnet_lite0.json --table clips.csv --videos clips \
        --output_dir outputs/study_clips --modes frozen partial full lora tia inner outer both frozen/blind=true

The table has the format of `scada compose`. Each run is `run_temporal_grounding.py` on the recipe with another
`--tuning`, in a separate process on one core. All runs use the same number of steps. The same validation groups, taken
from the training part, select the checkpoint to test. Each run adds a line to `results.jsonl` of its fold. Repeat the
command to resume an interrupted study. Final results over all folds: `results.jsonl` (including the best constant
segment of each fold, as mode "constant"), `table.md` and the learning curves in `curves.png`.
"""

import argparse
import json
from pathlib import Path

from modeling_scada.experiments.clip_study import study_clips
from modeling_scada.experiments.study import MODES, mode_arguments
from modeling_scada.experiments.study_results import as_table, compare_to_frozen, draw_curves, summarise
from processing.data.composition import CompositionSettings


def main(argv: list[str] | None = None) -> None:
    """Compose missing videos, run missing runs, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="Recipe of run_temporal_grounding.py with a validation_split.")
    parser.add_argument("--table", type=Path, required=True, help="Table of clips, in the format of `scada compose`.")
    parser.add_argument("--videos", type=Path, required=True, help="Folder with the clips.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/study_clips"))
    parser.add_argument(
        "--modes",
        nargs="+",
        default=list(MODES),
        help=f"Modes from {', '.join(MODES)}, with arguments: frozen/blind=true.",
    )
    parser.add_argument("--folds", type=int, default=3, help="Number of folds.")
    parser.add_argument("--only_folds", type=int, nargs="+", help="Folds to run now; all by default.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--max_steps", type=int, default=None, help="Number of steps per run; by default as in the recipe."
    )
    parser.add_argument("--num_workers", type=int, default=2, help="Number of parallel runs, one core each.")
    parser.add_argument("--num_train", type=int, default=240, help="Number of training videos.")
    parser.add_argument("--num_validation", type=int, default=30, help="Number of validation videos.")
    parser.add_argument("--num_test", type=int, default=60, help="Number of test videos.")
    parser.add_argument("--max_distractors", type=int, default=2, help="Maximum number of clips without a sentence.")
    parser.add_argument("--max_gap_seconds", type=float, default=1.0, help="Maximum gap, filled with other clips.")
    args = parser.parse_args(argv)
    for mode in args.modes:
        mode_arguments(mode)
    output_dir = args.output_dir.resolve()
    output_dir.mkdir(parents=True, exist_ok=True)

    rows = study_clips(
        args.recipe.resolve(),
        args.table,
        args.videos,
        output_dir,
        args.modes,
        args.folds,
        range(args.folds) if args.only_folds is None else args.only_folds,
        args.seeds,
        args.max_steps or json.loads(args.recipe.read_text(encoding="utf-8"))["max_steps"],
        args.num_workers,
        CompositionSettings(
            num_train=args.num_train,
            num_validation=args.num_validation,
            num_test=args.num_test,
            max_distractors=args.max_distractors,
            max_gap_seconds=args.max_gap_seconds,
        ),
    )
    runs = [row for row in rows if row["mode"] != "constant"]
    text = "\n".join([as_table(summarise(runs)), "", *compare_to_frozen(rows)])
    (output_dir / "table.md").write_text(text + "\n", encoding="utf-8")
    draw_curves(runs, output_dir / "curves.png")
    print(text)


if __name__ == "__main__":
    main()
