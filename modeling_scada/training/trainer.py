"""`Trainer` with a learning rate per part of the model, metrics during training, and marked complete checkpoints."""

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
# Marker of a complete checkpoint, written last.
COMPLETE = "checkpoint_is_complete"

# Arguments that `Trainer` would ignore here, or fail on during a run, with the reason.
UNSUPPORTED_ARGUMENTS = {
    "label_smoothing_factor": "targets are segments, not classes",
    "neftune_noise_alpha": "it adds noise to the word embeddings of language models",
    "use_liger_kernel": "its kernels are those of language models",
    "use_cache": "the model does not generate tokens",
    "include_num_input_tokens_seen": "`Trainer` would count pixels as tokens",
    "batch_eval_metrics": "recall needs all sentences, and keeps only a few numbers per sentence",
    "include_for_metrics": "metrics need only a few numbers per sentence, and the inputs contain all pixels",
    "optim_target_modules": "the optimizer groups parameters by part of the model",
    "label_names": "the targets are always `labels`",
    "debug": "its overflow detection fails on masks; training stops at the first non-finite loss",
    "do_predict": "use `scada evaluate` to write the predictions of a saved model",
    "hub_token": "set `HF_TOKEN` or run `hf auth login`, to keep the token out of the command line",
    "hub_revision": "uploads go to the main branch",
    "hub_always_push": "the only upload is at the end of training",
}
WITH_LENGTHS = ("group_by_length", "batch_rebalance")


@dataclass
class TemporalGroundingTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with a learning rate per part of the model. `learning_rate` applies to the head.

    Raises:
        ValueError: If an argument of `Trainer` is unsupported, or if `bf16` is set and the GPU does not support it.
    """

    output_dir: str = field(default="outputs/run", metadata={"help": "Folder for model, processor and metrics."})
    backbone_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of the video backbone."})
    adapter_learning_rate: float = field(default=4e-4, metadata={"help": "Learning rate of the adapter."})
    text_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of the sentence encoder."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs all columns."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Number of warm-up steps, or fraction of all steps."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Maximum norm of the gradient, for clipping."})
    hub_strategy: str = field(default="end", metadata={"help": "With push_to_hub: upload at the end of training."})
    length_column_name: str = field(default="duration", metadata={"help": "Column with the lengths for grouping."})
    # The filter would replace a non-finite loss by the mean of earlier losses.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Filter NaN and inf from the logged loss."})

    def __post_init__(self):
        if self.bf16 and not self.use_cpu and not is_torch_bf16_gpu_available():
            raise ValueError(
                "Received bf16=True on a machine without a GPU that supports it; omit --bf16 (or add `--bf16 false` "
                "after a recipe that sets it), or train in bfloat16 on the CPU with --use_cpu."
            )
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        for name, reason in UNSUPPORTED_ARGUMENTS.items():
            if (value := getattr(self, name)) not in (None, False, 0.0, "no", []):
                raise ValueError(f"Received {name}={value!r}, which is unsupported: {reason}.")
        if not self.eval_do_concat_batches:
            raise ValueError("Received eval_do_concat_batches=False; metrics need all batches together.")
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "Received dispatch_batches=True; batches that one process makes for all processes cannot be "
                "concatenated, because their numbers of sentences differ."
            )
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                f"Received hub_strategy={self.hub_strategy!r}; expected 'end', because the others also upload pickles."
            )
        if self.remove_unused_columns:
            raise ValueError("Received remove_unused_columns=True; the collator needs all columns of the data set.")


class CheckpointLogCallback(TrainerCallback):
    """Callback that also logs at each checkpoint, so that a resumed run logs the same mean losses."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


def _round_logs(logs: dict[str, Any]) -> dict[str, Any]:
    """Return logs with numbers _round_logs to four digits for printing; `Trainer` converts them to strings."""
    shown = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in logs.items()}
    shown.pop("total_flos", None)
    return shown


class PrintNumbersCallback(PrinterCallback):
    """Callback that prints logs as numbers."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_local_process_zero:
            print(_round_logs(logs))


class ProgressNumbersCallback(ProgressCallback):
    """Callback with progress bars and logs as numbers."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(str(_round_logs(logs)))


def last_checkpoint(output_dir: str) -> str | None:
    """Return the last complete checkpoint in a folder, or `None`."""
    complete = [marker.parent for marker in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    return str(max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))) if complete else None


