"""
Annotations: from a data set in `datasets`' forms to rows of one schema.

A row is a video: `video` (a path, a URL, bytes, or what `Video(decode=False)` gives), optionally `video_id` and
`duration` (seconds), `sentences`, and `segments`: for each sentence `[start, end]` in seconds, or a list of these.
[`prepare_dataset`] writes such rows from the files that data sets are published as.
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

from .files import video_key, video_name, without_extension
from .formats import not_utf8, read_csv


logger = logging.get_logger(__name__)

Name = TypeVar("Name", bound=Hashable)

_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
# Words of file names that tell the split, as in `datasets`.
_WORDS_OF_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_MIXED_SEGMENTS = (
    "If some sentences of a stream have one segment and others several, write all segments as lists of [start, end]."
)
REQUIRED_COLUMNS = ("video", "sentences", "segments")
# What the columns are called in `lmms-lab/charades_sta` (one row a sentence: `caption`, `timestamp`) and in
# `friedrichor/ActivityNet_Captions` (one row a video: `sentences`, `timestamps`).
_PRESETS = {"sentences": ("caption",), "segments": ("timestamps", "timestamp")}
# What one's own rows of one sentence may call them.
_SINGULARS = {"sentence": "sentences", "segment": "segments"}


def load_annotations(name_or_path: str, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """
    One split of a data set, one row a video.

    Rows that hold one sentence each are grouped by their video (in a stream, those that follow each other). Columns
    named as in `lmms-lab/charades_sta` and `friedrichor/ActivityNet_Captions` are renamed, and since such data sets
    are as their authors left them, segments are clipped to `[0, duration]` and those that are then empty are left out;
    a warning says how many.

    A file is one split, "train", unless it has a column `split`. Of a folder of files, their names tell the splits;
    what else is in the folder, such as videos, is not read.

    Args:
        name_or_path (`str`):
            A folder that `save_to_disk` wrote; a `.json`, `.jsonl`, `.parquet` or `.csv` file, or a folder of such
            files; or a Hub id.
        split (`str`):
            Name of the split.
        streaming (`bool`, *optional*, defaults to `False`):
            Read rows when they are needed instead of downloading and converting all of them first.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` if `streaming`, with the columns `video`, `sentences` and
        `segments`; videos are not decoded.

    Raises:
        FileNotFoundError: If a file or folder does not exist, and the name is no Hub id either.
        ValueError: If a file has another form or is empty, if the split or a column is missing, or if a segment is
            empty or ends before it starts.
    """
    path = Path(name_or_path)
    if path.is_dir() and any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        splits = load_from_disk(str(path))
    elif path.is_file() and path.suffix not in _FILE_BUILDERS:
        raise ValueError(
            f"Received the file {name_or_path}; expected .json, .jsonl, .parquet or .csv. `scada prepare` makes a "
            "data set of annotations as they are published."
        )
    elif path.is_file():
        splits = _load_files([path], "train", streaming)
    elif path.suffix in _FILE_BUILDERS and not path.exists():
        raise FileNotFoundError(f"The annotation file {name_or_path} does not exist.")
    elif path.is_dir() and (files := _files_by_split(path)):
        # The files of one split alone, since the types of columns may differ from file to file.
        if len(files) > 1:
            _check_split(split, files, name_or_path)
            files = {split: files[split]}
        ((of_files, paths),) = files.items()
        splits = _load_files(paths, of_files, streaming)
    elif not path.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path):
        raise FileNotFoundError(f"There is no file or folder {name_or_path}, and the name is no Hub id.")
    else:
        splits = load_dataset(name_or_path, streaming=streaming)
        # `datasets` takes a folder with videos in it for a data set of videos.
        if path.is_dir() and all(set(of.column_names or []) <= {"video", "label"} for of in splits.values()):
            raise ValueError(
                f"Received the folder {name_or_path}, which has videos but no annotations. Put train.jsonl, "
                "test.jsonl and the like (or .json, .parquet, .csv) beside them, or name the annotation file itself."
            )
    if not isinstance(splits, dict):
        splits = {str(splits.split or "train"): splits}
    _check_split(split, splits, name_or_path)
    dataset = splits[split]
    if streaming and isinstance(dataset, Dataset):
        dataset = dataset.to_iterable_dataset()

    # Videos stay paths and bytes: their decoder would be torchcodec's, ours reads the file itself.
    if streaming and dataset.features:
        dataset = dataset.decode(False)
    dataset, is_raw = _with_our_columns(dataset, name_or_path)
    if streaming:
        shards = [dataset.shard(dataset.num_shards, index) for index in range(dataset.num_shards)]
        arguments = {"shards": shards, "is_raw": is_raw, "name": name_or_path}
        return IterableDataset.from_generator(_stream_videos, gen_kwargs=arguments)
    if isinstance(dataset.features["video"], Video):
        dataset = dataset.cast_column("video", Video(decode=False))
    if isinstance(dataset.features["video"], Value):  # else they are files with their content
        for index, video in enumerate(dataset["video"]):
            _check_video(video, f"row {index} of {name_or_path}")
    if is_raw or isinstance(next(iter(dataset["sentences"]), None), str):
        return _group_by_video(dataset, is_raw, name_or_path)
    kept = []
    columns = (dataset["video"], dataset["sentences"], dataset["segments"])
    for index, (video, sentences, segments) in enumerate(zip(*columns, strict=True)):
        where = f"row {index} of {name_or_path} ({video_name(video)})"
        _check_numbers(sentences, segments, where)
        _check_segments(segments, where)
        if sentences:
            kept.append(index)
    return dataset if len(kept) == len(dataset) else dataset.select(kept)


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """
    The annotation files in a folder by the split that their names tell; all are "train" if no name tells any.

    Raises:
        ValueError: If the files are of several kinds.
    """
    # What a data set's card configures is not to be guessed.
    card = folder / "README.md"
    if card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace"):
        return {}
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _FILE_BUILDERS)
    files = [path for path in files if not path.name.startswith(".")]
    # "notes of the test" is no split next to "train" and "test".
    splits = _group_by_words([path for path in files if re.fullmatch(r"[\w.-]+", path.stem)]) or _group_by_words(files)
    if splits and (others := set(files) - set(chain.from_iterable(splits.values()))):
        unread = ", ".join(sorted(path.name for path in others))
        logger.warning(f"Of {folder}, {unread} is not read, since the name tells no split.")
    splits = splits or ({"train": files} if files else {})
    if len({_FILE_BUILDERS[path.suffix] for split_items in splits.values() for path in split_items}) > 1:
        several = ", ".join(sorted(path.name for split_items in splits.values() for path in split_items))
        raise ValueError(f"Received the folder {folder} with annotation files of several kinds: {several}. Name one.")
    return splits


def _group_by_words(files: list[Path]) -> dict[str, list[Path]]:
    """Files by the split that their names tell; those that tell none are left out."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        words = set(re.split(r"[-._ 0-9]+", path.stem.lower()))
        for split, names in _WORDS_OF_SPLITS.items():
            if words & set(names):
                splits.setdefault(split, []).append(path)
                break
    return splits


def _check_split(split: str, splits: Iterable[str], name: str) -> None:
    if split not in splits:
        raise ValueError(f"Received split {split!r} of {name}; it has {sorted(splits)}. Name one of these.")


def _load_files(paths: list[Path], split: str, streaming: bool) -> dict[str, Dataset | IterableDataset]:
    """Annotation files of one kind, as one split; or as several, where they have a column `split`."""
    for path in paths:
        size = path.stat().st_size
        if path.suffix != ".parquet":
            # pyarrow finds out what is no UTF-8 when a row is used, and does not say in which file.
            try:
                with path.open(encoding="utf-8") as file:
                    size = sum(map(len, map(str.strip, file)))
            except UnicodeDecodeError as error:
                raise not_utf8(path, error) from error
        if not size:
            raise ValueError(f"Received {path}, which is empty; expected a row for each video.")
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
        raise ValueError(f"Received the splits {names} in {file_names}; expected the name of one in each row.")
    return {
        name: dataset.filter(partial(str.__eq__, name), input_columns="split").remove_columns("split")
        for name in names
    }


def _read_csv_rows(paths: list[Path]) -> Dataset:
    """The sentences of csv files, a row each, with the columns that a file has something in."""
    sentences = list(chain.from_iterable(map(read_csv, paths)))
    if not sentences:
        raise ValueError(f"Received {', '.join(map(str, paths))} without a row; expected one for each sentence.")
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
    What [`clean_segment`] makes of a segment.

    Args:
        segment (`list[float]` or `None`): Start and end, in seconds; `None` if it has to be dropped.
        is_clipped (`bool`): Whether a part outside the video was cut off.
        is_repaired (`bool`): Whether start and end were swapped.
        reason (`str` or `None`): Why it has to be dropped.
    """

    segment: list[float] | None
    is_clipped: bool = False
    is_repaired: bool = False
    reason: str | None = None


def clean_segment(
    segment: Iterable[float | None], duration_seconds: float | None = None, repair_reversed: str = "drop"
) -> CleanedSegment:
    """
    What the peers' evaluations do with annotations as they are published: clip to the video, then drop what is empty.

    Args:
        segment (`Iterable[float | None]`): Start and end, in seconds; one that is not known drops the segment.
        duration_seconds (`float`, *optional*): Length of the video, in seconds; if not given, ends are not clipped.
        repair_reversed (`str`, *optional*, defaults to `"drop"`):
            What to do with a segment that ends before it starts: `"drop"` it or `"swap"` its ends.

    Returns:
        [`CleanedSegment`].

    Raises:
        ValueError: If `segment` is not two numbers, or `repair_reversed` neither of the two.
    """
    if repair_reversed not in ("drop", "swap"):
        raise ValueError(f"Received repair_reversed={repair_reversed!r}; expected 'drop' or 'swap'.")
    # In data as published a null is a time that is not known, as NaN is.
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
        of_video = "" if duration_seconds is None else f" of {duration_seconds:g} s"
        reason = "it has no length" if start_seconds == end_seconds else "it lies outside its video"
        return CleanedSegment(None, reason=f"{reason} ({start_seconds:g} to {end_seconds:g} s{of_video})")
    return CleanedSegment(clipped, clipped != [start_seconds, end_seconds], is_repaired)


def clean_sentence(sentence: str) -> str:
    """The sentence without white space around it, and with a space for each line break and the white space at it."""
    return re.sub(r"\s*[\r\n]\s*", " ", sentence.strip())


def find_shared_videos(videos: Mapping[str, Iterable[Name]]) -> list[Name]:
    """
    Find the videos that several splits have.

    Args:
        videos (`Mapping[str, Iterable[Hashable]]`):
            Names of the videos of each split, or their [`video_key`]; a split may name one several times.

    Returns:
        `list[Hashable]`: Names of the videos that are in more than one split, in the order of their first one.
    """
    counts = Counter(chain.from_iterable(dict.fromkeys(names) for names in videos.values()))
    return [name for name, count in counts.items() if count > 1]


def _with_our_columns(dataset: Any, name: str) -> tuple[Any, bool]:
    """The data set with its columns renamed where they are those of a preset; whether they were."""
    # Of some streams only the rows tell.
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
            f"{name} lacks the columns {missing}; it has {shown}. Rename them (`rename_column`), or prepare the "
            "data with scripts/prepare_dataset.py."
        )
    return dataset.rename_columns(names), bool(names)


def _join_times(row: dict) -> dict:
    return {"segments": [row["start"], row["end"]]}


def _group_by_video(dataset: Dataset, is_raw: bool, name: str) -> Dataset:
    """Rows of one sentence, or of all sentences of a video, to rows of all; cleaned if they are as published."""
    groups: dict[Any, list[int]] = {}
    names = []
    is_row_a_sentence = isinstance(next(iter(dataset["sentences"]), None), str)
    for index, video in enumerate(dataset["video_id" if "video_id" in dataset.column_names else "video"]):
        groups.setdefault(video_key(video) if is_row_a_sentence else index, []).append(index)
        names.append(video_name(video))
    texts = dataset.select_columns([c for c in ("sentences", "segments", "duration") if c in dataset.column_names])
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
    """As [`_group_by_video`], for rows of a video that follow each other. The workers of a loader share the shards."""
    dropped: Counter[str] = Counter()
    for shard in shards:
        for _, group in groupby(enumerate(_iterate_rows(shard, name)), lambda item: _stream_key(*item)):
            of_video = [row for _, row in group]
            place = f"video {video_name(of_video[0]['video'])} of {name}"
            _check_video(of_video[0]["video"], place)
            row = _merge(of_video, is_raw, dropped, len(of_video) * [place])
            if row["sentences"]:
                yield of_video[0] | row
    _warn_about_dropped(dropped, name)


def _iterate_rows(shard: IterableDataset, name: str) -> Iterator[dict]:
    # In a worker, `iter(shard)` would share out the one shard among the workers once more; batches are not shared.
    try:
        for batch in shard.iter(batch_size=1):
            yield {column: values[0] for column, values in batch.items()}
    except (pa.ArrowInvalid, CastError, TypeError) as error:  # all three of rows that `datasets` cannot convert
        raise ValueError(
            f"{name} cannot be read: {str(error).rstrip('.')}. Write all rows with the same columns and types. "
            f"{_MIXED_SEGMENTS}"
        ) from error


def _stream_key(index: int, row: dict) -> Any:
    return video_key(row.get("video_id") or row["video"]) if isinstance(row["sentences"], str) else index


def _merge(rows: list[dict], is_raw: bool, dropped: Counter[str], places: list[str]) -> dict[str, list]:
    """
    `sentences` and `segments` of the rows of a video; from rows as published, without those of no length. Places are
    what to call the rows in a message.
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
    """Sentences and segments as published to those that can be used; the reasons why others cannot are counted."""
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
        logger.warning(f"{name}: {dropped.total()} sentences were left out: {reasons}.")


def _check_numbers(sentences: list[str] | None, segments: list | None, where: str) -> None:
    lists = [values if isinstance(values, list) else None for values in (sentences, segments)]
    counts = [
        ("null as" if values is None else f"{values!r:.100} as") if of is None else len(of)
        for values, of in zip((sentences, segments), lists, strict=True)
    ]
    if None in lists or counts[0] != counts[1]:
        raise ValueError(f"Received {counts[0]} sentences but {counts[1]} segments in {where}.")
    for sentence in sentences or []:
        if not isinstance(sentence, str):
            raise ValueError(f"Received the sentence {sentence!r} in {where}; expected a text.")


def _check_video(video: Any, where: str) -> None:
    content = (video.get("path") or video.get("bytes")) if isinstance(video, dict) else video
    if not isinstance(content, (str, bytes)) or not content:
        raise ValueError(f"Received the video {video!r} in {where}; expected a path, a URL or the content of a file.")


def _check_segments(segments: list, where: str) -> None:
    """
    Raises:
        ValueError: If a segment is empty or ends before it starts. One outside its video shows when that is read.
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
                    f"scripts/prepare_dataset.py reads times like 0:01 or 1:02:03.5. {_MIXED_SEGMENTS}"
                )
            # A null is no number, and compares with none.
            if pair is None or len(pair) != 2 or None in pair or not pair[0] < pair[1]:
                raise ValueError(
                    f"Received the segment {pair} in {where}; expected [start, end] in seconds, the end after the "
                    "start. Correct it, or let scripts/prepare_dataset.py drop such segments or swap their ends."
                )
