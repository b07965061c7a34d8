"""
Training with `Trainer`: a learning rate for each part of the model, metrics in the course of training, and checkpoints
that show whether they are whole.
"""

import math
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers import EvalPrediction, PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints
from transformers.utils import is_torch_bf16_gpu_available

from processing.data.collator import TemporalGroundingCollator
from processing.metrics import recall_at, rejection_metrics
from processing.post_processing import temporal_iou
from processing.processing_scada import post_process_temporal_grounding
from processing.timeline import Timeline


NUM_RANKED = 5
PADDING = -100.0
ABSENT_LABEL = -1.0
# A checkpoint that has this file is whole: it is written last.
COMPLETE = "checkpoint_is_complete"

# Arguments of `Trainer` that would be ignored here, or fail in the middle of a run, and why.
UNSUPPORTED_ARGUMENTS = {
    "label_smoothing_factor": "targets are segments, not classes that could be smoothed",
    "neftune_noise_alpha": "it adds noise to the word embeddings of language models",
    "use_liger_kernel": "its kernels are those of language models",
    "use_cache": "nothing is generated token by token",
    "include_num_input_tokens_seen": "the model's input are pixels, which would be counted as tokens",
    "batch_eval_metrics": "recall is computed over all sentences at the end, from five numbers a sentence",
    "include_for_metrics": "metrics need no more than five numbers a sentence, and inputs are all pixels",
    "optim_target_modules": "parameters are grouped by the part of the model that they belong to",
    "label_names": "targets are called `labels`",
    "debug": "its search for overflows fails on masks; training stops at the first loss that is not finite",
    "do_predict": "a run trains and evaluates; `scada evaluate` writes the predictions of a saved model",
    "hub_token": "`HF_TOKEN` or `hf auth login` gives it, and no command line has to show it",
    "hub_revision": "uploads go to the main branch",
    "hub_always_push": "the upload comes once, when training has ended",
}
WITH_LENGTHS = ("group_by_length", "batch_rebalance")


@dataclass
class TemporalGroundingTrainingArguments(TrainingArguments):
    """
    `TrainingArguments`; `learning_rate` is the head's.

    Raises:
        ValueError: If an argument of `Trainer` is given that has no meaning for these models, or `bf16` without a GPU
            that has it.
    """

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
    length_column_name: str = field(default="duration", metadata={"help": "Column that lengths are grouped by."})
    # It puts the mean of earlier losses in the place of one that is not finite.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave NaN and inf out of eval_loss."})

    def __post_init__(self):
        if self.bf16 and not self.use_cpu and not is_torch_bf16_gpu_available():
            raise ValueError(
                "Received bf16=True on a machine without a GPU that computes in it; leave --bf16 out (or add `--bf16 "
                "false` after a recipe that has it), or train on the CPU in it with --use_cpu."
            )
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        for name, reason in UNSUPPORTED_ARGUMENTS.items():
            if (value := getattr(self, name)) not in (None, False, 0.0, "no", []):
                raise ValueError(f"Received {name}={value!r}, which has no meaning here: {reason}.")
        if not self.eval_do_concat_batches:
            raise ValueError("Received eval_do_concat_batches=False; metrics are computed over all batches together.")
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "Received dispatch_batches=True; batches that one process makes for all cannot be joined, as the "
                "numbers of sentences differ."
            )
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                f"Received hub_strategy={self.hub_strategy!r}; expected 'end': the others upload pickles too."
            )
        if self.remove_unused_columns:
            raise ValueError(
                "Received remove_unused_columns=True; the collator reads videos from the data set's columns."
            )


class CheckpointLogCallback(TrainerCallback):
    """Logs at each checkpoint too, so that no logged mean of losses spans a stop."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


def rounded(logs: dict[str, Any]) -> dict[str, Any]:
    """Four digits of each number that is logged, to be printed; `Trainer` makes texts of them."""
    shown = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in logs.items()}
    shown.pop("total_flos", None)
    return shown


class PrintNumbersCallback(PrinterCallback):
    """Prints logs as numbers."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_local_process_zero:
            print(rounded(logs))


class ProgressNumbersCallback(ProgressCallback):
    """Progress bars, with logs as numbers."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(str(rounded(logs)))


def last_checkpoint(output_dir: str) -> str | None:
    """The last checkpoint in a folder that was written to its end; `None` if there is none."""
    whole = [marker.parent for marker in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None


@contextmanager
def writing(folder: str, run_dir: str) -> Iterator[None]:
    """
    Raises:
        OSError: If what is written within fails, with the folder, and the checkpoint that is still whole.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # of a full disk, torch and safetensors have their own
        last = last_checkpoint(run_dir)
        kept = (
            f"The last whole checkpoint is {last}: make room, and"
            if last
            else "No checkpoint is whole: make room, and"
        )
        again = "the same command goes on from it" if last else "start again"
        raise OSError(f"{folder} could not be written ({error}). {kept} {again}.") from error


