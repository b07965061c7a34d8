"""What a record has to say of where it comes from."""

import subprocess
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[1]


def current_commit() -> str | None:
    """The commit of this checkout; `None` where it is none."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=REPOSITORY)
    return done.stdout.strip() or None
