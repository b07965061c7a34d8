r"""
Encodes the videos of a folder into an index, which `search.py` searches.

    python scripts/index.py my_videos --model hub_configs/moving_shapes_model --output my_index
    python scripts/index.py my_videos --model hub_configs/moving_shapes_model --output my_index --shard 0/4
    accelerate launch scripts/index.py my_videos --model hub_configs/moving_shapes_model --output my_index
    python scripts/index.py my_videos --model hub_configs/moving_shapes_model --output my_index --ray

The same command once more encodes only what is new or has another size or time of change, and forgets what is gone;
after it was killed, it goes on. Several processes or machines each do a part of the videos, `--shard 0/4` to `3/4`;
those of `accelerate launch` or `torchrun` share them, and so do the workers of a Ray cluster, `--ray`.

Returns 1, with one line on stderr, if something is wrong with what was given, and 2 if the arguments are.
"""

import argparse
import sys

from processing.command_line import add_index_arguments, answer, index


def main(argv: list[str] | None = None) -> int:
    """Reads the arguments and brings the index up to date; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="index.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_index_arguments(parser)
    return answer(parser.prog, index, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
