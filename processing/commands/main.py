"""
The console command `scada`, with one subcommand per task.

Argument parsing imports no heavy package, so `--help` prints at once.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from .app import add_app_arguments, app
from .data import add_compose_arguments, add_prepare_arguments, compose, prepare
from .grounding import add_cut_arguments, add_ground_arguments, cut, ground
from .library import add_index_arguments, add_search_arguments, index, search
from .models import add_evaluate_arguments, add_push_arguments, add_train_help, evaluate, push, train
from .shared import run_command


class VersionAction(argparse.Action):
    """Action that prints the version of the installed package. Only `--version` reads the package metadata."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any):
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('scada-temporal-grounding')}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    parser = argparse.ArgumentParser(prog="scada", description="Temporal sentence grounding in videos.")
    parser.add_argument(
        "--version", action=VersionAction, default=argparse.SUPPRESS, help="Print the version and exit."
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for name, summary, add_arguments, command in (
        ("ground", "find the segments of a video that match sentences", add_ground_arguments, ground),
        ("cut", "cut found segments into clips", add_cut_arguments, cut),
        ("index", "encode the videos of a folder for search", add_index_arguments, index),
        ("search", "find the segments of all indexed videos that match sentences", add_search_arguments, search),
        ("app", "find, play and cut segments in the browser", add_app_arguments, app),
        ("prepare", "prepare annotations for training and evaluation", add_prepare_arguments, prepare),
        ("compose", "compose untrimmed videos from short clips", add_compose_arguments, compose),
        ("train", "train a model from a recipe", add_train_help, train),
        ("evaluate", "evaluate a model on a dataset split", add_evaluate_arguments, evaluate),
        ("push", "upload a trained model to the Hub", add_push_arguments, push),
    ):
        subparser = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"] and not {"-h", "--help"} & set(argv):
        return run_command("scada train", train, argv[1:])
    args = make_parser().parse_args(argv)
    name, command = vars(args).pop("name"), vars(args).pop("command")
    return run_command(f"scada {name}", command, args)


if __name__ == "__main__":
    sys.exit(main())
