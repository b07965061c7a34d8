r"""
Fine-tunes a model for temporal sentence grounding with `Trainer`, on video files.

On two cores, in minutes (the first line makes the data):

    python scripts/make_moving_shapes.py --output_dir outputs/moving_shapes
    python scripts/run_temporal_grounding.py hub_configs/moving_shapes.json

Charades-STA on GPUs, from pretrained encoders, with data from `prepare_dataset.py`; and a baseline of it:

    accelerate launch scripts/run_temporal_grounding.py hub_configs/charades_sta_videomae_base.json \
        --dataset data/charades_sta --video_root path/to/Charades_v1_480
    accelerate launch scripts/run_temporal_grounding.py hub_configs/charades_sta_videomae_base.json \
        --dataset data/charades_sta --video_root path/to/Charades_v1_480 \
        --tuning frozen --output_dir outputs/charades_sta_videomae_base_frozen

One's own videos:

    python scripts/run_temporal_grounding.py \
        --video_model MCG-NJU/videomae-base --text_model distilbert-base-uncased \
        --dataset data/my_videos --video_root path/to/videos --num_frames 512 --image_size 160 --max_sentences 4 \
        --tuning scada --learning_rate 2e-4 --adapter_learning_rate 4e-4 --bf16 \
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

import json
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from provenance import current_commit
from push_to_hub import push_folder
from transformers import (
    AutoTokenizer,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from modeling_scada import ScadaAdapterConfig, ScadaForTemporalGrounding, ScadaProcessor, ScadaVideoProcessor
from modeling_scada.adapter_scada import resolve_layers
from processing.annotations import folder_of_videos, load_annotations
from processing.collator import TemporalGroundingCollator
from processing.metrics import recall_at, soft_nms, temporal_iou
from processing.processing_scada import SEGMENT_TOLERANCE_SECONDS


# Queries and values, by the names that encoders have for them (TimeSformer has one layer for all three); convolutions.
LORA_TARGETS = r".*video_backbone\..*\.(query|value|q_proj|v_proj|qkv|conv\d\w?|conv3d)"
NUM_RANKED = 5
PADDING = -100.0
# A checkpoint that has this file is whole: it is written last.
COMPLETE = "checkpoint_is_complete"
BROKEN_VIDEOS = "broken_videos.jsonl"
RUN_ARGUMENTS = "run_arguments.json"
SHUFFLE_BUFFER = 1000
# Of `TrainingArguments`; with others, a run that goes on would not be the one that was stopped.
ARGUMENTS_OF_A_RUN = (
    *("learning_rate", "backbone_learning_rate", "adapter_learning_rate", "text_learning_rate", "weight_decay"),
    *("lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs", "optim", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed", "bf16", "fp16"),
)


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
    listwise_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of the loss in which a sentence's proposals compete."}
    )
    matching_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of the loss in which the sentences and segments of a video compete."}
    )
    num_frames: int = field(default=512, metadata={"help": "Frames sampled from a video."})
    image_size: int | None = field(
        default=None, metadata={"help": "Height and width of the frames, in pixels; the backbone's own if not given."}
    )
    window_seconds: float | None = field(
        default=None,
        metadata={"help": "The pipeline reads longer videos in windows; the longest training video's if not given."},
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str = field(metadata={"help": "Annotations: a Hub id, a folder, or a json or parquet file."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    video_root: str | None = field(
        default=None, metadata={"help": "Folder of the videos; the data set's own folder if not given."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read annotations while training instead of before; needs max_steps."}
    )
    max_sentences: int | None = field(
        default=None, metadata={"help": "Sentences of a video a training step, drawn afresh; all if not given."}
    )
    augment: bool = field(
        default=False, metadata={"help": "Random crop and flip of the training videos, as AdaTAD has it."}
    )
    skip_broken_videos: bool = field(
        default=False,
        metadata={"help": "Leave out videos that cannot be read, and list them in broken_videos.jsonl."},
    )
    keep_in_memory: bool = field(
        default=False,
        metadata={"help": "Keep all frames once they were read, for small data sets (12 bytes a pixel)."},
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
    hub_strategy: str = field(default="end", metadata={"help": "With push_to_hub: upload when training has ended."})

    def __post_init__(self):
        super().__post_init__()
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                f"Received hub_strategy={self.hub_strategy!r}; expected 'end': the others upload pickles too."
            )
        if self.remove_unused_columns:
            raise ValueError(
                "Received remove_unused_columns=True; the collator reads videos from the data set's columns."
            )


class EpochCallback(TrainerCallback):
    """Tells the collator the epoch; logs at each checkpoint too, so that no logged mean of losses spans a stop."""

    def __init__(self, collator: TemporalGroundingCollator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.set_epoch(int(state.epoch))

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


class GroundingTrainer(Trainer):
    """
    `Trainer` with a learning rate for each part of the model, a collator for evaluation, and checkpoints that show
    whether they are whole.
    """

    def __init__(self, *args, eval_collator: TemporalGroundingCollator, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_collator = eval_collator

    def get_eval_dataloader(self, eval_dataset=None):
        train_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        # Reduced to a few numbers a sentence here, before anything is gathered; the first target of a sentence stands
        # for its labels from here on, since the number of targets may differ from batch to batch.
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if outputs is None:
            return loss, None, None
        return loss, ranked_ious(outputs, labels), labels[:, :, 0]

    def _save_checkpoint(self, model, trial):
        run_dir = Path(self._get_output_dir(trial=trial))
        marker = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}" / COMPLETE
        if self.args.should_save:
            marker.unlink(missing_ok=True)
        # Older checkpoints go only when this one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            marker.touch()
            rotate_checkpoints(str(run_dir), limit, best_model_checkpoint=self.state.best_model_checkpoint)

    def push_to_hub(self, *args, **kwargs):
        """Does nothing: `save_model` calls it, and it uploads pickles too. `run` uploads when all is written."""

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
    Reduces all proposals to the IoU of each sentence's best segments. IoU does not depend on the unit of time, so no
    seconds are needed.

    Args:
        outputs (`tuple[torch.Tensor, ...]`): `logits` `(B, M, P)` and `pred_segments` `(B, M, P, 2)`.
        labels (`torch.Tensor` of shape `(B, M, K, 2)`): Targets in `[0, 1]`, padded with -100.

    Returns:
        `torch.Tensor` of shape `(B, M, 5)`: IoU of the segments after soft-NMS with the best target, best ranked
        first; -100 for sentences without a target, which are padding or belong to a video that could not be read.
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
    """`R@n, IoU=m` and mIoU in percent, over all sentences; and how many these are."""
    ious = np.asarray(prediction.predictions).reshape(-1, NUM_RANKED)
    ious = ious[ious[:, 0] != PADDING]
    return recall_at(ious) | {"sentences": len(ious)}


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
            listwise_loss_weight=args.listwise_loss_weight,
            matching_loss_weight=args.matching_loss_weight,
        ).float()
        settings: dict[str, Any] = {"num_frames": args.num_frames}
        if args.image_size is not None:
            settings["size"] = {"height": args.image_size, "width": args.image_size}
        video_processor = ScadaVideoProcessor.from_backbone(args.video_model, **settings)
        processor = ScadaProcessor(video_processor, AutoTokenizer.from_pretrained(args.text_model))
    return model, processor


def peft_config(args: ModelArguments) -> PeftConfig | None:
    """The adapter that `tuning` stands for; `None` where there is none."""
    modules_to_save = ["head", "text_encoder"] if args.train_text else ["head"]
    if args.tuning == "lora":
        return LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS, modules_to_save=modules_to_save)
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


def last_checkpoint(output_dir: str) -> str | None:
    """The last checkpoint in a folder that was written to its end; `None` if there is none."""
    whole = [marker.parent for marker in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None


def check_same_run(output_dir: str, arguments: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: If the run in the folder, which is about to go on, was started with other arguments.
    """
    path = Path(output_dir) / RUN_ARGUMENTS
    earlier = json.loads(path.read_text()) if path.exists() else arguments
    if others := [
        f"{name}: {earlier.get(name)!r} there, {value!r} now"
        for name, value in arguments.items()
        if earlier.get(name) != value
    ]:
        raise ValueError(
            f"{output_dir} holds a run that was started with other arguments ({'; '.join(others)}). Give the same "
            "ones to go on with it, another --output_dir for a new run, or --resume_from_checkpoint to go on from one "
            "of its checkpoints with these."
        )


