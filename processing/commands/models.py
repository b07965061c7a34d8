"""`scada train`, `scada evaluate` and `scada push`: from a recipe to a model on the Hub."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..arguments import USAGE, DataArguments, ModelArguments, check_recipe
from .arguments import DEVICE_HELP, check_model, count, device_name


def add_train_help(parser: argparse.ArgumentParser) -> None:
    """For `--help` alone: what is parsed are the arguments of `Trainer` too, which take seconds to import."""
    parser.usage = USAGE
    parser.epilog = (
        "And all of transformers.TrainingArguments. --learning_rate is the head's; --adapter_learning_rate, "
        "--backbone_learning_rate and --text_learning_rate are those of the other parts. A recipe is a JSON file with "
        "the same names; arguments after it replace the recipe's. The same command once more goes on with a run that "
        "was stopped."
    )
    for arguments in (ModelArguments, DataArguments):
        group = parser.add_argument_group(str(arguments.__doc__).rstrip("."))
        for field in fields(arguments):
            shown = "|".join(field.metadata.get("choices", [field.name.upper()]))
            group.add_argument(f"--{field.name}", metavar=shown, help=field.metadata["help"])


def train(argv: Sequence[str]) -> None:
    """Runs a recipe. What can be refused at once is, before `Trainer` is imported."""
    if not {"-h", "--help"} & set(argv):
        check_recipe(argv)
    from modeling_scada.training.recipe import parse_arguments, run

    run(*parse_arguments(list(argv)))


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="A model, or an adapter: Hub id or folder.")
    parser.add_argument("dataset", help="Annotations: a Hub id, a folder, or a json, jsonl, parquet or csv file.")
    parser.add_argument("--split", required=True, help="Split to evaluate on, such as test or val_2.")
    parser.add_argument("--video_root", help="Folder of the videos; the data set's own folder if not given.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluation"))
    parser.add_argument("--top_k", type=int, default=10, help="Maximum number of segments of a sentence.")
    parser.add_argument("--strict", action="store_true", help="Reach IoU thresholds by > instead of >=, as 2D-TAN.")
    parser.add_argument("--num_workers", type=int, default=2, help="Processes that read videos.")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="Data type of the weights."
    )
    parser.add_argument("--device", type=device_name, help=DEVICE_HELP)
    parser.add_argument("--skip_broken_videos", action="store_true", help="Leave out videos that cannot be read.")
    parser.add_argument("--streaming", action="store_true", help="Read annotations while evaluating.")
    parser.add_argument("--qvhighlights", type=Path, help="QVHighlights' annotation file, to write a submission.")


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates, writes, and prints the metrics."""
    check_model(args.model)
    if args.video_root is not None and not Path(args.video_root).is_dir():
        raise NotADirectoryError(f"There is no folder of videos at {args.video_root}.")
    from modeling_scada.inference.evaluation import evaluate_model
    from modeling_scada.inference.grounding import check_device

    check_device(args.device)
    record = evaluate_model(**vars(args))
    sentences, videos = (count(record[name], name.removesuffix("s")) for name in ("sentences", "videos"))
    print(f"Split {args.split} of {args.dataset}: {sentences} in {videos}")
    print("  ".join(f"{name} {value:.2f}" for name, value in record["metrics"].items()))
    if record["broken_videos"]:
        videos = count(len(record["broken_videos"]), "video")
        sentences = count(sum(video["sentences"] for video in record["broken_videos"]), "sentence")
        print(f"Left out {videos} with {sentences}, which could not be read.")


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="Folder with a model, an adapter, or both.")
    parser.add_argument("repo_id", help="Repository to upload to, such as my-name/my-model.")
    parser.add_argument("--base_model", help="Hub id of the model that an adapter alone belongs to.")
    parser.add_argument("--metrics", type=Path, help="metrics.json that `scada evaluate` wrote, for the model card.")
    parser.add_argument("--private", action="store_true", default=None, help="Make the repository private.")


def push(args: argparse.Namespace) -> None:
    """Uploads, and prints where to."""
    if not args.folder.is_dir():
        raise NotADirectoryError(f"There is no folder {args.folder}; name the one with the model to upload.")
    from modeling_scada.training.publishing import push_folder

    print(push_folder(args.folder, args.repo_id, args.base_model, args.metrics, args.private))
