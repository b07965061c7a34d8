"""
The console command `scada`, with a subcommand for each thing that users do; `scripts/` has one script for each, which
has the same arguments.

Nothing heavy is imported before the arguments are parsed, so that `--help` answers at once.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .annotation_formats import READERS
from .recipe_arguments import USAGE, DataArguments, ModelArguments, check_recipe


def positive_int(text: str) -> int:
    """A number that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a positive whole number.")
    return int(text)


EXACT_HELP = "encode clips anew, to begin and end with their segments; else they are copied from a key frame on."


def answer(prog: str, command: Callable[[Any], None], args: Any) -> int:
    """
    Runs a command; returns the exit code, 1 after one line on stderr if something is wrong with what was given, and
    130 if it was interrupted.
    """
    try:
        command(args)
    except KeyboardInterrupt as error:
        print(f"{prog}: interrupted. {error}".strip(), file=sys.stderr)
        return 130
    except (FloatingPointError, OSError, RuntimeError, ValueError) as error:
        text = str(error)
        if "Original Traceback (most recent call last):" in text:  # of a process that reads videos
            text = re.split(r"\n[\w.]+: ", text)[-1]
        print(f"{prog}: {' '.join(text.split())}", file=sys.stderr)
        return 1
    return 0


# Finding segments, and cutting them out.


def add_ground_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="The video file.")
    parser.add_argument("sentences", metavar="sentence", nargs="+", help="What to look for.")
    parser.add_argument("--model", required=True, help="A model, or an adapter: Hub id or folder.")
    parser.add_argument("--top_k", type=positive_int, default=5, help="At most so many segments a sentence.")
    parser.add_argument("--json", action="store_true", help="Print JSON in place of the table.")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="Draw frames and segments.")
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="Write a page that plays the segments.")
    parser.add_argument("--cut", type=Path, metavar="DIR", help="Write the segments as clips into this folder.")
    parser.add_argument("--exact", action="store_true", help=f"With --cut: {EXACT_HELP}")


def ground(args: argparse.Namespace) -> None:
    """Prints the segments, and writes what was asked for. What can be refused is, before the model is loaded."""
    from .result_folder import make_result_folder
    from .video_io import probe

    if not Path(args.video).is_file():
        raise FileNotFoundError(f"There is no video file at {args.video}.")
    for path in (args.plot, args.html):
        if path is not None and path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; expected the name of a file to write.")
    if args.plot is not None:
        from .result_picture import check_picture_name, draw

        check_picture_name(args.plot)
    if args.html is not None:
        from .result_page import MAX_EMBEDDED_BYTES, MIME_TYPES, write_page

        if Path(args.video).suffix.lower() not in MIME_TYPES:
            raise ValueError(f"Browsers do not play {args.video}; --html takes {', '.join(MIME_TYPES)}.")
    if args.exact and args.cut is None:
        raise ValueError("Received --exact without --cut; name the folder for the clips, too.")
    for sentence in args.sentences:
        if not sentence.strip():
            raise ValueError(f"Received the sentence {sentence!r}; expected a text.")
    facts = probe(args.video)
    for path in (args.plot, args.html):
        if path is not None:
            make_result_folder(path.parent)
    if args.cut is not None:
        make_result_folder(args.cut)

    print(f"Loading {args.model}", file=sys.stderr)
    from .grounding import find_segments, load_pipeline
    from .result_table import format_table

    pipe = load_pipeline(args.model)
    print(f"Looking through {facts.duration_seconds:.1f} s of {args.video}", file=sys.stderr)
    record = {
        "video": args.video,
        "duration": facts.duration_seconds,
        "model": args.model,
        "results": find_segments(pipe, args.video, args.sentences, args.top_k),
    }
    print(json.dumps(record, indent=2, ensure_ascii=False) if args.json else format_table(record), flush=True)
    if args.plot is not None:
        draw(record, facts, args.plot)
        print(f"Wrote {args.plot}", file=sys.stderr)
    if args.html is not None:
        if (source := write_page(record, facts, args.html)) is not None:
            print(
                f"{args.video} is larger than {MAX_EMBEDDED_BYTES / 1e6:g} MB and no part of {args.html}, which "
                f"refers to it as {source}: keep them in place.",
                file=sys.stderr,
            )
        print(f"Wrote {args.html}", file=sys.stderr)
    if args.cut is not None:
        write_clips(record, args.cut, args.exact)


