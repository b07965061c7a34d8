"""Run a recipe: build model and processor, train, evaluate and save them, or resume an interrupted run."""

import json
import platform
import shlex
import sys
import time
from collections.abc import Hashable
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer, set_seed
from transformers.utils import logging

from processing.data.annotations import find_shared_videos, load_annotations
from processing.data.collator import TemporalGroundingCollator
from processing.data.files import resolve_video_root, video_file_key, video_file_name
from processing.data.row_sampler import RowSampler
from processing.processing_scada import SEGMENT_TOLERANCE_SECONDS, ScadaProcessor
from processing.recipe_arguments import DataArguments, ModelArguments, parse_recipe, rename_deprecated_arguments
from processing.results.folder import make_result_folder
from processing.results.provenance import get_commit
from processing.video_processing_scada import ScadaVideoProcessor

from ..inference.loading import loading_model
from ..modeling_scada import ScadaForTemporalGrounding
from .publishing import push_folder
from .trainer import (
    TemporalGroundingTrainer,
    TemporalGroundingTrainingArguments,
    advise_on_write_errors,
    compute_metrics,
    last_checkpoint,
)
from .tuning import peft_config, prepare_tuning


logger = logging.get_logger(__name__)

BROKEN_VIDEOS = "broken_videos.jsonl"
RUN_ARGUMENTS = "run_arguments.json"
SHUFFLE_BUFFER = 1000
# Fields of `TrainingArguments` that must stay the same when a run resumes.
COMPARED_ARGUMENTS = (
    *("learning_rate", "backbone_learning_rate", "adapter_learning_rate", "text_learning_rate", "weight_decay"),
    *("lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs", "optim", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed", "bf16", "fp16"),
)


def build_model(args: ModelArguments) -> tuple[ScadaForTemporalGrounding, ScadaProcessor]:
    """
    Return model and processor, from `model_name_or_path` or from a video and a text encoder.

    Args:
        args ([`ModelArguments`]): Names of the models, and sizes of a new head.

    Raises:
        RuntimeError: If a model fails to load.
    """
    if args.model_name_or_path is not None:
        with loading_model(args.model_name_or_path, "--model_name_or_path"):
            model = ScadaForTemporalGrounding.from_pretrained(args.model_name_or_path, dtype=torch.float32)
            processor = ScadaProcessor.from_pretrained(args.model_name_or_path)
    else:
        settings: dict[str, Any] = {"num_frames": args.num_frames}
        if args.image_size is not None:
            settings["size"] = {"height": args.image_size, "width": args.image_size}
        with loading_model(args.video_model, "--video_model"):
            video_processor = ScadaVideoProcessor.from_backbone(args.video_model, **settings)
            video_encoder = AutoModel.from_pretrained(args.video_model)
        with loading_model(args.text_model, "--text_model"):
            processor = ScadaProcessor(video_processor, AutoTokenizer.from_pretrained(args.text_model))
            text_encoder = AutoModel.from_pretrained(args.text_model)
        model = ScadaForTemporalGrounding.from_backbones(
            video_encoder,
            text_encoder,
            hidden_size=args.head_hidden_size,
            grid_size=args.grid_size,
            num_train_proposals=args.num_train_proposals,
            listwise_loss_weight=args.listwise_loss_weight,
            matching_loss_weight=args.matching_loss_weight,
            retrieval_dim=args.retrieval_dim,
            spatial_pool_size=args.spatial_pool_size,
            subtract_video_mean=args.subtract_video_mean,
            feature_dropout=args.feature_dropout,
            image_mean=list(video_processor.image_mean),
            image_deviation=list(video_processor.image_std),
        ).float()
    return model, processor


def _check_same_run(output_dir: str, arguments: dict[str, Any]) -> None:
    """
    Check that the run in a folder was started with the same arguments, before it resumes.

    Args:
        output_dir (`str`): Folder of the run.
        arguments (`dict[str, Any]`): Arguments of this start.

    Raises:
        ValueError: If an argument differs.
    """
    path = Path(output_dir) / RUN_ARGUMENTS
    earlier = rename_deprecated_arguments(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else arguments
    if differences := [
        f"{name}: {earlier.get(name)!r} then, {value!r} now"
        for name, value in arguments.items()
        if earlier.get(name) != value
    ]:
        raise ValueError(
            f"{output_dir} contains a run with different arguments ({'; '.join(differences)}). Use the same arguments "
            "to resume it, another --output_dir for a new run, or --resume_from_checkpoint to continue from a "
            "checkpoint with the new arguments."
        )


def warn_of_shared_videos(train_dataset: Dataset, eval_datasets: dict[str, Dataset]) -> None:
    """Warn about videos that both training and evaluation use, with their number and one name."""
    names: dict[Hashable, str] = {}

    def video_keys(dataset: Dataset) -> list[Hashable]:
        columns = [name for name in ("video", "video_id") if name in dataset.column_names]
        rows = list(dataset.select_columns(columns))
        keys = [video_file_key(row.get("video_id") or row["video"]) for row in rows]
        names.update({key: video_file_name(row["video"]) for key, row in zip(keys, rows, strict=True)})
        return keys

    train_keys = video_keys(train_dataset)
    eval_keys = list(chain.from_iterable(map(video_keys, eval_datasets.values())))
    if shared := find_shared_videos({"train": train_keys, "evaluation": eval_keys}):
        logger.warning(
            f"Training and evaluation share {len(shared)} videos, for example {names[shared[0]]}. The metrics say "
            "little about new videos; split the data by video."
        )


def run(
    model_args: ModelArguments, data_args: DataArguments, training_args: TemporalGroundingTrainingArguments
) -> dict[str, float]:
    """
    Train and evaluate a model, and save it with its processor to `output_dir`.

    Args:
        model_args ([`ModelArguments`]): Model and tuning mode.
        data_args ([`DataArguments`]): Data set, splits and sampling of sentences.
        training_args ([`TemporalGroundingTrainingArguments`]): Arguments of the `Trainer`.

    Returns:
        `dict[str, float]`: Metrics of the final evaluation, in percent, named `eval_...`.
    """
    output_dir = Path(training_args.output_dir)
    if training_args.should_save:
        make_result_folder(output_dir)
    arguments = asdict(model_args) | asdict(data_args)
    arguments |= {name: value for name, value in training_args.to_dict().items() if name in COMPARED_ARGUMENTS}
    checkpoint = _find_checkpoint(training_args, arguments)
    # Load annotations first, because a model may need a download.
    train_dataset, eval_datasets = _load_datasets(data_args)

    set_seed(training_args.seed)
    base_model, processor = build_model(model_args)
    if peft_config(model_args) is not None and model_args.model_name_or_path is None:
        _save_base_model(base_model, training_args)
    model = prepare_tuning(base_model, model_args)
    trainable = _count_trainable_parameters(base_model)
    print(", ".join(f"{name}: {count:,}" for name, count in trainable.items()))

    _set_window_seconds(processor, model_args, data_args, train_dataset)
    trainer, eval_datasets = _make_trainer(model, processor, data_args, training_args, train_dataset, eval_datasets)
    if training_args.should_save:
        (output_dir / RUN_ARGUMENTS).write_text(json.dumps(arguments, indent=2), encoding="utf-8")
    training_metrics = trainable | _train(trainer, checkpoint)
    metrics = _save_and_evaluate(trainer, processor, data_args, eval_datasets)
    if data_args.skip_broken_videos:
        training_metrics["broken_videos"] = _count_broken_videos(output_dir / BROKEN_VIDEOS)
    trainer.save_metrics("train", training_metrics)
    trainer.save_state()
    if training_args.push_to_hub and training_args.should_save:
        repo_id = training_args.hub_model_id or output_dir.resolve().name
        print(push_folder(output_dir, repo_id, private=training_args.hub_private_repo))
    if training_args.should_save:
        print(_next_commands(training_args.output_dir, data_args))
    return metrics


def _find_checkpoint(training_args: TemporalGroundingTrainingArguments, arguments: dict[str, Any]) -> str | None:
    """Return the checkpoint to resume from, or `None` for a new run."""
    if training_args.resume_from_checkpoint is not None:
        return training_args.resume_from_checkpoint
    checkpoint = last_checkpoint(training_args.output_dir)
    if checkpoint is not None:
        _check_same_run(training_args.output_dir, arguments)
        print(f"Resuming from {checkpoint}.")
    return checkpoint


def _load_datasets(data_args: DataArguments) -> tuple[Dataset, dict[str, Dataset]]:
    """Return the annotations of the training split, and of the validation and test splits by name."""
    train_dataset = load_annotations(data_args.dataset, data_args.train_split, data_args.streaming)
    eval_datasets = {
        name: load_annotations(data_args.dataset, split, data_args.streaming)
        for name, split in (("validation", data_args.validation_split), ("test", data_args.eval_split))
        if split is not None
    }
    return train_dataset, eval_datasets


def _save_base_model(base_model: ScadaForTemporalGrounding, training_args: TemporalGroundingTrainingArguments) -> None:
    """Save a new base model to `output_dir`, because its adapter is useless without it."""
    output_dir = training_args.output_dir
    if training_args.should_save:
        with advise_on_write_errors(output_dir, output_dir):
            base_model.save_pretrained(output_dir)
    base_model.name_or_path = output_dir


def _count_trainable_parameters(base_model: ScadaForTemporalGrounding) -> dict[str, int]:
    """Return the number of trainable parameters per part of the model."""
    parts = {
        "head": base_model.head,
        "backbone": base_model.model.video_backbone,
        "text": base_model.model.text_encoder,
    }
    return {
        f"trainable_{name}": sum(p.numel() for p in module.parameters() if p.requires_grad)
        for name, module in parts.items()
    }


def _set_window_seconds(
    processor: ScadaProcessor, model_args: ModelArguments, data_args: DataArguments, train_dataset: Dataset
) -> None:
    """Set the window from the arguments; for a new model, default to the longest training video."""
    if model_args.window_seconds is not None:
        processor.video_processor.window_seconds = model_args.window_seconds
    elif model_args.model_name_or_path is None and "duration" in (train_dataset.column_names or []):
        if not data_args.streaming and all(durations := train_dataset["duration"]):
            # Video files are often slightly longer than their annotated duration.
            processor.video_processor.window_seconds = max(durations) + SEGMENT_TOLERANCE_SECONDS


def _make_trainer(
    model: Any,
    processor: ScadaProcessor,
    data_args: DataArguments,
    training_args: TemporalGroundingTrainingArguments,
    train_dataset: Dataset,
    eval_datasets: dict[str, Dataset],
) -> tuple[TemporalGroundingTrainer, dict[str, Dataset]]:
    """Return the trainer, and the evaluation data sets with their sampled sentences."""
    if data_args.streaming:
        train_dataset = train_dataset.shuffle(seed=training_args.seed, buffer_size=SHUFFLE_BUFFER)
        # Each process reads its own rows: batches that one process makes for all processes cannot be concatenated,
        # because their numbers of sentences differ.
        training_args.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
    else:
        warn_of_shared_videos(train_dataset, eval_datasets)
    collator = TemporalGroundingCollator(
        processor,
        resolve_video_root(data_args.dataset, data_args.video_root),
        broken_videos_log=Path(training_args.output_dir) / BROKEN_VIDEOS if data_args.skip_broken_videos else None,
        keep_in_memory=data_args.keep_in_memory,
    )
    make_sampler = partial(
        RowSampler,
        processor,
        sentences_of_others=None if data_args.streaming else list(chain.from_iterable(train_dataset["sentences"])),
        blind=data_args.blind,
        seed=training_args.seed,
    )
    sampler = make_sampler(
        max_sentences=data_args.max_sentences,
        augment=data_args.augment,
        negative_sentences=data_args.negative_sentences,
    )
    # One negative per positive sentence, so that the evaluation is balanced.
    eval_sampler = make_sampler(negative_sentences=sys.maxsize if data_args.negative_sentences else 0)
    eval_sampler.set_epoch(0)
    eval_datasets = {
        name: eval_sampler.apply(dataset, training_args.eval_batch_size) for name, dataset in eval_datasets.items()
    }
    trainer = TemporalGroundingTrainer(
        model=model,
        args=training_args,
        train_dataset=sampler.apply(train_dataset, training_args.train_batch_size),
        eval_dataset=eval_datasets if data_args.validation_split else eval_datasets["test"],
        data_collator=collator,
        processing_class=processor,
        compute_metrics=compute_metrics,
        callbacks=[sampler],
    )
    return trainer, eval_datasets


def _train(trainer: TemporalGroundingTrainer, checkpoint: str | None) -> dict[str, Any]:
    """Train, and return the metrics of the training with its hardware, date and commit."""
    started_seconds = time.process_time()
    training = trainer.train(resume_from_checkpoint=checkpoint)
    # Processor time of this process alone, independent of the machine's other load, without intermediate evaluations.
    processor_seconds = time.process_time() - started_seconds - trainer.evaluation_processor_seconds
    hardware = torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else platform.machine()
    return training.metrics | {
        "train_processor_seconds": processor_seconds,
        "steps": training.global_step,
        "hardware": f"{trainer.args.world_size} x {hardware}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": get_commit(),
    }


def _save_and_evaluate(
    trainer: TemporalGroundingTrainer,
    processor: ScadaProcessor,
    data_args: DataArguments,
    eval_datasets: dict[str, Dataset],
) -> dict[str, float]:
    """Choose the threshold on the validation split, save the model, and return the metrics of the test split."""
    if data_args.negative_sentences and data_args.validation_split:
        validation = trainer.evaluate(eval_datasets["validation"], metric_key_prefix="validation")
        processor.found_threshold = validation["validation_found_threshold"]
        trainer.compute_metrics = partial(compute_metrics, found_threshold=processor.found_threshold)
    trainer.save_model()
    metrics = trainer.evaluate(eval_datasets["test"])
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return metrics


def _count_broken_videos(log: Path) -> int:
    """Return the number of distinct videos in the log of unreadable videos, and print it."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    count = len({json.loads(line)["video"] for line in lines})
    print(f"Skipped {count} unreadable videos; see {log}.")
    return count


def _next_commands(output_dir: str, data_args: DataArguments) -> str:
    """Return the commands to evaluate, use and publish a trained model."""
    evaluate = ["scada", "evaluate", output_dir, data_args.dataset, "--split", data_args.eval_split]
    if data_args.video_root is not None:
        evaluate += ["--video_root", data_args.video_root]
    ground = ["scada", "ground", "VIDEO", "a sentence", "--model", output_dir]
    push = ["scada", "push", output_dir, "NAME/MODEL"]
    return "\n".join(
        [f"The model is in {output_dir}. Next:", *(f"  {shlex.join(c)}" for c in (evaluate, ground, push))]
    )


def parse_arguments(
    argv: list[str],
) -> tuple[ModelArguments, DataArguments, TemporalGroundingTrainingArguments]:
    """
    Return the parsed arguments of the script.

    If the first argument is a JSON file, the other arguments override its values. Unknown options exit the process, as
    in `argparse`.

    Args:
        argv (`list[str]`): Arguments of the command line.

    Raises:
        ValueError: If the recipe contains an unknown argument or an invalid value.
    """
    kinds = (ModelArguments, DataArguments, TemporalGroundingTrainingArguments)
    *parsed, parser, unknown, others = parse_recipe(kinds, argv)
    if unknown:
        raise ValueError(
            f"The recipe {argv[0]} contains the unknown arguments {sorted(unknown)}; --help lists all arguments."
        )
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return tuple(parsed)  # type: ignore[return-value]
