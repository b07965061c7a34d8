"""
Training with `Trainer`: a learning rate for each part of the model, metrics in the course of training, and checkpoints
that show whether they are whole.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from processing.collator import TemporalGroundingCollator
from processing.metrics import recall_at, soft_nms, temporal_iou


NUM_RANKED = 5
PADDING = -100.0
# A checkpoint that has this file is whole: it is written last.
COMPLETE = "checkpoint_is_complete"


@dataclass
class TemporalGroundingTrainingArguments(TrainingArguments):
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


class TemporalGroundingTrainer(Trainer):
    """
    `Trainer` with a learning rate for each part of the model, a collator for evaluation, and checkpoints that show
    whether they are whole.

    A plain `Trainer` trains these models too, at one rate. It takes [`ranked_ious`] as its
    `preprocess_logits_for_metrics`, beside [`compute_metrics`], and `remove_unused_columns=False` among its arguments.
    It cannot join the labels of an evaluation's batches if sentences have unlike numbers of segments; this one can.

    Args:
        args ([`TemporalGroundingTrainingArguments`]): Learning rates and all else.
        data_collator ([`TemporalGroundingCollator`]): Makes the batches; it is told when an epoch begins.
        eval_collator ([`TemporalGroundingCollator`], *optional*):
            Makes those of an evaluation, which has all sentences of a video and no augmentation; `data_collator` does
            if not given.
        kwargs: As `Trainer` takes them.

    Raises:
        ValueError: See `Trainer`.
    """

    def __init__(self, *args, eval_collator: TemporalGroundingCollator | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_collator = eval_collator
        self.evaluation_processor_seconds = 0.0
        if isinstance(self.data_collator, TemporalGroundingCollator):
            self.add_callback(EpochCallback(self.data_collator))

    def get_eval_dataloader(self, eval_dataset=None):
        train_collator, self.data_collator = self.data_collator, self.eval_collator or self.data_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator

    def evaluate(self, *args, **kwargs):
        # Of several splits this one is called again for each, within.
        before_seconds, started_seconds = self.evaluation_processor_seconds, time.process_time()
        metrics = super().evaluate(*args, **kwargs)
        self.evaluation_processor_seconds = before_seconds + time.process_time() - started_seconds
        return metrics

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
        """Does nothing: `save_model` calls it, and it uploads pickles too; [`push_folder`] does not."""

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
