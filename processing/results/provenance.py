"""Records of measurements: where they come from, and those that are there."""

import json
import subprocess
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[2]


def get_commit() -> str | None:
    """The commit of this checkout; `None` where it is none, as where the package was installed from a wheel."""
    if not (REPOSITORY / ".git").exists():  # git would name that of a repository around it
        return None
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=REPOSITORY)
    return done.stdout.strip() or None


def append_row(path: Path, row: dict) -> None:
    """Adds a line to a JSON Lines file, which is made if it is not there."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict]:
    """The lines of a JSON Lines file, one dict each; none if there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
