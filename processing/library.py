"""
A library: the videos of a folder, encoded once, searched as often as one likes.

An index is a folder. `index.json` says what it was made of and with; each `part-*.arrow` is a shard, an Arrow stream
with a row a window, that `datasets` reads too. A shard gets its name only once it is on the disk in full, and is never
changed afterwards, only replaced: what a killed run leaves is whole.
"""

import json
import math
import os
import uuid
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from modeling_scada.head_scada import sparse_proposals

from .encoded_video import EncodedVideo, check_made_with
from .pipeline_temporal_grounding import INPUT_ERRORS, TemporalGroundingPipeline
from .several_processes import num_processes, of_first_process, process_index
from .timeline import Timeline
from .video_files import VIDEO_EXTENSIONS


FORMAT = "scada-library-1"
# A shard is written after so many bytes or seconds; what came after the last one is lost when a run is killed.
SHARD_BYTES = 64_000_000
SHARD_SECONDS = 30.0
# Windows that go through the head together, and those whose embeddings are multiplied together.
ASKED_TOGETHER = 16
MULTIPLIED_TOGETHER = 64
# The column of the retrieval branch's embeddings.
EMBEDS = "proposal_embeds"
# The other columns are what the model needs of a window.
FACTS = ["video", "size", "mtime_ns", "duration", "window", "start_seconds", "end_seconds"]


class VideoFile(NamedTuple):
    """A file as it was when it was looked at; with another size or time it counts as changed."""

    size: int
    mtime_ns: int


def find_videos(folder: Path) -> dict[str, VideoFile]:
    """The videos in a folder and those below it, by their paths in it, in order."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_EXTENSIONS and path.is_file())
    return {path.relative_to(folder).as_posix(): look_at(path) for path in sorted(paths)}


def look_at(path: Path) -> VideoFile:
    """Size and time of a file."""
    facts = path.stat()
    return VideoFile(facts.st_size, facts.st_mtime_ns)


def part_of(video: str, num_parts: int) -> int:
    """The part of the index that a video belongs to, whatever other videos there are."""
    return zlib.crc32(video.encode()) % num_parts


# Shards.


def write_file(path: Path, write: Any) -> Path:
    """Writes a file beside `path`, in full and to the disk; the caller gives it its name."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_shard(path: Path, table: pa.Table) -> None:
    """Writes a shard, which is there in full or not at all, whenever this is killed."""

    def write(file: Any) -> None:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())

    os.replace(write_file(path, write), path)
    _sync_folder(path.parent)


def read_shard(path: Path) -> pa.Table:
    """A shard as it lies on the disk, memory-mapped."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all().combine_chunks()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and index the videos again.") from error


def rows_of(video: str, file: VideoFile, encoded: EncodedVideo) -> pa.Table:
    """The rows of a video, one a window."""
    facts = [
        (video, *file, encoded.timelines[-1].end_seconds, window, timeline.start_seconds, timeline.end_seconds)
        for window, timeline in enumerate(encoded.timelines)
    ]
    columns = [pa.array(values) for values in zip(*facts, strict=True)]
    fields = [pa.field(name, column.type) for name, column in zip(FACTS, columns, strict=True)]
    for name, tensor in encoded.tensors.items():
        # NumPy and Arrow have no bfloat16.
        stored = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        column = pa.FixedSizeListArray.from_arrays(pa.array(stored.numpy().reshape(-1)), math.prod(tensor.shape[1:]))
        form = {"shape": json.dumps(tensor.shape[1:]), "dtype": str(tensor.dtype).removeprefix("torch.")}
        columns.append(column)
        fields.append(pa.field(name, column.type, metadata=form))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def tensor_of(table: pa.Table, name: str) -> torch.Tensor:
    """A column of a shard `(rows, ...)`, not copied: it must not be written to."""
    form = {key.decode(): value.decode() for key, value in table.schema.field(name).metadata.items()}
    values = table.column(name).chunk(0).flatten().to_numpy(zero_copy_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        tensor = torch.from_numpy(values)
    dtype = getattr(torch, form["dtype"])
    return (tensor if tensor.dtype == dtype else tensor.view(dtype)).view(table.num_rows, *json.loads(form["shape"]))


# The index.


def open_index(output: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """
    Makes the index's `index.json`, or sees whether the one that is there says the same.

    Args:
        output (`Path`): The index's folder.
        facts (`dict`): What it is to say. `num_parts` may be `None`: that of the index, or one.

    Returns:
        `dict`: What it says.

    Raises:
        ValueError: If it says something else.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / "index.json"
    if not path.exists():
        text = json.dumps(facts | {"num_parts": facts["num_parts"] or 1}, indent=2)
        temporary = write_file(path, lambda file: file.write(text.encode()))
        try:
            os.link(temporary, path)  # unlike `replace`, not over one that another process has made meanwhile
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    found = read_index(output)
    check_made_with(f"the index {output}", found["made_with"], facts["made_with"])
    for name in ("videos", "num_parts"):
        if facts[name] is not None and found[name] != facts[name]:
            raise ValueError(
                f"Received the index {output}, which was made with {name}={found[name]}, and now {name}="
                f"{facts[name]}; go on with the same, or make another index."
            )
    return found


