"""Reading beside the work on what was read: the next item is made in a thread."""

from collections.abc import Generator, Iterator
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any


def read_ahead(items: Generator[Any, None, None]) -> Iterator[Any]:
    """
    Yields what a generator yields, which runs up to its next item meanwhile, in a thread. So two items are in memory:
    the one that is worked on, and the one that is read.

    Args:
        items (`Generator`): It runs in the thread alone, and is closed there when this is closed.

    Yields:
        Its items.

    Raises:
        BaseException: What the generator raises.
    """
    ready: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    wanted = Semaphore(0)
    is_closed = False

    def read() -> None:
        try:
            for item in items:
                ready.put(("item", item))
                wanted.acquire()
                if is_closed:
                    break
            items.close()
        except BaseException as error:
            ready.put(("error", error))
        else:
            ready.put(("end", None))

    # A daemon: where nobody closes the iterator, the interpreter ends nevertheless.
    thread = Thread(target=read, name="read_ahead", daemon=True)
    thread.start()
    found: Any = None
    try:
        while True:
            kind, found = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise found
            wanted.release()
            yield found
    finally:
        found = None  # an error's traceback has this frame: a circle, which would keep what was read
        is_closed = True
        wanted.release()
        thread.join()
