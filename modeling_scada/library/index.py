"""
Encode the videos of a folder once, into an index that can be searched repeatedly.

An index is a folder. `index.json` records the videos, the model and the settings. Each `part-*.arrow` file is a shard:
an Arrow stream with one row per window, which `datasets` can read too. A shard is renamed to its final name only after
it is completely on disk, and is later replaced but never modified. A killed run therefore leaves only complete shards.
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
from .storage import EMBEDS, FORMAT, VideoFile, list_files, open_index_folder, read_shard, to_table, write_shard


# A shard is written after this number of bytes or seconds. A killed run loses the videos encoded since the last shard.
SHARD_BYTES = 64_000_000
SHARD_SECONDS = 30.0
# Number of windows per forward pass of the head.
HEAD_BATCH_SIZE = 16


class FoundVideos(NamedTuple):
    """
    Videos in a folder and its subfolders, and the entries that were skipped.

    Args:
        videos (`dict[str, VideoFile]`): Videos by path relative to the folder, sorted.
        broken (`list[dict]`): Unreadable videos and folders, each with `video` and `reason`.
        unlisted (`list[str]`): Broken links, and unreadable folders and files.
        num_other_files (`int`): Number of files without a video extension.
        num_other_links (`int`): Number of links that are broken or lead to a folder already listed.
    """

    videos: dict[str, VideoFile]
    broken: list[dict[str, str]]
    unlisted: list[str]
    num_other_files: int
    num_other_links: int


def find_videos(folder: Path) -> FoundVideos:
    """
    List the videos in a folder and its subfolders. Links are followed, and each folder is listed once.

    Args:
        folder (`Path`): Folder to search.

    Returns:
        [`FoundVideos`]: Videos and skipped entries. Files named `._*`, which macOS creates, are ignored.

    Raises:
        OSError: If the folder itself cannot be listed.
    """
    videos: dict[str, VideoFile] = {}
    broken: list[dict[str, str]] = []
    unlisted: list[str] = []
    num_other_files = num_other_links = 0
    listed: set[tuple[int, int]] = set()
    # Folders come before links, so that a linked folder keeps its own name.
    folders, links = [folder], list[Path]()
    while folders or links:
        path = folders.pop() if folders else links.pop()
        name = path.relative_to(folder).as_posix()
        try:
            facts = path.stat()
            is_new = (facts.st_dev, facts.st_ino) not in listed
            entries = sorted(os.scandir(path), key=lambda entry: entry.name) if is_new else []
        except OSError as error:
            if path == folder:
                raise
            broken.append({"video": _printable(name), "reason": f"{type(error).__name__}: {error}"})
            unlisted.append(name)
            continue
        num_other_links += not is_new
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
    """Return a file name with its invalid UTF-8 bytes escaped, such as `\\xff`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def stat_video(path: Path) -> VideoFile:
    """Return the size and modification time of a file."""
    facts = path.stat()
    return VideoFile(facts.st_size, facts.st_mtime_ns)


def _partition_index(video: str, num_parts: int) -> int:
    """Return the part of the index that a video belongs to. It depends only on the video's path."""
    return zlib.crc32(video.encode()) % num_parts


