"""
Readers of published annotation files: one function per format, from a file to its sentences.

A missing field raises an error that names its location. Readers ignore unknown fields, with one warning per file.
"""

import csv
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .files import without_extension


# The logger of the standard library, because importing transformers would slow down the help of the command line.
logger = logging.getLogger(__name__)

# Optional hours, minutes, seconds: 0:01, 90:00, 1:02:03.5.
CLOCK_TIME = re.compile(r"(?:(\d+):(?=[0-5]\d:))?(\d+):([0-5]\d(?:\.\d*)?)")
DIDEMO_CHUNK_SECONDS = 5
# Separators of csv cells, and their names in messages.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
# Published files contain two durations for some videos, which differ by rounding. Such durations count as one.
MAX_DURATION_DIFFERENCE_SECONDS = 1.0
MAX_DURATION_DIFFERENCE_SHARE = 0.01

Item = TypeVar("Item", bound=tuple)


class Sentence(NamedTuple):
    """
    Sentence of an annotation file.

    Args:
        where (`str`): Location for messages: file and line, or file, video and index.
        video (`str`): Name of the video's file.
        video_id (`str`): Name of the video.
        duration_seconds (`float` or `None`): Duration of the video in seconds, or `None` if the file does not give it.
        text (`str`): Text of the sentence.
        segments (`list[list[float]]` or `None`):
            Segments `[start, end]` in seconds. An empty list means that the sentence is not in the video, `None` that
            the file does not give segments.
        split (`str`, *optional*): Split of the sentence, if the file gives it.
    """

    where: str
    video: str
    video_id: str
    duration_seconds: float | None
    text: str
    segments: list[list[float]] | None
    split: str | None = None


def _read_charades_sta(path: Path) -> Iterator[Sentence]:
    """Read lines of `VIDEO start end##sentence`. Only the first `##` separates, because sentences can contain `#`."""
    for where, line in _lines(path):
        head, separator, text = line.partition("##")
        fields = head.split()
        if not separator or len(fields) != 3:
            raise malformed_annotation(where, line, "`VIDEO start end##sentence`")
        segments = _segments(fields[1:], where)
        yield Sentence(where, _file_name(fields[0]), without_extension(fields[0]), None, text, segments)


def _read_activitynet_captions(path: Path) -> Iterator[Sentence]:
    """Read an object that maps names to `duration`, `timestamps` (seconds) and `sentences`."""
    for where, name, entry in _json_entries(path, {"duration", "timestamps", "sentences"}):
        duration_seconds = _duration_seconds(entry.get("duration"), where)
        video, video_id = _file_name(name), without_extension(name)
        segments = _required(entry, "timestamps", where)
        yield from _sentences(where, video, video_id, duration_seconds, _required(entry, "sentences", where), segments)


def _read_tacos(path: Path) -> Iterator[Sentence]:
    """Read the format of ActivityNet Captions, with `timestamps` in frames, and `fps` and `num_frames` per video."""
    for where, name, entry in _json_entries(path, {"fps", "num_frames", "timestamps", "sentences"}):
        fps = _number(_required(entry, "fps", where), where)
        if fps <= 0:
            raise malformed_annotation(where, fps, "a positive number of frames per second as `fps`")
        duration_seconds = _duration_seconds(_number(_required(entry, "num_frames", where), where) / fps, where)
        video, video_id = _file_name(name), without_extension(name)
        frames = _required(entry, "timestamps", where)
        texts = _required(entry, "sentences", where)
        read = partial(_segments, read_time=partial(_frame_seconds, fps=fps))
        yield from _sentences(where, video, video_id, duration_seconds, texts, frames, read)


QVHIGHLIGHTS_FIELDS = frozenset(
    {"qid", "query", "vid", "duration", "relevant_windows", "relevant_clip_ids", "saliency_scores"}
)


