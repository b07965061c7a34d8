"""`scada ground` and `scada cut`, which find the segments of one video and cut them into clips."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .shared import (
    EXACT_HELP,
    THRESHOLD_HELP,
    add_finding_arguments,
    check_model,
    parse_positive_int,
    parse_score,
    print_results,
)


def add_ground_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="Video file.")
    parser.add_argument("sentences", metavar="sentence", nargs="+", help="Sentences to find.")
    parser.add_argument("--model", required=True, help="Model or adapter: Hub id or folder.")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="Picture to write, with frames and segments.")
    add_finding_arguments(parser, 5)


def ground(args: argparse.Namespace) -> None:
    """Print the segments and write the requested files. Check all arguments before loading the model."""
    if not Path(args.video).is_file():
        raise FileNotFoundError(f"There is no video file at {args.video}.")
    check_model(args.model)
    from ..results.folder import make_result_folder
    from ..video_io import probe

    for path in (args.plot, args.html):
        if path is not None and path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; expected a file name.")
    if args.plot is not None:
        from ..results.picture import check_picture_name, draw

        check_picture_name(args.plot)
    if args.html is not None:
        from ..results.page import MAX_EMBEDDED_BYTES, MIME_TYPES, write_page

        if Path(args.video).suffix.lower() not in MIME_TYPES:
            raise ValueError(f"Browsers do not play {args.video}; --html supports {', '.join(MIME_TYPES)}.")
    if args.exact and args.cut is None:
        raise ValueError("Received --exact without --cut; also pass --cut with a folder for the clips.")
    for sentence in args.sentences:
        if not sentence.strip():
            raise ValueError(f"Received the sentence {sentence!r}; expected a non-empty sentence.")
    properties = probe(args.video)
    for path in (args.plot, args.html):
        if path is not None:
            make_result_folder(path.parent)
    if args.cut is not None:
        make_result_folder(args.cut)

    print(f"Loading {args.model}", file=sys.stderr)
    from modeling_scada.inference.grounding import find_segments
    from modeling_scada.inference.loading import check_device, load_pipeline

    from ..results.selection import apply_threshold

    check_device(args.device)
    pipe = load_pipeline(args.model, device=args.device)
    print(f"Searching {properties.duration_seconds:.1f} s of {args.video}", file=sys.stderr)
    results = find_segments(pipe, args.video, args.sentences, args.top_k or args.default_top_k, args.nms)
    record = {
        "video": args.video,
        "duration": properties.duration_seconds,
        "model": args.model,
        "results": apply_threshold(results, args.threshold),
    }
    shown = print_results(record, args)
    if args.plot is not None:
        draw(shown, properties, args.plot)
        print(f"Wrote {args.plot}", file=sys.stderr)
    if args.html is not None:
        if (source := write_page(shown, properties, args.html)) is not None:
            print(
                f"{args.video} is larger than {MAX_EMBEDDED_BYTES / 1e6:g} MB, so {args.html} links to it as "
                f"{source}. Do not move either file.",
                file=sys.stderr,
            )
        print(f"Wrote {args.html}", file=sys.stderr)
    if args.cut is not None:
        cut_and_print_clips(shown, args.cut, args.exact, args.top_k or 1)


def cut_and_print_clips(shown: dict[str, Any], folder: Path, exact: bool, top_k: int) -> None:
    """Cut displayed, found segments into clips and print the time range of each clip."""
    from ..results.clips import cut_segments
    from ..results.selection import is_found

    results = []
    for result in shown["results"]:
        found = [segment for segment in result["segments"] if is_found(segment)]
        if not found:
            hint = "Pass --threshold 0 to cut its best segment anyway."
            print(f"No clip for {result['sentence']!r}, because it was not found. {hint}", file=sys.stderr)
        results.append(result | {"segments": found[:top_k]})
    how = "re-encoded" if exact else "copied from a key frame"
    num_clips, failures = 0, dict[str, str]()
    for clip in cut_segments(shown | {"results": results}, folder, exact, on_error="return"):
        if isinstance(clip, dict):
            failures[clip["video"]] = clip["reason"]
            continue
        num_clips += 1
        covered, requested = (
            "{:.1f} to {:.1f} s".format(*times) for times in (clip.covered_seconds, clip.requested_seconds)
        )
        print(f"Wrote {clip.path}: {covered} (segment: {requested}; {how})", file=sys.stderr)
    for video, reason in failures.items():
        print(f"Skipped {video}: {' '.join(reason.split())}", file=sys.stderr)
    if failures and not num_clips:
        raise RuntimeError(f"Wrote no clips to {folder}, because cutting failed for every video.")


def add_cut_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", metavar="FOUND.json", type=Path, help="Output of `scada ground --json`, as a file.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="Output folder.")
    parser.add_argument("--top_k", type=parse_positive_int, default=1, help="Maximum number of clips per sentence.")
    parser.add_argument(
        "--threshold", type=parse_score, help=f"{THRESHOLD_HELP} Segments with a lower score are skipped."
    )
    parser.add_argument("--exact", action="store_true", help=EXACT_HELP[0].upper() + EXACT_HELP[1:])


def cut(args: argparse.Namespace) -> None:
    """Cut the segments of a saved record into clips."""
    from ..results.selection import apply_threshold, select_shown

    record = _read_record(args.record)
    record["results"] = apply_threshold(record["results"], args.threshold)
    cut_and_print_clips(select_shown(record), args.folder, args.exact, args.top_k)


def _read_record(path: Path) -> dict[str, Any]:
    """
    Load the output of `scada ground --json` or `scada search --json`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not such an output.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for result in record["results"]:
            _ = result["sentence"] + "", [segment.get("video") or record["video"] for segment in result["segments"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an output of `scada ground --json`; save that output to a file and pass its path."
        ) from error
    for result in record["results"]:
        for rank, segment in enumerate(result["segments"], start=1):
            for name in ("score", "start", "end"):
                value = segment.get(name)
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(
                        f"Segment {rank} of {result['sentence']!r} in {path} has {name}={value!r}; expected a number, "
                        "as in the output of `scada ground --json`."
                    )
    return record
