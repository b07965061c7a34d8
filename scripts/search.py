r"""
Finds the moments in all videos of an index that sentences describe.

    python scripts/search.py my_index "the red circle moves left" "a square spins"
    python scripts/search.py my_index "the red circle moves left" --top_k 3 --json > found.json
    python scripts/search.py my_index "the red circle moves left" --html found.html --cut clips/

Prints a table, or JSON with `--json`, on stdout; all else goes to stderr. Times are seconds from the first frame. With
`--html`, a page plays the segments, and refers to the videos by relative links; with `--cut`, the best segment of each
sentence becomes a clip. What is shown and cut, and what `--threshold` and `--nms` change, is as in `ground.py`.

Returns 1, with one line on stderr, if something is wrong with what was given, and 2 if the arguments are.
"""

import argparse
import sys

from processing.command_line import add_search_arguments, answer, search


def main(argv: list[str] | None = None) -> int:
    """Reads the arguments, prints and writes; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="search.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_search_arguments(parser)
    return answer(parser.prog, search, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
