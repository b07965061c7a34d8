r"""
Composes untrimmed videos with exact segments from a folder of short clips that nobody annotated in time.

    python scripts/compose.py --table clips.csv --videos UCF-101 --output_dir data/composed_ucf101 \
        --test_groups g01 g02 g03 g04 g05 g06 g07

`clips.csv` has a line for each clip. Clips of one group are joined, and a group is in one split only; the optional
column `scene` says that only some clips of a group may be joined. A `sentence` asks for the clip; a `label` is turned
into words where there is no column of sentences:

    video,label,group
    Archery/v_Archery_g01_c01.avi,Archery,g01

Written are mp4 files and a data set that training takes. They are synthetic edits of real pixels: what happens is
real, that it happens in this order is not. docs/data.md has the tables of UCF-101, HMDB-51 and Kinetics.
"""

import argparse
import sys

from processing.command_line import add_compose_arguments, answer, compose


def main(argv: list[str] | None = None) -> int:
    """Reads the arguments and runs; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="compose.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_compose_arguments(parser)
    return answer(parser.prog, compose, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
