"""Files of an index: its description, and its rows as Arrow tables."""

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from processing.encoded_video import EncodedVideo, check_fingerprint
from processing.whole_files import write_temporary, write_whole


FORMAT = "scada-library-1"
# The last bytes of an Arrow stream. One that is cut off between two of its parts can be read without an error.
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
# The column of the retrieval branch's embeddings.
EMBEDS = "proposal_embeds"
# The other columns are what the model needs of a window.
FACTS = ["video", "size", "mtime_ns", "duration", "window", "start_seconds", "end_seconds"]


class VideoFile(NamedTuple):
    """A file as it was when it was looked at; with another size or time it counts as changed."""

    size: int
    mtime_ns: int


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


def to_table(video: str, file: VideoFile, encoded: EncodedVideo) -> pa.Table:
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


def to_tensor(table: pa.Table, name: str) -> torch.Tensor:
    """A column of a shard `(rows, ...)`, not copied: it must not be written to."""
    form = {key.decode(): value.decode() for key, value in table.schema.field(name).metadata.items()}
    values = table.column(name).chunk(0).flatten().to_numpy(zero_copy_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        tensor = torch.from_numpy(values)
    dtype = getattr(torch, form["dtype"])
    return (tensor if tensor.dtype == dtype else tensor.view(dtype)).view(table.num_rows, *json.loads(form["shape"]))


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
    check_fingerprint(f"the index {output}", found["made_with"], facts["made_with"])
    if facts["num_parts"] not in (None, found["num_parts"]):
        raise ValueError(
            f"Received the index {output}, which was made with num_parts={found['num_parts']}, and now num_parts="
            f"{facts['num_parts']}; go on with the same, or make another index."
        )
    if os.path.realpath(folder) != find_videos_folder(output, found):
        rows = [row for shard in output.glob("part-*.arrow") for row in set(list_files(read_shard(shard)))]
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


def find_videos_folder(index: Path, facts: dict[str, Any]) -> str:
    """The folder of an index's videos, absolute and without links in its path."""
    return os.path.realpath(os.path.join(os.path.realpath(index), facts["videos"]))


def list_files(table: pa.Table) -> list[tuple[str, int, int]]:
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
