"""
A run of a recipe: model and processor are put together, trained, evaluated and saved, and a run that was stopped goes
on where it was.
"""

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

from processing.arguments import DataArguments, ModelArguments, parse_recipe, with_new_names
from processing.data.annotations import find_shared_videos, load_annotations
from processing.data.collator import TemporalGroundingCollator
from processing.data.files import resolve_video_root, video_key, video_name
from processing.data.row_sampler import RowSampler
from processing.processing_scada import SEGMENT_TOLERANCE_SECONDS, ScadaProcessor
from processing.results.folder import make_result_folder
from processing.results.provenance import get_commit
from processing.video_processing_scada import ScadaVideoProcessor

from ..inference.loading import loading_model
from ..modeling_scada import ScadaForTemporalGrounding
from .publishing import push_folder
from .trainer import (
    TemporalGroundingTrainer,
    TemporalGroundingTrainingArguments,
    compute_metrics,
    last_checkpoint,
    writing,
)
from .tuning import peft_config, prepare_tuning


logger = logging.get_logger(__name__)

BROKEN_VIDEOS = "broken_videos.jsonl"
RUN_ARGUMENTS = "run_arguments.json"
SHUFFLE_BUFFER = 1000
# Of `TrainingArguments`; with others, a run that goes on would not be the one that was stopped.
COMPARED_ARGUMENTS = (
    *("learning_rate", "backbone_learning_rate", "adapter_learning_rate", "text_learning_rate", "weight_decay"),
    *("lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs", "optim", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed", "bf16", "fp16"),
)


def build_model(args: ModelArguments) -> tuple[ScadaForTemporalGrounding, ScadaProcessor]:
    """
    Model and processor, from `model_name_or_path` or from two encoders.

    Raises:
        RuntimeError: If one of them cannot be loaded.
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


def check_same_run(output_dir: str, arguments: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: If the run in the folder, which is about to go on, was started with other arguments.
    """
    path = Path(output_dir) / RUN_ARGUMENTS
    earlier = with_new_names(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else arguments
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


def warn_of_shared_videos(train_dataset: Dataset, eval_datasets: dict[str, Dataset]) -> None:
    """Says how many videos are both trained and evaluated on, and names one."""
    names: dict[Hashable, str] = {}

    def keys_of_videos(dataset: Dataset) -> list[Hashable]:
        columns = [name for name in ("video", "video_id") if name in dataset.column_names]
        rows = list(dataset.select_columns(columns))
        keys = [video_key(row.get("video_id") or row["video"]) for row in rows]
        names.update({key: video_name(row["video"]) for key, row in zip(keys, rows, strict=True)})
        return keys

    trained_on = keys_of_videos(train_dataset)
    evaluated_on = list(chain.from_iterable(map(keys_of_videos, eval_datasets.values())))
    if shared := find_shared_videos({"train": trained_on, "evaluation": evaluated_on}):
        logger.warning(
            f"{len(shared)} videos, such as {names[shared[0]]}, are both trained and evaluated on, so the metrics say "
            "little about other videos. Split by video."
        )


def run(
    model_args: ModelArguments, data_args: DataArguments, training_args: TemporalGroundingTrainingArguments
) -> dict[str, float]:
    """
    Trains, evaluates, and saves model and processor into `output_dir`.

    Returns:
        `dict[str, float]`: Metrics of the evaluation at the end, in percent, named `eval_...`.
    """
    output_dir = training_args.output_dir
    if training_args.should_save:
        make_result_folder(Path(output_dir))
    arguments = asdict(model_args) | asdict(data_args)
    arguments |= {name: value for name, value in training_args.to_dict().items() if name in COMPARED_ARGUMENTS}
    checkpoint = training_args.resume_from_checkpoint
    if checkpoint is None and (checkpoint := last_checkpoint(output_dir)) is not None:
        check_same_run(output_dir, arguments)
        print(f"Going on from {checkpoint}.")
    # Before any model, which may have to come from the Hub.
    train_dataset = load_annotations(data_args.dataset, data_args.train_split, data_args.streaming)
    eval_datasets = {
        name: load_annotations(data_args.dataset, split, data_args.streaming)
        for name, split in (("validation", data_args.validation_split), ("test", data_args.eval_split))
        if split is not None
    }

    set_seed(training_args.seed)
    base_model, processor = build_model(model_args)
    if peft_config(model_args) is not None and model_args.model_name_or_path is None:
        # An adapter is worth nothing without the model it was trained on, and this one has no other folder.
        if training_args.should_save:
            with writing(output_dir, output_dir):
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
    collator = TemporalGroundingCollator(
        processor,
        resolve_video_root(data_args.dataset, data_args.video_root),
        broken_videos_log=broken_videos_log,
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
    # As many as a video has itself, so that half of all sentences are not there.
    eval_sampler = make_sampler(negative_sentences=sys.maxsize if data_args.negative_sentences else 0)
    eval_sampler.set_epoch(0)
    if not data_args.streaming:
        warn_of_shared_videos(train_dataset, eval_datasets)
    eval_datasets = {
        name: eval_sampler.apply(dataset, training_args.eval_batch_size) for name, dataset in eval_datasets.items()
    }
    test_dataset = eval_datasets["test"]
    trainer = TemporalGroundingTrainer(
        model=model,
        args=training_args,
        train_dataset=sampler.apply(train_dataset, training_args.train_batch_size),
        eval_dataset=eval_datasets if data_args.validation_split else test_dataset,
        data_collator=collator,
        processing_class=processor,
        compute_metrics=compute_metrics,
        callbacks=[sampler],
    )
    if training_args.should_save:
        (Path(output_dir) / RUN_ARGUMENTS).write_text(json.dumps(arguments, indent=2), encoding="utf-8")
    started_seconds = time.process_time()
    training = trainer.train(resume_from_checkpoint=checkpoint)
    hardware = torch.cuda.get_device_name() if training_args.device.type == "cuda" else platform.machine()
    measured = trainable | {
        # Of this process alone, whatever else the machine does, and without evaluations on the way.
        "train_processor_seconds": time.process_time() - started_seconds - trainer.evaluation_processor_seconds,
        "steps": training.global_step,
        "hardware": f"{training_args.world_size} x {hardware}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": get_commit(),
    }
    if data_args.negative_sentences and data_args.validation_split:
        chosen = trainer.evaluate(eval_datasets["validation"], metric_key_prefix="validation")
        processor.found_threshold = chosen["validation_found_threshold"]
        trainer.compute_metrics = partial(compute_metrics, found_threshold=processor.found_threshold)
    trainer.save_model()
    metrics = trainer.evaluate(test_dataset)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    if broken_videos_log is not None:
        lines = broken_videos_log.read_text(encoding="utf-8").splitlines() if broken_videos_log.exists() else []
        measured["broken_videos"] = len({json.loads(line)["video"] for line in lines})
        print(f"Left out {measured['broken_videos']} videos that could not be read; see {broken_videos_log}.")
    trainer.save_metrics("train", training.metrics | measured)
    trainer.save_state()
    if training_args.push_to_hub and training_args.should_save:
        repo_id = training_args.hub_model_id or Path(output_dir).resolve().name
        print(push_folder(Path(output_dir), repo_id, private=training_args.hub_private_repo))
    if training_args.should_save:
        print(next_commands(output_dir, data_args))
    return metrics


def next_commands(output_dir: str, data_args: DataArguments) -> str:
    """What to type when a training has ended."""
    evaluate = ["scada", "evaluate", output_dir, data_args.dataset, "--split", data_args.eval_split]
    if data_args.video_root is not None:
        evaluate += ["--video_root", data_args.video_root]
    ground = ["scada", "ground", "VIDEO", "a sentence", "--model", output_dir]
    push = ["scada", "push", output_dir, "NAME/MODEL"]
    return "\n".join(
        ["The model is in " + output_dir + ". Next:", *(f"  {shlex.join(c)}" for c in (evaluate, ground, push))]
    )


def parse_arguments(
    argv: list[str],
) -> tuple[ModelArguments, DataArguments, TemporalGroundingTrainingArguments]:
    """
    The script's arguments; where the first is a JSON file, they replace those in it. Names that are no arguments end
    the process, as `argparse` does.

    Raises:
        ValueError: If the recipe has a name that is no argument, or a value is refused.
    """
    kinds = (ModelArguments, DataArguments, TemporalGroundingTrainingArguments)
    *parsed, parser, unknown, others = parse_recipe(kinds, argv)
    if unknown:
        raise ValueError(
            f"The recipe {argv[0]} has {sorted(unknown)}, which are no arguments; see --help for their names."
        )
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return tuple(parsed)  # type: ignore[return-value]