def read_index(index: Path) -> dict[str, Any]:
    """
    What `index.json` says.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If it is one of another version.
    """
    path = index / "index.json"
    if not path.exists():
        raise FileNotFoundError(f"There is no index at {index}; make one with `scada index`.")
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts.get("format") != FORMAT:
        raise ValueError(f"Received {index}, an index of the format {facts.get('format')}; expected {FORMAT}.")
    return facts


class Work(NamedTuple):
    """What is to be done for an index: the videos to encode, and what can be said of those that are kept."""

    num_parts: int
    new: dict[str, VideoFile]
    report: dict[str, Any]


def index_videos(
    folder: str | os.PathLike,
    pipe: TemporalGroundingPipeline,
    output: str | os.PathLike,
    shard: tuple[int, int] | None = None,
    model_name: str | None = None,
) -> dict[str, Any]:
    """
    Encodes the videos of a folder, and those below it, into an index. Run again, it encodes only what is new or has
    another size or time of change, and forgets what is gone; after it was killed, it goes on. Several processes of
    `accelerate launch` or `torchrun` share the videos.

    Args:
        folder (`str` or `PathLike`): The videos.
        pipe ([`TemporalGroundingPipeline`]): With the model.
        output (`str` or `PathLike`): Folder of the index.
        shard (`tuple[int, int]`, *optional*):
            `(i, n)`: only the `i`-th of `n` parts of the videos, `i` from 0, while other processes or machines do the
            others. By default all of them, one after another.
        model_name (`str`, *optional*):
            Hub id or folder of the model, for `scada search` to load.

    Returns:
        `dict`: `videos` and `windows` that these parts of the index hold now, how many videos were `encoded`, `kept`
        and `forgotten`, and `broken`: those that could not be read, each with `video` and `reason`. They are tried
        again the next time. Each of several processes counts what it encoded, and the first what is kept and
        forgotten; together they are the whole.

    Raises:
        ValueError: If the index was made with another model, other settings, another folder or another number of
            parts; or if the model cannot encode videos without a sentence.
        OSError: If the folder is not there, or the index cannot be written.
    """
    folder, output = Path(folder), Path(output)
    work = of_first_process(lambda: plan_work(folder, pipe, output, shard, model_name))
    report = work.report
    if process_index():
        report |= {"videos": 0, "windows": 0, "kept": 0, "forgotten": 0}
    # Those of a part one after another, so that a shard gets as many as it can hold.
    names = sorted(work.new, key=lambda video: (part_of(video, work.num_parts), video))
    share = {video: work.new[video] for video in names[process_index() :: num_processes()]}
    if share:
        try_out(pipe)
    encoded = ((video, encode_rows(pipe, folder, video, file)) for video, file in share.items())
    write_rows(encoded, len(share), output, work)
    return report


