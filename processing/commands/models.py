"""`scada train`, `scada evaluate` and `scada push`, from a recipe to a model on the Hub."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..recipe_arguments import USAGE, DataArguments, ModelArguments, check_recipe
from .shared import DEVICE_HELP, check_model, format_count, parse_device


def add_train_help(parser: argparse.ArgumentParser) -> None:
    """Add arguments for `--help` only. Parsing also uses `TrainingArguments`, whose import takes seconds."""
    parser.usage = USAGE
    parser.epilog = (
        "All transformers.TrainingArguments are accepted, too. --learning_rate applies to the head; "
        "--adapter_learning_rate, --backbone_learning_rate and --text_learning_rate apply to the other parts. A "
        "recipe is a JSON file with these argument names; command-line arguments override its values. Run the same "
        "command again to resume an interrupted run from its last checkpoint."
    )
    for arguments in (ModelArguments, DataArguments):
        group = parser.add_argument_group(str(arguments.__doc__).rstrip("."))
        for field in fields(arguments):
            shown = "|".join(field.metadata.get("choices", [field.name.upper()]))
            group.add_argument(f"--{field.name}", metavar=shown, help=field.metadata["help"])


def train(argv: Sequence[str]) -> None:
    """Run a recipe. Check its arguments before importing `Trainer`."""
    if not {"-h", "--help"} & set(argv):
        check_recipe(argv)
    from modeling_scada.training.recipe import parse_arguments, run

    run(*parse_arguments(list(argv)))


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="Model or adapter: Hub id or folder.")
    parser.add_argument("dataset", help="Annotations: Hub id, folder, or json, jsonl, parquet or csv file.")
    parser.add_argument("--split", required=True, help="Split for evaluation, such as test or val_2.")
    parser.add_argument("--video_root", help="Folder of the videos. Defaults to the folder of the dataset.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluation"), help="Output folder.")
    parser.add_argument("--top_k", type=int, default=10, help="Maximum number of segments per sentence.")
    parser.add_argument(
        "--strict", action="store_true", help="Compare IoU thresholds with > instead of >=, as in 2D-TAN."
    )
    parser.add_argument("--num_workers", type=int, default=2, help="Number of processes that read videos.")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="Data type of the weights."
    )
    parser.add_argument("--device", type=parse_device, help=DEVICE_HELP)
    parser.add_argument("--skip_broken_videos", action="store_true", help="Skip unreadable videos.")
    parser.add_argument("--streaming", action="store_true", help="Stream annotations during evaluation.")
    parser.add_argument("--qvhighlights", type=Path, help="Annotation file of QVHighlights, for writing a submission.")


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate a model, write the metrics and print them."""
    check_model(args.model)
    if args.video_root is not None and not Path(args.video_root).is_dir():
        raise NotADirectoryError(f"There is no folder of videos at {args.video_root}.")
    from modeling_scada.inference.evaluation import evaluate_model
    from modeling_scada.inference.loading import check_device

    check_device(args.device)
    record = evaluate_model(**vars(args))
    sentences, videos = (format_count(record[name], name.removesuffix("s")) for name in ("sentences", "videos"))
    print(f"Split {args.split} of {args.dataset}: {sentences} in {videos}")
    print("  ".join(f"{name} {value:.2f}" for name, value in record["metrics"].items()))
    if record["broken_videos"]:
        videos = format_count(len(record["broken_videos"]), "video")
        sentences = format_count(sum(video["sentences"] for video in record["broken_videos"]), "sentence")
        print(f"Skipped {videos} with {sentences}, which could not be read.")


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="Folder of the model, the adapter, or both.")
    parser.add_argument("repo_id", help="Hub id of the repository, such as my-name/my-model.")
    parser.add_argument(
        "--base_model", help="Hub id of the adapter's base model, if the folder contains only an adapter."
    )
    parser.add_argument("--metrics", type=Path, help="metrics.json of `scada evaluate`, for the model card.")
    parser.add_argument("--private", action="store_true", default=None, help="Make the repository private.")


def push(args: argparse.Namespace) -> None:
    """Upload a folder and print its address."""
    if not args.folder.is_dir():
        raise NotADirectoryError(f"There is no folder {args.folder}; pass the folder of the model.")
    from modeling_scada.training.publishing import push_folder

    print(push_folder(args.folder, args.repo_id, args.base_model, args.metrics, args.private))
