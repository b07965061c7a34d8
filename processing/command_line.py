"""
The console command `scada`, with a subcommand for each thing that users do; `scripts/` has one script for each, which
has the same arguments.

Nothing heavy is imported before the arguments are parsed, so that `--help` answers at once.
"""

import argparse
import json
import os
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


def count(number: int, noun: str) -> str:
    """`"1 video"`, `"2 videos"`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def score(text: str) -> float:
    """A score."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 to 1.")
    return value


def nms_width(text: str) -> float | None:
    """The width of the decay of soft non-maximum suppression, or `none`."""
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a positive number, such as 0.5, or none.")
    return value


def port_number(text: str) -> int:
    """A port of TCP."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text}: expected a port from 1 to 65535.")
    return int(text)


def device_name(text: str) -> str:
    """A device of torch. Whether this machine has it, torch says."""
    if not re.fullmatch(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text}: expected a device, such as cpu, cuda, cuda:1 or mps.")
    return text


EXACT_HELP = (
    "re-encode clips, so that they start and end exactly with their segments. Without it, clips are copied from a key "
    "frame on, which is quick."
)
DEVICE_HELP = "Where the model runs, such as cpu or cuda:1. By default it runs on a GPU if this machine has one."
THRESHOLD_HELP = "Lowest score of a segment that counts as found, from 0 to 1."


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
        message = re.sub(r"^\[Errno \d+\] ", "", str(error))
        if "Original Traceback (most recent call last):" in message:  # of a process that reads videos
            message = re.split(r"\n[\w.]+: ", message)[-1]
        print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
        return 1
    return 0


def check_model(name: str) -> None:
    """
    Refuse a path without a folder before torch is imported. A name that may be a Hub id is left to transformers.

    Raises:
        FileNotFoundError: If the name is a path, and there is no folder.
    """
    is_path = name.startswith(".") or Path(name).is_absolute() or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(f"There is no model at {name}; check its path, or name a model of the Hub.")


def check_index(index: Path) -> None:
    """
    Refuse a folder without an index before torch is imported.

    Raises:
        FileNotFoundError: If there is no index.
    """
    if not (index / "index.json").is_file():
        raise FileNotFoundError(f"There is no index at {index}; make one with `scada index`.")


def print_results(record: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Print all segments as JSON, or those that people see as a table; returns the record with the latter."""
    from .result_selection import is_found, select_shown
    from .result_table import format_table

    shown = select_shown(record)
    if args.json:
        print(json.dumps(record, indent=2, ensure_ascii=False), flush=True)
    else:
        print(format_table(shown, sys.stdout.isatty() and "NO_COLOR" not in os.environ), flush=True)
    for result in shown["results"]:
        if result["segments"] and not is_found(result["segments"][0]):
            best_score = result["segments"][0]["score"]
            print(f"Not found: {result['sentence']!r} (best score {best_score:.3f})", file=sys.stderr)
    return shown


# Finding segments, and cutting them out.


def add_ground_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="The video file.")
    parser.add_argument("sentences", metavar="sentence", nargs="+", help="What to look for.")
    parser.add_argument("--model", required=True, help="A model, or an adapter: Hub id or folder.")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="Draw frames and segments.")
    add_finding_arguments(parser, 5)


def add_finding_arguments(parser: argparse.ArgumentParser, top_k: int) -> None:
    """What finding in one video and in many have in common."""
    parser.add_argument(
        "--top_k",
        type=positive_int,
        help=f"Maximum number of segments of a sentence, {top_k} by default, and of its clips, 1 by default.",
    )
    parser.add_argument(
        "--threshold",
        type=score,
        help=f"{THRESHOLD_HELP} Segments with a lower score are dropped. If all are lower, the best one is kept and "
        "marked as not found.",
    )
    add_nms_argument(parser)
    parser.add_argument("--device", type=device_name, help=DEVICE_HELP)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of the table; it keeps near copies.")
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="Write a page that plays the segments.")
    parser.add_argument("--cut", type=Path, metavar="DIR", help="Write the best segment as a clip into this folder.")
    parser.add_argument("--exact", action="store_true", help=f"With --cut: {EXACT_HELP}")
    parser.set_defaults(default_top_k=top_k)


def add_nms_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nms",
        type=nms_width,
        default=0.5,
        metavar="WIDTH",
        help="Width of the decay of soft non-maximum suppression, 0.5 by default. The smaller it is, the lower the "
        "scores of segments that overlap a better one; with none, their scores stay.",
    )