def write_clips(record: dict[str, Any], folder: Path, exact: bool) -> None:
    """Cuts the segments out, and says what each clip covers."""
    from .clips import cut_segments

    how = "encoded anew" if exact else "a clip begins with a key frame"
    num_clips, failures = 0, dict[str, str]()
    for clip in cut_segments(record, folder, exact, on_error="return"):
        if isinstance(clip, dict):
            failures[clip["video"]] = clip["reason"]
            continue
        num_clips += 1
        covered, asked = ("{:.1f} to {:.1f} s".format(*times) for times in (clip.covered_seconds, clip.asked_seconds))
        print(f"Wrote {clip.path}: {covered} (asked for {asked}; {how})", file=sys.stderr)
    for video, reason in failures.items():
        print(f"Skipped {video}: {' '.join(reason.split())}", file=sys.stderr)
    if failures and not num_clips:
        raise RuntimeError(f"Wrote no clip into {folder}; none of the videos can be read.")


def add_cut_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", metavar="FOUND.json", type=Path, help="What `ground --json` printed.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="Where the clips go.")
    parser.add_argument("--exact", action="store_true", help=EXACT_HELP.capitalize())


def cut(args: argparse.Namespace) -> None:
    """Cuts out what was found before."""
    try:
        record = json.loads(args.record.read_text(encoding="utf-8"))
        for result in record["results"]:
            _ = result["sentence"], [segment.get("video") or record["video"] for segment in result["segments"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{args.record} is not what `scada ground --json` prints; save that into a file, and name it here."
        ) from error
    write_clips(record, args.folder, args.exact)


# Libraries.


VIDEO_ROOT_HELP = "Folder of the index's videos, if it is not where it was."


def open_library(index: Path, video_root: Path | None) -> Any:
    """Opens an index, and says if files of its videos are missing."""
    from .library import Library

    library = Library(index, video_root)
    if missing := library.missing_videos():
        print(
            f"{len(missing)} of the {len(set(library.videos))} videos in {index} are missing, {missing[0]} for "
            "example; name their folder with --video_root.",
            file=sys.stderr,
        )
    return library


def model_of(library: Any, model: str | None) -> str:
    """
    The model to search an index with.

    Raises:
        ValueError: If the index does not say where its model is, or it is not there.
    """
    named = model or library.facts["model"]
    if named is None:
        raise ValueError(f"{library.path} does not say where its model is; name it with --model.")
    if model is None and Path(named).is_absolute() and not Path(named).exists():
        raise ValueError(f"There is no model at {named}, where that of {library.path} was; name it with --model.")
    return named


def shard_of(text: str) -> tuple[int, int]:
    """`"0/4"`: a part, and how many there are."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text}: expected a part and their number, such as 0/4 to 3/4.")
    return int(number), int(count)


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", metavar="VIDEOS_FOLDER", type=Path, help="Folder of the videos.")
    parser.add_argument("--model", required=True, help="A model, or an adapter: Hub id or folder.")
    parser.add_argument("--output", type=Path, required=True, metavar="INDEX", help="Folder of the index.")
    parser.add_argument(
        "--shard", type=shard_of, metavar="I/N", help="Only this part of the videos, 0/4 to 3/4 for example."
    )
    parser.add_argument("--ray", action="store_true", help="Encode by the workers of a Ray cluster.")
    parser.add_argument(
        "--num_workers", type=positive_int, help="With --ray: so many workers; else one a GPU, or without GPUs a core."
    )
    parser.add_argument(
        "--remove_missing",
        action="store_true",
        help="Forget videos that are gone, even more than half of the index, or where nothing can be listed.",
    )


def index(args: argparse.Namespace) -> None:
    """Brings the index up to date; what could not be read is listed on stderr."""
    from .result_folder import make_result_folder

    if not args.videos.is_dir():
        raise NotADirectoryError(f"There is no folder of videos at {args.videos}.")
    if args.num_workers is not None and not args.ray:
        raise ValueError("Received --num_workers without --ray, whose workers they are.")
    make_result_folder(args.output)
    print(f"Loading {args.model}", file=sys.stderr)
    from .grounding import load_pipeline
    from .library import index_videos
    from .library_on_ray import import_ray, index_videos_on_ray
    from .several_processes import local_process_index, num_processes, process_index

    is_folder = Path(args.model).is_dir()
    name = str(Path(args.model).resolve()) if is_folder else args.model
    settings = {"shard": args.shard, "model_name": name, "remove_missing": args.remove_missing}
    try:
        if args.ray:
            import_ray()
            pipe = load_pipeline(args.model, device=-1)
            report = index_videos_on_ray(args.videos, pipe, args.output, num_workers=args.num_workers, **settings)
        else:
            pipe = load_pipeline(args.model, device=local_process_index())
            report = index_videos(args.videos, pipe, args.output, **settings)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Videos that were encoded are in {args.output}; the same command goes on.") from None
    for video in report["broken"]:
        print(f"Skipped {video['video']}: {' '.join(video['reason'].split())}", file=sys.stderr)
    who = f"{args.output}, process {process_index() + 1} of {num_processes()}" if num_processes() > 1 else args.output
    print(
        f"{who}: {report['videos']} videos, {report['windows']} windows. Encoded {report['encoded']} videos, "
        f"kept {report['kept']} of the same size and time, forgot {report['forgotten']} that are changed or gone, "
        f"skipped {len(report['broken'])}."
    )
    if report["other_files"] or report["other_links"]:
        print(
            f"Passed over. Files without a video extension: {report['other_files']}. Links that lead nowhere or "
            f"to a folder that is listed already: {report['other_links']}.",
            file=sys.stderr,
        )


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", type=Path, help="What `scada index` made.")
    parser.add_argument("sentences", metavar="sentence", nargs="+", help="What to look for.")
    parser.add_argument("--model", help="The model of the index, if it is not where it was.")
    parser.add_argument("--video_root", type=Path, help=VIDEO_ROOT_HELP)
    parser.add_argument("--top_k", type=positive_int, default=10, help="At most so many segments a sentence.")
    parser.add_argument(
        "--num_candidates",
        type=positive_int,
        default=200,
        help="Windows that the head looks at, after the retrieval branch; without one, it looks at all.",
    )
    parser.add_argument("--json", action="store_true", help="Print JSON in place of the table.")
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="Write a page that plays the segments.")
    parser.add_argument("--cut", type=Path, metavar="DIR", help="Write the segments as clips into this folder.")
    parser.add_argument("--exact", action="store_true", help=f"With --cut: {EXACT_HELP}")


def search(args: argparse.Namespace) -> None:
    """Prints the segments of all videos, and writes the page and the clips if asked."""
    from .result_folder import make_result_folder
    from .result_table import format_table

    if args.exact and args.cut is None:
        raise ValueError("Received --exact without --cut; name the folder for the clips, too.")
    if args.html is not None and args.html.is_dir():
        raise IsADirectoryError(f"{args.html} is a folder; expected the name of a file to write.")
    for folder in (args.html and args.html.parent, args.cut):
        if folder is not None:
            make_result_folder(folder)
    from .library import search as search_library

    library = open_library(args.index, args.video_root)
    model = model_of(library, args.model)
    print(f"Loading {model}", file=sys.stderr)
    from .grounding import load_pipeline

    pipe = load_pipeline(model)
    record = {
        "index": str(args.index),
        "model": model,
        "duration": max((timeline.end_seconds for timeline in library.timelines), default=0.0),
        "results": search_library(library, args.sentences, pipe, args.top_k, args.num_candidates),
    }
    print(json.dumps(record, indent=2, ensure_ascii=False) if args.json else format_table(record), flush=True)
    if args.html is not None:
        from .result_page import write_page_of_videos

        for video, reason in write_page_of_videos(record, args.html).items():
            print(f"Cannot play {video}: {' '.join(reason.split())}", file=sys.stderr)
        print(f"Wrote {args.html}, which refers to the videos: keep them in place.", file=sys.stderr)
    if args.cut is not None:
        write_clips(record, args.cut, args.exact)


def add_app_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="A model, or an adapter: Hub id or folder; by default that of the index.")
    parser.add_argument("--index", type=Path, metavar="INDEX", help="What `scada index` made, to be searched too.")
    parser.add_argument("--video_root", type=Path, help=VIDEO_ROOT_HELP)


def app(args: argparse.Namespace) -> None:
    """Starts the application, until it is interrupted."""
    if args.model is None and args.index is None:
        raise ValueError("Received neither --model nor --index; name at least one of them.")
    if args.video_root is not None and args.index is None:
        raise ValueError("Received --video_root without --index, whose videos are there.")
    from .app import launch, make_app
    from .grounding import load_pipeline

    library = None if args.index is None else open_library(args.index, args.video_root)
    model = args.model if library is None else model_of(library, args.model)
    print(f"Loading {model}", file=sys.stderr)
    launch(make_app(load_pipeline(model), Path(model).name if Path(model).is_dir() else model, library), library)


# Data.


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
    from .dataset_preparation import prepare_dataset
    from .result_folder import make_result_folder

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
    from .composing import compose as compose_data_set

    size = args.size and tuple(args.size)
    compose_data_set(**vars(args) | {"size": size})


# Training.


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
    from modeling_scada.recipe_scada import parse_arguments, run

    run(*parse_arguments(list(argv)))


# Evaluating and publishing.


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="A model, or an adapter: Hub id or folder.")
    parser.add_argument("dataset", help="Annotations: a Hub id, a folder, or a json or parquet file.")
    parser.add_argument("--split", required=True, help="Split to evaluate on, such as test or val_2.")
    parser.add_argument("--video_root", help="Folder of the videos; the data set's own folder if not given.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluation"))
    parser.add_argument("--top_k", type=int, default=10, help="At most so many segments a sentence.")
    parser.add_argument("--strict", action="store_true", help="Reach IoU thresholds by > instead of >=, as 2D-TAN.")
    parser.add_argument("--num_workers", type=int, default=2, help="Processes that read videos.")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="Of the weights.")
    parser.add_argument("--device", help="Where the model runs; a GPU if there is one.")
    parser.add_argument("--skip_broken_videos", action="store_true", help="Leave out videos that cannot be read.")
    parser.add_argument("--streaming", action="store_true", help="Read annotations while evaluating.")
    parser.add_argument("--qvhighlights", type=Path, help="QVHighlights' annotation file, to write a submission.")


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates, writes, and prints the metrics."""
    from .evaluation import evaluate_model

    record = evaluate_model(**vars(args))
    print(f"{args.split} of {args.dataset}: {record['sentences']} sentences of {record['videos']} videos")
    print("  ".join(f"{name} {value:.2f}" for name, value in record["metrics"].items()))
    if record["broken_videos"]:
        sentences = sum(video["sentences"] for video in record["broken_videos"])
        print(f"{len(record['broken_videos'])} videos with {sentences} sentences could not be read and were left out.")


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="Folder with a model, an adapter, or both.")
    parser.add_argument("repo_id", help="Repository to upload to, such as my-name/my-model.")
    parser.add_argument("--base_model", help="Hub id of the model that an adapter alone belongs to.")
    parser.add_argument("--metrics", type=Path, help="metrics.json of evaluate.py, for the model card.")
    parser.add_argument("--private", action="store_true", default=None, help="Make the repository private.")


