"""`scada index`, `scada search` and `scada app`: encode the videos of a folder once, and search them."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .arguments import (
    DEVICE_HELP,
    THRESHOLD_HELP,
    add_finding_arguments,
    add_nms_argument,
    check_model,
    device_name,
    parse_shard,
    positive_int,
    print_results,
    score,
)
from .grounding import write_clips


def port_number(text: str) -> int:
    """A port of TCP."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text}: expected a port from 1 to 65535.")
    return int(text)


def check_index(index: Path) -> None:
    """
    Refuse a folder without an index before torch is imported.

    Raises:
        FileNotFoundError: If there is no index.
    """
    if not (index / "index.json").is_file():
        raise FileNotFoundError(f"There is no index at {index}; make one with `scada index`.")


VIDEO_ROOT_HELP = "Folder of the index's videos, if it is not where it was."


def open_library(index: Path, video_root: Path | None) -> Any:
    """Opens an index, and says if files of its videos are missing or changed."""
    from modeling_scada.library.search import Library

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


def resolve_model(library: Any, model: str | None) -> str:
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


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", metavar="VIDEOS_FOLDER", type=Path, help="Folder of the videos.")
    parser.add_argument("--model", required=True, help="A model, or an adapter: Hub id or folder.")
    parser.add_argument("--output", type=Path, required=True, metavar="INDEX", help="Folder of the index.")
    parser.add_argument("--device", type=device_name, help=DEVICE_HELP)
    parser.add_argument(
        "--shard", type=parse_shard, metavar="I/N", help="Only this part of the videos, 0/4 to 3/4 for example."
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
    from ..results.folder import make_result_folder

    if not args.videos.is_dir():
        raise NotADirectoryError(f"There is no folder of videos at {args.videos}.")
    if args.num_workers is not None and not args.ray:
        raise ValueError("Received --num_workers without --ray, whose workers they are.")
    if args.device is not None and args.ray:
        raise ValueError("Received --device with --ray, whose workers choose their devices; name one of the two.")
    check_model(args.model)
    make_result_folder(args.output)
    print(f"Loading {args.model}", file=sys.stderr)
    from modeling_scada.inference.grounding import check_device, load_pipeline
    from modeling_scada.library.index import index_videos
    from modeling_scada.library.on_ray import import_ray, index_videos_on_ray
    from modeling_scada.library.processes import local_process_index, num_processes, process_index

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
    from ..results.folder import make_result_folder

    if args.exact and args.cut is None:
        raise ValueError("Received --exact without --cut; name the folder for the clips, too.")
    if args.html is not None and args.html.is_dir():
        raise IsADirectoryError(f"{args.html} is a folder; expected the name of a file to write.")
    for folder in (args.html and args.html.parent, args.cut):
        if folder is not None:
            make_result_folder(folder)
    from modeling_scada.library.search import search as search_library

    library = open_library(args.index, args.video_root)
    model = resolve_model(library, args.model)
    print(f"Loading {model}", file=sys.stderr)
    from modeling_scada.inference.grounding import check_device, load_pipeline

    from ..results.selection import apply_threshold

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
        from ..results.page import write_library_page

        for video, reason in write_library_page(shown, args.html).items():
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
    from modeling_scada.app import check_address, launch, make_app
    from modeling_scada.inference.grounding import check_device, load_pipeline

    check_address(args.host, args.port)
    library = None if args.index is None else open_library(args.index, args.video_root)
    model = args.model if library is None else resolve_model(library, args.model)
    check_device(args.device)
    print(f"Loading {model}", file=sys.stderr)
    pipe = load_pipeline(model, device=args.device)
    name = Path(model).resolve().name if Path(model).is_dir() else model
    launch(make_app(pipe, name, library, args.threshold, args.nms), library, args.host, args.port)