def ground(args: argparse.Namespace) -> None:
    """Prints the segments, and writes what was asked for. What can be refused is, before the model is loaded."""
    if not Path(args.video).is_file():
        raise FileNotFoundError(f"There is no video file at {args.video}.")
    check_model(args.model)
    from .result_folder import make_result_folder
    from .video_io import probe

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
    from .grounding import check_device, find_segments, load_pipeline
    from .result_selection import apply_threshold

    check_device(args.device)
    pipe = load_pipeline(args.model, device=args.device)
    print(f"Looking through {facts.duration_seconds:.1f} s of {args.video}", file=sys.stderr)
    results = find_segments(pipe, args.video, args.sentences, args.top_k or args.default_top_k, args.nms)
    record = {
        "video": args.video,
        "duration": facts.duration_seconds,
        "model": args.model,
        "results": apply_threshold(results, args.threshold),
    }
    shown = print_results(record, args)
    if args.plot is not None:
        draw(shown, facts, args.plot)
        print(f"Wrote {args.plot}", file=sys.stderr)
    if args.html is not None:
        if (source := write_page(shown, facts, args.html)) is not None:
            print(
                f"{args.video} is larger than {MAX_EMBEDDED_BYTES / 1e6:g} MB, so {args.html} links to it as "
                f"{source}. Keep both files where they are.",
                file=sys.stderr,
            )
        print(f"Wrote {args.html}", file=sys.stderr)
    if args.cut is not None:
        write_clips(shown, args.cut, args.exact, args.top_k or 1)


def write_clips(shown: dict[str, Any], folder: Path, exact: bool, top_k: int) -> None:
    """Cuts out what was found of what people see, and says what each clip covers."""
    from .clips import cut_segments
    from .result_selection import is_found

    results = []
    for result in shown["results"]:
        found = [segment for segment in result["segments"] if is_found(segment)]
        if not found:
            hint = "To cut out the best segment anyway, pass --threshold 0."
            print(f"No clip of {result['sentence']!r}, which was not found. {hint}", file=sys.stderr)
        results.append(result | {"segments": found[:top_k]})
    how = "re-encoded" if exact else "copied from a key frame on"
    num_clips, failures = 0, dict[str, str]()
    for clip in cut_segments(shown | {"results": results}, folder, exact, on_error="return"):
        if isinstance(clip, dict):
            failures[clip["video"]] = clip["reason"]
            continue
        num_clips += 1
        covered, asked = ("{:.1f} to {:.1f} s".format(*times) for times in (clip.covered_seconds, clip.asked_seconds))
        print(f"Wrote {clip.path}: {covered} (segment: {asked}; {how})", file=sys.stderr)
    for video, reason in failures.items():
        print(f"Skipped {video}: {' '.join(reason.split())}", file=sys.stderr)
    if failures and not num_clips:
        raise RuntimeError(f"Wrote no clip into {folder}; none of the videos could be cut.")


def add_cut_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", metavar="FOUND.json", type=Path, help="What `ground --json` printed.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="Where the clips go.")
    parser.add_argument("--top_k", type=positive_int, default=1, help="Maximum number of clips of a sentence.")
    parser.add_argument(
        "--threshold", type=score, help=f"{THRESHOLD_HELP} Segments with a lower score are not cut out."
    )
    parser.add_argument("--exact", action="store_true", help=EXACT_HELP[0].upper() + EXACT_HELP[1:])


def cut(args: argparse.Namespace) -> None:
    """Cuts out what was found before."""
    from .result_selection import apply_threshold, select_shown

    record = read_record(args.record)
    record["results"] = apply_threshold(record["results"], args.threshold)
    write_clips(select_shown(record), args.folder, args.exact, args.top_k)


