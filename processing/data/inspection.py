"""Inspect video files in processes of their own, so that a crash of a decoder costs one video."""

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
    """What opening a video's file showed: its duration in seconds if it has one, and why it cannot be read if so."""

    duration_seconds: float | None
    problem: str | None


def inspect_video(path: Path, decode: bool) -> Inspection:
    """Find out how long a video is and, with `decode`, whether all of it can be read."""
    duration_seconds = None
    try:
        duration_seconds = probe(path).duration_seconds
        if decode:
            check_video(path)
    except VideoReadError as error:
        return Inspection(duration_seconds, str(error))
    except Exception as error:
        # Whatever else this file makes the reader raise now, it would raise in the middle of training.
        return Inspection(duration_seconds, f"{type(error).__name__}: {error}")
    return Inspection(duration_seconds, None)


def map_isolated(
    function: Callable[[Item], Result], items: list[Item], num_workers: int, description: str
) -> list[Result | None]:
    """
    `[function(item) for item in items]` in `num_workers` processes, with `None` where the process died: a decoder that
    crashes on one file must not take the others along.

    Every worker is a pool of its own, since a pool does not tell which of its tasks broke it.
    """
    workers: SimpleQueue[ProcessPoolExecutor | None] = SimpleQueue()
    workers.put(_start_worker())  # before the threads, so that an error of the start comes once
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
    # "spawn": a forked child of a process with threads may hang.
    worker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    # A process that cannot even start is an error of its own, not of the first item.
    try:
        worker.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A process that opens videos could not start. It imports the script that was run; if a script calls "
            'this, it has to call it under `if __name__ == "__main__":`. See above for other errors of the process.'
        ) from error
    return worker


def inspect_videos(paths: dict[str, str], folder: Path, decode: bool, num_workers: int) -> dict[str, Inspection]:
    """[`inspect_video`] of all videos: from `{name: path relative to folder}` to `{name: Inspection}`."""
    if not paths:
        return {}
    results = map_isolated(
        partial(inspect_video, decode=decode),
        [folder / path for path in paths.values()],
        min(num_workers, len(paths)),
        "decoding videos" if decode else "reading durations",
    )
    crashed = Inspection(None, "the process that read it crashed or was killed")
    return {name: result or crashed for name, result in zip(paths, results, strict=True)}