class TemporalGroundingTrainer(Trainer):
    """
    `Trainer` with a learning rate for each part of the model, and checkpoints that show whether they are whole.

    A plain `Trainer` trains these models too, at one rate. It takes [`ranked_ious`] as its
    `preprocess_logits_for_metrics`, beside [`compute_metrics`], and `remove_unused_columns=False` among its arguments.
    It cannot join the labels of an evaluation's batches if sentences have unlike numbers of segments; this one can.

    Args:
        args ([`TemporalGroundingTrainingArguments`]): Learning rates and all else.
        data_collator ([`TemporalGroundingCollator`]):
            Makes the batches. Where the model's configuration has the processor's mean and deviation, and the collator
            does not say otherwise, pixels leave it as `uint8`.
        eval_collator ([`TemporalGroundingCollator`], *optional*):
            Deprecated: the collator takes all sentences of a row, and a [`RowSampler`] draws those of training.
        kwargs: As `Trainer` takes them.

    Raises:
        ValueError: If videos are to be grouped by a length that they do not have, or the best model is to be loaded of
            an adapter that is not called "default"; or see `Trainer`.
    """

    def __init__(self, *args, eval_collator: TemporalGroundingCollator | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        for theirs, ours in ((PrinterCallback, PrintNumbersCallback), (ProgressCallback, ProgressNumbersCallback)):
            if self.pop_callback(theirs) is not None:
                self.add_callback(ours)
        self.eval_collator = eval_collator
        if eval_collator is not None:
            warnings.warn(
                "The argument eval_collator of TemporalGroundingTrainer is deprecated; one data_collator serves, and "
                "RowSampler draws the sentences of training.",
                FutureWarning,
                stacklevel=2,
            )
        self.evaluation_processor_seconds = 0.0
        if self.args.load_best_model_at_end and isinstance(self.model, PeftModel):
            # Of another name, it lies a folder deeper, where `Trainer` does not look: the last one would stay.
            if self.model.active_adapters != ["default"]:
                raise ValueError(
                    f"Received load_best_model_at_end=True for the adapters {self.model.active_adapters}; `Trainer` "
                    "finds the best one again only if it is called 'default'. Leave out adapter_name, or pick a "
                    "checkpoint by yourself."
                )
        if self.args.train_sampling_strategy in WITH_LENGTHS:
            for dataset in (self.train_dataset, self.eval_dataset):
                if dataset is not None:
                    self._check_lengths(dataset)
        for collator in (self.data_collator, eval_collator):
            if isinstance(collator, TemporalGroundingCollator) and collator.do_normalize is None:
                if collator.processor.video_processor.is_model_to_normalize(self.model.config):  # type: ignore
                    collator.do_normalize = False
            if isinstance(collator, TemporalGroundingCollator) and collator.sampler is not None:
                self.add_callback(collator.sampler)
        self.add_callback(CheckpointLogCallback())

    def _check_lengths(self, dataset: Any) -> None:
        strategy, column = self.args.train_sampling_strategy, self.args.length_column_name
        if not isinstance(dataset, Dataset) or column not in dataset.column_names or None in dataset[column]:
            raise ValueError(
                f"Received train_sampling_strategy={strategy!r} for annotations that are a stream, or in which a "
                f"video has no {column!r}; prepare them with their videos, which adds it, or name another column "
                "(length_column_name)."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        As `Trainer` has it.

        Raises:
            ValueError: If the checkpoint is none to go on from: it was saved without optimizer and schedule, or its
                weights, or those of the best model, are not the model's.
            FloatingPointError: If the loss or the gradient is not finite. The weights are still those of the step
                before, and nothing is saved.
        """
        if resume_from_checkpoint:
            folder = resume_from_checkpoint
            folder = get_last_checkpoint(self.args.output_dir) if folder is True else str(folder)
            if folder is not None and not self.is_deepspeed_enabled:
                self._check_resumable(Path(folder))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _check_resumable(self, checkpoint: Path) -> None:
        if not checkpoint.is_dir():
            raise ValueError(f"There is no checkpoint to go on from at {checkpoint}; name its folder.")
        if not (checkpoint / SCHEDULER_NAME).exists():
            raise ValueError(
                f"{checkpoint} has no optimizer and no schedule, as --save_only_model leaves it, so a training cannot "
                "go on from it as if it had not been stopped. Start anew in another --output_dir; its model can be "
                "what training starts from (--model_name_or_path)."
            )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self._check_adapter(Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        self._check_adapter(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()

    def _check_adapter(self, checkpoint: Path) -> None:
        # `Trainer` does not look at what peft says of missing weights. FSDP and DeepSpeed have files of their own.
        if isinstance(self.model, PeftModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            name = self.model.active_adapters[0]
            path = checkpoint / ("" if name == "default" else name) / SAFETENSORS_WEIGHTS_NAME
            own = get_peft_model_state_dict(self.model, adapter_name=name, save_embedding_layers=False)
            with safe_open(path, framework="pt") as file:
                self._check_names(set(own) - set(file.keys()), set(file.keys()) - set(own))

    def _issue_warnings_after_load(self, load_result):
        self._check_names(load_result.missing_keys, load_result.unexpected_keys)

    def _check_names(self, missing: Collection[str], unexpected: Collection[str]) -> None:
        if missing or unexpected:
            shown = [
                f"{what} {len(names)} weights ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
                for what, names in (("it lacks", missing), ("it has besides", unexpected))
                if names
            ]
            raise ValueError(
                f"The checkpoint is of another model: {' and '.join(shown)}. Give the arguments that the run was "
                "started with, or start anew in another --output_dir."
            )

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            # The run had ended, in the middle of an epoch; `Trainer` would go one step further.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        # Of all processes, so that they stop together and none saves what comes of it.
        losses = self.accelerator.gather(loss.reshape(1))
        if not losses.isfinite().all():
            self._raise_non_finite("loss", losses)
        return loss

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        # The scaler of fp16 leaves out steps of which the gradient is not finite.
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(norm):
            self._raise_non_finite("norm of the gradient", norm)
        return norm

    def _raise_non_finite(self, what: str, value: Any) -> None:
        optimizer: Any = self.optimizer
        rates = {group.get("part", "all"): group["lr"] for group in optimizer.param_groups}
        shown = ", ".join(f"{rate:.3g} ({part})" for part, rate in rates.items())
        raise FloatingPointError(
            f"The {what} of step {self.state.global_step + 1} is {torch.as_tensor(value).tolist()}; learning rates: "
            f"{shown}. Training stops before the weights take it on; what was saved before stays. Try lower rates, a "
            "longer warm-up, or bfloat16 in place of float16."
        )

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
            with writing(str(marker.parent), str(run_dir)):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            marker.touch()
            rotate_checkpoints(str(run_dir), limit, best_model_checkpoint=self.state.best_model_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        As `Trainer` has it.

        Raises:
            OSError: If the model could not be written, with the checkpoint that is still whole.
        """
        if _internal_call:  # within a checkpoint
            super().save_model(output_dir, _internal_call)
            return
        with writing(output_dir or str(self.args.output_dir), str(self.args.output_dir)):
            super().save_model(output_dir, _internal_call)

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
                        "part": prefix.strip(".").rpartition(".")[2],
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
        `torch.Tensor` of shape `(B, M, 6)`: IoU of the five segments after soft-NMS with the best target, best ranked
        first, -1 for a sentence that is not in its video; and the score of the first. All -100 for padding and for
        sentences of a video that could not be read.
    """
    targets = labels.double().cpu().numpy()
    is_measured = targets[..., 0, 0] != PADDING
    proposals = {"logits": outputs[0], "pred_segments": outputs[1]}
    whole_videos = [Timeline(0.0, 1.0)] * len(targets)
    found = post_process_temporal_grounding(proposals, whole_videos, is_measured, NUM_RANKED)
    ious = np.full((*targets.shape[:2], NUM_RANKED + 1), PADDING)
    for row, result in zip(np.argwhere(is_measured), chain.from_iterable(found), strict=True):
        of_row, sentence_targets = ious[tuple(row)], targets[tuple(row)]
        sentence_targets = sentence_targets[sentence_targets[:, 0] >= 0]
        of_row[-1] = result["scores"][0]
        of_row[:-1] = 0.0 if len(sentence_targets) else ABSENT_LABEL
        if len(sentence_targets):
            of_row[: len(result["segments"])] = temporal_iou(result["segments"], sentence_targets).max(1)
    return torch.from_numpy(ious).to(labels.device)


def compute_metrics(prediction: EvalPrediction, found_threshold: float | None = None) -> dict[str, float]:
    """
    `R@n, IoU=m` and mIoU in percent, over all sentences that are in their video; and how many these are.

    Where others are too, also `AUROC` of telling them apart by the score of the first segment, `RejF1` of rejecting
    them below `found_threshold`, and that `found_threshold`; if it is not given, the one with the best `RejF1`.
    """
    ranked = np.asarray(prediction.predictions).reshape(-1, NUM_RANKED + 1)
    ranked = ranked[ranked[:, -1] != PADDING]
    scores, is_present = ranked[:, -1], ranked[:, 0] != ABSENT_LABEL
    metrics = recall_at(ranked[is_present, :-1]) if is_present.any() or not len(ranked) else {}
    metrics["sentences"] = int(is_present.sum())
    if not is_present.all():
        metrics |= rejection_metrics(scores, is_present, found_threshold)
    return metrics
