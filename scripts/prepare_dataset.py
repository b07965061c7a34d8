r"""
Prepare annotations for training and evaluation: data sets as they are published, or one's own, to one schema.

    python scripts/prepare_dataset.py --format charades-sta \
        --annotations charades_sta_train.txt charades_sta_test.txt \
        --durations Charades_v1_train.csv Charades_v1_test.csv \
        --videos Charades_v1_480 --output data/charades_sta

    python scripts/prepare_dataset.py --format activitynet-captions \
        --annotations train.json val_1.json val_2.json --videos activitynet/videos --output data/activitynet_captions

    python scripts/prepare_dataset.py --format qvhighlights \
        --annotations highlight_train_release.jsonl highlight_val_release.jsonl \
        --videos qvhighlights/videos --output data/qvhighlights

    python scripts/prepare_dataset.py --format csv --annotations my.csv --videos my_videos --output data/my

`my.csv` has a line for each sentence, with quotes around what has a comma inside. In place of `segment` there may be
`start` and `end`, in seconds, and a sentence may have several segments, `"[[1.0, 2.5], [7, 9]]"`:

    video,sentence,segment
    kitchen.mp4,"A man opens the door, then leaves.","[12.4, 15.1]"

`jsonl` has an object a line, `{"video": "kitchen.mp4", "sentence": "A man ...", "segment": [12.4, 15.1]}`, or one for
a whole video with lists named `sentences` and `segments`. Both formats may also have `video_id` and `duration`.

Written is a `datasets.DatasetDict` with one row a video: `video` (relative to `--videos`), `video_id`, `duration`,
`sentences` and `segments`, one or more segments a sentence, in seconds. A split is named as its file is (`train`,
`val_1`, `test`, ...); run again with another file to add its split to the same folder. What was read, clipped,
repaired and dropped is printed, and written in full to `report.json`. With `--check_videos` all videos are decoded
once, and the broken ones listed before training meets them.
"""

import argparse
import csv
import json
import math
import multiprocessing
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from datasets import Dataset, DatasetDict, Features, Value
from tqdm import tqdm

from processing.annotations import VideoFiles, clean_segment, clean_sentence, without_extension
from processing.video_io import VideoReadError, check_video, probe
from processing.video_url import is_url


FEATURES = Features(
    {
        "video": Value("string"),
        "video_id": Value("string"),
        "duration": Value("float64"),
        "sentences": [Value("string")],
        "segments": [[[Value("float64")]]],
    }
)
# "train", "val_1" and the like, as a word of a file's name.
SPLIT_IN_FILE_NAME = re.compile(r"(?<![a-z0-9])(train|test|validation|val(_\d)?)(?![a-z0-9])")
NO_SEGMENT = "it has no relevant_windows, as in QVHighlights' test file"
# Downloaded copies are often some tenths of a second longer or shorter than what was annotated.
MAX_DIFFERENCE_SECONDS = 1.0
# So many names are printed; all are in the report.
NUM_PRINTED = 10
LINE_BREAK = "\n  "

Item = TypeVar("Item")
Result = TypeVar("Result")


class Sentence(NamedTuple):
    """
    A sentence as it stands in an annotation file.

    Args:
        where (`str`): File and line, or file, video and number, for messages.
        video (`str`): Name of the video's file.
        video_id (`str`): Name of the video.
        duration_seconds (`float` or `None`): Length of the video; `None` if the file does not say.
        text (`str`): The sentence.
        segments (`list[list[float]]`): Each `[start, end]`, in seconds.
    """

    where: str
    video: str
    video_id: str
    duration_seconds: float | None
    text: str
    segments: list[list[float]]


@dataclass
class AnnotatedVideo:
    """A video with its sentences in the order of the file; `duration_seconds` is `None` if nothing says it."""

    video: str
    video_id: str
    duration_seconds: float | None
    sentences: list[Sentence] = field(default_factory=list)


class Inspection(NamedTuple):
    """What opening a video's file showed: its duration in seconds if it has one, and why it cannot be read if so."""

    duration_seconds: float | None
    problem: str | None


