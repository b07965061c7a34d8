"""The folder that results go to, tried before the work for them is done."""

from pathlib import Path
from tempfile import TemporaryFile


def make_result_folder(folder: Path) -> None:
    """
    Makes a folder, with those above it, and sees whether files can be written there.

    Args:
        folder (`Path`): The folder; it may exist.

    Raises:
        OSError: If it cannot be made, or not be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass
