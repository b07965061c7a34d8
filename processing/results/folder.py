"""Creation of output folders before long computations."""

from pathlib import Path
from tempfile import TemporaryFile


def make_result_folder(folder: Path) -> None:
    """
    Create a folder with its parents, and check that it is writable.

    Args:
        folder (`Path`): Output folder, new or existing.

    Raises:
        OSError: If the folder cannot be created or is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass
