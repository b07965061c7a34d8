"""Types, help texts and the error line that all commands share."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def run_command(prog: str, command: Callable[[Any], None], args: Any) -> int:
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


def print_results(record: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Print all segments as JSON, or those that people see as a table; returns the record with the latter."""
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


def parse_shard(text: str) -> tuple[int, int]:
    """`"0/4"`: a part, and how many there are."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text}: expected a part and their number, such as 0/4 to 3/4.")
    return int(number), int(count)
