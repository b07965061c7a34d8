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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from modeling_scada.head_scada import sparse_proposals

from .encoded_video import EncodedVideo, check_made_with
from .pipeline_temporal_grounding import INPUT_ERRORS, TemporalGroundingPipeline, as_sentences
from .several_processes import num_processes, of_first_process, process_index
from .timeline import Timeline
from .video_files import VIDEO_EXTENSIONS
from .whole_files import is_abandoned, write_temporary, write_whole


FORMAT = "scada-library-1"
# A shard is written after so many bytes or seconds; what came after the last one is lost when a run is killed.
SHARD_BYTES = 64_000_000
SHARD_SECONDS = 30.0
# The last bytes of an Arrow stream. One that is cut off between two of its parts can be read without an error.
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
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


class FoundVideos(NamedTuple):
    """
    The videos in a folder and in those below it, and what is no video or could not be read.

    Args:
        videos (`dict[str, VideoFile]`): By their paths in the folder, in order.
        broken (`list[dict]`): Videos and folders that cannot be read or indexed, each with `video` and `reason`.
        unlisted (`list[str]`): Links that lead nowhere, and folders and files that cannot be read.
        num_other_files (`int`): How many files have no extension of a video.
        num_other_links (`int`): How many links lead nowhere, or to a folder that was listed already.
    """

    videos: dict[str, VideoFile]
    broken: list[dict[str, str]]
    unlisted: list[str]
    num_other_files: int
    num_other_links: int


def find_videos(folder: Path) -> FoundVideos:
    """
    Lists the videos in a folder and in those below it. Linked files and folders count, each folder once.

    Args:
        folder (`Path`): The folder.

    Returns:
        [`FoundVideos`]: The videos, and what was passed over. Files named `._*`, which macOS makes, are not mentioned.

    Raises:
        OSError: If the folder itself cannot be listed.
    """
    videos: dict[str, VideoFile] = {}
    broken: list[dict[str, str]] = []
    unlisted: list[str] = []
    num_other_files = num_other_links = 0
    listed: set[tuple[int, int]] = set()
    # Folders before links: a folder that is also linked keeps its own name.
    folders, links = [folder], list[Path]()
    while folders or links:
        path = folders.pop() if folders else links.pop()
        name = path.relative_to(folder).as_posix()
        try:
            facts = path.stat()
            entries = (
                [] if (facts.st_dev, facts.st_ino) in listed else sorted(os.scandir(path), key=lambda one: one.name)
            )
        except OSError as error:
            if path == folder:
                raise
            broken.append({"video": _printable(name), "reason": f"{type(error).__name__}: {error}"})
            unlisted.append(name)
            continue
        num_other_links += (facts.st_dev, facts.st_ino) in listed
        listed.add((facts.st_dev, facts.st_ino))
        below: list[Path] = []
        for entry in entries:
            inside = path / entry.name
            name = inside.relative_to(folder).as_posix()
            try:
                is_folder = entry.is_dir()
                if is_folder:
                    (links if entry.is_symlink() else below).append(inside)
                elif entry.is_symlink() and not inside.exists():
                    num_other_links += 1
                    unlisted.append(name)
                elif not entry.name.startswith("._"):
                    if inside.suffix.lower() not in VIDEO_EXTENSIONS or not entry.is_file():
                        num_other_files += 1
                    else:
                        name.encode()
                        videos[name] = look_at(inside)
            except UnicodeEncodeError:
                broken.append({"video": _printable(name), "reason": "its name is not UTF-8; rename it."})
            except OSError as error:
                broken.append({"video": _printable(name), "reason": f"{type(error).__name__}: {error}"})
                unlisted.append(name)
        folders += reversed(below)
        links.sort(reverse=True)
    return FoundVideos(dict(sorted(videos.items())), broken, unlisted, num_other_files, num_other_links)


