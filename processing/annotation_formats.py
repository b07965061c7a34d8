"""
Annotation files as data sets are published: one function a format, from a file to its sentences.

Whatever a file has that its format does not is an error that says where: such a file is not what it was taken for, and
leaving its rows out would hide that.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .video_files import without_extension


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


def read_charades_sta(path: Path) -> Iterator[Sentence]:
    """`VIDEO start end##sentence`, one a line. Sentences have `#` in them, so only the first `##` counts."""
    for where, line in _lines(path):
        head, separator, text = line.partition("##")
        fields = head.split()
        if not separator or len(fields) != 3:
            raise malformed(where, line, "`VIDEO start end##sentence`")
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
            raise malformed(where, fps, "a positive number of frames per second as `fps`")
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
    header, rows = csv_rows(path, is_strict=True)
    video_column = csv_column(path, header, "video")
    sentence_column = csv_column(path, header, "sentence", "sentences")
    has_times = {"start", "end"} <= set(header) and not {"segment", "segments"} & set(header)
    segment_column = "" if has_times else csv_column(path, header, "segment", "segments", "start` and `end")
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
        header, rows = csv_rows(path, is_strict=False)
        name_column = csv_column(path, header, "id", "video_id", "video")
        length_column = csv_column(path, header, "length", "duration")
        for where, row in rows:
            seconds = _duration_seconds(row[length_column], where)
            if seconds is None:
                continue
            if durations.setdefault(without_extension(row[name_column]), seconds) != seconds:
                raise malformed(where, seconds, f"the duration that {row[name_column]} has further up; remove one")
    return durations


def _sentences(
    where: str, video: str, video_id: str, duration_seconds: float | None, texts: Any, segments: Any
) -> Iterator[Sentence]:
    """The sentences of a video that has a list of them and a list of their segments."""
    if not isinstance(texts, list) or not isinstance(segments, list) or len(texts) != len(segments):
        counts = [len(value) if isinstance(value, list) else type(value).__name__ for value in (texts, segments)]
        raise malformed(where, f"{counts[0]} sentences and {counts[1]} segments", "two lists of one length")
    for index, (text, of_sentence) in enumerate(zip(texts, segments, strict=True)):
        own = f"{where}[{index}]"
        if not isinstance(text, str):
            raise malformed(own, text, "a sentence")
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
            raise malformed(where, entry, "one JSON object a line")
        yield where, entry


def _json_entries(path: Path) -> Iterator[tuple[str, str, dict]]:
    """Of a file that is one object: `file: key`, key and value."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    entries = _parse_json(content, path.name, "a JSON object with an entry for each video")
    if not isinstance(entries, dict):
        raise malformed(path.name, type(entries).__name__, "a JSON object with an entry for each video")
    for name, entry in entries.items():
        where = f"{path.name}: {name}"
        if not isinstance(entry, dict):
            raise malformed(where, entry, "an object with `sentences` and `timestamps`")
        yield where, name, entry


def csv_rows(path: Path, is_strict: bool) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
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
                    raise malformed(where, f"{len(cells)} cells", expected)
        except csv.Error as error:
            raise malformed(f"{path.name}:{number}", str(error), "cells separated by commas, quotes closed") from error
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error
    return header, rows


def csv_column(path: Path, header: list[str], *names: str) -> str:
    for name in names:
        if name in header:
            return name
    raise malformed(path.name, f"the columns {header}", f"a column `{'` or `'.join(names)}`, separated by commas")


def _parse_json(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise malformed(f"{where} ({error})", text, expected) from error


def _required(entry: dict, name: str, where: str) -> Any:
    if name not in entry:
        raise malformed(where, f"the keys {sorted(entry)}", f"also {name!r}")
    return entry[name]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise malformed(where, value, "a text that is not empty")
    return value.strip()


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise malformed(where, value, "a number")
    return number


def _duration_seconds(value: Any, where: str) -> float | None:
    if value is None or value == "":
        return None
    seconds = _number(value, where)
    if seconds <= 0:
        raise malformed(where, value, "a positive duration in seconds, or nothing if it is not known")
    return seconds


def _segments(value: Any, where: str) -> list[list[float]]:
    """`[start, end]`, or a list of such, as a list of such."""
    pairs = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise malformed(where, value, "`[start, end]` in seconds, or a list of such")
    return [[_number(time, where) for time in pair] for pair in pairs]


def malformed(where: str, received: Any, expected: str) -> ValueError:
    shown = received if isinstance(received, str) else repr(received)
    return ValueError(
        f"{where}: received {shown.strip()[:200]!r}, expected {expected}. Correct it, or check the format."
    )


def _not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8, in Excel as 'CSV UTF-8'.")


def _file_name(name: str) -> str:
    """The file that the name of a video stands for: the published ones are mp4 unless the name says otherwise."""
    return name if without_extension(name) != name else f"{name}.mp4"
