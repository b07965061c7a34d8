"""
The videos of a library, encoded by the workers of a Ray cluster: on this machine alone, or on many.

One process, the one that is called, plans and writes. A worker gets a video at a time and gives back its rows, all or
none, so that no video is lost or there twice when a worker dies.
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


# A video whose worker has died so often is one that kills workers.
MAX_TRIES = 3
# What a worker gives back of a video: its rows, or the reason why there are none.
RESULT = pa.schema([("video", pa.string()), ("rows", pa.large_binary()), ("reason", pa.string())])


def import_ray() -> Any:
    """
    Ray, with its data sets.

    Raises:
        RuntimeError: If it is not installed.
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
    As [`index_videos`], on Ray: each worker holds the model, and gets a video at a time. A worker that dies is
    replaced, and its video given to another. A cluster that runs already is used (`RAY_ADDRESS`); else one is started
    on this machine. All machines have to see the folder under the same path.

    Args:
        folder (`str` or `PathLike`): The videos.
        pipe ([`TemporalGroundingPipeline`]): With the model, of which each worker gets a copy.
        output (`str` or `PathLike`): Folder of the index; this process alone writes there.
        shard (`tuple[int, int]`, *optional*): As for [`index_videos`].
        model_name (`str`, *optional*): As for [`index_videos`].
        num_workers (`int`, *optional*):
            How many workers; by default as many as the cluster has GPUs, and without GPUs as many as it has cores.
        remove_missing (`bool`, *optional*, defaults to `False`): As for [`index_videos`].

    Returns:
        `dict`: As from [`index_videos`]. Videos whose worker died each time are among the `broken`.

    Raises:
        RuntimeError: If Ray is not installed.
        ValueError, OSError: As from [`index_videos`]; or if `num_workers` is none, or if several processes of a
            launcher call this.
    """
    ray = import_ray()
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"Received num_workers={num_workers}; expected a positive number of workers.")
    if num_processes() > 1:
        raise ValueError(
            f"Received a call of {num_processes()} processes; Ray starts its workers itself, so start one process."
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
    # A video is a block, and so a task: Ray repeats those that were lost with their worker, and no others.
    videos = ray.data.from_items(
        [{"video": video, **file._asdict()} for video, file in work.new.items()], override_num_blocks=len(work.new)
    )
    shared = ray.put(_on_device(pipe, "cpu"))
    tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries).remote()
    rows = videos.map_batches(
        _Worker,
        fn_constructor_args=(shared, tries, folder.absolute()),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_cpus=None if num_gpus else 1,
        num_gpus=1 if num_gpus else None,
    )
    write_rows(_results(rows), len(work.new), output, work)
    return work.report


class _Tries:
    """Counts, outside the workers, how often the encoding of each video was begun."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def begin(self, video: str) -> int:
        """How often this video was begun before."""
        self.begun[video] += 1
        return self.begun[video] - 1


class _Worker:
    """Holds the model, and encodes a video at a time."""

    def __init__(self, shared: Any, tries: Any, folder: Path):
        self.ray = import_ray()
        self.pipe = _on_device(self.ray.get(shared), "cuda" if self.ray.get_gpu_ids() else "cpu")
        self.tries = tries
        self.folder = folder

    def __call__(self, batch: pa.Table) -> pa.Table:
        ((video, *file),) = (row.values() for row in batch.to_pylist())
        if self.ray.get(self.tries.begin.remote(video)) == MAX_TRIES:
            rows: pa.Table | str = f"its worker died, {MAX_TRIES} times out of {MAX_TRIES}; the log of Ray says how."
        else:
            rows = encode_rows(self.pipe, self.folder, video, VideoFile(*file))
        if isinstance(rows, str):
            return pa.Table.from_pylist([{"video": video, "reason": rows}], RESULT)
        # As bytes: rows keep their form, whatever else is in a block of Ray's.
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        return pa.Table.from_pylist([{"video": video, "rows": sink.getvalue().to_pybytes()}], RESULT)


def _results(rows: Any) -> Iterator[tuple[str, pa.Table | str]]:
    """Each video with its rows, or with the reason why there are none."""
    for row in rows.iter_rows():
        yield row["video"], row["reason"] or pa.ipc.open_stream(row["rows"]).read_all()


def _on_device(pipe: TemporalGroundingPipeline, device: str) -> TemporalGroundingPipeline:
    """The pipeline with its model on a device; the one that was given stays where it is."""
    if pipe.device.type == device:
        return pipe
    moved: Any = copy.copy(pipe)
    moved.model = copy.deepcopy(pipe.model).to(device)  # type: ignore[arg-type]
    moved.device = moved.model.device
    return moved


__all__ = ["index_videos_on_ray"]