class IndexPlan(NamedTuple):
    """Work to do for an index: the number of parts, the videos to encode, and a report on the other videos."""

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
    Encode the videos of a folder and its subfolders into an index.

    A later call encodes only the videos that are new or whose size or modification time has changed, and removes
    deleted videos from the index. It also resumes a killed run. The processes of `accelerate launch` or `torchrun`
    share the videos.

    Args:
        folder (`str` or `PathLike`): Folder of the videos.
        pipe ([`TemporalGroundingPipeline`]): Pipeline that encodes the videos.
        output (`str` or `PathLike`): Folder of the index.
        shard (`tuple[int, int]`, *optional*):
            Part of the videos to index, as `(i, n)`: the `i`-th of `n` parts, `i` from 0. Other processes or machines
            index the other parts. By default all parts are indexed.
        model_name (`str`, *optional*):
            Hub id or folder of the model that `scada search` loads.
        remove_missing (`bool`, *optional*, defaults to `False`):
            Whether to remove missing videos from the index even if they are more than half of it, or were in a folder
            that cannot be listed now.

    Returns:
        `dict`: Report with the numbers of `videos` and `windows` that these parts of the index contain now, and the
        numbers of `encoded`, `kept` and `forgotten` videos. `broken` lists the unreadable videos, each with `video`
        and `reason`; the next call tries them again. `other_files` counts the files without a video extension, and
        `other_links` the links that are broken or lead to a folder already listed. With several processes, each
        process counts the videos that it encoded and the first process also counts the rest, so the reports add up.

    Raises:
        ValueError: If the index belongs to another model, other settings, other videos or another number of parts; if
            the model cannot encode videos without a sentence; or if too many videos are missing.
        OSError: If the folder does not exist, or the index cannot be written.
    """
    folder, output = Path(folder), Path(output)
    work = broadcast_from_main(lambda: plan_index(folder, pipe, output, shard, model_name, remove_missing))
    report = work.report
    if process_index():
        report |= {name: [] if name == "broken" else 0 for name in report}
    # Sorted by part, so that each shard is as full as possible.
    names = sorted(work.new, key=lambda video: (_partition_index(video, work.num_parts), video))
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
    """Open the index and remove changed and missing videos. The arguments are the same as in [`index_videos`]."""
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
    num_parts = open_index_folder(output, folder, facts, found.videos)["num_parts"]
    parts = range(num_parts) if shard is None else [shard[0]]
    files = {video: file for video, file in found.videos.items() if _partition_index(video, num_parts) in parts}
    prefixes = [_prefix(part, num_parts) for part in parts]
    for temporary in [path for prefix in prefixes for path in output.glob(f"{prefix}-*.tmp")]:
        if is_abandoned(temporary):
            temporary.unlink(missing_ok=True)
    tables = {path: read_shard(path) for prefix in prefixes for path in sorted(output.glob(f"{prefix}-*.arrow"))}
    if not remove_missing:
        _check_missing(output, folder, tables.values(), files, found.unlisted)
    report: dict[str, Any] = {"videos": 0, "windows": 0, "encoded": 0, "kept": 0, "forgotten": 0}
    # Only the first part reports the entries that belong to no part.
    is_first = shard is None or shard[0] == 0
    report["broken"] = list(found.broken) if is_first else []
    report["other_files"] = found.num_other_files if is_first else 0
    report["other_links"] = found.num_other_links if is_first else 0
    kept = _remove_stale(tables, files, report)
    report["kept"], report["videos"], report["windows"] = len(kept), len(kept), sum(kept.values())
    return IndexPlan(num_parts, {video: file for video, file in files.items() if video not in kept}, report)


def _check_missing(
    output: Path, folder: Path, tables: Iterable[pa.Table], files: dict[str, VideoFile], unlisted: list[str]
) -> None:
    """
    Check that the index would not lose videos that are only temporarily unavailable.

    Raises:
        ValueError: If more than half of the indexed videos are missing, or any in a folder that cannot be listed.
    """
    indexed = {video for table in tables for video in table.column("video").unique().to_pylist()}
    missing = sorted(indexed - files.keys())
    unlisted = [f"{path}/" for path in unlisted]
    unknown = [video for video in missing if any(f"{video}/".startswith(path) for path in unlisted)]
    if unknown or 2 * len(missing) > len(indexed):
        where = f", {len(unknown)} of them behind a broken link or in an unreadable folder" if unknown else ""
        raise ValueError(
            f"{len(missing)} of the {len(indexed)} videos in the index {output} are missing in {folder}{where}, "
            f"for example {(unknown or missing)[0]}. Check that all drives are mounted. To remove the missing videos "
            "from the index, pass `--remove_missing` (in Python `remove_missing=True`)."
        )


def _prefix(part: int, num_parts: int) -> str:
    """Return the file name prefix of a part's shards."""
    return f"part-{part:05}-of-{num_parts:05}"


