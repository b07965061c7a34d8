"""
Annotations: from a data set in `datasets`' forms to rows of one schema.

A row is a video: `video` (a path, a URL, bytes, or what `Video(decode=False)` gives), optionally `video_id` and
`duration` (seconds), `sentences`, and `segments`: for each sentence `[start, end]` in seconds, or a list of these.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Video, load_dataset, load_from_disk


_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
REQUIRED_COLUMNS = ("video", "sentences", "segments")


def load_annotations(name_or_path: str, split: str) -> Dataset:
    """
    One split of a data set.

    Args:
        name_or_path (`str`):
            A folder that `save_to_disk` wrote, a `.json`, `.jsonl` or `.parquet` file (which is one split,
            "train"), a folder of such files, or a Hub id.
        split (`str`):
            Name of the split.

    Returns:
        `datasets.Dataset` with the columns `video`, `sentences` and `segments`; videos are not decoded.

    Raises:
        FileNotFoundError: If a file or folder does not exist, and the name is no Hub id either.
        ValueError: If the split or a column is missing.
    """
    path = Path(name_or_path)
    if path.is_dir() and any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        splits = load_from_disk(str(path))
    elif path.suffix in _FILE_BUILDERS and path.exists():
        splits = load_dataset(_FILE_BUILDERS[path.suffix], data_files=str(path))
    elif path.suffix in _FILE_BUILDERS:
        raise FileNotFoundError(f"The annotation file {name_or_path} does not exist.")
    else:
        splits = load_dataset(name_or_path)
    if isinstance(splits, Dataset):
        splits = DatasetDict({str(splits.split or "train"): splits})
    if split not in splits:
        raise ValueError(f"Received split {split!r} of {name_or_path}; it has {sorted(splits)}. Name one of these.")
    dataset = splits[split]
    if missing := [column for column in REQUIRED_COLUMNS if column not in dataset.column_names]:
        raise ValueError(f"{name_or_path} lacks the columns {missing}; it has {dataset.column_names}.")
    if isinstance(dataset.features["video"], Video):
        dataset = dataset.cast_column("video", Video(decode=False))
    return dataset


def resolve_video(video: Any, video_root: str | Path | None) -> Any:
    """
    What the video processor can read: relative paths are joined to `video_root`.

    Args:
        video (`str`, `bytes` or `dict`): A row's `video`; a dict has `path` and `bytes`, as `datasets` gives it.
        video_root (`str` or `Path`, *optional*): Folder of the videos.

    Returns:
        `str` or `bytes`.
    """
    if isinstance(video, dict):
        if video.get("bytes") is not None:
            return video["bytes"]
        video = video["path"]
    if isinstance(video, bytes) or video.startswith(("http://", "https://")) or video_root is None:
        return video
    return str(Path(video_root) / video)