def _read_qvhighlights(path: Path) -> Iterator[Sentence]:
    """
    Read one object per line: `vid`, `query`, `duration`, and `relevant_windows` (seconds).

    The test file has no `relevant_windows`. They are `[]` if the sentence is not in the video.
    """
    for where, entry in _json_lines(path, QVHIGHLIGHTS_FIELDS):
        name = _text(_required(entry, "vid", where), where)
        windows = entry.get("relevant_windows")
        yield Sentence(
            where,
            _file_name(name),
            without_extension(name),
            _duration_seconds(entry.get("duration"), where),
            _text(_required(entry, "query", where), where),
            None if windows is None else _any_segments(windows, where),
        )


def _read_changed_distributions(path: Path) -> Iterator[Sentence]:
    """
    Read Charades-CD or ActivityNet-CD, in the format of ActivityNet Captions.

    Their test segments have another distribution than their training segments. In Charades-CD, the duration may be
    called `video_duration`.
    """
    return _entries_with_timestamps(path, set())


def _read_compositions(path: Path) -> Iterator[Sentence]:
    """
    Read Charades-CG (splits with new words and new compositions), in the format of ActivityNet Captions.

    The reader ignores `news` and `novels`, the new words of each sentence.
    """
    return _entries_with_timestamps(path, {"news", "novels"})


def _read_timelens_bench(path: Path) -> Iterator[Sentence]:
    """Read an object that maps names to `duration`, `spans` (seconds) and `queries`."""
    for where, name, entry in _json_entries(path, {"duration", "spans", "queries"}, "`queries` and `spans`"):
        duration_seconds = _duration_seconds(_required(entry, "duration", where), where)
        texts, segments = _required(entry, "queries", where), _required(entry, "spans", where)
        yield from _sentences(where, _file_name(name), without_extension(name), duration_seconds, texts, segments)


def _read_qv_m2(path: Path) -> Iterator[Sentence]:
    """Read QV-M2, an extension of QVHighlights. Each sentence has `relevant_windows`, often several."""
    for where, entry in _json_lines(path, QVHIGHLIGHTS_FIELDS):
        name = _text(_required(entry, "vid", where), where)
        duration_seconds = _duration_seconds(_required(entry, "duration", where), where)
        text = _text(_required(entry, "query", where), where)
        segments = _segments(_required(entry, "relevant_windows", where), where)
        yield Sentence(where, _file_name(name), without_extension(name), duration_seconds, text, segments)


def _read_ego4d_nlq(path: Path) -> Iterator[Sentence]:
    """
    Read Ego4D's Natural Language Queries: `videos`, with `clips`, with `annotations`, with `language_queries`.

    Each clip is one video of the data set, `<clip_uid>.mp4`, and times are relative to the clip. Some queries have no
    text or an empty segment.
    """
    known = {"query", "template", "slot_x", "verb_x", "slot_y", "verb_y", "raw_tags"}
    known |= {
        f"{of}_{end}_{unit}" for of in ("clip", "video") for end in ("start", "end") for unit in ("sec", "frame")
    }
    for where, clip_uid, duration_seconds, query in _name_unused(path, _nlq_queries(path), known):
        times = [_required(query, name, where) for name in ("clip_start_sec", "clip_end_sec")]
        text = query.get("query") or ""
        if not isinstance(text, str):
            raise malformed_annotation(where, text, "a string as 'query', or an empty value")
        yield Sentence(where, f"{clip_uid}.mp4", clip_uid, duration_seconds, text, _segments(times, where))


def _nlq_queries(path: Path) -> Iterator[tuple[str, str, float | None, dict]]:
    """Yield the location, the clip, the duration of the clip in seconds, and the query, for each query."""
    expected = "Ego4D's JSON object with `videos`"
    content = _json_file(path, expected)
    if not isinstance(content, dict):
        raise malformed_annotation(path.name, content, expected)
    for video_where, video in _children(content, "videos", path.name):
        for clip_where, clip in _children(video, "clips", video_where):
            clip_uid = _text(_required(clip, "clip_uid", clip_where), clip_where)
            begin_seconds, end_seconds = (
                _number(_required(clip, name, clip_where), clip_where) for name in ("video_start_sec", "video_end_sec")
            )
            duration_seconds = _duration_seconds(end_seconds - begin_seconds, clip_where)
            for annotation_where, annotation in _children(clip, "annotations", clip_where):
                for where, query in _children(annotation, "language_queries", annotation_where):
                    yield where, clip_uid, duration_seconds, query


