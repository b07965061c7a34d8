r"""
Fine-tunes a model for temporal sentence grounding with `Trainer`, on video files.

On two cores, in minutes (the first line makes the data):

    python scripts/make_moving_shapes.py --output_dir outputs/moving_shapes
    python scripts/run_temporal_grounding.py hub_configs/moving_shapes.json

Charades-STA on GPUs, from pretrained encoders:

    accelerate launch scripts/run_temporal_grounding.py \
        --video_model MCG-NJU/videomae-base --text_model distilbert-base-uncased \
        --dataset path/to/charades_sta --train_split train --eval_split test --video_root path/to/videos \
        --num_frames 512 --image_size 160 --max_sentences 4 \
        --tuning scada --learning_rate 2e-4 --adapter_learning_rate 4e-4 --bf16 \
        --num_train_epochs 10 --output_dir outputs/charades_sta

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

A JSON file with the same names as its single argument is a recipe.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import (
    AutoTokenizer,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from modeling_scada import ScadaAdapterConfig, ScadaForTemporalGrounding, ScadaProcessor, ScadaVideoProcessor
from modeling_scada.adapter_scada import resolve_layers
from processing.annotations import load_annotations
from processing.collator import TemporalGroundingCollator
from processing.metrics import recall_at, soft_nms, temporal_iou


NUM_RANKED = 5
PADDING = -100.0


@dataclass
class ModelArguments:
    """What is trained."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A SCADA model to go on from, instead of `video_model` and `text_model`."}
    )
    video_model: str = field(
        default="MCG-NJU/videomae-base", metadata={"help": "Pretrained video backbone: Hub id or folder."}
    )
    text_model: str = field(
        default="distilbert-base-uncased", metadata={"help": "Pretrained sentence encoder: Hub id or folder."}
    )
    tuning: str = field(
        default="scada",
        metadata={
            "help": "Which part of the backbone trains.",
            "choices": ["frozen", "partial", "full", "lora", "tia", "scada"],
        },
    )
    scada_branches: str = field(
        default="both", metadata={"help": "Branches of the adapter.", "choices": ["inner", "outer", "both"]}
    )
    inner_layers: str = field(
        default="last 3",
        metadata={"help": "Layers with an inner branch: 'all', 'last 3', 'even 1/2' (see ScadaAdapterConfig)."},
    )
    outer_layers: str = field(default="even 4", metadata={"help": "Layers with an outer branch, likewise."})
    reduction: int = field(default=8, metadata={"help": "How much narrower than the backbone a branch is."})
    train_text: bool = field(default=False, metadata={"help": "Train the sentence encoder too."})
    head_hidden_size: int = field(default=256, metadata={"help": "Width of the localization head."})
    grid_size: int = field(default=128, metadata={"help": "Time steps the localization head works on."})
    num_train_proposals: int = field(default=512, metadata={"help": "Proposals drawn for each training step."})
    num_frames: int = field(default=512, metadata={"help": "Frames sampled from a video."})
    image_size: int = field(default=160, metadata={"help": "Height and width of the frames, in pixels."})


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str = field(metadata={"help": "Annotations: a Hub id, a folder, or a json or parquet file."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    video_root: str | None = field(
        default=None, metadata={"help": "Folder of the videos; the data set's own folder if not given."}
    )
    max_sentences: int | None = field(
        default=None, metadata={"help": "Sentences of a video a training step, drawn afresh; all if not given."}
    )
    blind: bool = field(
        default=False, metadata={"help": "Replace the pixels by noise: what the annotations alone give away."}
    )


@dataclass
class GroundingTrainingArguments(TrainingArguments):
    """`TrainingArguments`; `learning_rate` is the head's."""

    output_dir: str = field(default="outputs/run", metadata={"help": "Where model, processor and metrics go."})
    backbone_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of the video backbone."})
    adapter_learning_rate: float = field(default=4e-4, metadata={"help": "Learning rate of an adapter."})
    text_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of the sentence encoder."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs all columns."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up, or their share of all."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})

    def __post_init__(self):
        super().__post_init__()
        if self.remove_unused_columns:
            raise ValueError(
                "Received remove_unused_columns=True; the collator reads videos from the data set's columns."
            )


class GroundingTrainer(Trainer):
    """`Trainer` with a learning rate for each part of the model, and a collator for evaluation."""

    def __init__(self, *args, eval_collator, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_collator = eval_collator

    def get_eval_dataloader(self, eval_dataset=None):
        train_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            model = self.model if model is None else model
            args = self.args
            has_adapter = isinstance(self.model, PeftModel)
            learning_rates = {
                "model.video_backbone.": args.adapter_learning_rate if has_adapter else args.backbone_learning_rate,
                "model.text_encoder.": args.text_learning_rate,
                "head.": args.learning_rate,
            }
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[str, bool], dict] = {}
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    continue
                path = name.removeprefix("module.").removeprefix("base_model.model.")
                prefix = next(prefix for prefix in learning_rates if path.startswith(prefix))
                group = groups.setdefault(
                    (prefix, name in decayed),
                    {
                        "params": [],
                        "lr": learning_rates[prefix],
                        "weight_decay": self.args.weight_decay if name in decayed else 0.0,
                    },
                )
                group["params"].append(parameter)
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(list(groups.values()), **optimizer_kwargs)
        return self.optimizer


@torch.no_grad()
def ranked_ious(outputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """
    For `preprocess_logits_for_metrics`: reduces all proposals to the IoU of each sentence's best segments, so that
    little is gathered. IoU does not depend on the unit of time, so no seconds are needed.

    Args:
        outputs (`tuple[torch.Tensor, ...]`): `logits` `(B, M, P)` and `pred_segments` `(B, M, P, 2)`.
        labels (`torch.Tensor` of shape `(B, M, K, 2)`): Targets in `[0, 1]`, padded with -100.

    Returns:
        `torch.Tensor` of shape `(B, M, 5)`: IoU of the segments after soft-NMS with the best target, best ranked
        first; -100 for sentences that are padding.
    """
    scores = outputs[0].double().sigmoid().cpu().numpy()
    segments = outputs[1].double().cpu().numpy()
    targets = labels.double().cpu().numpy()
    ious = np.full((*scores.shape[:2], NUM_RANKED), PADDING)
    for row in np.ndindex(scores.shape[:2]):
        of_sentence = targets[row][targets[row][:, 0] >= 0]
        if len(of_sentence):
            _, ranked = soft_nms(scores[row], segments[row], NUM_RANKED)
            ious[row] = 0.0
            ious[row][: len(ranked)] = temporal_iou(ranked, of_sentence).max(1)
    return torch.from_numpy(ious).to(labels.device)


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`R@n, IoU=m` and mIoU in percent, over all sentences."""
    ious = np.asarray(prediction.predictions).reshape(-1, NUM_RANKED)
    return recall_at(ious[ious[:, 0] != PADDING])


def build_model(args: ModelArguments) -> tuple[ScadaForTemporalGrounding, ScadaProcessor]:
    """Model and processor, from `model_name_or_path` or from two encoders."""
    if args.model_name_or_path is not None:
        model = ScadaForTemporalGrounding.from_pretrained(args.model_name_or_path, dtype=torch.float32)
        processor = ScadaProcessor.from_pretrained(args.model_name_or_path)
    else:
        model = ScadaForTemporalGrounding.from_backbones(
            args.video_model,
            args.text_model,
            hidden_size=args.head_hidden_size,
            grid_size=args.grid_size,
            num_train_proposals=args.num_train_proposals,
        ).float()
        video_processor = ScadaVideoProcessor(
            num_frames=args.num_frames, size={"height": args.image_size, "width": args.image_size}
        )
        processor = ScadaProcessor(video_processor, AutoTokenizer.from_pretrained(args.text_model))
    return model, processor


def peft_config(args: ModelArguments) -> PeftConfig | None:
    """The adapter that `tuning` stands for; `None` where there is none."""
    modules_to_save = ["head", "text_encoder"] if args.train_text else ["head"]
    if args.tuning == "lora":
        return LoraConfig(
            r=8, lora_alpha=16, target_modules=r".*video_backbone\..*\.(query|value)", modules_to_save=modules_to_save
        )
    if args.tuning in ("tia", "scada"):
        branches = "inner" if args.tuning == "tia" else args.scada_branches
        return ScadaAdapterConfig(
            reduction=args.reduction,
            inner_layers=[] if branches == "outer" else args.inner_layers,
            outer_layers=[] if branches == "inner" else args.outer_layers,
            conditioning=args.tuning == "scada",
            modules_to_save=modules_to_save,
        )
    return None


def prepare_tuning(model: ScadaForTemporalGrounding, args: ModelArguments) -> ScadaForTemporalGrounding | PeftModel:
    """Sets which parameters train, as `tuning` and `train_text` say; adds the adapter where there is one."""
    config = peft_config(args)
    if config is not None:
        return get_peft_model(model, config)
    backbone = model.model.video_backbone
    backbone.requires_grad_(args.tuning == "full")
    if args.tuning == "partial":
        for index in resolve_layers(args.inner_layers, len(backbone.layers)):
            backbone.layers[index].requires_grad_(True)
    model.model.text_encoder.requires_grad_(args.train_text)
    return model


def run(
    model_args: ModelArguments, data_args: DataArguments, training_args: GroundingTrainingArguments
) -> dict[str, float]:
    """
    Trains, evaluates, and saves model and processor into `output_dir`.

    Returns:
        `dict[str, float]`: Metrics of the evaluation at the end, in percent, named `eval_...`.
    """
    set_seed(training_args.seed)
    base_model, processor = build_model(model_args)
    if peft_config(model_args) is not None and model_args.model_name_or_path is None and training_args.should_save:
        # An adapter is worth nothing without the model it was trained on, and this one has no other folder.
        base_model.save_pretrained(training_args.output_dir)
        base_model.name_or_path = training_args.output_dir
    model = prepare_tuning(base_model, model_args)
    parts = {
        "head": base_model.head,
        "backbone": base_model.model.video_backbone,
        "text": base_model.model.text_encoder,
    }
    trainable = {
        f"trainable_{name}": sum(p.numel() for p in module.parameters() if p.requires_grad)
        for name, module in parts.items()
    }
    print(", ".join(f"{name}: {count:,}" for name, count in trainable.items()))

    video_root = data_args.video_root
    if video_root is None and os.path.exists(data_args.dataset):
        dataset_path = Path(data_args.dataset)
        video_root = str(dataset_path if dataset_path.is_dir() else dataset_path.parent)
    trainer = GroundingTrainer(
        model=model,
        args=training_args,
        train_dataset=load_annotations(data_args.dataset, data_args.train_split),
        eval_dataset=load_annotations(data_args.dataset, data_args.eval_split),
        data_collator=TemporalGroundingCollator(processor, video_root, data_args.max_sentences, data_args.blind),
        eval_collator=TemporalGroundingCollator(processor, video_root, blind=data_args.blind),
        processing_class=processor,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=ranked_ious,
    )
    started_seconds = time.process_time()
    training = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    # Of this process alone, whatever else the machine does.
    processor_time = {"train_processor_seconds": time.process_time() - started_seconds}
    trainer.save_metrics("train", training.metrics | trainable | processor_time)
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_state()
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return metrics


def main(argv: list[str] | None = None) -> None:
    """Reads the arguments, or a JSON recipe as the single one, and runs."""
    argv = sys.argv[1:] if argv is None else argv
    parser = HfArgumentParser((ModelArguments, DataArguments, GroundingTrainingArguments))  # type: ignore[arg-type]
    if len(argv) == 1 and argv[0].endswith(".json"):
        run(*parser.parse_json_file(argv[0]))
    else:
        run(*parser.parse_args_into_dataclasses(argv))


if __name__ == "__main__":
    main()