def _remove_stale(tables: dict[Path, pa.Table], files: dict[str, VideoFile], report: dict[str, Any]) -> dict[str, int]:
    """
    Remove changed, missing and duplicate videos from the shards.

    Returns:
        `dict[str, int]`: Number of windows per kept video.
    """
    num_windows: dict[str, int] = {}
    for path, table in tables.items():
        rows = list_files(table)
        counts = {video: 0 for video, *_ in rows if video not in num_windows}
        keep = [video in counts and files.get(video) == (size, mtime_ns) for video, size, mtime_ns in rows]
        for (video, *_), kept in zip(rows, keep, strict=True):
            counts[video] = counts.get(video, 0) + kept
        num_windows |= {video: count for video, count in counts.items() if count}
        report["forgotten"] += len({video for (video, *_), kept in zip(rows, keep, strict=True) if not kept})
        if not any(keep):
            path.unlink(missing_ok=True)  # another process may have deleted it in the meantime
        elif not all(keep):
            write_shard(path, table.filter(pa.array(keep)))
    return num_windows


def check_can_encode(pipe: TemporalGroundingPipeline) -> None:
    """Encode a dummy frame first, to surface model errors before any video is read."""
    pipe.encode(np.zeros((1, 8, 8, 3), dtype=np.uint8), video_metadata={"duration": 1.0})


def encode_rows(pipe: TemporalGroundingPipeline, folder: Path, video: str, file: VideoFile) -> pa.Table | str:
    """Encode a video and return its rows, or an error message if the video cannot be read."""
    path = folder / video
    try:
        encoded = pipe.encode(path)
        if stat_video(path) != file:
            raise ValueError("the file changed while it was being read; index it again.")
    except INPUT_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    if (embeds := _embed_windows(pipe, encoded)) is not None:
        encoded.tensors[EMBEDS] = embeds
    return to_table(video, file, encoded)


def write_rows(encoded: Iterable[tuple[str, pa.Table | str]], total: int, output: Path, work: IndexPlan) -> None:
    """
    Write the rows of videos into new shards, and count them.

    Args:
        encoded (`Iterable[tuple[str, Table | str]]`): Videos, each with its rows or an error message.
        total (`int`): Number of videos, for the progress bar.
        output (`Path`): Folder of the index.
        work ([`IndexPlan`]): Plan whose report is updated.
    """
    finished: dict[int, list[pa.Table]] = {}
    num_bytes, flush_time, report = 0, monotonic(), work.report

    def flush() -> None:
        nonlocal num_bytes, flush_time
        for part in list(finished):
            path = output / f"{_prefix(part, work.num_parts)}-{uuid.uuid4().hex[:12]}.arrow"
            write_shard(path, pa.concat_tables(finished[part]))
            del finished[part]
        num_bytes, flush_time = 0, monotonic()

    hidden = not total or process_index() > 0
    try:
        for video, rows in tqdm(encoded, desc="Encoding", unit="video", total=total, disable=hidden):
            if isinstance(rows, str):
                report["broken"].append({"video": video, "reason": rows})
                continue
            finished.setdefault(_partition_index(video, work.num_parts), []).append(rows)
            report["encoded"] += 1
            report["videos"] += 1
            report["windows"] += rows.num_rows
            num_bytes += rows.nbytes
            if num_bytes >= SHARD_BYTES or monotonic() - flush_time >= SHARD_SECONDS:
                flush()
    finally:  # also if the run is interrupted
        flush()


@torch.no_grad()
def _embed_windows(pipe: TemporalGroundingPipeline, encoded: EncodedVideo) -> torch.Tensor | None:
    """
    Embed a sparse set of proposals of each window with the retrieval branch.

    Returns:
        `torch.Tensor` of shape `(W, P, E)`, float16: Embeddings, or `None` if the model has no retrieval branch.
    """
    model: Any = pipe.model
    if not model.config.retrieval_dim:
        return None
    proposals = sparse_proposals(model.config.grid_size, pipe.device)
    parts = [
        model.embed_proposals(
            pipe.to_features({name: tensor[start:stop] for name, tensor in encoded.tensors.items()}), proposals
        )
        for start, stop in window_ranges(len(encoded.timelines), HEAD_BATCH_SIZE)
    ]
    return torch.cat([part.half().cpu() for part in parts])


def window_ranges(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the `(start, stop)` of consecutive blocks of at most `size` that cover `range(length)`."""
    return ((start, min(start + size, length)) for start in range(0, length, size))


__all__ = ["index_videos"]
