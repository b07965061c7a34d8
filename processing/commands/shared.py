"""Argument types, help texts and error handling shared by all commands."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parse_positive_int(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a positive integer.")
    return int(text)


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun, such as `"1 video"` or `"2 videos"`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def parse_score(text: str) -> float:
    """Parse a score from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 to 1.")
    return value


def _nms_width(text: str) -> float | None:
    """Parse the decay width of soft non-maximum suppression. `none` disables the decay."""
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a positive number, such as 0.5, or none.")
    return value


def parse_device(text: str) -> str:
    """Parse the name of a torch device. This function does not check its availability."""
    if not re.fullmatch(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text}: expected a device, such as cpu, cuda, cuda:1 or mps.")
    return text


EXACT_HELP = (
    "re-encode clips, so that they start and end exactly with their segments. By default, clips are copied from the "
    "preceding key frame on, without re-encoding, which is faster."
)
DEVICE_HELP = "Device of the model, such as cpu or cuda:1. Defaults to a GPU if available."
THRESHOLD_HELP = "Minimum score of a found segment, from 0 to 1."


def run_command(prog: str, command: Callable[[Any], None], args: Any) -> int:
    """
    Run a command and return its exit code.

    An error prints a single line on stderr and returns 1. An interrupt returns 130.
    """
    try:
        command(args)
    except KeyboardInterrupt as error:
        print(f"{prog}: interrupted. {error}".strip(), file=sys.stderr)
        return 130
    except (FloatingPointError, OSError, RuntimeError, ValueError) as error:
        message = re.sub(r"^\[Errno \d+\] ", "", str(error))
        if "Original Traceback (most recent call last):" in message:  # raised in a data loading worker
            message = re.split(r"\n[\w.]+: ", message)[-1]
        print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
        return 1
    return 0


def check_model(name: str) -> None:
    """
    Check that a local model folder exists, before importing torch. transformers checks Hub ids later.

    Raises:
        FileNotFoundError: If the name is a path and its folder does not exist.
    """
    is_path = name.startswith(".") or Path(name).is_absolute() or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(f"There is no model at {name}; check the path, or pass a Hub id.")


def print_results(record: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Print the results as JSON or as a table, and return the record with only the displayed segments."""
    from ..results.selection import is_found, select_shown
    from ..results.table import format_table

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


def add_finding_arguments(parser: argparse.ArgumentParser, top_k: int) -> None:
    """Add the arguments shared by `scada ground` and `scada search`."""
    parser.add_argument(
        "--top_k",
        type=parse_positive_int,
        help=f"Maximum number of segments per sentence (default: {top_k}), and of clips per sentence (default: 1).",
    )
    parser.add_argument(
        "--threshold",
        type=parse_score,
        help=f"{THRESHOLD_HELP} Segments with a lower score are dropped. If all scores are lower, the best segment "
        "is kept and marked as not found.",
    )
    add_nms_argument(parser)
    parser.add_argument("--device", type=parse_device, help=DEVICE_HELP)
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print JSON with all segments, near duplicates included, instead of a table.",
    )
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="HTML page to write, which plays the segments.")
    parser.add_argument("--cut", type=Path, metavar="DIR", help="Folder for a clip of the best segment per sentence.")
    parser.add_argument("--exact", action="store_true", help=f"With --cut: {EXACT_HELP}")
    parser.set_defaults(default_top_k=top_k)


def add_nms_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nms",
        type=_nms_width,
        default=0.5,
        metavar="WIDTH",
        help="Decay width of soft non-maximum suppression (default: 0.5). A smaller width lowers the scores of "
        "overlapping segments more. Pass none to keep all scores.",
    )


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a shard index and the number of shards, such as `"0/4"`."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text}: expected INDEX/COUNT, such as 0/4.")
    return int(number), int(count)
