"""Read and write the files of an index: its description `index.json`, and its rows as Arrow tables."""

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from processing.encoded_video import EncodedVideo
from processing.fingerprint import check_fingerprint
from processing.whole_files import write_temporary, write_whole


FORMAT = "scada-library-1"
# Last bytes of an Arrow stream. Arrow reads a stream truncated between two messages without an error.
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
# Column of the retrieval branch's embeddings.
EMBEDS = "proposal_embeds"
# Columns that describe a window. All other columns are its encoded tensors.
FACTS = ["video", "size", "mtime_ns", "duration", "window", "start_seconds", "end_seconds"]


class VideoFile(NamedTuple):
    """Size and modification time of a video file. A file with another size or time counts as changed."""

    size: int
    mtime_ns: int


def _sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_shard(path: Path, table: pa.Table) -> None:
    """Write a shard atomically: a killed process leaves the complete shard or no shard."""

    def write(file: Any) -> None:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())

    write_whole(path, write)
    _sync_folder(path.parent)


def read_shard(path: Path) -> pa.Table:
    """
    Read a shard, memory-mapped.

    Raises:
        ValueError: If the shard is corrupt or truncated.
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


def to_table(video: str, file: VideoFile, encoded: EncodedVideo) -> pa.Table:
    """Return the rows of a video, one per window."""
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
        metadata = {"shape": json.dumps(tensor.shape[1:]), "dtype": str(tensor.dtype).removeprefix("torch.")}
        columns.append(column)
        fields.append(pa.field(name, column.type, metadata=metadata))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def to_tensor(table: pa.Table, name: str) -> torch.Tensor:
    """Return a column of a shard as a tensor `(rows, ...)`. It shares the read-only memory of the shard."""
    metadata = {key.decode(): value.decode() for key, value in table.schema.field(name).metadata.items()}
    values = table.column(name).chunk(0).flatten().to_numpy(zero_copy_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        tensor = torch.from_numpy(values)
    dtype, shape = getattr(torch, metadata["dtype"]), json.loads(metadata["shape"])
    return (tensor if tensor.dtype == dtype else tensor.view(dtype)).view(table.num_rows, *shape)


def open_index_folder(
    output: Path, folder: Path, facts: dict[str, Any], files: dict[str, VideoFile]
) -> dict[str, Any]:
    """
    Create `index.json`, or check that the existing file agrees with `facts`.

    A new model name with the same weights, or a new folder with the same videos, replaces the recorded value.

    Args:
        output (`Path`): Folder of the index.
        folder (`Path`): Folder of the videos.
        facts (`dict`):
            Contents of `index.json`. `num_parts=None` stands for the number of the existing index, or 1. `model` may
            be `None`.
        files (`dict[str, VideoFile]`): All videos in the folder.

    Returns:
        `dict`: Contents of `index.json` after the call.

    Raises:
        ValueError: If the index was made with another model, other settings, other videos or another number of parts.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / "index.json"
    if not path.exists():
        content = json.dumps(facts | {"num_parts": facts["num_parts"] or 1}, indent=2).encode()
        with write_temporary(path, lambda file: file.write(content)) as temporary:
            try:
                os.link(temporary, path)  # unlike `replace`, it never overwrites another process's file
            except FileExistsError:
                pass
    found = read_index(output)
    check_fingerprint(f"the index {output}", found["made_with"], facts["made_with"])
    if facts["num_parts"] not in (None, found["num_parts"]):
        raise ValueError(
            f"The index {output} was made with num_parts={found['num_parts']}; received num_parts="
            f"{facts['num_parts']}. Use the same number, or create another index."
        )
    if os.path.realpath(folder) != find_videos_folder(output, found):
        rows = [row for shard in output.glob("part-*.arrow") for row in set(list_files(read_shard(shard)))]
        if other := sorted({video for video, *file in rows if files.get(video) != tuple(file)}):
            raise ValueError(
                f"The index {output} was made with videos={found['videos']}; received videos={facts['videos']}, where "
                f"{len(other)} of its videos are missing or have another size or modification time, for example "
                f"{other[0]}. Use the same folder or a copy that preserves the times, or create another index."
            )
    current = found | {"videos": facts["videos"], "model": facts["model"] or found["model"]}
    if current != found:
        content = json.dumps(current, indent=2).encode()
        write_whole(path, lambda file: file.write(content))
    return current


def find_videos_folder(index: Path, facts: dict[str, Any]) -> str:
    """Return the absolute folder of an index's videos, with links resolved."""
    return os.path.realpath(os.path.join(os.path.realpath(index), facts["videos"]))


def list_files(table: pa.Table) -> list[tuple[str, int, int]]:
    """Return the path, size and modification time of each row's video."""
    return list(zip(*(table.column(name).to_pylist() for name in ("video", "size", "mtime_ns")), strict=True))


def read_index(index: Path) -> dict[str, Any]:
    """
    Read `index.json`.

    Raises:
        FileNotFoundError: If the index does not exist.
        ValueError: If the file is corrupt, or was written by an incompatible version.
    """
    path = index / "index.json"
    if not path.exists():
        raise FileNotFoundError(f"There is no index at {index}; make one with `scada index`.")
    hint = "copy it again, or run `scada index` with another --output."
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {hint}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged: it contains a {type(facts).__name__} instead of an object; {hint}")
    if facts.get("format") != FORMAT:
        raise ValueError(f"The index {index} has the format {facts.get('format')}; expected {FORMAT}.")
    if missing := {"videos", "model", "made_with", "num_parts"} - facts.keys():
        raise ValueError(f"{path} is damaged: {', '.join(sorted(missing))} is missing; {hint}")
    return facts
