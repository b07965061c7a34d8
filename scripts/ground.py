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
- `--cut`: the best segment of each sentence as a clip `<video>_01_<sentence>_rank1`, in the container of the video;
  with `--top_k 3` the best three. No file is replaced: a second clip of the same name gets a number. A clip is
  copied without encoding, so it starts at the last key frame at or before the start of its segment; the times that it
  covers are printed. With `--exact`, pictures and sound are re-encoded, so that clips start and end with their
  segments; clips of an AVI and the like are MP4.

JSON has all segments that the model ranks, `--top_k` of each sentence. Table, picture, page and clips leave out near
copies, which overlap a better segment with an IoU above 0.5. Where no score of a sentence reaches 0.01, its best
segment stands alone, in grey and without a clip. With `--threshold`, that score decides instead of 0.01: segments
below it are dropped, in JSON too, but for the best one, which is marked as not found.

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
