"""Inspection of video files in separate processes, so a decoder crash affects one video only."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from ..video_io import VideoReadError, check_video, probe


Item = TypeVar("Item")
Result = TypeVar("Result")


class Inspection(NamedTuple):
    """Result of opening a video file: its duration in seconds, if known, and the reason if it is unreadable."""

    duration_seconds: float | None
    problem: str | None


def inspect_video(path: Path, decode: bool) -> Inspection:
    """Read the duration of a video and, with `decode`, check that all frames can be decoded."""
    duration_seconds = None
    try:
        duration_seconds = probe(path).duration_seconds
        if decode:
            check_video(path)
    except VideoReadError as error:
        return Inspection(duration_seconds, str(error))
    except Exception as error:
        # Report any other error too, because it would otherwise interrupt training.
        return Inspection(duration_seconds, f"{type(error).__name__}: {error}")
    return Inspection(duration_seconds, None)


def map_isolated(
    function: Callable[[Item], Result], items: list[Item], num_workers: int, description: str
) -> list[Result | None]:
    """
    Return `[function(item) for item in items]`, computed in `num_workers` processes, with `None` for each item whose
    process died. A decoder crash on one file does not affect the other files.

    Each worker is a separate pool, because a pool does not report which of its tasks broke it.
    """
    workers: SimpleQueue[ProcessPoolExecutor | None] = SimpleQueue()
    workers.put(_start_worker())  # before the threads, to raise a start error only once
    for _ in range(num_workers - 1):
        workers.put(None)

    def run(item: Item) -> Result | None:
        worker = workers.get()
        try:
            worker = worker or _start_worker()
            return worker.submit(function, item).result()
        except BrokenProcessPool:
            worker = None
            return None
        finally:
            workers.put(worker)

    try:
        with ThreadPoolExecutor(num_workers) as threads:
            return list(tqdm(threads.map(run, items), total=len(items), desc=description))
    finally:
        while not workers.empty():
            if worker := workers.get():
                worker.shutdown()


def _start_worker() -> ProcessPoolExecutor:
    # Use "spawn", because a forked child of a process with threads may hang.
    worker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    # Surface a start error early, instead of reporting it for the first item.
    try:
        worker.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A worker process could not start. Worker processes import the main script again: in a script, call this "
            'function under `if __name__ == "__main__":`. See above for other errors of the process.'
        ) from error
    return worker


def inspect_videos(paths: dict[str, str], folder: Path, decode: bool, num_workers: int) -> dict[str, Inspection]:
    """Call [`inspect_video`] on all videos. Map `{name: path relative to folder}` to `{name: Inspection}`."""
    if not paths:
        return {}
    results = map_isolated(
        partial(inspect_video, decode=decode),
        [folder / path for path in paths.values()],
        min(num_workers, len(paths)),
        "decoding videos" if decode else "reading durations",
    )
    crashed = Inspection(None, "the decoding process crashed or was killed")
    return {name: result or crashed for name, result in zip(paths, results, strict=True)}
