r"""
Starts a page in the browser: drop in a video or search an index, play what is found, and cut it out.

    python scripts/app.py --model hub_configs/moving_shapes_model
    python scripts/app.py --index my_index
    python scripts/app.py --index my_index --host 0.0.0.0 --port 8000

Needs Gradio (`pip install ".[app]"`). Without `--host` and `--port`, the page is for this machine alone, at the first
free port. Its address is printed. Returns 1, with one line on stderr, if something is wrong with what was given, and 2
if the arguments are.
"""

import argparse
import sys

from processing.command_line import add_app_arguments, answer, app


def main(argv: list[str] | None = None) -> int:
    """Reads the arguments and starts the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="app.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_app_arguments(parser)
    return answer(parser.prog, app, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
