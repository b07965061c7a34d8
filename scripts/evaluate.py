r"""
Evaluate a model on a split of a data set, and write predictions as JSON Lines and metrics as JSON.

    python scripts/evaluate.py outputs/demo/scada outputs/demo/data --split test --output_dir outputs/demo/scada_test
    python scripts/evaluate.py outputs/charades_sta_videomae_base data/charades_sta --split test \
        --video_root path/to/Charades_v1_480 --dtype bfloat16 --num_workers 8
    python scripts/evaluate.py outputs/qvhighlights data/qvhighlights --split val --video_root path/to/videos \
        --qvhighlights highlight_val_release.jsonl

The script writes to the output folder
- `predictions.jsonl`, one line per sentence: `video`, `sentence`, `segments` (`[[start, end, score], ...]` in seconds,
  best first) and `targets`;
- `metrics.json`: the metrics in percent (see `processing.metrics.temporal_grounding_metrics`), the split and the
  settings;
- with `--qvhighlights`, the predictions as `submission.jsonl` in the format of the official QVHighlights evaluation.

Each video is read and encoded once for all its sentences.
"""

import argparse

from processing.commands.models import add_evaluate_arguments, evaluate


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and run the evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_evaluate_arguments(parser)
    evaluate(parser.parse_args(argv))


if __name__ == "__main__":
    main()
