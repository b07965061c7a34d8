"""
Generate MovingShapes, a small synthetic data set for temporal sentence grounding: mp4 videos and annotations.

    python scripts/make_moving_shapes.py --output_dir moving_shapes
    python scripts/make_moving_shapes.py --output_dir moving_shapes_tiny --num_train 16 --num_test 8
    python scripts/make_moving_shapes.py --output_dir moving_shapes_crowded --crowded

Load it with `datasets.load_from_disk("moving_shapes")`; the column `video` is relative to that folder.

`processing/data/moving_shapes.py` explains the properties that make its sentences hard to guess.
"""

import argparse
import os
from pathlib import Path

from processing.data.moving_shapes import make_moving_shapes


def main() -> None:
    """Parse the arguments and generate the data set."""
    summary = next(line for line in (__doc__ or "").splitlines() if line)
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="New or empty folder for the data set.")
    parser.add_argument("--num_train", type=int, default=1000, help="Number of training videos.")
    parser.add_argument("--num_test", type=int, default=100, help="Number of test videos.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed.")
    parser.add_argument("--image_size", type=int, default=64, help="Height and width of the videos, an even number.")
    parser.add_argument("--fps", type=int, default=10, help="Frames per second.")
    parser.add_argument("--crowded", action="store_true", help="Use six to nine objects that move at the same time.")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count(), help="Number of worker processes.")
    make_moving_shapes(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