def read_record(path: Path) -> dict[str, Any]:
    """
    What `ground --json` or `search --json` printed.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for result in record["results"]:
            _ = result["sentence"] + "", [segment.get("video") or record["video"] for segment in result["segments"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what `scada ground --json` prints; save that into a file, and name it here."
        ) from error
    for result in record["results"]:
        for rank, segment in enumerate(result["segments"], start=1):
            for name in ("score", "start", "end"):
                value = segment.get(name)
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(
                        f"Segment {rank} of {result['sentence']!r} in {path} has {name}={value!r}; expected a number, "
                        "as `scada ground --json` prints it."
                    )
    return record


# Libraries.


VIDEO_ROOT_HELP = "Folder of the index's videos, if it is not where it was."


def open_library(index: Path, video_root: Path | None) -> Any:
    """Opens an index, and says if files of its videos are missing or changed."""
    from .library import Library

    library = Library(index, video_root)
    if missing := library.missing_videos():
        print(
            f"{len(missing)} of the {len(set(library.videos))} videos in {index} are missing, {missing[0]} for "
            "example; name their folder with --video_root.",
            file=sys.stderr,
        )
    if changed := library.changed_videos():
        print(
            f"{len(changed)} of the {len(set(library.videos))} videos in {index} have another size or time of change "
            f"than when they were indexed, {changed[0]} for example, so segments in them may be wrong; run `scada "
            "index` again.",
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
    parser.add_argument("--device", type=device_name, help=DEVICE_HELP)
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
    if args.device is not None and args.ray:
        raise ValueError("Received --device with --ray, whose workers choose their devices; name one of the two.")
    check_model(args.model)
    make_result_folder(args.output)
    print(f"Loading {args.model}", file=sys.stderr)
    from .grounding import check_device, load_pipeline
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
            check_device(args.device)
            pipe = load_pipeline(args.model, device=args.device or local_process_index())
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
    parser.add_argument("--model", help="Hub id or folder of the index's model, if it has moved.")
    parser.add_argument("--video_root", type=Path, help=VIDEO_ROOT_HELP)
    parser.add_argument(
        "--num_candidates",
        type=positive_int,
        default=200,
        help="Number of windows that the head looks at, of those that the retrieval branch ranks first. A model "
        "without this branch looks at all.",
    )
    add_finding_arguments(parser, 10)


def search(args: argparse.Namespace) -> None:
    """Prints the segments of all videos, and writes the page and the clips if asked."""
    check_index(args.index)
    if args.model is not None:
        check_model(args.model)
    from .result_folder import make_result_folder

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
    from .grounding import check_device, load_pipeline
    from .result_selection import apply_threshold

    check_device(args.device)
    pipe = load_pipeline(model, device=args.device)
    top_k = args.top_k or args.default_top_k
    results = search_library(library, args.sentences, pipe, top_k, args.num_candidates, args.nms)
    record = {
        "index": str(args.index),
        "model": model,
        "duration": max((timeline.end_seconds for timeline in library.timelines), default=0.0),
        "results": apply_threshold(results, args.threshold),
    }
    shown = print_results(record, args)
    if args.html is not None:
        from .result_page import write_page_of_videos

        for video, reason in write_page_of_videos(shown, args.html).items():
            print(f"Cannot play {video}: {' '.join(reason.split())}", file=sys.stderr)
        print(f"Wrote {args.html}. It links to the videos, so keep them where they are.", file=sys.stderr)
    if args.cut is not None:
        write_clips(shown, args.cut, args.exact, args.top_k or 1)


def add_app_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="A model, or an adapter: Hub id or folder; by default that of the index.")
    parser.add_argument("--index", type=Path, metavar="INDEX", help="What `scada index` made, to be searched too.")
    parser.add_argument("--video_root", type=Path, help=VIDEO_ROOT_HELP)
    parser.add_argument("--threshold", type=score, help=f"{THRESHOLD_HELP} Visitors can choose another.")
    add_nms_argument(parser)
    parser.add_argument("--device", type=device_name, help=DEVICE_HELP)
    parser.add_argument("--host", help="Address to listen on; by default this machine's own, 0.0.0.0 for all.")
    parser.add_argument("--port", type=port_number, help="Port to listen on; by default the first free one from 7860.")


def app(args: argparse.Namespace) -> None:
    """Starts the application, until it is interrupted."""
    if args.model is None and args.index is None:
        raise ValueError("Received neither --model nor --index; name at least one of them.")
    if args.video_root is not None and args.index is None:
        raise ValueError("Received --video_root without --index, whose videos are there.")
    if args.index is not None:
        check_index(args.index)
    if args.model is not None:
        check_model(args.model)
    from .app import check_address, launch, make_app
    from .grounding import check_device, load_pipeline

    check_address(args.host, args.port)
    library = None if args.index is None else open_library(args.index, args.video_root)
    model = args.model if library is None else model_of(library, args.model)
    check_device(args.device)
    print(f"Loading {model}", file=sys.stderr)
    pipe = load_pipeline(model, device=args.device)
    name = Path(model).resolve().name if Path(model).is_dir() else model
    launch(make_app(pipe, name, library, args.threshold, args.nms), library, args.host, args.port)


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
    from .evaluation import evaluate_model
    from .grounding import check_device

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
    from .publishing import push_folder

    print(push_folder(args.folder, args.repo_id, args.base_model, args.metrics, args.private))


class VersionAction(argparse.Action):
    """Prints the version of the installed package, which is looked up only if it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any):
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('scada-temporal-grounding')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """The console command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"] and not {"-h", "--help"} & set(argv):
        return answer("scada train", train, argv[1:])
    parser = argparse.ArgumentParser(prog="scada", description="Temporal sentence grounding in videos.")
    parser.add_argument(
        "--version", action=VersionAction, default=argparse.SUPPRESS, help="Print the version, and stop."
    )
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
