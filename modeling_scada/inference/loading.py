"""Report errors of loading a model in one line: name of the model, cause, and advice."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open


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