def plan_work(
    folder: Path,
    pipe: TemporalGroundingPipeline,
    output: Path,
    shard: tuple[int, int] | None,
    model_name: str | None,
) -> Work:
    """Opens the index, and takes out what is changed or gone; the arguments are those of [`index_videos`]."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of videos at {folder}.")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(
            f"Received the shard {shard[0]}/{shard[1]}; expected 0/{shard[1]} to {shard[1] - 1}/{shard[1]}."
        )
    facts = {
        "format": FORMAT,
        "videos": Path(os.path.relpath(folder, output)).as_posix(),
        "model": model_name,
        "made_with": pipe.made_with(),
        "num_parts": None if shard is None else shard[1],
    }
    num_parts = open_index(output, facts)["num_parts"]
    report: dict[str, Any] = {"videos": 0, "windows": 0, "encoded": 0, "kept": 0, "forgotten": 0, "broken": []}
    parts = range(num_parts) if shard is None else [shard[0]]
    files = {video: file for video, file in find_videos(folder).items() if part_of(video, num_parts) in parts}
    there: dict[str, int] = {}
    for part in parts:
        there |= _forget(output, _prefix(part, num_parts), files, report)
    report["kept"], report["videos"], report["windows"] = len(there), len(there), sum(there.values())
    return Work(num_parts, {video: file for video, file in files.items() if video not in there}, report)


def _prefix(part: int, num_parts: int) -> str:
    """How the names of a part's shards begin."""
    return f"part-{part:05}-of-{num_parts:05}"


def _forget(output: Path, prefix: str, files: dict[str, VideoFile], report: dict[str, Any]) -> dict[str, int]:
    """
    Takes out of a part's shards what is changed, gone, or there twice, and what a killed run left half-written.

    Returns:
        `dict[str, int]`: The windows of each video that stays.
    """
    for temporary in output.glob(f"{prefix}-*.tmp"):
        temporary.unlink()
    there: dict[str, int] = {}
    for path in sorted(output.glob(f"{prefix}-*.arrow")):
        table = read_shard(path)
        columns = [table.column(name).to_pylist() for name in ("video", "size", "mtime_ns")]
        rows = list(zip(*columns, strict=True))
        counts = {video: 0 for video, *_ in rows if video not in there}
        keep = [video in counts and files.get(video) == (size, mtime_ns) for video, size, mtime_ns in rows]
        for (video, *_), kept in zip(rows, keep, strict=True):
            counts[video] = counts.get(video, 0) + kept
        there |= {video: count for video, count in counts.items() if count}
        report["forgotten"] += len({video for (video, *_), kept in zip(rows, keep, strict=True) if not kept})
        if not any(keep):
            path.unlink()
        elif not all(keep):
            write_shard(path, table.filter(pa.array(keep)))
    return there


def try_out(pipe: TemporalGroundingPipeline) -> None:
    """Encodes a black picture, so that what is wrong with the model is not taken for that of each video."""
    pipe.encode(np.zeros((1, 8, 8, 3), dtype=np.uint8), video_metadata={"duration": 1.0})


def encode_rows(pipe: TemporalGroundingPipeline, folder: Path, video: str, file: VideoFile) -> pa.Table | str:
    """The rows of a video, or the reason why it cannot be read."""
    path = folder / video
    try:
        encoded = pipe.encode(path)
        if look_at(path) != file:
            raise ValueError("the file has changed while it was read; index it again.")
    except INPUT_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    if (embeds := embed_windows(pipe, encoded)) is not None:
        encoded.tensors[EMBEDS] = embeds
    return rows_of(video, file, encoded)


