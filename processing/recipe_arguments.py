"""
Arguments of a recipe for the model and the data, and their parser. This module imports no heavy package, so that a
command lists its arguments and reports invalid ones at once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


TUNING_MODES = ("frozen", "partial", "full", "lora", "tia", "scada")
BRANCHES = ("inner", "outer", "both", "pooling")
# Deprecated argument names, found in saved recipes and run records.
DEPRECATED_NAMES = {"num_places": "spatial_pool_size"}


@dataclass
class TuningArguments:
    """
    Arguments for the tuning mode of the video backbone. The localization head always trains.

    Args:
        tuning (`str`, *optional*, defaults to `"scada"`):
            Tuning mode of the backbone:
            - `"frozen"`: train no layer;
            - `"partial"`: train the layers in `inner_layers`;
            - `"full"`: train all layers;
            - `"lora"`: train LoRA on the queries and values of all layers;
            - `"tia"`: train the temporal-informative adapter of AdaTAD after the layers in `inner_layers`. It equals
              SCADA's inner branch without the sentence;
            - `"scada"`: train the Sentence-Conditioned Adapter.
        scada_branches (`str`, *optional*, defaults to `"pooling"`):
            Branches of the adapter: `"inner"`, `"outer"`, `"both"` (inner and outer, as in the paper) or `"pooling"`.
        inner_layers (`str`, *optional*, defaults to `"last 3"`):
            Layers with an inner branch, see [`ScadaAdapterConfig`].
        outer_layers (`str`, *optional*, defaults to `"even 4"`):
            Layers with an outer branch, in the same format.
        pooling_layers (`str`, *optional*, defaults to `"last 1"`):
            Layers with a pooling branch, in the same format.
        reduction (`int`, *optional*, defaults to 8):
            Ratio of the backbone's hidden size to the hidden size of a branch.
        train_text (`bool`, *optional*, defaults to `False`): Whether to also train the sentence encoder.

    Raises:
        ValueError: If `tuning` or `scada_branches` is not one of the values above.
    """

    tuning: str = field(
        default="scada",
        metadata={
            "help": "Tuning mode of the backbone: frozen, partial, full, lora, tia or scada.",
            "choices": list(TUNING_MODES),
        },
    )
    scada_branches: str = field(
        default="pooling",
        metadata={
            "help": "Branches of the adapter: inner, outer, both (inner and outer, as in the paper) or pooling.",
            "choices": list(BRANCHES),
        },
    )
    inner_layers: str = field(
        default="last 3",
        metadata={
            "help": "Layers with an inner branch, such as 'all', 'last 3' or 'even 1/2' (see ScadaAdapterConfig)."
        },
    )
    outer_layers: str = field(default="even 4", metadata={"help": "Layers with an outer branch, in the same format."})
    pooling_layers: str = field(
        default="last 1", metadata={"help": "Layers with a pooling branch, in the same format."}
    )
    reduction: int = field(default=8, metadata={"help": "Ratio of the backbone's hidden size to a branch's."})
    train_text: bool = field(default=False, metadata={"help": "Whether to also train the sentence encoder."})

    def __post_init__(self):
        for name, known in (("tuning", TUNING_MODES), ("scada_branches", BRANCHES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"Received {name}={value!r}; expected one of {', '.join(known)}.")


@dataclass
class ModelArguments(TuningArguments):
    """Arguments of the model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "SCADA model to fine-tune further, instead of `video_model` and `text_model`: Hub id or folder."
        },
    )
    video_model: str = field(
        default="MCG-NJU/videomae-base", metadata={"help": "Pretrained video backbone: Hub id or folder."}
    )
    text_model: str = field(
        default="distilbert-base-uncased", metadata={"help": "Pretrained sentence encoder: Hub id or folder."}
    )
    head_hidden_size: int = field(default=256, metadata={"help": "Width of the localization head."})
    grid_size: int = field(default=128, metadata={"help": "Number of time steps of the localization head."})
    num_train_proposals: int = field(default=512, metadata={"help": "Number of proposals sampled per training step."})
    listwise_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of the listwise loss over the proposals of a sentence."}
    )
    matching_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of the matching loss between the sentences and segments of a video."}
    )
    retrieval_dim: int = field(
        default=0,
        metadata={"help": "Size of the retrieval embeddings for video libraries. 0 omits the retrieval branch."},
    )
    spatial_pool_size: int = field(
        default=1,
        metadata={
            "aliases": ["--num_places"],
            "help": "Number of spatial regions per frame side in the head's input. 1 averages the whole frame.",
        },
    )
    subtract_video_mean: bool = field(
        default=False, metadata={"help": "Whether to subtract the video's mean over time from the head's input."}
    )
    feature_dropout: float = field(
        default=0.0, metadata={"help": "Dropout rate of the backbone's channels at the head's input during training."}
    )
    num_frames: int = field(default=512, metadata={"help": "Number of frames sampled per video."})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Height and width of the frames, in pixels. Defaults to the size of the backbone."},
    )
    window_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Maximum window length of the pipeline, in seconds. Defaults to the longest training video."
        },
    )