def push(args: argparse.Namespace) -> None:
    """Uploads, and prints where to."""
    from .publishing import push_folder

    print(push_folder(args.folder, args.repo_id, args.base_model, args.metrics, args.private))


def main(argv: Sequence[str] | None = None) -> int:
    """The console command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"] and not {"-h", "--help"} & set(argv):
        return answer("scada train", train, argv[1:])
    parser = argparse.ArgumentParser(prog="scada", description="Temporal sentence grounding in videos.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for name, summary, add_arguments, command in (
        ("ground", "find the segments of a video that sentences describe", add_ground_arguments, ground),
        ("cut", "cut out what was found", add_cut_arguments, cut),
        ("index", "encode the videos of a folder, to search them", add_index_arguments, index),
        ("search", "find the segments of all indexed videos that sentences describe", add_search_arguments, search),
        ("app", "find, play and cut segments on a page in the browser", add_app_arguments, app),
        ("prepare", "prepare annotations for training and evaluation", add_prepare_arguments, prepare),
        ("compose", "compose untrimmed videos from short clips", add_compose_arguments, compose),
        ("train", "train a model from a recipe", add_train_help, train),
        ("evaluate", "evaluate a model on a split of a data set", add_evaluate_arguments, evaluate),
        ("push", "upload what a training left to the Hub", add_push_arguments, push),
    ):
        subparser = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        add_arguments(subparser)
        subparser.set_defaults(command=command)
    args = parser.parse_args(argv)
    name, command = vars(args).pop("name"), vars(args).pop("command")
    return answer(f"scada {name}", command, args)


if __name__ == "__main__":
    sys.exit(main())
