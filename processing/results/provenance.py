"""Records of measurements and their provenance."""

import json
import subprocess
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[2]


def get_commit() -> str | None:
    """Return the commit of this checkout, or `None` for an installation without one, such as from a wheel."""
    if not (REPOSITORY / ".git").exists():  # otherwise git returns the commit of an enclosing repository
        return None
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=REPOSITORY)
    return done.stdout.strip() or None


def append_jsonl_row(path: Path, row: dict) -> None:
    """Append a row to a JSON Lines file. Create the file if it does not exist."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_jsonl_rows(path: Path) -> list[dict]:
    """Return the rows of a JSON Lines file, or an empty list if the file does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
