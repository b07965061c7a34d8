"""
Annotations: loading of `datasets` data sets as rows of one schema.

Each row describes one video: `video` (a path, a URL, bytes, or a value of `Video(decode=False)`), `sentences`,
`segments`, and optionally `video_id` and `duration` (seconds). Each sentence has a segment `[start, end]` in seconds,
or a list of segments. [`prepare_dataset`] converts published annotation files to such rows.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
from datasets import Dataset, IterableDataset, Value, Video, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError
from transformers.utils import logging

from .files import video_file_key, video_file_name, without_extension
from .formats import not_utf8, read_csv


logger = logging.get_logger(__name__)

Name = TypeVar("Name", bound=Hashable)

_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
# Words in file names that determine the split, as in `datasets`.
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_MIXED_SEGMENTS = (
    "If a stream contains sentences with one and with several segments, write all segments as lists of [start, end]."
)
REQUIRED_COLUMNS = ("video", "sentences", "segments")
# Column names of `lmms-lab/charades_sta` (one row per sentence: `caption`, `timestamp`) and of
# `friedrichor/ActivityNet_Captions` (one row per video: `sentences`, `timestamps`).
_PRESETS = {"sentences": ("caption",), "segments": ("timestamps", "timestamp")}
# Alternative column names of custom data with one sentence per row.
_SINGULARS = {"sentence": "sentences", "segment": "segments"}


def load_annotations(name_or_path: str, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """
    Load a split of a data set, one row per video.

    Rows with a single sentence are grouped by video. In a stream, only consecutive rows of a video are grouped.

    Columns are renamed if their names are those of `lmms-lab/charades_sta` or `friedrichor/ActivityNet_Captions`.
    Because such data sets are not cleaned, their segments are also clipped to `[0, duration]`, and empty segments are
    dropped. A warning shows the number of dropped sentences.

    A single file contains the split "train", unless it has a column `split`. In a folder, the file names determine the
    splits. Other files in the folder, such as videos, are ignored.

    Args:
        name_or_path (`str`):
            Folder of `save_to_disk`, a `.json`, `.jsonl`, `.parquet` or `.csv` file, a folder of such files, or a Hub
            id.
        split (`str`):
            Name of the split.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read rows on demand instead of downloading and converting all rows first.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` with `streaming`: Rows with the columns `video`, `sentences`
        and `segments`. Videos are not decoded.

    Raises:
        FileNotFoundError: If the file or folder does not exist and the name is not a Hub id.
        ValueError: If a file has another format or is empty, if the split or a column is missing, or if a segment is
            empty or ends before it starts.
    """
    path = Path(name_or_path)
    if path.is_dir() and any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        splits = load_from_disk(str(path))
    elif path.is_file() and path.suffix not in _FILE_BUILDERS:
        raise ValueError(
            f"Received the file {name_or_path}; expected .json, .jsonl, .parquet or .csv. Convert published "
            "annotations with `scada prepare`."
        )
    elif path.is_file():
        splits = _load_files([path], "train", streaming)
    elif path.suffix in _FILE_BUILDERS and not path.exists():
        raise FileNotFoundError(f"The annotation file {name_or_path} does not exist.")
    elif path.is_dir() and (files := _files_by_split(path)):
        # Load the files of one split only, because column types may differ between files.
        if len(files) > 1:
            _check_split(split, files, name_or_path)
            files = {split: files[split]}
        ((file_split, paths),) = files.items()
        splits = _load_files(paths, file_split, streaming)
    elif not path.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path):
        raise FileNotFoundError(f"The file or folder {name_or_path} does not exist, and the name is not a Hub id.")
    else:
        splits = load_dataset(name_or_path, streaming=streaming)
        # `datasets` loads any folder that contains videos as a data set of videos.
        if path.is_dir() and all(set(rows.column_names or []) <= {"video", "label"} for rows in splits.values()):
            raise ValueError(
                f"Received the folder {name_or_path}, which contains videos but no annotations. Add annotation files "
                "such as train.jsonl and test.jsonl (or .json, .parquet, .csv), or pass an annotation file."
            )
    if not isinstance(splits, dict):
        splits = {str(splits.split or "train"): splits}
    _check_split(split, splits, name_or_path)
    dataset = splits[split]
    if streaming and isinstance(dataset, Dataset):
        dataset = dataset.to_iterable_dataset()

    # Keep paths and bytes, because `datasets` would decode with torchcodec. Our reader opens the file itself.
    if streaming and dataset.features:
        dataset = dataset.decode(False)
    dataset, is_raw = _rename_columns(dataset, name_or_path)
    if streaming:
        shards = [dataset.shard(dataset.num_shards, index) for index in range(dataset.num_shards)]
        arguments = {"shards": shards, "is_raw": is_raw, "name": name_or_path}
        return IterableDataset.from_generator(_stream_videos, gen_kwargs=arguments)
    if isinstance(dataset.features["video"], Video):
        dataset = dataset.cast_column("video", Video(decode=False))
    if isinstance(dataset.features["video"], Value):  # otherwise they are embedded files
        for index, video in enumerate(dataset["video"]):
            _check_video(video, f"row {index} of {name_or_path}")
    if is_raw or isinstance(next(iter(dataset["sentences"]), None), str):
        return _group_by_video(dataset, is_raw, name_or_path)
    kept = []
    columns = (dataset["video"], dataset["sentences"], dataset["segments"])
    for index, (video, sentences, segments) in enumerate(zip(*columns, strict=True)):
        where = f"row {index} of {name_or_path} ({video_file_name(video)})"
        _check_numbers(sentences, segments, where)
        _check_segments(segments, where)
        if sentences:
            kept.append(index)
    return dataset if len(kept) == len(dataset) else dataset.select(kept)


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """
    Group the annotation files of a folder by the split in their names. If no name contains a split, all files
    belong to "train".

    Raises:
        ValueError: If the files have different formats.
    """
    # Do not guess the splits if the data set card configures them.
    card = folder / "README.md"
    if card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace"):
        return {}
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _FILE_BUILDERS)
    files = [path for path in files if not path.name.startswith(".")]
    # Next to "train" and "test", ignore names such as "notes of the test".
    splits = _group_by_words([path for path in files if re.fullmatch(r"[\w.-]+", path.stem)]) or _group_by_words(files)
    if splits and (others := set(files) - set(chain.from_iterable(splits.values()))):
        unread = ", ".join(sorted(path.name for path in others))
        logger.warning(f"Ignoring {unread} in {folder}, because the name contains no split.")
    splits = splits or ({"train": files} if files else {})
    if len({_FILE_BUILDERS[path.suffix] for split_items in splits.values() for path in split_items}) > 1:
        several = ", ".join(sorted(path.name for split_items in splits.values() for path in split_items))
        raise ValueError(
            f"Received the folder {folder} with annotation files in several formats: {several}. Pass one file."
        )
    return splits


def _group_by_words(files: list[Path]) -> dict[str, list[Path]]:
    """Group files by the split in their names, and leave out files without one."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        words = set(re.split(r"[-._ 0-9]+", path.stem.lower()))
        for split, names in _SPLIT_WORDS.items():
            if words & set(names):
                splits.setdefault(split, []).append(path)
                break
    return splits


def _check_split(split: str, splits: Iterable[str], name: str) -> None:
    if split not in splits:
        raise ValueError(f"Received split {split!r} of {name}; expected one of {sorted(splits)}.")


def _load_files(paths: list[Path], split: str, streaming: bool) -> dict[str, Dataset | IterableDataset]:
    """Load annotation files of one format as one split, or as several splits if they have a column `split`."""
    for path in paths:
        size = path.stat().st_size
        if path.suffix != ".parquet":
            # Check UTF-8 early, because pyarrow raises an error only when a row is used and does not name the file.
            try:
                with path.open(encoding="utf-8") as file:
                    size = sum(map(len, map(str.strip, file)))
            except UnicodeDecodeError as error:
                raise not_utf8(path, error) from error
        if not size:
            raise ValueError(f"Received {path}, but the file is empty; expected one row per video.")
    file_names = ", ".join(map(str, paths))
    builder = _FILE_BUILDERS[paths[0].suffix]
    if builder == "csv":
        dataset: Any = _read_csv_rows(paths)
        columns = dataset.column_names
    else:
        try:
            data_files = list(map(str, paths))
            dataset = load_dataset(builder, data_files=data_files, split="train", streaming=streaming)
            columns = dataset.column_names or list(next(iter(dataset), {}))
        except (DatasetGenerationError, ValueError) as error:
            raise ValueError(f"{file_names} cannot be read: {error.__cause__ or error}.") from error
    if "split" not in columns:
        return {split: dataset}
    names = list(dict.fromkeys(row["split"] for row in dataset.select_columns(["split"])))
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"Received the splits {names} in {file_names}; expected the name of a split in each row.")
    return {
        name: dataset.filter(partial(str.__eq__, name), input_columns="split").remove_columns("split")
        for name in names
    }


def _read_csv_rows(paths: list[Path]) -> Dataset:
    """Read the sentences of csv files, one row each, without empty columns."""
    sentences = list(chain.from_iterable(map(read_csv, paths)))
    if not sentences:
        raise ValueError(f"Received {', '.join(map(str, paths))} without any row; expected one row per sentence.")
    columns: dict[str, list] = {
        "video": [sentence.video for sentence in sentences],
        "duration": [sentence.duration_seconds for sentence in sentences],
        "sentences": [clean_sentence(sentence.text) for sentence in sentences],
        "segments": [sentence.segments for sentence in sentences],
        "split": [sentence.split for sentence in sentences],
    }
    columns = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    if any(sentence.video_id != without_extension(sentence.video) for sentence in sentences):
        columns["video_id"] = [sentence.video_id for sentence in sentences]
    return Dataset.from_dict(columns)


class CleanedSegment(NamedTuple):
    """
    Result of [`clean_segment`].

    Args:
        segment (`list[float]` or `None`): Start and end in seconds, or `None` if the segment is dropped.
        is_clipped (`bool`): Whether the segment was clipped to the video.
        is_repaired (`bool`): Whether start and end were swapped.
        reason (`str` or `None`): Reason for dropping the segment.
    """

    segment: list[float] | None
    is_clipped: bool = False
    is_repaired: bool = False
    reason: str | None = None


def clean_segment(
    segment: Iterable[float | None], duration_seconds: float | None = None, repair_reversed: str = "drop"
) -> CleanedSegment:
    """
    Clip a published segment to its video, and drop the segment if it is then empty, as in the evaluations of peers.

    Args:
        segment (`Iterable[float | None]`): Start and end in seconds. A segment with an unknown time is dropped.
        duration_seconds (`float`, *optional*): Duration of the video in seconds. By default, ends are not clipped.
        repair_reversed (`str`, *optional*, defaults to `"drop"`):
            Treatment of a segment that ends before it starts: `"drop"` it or `"swap"` its ends.

    Returns:
        [`CleanedSegment`].

    Raises:
        ValueError: If `segment` does not contain two numbers, or `repair_reversed` is invalid.
    """
    if repair_reversed not in ("drop", "swap"):
        raise ValueError(f"Received repair_reversed={repair_reversed!r}; expected 'drop' or 'swap'.")
    # In published data, null and NaN are unknown times.
    start_seconds, end_seconds = (math.nan if time is None else float(time) for time in segment)
    if not (math.isfinite(start_seconds) and math.isfinite(end_seconds)):
        return CleanedSegment(None, reason=f"its times are not finite ({start_seconds} to {end_seconds})")
    is_repaired = end_seconds < start_seconds
    if is_repaired:
        if repair_reversed != "swap":
            return CleanedSegment(None, reason=f"it ends before it starts ({start_seconds:g} to {end_seconds:g} s)")
        start_seconds, end_seconds = end_seconds, start_seconds
    latest_seconds = math.inf if duration_seconds is None else duration_seconds
    clipped = [max(start_seconds, 0.0), min(end_seconds, latest_seconds)]
    if clipped[0] >= clipped[1]:
        duration = "" if duration_seconds is None else f" of {duration_seconds:g} s"
        reason = "it has no length" if start_seconds == end_seconds else "it lies outside its video"
        return CleanedSegment(None, reason=f"{reason} ({start_seconds:g} to {end_seconds:g} s{duration})")
    return CleanedSegment(clipped, clipped != [start_seconds, end_seconds], is_repaired)


def clean_sentence(sentence: str) -> str:
    """Strip a sentence, and replace each line break and its surrounding white space by a space."""
    return re.sub(r"\s*[\r\n]\s*", " ", sentence.strip())


def find_shared_videos(videos: Mapping[str, Iterable[Name]]) -> list[Name]:
    """
    Find videos that occur in several splits.

    Args:
        videos (`Mapping[str, Iterable[Hashable]]`):
            Names of the videos of each split, or their [`video_file_key`]. Names may repeat within a split.

    Returns:
        `list[Hashable]`: Names of videos in more than one split, in the order of first occurrence.
    """
    counts = Counter(chain.from_iterable(dict.fromkeys(names) for names in videos.values()))
    return [name for name, count in counts.items() if count > 1]


def _rename_columns(dataset: Any, name: str) -> tuple[Any, bool]:
    """Rename columns with preset names. Return the data set, and whether any preset name was found."""
    # Some streams have no column names, so read the first row.
    columns = dataset.column_names or list(next(iter(dataset), {}))
    singulars = {name: column for name, column in _SINGULARS.items() if name in columns and column not in columns}
    dataset = dataset.rename_columns(singulars)
    columns = [singulars.get(column, column) for column in columns]
    if {"start", "end"} <= set(columns) and "segments" not in columns:
        dataset = dataset.map(_join_times, remove_columns=["start", "end"])
        columns = [*(column for column in columns if column not in ("start", "end")), "segments"]
    names: dict[str, str] = {}
    for column, others in _PRESETS.items():
        if column not in columns:
            names |= {other: column for other in others if other in columns}
    if missing := [column for column in REQUIRED_COLUMNS if column not in [*columns, *names.values()]]:
        shown = f"{columns[:10]} and {len(columns) - 10} more" if len(columns) > 10 else columns
        raise ValueError(
            f"{name} lacks the columns {missing}; it has {shown}. Rename the columns (`rename_column`), or convert "
            "the annotations with `scada prepare`."
        )
    return dataset.rename_columns(names), bool(names)


def _join_times(row: dict) -> dict:
    return {"segments": [row["start"], row["end"]]}


def _group_by_video(dataset: Dataset, is_raw: bool, name: str) -> Dataset:
    """Merge rows with a single sentence into one row per video. Clean the rows if `is_raw`."""
    groups: dict[Any, list[int]] = {}
    names = []
    is_row_a_sentence = isinstance(next(iter(dataset["sentences"]), None), str)
    for index, video in enumerate(dataset["video_id" if "video_id" in dataset.column_names else "video"]):
        groups.setdefault(video_file_key(video) if is_row_a_sentence else index, []).append(index)
        names.append(video_file_name(video))
    texts = dataset.select_columns(
        [column for column in ("sentences", "segments", "duration") if column in dataset.column_names]
    )
    dropped: Counter[str] = Counter()
    rows, first_indices = [], []
    for indices in groups.values():
        places = [f"row {index} of {name} ({names[index]})" for index in indices]
        row = _merge([texts[index] for index in indices], is_raw, dropped, places)
        if row["sentences"]:
            rows.append(row)
            first_indices.append(indices[0])
    _warn_about_dropped(dropped, name)
    videos = dataset.select(first_indices).remove_columns(["sentences", "segments"])
    for column in ("sentences", "segments"):
        videos = videos.add_column(column, [row[column] for row in rows])
    return videos


def _stream_videos(shards: list[IterableDataset], is_raw: bool, name: str) -> Iterator[dict]:
    """Merge consecutive rows of a video, as [`_group_by_video`] does. The workers of a loader share the shards."""
    dropped: Counter[str] = Counter()
    for shard in shards:
        for _, group in groupby(enumerate(_iterate_rows(shard, name)), lambda item: _stream_key(*item)):
            video_rows = [row for _, row in group]
            place = f"video {video_file_name(video_rows[0]['video'])} of {name}"
            _check_video(video_rows[0]["video"], place)
            row = _merge(video_rows, is_raw, dropped, len(video_rows) * [place])
            if row["sentences"]:
                yield video_rows[0] | row
    _warn_about_dropped(dropped, name)


def _iterate_rows(shard: IterableDataset, name: str) -> Iterator[dict]:
    # In a worker, `iter(shard)` would split the shard among the workers again. `iter(batch_size=1)` does not.
    try:
        for batch in shard.iter(batch_size=1):
            yield {column: values[0] for column, values in batch.items()}
    except (pa.ArrowInvalid, CastError, TypeError) as error:  # raised for rows that `datasets` cannot convert
        raise ValueError(
            f"{name} cannot be read: {str(error).rstrip('.')}. Use the same columns and types in all rows. "
            f"{_MIXED_SEGMENTS}"
        ) from error


def _stream_key(index: int, row: dict) -> Any:
    return video_file_key(row.get("video_id") or row["video"]) if isinstance(row["sentences"], str) else index


def _merge(rows: list[dict], is_raw: bool, dropped: Counter[str], places: list[str]) -> dict[str, list]:
    """
    Merge `sentences` and `segments` of the rows of a video. Clean the rows if `is_raw`. `places` name the rows.
    """
    merged: dict[str, list] = {"sentences": [], "segments": []}
    for row, where in zip(rows, places, strict=True):
        is_row_a_sentence = isinstance(row["sentences"], str)
        sentences = [row["sentences"]] if is_row_a_sentence else row["sentences"]
        segments = [row["segments"]] if is_row_a_sentence else row["segments"]
        _check_numbers(sentences, segments, where)
        if is_raw:
            sentences, segments = _clean_row(sentences, segments, row.get("duration"), dropped)
        else:
            _check_segments(segments, where)
        merged["sentences"] += sentences
        merged["segments"] += segments
    return merged


def _clean_row(
    sentences: list[str], segments: list, duration_seconds: float | None, dropped: Counter[str]
) -> tuple[list[str], list]:
    """Clean published sentences and segments, and count the reasons for dropped ones."""
    kept = []
    for sentence, segment in zip(sentences, segments, strict=True):
        text, cleaned = clean_sentence(sentence), clean_segment(segment, duration_seconds)
        reason = str(cleaned.reason).partition(" (")[0] if cleaned.segment is None else "its text is empty"
        if text and cleaned.segment is not None:
            kept.append((text, cleaned.segment))
        else:
            dropped[reason] += 1
    return [text for text, _ in kept], [segment for _, segment in kept]


def _warn_about_dropped(dropped: Counter[str], name: str) -> None:
    if dropped:
        reasons = ", ".join(f"{count} because {reason}" for reason, count in dropped.items())
        logger.warning(f"{name}: dropped {dropped.total()} sentences: {reasons}.")


def _check_numbers(sentences: list[str] | None, segments: list | None, where: str) -> None:
    lists = [values if isinstance(values, list) else None for values in (sentences, segments)]
    counts = [
        ("null as" if values is None else f"{values!r:.100} as") if items is None else len(items)
        for values, items in zip((sentences, segments), lists, strict=True)
    ]
    if None in lists or counts[0] != counts[1]:
        raise ValueError(f"Received {counts[0]} sentences but {counts[1]} segments in {where}.")
    for sentence in sentences or []:
        if not isinstance(sentence, str):
            raise ValueError(f"Received the sentence {sentence!r} in {where}; expected a string.")


def _check_video(video: Any, where: str) -> None:
    content = (video.get("path") or video.get("bytes")) if isinstance(video, dict) else video
    if not isinstance(content, (str, bytes)) or not content:
        raise ValueError(f"Received the video {video!r} in {where}; expected a path, a URL or the content of a file.")


def _check_segments(segments: list, where: str) -> None:
    """
    Check that segments are pairs of numbers in order.

    Raises:
        ValueError: If a segment is empty or ends before it starts. Reading the video also checks its duration.
    """
    for sentence_segments in segments:
        if sentence_segments is not None and len(sentence_segments) == 0:
            continue  # the sentence is not in the video
        pairs = (
            sentence_segments
            if sentence_segments and isinstance(sentence_segments[0], (list, tuple))
            else [sentence_segments]
        )
        for pair in pairs:
            if any(isinstance(time, str) for time in pair or []):
                raise ValueError(
                    f"Received the segment {pair} in {where}; expected numbers of seconds. "
                    f"`scada prepare` also reads times such as 0:01 or 1:02:03.5. {_MIXED_SEGMENTS}"
                )
            # Check for null first, because it does not compare with numbers.
            if pair is None or len(pair) != 2 or None in pair or not pair[0] < pair[1]:
                raise ValueError(
                    f"Received the segment {pair} in {where}; expected [start, end] in seconds, with start < "
                    "end. Correct the segment, or use `scada prepare` to drop such segments or swap their ends."
                )