@dataclass
class Report:
    """
    What became of the sentences of a split, or of several.

    Args:
        read, kept, clipped, repaired (`int`): Numbers of sentences.
        videos (`int`): Number of videos that have a sentence left.
        dropped (`list[dict]`): `where` and `reason` of each sentence that was dropped.
        dropped_segments (`list[dict]`): The same, of segments whose sentence has others left.
        missing_videos (`int` or `None`): Number of videos without a file; `None` if none was looked for.
        missing (`list[str]`): Their names.
        without_duration (`list[str]`): Videos of unknown duration; ends of their segments are not clipped.
    """

    read: int = 0
    kept: int = 0
    clipped: int = 0
    repaired: int = 0
    videos: int = 0
    dropped: list[dict[str, str]] = field(default_factory=list)
    dropped_segments: list[dict[str, str]] = field(default_factory=list)
    missing_videos: int | None = None
    missing: list[str] = field(default_factory=list)
    without_duration: list[str] = field(default_factory=list)


def sum_reports(reports: Iterable[Report]) -> Report:
    """Totals; a video that several splits annotate is missing once."""
    total = Report()
    for report in reports:
        for name in ("read", "kept", "clipped", "repaired", "videos", "dropped", "dropped_segments"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        total.missing = list(dict.fromkeys(total.missing + report.missing))
        total.without_duration = list(dict.fromkeys(total.without_duration + report.without_duration))
        if report.missing_videos is not None:
            total.missing_videos = len(total.missing)
    return total


# Reading. Whatever a file has that its format does not is an error that says where: such a file is not what it was
# taken for, and leaving its rows out would hide that.


def read_charades_sta(path: Path) -> Iterator[Sentence]:
    """`VIDEO start end##sentence`, one a line. Sentences have `#` in them, so only the first `##` counts."""
    for where, line in _lines(path):
        head, separator, text = line.partition("##")
        fields = head.split()
        if not separator or len(fields) != 3:
            raise _malformed(where, line, "`VIDEO start end##sentence`")
        segments = _segments(fields[1:], where)
        yield Sentence(where, _file_name(fields[0]), without_extension(fields[0]), None, text, segments)


def read_activitynet_captions(path: Path) -> Iterator[Sentence]:
    """An object from names to `duration`, `timestamps` (seconds) and `sentences`."""
    for where, name, entry in _json_entries(path):
        duration_seconds = _duration_seconds(entry.get("duration"), where)
        video, video_id = _file_name(name), without_extension(name)
        segments = _required(entry, "timestamps", where)
        yield from _sentences(where, video, video_id, duration_seconds, _required(entry, "sentences", where), segments)


def read_tacos(path: Path) -> Iterator[Sentence]:
    """As ActivityNet Captions, but `timestamps` are numbers of frames, and `fps` and `num_frames` say the rest."""
    for where, name, entry in _json_entries(path):
        fps = _number(_required(entry, "fps", where), where)
        if fps <= 0:
            raise _malformed(where, fps, "a positive number of frames per second as `fps`")
        duration_seconds = _duration_seconds(_number(_required(entry, "num_frames", where), where) / fps, where)
        video, video_id = _file_name(name), without_extension(name)
        frames = _required(entry, "timestamps", where)
        texts = _required(entry, "sentences", where)
        for sentence in _sentences(where, video, video_id, duration_seconds, texts, frames):
            yield sentence._replace(segments=[[number / fps for number in pair] for pair in sentence.segments])


def read_qvhighlights(path: Path) -> Iterator[Sentence]:
    """An object a line: `vid`, `query`, `duration`, and `relevant_windows` (seconds), which the test file lacks."""
    for where, entry in _json_lines(path):
        name = _text(_required(entry, "vid", where), where)
        windows = entry.get("relevant_windows")
        yield Sentence(
            where,
            _file_name(name),
            without_extension(name),
            _duration_seconds(entry.get("duration"), where),
            _text(_required(entry, "query", where), where),
            _segments(windows, where) if windows else [],
        )


def read_jsonl(path: Path) -> Iterator[Sentence]:
    """An object a line, of a video (`sentences`, `segments`) or of a sentence (`sentence`, `segment`)."""
    for where, entry in _json_lines(path):
        video = _text(_required(entry, "video", where), where)
        video_id = entry.get("video_id")
        video_id = without_extension(video) if video_id is None else _text(video_id, where)
        duration_seconds = _duration_seconds(entry.get("duration"), where)
        texts = _required(entry, "sentences" if "sentences" in entry else "sentence", where)
        segments = _required(entry, "segments" if "segments" in entry else "segment", where)
        if isinstance(texts, str):
            yield Sentence(where, video, video_id, duration_seconds, texts, _segments(segments, where))
        else:
            yield from _sentences(where, video, video_id, duration_seconds, texts, segments)


def read_csv(path: Path) -> Iterator[Sentence]:
    """Columns `video`, `sentence`, and `segment` or `start` and `end`; optionally `video_id` and `duration`."""
    header, rows = _csv_rows(path, is_strict=True)
    video_column = _column(path, header, "video")
    sentence_column = _column(path, header, "sentence", "sentences")
    has_times = {"start", "end"} <= set(header) and not {"segment", "segments"} & set(header)
    segment_column = "" if has_times else _column(path, header, "segment", "segments", "start` and `end")
    for where, row in rows:
        video = _text(row[video_column], where)
        if has_times:
            segments = [row["start"], row["end"]]
        else:
            segments = _parse_json(row[segment_column], where, "`[start, end]` in seconds, or a list of such")
        yield Sentence(
            where,
            video,
            row.get("video_id") or without_extension(video),
            _duration_seconds(row.get("duration"), where),
            row[sentence_column],
            _segments(segments, where),
        )


READERS: dict[str, Callable[[Path], Iterator[Sentence]]] = {
    "charades-sta": read_charades_sta,
    "activitynet-captions": read_activitynet_captions,
    "qvhighlights": read_qvhighlights,
    "tacos": read_tacos,
    "jsonl": read_jsonl,
    "csv": read_csv,
}


def read_durations(paths: Iterable[Path]) -> dict[str, float]:
    """
    Durations from csv files with columns `id` (or `video_id`, `video`) and `length` (or `duration`), in seconds.

    Returns:
        `dict[str, float]`: Seconds by the video's name without extension; empty cells are left out.

    Raises:
        ValueError: If a file has no such columns, a length is no positive number, or a video has two.
    """
    durations: dict[str, float] = {}
    for path in paths:
        # Not strict: the free text in Charades' file is not ours to correct, and nothing of it is used.
        header, rows = _csv_rows(path, is_strict=False)
        name_column = _column(path, header, "id", "video_id", "video")
        length_column = _column(path, header, "length", "duration")
        for where, row in rows:
            seconds = _duration_seconds(row[length_column], where)
            if seconds is None:
                continue
            if durations.setdefault(without_extension(row[name_column]), seconds) != seconds:
                raise _malformed(where, seconds, f"the duration that {row[name_column]} has further up; remove one")
    return durations


def _sentences(
    where: str, video: str, video_id: str, duration_seconds: float | None, texts: Any, segments: Any
) -> Iterator[Sentence]:
    """The sentences of a video that has a list of them and a list of their segments."""
    if not isinstance(texts, list) or not isinstance(segments, list) or len(texts) != len(segments):
        counts = [len(value) if isinstance(value, list) else type(value).__name__ for value in (texts, segments)]
        raise _malformed(where, f"{counts[0]} sentences and {counts[1]} segments", "two lists of one length")
    for index, (text, of_sentence) in enumerate(zip(texts, segments, strict=True)):
        own = f"{where}[{index}]"
        if not isinstance(text, str):
            raise _malformed(own, text, "a sentence")
        yield Sentence(own, video, video_id, duration_seconds, text, _segments(of_sentence, own))


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with `file:line`."""
    # The signature is what Excel and some editors put before UTF-8.
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path.name}:{number}", line
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error


def _json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    for where, line in _lines(path):
        entry = _parse_json(line, where, "one JSON object a line")
        if not isinstance(entry, dict):
            raise _malformed(where, entry, "one JSON object a line")
        yield where, entry


def _json_entries(path: Path) -> Iterator[tuple[str, str, dict]]:
    """Of a file that is one object: `file: key`, key and value."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    entries = _parse_json(content, path.name, "a JSON object with an entry for each video")
    if not isinstance(entries, dict):
        raise _malformed(path.name, type(entries).__name__, "a JSON object with an entry for each video")
    for name, entry in entries.items():
        where = f"{path.name}: {name}"
        if not isinstance(entry, dict):
            raise _malformed(where, entry, "an object with `sentences` and `timestamps`")
        yield where, name, entry


def _csv_rows(path: Path, is_strict: bool) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Header in small letters, and the rows by it, each with `file:line` of where it begins."""
    rows = []
    header: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=is_strict)
        number = 1
        try:
            for cells in reader:
                where = f"{path.name}:{number}"
                number = reader.line_num + 1
                if not any(cell.strip() for cell in cells):
                    continue
                if not header:
                    header = [cell.strip().lower() for cell in cells]
                elif len(cells) == len(header):
                    rows.append((where, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}))
                else:
                    expected = f"{len(header)}, as in the header; put quotes around what has a comma inside"
                    raise _malformed(where, f"{len(cells)} cells", expected)
        except csv.Error as error:
            raise _malformed(
                f"{path.name}:{number}", str(error), "cells separated by commas, quotes closed"
            ) from error
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error
    return header, rows


def _column(path: Path, header: list[str], *names: str) -> str:
    for name in names:
        if name in header:
            return name
    raise _malformed(path.name, f"the columns {header}", f"a column `{'` or `'.join(names)}`, separated by commas")


def _parse_json(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _malformed(f"{where} ({error})", text, expected) from error


def _required(entry: dict, name: str, where: str) -> Any:
    if name not in entry:
        raise _malformed(where, f"the keys {sorted(entry)}", f"also {name!r}")
    return entry[name]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _malformed(where, value, "a text that is not empty")
    return value.strip()


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _malformed(where, value, "a number")
    return number


def _duration_seconds(value: Any, where: str) -> float | None:
    if value is None or value == "":
        return None
    seconds = _number(value, where)
    if seconds <= 0:
        raise _malformed(where, value, "a positive duration in seconds, or nothing if it is not known")
    return seconds


def _segments(value: Any, where: str) -> list[list[float]]:
    """`[start, end]`, or a list of such, as a list of such."""
    pairs = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise _malformed(where, value, "`[start, end]` in seconds, or a list of such")
    return [[_number(time, where) for time in pair] for pair in pairs]


def _malformed(where: str, received: Any, expected: str) -> ValueError:
    shown = received if isinstance(received, str) else repr(received)
    return ValueError(
        f"{where}: received {shown.strip()[:200]!r}, expected {expected}. Correct it, or check --format."
    )


def _not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8, in Excel as 'CSV UTF-8'.")


def _file_name(name: str) -> str:
    """The file that the name of a video stands for: the published ones are mp4 unless the name says otherwise."""
    return name if without_extension(name) != name else f"{name}.mp4"


# Cleaning.


def group_by_video(sentences: Iterable[Sentence], durations: dict[str, float]) -> list[AnnotatedVideo]:
    """
    Videos in the order of their first sentence; their duration is the annotation's, else that in `durations`.

    Raises:
        ValueError: If two sentences of a video give it different durations.
    """
    videos: dict[str, AnnotatedVideo] = {}
    for sentence in sentences:
        known = videos.setdefault(sentence.video, AnnotatedVideo(sentence.video, sentence.video_id, None))
        if known.duration_seconds is None:
            known.duration_seconds = sentence.duration_seconds
        elif sentence.duration_seconds not in (None, known.duration_seconds):
            expected = f"{known.duration_seconds} as further up for {sentence.video}"
            raise _malformed(sentence.where, f"the duration {sentence.duration_seconds}", expected)
        known.sentences.append(sentence)
    for video in videos.values():
        if video.duration_seconds is None:
            video.duration_seconds = durations.get(video.video_id, durations.get(without_extension(video.video)))
    return list(videos.values())


def clean_videos(
    videos: list[AnnotatedVideo], paths: dict[str, str | None], repair_reversed: str
) -> tuple[list[dict[str, Any]], Report]:
    """
    Rows of the data set, and what became of the sentences.

    Args:
        videos (`list[AnnotatedVideo]`): The videos of a split.
        paths (`dict[str, str | None]`): What to write as `video` for the name in the annotation; `None` for the name
            itself, since the file is missing. Empty if no videos are at hand.
        repair_reversed (`str`): What to do with segments that end before they start, see [`clean_segment`].
    """
    report = Report()
    if paths:
        report.missing = [video.video for video in videos if paths[video.video] is None]
        report.missing_videos = len(report.missing)
    rows = []
    for video in videos:
        row: dict[str, Any] = {
            "video": paths.get(video.video) or video.video,
            "video_id": video.video_id,
            "duration": video.duration_seconds,
            "sentences": [],
            "segments": [],
        }
        if video.duration_seconds is None:
            report.without_duration.append(video.video)
        for sentence in video.sentences:
            report.read += 1
            text = clean_sentence(sentence.text)
            cleaned = [clean_segment(pair, video.duration_seconds, repair_reversed) for pair in sentence.segments]
            kept = [part for part in cleaned if part.segment is not None]
            reasons = [str(part.reason) for part in cleaned if part.segment is None]
            if not text or not kept:
                reason = "; ".join(dict.fromkeys(reasons)) or NO_SEGMENT
                report.dropped.append({"where": sentence.where, "reason": reason if text else "its text is empty"})
                continue
            report.dropped_segments += [{"where": sentence.where, "reason": reason} for reason in reasons]
            report.kept += 1
            report.clipped += any(part.is_clipped for part in kept)
            report.repaired += any(part.is_repaired for part in kept)
            row["sentences"].append(text)
            row["segments"].append([part.segment for part in kept])
        if row["sentences"]:
            rows.append(row)
    report.videos = len(rows)
    return rows, report


# Videos.


def find_videos(names: Iterable[str], folder: Path) -> dict[str, str | None]:
    """For each name the path of its file relative to `folder`, or the URL that it is; `None` if there is no file."""
    files = VideoFiles(folder)
    found: dict[str, str | None] = {}
    for name in names:
        try:
            path = str(files.find(name))
        except FileNotFoundError:
            found[name] = None  # listed in the report
            continue
        found[name] = Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else path
    return found


def inspect_video(path: Path, decode: bool) -> Inspection:
    """Find out how long a video is and, with `decode`, whether all of it can be read."""
    duration_seconds = None
    try:
        duration_seconds = probe(path).duration_seconds
        if decode:
            check_video(path)
    except VideoReadError as error:
        return Inspection(duration_seconds, str(error))
    except Exception as error:
        # Whatever else this file makes the reader raise now, it would raise in the middle of training.
        return Inspection(duration_seconds, f"{type(error).__name__}: {error}")
    return Inspection(duration_seconds, None)


def map_isolated(
    function: Callable[[Item], Result], items: list[Item], num_workers: int, description: str
) -> list[Result | None]:
    """
    `[function(item) for item in items]` in `num_workers` processes, with `None` where the process died: a decoder that
    crashes on one file must not take the others along.

    Every worker is a pool of its own, since a pool does not tell which of its tasks broke it.
    """
    workers: SimpleQueue[ProcessPoolExecutor | None] = SimpleQueue()
    for _ in range(num_workers):
        workers.put(None)

    def run(item: Item) -> Result | None:
        worker = workers.get()
        try:
            worker = worker or _start_worker()
            return worker.submit(function, item).result()
        except BrokenProcessPool:
            if worker is None:
                raise
            worker = None
            return None
        finally:
            workers.put(worker)

    try:
        with ThreadPoolExecutor(num_workers) as threads:
            return list(tqdm(threads.map(run, items), total=len(items), desc=description))
    finally:
        while not workers.empty():
            if worker := workers.get():
                worker.shutdown()


def _start_worker() -> ProcessPoolExecutor:
    # "spawn": a forked child of a process with threads may hang.
    worker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    # A process that cannot even start is an error of its own, not of the first item.
    worker.submit(os.getpid).result()
    return worker


def inspect_videos(paths: dict[str, str], folder: Path, decode: bool, num_workers: int) -> dict[str, Inspection]:
    """[`inspect_video`] of all videos: from `{name: path relative to folder}` to `{name: Inspection}`."""
    if not paths:
        return {}
    results = map_isolated(
        partial(inspect_video, decode=decode),
        [folder / path for path in paths.values()],
        min(num_workers, len(paths)),
        "decoding videos" if decode else "reading durations",
    )
    crashed = Inspection(None, "the process that read it crashed or was killed")
    return {name: result or crashed for name, result in zip(paths, results, strict=True)}


# Writing.


def split_name(path: Path) -> str:
    """The split that a file's name tells, else "train": `highlight_val_release.jsonl` is "val"."""
    found = SPLIT_IN_FILE_NAME.search(path.stem.lower())
    return found.group(1) if found else "train"


def load_existing(output: Path) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """
    What an earlier call wrote to the output folder: its splits and their reports. First puts right what a call that
    was killed left beside it.

    Raises:
        ValueError: If something else is in the folder.
    """
    new, old = _siblings(output)
    if old.exists() and not output.exists():
        old.rename(output)  # killed between the two renames of `save`
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {}, {}
    refusal = "Name a new or an empty folder, or one that this script wrote, which then gets another split."
    if not (output / "dataset_dict.json").is_file() or not (output / "report.json").is_file():
        raise ValueError(f"{output} exists, and is no data set that this script wrote. {refusal}")
    splits = DatasetDict.load_from_disk(str(output))
    # The folder is replaced as a whole, so what is not ours would be lost.
    others = sorted({path.name for path in output.iterdir()} - {"dataset_dict.json", "report.json", *splits})
    if others or any(split.features != FEATURES for split in splits.values()):
        reason = f"has {others} in it" if others else "has other columns than this script writes"
        raise ValueError(f"{output} {reason}. {refusal}")
    return dict(splits), json.loads((output / "report.json").read_text(encoding="utf-8"))["splits"]


def save(splits: dict[str, Dataset], report: dict[str, Any], output: Path) -> None:
    """Writes data set and report next to the output folder, then swaps: the folder is never there in part."""
    new, old = _siblings(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    DatasetDict(splits).save_to_disk(str(new))
    (new / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if output.exists():
        output.rename(old)
    new.rename(output)
    if old.exists():
        shutil.rmtree(old)


def _siblings(output: Path) -> tuple[Path, Path]:
    """Where the folder is put together, and where the one that it replaces goes for the moment."""
    new, old = (output.with_name(f".{output.name}.prepare_dataset.{kind}") for kind in ("new", "old"))
    return new, old


def prepare_dataset(
    format: str,
    annotations: list[Path],
    output: Path,
    split: str | None = None,
    durations: list[Path] | None = None,
    videos: Path | None = None,
    repair_reversed: str = "drop",
    check_videos: bool = False,
    num_workers: int | None = None,
    push_to_hub: str | None = None,
) -> dict[str, Any]:
    """
    Prepare annotation files, and write the data set and `report.json` to a folder.

    Args:
        format (`str`): Format of the annotations, one of `READERS`.
        annotations (`list[Path]`): Annotation files, one for each split.
        output (`Path`): Folder to write to: new, empty, or written by an earlier call, whose other splits stay.
        split (`str`, *optional*): Name of the split; only for a single file, whose name tells it if not given.
        durations (`list[Path]`, *optional*): Durations of videos, see [`read_durations`].
        videos (`Path`, *optional*): Folder of the videos; without it the annotations alone are prepared.
        repair_reversed (`str`, *optional*, defaults to `"drop"`):
            What to do with segments that end before they start: `"drop"` or `"swap"`.
        check_videos (`bool`, *optional*, defaults to `False`): Decode all videos, and report those that are broken.
        num_workers (`int`, *optional*): Number of processes that open videos, by default one for each CPU.
        push_to_hub (`str`, *optional*): Hub id to upload the data set to.

    Returns:
        `dict`: The report: fields of [`Report`] over the splits of this call; `splits`, the same for each split in the
        folder, those of earlier calls too; `broken_videos` (`video`, `reason`) if videos were checked or one of
        unknown duration could not be opened; `different_durations` (`video`, `annotated_seconds`, `own_seconds`) if
        videos were checked.

    Raises:
        FileNotFoundError: If a file or the folder of videos does not exist.
        ValueError: If arguments do not fit each other, a file is malformed, a split has no sentence left, or the
            output folder holds something else.
    """
    num_workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    _check_arguments(format, annotations, split, durations, videos, repair_reversed, check_videos, num_workers)
    output = Path(output).resolve()
    existing, existing_reports = load_existing(output)

    durations_by_id = read_durations(map(Path, durations or []))
    files = {split or split_name(Path(path)): Path(path) for path in annotations}
    grouped = {name: group_by_video(READERS[format](path), durations_by_id) for name, path in files.items()}

    # A video that several splits annotate is one file.
    by_name: dict[str, AnnotatedVideo] = {}
    for video in chain(*grouped.values()):
        by_name.setdefault(video.video, video)
    paths = {} if videos is None else find_videos(by_name, Path(videos))
    local = {name: path for name, path in paths.items() if path and not is_url(path)}
    unknown = {video.video for video in chain(*grouped.values()) if video.duration_seconds is None}
    opened = local if check_videos else {name: path for name, path in local.items() if name in unknown}
    inspections = inspect_videos(opened, Path(videos or ""), check_videos, num_workers)
    different = [
        {"video": name, "annotated_seconds": annotated, "own_seconds": inspection.duration_seconds}
        for name, inspection in inspections.items()
        if (annotated := by_name[name].duration_seconds) is not None
        and inspection.duration_seconds is not None
        and abs(annotated - inspection.duration_seconds) > MAX_DIFFERENCE_SECONDS
    ]
    broken = [{"video": name, "reason": found.problem} for name, found in inspections.items() if found.problem]

    splits, reports = {}, {}
    for name, of_split in grouped.items():
        for video in of_split:
            if video.duration_seconds is None and video.video in inspections:
                video.duration_seconds = inspections[video.video].duration_seconds
        rows, reports[name] = clean_videos(of_split, paths, repair_reversed)
        if not rows:
            reasons = _count_reasons(reports[name].dropped) or "there is none in it"
            raise ValueError(f"No sentence of {files[name]} is left ({reasons}); leave it out, or check --format.")
        splits[name] = Dataset.from_list(rows, features=FEATURES)

    report: dict[str, Any] = asdict(sum_reports(reports.values()))
    if check_videos or broken:
        report["broken_videos"] = broken
    if check_videos:
        report["different_durations"] = different
    report["splits"] = existing_reports | {name: asdict(of_split) for name, of_split in reports.items()}
    save(existing | splits, report, output)
    _print_summary(report, files, output, videos)
    if push_to_hub is not None:
        DatasetDict.load_from_disk(str(output)).push_to_hub(push_to_hub)
    return report


def _check_arguments(
    format: str,
    annotations: list[Path],
    split: str | None,
    durations: list[Path] | None,
    videos: Path | None,
    repair_reversed: str,
    check_videos: bool,
    num_workers: int,
) -> None:
    if format not in READERS:
        raise ValueError(f"Received format={format!r}; expected one of {list(READERS)}.")
    if repair_reversed not in ("drop", "swap"):
        raise ValueError(f"Received repair_reversed={repair_reversed!r}; expected 'drop' or 'swap'.")
    if num_workers < 1:
        raise ValueError(f"Received num_workers={num_workers}; expected at least 1.")
    for path in map(Path, [*annotations, *(durations or [])]):
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}; check its path.")
    if videos is not None and not Path(videos).is_dir():
        raise FileNotFoundError(f"There is no folder {videos}; name that of the videos, or leave --videos out.")
    if check_videos and videos is None:
        raise ValueError("Received --check_videos without --videos; name the folder of the videos.")
    if split is not None and len(annotations) > 1:
        raise ValueError(f"Received --split {split} for {len(annotations)} files; it can name that of a single one.")
    if split is not None and not re.fullmatch(r"\w+", split):
        raise ValueError(f"Received --split {split!r}; expected letters, digits and underscores.")
    names = [split or split_name(Path(path)) for path in annotations]
    if len(set(names)) < len(names):
        given = ", ".join(f"{name} ({Path(path).name})" for name, path in zip(names, annotations, strict=True))
        raise ValueError(f"Received files of one and the same split: {given}. Prepare them one by one with --split.")


def _count_reasons(dropped: list[dict[str, str]]) -> str:
    # Without the times, which differ from one to the next.
    reasons = Counter(re.split(r" \(| of \d", entry["reason"])[0] for entry in dropped)
    return ", ".join(f"{count} because {reason}" for reason, count in reasons.items())


def _shorten(names: list[str], separator: str = ", ") -> str:
    more = len(names) - NUM_PRINTED
    return separator.join([*names[:NUM_PRINTED], *([f"and {more} more, see report.json"] if more > 0 else [])])


def _print_summary(report: dict[str, Any], files: dict[str, Path], output: Path, videos: Path | None) -> None:
    for name, path in files.items():
        of_split = report["splits"][name]
        print(
            f"{name} ({path.name}): {of_split['read']:,} sentences read, {of_split['kept']:,} kept, of "
            f"{of_split['videos']:,} videos; {of_split['clipped']:,} clipped to their video, "
            f"{of_split['repaired']:,} repaired, {len(of_split['dropped']):,} dropped"
        )
        if of_split["dropped"]:
            print(f"  dropped: {_count_reasons(of_split['dropped'])}")
        if of_split["dropped_segments"]:
            print(f"  of sentences with others left: {_count_reasons(of_split['dropped_segments'])}")
    if report["missing"]:
        print(f"{report['missing_videos']:,} videos are missing: {_shorten(report['missing'])}")
    if report["without_duration"]:
        print(
            f"{len(report['without_duration']):,} videos have no known duration, so ends of their segments could not "
            f"be clipped; give --durations or --videos: {_shorten(report['without_duration'])}"
        )
    if report.get("broken_videos"):
        lines = [f"{entry['video']}: {entry['reason']}" for entry in report["broken_videos"]]
        print(f"{len(lines):,} videos are broken:{LINE_BREAK}{_shorten(lines, LINE_BREAK)}")
    if report.get("different_durations"):
        lines = [
            f"{entry['video']}: {entry['own_seconds']:.2f} s, annotated as {entry['annotated_seconds']:.2f} s"
            for entry in report["different_durations"]
        ]
        print(f"{len(lines):,} videos are longer or shorter than annotated:{LINE_BREAK}{_shorten(lines, LINE_BREAK)}")
    print(f"Written to {output}, all names and reasons to {output / 'report.json'}.")
    if videos is not None:
        print(f"To train on it: --dataset {output} --video_root {videos}")


def main() -> None:
    summary = next(line for line in (__doc__ or "").splitlines() if line)
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--format", choices=list(READERS), required=True, help="Format of the annotations.")
    parser.add_argument(
        "--annotations", type=Path, nargs="+", required=True, help="Annotation files, one for each split."
    )
    parser.add_argument("--split", help="Name of the split of a single file; by default its name tells.")
    parser.add_argument(
        "--durations", type=Path, nargs="+", help="Csv files with columns id and length (seconds), as Charades has."
    )
    parser.add_argument("--videos", type=Path, help="Folder of the videos.")
    parser.add_argument(
        "--output", type=Path, required=True, help="Folder to write to; splits of an earlier call stay."
    )
    parser.add_argument(
        "--repair_reversed",
        choices=["swap", "drop"],
        default="drop",
        help="What to do with segments that end before they start; by default they are dropped.",
    )
    parser.add_argument("--check_videos", action="store_true", help="Decode all videos, and list the broken ones.")
    parser.add_argument("--num_workers", type=int, help="Processes that open videos; by default one for each CPU.")
    parser.add_argument(
        "--push_to_hub", metavar="ID", help="Upload to this Hub id; see first if the annotations may be passed on."
    )
    prepare_dataset(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
