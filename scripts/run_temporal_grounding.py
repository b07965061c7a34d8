r"""
Fine-tune a model for temporal sentence grounding with `Trainer`, on video files.

On two cores, in minutes (the first line generates the data):

    python scripts/make_moving_shapes.py --output_dir outputs/moving_shapes
    python scripts/run_temporal_grounding.py hub_configs/recipes/moving_shapes.json

Charades-STA on GPUs, from pretrained encoders, with data from `prepare_dataset.py`, and its frozen baseline:

    accelerate launch scripts/run_temporal_grounding.py hub_configs/recipes/charades_sta_videomae_base.json \
        --dataset data/charades_sta --video_root path/to/Charades_v1_480
    accelerate launch scripts/run_temporal_grounding.py hub_configs/recipes/charades_sta_videomae_base.json \
        --dataset data/charades_sta --video_root path/to/Charades_v1_480 \
        --tuning frozen --output_dir outputs/charades_sta_videomae_base_frozen

Your own videos:

    python scripts/run_temporal_grounding.py \
        --video_model MCG-NJU/videomae-base --text_model distilbert-base-uncased \
        --dataset data/my_videos --video_root path/to/videos --num_frames 512 --image_size 160 --max_sentences 4 \
        --tuning scada --learning_rate 2e-4 --adapter_learning_rate 4e-4 --per_device_train_batch_size 1 \
        --num_train_epochs 10 --output_dir outputs/my_videos

`--tuning` selects the trainable part of the video backbone:
- `frozen`: no parameters;
- `partial`: the layers of `--inner_layers`;
- `full`: all parameters;
- `lora`: LoRA on the queries and values of all layers;
- `tia`: the temporal-informative adapter of AdaTAD after the layers of `--inner_layers`, which is the inner branch of
  SCADA without the sentence;
- `scada`: the Sentence-Conditioned Adapter, with `--scada_branches pooling | inner | outer | both`.

The head always trains; `--train_text` also trains the sentence encoder. With `lora`, `tia` and `scada`, the output
folder contains the adapter, and its base model if the run created that model. The folder loads like any other model.

A recipe is a JSON file with the same argument names, passed as the first argument. Later arguments override it.

Repeat the same command to resume an interrupted run from its last complete checkpoint, with the same result as an
uninterrupted run. Sampled sentences and augmentations of a video depend only on the seed, the epoch and the video.
"""

import sys

from processing.commands.models import train
from processing.commands.shared import run_command


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, train, and return the exit code."""
    return run_command("run_temporal_grounding.py", train, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