def write_rows(encoded: Iterable[tuple[str, pa.Table | str]], total: int, output: Path, work: Work) -> None:
    """
    Writes the rows of videos into new shards, and counts them.

    Args:
        encoded (`Iterable[tuple[str, Table | str]]`): Each video, with its rows or the reason why there are none.
        total (`int`): How many videos there are, for the progress.
        output (`Path`): The index's folder.
        work ([`Work`]): Whose report counts them.
    """
    finished: dict[int, list[pa.Table]] = {}
    num_bytes, since, report = 0, monotonic(), work.report

    def flush() -> None:
        nonlocal num_bytes, since
        for part, tables in finished.items():
            path = output / f"{_prefix(part, work.num_parts)}-{uuid.uuid4().hex[:12]}.arrow"
            write_shard(path, pa.concat_tables(tables))
        finished.clear()
        num_bytes, since = 0, monotonic()

    hidden = not total or process_index() > 0
    for video, rows in tqdm(encoded, desc="Encoding", unit="video", total=total, disable=hidden):
        if isinstance(rows, str):
            report["broken"].append({"video": video, "reason": rows})
            continue
        finished.setdefault(part_of(video, work.num_parts), []).append(rows)
        report["encoded"] += 1
        report["videos"] += 1
        report["windows"] += rows.num_rows
        num_bytes += rows.nbytes
        if num_bytes >= SHARD_BYTES or monotonic() - since >= SHARD_SECONDS:
            flush()
    flush()


@torch.no_grad()
def embed_windows(pipe: TemporalGroundingPipeline, encoded: EncodedVideo) -> torch.Tensor | None:
    """The embeddings `(W, P, E)` of some of the proposals, in half precision; `None` without a retrieval branch."""
    model: Any = pipe.model
    if not model.config.retrieval_dim:
        return None
    proposals = sparse_proposals(model.config.grid_size, pipe.device)
    parts = [
        model.embed_proposals(
            pipe.features_of({name: tensor[start:stop] for name, tensor in encoded.tensors.items()}), proposals
        )
        for start, stop in _blocks(len(encoded.timelines), ASKED_TOGETHER)
    ]
    return torch.cat([part.half().cpu() for part in parts])


# Search.


