"""Prefetching: a thread prepares the next item during the processing of the current one."""

from collections.abc import Generator, Iterator
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any


def read_ahead(items: Generator[Any, None, None]) -> Iterator[Any]:
    """
    Yield the items of a generator, and run the generator one item ahead in a thread. Memory therefore holds two
    items: the current one and the next one.

    Args:
        items (`Generator`): Generator to run. It runs only in the thread, and closes there when this iterator closes.

    Yields:
        The items of the generator.

    Raises:
        BaseException: Any error of the generator.
    """
    ready: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    requests = Semaphore(0)
    is_closed = False

    def read() -> None:
        try:
            for item in items:
                ready.put(("item", item))
                requests.acquire()
                if is_closed:
                    break
            items.close()
        except BaseException as error:
            ready.put(("error", error))
        else:
            ready.put(("end", None))

    # A daemon thread lets the interpreter exit even if the caller never closes the iterator.
    thread = Thread(target=read, name="read_ahead", daemon=True)
    thread.start()
    received: Any = None
    try:
        while True:
            kind, received = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise received
            requests.release()
            yield received
    finally:
        received = None  # breaks the reference cycle through an error's traceback, which would keep the item alive
        is_closed = True
        requests.release()
        thread.join()
