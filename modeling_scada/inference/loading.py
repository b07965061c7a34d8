"""Load a model or a pipeline, and report errors in one line: name of the model, cause, and advice."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import pipeline

from modeling_scada import AutoModelForTemporalGrounding, ScadaProcessor
from processing.pipeline_temporal_grounding import TemporalGroundingPipeline


# All errors that transformers, peft and safetensors raise for an invalid folder or repository.
LOADING_ERRORS = (
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


@contextmanager
def loading_model(name_or_path: str, option: str = "--model") -> Iterator[None]:
    """
    Raise errors of loading within the context as one `RuntimeError` with the name of the model.

    Args:
        name_or_path (`str`): Hub id or folder of the model.
        option (`str`, *optional*, defaults to `"--model"`): Command line option with the name.

    Raises:
        RuntimeError: If loading fails; it replaces the original error.

    Example:

    ```python
    >>> from modeling_scada.inference.loading import loading_model

    >>> with loading_model("/moved"):
    ...     pass
    Traceback (most recent call last):
        ...
    RuntimeError: Could not load the model /moved: it is neither a local folder nor a Hub id. Pass the folder of a saved model, or a Hub id such as my-name/my-model, with --model.

    ```
    """  # noqa: E501  one line of output
    folder = Path(name_or_path)
    advice = f"Pass the folder of a saved model, or a Hub id such as my-name/my-model, with {option}."
    start = f"Could not load the model {name_or_path}:"
    if not folder.is_dir() and not _is_hub_id(name_or_path):
        raise RuntimeError(f"{start} it is neither a local folder nor a Hub id. {advice}")
    try:
        _check_base_model(folder)
        yield
    except LOADING_ERRORS as error:
        cause = " ".join(str(error).split()).rstrip(".!")
        if not isinstance(error, (ImportError, OSError, RuntimeError, ValueError)):
            cause = f"{type(error).__name__}: {cause}"
        if corrupt := _corrupt_weights(folder):
            advice = f"Corrupt or truncated: {', '.join(corrupt)}. Copy or download again."
        elif folder.is_dir():
            advice = f"Check the folder, or pass another one with {option}."
        else:
            advice = f"It is not a local folder. {advice}"
        raise RuntimeError(f"{start} {cause}. {advice}") from error


def load_pipeline(
    model: str, device: str | int | None = None, dtype: str | torch.dtype = "auto"
) -> TemporalGroundingPipeline:
    """
    Load a model or adapter with its processor into a pipeline.

    Args:
        model (`str`): Hub id or folder of a model or adapter.
        device (`str` or `int`, *optional*): Device, as for `transformers.pipeline`.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): Type of the weights; as saved by default.

    Raises:
        RuntimeError: If loading fails, with a message of one line.
    """
    with loading_model(model):
        # Load the model before `pipeline`, which tries twice and reports both tracebacks.
        loaded = AutoModelForTemporalGrounding.from_pretrained(model, dtype=dtype)
        processor = ScadaProcessor.from_pretrained(model)
    return pipeline("temporal-grounding", model=loaded, processor=processor, device=device)  # type: ignore[call-overload]


def check_device(device: str | None) -> None:
    """
    Check that a device exists.

    Args:
        device (`str`, *optional*): Device of torch, such as `"cpu"` or `"cuda:1"`.

    Raises:
        ValueError: If this machine does not have the device.
    """
    if device is None:
        return
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError if torch was built without the backend
        reason = str(error).splitlines()[0]
        raise ValueError(f"Received the device {device}, which this machine does not have ({reason}).") from error


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _check_base_model(folder: Path) -> None:
    """Check the base model of an adapter alone, because its folder may have moved."""
    path = folder / "adapter_config.json"
    if path.is_file() and not (folder / "config.json").is_file():
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if base and not Path(base).is_dir() and not _is_hub_id(base):
            raise FileNotFoundError(
                f"the base model {base} in {path.name} is neither a local folder nor a Hub id; correct "
                "base_model_name_or_path in that file"
            )


def _corrupt_weights(folder: Path) -> list[str]:
    corrupt = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError):
            corrupt.append(path.name)
    return corrupt