def _printable(name: str) -> str:
    """A name with the bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def look_at(path: Path) -> VideoFile:
    """Size and time of a file."""
    facts = path.stat()
    return VideoFile(facts.st_size, facts.st_mtime_ns)


def part_of(video: str, num_parts: int) -> int:
    """The part of the index that a video belongs to, whatever other videos there are."""
    return zlib.crc32(video.encode()) % num_parts


# Shards.


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

    write_whole(path, write)
    _sync_folder(path.parent)


def read_shard(path: Path) -> pa.Table:
    """
    A shard as it lies on the disk, memory-mapped.

    Raises:
        ValueError: If it is damaged, or copied in part.
    """
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - len(END_OF_STREAM)))
        is_whole = file.read() == END_OF_STREAM
    try:
        if not is_whole:
            raise pa.ArrowInvalid("its end is missing")
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all().combine_chunks()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} is damaged or was copied in part ({error}); copy it again, or delete it and run "
            "`scada index` again."
        ) from error


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


def open_index(output: Path, folder: Path, facts: dict[str, Any], files: dict[str, VideoFile]) -> dict[str, Any]:
    """
    Makes the index's `index.json`, or checks whether the one that exists says the same. Another model's name with the
    same weights, and another folder with the same videos, replace those before.

    Args:
        output (`Path`): The index's folder.
        folder (`Path`): The videos.
        facts (`dict`): What it is to say. `num_parts` may be `None`: that of the index, or one. `model` may be `None`.
        files (`dict[str, VideoFile]`): All videos in the folder.

    Returns:
        `dict`: What it says.

    Raises:
        ValueError: If it was made with something else.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / "index.json"
    if not path.exists():
        content = json.dumps(facts | {"num_parts": facts["num_parts"] or 1}, indent=2).encode()
        with write_temporary(path, lambda file: file.write(content)) as temporary:
            try:
                os.link(temporary, path)  # unlike `replace`, not over one that another process has made meanwhile
            except FileExistsError:
                pass
    found = read_index(output)
    check_made_with(f"the index {output}", found["made_with"], facts["made_with"])
    if facts["num_parts"] not in (None, found["num_parts"]):
        raise ValueError(
            f"Received the index {output}, which was made with num_parts={found['num_parts']}, and now num_parts="
            f"{facts['num_parts']}; go on with the same, or make another index."
        )
    if os.path.realpath(folder) != folder_of(output, found):
        rows = [row for shard in output.glob("part-*.arrow") for row in set(files_of(read_shard(shard)))]
        if other := sorted({video for video, *file in rows if files.get(video) != tuple(file)}):
            raise ValueError(
                f"Received the index {output}, which was made with videos={found['videos']}, and now videos="
                f"{facts['videos']}, where {len(other)} of its videos are missing or have another size or time of "
                f"change, {other[0]} for example. Name the same folder or a copy that keeps the times, or make "
                "another index."
            )
    current = found | {"videos": facts["videos"], "model": facts["model"] or found["model"]}
    if current != found:
        content = json.dumps(current, indent=2).encode()
        write_whole(path, lambda file: file.write(content))
    return current


def folder_of(index: Path, facts: dict[str, Any]) -> str:
    """The folder of an index's videos, absolute and without links in its path."""
    return os.path.realpath(os.path.join(os.path.realpath(index), facts["videos"]))


def files_of(table: pa.Table) -> list[tuple[str, int, int]]:
    """Path, size and time of the video of each row."""
    return list(zip(*(table.column(name).to_pylist() for name in ("video", "size", "mtime_ns")), strict=True))


def read_index(index: Path) -> dict[str, Any]:
    """
    What `index.json` says.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If it is damaged or one of another version.
    """
    path = index / "index.json"
    if not path.exists():
        raise FileNotFoundError(f"There is no index at {index}; make one with `scada index`.")
    damaged = "copy it again, or run `scada index` with another --output."
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {damaged}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(facts).__name__}, and no object; {damaged}")
    if facts.get("format") != FORMAT:
        raise ValueError(f"Received {index}, an index of the format {facts.get('format')}; expected {FORMAT}.")
    if missing := {"videos", "model", "made_with", "num_parts"} - facts.keys():
        raise ValueError(f"{path} is damaged: {', '.join(sorted(missing))} is missing; {damaged}")
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
    remove_missing: bool = False,
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
        remove_missing (`bool`, *optional*, defaults to `False`):
            Whether to forget videos that are gone even if they are more than half of the index, or lie in a folder
            that cannot be listed.

    Returns:
        `dict`: `videos` and `windows` that these parts of the index hold now, how many videos were `encoded`, `kept`
        and `forgotten`, and `broken`: those that could not be read, each with `video` and `reason`. They are tried
        again the next time. `other_files` have no extension of a video, and `other_links` lead nowhere or to a folder
        that was listed already. Each of several processes counts what it encoded, and the first the rest; together
        they are the whole.

    Raises:
        ValueError: If the index was made with another model, other settings, other videos or another number of
            parts; if the model cannot encode videos without a sentence; or if too many videos are gone.
        OSError: If the folder is not there, or the index cannot be written.
    """
    folder, output = Path(folder), Path(output)
    work = of_first_process(lambda: plan_work(folder, pipe, output, shard, model_name, remove_missing))
    report = work.report
    if process_index():
        report |= {name: [] if name == "broken" else 0 for name in report}
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
    remove_missing: bool,
) -> Work:
    """Opens the index, and takes out what is changed or gone; the arguments are those of [`index_videos`]."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of videos at {folder}.")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(
            f"Received the shard {shard[0]}/{shard[1]}; expected 0/{shard[1]} to {shard[1] - 1}/{shard[1]}."
        )
    found = find_videos(folder)
    facts = {
        "format": FORMAT,
        "videos": Path(os.path.relpath(os.path.realpath(folder), os.path.realpath(output))).as_posix(),
        "model": model_name,
        "made_with": pipe.made_with(),
        "num_parts": None if shard is None else shard[1],
    }
    num_parts = open_index(output, folder, facts, found.videos)["num_parts"]
    parts = range(num_parts) if shard is None else [shard[0]]
    files = {video: file for video, file in found.videos.items() if part_of(video, num_parts) in parts}
    prefixes = [_prefix(part, num_parts) for part in parts]
    for temporary in [path for prefix in prefixes for path in output.glob(f"{prefix}-*.tmp")]:
        if is_abandoned(temporary):
            temporary.unlink(missing_ok=True)
    tables = {path: read_shard(path) for prefix in prefixes for path in sorted(output.glob(f"{prefix}-*.arrow"))}
    if not remove_missing:
        _check_missing(output, folder, tables.values(), files, found.unlisted)
    report: dict[str, Any] = {"videos": 0, "windows": 0, "encoded": 0, "kept": 0, "forgotten": 0}
    # The parts share what has no part.
    is_first = shard is None or shard[0] == 0
    report["broken"] = list(found.broken) if is_first else []
    report["other_files"] = found.num_other_files if is_first else 0
    report["other_links"] = found.num_other_links if is_first else 0
    there = _forget(tables, files, report)
    report["kept"], report["videos"], report["windows"] = len(there), len(there), sum(there.values())
    return Work(num_parts, {video: file for video, file in files.items() if video not in there}, report)


