"""`scada index` and `scada search`, which encode the videos of a folder once and search them."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .grounding import cut_and_print_clips
from .shared import (
    DEVICE_HELP,
    add_finding_arguments,
    check_model,
    format_count,
    parse_device,
    parse_positive_int,
    parse_shard,
    print_results,
)


def check_index(index: Path) -> None:
    """
    Check that a folder contains an index, before importing torch.

    Raises:
        FileNotFoundError: If the folder contains no index.
    """
    if not (index / "index.json").is_file():
        raise FileNotFoundError(f"There is no index at {index}; create one with `scada index`.")


VIDEO_ROOT_HELP = "New folder of the indexed videos, if they have moved."


def open_library(index: Path, video_root: Path | None) -> Any:
    """Open an index, and print a warning about missing or changed videos."""
    from modeling_scada.library.search import Library

    library = Library(index, video_root)
    if missing := library.missing_videos():
        print(
            f"{len(missing)} of the {len(set(library.videos))} videos in {index} are missing, such as "
            f"{missing[0]}; pass their folder with --video_root.",
            file=sys.stderr,
        )
    if changed := library.changed_videos():
        print(
            f"{len(changed)} of the {len(set(library.videos))} videos in {index} have changed in size or "
            f"modification time since indexing, such as {changed[0]}. Their segments may be wrong; run `scada index` "
            "again.",
            file=sys.stderr,
        )
    return library


def resolve_model(library: Any, model: str | None) -> str:
    """
    Return the model for searching an index.

    Raises:
        ValueError: If the index records no model, or its model has moved.
    """
    resolved = model or library.facts["model"]
    if resolved is None:
        raise ValueError(f"{library.path} records no model; pass it with --model.")
    if model is None and Path(resolved).is_absolute() and not Path(resolved).exists():
        raise ValueError(f"There is no model at {resolved}, as recorded in {library.path}; pass it with --model.")
    return resolved


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", metavar="VIDEOS_FOLDER", type=Path, help="Folder of the videos.")
    parser.add_argument("--model", required=True, help="Model or adapter: Hub id or folder.")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="INDEX", help="Folder of the index, created or updated."
    )
    parser.add_argument("--device", type=parse_device, help=DEVICE_HELP)
    parser.add_argument(
        "--shard", type=parse_shard, metavar="I/N", help="Shard of the videos, such as 0/4 to 3/4 for four shards."
    )
    parser.add_argument("--ray", action="store_true", help="Encode on the workers of a Ray cluster.")
    parser.add_argument(
        "--num_workers",
        type=parse_positive_int,
        help="Number of Ray workers. Defaults to one per GPU, or one per CPU core without GPUs.",
    )
    parser.add_argument(
        "--remove_missing",
        action="store_true",
        help="Remove missing videos from the index, even over half of them or from folders that cannot be listed.",
    )


def index(args: argparse.Namespace) -> None:
    """Update an index, and list unreadable videos on stderr."""
    from ..results.folder import make_result_folder

    if not args.videos.is_dir():
        raise NotADirectoryError(f"There is no folder of videos at {args.videos}.")
    if args.num_workers is not None and not args.ray:
        raise ValueError("Received --num_workers without --ray; also pass --ray.")
    if args.device is not None and args.ray:
        raise ValueError("Received --device with --ray, whose workers choose their devices; pass only one of them.")
    check_model(args.model)
    make_result_folder(args.output)
    print(f"Loading {args.model}", file=sys.stderr)
    from modeling_scada.inference.loading import check_device, load_pipeline
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
        raise KeyboardInterrupt(
            f"Encoded videos are in {args.output}; run the same command again to resume."
        ) from None
    for video in report["broken"]:
        print(f"Skipped {video['video']}: {' '.join(video['reason'].split())}", file=sys.stderr)
    label = (
        f"{args.output}, process {process_index() + 1} of {num_processes()}" if num_processes() > 1 else args.output
    )
    print(
        f"{label}: {report['videos']} videos, {report['windows']} windows. Encoded {report['encoded']} videos, "
        f"kept {report['kept']} unchanged, removed {report['forgotten']} changed or missing, skipped "
        f"{len(report['broken'])} unreadable."
    )
    if report["other_files"] or report["other_links"]:
        print(
            f"Ignored {format_count(report['other_files'], 'file')} without a video extension, and "
            f"{format_count(report['other_links'], 'broken or duplicate link')}.",
            file=sys.stderr,
        )


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", type=Path, help="Index of `scada index`.")
    parser.add_argument("sentences", metavar="sentence", nargs="+", help="Sentences to find.")
    parser.add_argument("--model", help="New Hub id or folder of the index's model, if it has moved.")
    parser.add_argument("--video_root", type=Path, help=VIDEO_ROOT_HELP)
    parser.add_argument(
        "--num_candidates",
        type=parse_positive_int,
        default=200,
        help="Number of top-ranked windows of the retrieval branch that the head scores (default: 200). Without a "
        "retrieval branch, the head scores all windows.",
    )
    add_finding_arguments(parser, 10)


def search(args: argparse.Namespace) -> None:
    """Print the segments of all videos, and write the requested page and clips."""
    check_index(args.index)
    if args.model is not None:
        check_model(args.model)
    from ..results.folder import make_result_folder

    if args.exact and args.cut is None:
        raise ValueError("Received --exact without --cut; also pass --cut with a folder for the clips.")
    if args.html is not None and args.html.is_dir():
        raise IsADirectoryError(f"{args.html} is a folder; expected a file name.")
    for folder in (args.html and args.html.parent, args.cut):
        if folder is not None:
            make_result_folder(folder)
    from modeling_scada.library.search import search as search_library

    library = open_library(args.index, args.video_root)
    model = resolve_model(library, args.model)
    print(f"Loading {model}", file=sys.stderr)
    from modeling_scada.inference.loading import check_device, load_pipeline

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
        print(f"Wrote {args.html}, which links to the videos. Do not move them.", file=sys.stderr)
    if args.cut is not None:
        cut_and_print_clips(shown, args.cut, args.exact, args.top_k or 1)