def _read_didemo(path: Path) -> Iterator[Sentence]:
    """
    Read a list of objects: `video`, `description`, and `times`, the `[first, last]` chunk of 5 seconds per annotator.

    The segment is the most frequent choice of the annotators, and the first one in a tie. The file contains no
    durations. Each video ends within its last chunk.
    """
    known = {"annotation_id", "video", "description", "times", "num_segments", "dl_link", "download_link"}
    entries = _objects(_json_file(path, "DiDeMo's JSON list"), path.name)
    for where, entry in _name_unused(path, entries, known):
        name = _text(_required(entry, "video", where), where)
        text = _text(_required(entry, "description", where), where)
        chosen = [tuple(pair) for pair in _segments(_required(entry, "times", where), where)]
        ((first, last), _), *_ = Counter(chosen).most_common(1)
        segments = [[first * DIDEMO_CHUNK_SECONDS, (last + 1) * DIDEMO_CHUNK_SECONDS]]
        yield Sentence(where, _file_name(name), without_extension(name), None, text, segments)


def _read_jsonl(path: Path) -> Iterator[Sentence]:
    """
    Read one object per line: a video (`sentences`, `segments`) or a sentence (`sentence`, and `segment` or `start` and
    `end`), optionally with `video_id`, `duration` and `split`.

    Times are numbers of seconds, or strings such as `1:02:03.5`. The segment of a sentence that is not in the video is
    `[]`.
    """
    known = {"video", "video_id", "duration", "split"}
    known |= {"sentence", "sentences", "segment", "segments", "start", "end"}
    for where, entry in _json_lines(path, known):
        video = _text(_required(entry, "video", where), where)
        video_id, split = entry.get("video_id"), entry.get("split")
        video_id = without_extension(video) if video_id is None else _text(video_id, where)
        split = None if split is None else _text(split, where)
        duration_seconds = _duration_seconds(entry.get("duration"), where)
        texts = _required(entry, "sentences" if "sentences" in entry else "sentence", where)
        if {"start", "end"} <= entry.keys() and not {"segment", "segments"} & entry.keys():
            segments = [entry["start"], entry["end"]]
        else:
            segments = _required(entry, "segments" if "segments" in entry else "segment", where)
        read = partial(_any_segments, read_time=partial(_time_seconds, video=video))
        if isinstance(texts, str):
            yield Sentence(where, video, video_id, duration_seconds, texts, read(segments, where), split)
        elif not isinstance(texts, list):
            raise malformed_annotation(where, texts, "a string as 'sentence', or a list of strings as 'sentences'")
        else:
            for sentence in _sentences(where, video, video_id, duration_seconds, texts, segments, read):
                yield sentence._replace(split=split)


def read_csv(path: Path) -> Iterator[Sentence]:
    """
    Read the columns `video`, `sentence`, and `segment` or `start` and `end`, optionally `video_id`, `duration` and
    `split`.

    Times are numbers of seconds, or clock times such as `1:02:03.5`. The decimal mark may be a comma, unless commas
    separate the cells. The `segment` of a sentence that is not in the video is `[]`.
    """
    header, rows, separator = csv_rows(path, is_strict=True)
    video_column = csv_column(path, header, "video")
    sentence_column = csv_column(path, header, "sentence", "sentences")
    has_times = {"start", "end"} <= set(header) and not {"segment", "segments"} & set(header)
    if has_times:
        segment_columns = [csv_column(path, header, name) for name in ("start", "end")]
    else:
        segment_columns = [csv_column(path, header, "segment", "segments", "start` and `end")]
    optional_columns = [csv_column(path, header, name) for name in ("video_id", "duration", "split") if name in header]
    used_columns = {video_column, sentence_column, *segment_columns, *optional_columns}
    warn_about_unused(path, [name for name in header if name not in used_columns])
    for where, row in rows:
        video = _text(row[video_column], where)
        segments: Any
        if has_times:
            segments = [_decimal_point(row[name], separator) for name in segment_columns]
        else:
            segments = _parse_json(
                row[segment_columns[0]], where, "`[start, end]` in seconds, or a list of such pairs"
            )
        yield Sentence(
            where,
            video,
            row.get("video_id") or without_extension(video),
            _duration_seconds(_decimal_point(row.get("duration", ""), separator), where),
            row[sentence_column],
            _any_segments(segments, where, partial(_time_seconds, video=video)),
            row.get("split") or None,
        )