class Library:
    """
    An index, opened for search. Its rows are the windows, those of a video one after another.

    Args:
        index (`str` or `PathLike`): Folder of the index.

    Raises:
        FileNotFoundError, ValueError: If there is no index, or it is damaged or of another version.
    """

    def __init__(self, index: str | os.PathLike):
        self.path = Path(index)
        self.facts = read_index(self.path)
        self.tables = [read_shard(path) for path in sorted(self.path.glob("part-*.arrow"))]
        found: list[tuple[str, int, int, int]] = []
        shard_of_video: dict[str, int] = {}
        for number, table in enumerate(self.tables):
            videos, windows = (table.column(name).to_pylist() for name in ("video", "window"))
            for row, (video, window) in enumerate(zip(videos, windows, strict=True)):
                # Where two processes have encoded the same video, it counts once.
                if shard_of_video.setdefault(video, number) == number:
                    found.append((video, window, number, row))
        found.sort()
        self.videos = [video for video, *_ in found]
        self.places = np.array([place for _, _, *place in found], dtype=np.int64).reshape(-1, 2)
        # What the rows hold, by shard, as it lies on the disk.
        names = [name for name in self.tables[0].column_names if name not in FACTS] if self.tables else []
        self.columns = {name: [tensor_of(table, name) for table in self.tables] for name in names}
        starts, ends = (
            [table.column(name).to_numpy() for table in self.tables] for name in ("start_seconds", "end_seconds")
        )
        self.timelines = [
            Timeline(float(starts[number][row]), float(ends[number][row])) for number, row in self.places.tolist()
        ]

    def path_of(self, video: str) -> str:
        """Where the file of a video is."""
        return os.path.normpath(self.path / self.facts["videos"] / video)

    def tensors(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Copies of what the model needs of some windows."""
        places = self.places[rows].tolist()
        return {
            name: torch.stack([column[number][row] for number, row in places])
            for name, column in self.columns.items()
            if name != EMBEDS
        }

    def best_products(self, sentence_embeds: torch.Tensor) -> torch.Tensor:
        """
        Args:
            sentence_embeds (`torch.Tensor` of shape `(Q, E)`): Of the retrieval branch.

        Returns:
            `torch.Tensor` of shape `(Q, rows)`: The product with that proposal of each window which fits best.
        """
        by_table = []
        for embeds in self.columns[EMBEDS]:
            products = [
                (embeds[start:stop].float() @ sentence_embeds.T).amax(1)
                for start, stop in _blocks(len(embeds), MULTIPLIED_TOGETHER)
            ]
            by_table.append(torch.cat(products))
        starts = np.cumsum([0, *map(len, by_table)])
        return torch.cat(by_table)[torch.from_numpy(starts[self.places[:, 0]] + self.places[:, 1])].T


@torch.no_grad()
def search(
    index: "str | os.PathLike | Library",
    sentences: list[str],
    pipe: TemporalGroundingPipeline,
    top_k: int = 10,
    num_candidates: int = 200,
) -> list[dict[str, Any]]:
    """
    Finds the moments in all videos of a library that sentences describe. With a retrieval branch, its product ranks
    the windows, and the head then looks at the best of them; without, it looks at all.

    Args:
        index (`str`, `PathLike` or [`Library`]): The index.
        sentences (`list[str]`): What to look for.
        pipe ([`TemporalGroundingPipeline`]): With the model that the index was made with.
        top_k (`int`, *optional*, defaults to 10): At most so many segments a sentence, of all videos together.
        num_candidates (`int`, *optional*, defaults to 200): Windows that the head looks at, for each sentence.

    Returns:
        `list[dict]`: For each sentence itself and its `segments`, `{"video", "score", "start", "end"}`, best first.
        `video` is the path of the file; times are in seconds from its first frame. With `found` if the processor has
        a threshold for it.

    Raises:
        ValueError: If the index was made with another model or other settings, or there is no sentence.
        FileNotFoundError: If there is no index.
    """
    if num_candidates < 1:
        raise ValueError(f"Received num_candidates={num_candidates}; expected a positive number of windows.")
    library = index if isinstance(index, Library) else Library(index)
    check_made_with(f"the index {library.path}", library.facts["made_with"], pipe.made_with())
    encoded = pipe.processor.encode_text([sentences])  # refuses what is no sentence
    rows = [np.arange(len(library.videos))] * len(sentences)
    model: Any = pipe.model
    if model.config.retrieval_dim and len(library.videos) > num_candidates:
        tokens = [torch.from_numpy(encoded[name][0]).to(pipe.device) for name in ("input_ids", "attention_mask")]
        with pipe.get_inference_context()():
            embeds = model.embed_sentences(*tokens).float().cpu()
        products = library.best_products(embeds)
        rows = [np.sort(best.numpy()) for best in products.topk(num_candidates).indices]
    results = []
    for sentence, of_sentence in zip(sentences, rows, strict=True):
        found: list[dict[str, Any]] = [
            {"video": library.path_of(video), **segment}
            for video, result in _ground(library, of_sentence, sentence, pipe, top_k)
            for segment in pipe.segments_of(result)
        ]
        found.sort(key=lambda segment: -segment["score"])
        results.append({"sentence": sentence, "segments": found[:top_k]})
    return results


def _ground(
    library: Library, rows: np.ndarray, sentence: str, pipe: TemporalGroundingPipeline, top_k: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The segments of each video of some windows, in order; those of one batch and one video in memory."""
    pending: list[dict[str, torch.Tensor]] = []
    waiting: list[int] = []

    def finish() -> tuple[str, dict[str, np.ndarray]]:
        outputs = {name: torch.cat([one[name] for one in pending]) for name in pending[0]}
        timelines = [library.timelines[row] for row in waiting]
        ((result,),) = pipe.processor.post_process_temporal_grounding(
            outputs, timelines, top_k=top_k, merge_windows=True
        )
        video = library.videos[waiting[0]]
        pending.clear()
        waiting.clear()
        return video, result

    for start, stop in _blocks(len(rows), ASKED_TOGETHER):
        outputs = pipe.ask_windows(library.tensors(rows[start:stop]), [sentence])
        for place, row in enumerate(rows[start:stop]):
            if waiting and library.videos[row] != library.videos[waiting[0]]:
                yield finish()
            pending.append({name: tensor[place : place + 1] for name, tensor in outputs.items()})
            waiting.append(row)
    if waiting:
        yield finish()


def _blocks(length: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, length)) for start in range(0, length, size))


__all__ = ["Library", "index_videos", "search"]