@contextmanager
def advise_on_write_errors(folder: str, run_dir: str) -> Iterator[None]:
    """
    Convert errors of writing within the context to an `OSError` with advice.

    Args:
        folder (`str`): Folder that the context writes.
        run_dir (`str`): Folder of the run, with its checkpoints.

    Raises:
        OSError: If writing fails. The message names the folder and the last complete checkpoint.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own for a full disk
        last = last_checkpoint(run_dir)
        advice = (
            f"The last complete checkpoint is {last}: free some disk space, then resume from it with the same command."
            if last
            else "No checkpoint is complete: free some disk space, then start again."
        )
        raise OSError(f"Could not write {folder} ({error}). {advice}") from error


class TemporalGroundingTrainer(Trainer):
    """
    `Trainer` with a learning rate per part of the model, and a marker in each complete checkpoint.

    A plain `Trainer` also trains these models, with a single learning rate. Pass [`ranked_ious`] as its
    `preprocess_logits_for_metrics`, [`compute_metrics`] as its `compute_metrics`, and set
    `remove_unused_columns=False`. A plain `Trainer` cannot concatenate the labels of evaluation batches if sentences
    have different numbers of segments; this class can.

    Args:
        args ([`TemporalGroundingTrainingArguments`]): Learning rates and all other arguments.
        data_collator ([`TemporalGroundingCollator`]):
            Collator of the batches. If the model's configuration has the processor's mean and standard deviation, the
            collator returns pixels as `uint8` by default.
        eval_collator ([`TemporalGroundingCollator`], *optional*):
            Deprecated: the collator uses all sentences of a row, and a [`RowSampler`] samples sentences for training.
        kwargs: Arguments of `Trainer`.

    Raises:
        ValueError: If videos lack the length for grouping, if `load_best_model_at_end` is set for an adapter not
            named "default", or if `Trainer` raises it.
    """

    def __init__(self, *args, eval_collator: TemporalGroundingCollator | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        for theirs, ours in ((PrinterCallback, PrintNumbersCallback), (ProgressCallback, ProgressNumbersCallback)):
            if self.pop_callback(theirs) is not None:
                self.add_callback(ours)
        self.eval_collator = eval_collator
        if eval_collator is not None:
            warnings.warn(
                "The argument eval_collator of TemporalGroundingTrainer is deprecated; use data_collator alone, and "
                "RowSampler to sample the sentences of training.",
                FutureWarning,
                stacklevel=2,
            )
        self.evaluation_processor_seconds = 0.0
        if self.args.load_best_model_at_end and isinstance(self.model, PeftModel):
            # `Trainer` does not find an adapter with another name, because its folder is one level deeper.
            if self.model.active_adapters != ["default"]:
                raise ValueError(
                    f"Received load_best_model_at_end=True for the adapters {self.model.active_adapters}; `Trainer` "
                    "finds the best adapter only if its name is 'default'. Omit adapter_name, or select a checkpoint "
                    "manually."
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
                f"Received train_sampling_strategy={strategy!r} for streamed annotations, or for annotations without "
                f"{column!r} for each video; prepare them with --videos to add it, or set length_column_name to "
                "another column."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        Train as `Trainer` does, and stop at a non-finite loss.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): Checkpoint to resume, or `True` for the last one.

        Raises:
            ValueError: If the checkpoint lacks optimizer and schedule, or if its weights, or the weights of the best
                model, do not match the model.
            FloatingPointError: If the loss or the gradient is not finite. The weights remain as before the step, and
                nothing is saved.
        """
        if resume_from_checkpoint:
            folder = resume_from_checkpoint
            folder = get_last_checkpoint(self.args.output_dir) if folder is True else str(folder)
            if folder is not None and not self.is_deepspeed_enabled:
                self._check_resumable(Path(folder))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _check_resumable(self, checkpoint: Path) -> None:
        if not checkpoint.is_dir():
            raise ValueError(f"Found no checkpoint to resume from at {checkpoint}; pass the folder of a checkpoint.")
        if not (checkpoint / SCHEDULER_NAME).exists():
            raise ValueError(
                f"{checkpoint} has no optimizer and no schedule, because --save_only_model omits them. Training "
                "cannot resume from it. Start a new run in another --output_dir, optionally from the model of the "
                "checkpoint (--model_name_or_path)."
            )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self._check_adapter(Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        self._check_adapter(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()

    def _check_adapter(self, checkpoint: Path) -> None:
        # `Trainer` ignores peft's report of missing weights. FSDP and DeepSpeed use their own file formats.
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
                f"{len(names)} {kind} weights ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
                for kind, names in (("missing", missing), ("unexpected", unexpected))
                if names
            ]
            raise ValueError(
                f"The checkpoint does not match the model: {' and '.join(shown)}. Use the arguments of the original "
                "run, or start a new run in another --output_dir."
            )

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            # The run had ended during an epoch; `Trainer` would run one more step.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        # Gather the losses, so that all processes stop together and none saves the result.
        losses = self.accelerator.gather(loss.reshape(1))
        if not losses.isfinite().all():
            self._raise_non_finite("loss", losses)
        return loss

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        # The gradient scaler of fp16 skips steps with a non-finite gradient.
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(norm):
            self._raise_non_finite("norm of the gradient", norm)
        return norm

    def _raise_non_finite(self, name: str, value: Any) -> None:
        optimizer: Any = self.optimizer
        rates = {group.get("part", "all"): group["lr"] for group in optimizer.param_groups}
        shown = ", ".join(f"{rate:.3g} ({part})" for part, rate in rates.items())
        raise FloatingPointError(
            f"The {name} of step {self.state.global_step + 1} is {torch.as_tensor(value).tolist()}; learning rates: "
            f"{shown}. Training stopped before updating the weights; earlier checkpoints remain. Try lower learning "
            "rates, a longer warm-up, or bfloat16 instead of float16."
        )

    def get_eval_dataloader(self, eval_dataset=None):
        train_collator, self.data_collator = self.data_collator, self.eval_collator or self.data_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator

    def evaluate(self, *args, **kwargs):
        # With several splits, `Trainer` calls this method recursively for each split.
        before_seconds, started_seconds = self.evaluation_processor_seconds, time.process_time()
        metrics = super().evaluate(*args, **kwargs)
        self.evaluation_processor_seconds = before_seconds + time.process_time() - started_seconds
        return metrics

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        # Reduce the outputs to a few numbers per sentence before gathering. Keep only the first target of a sentence
        # as its label, because the number of targets differs between batches.
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if outputs is None:
            return loss, None, None
        return loss, ranked_ious(outputs, labels), labels[:, :, 0]

    def _save_checkpoint(self, model, trial):
        run_dir = Path(self._get_output_dir(trial=trial))
        marker = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}" / COMPLETE
        if self.args.should_save:
            marker.unlink(missing_ok=True)
        # Delete older checkpoints only after this one is complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with advise_on_write_errors(str(marker.parent), str(run_dir)):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            marker.touch()
            rotate_checkpoints(str(run_dir), limit, best_model_checkpoint=self.state.best_model_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the model as `Trainer` does.

        Args:
            output_dir (`str`, *optional*): Folder to write; the folder of the run by default.

        Raises:
            OSError: If writing fails. The message names the last complete checkpoint.
        """
        if _internal_call:  # within a checkpoint
            super().save_model(output_dir, _internal_call)
            return
        with advise_on_write_errors(output_dir or str(self.args.output_dir), str(self.args.output_dir)):
            super().save_model(output_dir, _internal_call)

    def push_to_hub(self, *args, **kwargs):
        """Do nothing: the `Trainer` method also uploads pickles, unlike [`push_folder`]."""

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
    Reduce all proposals to the IoUs of the best segments per sentence. IoU is independent of the unit of time.

    Args:
        outputs (`tuple[torch.Tensor, ...]`): `logits` `(B, M, P)` and `pred_segments` `(B, M, P, 2)`.
        labels (`torch.Tensor` of shape `(B, M, K, 2)`): Targets in `[0, 1]`, padded with -100.

    Returns:
        `torch.Tensor` of shape `(B, M, 6)`: IoUs of the top five segments after soft-NMS with their best target, in
        the order of their scores, and the score of the first segment. The IoUs of a negative sentence are -1. All
        values are -100 for padding and for sentences of an unreadable video.
    """
    targets = labels.double().cpu().numpy()
    is_measured = targets[..., 0, 0] != PADDING
    proposals = {"logits": outputs[0], "pred_segments": outputs[1]}
    whole_videos = [Timeline(0.0, 1.0)] * len(targets)
    found = post_process_temporal_grounding(proposals, whole_videos, is_measured, NUM_RANKED)
    ious = np.full((*targets.shape[:2], NUM_RANKED + 1), PADDING)
    for row, result in zip(np.argwhere(is_measured), chain.from_iterable(found), strict=True):
        values, sentence_targets = ious[tuple(row)], targets[tuple(row)]
        sentence_targets = sentence_targets[sentence_targets[:, 0] >= 0]
        values[-1] = result["scores"][0]
        values[:-1] = 0.0 if len(sentence_targets) else ABSENT_LABEL
        if len(sentence_targets):
            values[: len(result["segments"])] = temporal_iou(result["segments"], sentence_targets).max(1)
    return torch.from_numpy(ious).to(labels.device)


def compute_metrics(prediction: EvalPrediction, found_threshold: float | None = None) -> dict[str, float]:
    """
    Return `R@n, IoU=m` and mIoU in percent over all positive sentences, and the number of these sentences.

    With negative sentences, also return `AUROC` of separating them by the score of the first segment, `RejF1` of
    rejecting them below `found_threshold`, and `found_threshold` itself.

    Args:
        prediction (`EvalPrediction`): Values of [`ranked_ious`].
        found_threshold (`float`, *optional*): Threshold of the score; by default the one with the best `RejF1`.
    """
    ranked = np.asarray(prediction.predictions).reshape(-1, NUM_RANKED + 1)
    ranked = ranked[ranked[:, -1] != PADDING]
    scores, is_present = ranked[:, -1], ranked[:, 0] != ABSENT_LABEL
    metrics = recall_at(ranked[is_present, :-1]) if is_present.any() or not len(ranked) else {}
    metrics["sentences"] = int(is_present.sum())
    if not is_present.all():
        metrics |= rejection_metrics(scores, is_present, found_threshold)
    return metrics