def run(
    model_args: ModelArguments, data_args: DataArguments, training_args: GroundingTrainingArguments
) -> dict[str, float]:
    """
    Trains, evaluates, and saves model and processor into `output_dir`.

    Returns:
        `dict[str, float]`: Metrics of the evaluation at the end, in percent, named `eval_...`.
    """
    output_dir = training_args.output_dir
    arguments = asdict(model_args) | asdict(data_args)
    arguments |= {name: value for name, value in training_args.to_dict().items() if name in ARGUMENTS_OF_A_RUN}
    checkpoint = training_args.resume_from_checkpoint
    if checkpoint is None and (checkpoint := last_checkpoint(output_dir)) is not None:
        check_same_run(output_dir, arguments)
        print(f"Going on from {checkpoint}.")

    set_seed(training_args.seed)
    base_model, processor = build_model(model_args)
    if peft_config(model_args) is not None and model_args.model_name_or_path is None:
        # An adapter is worth nothing without the model it was trained on, and this one has no other folder.
        if training_args.should_save:
            base_model.save_pretrained(output_dir)
        base_model.name_or_path = output_dir
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

    train_dataset = load_annotations(data_args.dataset, data_args.train_split, data_args.streaming)
    if data_args.streaming:
        train_dataset = train_dataset.shuffle(seed=training_args.seed, buffer_size=SHUFFLE_BUFFER)
        # Each process reads its own rows: batches that one process makes for all cannot be joined, as the numbers of
        # sentences differ.
        training_args.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
    if model_args.window_seconds is not None:
        processor.video_processor.window_seconds = model_args.window_seconds
    elif model_args.model_name_or_path is None and "duration" in (train_dataset.column_names or []):
        if not data_args.streaming and all(durations := train_dataset["duration"]):
            # Files are often a little longer than annotated.
            processor.video_processor.window_seconds = max(durations) + SEGMENT_TOLERANCE_SECONDS
    broken_videos_log = Path(output_dir) / BROKEN_VIDEOS if data_args.skip_broken_videos else None
    make_collator = partial(
        TemporalGroundingCollator,
        processor,
        folder_of_videos(data_args.dataset, data_args.video_root),
        blind=data_args.blind,
        broken_videos_log=broken_videos_log,
        keep_in_memory=data_args.keep_in_memory,
        seed=training_args.seed,
    )
    train_collator = make_collator(max_sentences=data_args.max_sentences, augment=data_args.augment)
    trainer = GroundingTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=load_annotations(data_args.dataset, data_args.eval_split, data_args.streaming),
        data_collator=train_collator,
        eval_collator=make_collator(),
        processing_class=processor,
        compute_metrics=compute_metrics,
        callbacks=[EpochCallback(train_collator)],
    )
    if training_args.should_save:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        (Path(output_dir) / RUN_ARGUMENTS).write_text(json.dumps(arguments, indent=2))
    started_seconds = time.process_time()
    training = trainer.train(resume_from_checkpoint=checkpoint)
    hardware = torch.cuda.get_device_name() if training_args.device.type == "cuda" else platform.machine()
    measured = trainable | {
        # Of this process alone, whatever else the machine does.
        "train_processor_seconds": time.process_time() - started_seconds,
        "steps": training.global_step,
        "hardware": f"{training_args.world_size} x {hardware}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": current_commit(),
    }
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    if broken_videos_log is not None:
        lines = broken_videos_log.read_text().splitlines() if broken_videos_log.exists() else []
        measured["broken_videos"] = len({json.loads(line)["video"] for line in lines})
        print(f"Left out {measured['broken_videos']} videos that could not be read; see {broken_videos_log}.")
    trainer.save_metrics("train", training.metrics | measured)
    trainer.save_state()
    if training_args.push_to_hub and training_args.should_save:
        repo_id = training_args.hub_model_id or Path(output_dir).resolve().name
        print(push_folder(Path(output_dir), repo_id, private=training_args.hub_private_repo))
    return metrics


def parse_arguments(
    argv: list[str],
) -> tuple[ModelArguments, DataArguments, GroundingTrainingArguments]:
    """
    The script's arguments; where the first is a JSON file, they replace those in it.

    Raises:
        ValueError: If the recipe has a name that is no argument.
    """
    parser = HfArgumentParser((ModelArguments, DataArguments, GroundingTrainingArguments))  # type: ignore[arg-type]
    if argv and argv[0].endswith(".json"):
        recipe = json.loads(Path(argv[0]).read_text())
        actions = {action.dest: action for action in parser._actions}
        if unknown := sorted(set(recipe) - set(actions)):
            raise ValueError(
                f"The recipe {argv[0]} has {unknown}, which are no arguments; see --help for their names."
            )
        for name in recipe:
            actions[name].required = False
        parser.set_defaults(**recipe)
        argv = argv[1:]
    return parser.parse_args_into_dataclasses(argv)  # type: ignore[return-value]


def main(argv: list[str] | None = None) -> None:
    """Reads the arguments and runs."""
    run(*parse_arguments(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
