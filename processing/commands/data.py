"""`scada prepare` and `scada compose`: make a data set from annotations, or from short clips."""

import argparse
from pathlib import Path

from ..data.formats import READERS


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=list(READERS), required=True, help="Format of the annotations.")
    parser.add_argument(
        "--annotations",
        type=Path,
        nargs="+",
        required=True,
        help="Annotation files, one for each split; csv and jsonl may have a column split instead.",
    )
    parser.add_argument("--split", help="Name of the split of a single file; by default its name tells.")
    parser.add_argument(
        "--durations", type=Path, nargs="+", help="Csv files with columns id and length (seconds), as Charades has."
    )
    parser.add_argument("--videos", type=Path, help="Folder of the videos.")
    parser.add_argument(
        "--output", type=Path, required=True, help="Folder to write to; splits of an earlier call stay."
    )
    parser.add_argument(
        "--repair_reversed",
        choices=["swap", "drop"],
        default="drop",
        help="What to do with segments that end before they start; by default they are dropped.",
    )
    parser.add_argument(
        "--validation_share", type=float, default=0.0, help="Share of the videos of train that become validation."
    )
    parser.add_argument("--test_share", type=float, default=0.0, help="Share of the videos of train that become test.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of that draw.")
    parser.add_argument("--check_videos", action="store_true", help="Decode all videos, and list the broken ones.")
    parser.add_argument("--num_workers", type=int, help="Processes that open videos; by default one for each CPU.")
    parser.add_argument(
        "--push_to_hub", metavar="ID", help="Upload to this Hub id; see first if the annotations may be passed on."
    )


def prepare(args: argparse.Namespace) -> None:
    """Prepares the data set; what became of the sentences is printed."""
    from ..data.preparation import prepare_dataset
    from ..results.folder import make_result_folder

    make_result_folder(args.output.parent)
    prepare_dataset(**vars(args))


def add_compose_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=Path, required=True, help="Csv: video, label or sentence, group, scene.")
    parser.add_argument("--videos", type=Path, required=True, help="Folder of the clips.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder to write to; new or empty.")
    parser.add_argument("--num_train", type=int, default=200, help="Videos to train on.")
    parser.add_argument("--num_validation", type=int, default=0, help="Videos to choose by.")
    parser.add_argument("--num_test", type=int, default=50, help="Videos to evaluate on.")
    parser.add_argument("--validation_groups", nargs="+", default=[], help="Groups to choose by; a tenth, drawn.")
    parser.add_argument(
        "--test_groups", nargs="+", default=[], help="Groups to evaluate on; by default a fifth, drawn."
    )
    parser.add_argument("--min_clips", type=int, default=3, help="Clips of a video with a sentence, at least.")
    parser.add_argument("--max_clips", type=int, default=6, help="Clips of a video with a sentence, at most.")
    parser.add_argument("--max_distractors", type=int, default=2, help="Clips without a sentence, at most.")
    parser.add_argument("--max_gap_seconds", type=float, default=1.0, help="Longest gap; pieces of other clips.")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="In pixels; by default the first clip's."
    )
    parser.add_argument("--fps", type=int, default=10, help="Frames per second.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of all randomness.")
    parser.add_argument("--num_workers", type=int, help="Processes; by default one for each CPU.")


def compose(args: argparse.Namespace) -> None:
    """Composes the data set."""
    from ..data.composition import CompositionSettings
    from ..data.composition import compose as compose_data_set

    options = vars(args) | {"size": args.size and tuple(args.size)}
    others = {name: options.pop(name) for name in ("table", "videos", "output_dir", "num_workers")}
    compose_data_set(settings=CompositionSettings(**options), **others)
