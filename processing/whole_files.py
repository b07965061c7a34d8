"""Files that are on the disk in full, or not at all."""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


# A temporary file of another machine counts as abandoned after so long.
ABANDONED_SECONDS = 86400


@contextmanager
def write_temporary(path: Path, write: Callable[[Any], object]) -> Iterator[Path]:
    """
    Writes a temporary file next to `path`, in full and to the disk, and deletes it unless the caller has renamed it.

    Args:
        path (`Path`): The name that the file is to have.
        write (`Callable`): Writes the content into a file opened for writing bytes.

    Raises:
        OSError: If the file cannot be written, for example because the disk is full. The error names `path`.
    """
    # Names of files have at most 255 bytes.
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
    """Writes or replaces a file, in full or not at all, whenever this is killed; see [`write_temporary`]."""
    with write_temporary(path, write) as temporary:
        os.replace(temporary, path)


def is_abandoned(temporary: Path) -> bool:
    """Whether the process that wrote a temporary file has ended, as far as this machine knows."""
    head, pid, *_ = temporary.name.rsplit(".", 3)
    if head.endswith(f".{socket.gethostname()}") and pid.isdecimal() and not _is_running(int(pid)):
        return True
    try:
        return time.time() - temporary.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:  # renamed meanwhile
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
