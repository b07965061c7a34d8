r"""
Finds the moments of a video that sentences describe.

    python scripts/ground.py kitchen.mp4 "a person opens the fridge" "he drinks" --model outputs/demo/scada
    python scripts/ground.py kitchen.mp4 "he drinks" --model outputs/demo/scada --top_k 1 --json > found.json
    python scripts/ground.py kitchen.mp4 "he drinks" --model outputs/demo/scada \
        --plot found.png --html found.html --cut clips/

Prints a table, or JSON with `--json`, on stdout; all else goes to stderr. Times are seconds from the first frame; the
table of a video of a minute or more has them as mm:ss.s. On request it also writes
- `--plot`: a picture, frames of the video over a time axis and the segments below (needs matplotlib);
- `--html`: a page that plays the segments, in one file with the video in it if that is no larger than 100 MB;
- `--cut`: each segment as a clip, in the container of the video. Nothing is encoded anew, so a clip begins with the
  last key frame at or before the start of its segment; what it really covers is printed.

Returns 1, with one line on stderr, if something is wrong with what was given, and 2 if the arguments are.
"""

import argparse
import sys

from processing.command_line import add_ground_arguments, answer, ground


def main(argv: list[str] | None = None) -> int:
    """Reads the arguments, prints and writes; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="ground.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_ground_arguments(parser)
    return answer(parser.prog, ground, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
