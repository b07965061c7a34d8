"""Atomic file writes: a reader finds the complete file or no file."""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


# Age at which a temporary file of another machine counts as abandoned.
ABANDONED_SECONDS = 86400


@contextmanager
def write_temporary(path: Path, write: Callable[[Any], object]) -> Iterator[Path]:
    """
    Write a complete temporary file next to `path`, flush it to disk, and delete it unless the caller renames it.

    Args:
        path (`Path`): Final path of the file.
        write (`Callable`): Function that writes the content to a file opened for writing bytes.

    Raises:
        OSError: If writing fails, for example because the disk is full. The error names `path`.
    """
    # File names are limited to 255 bytes.
    name = f"{path.name[:40]}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    temporary = path.with_name(name)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Any], object]) -> None:
    """Write or replace a file atomically, even if the process is killed; see [`write_temporary`]."""
    with write_temporary(path, write) as temporary:
        os.replace(temporary, path)


def is_abandoned(temporary: Path) -> bool:
    """Return whether the process that wrote a temporary file has ended, as far as this machine knows."""
    head, pid, *_ = temporary.name.rsplit(".", 3)
    if head.endswith(f".{socket.gethostname()}") and pid.isdecimal() and not _is_running(int(pid)):
        return True
    try:
        return time.time() - temporary.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:  # renamed in the meantime
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # process of another user
        return True
    return True