READERS: dict[str, Callable[[Path], Iterator[Sentence]]] = {
    "charades-sta": _read_charades_sta,
    "activitynet-captions": _read_activitynet_captions,
    "qvhighlights": _read_qvhighlights,
    "tacos": _read_tacos,
    "charades-cd": _read_changed_distributions,
    "activitynet-cd": _read_changed_distributions,
    "charades-cg": _read_compositions,
    "timelens-bench": _read_timelens_bench,
    "qv-m2": _read_qv_m2,
    "ego4d-nlq": _read_ego4d_nlq,
    "didemo": _read_didemo,
    "jsonl": _read_jsonl,
    "csv": read_csv,
}


def read_durations(paths: Iterable[Path]) -> dict[str, float]:
    """
    Read durations from csv files with the columns `id` (or `video_id`, `video`) and `length` (or `duration`).

    Returns:
        `dict[str, float]`: Duration in seconds for each video name without extension. Empty cells are skipped. If a
        video has several durations that count as one (see [`are_one_duration`]), the longest is returned.

    Raises:
        ValueError: If a column is missing, a length is not a positive number, or durations of a video differ.
    """
    durations: dict[str, float] = {}
    for path in paths:
        # Not strict, because Charades' file contains free text, which is not used.
        header, rows, separator = csv_rows(path, is_strict=False)
        name_column = csv_column(path, header, "id", "video_id", "video")
        length_column = csv_column(path, header, "length", "duration")
        for where, row in rows:
            seconds = _duration_seconds(_decimal_point(row[length_column], separator), where)
            if seconds is None:
                continue
            name = without_extension(row[name_column])
            earlier_seconds = durations.get(name, seconds)
            if not are_one_duration(earlier_seconds, seconds):
                raise malformed_annotation(
                    where, seconds, f"the same duration as above for {row[name_column]}; remove one"
                )
            durations[name] = max(earlier_seconds, seconds)
    return durations