def _check_missing(
    output: Path, folder: Path, tables: Iterable[pa.Table], files: dict[str, VideoFile], unlisted: list[str]
) -> None:
    """
    Checks whether an index is to lose what may not be gone.

    Raises:
        ValueError: If more than half of its videos are missing, or some whose folder cannot be listed.
    """
    indexed = {video for table in tables for video in table.column("video").unique().to_pylist()}
    missing = sorted(indexed - files.keys())
    unlisted = [f"{path}/" for path in unlisted]
    unknown = [video for video in missing if any(f"{video}/".startswith(path) for path in unlisted)]
    if unknown or 2 * len(missing) > len(indexed):
        where = f", {len(unknown)} of them where a link leads nowhere or a folder cannot be read" if unknown else ""
        raise ValueError(
            f"{len(missing)} of the {len(indexed)} videos in the index {output} are missing in {folder}{where}, "
            f"{(unknown or missing)[0]} for example. Check whether a drive is not mounted. `--remove_missing` (in "
            "Python `remove_missing=True`) removes them from the index."
        )


def _prefix(part: int, num_parts: int) -> str:
    """How the names of a part's shards begin."""
    return f"part-{part:05}-of-{num_parts:05}"


def _forget(tables: dict[Path, pa.Table], files: dict[str, VideoFile], report: dict[str, Any]) -> dict[str, int]:
    """
    Takes out of shards what is changed, gone, or there twice.

    Returns:
        `dict[str, int]`: The windows of each video that stays.
    """
    there: dict[str, int] = {}
    for path, table in tables.items():
        rows = files_of(table)
        counts = {video: 0 for video, *_ in rows if video not in there}
        keep = [video in counts and files.get(video) == (size, mtime_ns) for video, size, mtime_ns in rows]
        for (video, *_), kept in zip(rows, keep, strict=True):
            counts[video] = counts.get(video, 0) + kept
        there |= {video: count for video, count in counts.items() if count}
        report["forgotten"] += len({video for (video, *_), kept in zip(rows, keep, strict=True) if not kept})
        if not any(keep):
            path.unlink(missing_ok=True)  # another process may have deleted it meanwhile
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
        for part in list(finished):
            path = output / f"{_prefix(part, work.num_parts)}-{uuid.uuid4().hex[:12]}.arrow"
            write_shard(path, pa.concat_tables(finished[part]))
            del finished[part]
        num_bytes, since = 0, monotonic()

    hidden = not total or process_index() > 0
    try:
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
    finally:  # of an interrupted run, too
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
        video_root (`str` or `PathLike`, *optional*):
            Folder of the videos; by default where they were when the index was made, relative to it.

    Raises:
        FileNotFoundError, ValueError: If there is no index or no such folder, or the index is damaged or of another
            version.
    """

    def __init__(self, index: str | os.PathLike, video_root: str | os.PathLike | None = None):
        self.path = Path(index)
        self.facts = read_index(self.path)
        if video_root is not None and not os.path.isdir(video_root):
            raise FileNotFoundError(f"There is no folder of videos at {video_root}.")
        self.has_own_folder = video_root is None
        self.folder = os.path.normpath(video_root or folder_of(self.path, self.facts))
        if video_root is None and not self.path.is_absolute():
            self.folder = os.path.relpath(self.folder)
        self.tables = [read_shard(path) for path in sorted(self.path.glob("part-*.arrow"))]
        found: list[tuple[str, int, int, int]] = []
        shard_of_video: dict[str, int] = {}
        self.files: dict[str, VideoFile] = {}
        for number, table in enumerate(self.tables):
            windows = table.column("window").to_pylist()
            for row, ((video, *file), window) in enumerate(zip(files_of(table), windows, strict=True)):
                # Where two processes have encoded the same video, it counts once.
                if shard_of_video.setdefault(video, number) == number:
                    self.files[video] = VideoFile(*file)
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
        return os.path.normpath(os.path.join(self.folder, video))

    def missing_videos(self) -> list[str]:
        """The paths of the videos whose files are not where they should be."""
        paths = (self.path_of(video) for video in dict.fromkeys(self.videos))
        return [path for path in paths if not os.path.isfile(path)]

    def changed_videos(self) -> list[str]:
        """
        The paths of the videos whose files have another size or time of change than when they were indexed.

        In a `video_root`, sizes alone are compared, since a copy may have other times.
        """
        changed = []
        for video, file in sorted(self.files.items()):
            path = self.path_of(video)
            try:
                found = look_at(Path(path))
            except OSError:
                continue  # `missing_videos` names it
            if found.size != file.size or (self.has_own_folder and found != file):
                changed.append(path)
        return changed

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
    sentences: str | list[str],
    pipe: TemporalGroundingPipeline,
    top_k: int = 10,
    num_candidates: int = 200,
    nms: float | None = 0.5,
    progress: Callable[[float], Any] | None = None,
) -> list[dict[str, Any]]:
    """
    Finds the moments in all videos of a library that sentences describe. With a retrieval branch, its product ranks
    the windows, and the head then looks at the best of them; without, it looks at all.

    Args:
        index (`str`, `PathLike` or [`Library`]): The index.
        sentences (`str` or `list[str]`): What to look for, a sentence or several.
        pipe ([`TemporalGroundingPipeline`]): With the model that the index was made with.
        top_k (`int`, *optional*, defaults to 10): At most so many segments a sentence, of all videos together.
        num_candidates (`int`, *optional*, defaults to 200): Windows that the head looks at, for each sentence.
        nms (`float`, *optional*, defaults to 0.5):
            Width of the decay of soft non-maximum suppression in each video; `None` ranks by score alone.
        progress (`Callable`, *optional*):
            Called with the share of the windows that the head has looked at, from 0 to 1.

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
    sentences = as_sentences(sentences)
    encoded = pipe.processor.encode_text([sentences])
    rows = [np.arange(len(library.videos))] * len(sentences)
    model: Any = pipe.model
    if model.config.retrieval_dim and len(library.videos) > num_candidates:
        tokens = [torch.from_numpy(encoded[name][0]).to(pipe.device) for name in ("input_ids", "attention_mask")]
        with pipe.get_inference_context()():
            embeds = model.embed_sentences(*tokens).float().cpu()
        products = library.best_products(embeds)
        rows = [np.sort(best.numpy()) for best in products.topk(num_candidates).indices]
    results: list[dict[str, Any]] = []
    for sentence, of_sentence in zip(sentences, rows, strict=True):

        def say_share(share: float, num_before: int = len(results)) -> None:
            if progress is not None:
                progress((num_before + share) / len(sentences))

        found: list[dict[str, Any]] = [
            {"video": library.path_of(video), **segment}
            for video, result in _ground(library, of_sentence, sentence, pipe, top_k, nms, say_share)
            for segment in pipe.segments_of(result)
        ]
        found.sort(key=lambda segment: -segment["score"])
        results.append({"sentence": sentence, "segments": found[:top_k]})
    return results


def _ground(
    library: Library,
    rows: np.ndarray,
    sentence: str,
    pipe: TemporalGroundingPipeline,
    top_k: int,
    nms: float | None,
    progress: Callable[[float], None],
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The segments of each video of some windows, in order; those of one batch and one video in memory."""
    pending: list[dict[str, torch.Tensor]] = []
    waiting: list[int] = []

    def finish() -> tuple[str, dict[str, np.ndarray]]:
        outputs = {name: torch.cat([one[name] for one in pending]) for name in pending[0]}
        timelines = [library.timelines[row] for row in waiting]
        ((result,),) = pipe.processor.post_process_temporal_grounding(
            outputs, timelines, top_k=top_k, nms=nms, merge_windows=True
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
        progress(stop / len(rows))
    if waiting:
        yield finish()


def _blocks(length: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, length)) for start in range(0, length, size))


__all__ = ["Library", "index_videos", "search"]
