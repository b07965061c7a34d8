"""
Publish the folder of a run: the files for loading, and a model card (model_card_template.md) with metrics and
settings. All numbers of the card come from the records of the run.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError

from processing.pipeline_temporal_grounding import ADAPTER_CONFIG, write_base_model_name


TEMPLATE = Path(__file__).with_name("model_card_template.md")
# Files to upload; other users do not need checkpoints, pickled arguments or logs.
PATTERNS = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "adapter_config.json", "*.py", "README.md"),
    *("processor_config.json", "video_preprocessor_config.json", "tokenizer*", "vocab*", "special_tokens_map.json"),
    *("merges.txt", "sentencepiece*", "spiece.model", "run_arguments.json", "train_results.json", "metrics.json"),
)
GENERATED = "<!-- made by scripts/push_to_hub.py -->"
# Markers of generated model cards: of this module, peft and `Trainer`.
GENERATED_CARDS = (
    GENERATED,
    "<!-- Provide a quick summary of what the model is/does. -->",
    "<!-- This model card has been generated automatically",
)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON record of the run, or an empty dict without such a file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _exists_on_hub(name: str | None, repo_type: str = "model") -> bool:
    """Return whether a name is a Hub repository. A folder on this or another machine is not."""
    if not name or Path(name).exists():
        return False
    try:
        return HfApi().repo_exists(name, repo_type=repo_type)
    except HFValidationError:
        return False


def _public_name(name: str, repo_type: str = "model") -> str:
    """Return the id of a Hub repository, or the last part of a local path."""
    return name if _exists_on_hub(name, repo_type) else Path(name).name


def _make_card(folder: Path, repo_id: str) -> ModelCard:
    """
    Return the model card of a folder.

    The card uses `run_arguments.json`, `train_results.json`, `metrics.json` (of `evaluate.py`) and
    `adapter_config.json`. It omits missing values.

    Args:
        folder (`Path`): Folder with a model, an adapter, or both.
        repo_id (`str`): Name of the repository.
    """
    arguments, training = _read_json(folder / "run_arguments.json"), _read_json(folder / "train_results.json")
    record = _read_json(folder / "metrics.json")
    adapter = _read_json(folder / ADAPTER_CONFIG)
    has_model = any(folder.glob("model*.safetensors"))
    if not has_model:
        bases = [adapter.get("base_model_name_or_path")]
    elif arguments.get("model_name_or_path"):
        bases = [arguments["model_name_or_path"]]
    else:
        bases = [arguments.get("video_model"), arguments.get("text_model")]
    dataset = arguments.get("dataset")
    evaluated = _public_name(record["dataset"], "dataset") if record.get("metrics") else ""
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
        base_model=[str(base) for base in bases if _exists_on_hub(base)] or None,
        datasets=[str(dataset)] if _exists_on_hub(dataset, "dataset") else None,
        metrics=sorted(record.get("metrics", {})) or None,
        tags=["temporal-grounding", "scada", *(["custom_code"] if has_model else [])],
        eval_results=results or None,
    )
    for source in (arguments, record, adapter):
        for key in ("dataset", "video_model", "text_model", "model_name_or_path", "base_model_name_or_path"):
            if source.get(key):
                source[key] = _public_name(source[key], "dataset" if key == "dataset" else "model")
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
    Upload a model or adapter to the Hub, with its processor, records and model card.

    Args:
        folder (`Path`): Folder with a model, an adapter, or both.
        repo_id (`str`): Name of the repository; a missing repository is created.
        base_model (`str`, *optional*): Hub id of the base model of an adapter, for a folder with an adapter alone.
        metrics (`Path`, *optional*): `metrics.json` of `evaluate.py`; by default the file in the folder.
        private (`bool`, *optional*): Whether a new repository is private.

    Returns:
        `str`: URL of the commit.

    Raises:
        FileNotFoundError: If the folder has neither a model nor an adapter, or if the file `metrics` does not exist.
        ValueError: If the base model of an adapter alone is not on the Hub.
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
            base = base_model or _read_json(staged / ADAPTER_CONFIG).get("base_model_name_or_path")
            if not _exists_on_hub(base):
                raise ValueError(
                    f"The base model {base!r} of the adapter in {folder} is not on the Hub. Push it first, and pass "
                    "its Hub id with --base_model."
                )
            write_base_model_name(staged, str(base))
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if has_adapter and has_model:
            write_base_model_name(staged, repo_id)
        readme = staged / "README.md"
        # Replace the cards of peft and `Trainer`, which contain placeholders and local paths.
        if not readme.exists() or any(mark in readme.read_text(encoding="utf-8") for mark in GENERATED_CARDS):
            _make_card(staged, repo_id).save(readme)
        return str(api.upload_folder(repo_id=repo_id, folder_path=staged))
