r"""
Prepare annotations for training and evaluation: data sets as they are published, or one's own, to one schema.

    python scripts/prepare_dataset.py --format charades-sta \
        --annotations charades_sta_train.txt charades_sta_test.txt \
        --durations Charades_v1_train.csv Charades_v1_test.csv \
        --videos Charades_v1_480 --output data/charades_sta

    python scripts/prepare_dataset.py --format activitynet-captions \
        --annotations train.json val_1.json val_2.json --videos activitynet/videos --output data/activitynet_captions

    python scripts/prepare_dataset.py --format qvhighlights \
        --annotations highlight_train_release.jsonl highlight_val_release.jsonl \
        --videos qvhighlights/videos --output data/qvhighlights

    python scripts/prepare_dataset.py --format csv --annotations my.csv --videos my_videos --output data/my

    python scripts/prepare_dataset.py --format charades-cd \
        --annotations charades_train.json charades_test_iid.json charades_test_ood.json \
        --videos Charades_v1_480 --output data/charades_cd

`my.csv` has a line for each sentence, with quotes around what has a comma inside. In place of `segment` there may be
`start` and `end`, in seconds or as `1:02:03.5`, and a sentence may have several segments, `"[[1.0, 2.5], [7, 9]]"`:

    video,sentence,segment
    kitchen.mp4,"A man opens the door, then leaves.","[12.4, 15.1]"

`jsonl` has an object a line, `{"video": "kitchen.mp4", "sentence": "A man ...", "segment": [12.4, 15.1]}`, or one for
a whole video with lists named `sentences` and `segments`. Both formats may also have `video_id`, `duration` and
`split`, which says the split of each row. `--validation_share 0.2 --test_share 0.1` draws such splits from `train`.

Written is a `datasets.DatasetDict` with one row a video: `video` (relative to `--videos`), `video_id`, `duration`,
`sentences` and `segments`, one or more segments a sentence, in seconds. A split is named as its file is (`train`,
`val_1`, `test`, ...); run again with another file to add its split to the same folder. What was read, clipped,
repaired and dropped is printed, and written in full to `report.json`; so are videos that are longer or shorter than
annotated, or cannot be opened. With `--check_videos` all videos are decoded once, and the broken ones listed before
training meets them.
"""

import argparse
import sys

from processing.commands.arguments import run_command
from processing.commands.data import add_prepare_arguments, prepare


def main(argv: list[str] | None = None) -> int:
    """Reads the arguments and runs; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="prepare_dataset.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_prepare_arguments(parser)
    return run_command(parser.prog, prepare, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
