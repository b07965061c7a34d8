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

`my.csv` has a line for each sentence, with quotes around what has a comma inside. In place of `segment` there may be
`start` and `end`, in seconds, and a sentence may have several segments, `"[[1.0, 2.5], [7, 9]]"`:

    video,sentence,segment
    kitchen.mp4,"A man opens the door, then leaves.","[12.4, 15.1]"

`jsonl` has an object a line, `{"video": "kitchen.mp4", "sentence": "A man ...", "segment": [12.4, 15.1]}`, or one for
a whole video with lists named `sentences` and `segments`. Both formats may also have `video_id` and `duration`.

Written is a `datasets.DatasetDict` with one row a video: `video` (relative to `--videos`), `video_id`, `duration`,
`sentences` and `segments`, one or more segments a sentence, in seconds. A split is named as its file is (`train`,
`val_1`, `test`, ...); run again with another file to add its split to the same folder. What was read, clipped,
repaired and dropped is printed, and written in full to `report.json`. With `--check_videos` all videos are decoded
once, and the broken ones listed before training meets them.
"""

import argparse
from pathlib import Path

from processing.annotation_formats import READERS
from processing.dataset_preparation import prepare_dataset


def main() -> None:
    summary = next(line for line in (__doc__ or "").splitlines() if line)
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--format", choices=list(READERS), required=True, help="Format of the annotations.")
    parser.add_argument(
        "--annotations", type=Path, nargs="+", required=True, help="Annotation files, one for each split."
    )
    parser.add_argument("--split", help="Name of the split of a single file; by default its name tells.")
    parser.add_argument(
        "--durations", type=Path, nargs="+", help="Csv files with columns id and length (seconds), as Charades has."
    )
    parser.add_argument("--videos", type=Path, help="Folder of the videos.")
    parser.add_argument(
        "--output", type=Path, required=True, help="Folder to write to; splits of an earlier call stay."
    )
    parser.add_argument(
        "--repair_reversed",
        choices=["swap", "drop"],
        default="drop",
        help="What to do with segments that end before they start; by default they are dropped.",
    )
    parser.add_argument("--check_videos", action="store_true", help="Decode all videos, and list the broken ones.")
    parser.add_argument("--num_workers", type=int, help="Processes that open videos; by default one for each CPU.")
    parser.add_argument(
        "--push_to_hub", metavar="ID", help="Upload to this Hub id; see first if the annotations may be passed on."
    )
    prepare_dataset(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
