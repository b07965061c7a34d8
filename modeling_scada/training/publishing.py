"""
Publishing what a run left: the files that loading needs, and a model card (model_card_template.md) that says what was
measured and how, from the records of the run. No number in it comes from elsewhere.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError

from processing.pipeline_temporal_grounding import ADAPTER_CONFIG, set_base_model


TEMPLATE = Path(__file__).with_name("model_card_template.md")
# What is uploaded; all else that a run leaves (checkpoints, pickled arguments, logs) is of no use to others.
PATTERNS = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "adapter_config.json", "*.py", "README.md"),
    *("processor_config.json", "video_preprocessor_config.json", "tokenizer*", "vocab*", "special_tokens_map.json"),
    *("merges.txt", "sentencepiece*", "spiece.model", "run_arguments.json", "train_results.json", "metrics.json"),
)
GENERATED = "<!-- made by scripts/push_to_hub.py -->"
# What is in a card that nobody wrote: ours, peft's, `Trainer`'s.
GENERATED_CARDS = (
    GENERATED,
    "<!-- Provide a quick summary of what the model is/does. -->",
    "<!-- This model card has been generated automatically",
)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a record of the run; empty if the run left none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def exists_on_hub(name: str | None, repo_type: str = "model") -> bool:
    """Whether a name is that of a repository, rather than of a folder, of this machine or of the one that trained."""
    if not name or Path(name).exists():
        return False
    try:
        return HfApi().repo_exists(name, repo_type=repo_type)
    except HFValidationError:
        return False


def public_name(name: str, repo_type: str = "model") -> str:
    """The id of a repository; of a folder of this machine its last part alone."""
    return name if exists_on_hub(name, repo_type) else Path(name).name


def make_card(folder: Path, repo_id: str) -> ModelCard:
    """
    The model card of a folder, from `run_arguments.json`, `train_results.json`, `metrics.json` (of `evaluate.py`) and
    `adapter_config.json`; what one of them does not say is left out.
    """
    arguments, training = read_json(folder / "run_arguments.json"), read_json(folder / "train_results.json")
    record = read_json(folder / "metrics.json")
    adapter = read_json(folder / ADAPTER_CONFIG)
    has_model = any(folder.glob("model*.safetensors"))
    if not has_model:
        bases = [adapter.get("base_model_name_or_path")]
    elif arguments.get("model_name_or_path"):
        bases = [arguments["model_name_or_path"]]
    else:
        bases = [arguments.get("video_model"), arguments.get("text_model")]
    dataset = arguments.get("dataset")
    evaluated = public_name(record["dataset"], "dataset") if record.get("metrics") else ""
    results = [
        EvalResult(
            task_type="temporal-grounding",
            dataset_type=evaluated,
            dataset_name=Path(record["dataset"]).name,
            dataset_split=record["split"],
            metric_type=name.lower(),
            metric_name=name,
            metric_value=round(value, 2),
        )
        for name, value in record.get("metrics", {}).items()
    ]
    data = ModelCardData(
        model_name=repo_id.rpartition("/")[2],
        library_name="transformers" if has_model else "peft",
        base_model=[str(base) for base in bases if exists_on_hub(base)] or None,
        datasets=[str(dataset)] if exists_on_hub(dataset, "dataset") else None,
        metrics=sorted(record.get("metrics", {})) or None,
        tags=["temporal-grounding", "scada", *(["custom_code"] if has_model else [])],
        eval_results=results or None,
    )
    for named in (arguments, record, adapter):
        for key in ("dataset", "video_model", "text_model", "model_name_or_path", "base_model_name_or_path"):
            if named.get(key):
                named[key] = public_name(named[key], "dataset" if key == "dataset" else "model")
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        generated=GENERATED,
        arguments=arguments,
        training=training,
        record=record,
        adapter=adapter,
        has_model=has_model,
    )


def push_folder(
    folder: Path, repo_id: str, base_model: str | None = None, metrics: Path | None = None, private: bool | None = None
) -> str:
    """
    Args:
        folder (`Path`): A folder with a model, an adapter, or both.
        repo_id (`str`): Name of the repository, made if it does not exist.
        base_model (`str`, *optional*): Hub id of the model that an adapter without its model belongs to.
        metrics (`Path`, *optional*): `metrics.json` of `evaluate.py`; the folder's own if not given.
        private (`bool`, *optional*): Whether a new repository is private.

    Returns:
        `str`: URL of the commit.

    Raises:
        FileNotFoundError: If the folder has neither a model nor an adapter, or there is no file `metrics`.
        ValueError: If an adapter without its model belongs to one that is not on the Hub.
    """
    has_model = any(folder.glob("model*.safetensors"))
    has_adapter = (folder / "adapter_model.safetensors").exists()
    if not has_model and not has_adapter:
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor adapter_model.safetensors.")
    api = HfApi()
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        for path in {path for pattern in PATTERNS for path in folder.glob(pattern)}:
            shutil.copyfile(path, staged / path.name)
        if metrics is not None:
            shutil.copyfile(metrics, staged / "metrics.json")
        if has_adapter and not has_model:
            named = base_model or read_json(staged / ADAPTER_CONFIG).get("base_model_name_or_path")
            if not exists_on_hub(named):
                raise ValueError(
                    f"The adapter in {folder} belongs to {named!r}, which others do not have. Push that model first, "
                    "and name it with --base_model."
                )
            set_base_model(staged, str(named))
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if has_adapter and has_model:
            set_base_model(staged, repo_id)
        readme = staged / "README.md"
        # peft and `Trainer` write cards that say little, with placeholders and paths of this machine.
        if not readme.exists() or any(mark in readme.read_text(encoding="utf-8") for mark in GENERATED_CARDS):
            make_card(staged, repo_id).save(readme)
        return str(api.upload_folder(repo_id=repo_id, folder_path=staged))
