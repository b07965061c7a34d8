"""
Encode videos with the workers of a Ray cluster, on one machine or many.

The calling process plans the work and writes the index. A worker receives one video at a time and returns all of its
rows at once. A video is therefore neither lost nor duplicated when a worker dies.
"""

import copy
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from processing.pipeline_temporal_grounding import TemporalGroundingPipeline

from .index import check_can_encode, encode_rows, plan_index, write_rows
from .processes import num_processes
from .storage import VideoFile


# Number of attempts per video. A video whose worker dies each time is skipped.
MAX_ATTEMPTS = 3
# Result of a worker: the rows of a video, or the error.
RESULT = pa.schema([("video", pa.string()), ("rows", pa.large_binary()), ("reason", pa.string())])


def import_ray() -> Any:
    """
    Import Ray and Ray Data.

    Raises:
        RuntimeError: If Ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise RuntimeError("--ray needs Ray, which is not installed; run `pip install 'ray[data]'`.") from error
    return ray


def index_videos_on_ray(
    folder: str | os.PathLike,
    pipe: TemporalGroundingPipeline,
    output: str | os.PathLike,
    shard: tuple[int, int] | None = None,
    model_name: str | None = None,
    num_workers: int | None = None,
    remove_missing: bool = False,
) -> dict[str, Any]:
    """
    Encode the videos of a folder into an index, as [`index_videos`] does, with the workers of a Ray cluster.

    Each worker loads the model and encodes one video at a time. If a worker dies, Ray replaces it and assigns its
    video to another worker. `RAY_ADDRESS` selects a running cluster; by default Ray starts one on this machine. All
    machines must see the folder under the same path.

    Args:
        folder (`str` or `PathLike`): Folder of the videos.
        pipe ([`TemporalGroundingPipeline`]): Pipeline that encodes the videos. Each worker gets a copy.
        output (`str` or `PathLike`): Folder of the index. Only the calling process writes to it.
        shard (`tuple[int, int]`, *optional*): As for [`index_videos`].
        model_name (`str`, *optional*): As for [`index_videos`].
        num_workers (`int`, *optional*):
            Number of workers. Defaults to the number of GPUs in the cluster, or of CPU cores without a GPU.
        remove_missing (`bool`, *optional*, defaults to `False`): As for [`index_videos`].

    Returns:
        `dict`: Report of [`index_videos`]. `broken` includes the videos whose worker died in every attempt.

    Raises:
        RuntimeError: If Ray is not installed.
        ValueError, OSError: As for [`index_videos`].
        ValueError: If `num_workers` is not positive, or a launcher has started several processes.
    """
    ray = import_ray()
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"Received num_workers={num_workers}; expected a positive number of workers.")
    if num_processes() > 1:
        raise ValueError(
            f"Received a call from {num_processes()} processes; start one process, because Ray starts the workers."
        )
    folder, output = Path(folder), Path(output)
    work = plan_index(folder, pipe, output, shard, model_name, remove_missing)
    if not work.new:
        return work.report
    check_can_encode(pipe)
    ray.init(ignore_reinit_error=True)
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if num_workers is None:
        num_workers = num_gpus or int(ray.cluster_resources()["CPU"])
    # One block, and so one task, per video: Ray repeats only the tasks of a dead worker.
    videos = ray.data.from_items(
        [{"video": video, **file._asdict()} for video, file in work.new.items()], override_num_blocks=len(work.new)
    )
    shared = ray.put(_on_device(pipe, "cpu"))
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()
    rows = videos.map_batches(
        _Worker,
        fn_constructor_args=(shared, attempts, folder.absolute()),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_cpus=None if num_gpus else 1,
        num_gpus=1 if num_gpus else None,
    )
    write_rows(_results(rows), len(work.new), output, work)
    return work.report


class _Attempts:
    """Number of attempts to encode each video, counted outside the workers."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def begin(self, video: str) -> int:
        """Count an attempt, and return the number of earlier attempts."""
        self.counts[video] += 1
        return self.counts[video] - 1


class _Worker:
    """Worker that loads the model and encodes one video at a time."""

    def __init__(self, shared: Any, attempts: Any, folder: Path):
        self.ray = import_ray()
        self.pipe = _on_device(self.ray.get(shared), "cuda" if self.ray.get_gpu_ids() else "cpu")
        self.attempts = attempts
        self.folder = folder

    def __call__(self, batch: pa.Table) -> pa.Table:
        ((video, *file),) = (row.values() for row in batch.to_pylist())
        if self.ray.get(self.attempts.begin.remote(video)) == MAX_ATTEMPTS:
            rows: pa.Table | str = f"its worker died in all {MAX_ATTEMPTS} attempts; see the log of Ray."
        else:
            rows = encode_rows(self.pipe, self.folder, video, VideoFile(*file))
        if isinstance(rows, str):
            return pa.Table.from_pylist([{"video": video, "reason": rows}], RESULT)
        # Serialized to bytes, because Ray may merge rows of different schemas into one block.
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        return pa.Table.from_pylist([{"video": video, "rows": sink.getvalue().to_pybytes()}], RESULT)


def _results(rows: Any) -> Iterator[tuple[str, pa.Table | str]]:
    """Yield each video with its rows or its error."""
    for row in rows.iter_rows():
        yield row["video"], row["reason"] or pa.ipc.open_stream(row["rows"]).read_all()


def _on_device(pipe: TemporalGroundingPipeline, device: str) -> TemporalGroundingPipeline:
    """Return the pipeline, or a copy of it with the model on another device."""
    if pipe.device.type == device:
        return pipe
    moved: Any = copy.copy(pipe)
    moved.model = copy.deepcopy(pipe.model).to(device)  # type: ignore[arg-type]
    moved.device = moved.model.device
    return moved


__all__ = ["index_videos_on_ray"]
