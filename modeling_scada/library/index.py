"""
A library: the videos of a folder, encoded once, searched as often as one likes.

An index is a folder. `index.json` says what it was made of and with; each `part-*.arrow` is a shard, an Arrow stream
with a row a window, that `datasets` reads too. A shard gets its name only once it is on the disk in full, and is never
changed afterwards, only replaced: what a killed run leaves is whole.
"""

import os
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from processing.data.files import VIDEO_EXTENSIONS
from processing.encoded_video import EncodedVideo
from processing.pipeline_temporal_grounding import INPUT_ERRORS, TemporalGroundingPipeline
from processing.whole_files import is_abandoned

from ..head_scada import sparse_proposals
from .processes import broadcast_from_main, num_processes, process_index
from .storage import EMBEDS, FORMAT, VideoFile, list_files, open_index, read_shard, to_table, write_shard


# A shard is written after so many bytes or seconds; what came after the last one is lost when a run is killed.
SHARD_BYTES = 64_000_000
SHARD_SECONDS = 30.0
# Windows that go through the head together, and those whose embeddings are multiplied together.
HEAD_BATCH_SIZE = 16


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
                        videos[name] = stat_video(inside)
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


def stat_video(path: Path) -> VideoFile:
    """Size and time of a file."""
    facts = path.stat()
    return VideoFile(facts.st_size, facts.st_mtime_ns)


def partition_index(video: str, num_parts: int) -> int:
    """The part of the index that a video belongs to, whatever other videos there are."""
    return zlib.crc32(video.encode()) % num_parts


class IndexPlan(NamedTuple):
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
    work = broadcast_from_main(lambda: plan_index(folder, pipe, output, shard, model_name, remove_missing))
    report = work.report
    if process_index():
        report |= {name: [] if name == "broken" else 0 for name in report}
    # Those of a part one after another, so that a shard gets as many as it can hold.
    names = sorted(work.new, key=lambda video: (partition_index(video, work.num_parts), video))
    share = {video: work.new[video] for video in names[process_index() :: num_processes()]}
    if share:
        check_can_encode(pipe)
    encoded = ((video, encode_rows(pipe, folder, video, file)) for video, file in share.items())
    write_rows(encoded, len(share), output, work)
    return report


def plan_index(
    folder: Path,
    pipe: TemporalGroundingPipeline,
    output: Path,
    shard: tuple[int, int] | None,
    model_name: str | None,
    remove_missing: bool,
) -> IndexPlan:
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
        "made_with": pipe.fingerprint(),
        "num_parts": None if shard is None else shard[1],
    }
    num_parts = open_index(output, folder, facts, found.videos)["num_parts"]
    parts = range(num_parts) if shard is None else [shard[0]]
    files = {video: file for video, file in found.videos.items() if partition_index(video, num_parts) in parts}
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
    there = _remove_stale(tables, files, report)
    report["kept"], report["videos"], report["windows"] = len(there), len(there), sum(there.values())
    return IndexPlan(num_parts, {video: file for video, file in files.items() if video not in there}, report)


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


def _remove_stale(tables: dict[Path, pa.Table], files: dict[str, VideoFile], report: dict[str, Any]) -> dict[str, int]:
    """
    Takes out of shards what is changed, gone, or there twice.

    Returns:
        `dict[str, int]`: The windows of each video that stays.
    """
    there: dict[str, int] = {}
    for path, table in tables.items():
        rows = list_files(table)
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


def check_can_encode(pipe: TemporalGroundingPipeline) -> None:
    """Encodes a black picture, so that what is wrong with the model is not taken for that of each video."""
    pipe.encode(np.zeros((1, 8, 8, 3), dtype=np.uint8), video_metadata={"duration": 1.0})


def encode_rows(pipe: TemporalGroundingPipeline, folder: Path, video: str, file: VideoFile) -> pa.Table | str:
    """The rows of a video, or the reason why it cannot be read."""
    path = folder / video
    try:
        encoded = pipe.encode(path)
        if stat_video(path) != file:
            raise ValueError("the file has changed while it was read; index it again.")
    except INPUT_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    if (embeds := embed_windows(pipe, encoded)) is not None:
        encoded.tensors[EMBEDS] = embeds
    return to_table(video, file, encoded)


def write_rows(encoded: Iterable[tuple[str, pa.Table | str]], total: int, output: Path, work: IndexPlan) -> None:
    """
    Writes the rows of videos into new shards, and counts them.

    Args:
        encoded (`Iterable[tuple[str, Table | str]]`): Each video, with its rows or the reason why there are none.
        total (`int`): How many videos there are, for the progress.
        output (`Path`): The index's folder.
        work ([`IndexPlan`]): Whose report counts them.
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
            finished.setdefault(partition_index(video, work.num_parts), []).append(rows)
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
            pipe.to_features({name: tensor[start:stop] for name, tensor in encoded.tensors.items()}), proposals
        )
        for start, stop in _blocks(len(encoded.timelines), HEAD_BATCH_SIZE)
    ]
    return torch.cat([part.half().cpu() for part in parts])


def _blocks(length: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, length)) for start in range(0, length, size))


__all__ = ["index_videos"]
