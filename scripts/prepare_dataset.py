r"""
Convert the annotations of published or own data sets to a common schema for training and evaluation.

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

`my.csv` has one line per sentence, with quotes around values that contain a comma. The columns `start` and `end` can
replace `segment`, in seconds or as `1:02:03.5`. A sentence can have several segments, `"[[1.0, 2.5], [7, 9]]"`:

    video,sentence,segment
    kitchen.mp4,"A man opens the door, then leaves.","[12.4, 15.1]"

`jsonl` has one object per line, `{"video": "kitchen.mp4", "sentence": "A man ...", "segment": [12.4, 15.1]}`. Objects
can also describe entire videos, with lists named `sentences` and `segments`. Both formats support `video_id`,
`duration` and the `split` of each row. `--validation_share 0.2 --test_share 0.1` samples such splits from `train`.

The output is a `datasets.DatasetDict`, one row per video: `video` (relative to `--videos`), `video_id`, `duration`,
`sentences` and `segments` in seconds, one or more per sentence. Each split has the name of its file (`train`, `val_1`,
`test`, ...). Run the script again with another file to add its split to the same folder. The script prints a summary
of read, clipped, repaired and dropped annotations, and of videos with a different duration or that fail to open.
`report.json` contains the full report. With `--check_videos`, the script decodes all videos once, to list broken
videos before training.
"""

import argparse
import sys

from processing.commands.data import add_prepare_arguments, prepare
from processing.commands.shared import run_command


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, prepare the data set, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="prepare_dataset.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_prepare_arguments(parser)
    return run_command(parser.prog, prepare, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
