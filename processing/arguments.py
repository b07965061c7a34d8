"""
What a recipe says about the model and the data, and how it is read. Nothing heavy is imported here, so that a command
can list its arguments and refuse wrong ones at once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


TUNING_MODES = ("frozen", "partial", "full", "lora", "tia", "scada")
BRANCHES = ("inner", "outer", "both")
# Older names of arguments, which recipes and the records of runs have.
OLD_NAMES = {"num_places": "spatial_pool_size"}


@dataclass
class TuningArguments:
    """
    Which part of the video backbone trains. The head always does.

    Args:
        tuning (`str`, *optional*, defaults to `"scada"`):
            - `"frozen"`: none of it;
            - `"partial"`: the layers that `inner_layers` names;
            - `"full"`: all of it;
            - `"lora"`: LoRA on the queries and values of all layers;
            - `"tia"`: the temporal-informative adapter of AdaTAD after the layers that `inner_layers` names, which is
              SCADA's inner branch without the sentence;
            - `"scada"`: the Sentence-Conditioned Adapter.
        scada_branches (`str`, *optional*, defaults to `"both"`): `"inner"`, `"outer"` or `"both"`, of the adapter.
        inner_layers (`str`, *optional*, defaults to `"last 3"`):
            Layers with an inner branch, see [`ScadaAdapterConfig`].
        outer_layers (`str`, *optional*, defaults to `"even 4"`): Layers with an outer branch, likewise.
        reduction (`int`, *optional*, defaults to 8): How much narrower than the backbone a branch is.
        train_text (`bool`, *optional*, defaults to `False`): Whether the sentence encoder trains too.

    Raises:
        ValueError: If there is no such mode, or no such branch.
    """

    tuning: str = field(
        default="scada",
        metadata={
            "help": "Which part of the backbone trains.",
            "choices": list(TUNING_MODES),
        },
    )
    scada_branches: str = field(
        default="both", metadata={"help": "Branches of the adapter.", "choices": list(BRANCHES)}
    )
    inner_layers: str = field(
        default="last 3",
        metadata={"help": "Layers with an inner branch: 'all', 'last 3', 'even 1/2' (see ScadaAdapterConfig)."},
    )
    outer_layers: str = field(default="even 4", metadata={"help": "Layers with an outer branch, likewise."})
    reduction: int = field(default=8, metadata={"help": "How much narrower than the backbone a branch is."})
    train_text: bool = field(default=False, metadata={"help": "Train the sentence encoder too."})

    def __post_init__(self):
        for name, known in (("tuning", TUNING_MODES), ("scada_branches", BRANCHES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"Received {name}={value!r}; expected one of {', '.join(known)}.")


@dataclass
class ModelArguments(TuningArguments):
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
    head_hidden_size: int = field(default=256, metadata={"help": "Width of the localization head."})
    grid_size: int = field(default=128, metadata={"help": "Time steps the localization head works on."})
    num_train_proposals: int = field(default=512, metadata={"help": "Proposals drawn for each training step."})
    listwise_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of the loss in which a sentence's proposals compete."}
    )
    matching_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of the loss in which the sentences and segments of a video compete."}
    )
    retrieval_dim: int = field(
        default=0, metadata={"help": "Size of the embeddings that search many videos; 0 for a model without them."}
    )
    spatial_pool_size: int = field(
        default=1,
        metadata={
            "aliases": ["--num_places"],
            "help": "Areas a side of the picture that the head tells apart; 1 for its mean.",
        },
    )
    subtract_video_mean: bool = field(
        default=False, metadata={"help": "The head reads what differs from the video's mean over time."}
    )
    feature_dropout: float = field(
        default=0.0, metadata={"help": "Share of the backbone's channels hidden from the head in training."}
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

    dataset: str = field(metadata={"help": "Annotations: a Hub id, a folder, or a json, jsonl, parquet or csv file."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Split that evaluations in the course of training also run on, as `validation`; with "
            "--load_best_model_at_end and --metric_for_best_model validation_R1@0.5 it chooses the model."
        },
    )
    video_root: str | None = field(
        default=None, metadata={"help": "Folder of the videos; the data set's own folder if not given."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read annotations while training instead of before; needs max_steps."}
    )
    max_sentences: int | None = field(
        default=None, metadata={"help": "Sentences of a video a training step, drawn afresh; all if not given."}
    )
    negative_sentences: int = field(
        default=0,
        metadata={
            "help": "Sentences of other videos beside each video's own, at most as many: the score then tells what is "
            "not in a video. With a validation_split the threshold is chosen on it and saved with the processor."
        },
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
        metadata={"help": "Keep all frames once they were read, for small data sets (3 bytes a pixel, or 12)."},
    )
    blind: bool = field(
        default=False, metadata={"help": "Replace the pixels by noise: what the annotations alone give away."}
    )


USAGE = "%(prog)s [RECIPE.json] [--dataset DATASET ...]"


def with_new_names(arguments: dict[str, Any]) -> dict[str, Any]:
    """Renames arguments that were saved under older names."""
    return {OLD_NAMES.get(name, name): value for name, value in arguments.items()}


def parse_recipe(kinds: Sequence[type], argv: Sequence[str], **parser_arguments) -> tuple[Any, ...]:
    """
    Parses arguments; where the first is a JSON file, they replace those in it.

    Args:
        kinds (`Sequence[type]`): Dataclasses of arguments.
        argv (`Sequence[str]`): The arguments.
        parser_arguments: As `HfArgumentParser` takes them.

    Returns:
        `tuple`: An instance of each dataclass, the parser, the names of the recipe that are in none of them, and the
        arguments that are not.

    Raises:
        OSError: If the recipe cannot be read.
        ValueError: If the recipe is not JSON with a value for each name, or a value is refused.
    """
    from transformers.hf_argparser import HfArgumentParser

    parser = HfArgumentParser(
        kinds,  # type: ignore[arg-type]
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
            raise ValueError(f"The recipe {path} is {recipe!r}; expected a value for each name, as in {{...}}.")
        recipe = with_new_names(recipe)
        actions = {action.dest: action for action in parser._actions}
        unknown = [name for name in recipe if name not in actions]
        for name in recipe.keys() & actions.keys():
            actions[name].required = False
        parser.set_defaults(**{name: value for name, value in recipe.items() if name in actions})
    *parsed, others = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    return *parsed, parser, unknown, others


def check_recipe(argv: Sequence[str]) -> None:
    """
    Refuses at once what can be told from the arguments about model and data alone: importing `Trainer`, and its
    arguments, takes seconds.

    Args:
        argv (`Sequence[str]`): The arguments of a training.

    Raises:
        OSError: If the recipe, or a folder that is named, does not exist.
        ValueError: If a value is refused.
    """
    model_args, data_args, *_ = parse_recipe((ModelArguments, DataArguments), argv, add_help=False)
    if data_args.video_root is not None and not Path(data_args.video_root).is_dir():
        raise FileNotFoundError(
            f"Received --video_root {data_args.video_root}, where there is no folder; name that of the videos."
        )
    sources = {"dataset": data_args.dataset, "model_name_or_path": model_args.model_name_or_path}
    if model_args.model_name_or_path is None:
        sources |= {"video_model": model_args.video_model, "text_model": model_args.text_model}
    for name, source in sources.items():
        # Ids on the Hub are a name, or two with a slash between.
        is_path = source is not None and (source[:1] in "/.~" or source.count("/") > 1 or "\\" in source)
        if is_path and not Path(source).exists():
            raise FileNotFoundError(f"Received --{name} {source}, where there is nothing; check the path.")