def are_one_duration(first_seconds: float, second_seconds: float) -> bool:
    """Return whether two durations differ by at most 1 s, or by at most 1 % of the longer one."""
    tolerance_seconds = max(
        MAX_DURATION_DIFFERENCE_SECONDS, MAX_DURATION_DIFFERENCE_SHARE * max(first_seconds, second_seconds)
    )
    return abs(first_seconds - second_seconds) <= tolerance_seconds


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield `file:line` and the line, for each line that is not blank."""
    # Excel and some editors write a byte order mark before UTF-8.
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path.name}:{number}", line
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from error


def _json_lines(path: Path, known: Iterable[str]) -> Iterator[tuple[str, dict]]:
    """Yield `file:line` and the object of each line, and warn about unknown fields."""
    return _name_unused(path, _json_objects(path), known)


def _json_objects(path: Path) -> Iterator[tuple[str, dict]]:
    for where, line in _lines(path):
        expected = "one JSON object per line"
        if line.lstrip().startswith("["):
            raise malformed_annotation(where, line, f"{expected}; write each object of the list on a separate line")
        entry = _parse_json(line, where, expected)
        if not isinstance(entry, dict):
            raise malformed_annotation(where, entry, expected)
        yield where, entry


def _json_file(path: Path, expected: str) -> Any:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error
    return _parse_json(content, path.name, expected)


def _json_entries(
    path: Path, known: Iterable[str], entry_content: str = "`sentences` and `timestamps`"
) -> Iterator[tuple[str, str, dict]]:
    """Yield `file: key`, key and value for each entry of a JSON object, and warn about unknown fields."""
    return _name_unused(path, _json_values(path, entry_content), known)


def _json_values(path: Path, entry_content: str) -> Iterator[tuple[str, str, dict]]:
    entries = _json_file(path, "a JSON object with one entry per video")
    if not isinstance(entries, dict):
        raise malformed_annotation(path.name, type(entries).__name__, "a JSON object with one entry per video")
    for name, entry in entries.items():
        where = f"{path.name}: {name}"
        if not isinstance(entry, dict):
            raise malformed_annotation(where, entry, f"an object with {entry_content}")
        yield where, name, entry


def _entries_with_timestamps(path: Path, not_read: set[str]) -> Iterator[Sentence]:
    """Read the format of ActivityNet Captions. Ignore `not_read`, and accept `video_duration` for `duration`."""
    known = {"duration", "video_duration", "timestamps", "sentences"} | not_read
    for where, name, entry in _json_entries(path, known):
        length_name = "video_duration" if "duration" not in entry and "video_duration" in entry else "duration"
        duration_seconds = _duration_seconds(_required(entry, length_name, where), where)
        texts, segments = _required(entry, "sentences", where), _required(entry, "timestamps", where)
        yield from _sentences(where, _file_name(name), without_extension(name), duration_seconds, texts, segments)


def _objects(listed: Any, where: str) -> Iterator[tuple[str, dict]]:
    """Yield the location and the object, for each object of a list."""
    if not isinstance(listed, list):
        raise malformed_annotation(where, listed, "a list of objects")
    for index, entry in enumerate(listed):
        if not isinstance(entry, dict):
            raise malformed_annotation(f"{where}[{index}]", entry, "an object")
        yield f"{where}[{index}]", entry


def _children(parent: dict, name: str, where: str) -> Iterator[tuple[str, dict]]:
    return _objects(_required(parent, name, where), f"{where}: {name}")


def csv_rows(path: Path, is_strict: bool) -> tuple[list[str], list[tuple[str, dict[str, str]]], str]:
    """
    Read a csv file.

    Returns:
        `tuple`: The header in lower case, the rows as pairs of the `file:line` where they begin and their cells by
        column, and the separator of the cells.
    """
    rows = []
    header: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        number = 1
        try:
            separator = _separator(next((line for line in file if line.strip()), ""))
            file.seek(0)
            reader = csv.reader(file, strict=is_strict, delimiter=separator)
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
                    inside = SEPARATORS[separator]
                    expected = f"{len(header)}, as in the header; put quotes around a cell with {inside} inside"
                    raise malformed_annotation(where, f"{len(cells)} cells", expected)
        except csv.Error as error:
            expected = f"cells separated by {SEPARATORS[separator]}, quotes closed"
            raise malformed_annotation(f"{path.name}:{number}", str(error), expected) from error
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from error
    if separator != ",":
        logger.warning(f"{path.name}: the header separates cells by {SEPARATORS[separator]}, so 1,5 is read as 1.5.")
    return header, rows, separator


def _separator(header: str) -> str:
    """Return the separator that splits the header into the most cells. Column names contain no separators."""
    return max(SEPARATORS, key=lambda separator: len(next(csv.reader([header], delimiter=separator), [])))


def _decimal_point(cell: str, separator: str) -> str:
    """Replace a decimal comma by a point, unless commas separate cells: `1,234` could then be a thousand and more."""
    return cell if separator == "," or "." in cell else cell.replace(",", ".")


def csv_column(path: Path, header: list[str], *names: str) -> str:
    for name in names:
        if header.count(name) > 1:
            raise malformed_annotation(path.name, f"{header.count(name)} columns `{name}`", "one of each name")
        if name in header:
            return name
    expected = f"a column `{'` or `'.join(names)}`, separated by commas, semicolons or tabs"
    raise malformed_annotation(path.name, f"the columns {header}", expected)


def _parse_json(text: str, where: str, expected: str) -> Any:
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():
            # Half of a surrogate pair is not a character and cannot be encoded.
            json.dumps(content, ensure_ascii=False).encode()
    except (RecursionError, ValueError) as error:
        raise malformed_annotation(f"{where} ({error})", text, expected) from error
    return content


def _required(entry: dict, name: str, where: str) -> Any:
    if name not in entry:
        raise malformed_annotation(where, f"the keys {sorted(entry)}", f"also {name!r}")
    return entry[name]


def _name_unused(path: Path, items: Iterable[Item], known: Iterable[str]) -> Iterator[Item]:
    """Yield items whose last part is an object, then warn about the unknown fields of these objects."""
    unused: dict[str, None] = {}
    known = frozenset(known)
    for item in items:
        unused.update((name, None) for name in item[-1] if name not in known)
        yield item
    warn_about_unused(path, list(unused))


def warn_about_unused(path: Path, names: list[str]) -> None:
    """Warn about fields or columns of a file that its format does not have. Ignore columns without a name."""
    if names := [name for name in names if name]:
        logger.warning(f"{path.name}: ignoring fields that the format does not have: {', '.join(names)}.")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise malformed_annotation(where, value, "a string that is not empty")
    return value.strip()


def _number(value: Any, where: str, expected: str = "a number") -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise malformed_annotation(where, value, expected)
    return number


def _frame_seconds(value: Any, where: str, fps: float) -> float:
    """Convert a number of frames to seconds."""
    return _number(value, where) / fps


def _time_seconds(value: Any, where: str, video: str | None = None) -> float:
    """Convert a number of seconds, or a string such as `0:01` or `1:02:03.5`, to seconds."""
    parts = CLOCK_TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    if parts is None:
        in_video = "" if video is None else f" in the video {video!r}"
        return _number(value, where, f"a number of seconds, or a time like 0:01 or 1:02:03.5{in_video}")
    hours, minutes, seconds = parts.groups(default="0")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _duration_seconds(value: Any, where: str) -> float | None:
    if value is None or value == "":
        return None
    seconds = _time_seconds(value, where)
    if seconds <= 0:
        raise malformed_annotation(where, value, "a positive duration in seconds, or an empty value if it is unknown")
    return seconds


def _segments(value: Any, where: str, read_time: Callable[[Any, str], float] = _number) -> list[list[float]]:
    """Convert `[start, end]`, or a list of such pairs, to a list of pairs. `read_time` converts each time."""
    pairs = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise malformed_annotation(where, value, "`[start, end]` in seconds, or a list of such pairs")
    return [[read_time(time, where) for time in pair] for pair in pairs]


def _any_segments(value: Any, where: str, read_time: Callable[[Any, str], float] = _number) -> list[list[float]]:
    """Convert segments as `_segments` does, but accept `[]` for a sentence that is not in the video."""
    return [] if value == [] else _segments(value, where, read_time)


def _sentences(
    where: str,
    video: str,
    video_id: str,
    duration_seconds: float | None,
    texts: Any,
    segments: Any,
    read: Callable[[Any, str], list[list[float]]] = _segments,
) -> Iterator[Sentence]:
    """Yield the sentences of a video from a list of texts and a list of segments. `read` converts each segment."""
    if not isinstance(texts, list) or not isinstance(segments, list) or len(texts) != len(segments):
        counts = [len(value) if isinstance(value, list) else type(value).__name__ for value in (texts, segments)]
        raise malformed_annotation(
            where, f"{counts[0]} sentences and {counts[1]} segments", "two lists of equal length"
        )
    for index, (text, sentence_segments) in enumerate(zip(texts, segments, strict=True)):
        own = f"{where}[{index}]"
        if not isinstance(text, str):
            raise malformed_annotation(own, text, "a sentence")
        yield Sentence(own, video, video_id, duration_seconds, text, read(sentence_segments, own))


def malformed_annotation(where: str, received: Any, expected: str) -> ValueError:
    shown = received if isinstance(received, str) else repr(received)
    return ValueError(
        f"{where}: received {shown.strip()[:200]!r}, expected {expected}. Correct it, or check the file format."
    )


def not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8 (in Excel: 'CSV UTF-8').")


def _file_name(name: str) -> str:
    """Return the file name of a video. Published videos are mp4 unless the name has another extension."""
    return name if without_extension(name) != name else f"{name}.mp4"
