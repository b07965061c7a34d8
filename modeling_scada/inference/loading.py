"""Whatever goes wrong while a model is loaded, in one line: the model's name, the last cause, what to do."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open


# All that transformers, peft and safetensors raise for a folder or a repository that is not as it should be.
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
    Name the model in every error that loading it raises.

    Args:
        name_or_path (`str`): Hub id or folder of the model.
        option (`str`, *optional*, defaults to `"--model"`): The option that it was given with.

    Raises:
        RuntimeError: Instead of what was raised inside.

    Example:

    ```python
    >>> from modeling_scada.inference.loading import loading_model

    >>> with loading_model("/moved"):
    ...     pass
    Traceback (most recent call last):
        ...
    RuntimeError: Could not load the model /moved: it is neither a folder here nor a Hub id. Give the folder of a saved model, or an id such as my-name/my-model, with --model.

    ```
    """  # noqa: E501  one line of output
    folder = Path(name_or_path)
    give = f"Give the folder of a saved model, or an id such as my-name/my-model, with {option}."
    start = f"Could not load the model {name_or_path}:"
    if not folder.is_dir() and not _is_hub_id(name_or_path):
        raise RuntimeError(f"{start} it is neither a folder here nor a Hub id. {give}")
    try:
        _check_base_model(folder)
        yield
    except LOADING_ERRORS as error:
        cause = " ".join(str(error).split()).rstrip(".!")
        if not isinstance(error, (ImportError, OSError, RuntimeError, ValueError)):
            cause = f"{type(error).__name__}: {cause}"
        if damaged := _damaged_weights(folder):
            advice = f"Damaged or cut off: {', '.join(damaged)}. Copy or download these again."
        elif folder.is_dir():
            advice = f"Check the folder, or give another with {option}."
        else:
            advice = f"There is no such folder here. {give}"
        raise RuntimeError(f"{start} {cause}. {advice}") from error


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _check_base_model(folder: Path) -> None:
    """An adapter alone names its base model, which may have moved."""
    path = folder / "adapter_config.json"
    if path.is_file() and not (folder / "config.json").is_file():
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if base and not Path(base).is_dir() and not _is_hub_id(base):
            raise FileNotFoundError(
                f"its {path.name} names the base model {base}, which is neither a folder here nor a Hub id; write "
                "into that file where it is"
            )


def _damaged_weights(folder: Path) -> list[str]:
    damaged = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError):
            damaged.append(path.name)
    return damaged
