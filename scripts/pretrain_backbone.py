r"""
Pretrain a tiny video backbone to recognize the visible colours and shapes of a clip, without motion.

    python scripts/pretrain_backbone.py --output_dir hub_configs/models/moving_shapes_backbone
    python scripts/pretrain_backbone.py --output_dir outputs/backbones/c3d \
        --config '{"model_type": "c3d", "image_size": 32, "hidden_sizes": [16, 32, 64, 96, 96]}'
    python scripts/pretrain_backbone.py --output_dir outputs/backbones/i3d \
        --config '{"model_type": "i3d", "image_size": 32, "base_channels": 12, "freeze_batch_norm": false,
            "batch_norm_momentum": 0.1}'

The first command creates the VideoMAE of the demo. `--config` selects any other backbone of SCADA models.

The task contains no temporal information, so a frozen backbone has none either. End-to-end training addresses this
discrepancy between pretraining and grounding. The script renders clips in memory, from seeds that no split of
MovingShapes uses.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import CONFIG_MAPPING, VideoMAEConfig, VideoMAEForVideoClassification, set_seed

from modeling_scada import ScadaVideoProcessor
from modeling_scada.backbone_scada import VideoBackbone, build_encoder
from processing.data.moving_shapes import COLOURS, SHAPES, make_video


CLASSES = [*COLOURS, *SHAPES]
SEED_STREAM = 7919
CLIPS_PER_VIDEO = 4
FPS = 10
# Minimum fraction of the frames that show an object, for it to count as visible.
MIN_VISIBLE = 0.25


class Classifier(nn.Module):
    """
    Backbone with a linear classifier on its mean features.

    Args:
        encoder (`PreTrainedModel`): Encoder of the backbone.
    """

    def __init__(self, encoder: Any):
        super().__init__()
        self.backbone = VideoBackbone(encoder)
        width = self.backbone.layer_dims[-1]
        self.classifier = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(CLASSES)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits `(clips, classes)` for pixels `(clips, 16, 3, H, W)`."""
        features, _ = self.backbone(pixels)
        return self.classifier(features.mean(dim=(1, 2, 3)))


def make_clips(num_videos: int, seed: int, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Render clips of consecutive frames around random events, with targets for the visible colours and shapes.

    Args:
        num_videos (`int`): Number of videos to render.
        seed (`int`): Random seed.
        config (`PreTrainedConfig`): Configuration of the backbone, with its image size and number of frames.

    Returns:
        `tuple`: Normalised pixels `(clips, 16, 3, H, W)` and targets `(clips, classes)`.
    """
    size = {"height": config.image_size, "width": config.image_size}
    processor = ScadaVideoProcessor(num_frames=config.num_frames, size=size)
    pixels, targets = [], []
    for index in tqdm(range(num_videos), desc="rendering"):
        rng = np.random.default_rng([SEED_STREAM, seed, index])
        video = make_video(rng, fps=FPS)
        for event in rng.choice(video.events, CLIPS_PER_VIDEO):  # type: ignore[arg-type]
            middle_frame = int(rng.uniform(event.appears_seconds, event.vanishes_seconds) * FPS)
            first_frame = min(max(middle_frame - config.num_frames // 2, 0), video.num_frames - config.num_frames)
            times_seconds = np.arange(first_frame, first_frame + config.num_frames) / FPS
            visible = set()
            for other in video.events:
                is_present = (times_seconds >= other.appears_seconds) & (times_seconds < other.vanishes_seconds)
                if is_present.mean() >= MIN_VISIBLE:
                    visible |= {other.colour, other.shape}
            frames = video.frames[first_frame : first_frame + config.num_frames]
            pixels.append(processor(frames, video_metadata={"fps": FPS})["pixel_values_videos"][0])
            targets.append(torch.tensor([float(name in visible) for name in CLASSES]))
    return torch.stack(pixels), torch.stack(targets)


def main() -> None:
    """Render clips, train, print the held-out accuracy and save the backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_videos", type=int, default=3000)
    parser.add_argument("--num_steps", type=int, default=2500)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--config", type=json.loads, help="JSON configuration of another backbone, with model_type.")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--patch_size", type=int, default=16)
    parser.add_argument("--hidden_size", type=int, default=96)
    parser.add_argument("--num_hidden_layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)
    model: Any
    if args.config is not None:
        config: Any = CONFIG_MAPPING[args.config.pop("model_type")](**args.config)
        model = Classifier(build_encoder(config))
        encoder = model.backbone.encoder
        classify = model
    else:
        config = VideoMAEConfig(
            image_size=args.image_size,
            patch_size=args.patch_size,
            hidden_size=args.hidden_size,
            num_hidden_layers=args.num_hidden_layers,
            num_attention_heads=args.hidden_size // 32,
            intermediate_size=4 * args.hidden_size,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: index for index, name in enumerate(CLASSES)},
            problem_type="multi_label_classification",
        )
        model = VideoMAEForVideoClassification(config)
        encoder = model.videomae

        def classify(pixels: torch.Tensor) -> torch.Tensor:
            return model(pixels).logits

    pixels, targets = make_clips(args.num_videos, args.seed, config)
    held_out = len(pixels) // 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.num_steps)
    started_seconds = time.perf_counter()
    progress = tqdm(range(args.num_steps), desc="pretraining")
    for _ in progress:
        batch = torch.randint(held_out, len(pixels), (args.batch_size,))
        loss = nn.functional.binary_cross_entropy_with_logits(classify(pixels[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
    with torch.no_grad():
        correct = (classify(pixels[:held_out]) > 0) == targets[:held_out].bool()
    for name, classes in (("colours", slice(0, len(COLOURS))), ("shapes", slice(len(COLOURS), None))):
        accuracy = correct[:, classes].all(1).float().mean()
        print(f"All {name} correct in {100 * accuracy:.1f} % of the held-out clips")
    print(
        f"Training time: {time.perf_counter() - started_seconds:.0f} s, "
        f"{sum(parameter.numel() for parameter in encoder.parameters()):,} parameters"
    )
    if hasattr(config, "freeze_batch_norm"):
        config.freeze_batch_norm = True  # its statistics are trained now
    encoder.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
