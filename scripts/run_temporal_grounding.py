r"""
Fine-tunes a model for temporal sentence grounding with `Trainer`, on video files.

On two cores, in minutes (the first line makes the data):

    python scripts/make_moving_shapes.py --output_dir outputs/moving_shapes
    python scripts/run_temporal_grounding.py hub_configs/recipes/moving_shapes.json

Charades-STA on GPUs, from pretrained encoders, with data from `prepare_dataset.py`; and a baseline of it:

    accelerate launch scripts/run_temporal_grounding.py hub_configs/recipes/charades_sta_videomae_base.json \
        --dataset data/charades_sta --video_root path/to/Charades_v1_480
    accelerate launch scripts/run_temporal_grounding.py hub_configs/recipes/charades_sta_videomae_base.json \
        --dataset data/charades_sta --video_root path/to/Charades_v1_480 \
        --tuning frozen --output_dir outputs/charades_sta_videomae_base_frozen

One's own videos:

    python scripts/run_temporal_grounding.py \
        --video_model MCG-NJU/videomae-base --text_model distilbert-base-uncased \
        --dataset data/my_videos --video_root path/to/videos --num_frames 512 --image_size 160 --max_sentences 4 \
        --tuning scada --learning_rate 2e-4 --adapter_learning_rate 4e-4 --per_device_train_batch_size 1 \
        --num_train_epochs 10 --output_dir outputs/my_videos

`--tuning` says which part of the video backbone trains:
- `frozen`: none of it;
- `partial`: the layers that `--inner_layers` names;
- `full`: all of it;
- `lora`: LoRA on the queries and values of all layers;
- `tia`: the temporal-informative adapter of AdaTAD after the layers that `--inner_layers` names, which is SCADA's
  inner branch without the sentence;
- `scada`: the Sentence-Conditioned Adapter, with `--scada_branches inner | outer | both`.

The head always trains, the sentence encoder with `--train_text`. With `lora`, `tia` and `scada` the output folder gets
the adapter, beside the model that it belongs to if that was put together here; it loads like any other model's.

A JSON file with the same names as the first argument is a recipe; arguments after it replace the recipe's.

The same command once more goes on with a run that was stopped, at its last whole checkpoint, as if it had never been
stopped. What is drawn for a video (sentences, augmentation) depends on the seed, the epoch and the video alone.
"""

import sys

from processing.commands.arguments import run_command
from processing.commands.models import train


def main(argv: list[str] | None = None) -> int:
    """Reads the arguments and runs; returns the exit code."""
    return run_command("run_temporal_grounding.py", train, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
