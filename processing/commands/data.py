"""`scada prepare` and `scada compose`, which create a dataset from annotations or from short clips."""

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
        help="Annotation files, one per split. A csv or jsonl file may contain a split column instead.",
    )
    parser.add_argument(
        "--split", help="Split name of a single annotation file. Defaults to the split in the file name."
    )
    parser.add_argument(
        "--durations", type=Path, nargs="+", help="Csv files with the columns id and length (seconds), as in Charades."
    )
    parser.add_argument("--videos", type=Path, help="Folder of the videos.")
    parser.add_argument(
        "--output", type=Path, required=True, help="Output folder. Splits from earlier calls are kept."
    )
    parser.add_argument(
        "--repair_reversed",
        choices=["swap", "drop"],
        default="drop",
        help="Treatment of segments that end before they start (default: drop).",
    )
    parser.add_argument(
        "--validation_share", type=float, default=0.0, help="Fraction of the train videos moved to validation."
    )
    parser.add_argument("--test_share", type=float, default=0.0, help="Fraction of the train videos moved to test.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed of these splits.")
    parser.add_argument("--check_videos", action="store_true", help="Decode all videos and list corrupt ones.")
    parser.add_argument(
        "--num_workers", type=int, help="Number of processes that open videos. Defaults to one per CPU."
    )
    parser.add_argument(
        "--push_to_hub",
        metavar="ID",
        help="Hub id for an upload. First check that the license of the annotations permits it.",
    )


def prepare(args: argparse.Namespace) -> None:
    """Prepare a dataset and print a summary of its sentences."""
    from ..data.preparation import prepare_dataset
    from ..results.folder import make_result_folder

    make_result_folder(args.output.parent)
    prepare_dataset(**vars(args))


def add_compose_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        type=Path,
        required=True,
        help="Csv file with the columns video, label or sentence, group, and scene.",
    )
    parser.add_argument("--videos", type=Path, required=True, help="Folder of the clips.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Output folder, new or empty.")
    parser.add_argument("--num_train", type=int, default=200, help="Number of training videos.")
    parser.add_argument("--num_validation", type=int, default=0, help="Number of validation videos.")
    parser.add_argument("--num_test", type=int, default=50, help="Number of test videos.")
    parser.add_argument(
        "--validation_groups", nargs="+", default=[], help="Validation groups. Defaults to a random tenth."
    )
    parser.add_argument("--test_groups", nargs="+", default=[], help="Test groups. Defaults to a random fifth.")
    parser.add_argument("--min_clips", type=int, default=3, help="Minimum number of clips with a sentence per video.")
    parser.add_argument("--max_clips", type=int, default=6, help="Maximum number of clips with a sentence per video.")
    parser.add_argument(
        "--max_distractors", type=int, default=2, help="Maximum number of clips without a sentence per video."
    )
    parser.add_argument(
        "--max_gap_seconds",
        type=float,
        default=1.0,
        help="Maximum length of a gap between clips, in seconds. Pieces of other clips fill gaps.",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="Frame size, in pixels. Defaults to the size of the first clip.",
    )
    parser.add_argument("--fps", type=int, default=10, help="Frames per second.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed.")
    parser.add_argument("--num_workers", type=int, help="Number of processes. Defaults to one per CPU.")


def compose(args: argparse.Namespace) -> None:
    """Compose a dataset."""
    from ..data.composition import CompositionSettings
    from ..data.composition import compose as compose_data_set

    options = vars(args) | {"size": args.size and tuple(args.size)}
    others = {name: options.pop(name) for name in ("table", "videos", "output_dir", "num_workers")}
    compose_data_set(settings=CompositionSettings(**options), **others)