@dataclass
class DataArguments:
    """Arguments of the dataset."""

    dataset: str = field(metadata={"help": "Annotations: Hub id, folder, or json, jsonl, parquet or csv file."})
    train_split: str = field(default="train", metadata={"help": "Split for training."})
    eval_split: str = field(default="test", metadata={"help": "Split for evaluation."})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Additional split for evaluations during training, reported as `validation`. To select the best "
            "model on it, pass --load_best_model_at_end and --metric_for_best_model validation_R1@0.5."
        },
    )
    video_root: str | None = field(
        default=None, metadata={"help": "Folder of the videos. Defaults to the folder of the dataset."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Whether to stream annotations during training. Requires max_steps."}
    )
    max_sentences: int | None = field(
        default=None,
        metadata={"help": "Maximum number of sentences per video, resampled at each training step. Defaults to all."},
    )
    negative_sentences: int = field(
        default=0,
        metadata={
            "help": "Maximum number of sentences from other videos per video, as negatives, capped at the video's own "
            "number of sentences. Scores then identify absent sentences. With a validation_split, training also "
            "selects a score threshold on it and saves it with the processor."
        },
    )
    augment: bool = field(
        default=False, metadata={"help": "Whether to randomly crop and flip the training videos, as in AdaTAD."}
    )
    skip_broken_videos: bool = field(
        default=False,
        metadata={"help": "Whether to skip unreadable videos and list them in broken_videos.jsonl."},
    )
    keep_in_memory: bool = field(
        default=False,
        metadata={"help": "Whether to cache all frames in memory, for small datasets (3 or 12 bytes per pixel)."},
    )
    blind: bool = field(
        default=False,
        metadata={"help": "Whether to replace the pixels with noise, to measure the bias of the annotations."},
    )


USAGE = "%(prog)s [RECIPE.json] [--dataset DATASET ...]"


def rename_deprecated_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Rename deprecated arguments."""
    return {DEPRECATED_NAMES.get(name, name): value for name, value in arguments.items()}


def parse_recipe(dataclass_types: Sequence[type], argv: Sequence[str], **parser_arguments) -> tuple[Any, ...]:
    """
    Parse command-line arguments. If the first is a JSON file, the remaining ones override its values.

    Args:
        dataclass_types (`Sequence[type]`): Dataclasses of arguments.
        argv (`Sequence[str]`): Command-line arguments.
        parser_arguments: Further arguments of `HfArgumentParser`.

    Returns:
        `tuple`: An instance of each dataclass, the parser, the unknown names in the recipe, and the unknown
        command-line arguments.

    Raises:
        OSError: If the recipe cannot be read.
        ValueError: If the recipe is not a JSON object, or a value is invalid.
    """
    from transformers.hf_argparser import HfArgumentParser

    parser = HfArgumentParser(
        dataclass_types,  # type: ignore[arg-type]
        prog="scada train",
        usage=USAGE,
        allow_abbrev=False,
        **parser_arguments,
    )
    argv, unknown = list(argv), []
    if argv and argv[0].endswith(".json"):
        path = argv.pop(0)
        try:
            recipe = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"The recipe {path} is not JSON: {error}.") from error
        if not isinstance(recipe, dict):
            raise ValueError(f"The recipe {path} contains {recipe!r}; expected a JSON object {{...}}.")
        recipe = rename_deprecated_arguments(recipe)
        actions = {action.dest: action for action in parser._actions}
        unknown = [name for name in recipe if name not in actions]
        for name in recipe.keys() & actions.keys():
            actions[name].required = False
        parser.set_defaults(**{name: value for name, value in recipe.items() if name in actions})
    *parsed, others = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    return *parsed, parser, unknown, others


def check_recipe(argv: Sequence[str]) -> None:
    """
    Check the model and data arguments before importing `Trainer`, because that import takes seconds.

    Args:
        argv (`Sequence[str]`): Command-line arguments of a training run.

    Raises:
        OSError: If the recipe or a local path does not exist.
        ValueError: If a value is invalid.
    """
    model_args, data_args, *_ = parse_recipe((ModelArguments, DataArguments), argv, add_help=False)
    if data_args.video_root is not None and not Path(data_args.video_root).is_dir():
        raise FileNotFoundError(
            f"Received --video_root {data_args.video_root}, which is not a folder. Pass the folder of the videos."
        )
    sources = {"dataset": data_args.dataset, "model_name_or_path": model_args.model_name_or_path}
    if model_args.model_name_or_path is None:
        sources |= {"video_model": model_args.video_model, "text_model": model_args.text_model}
    for name, source in sources.items():
        # A Hub id contains at most one slash.
        is_path = source is not None and (source[:1] in "/.~" or source.count("/") > 1 or "\\" in source)
        if is_path and not Path(source).exists():
            raise FileNotFoundError(f"Received --{name} {source}, which does not exist. Check the path.")
