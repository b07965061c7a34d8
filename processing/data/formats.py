"""
Annotation files as data sets are published: one function a format, from a file to its sentences.

A field that a format needs and a file lacks is an error that says where. Fields that a format does not have are passed
over, and a warning names them once a file.
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


# Not through transformers, which the command line would have to import for its help.
logger = logging.getLogger(__name__)

# Hours if there are any, minutes, seconds: 0:01, 90:00, 1:02:03.5.
CLOCK_TIME = re.compile(r"(?:(\d+):(?=[0-5]\d:))?(\d+):([0-5]\d(?:\.\d*)?)")
DIDEMO_CHUNK_SECONDS = 5
# What csv files have between their cells, by the name for messages.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
# Published files give some videos two durations that differ by rounding; these count as one.
MAX_DURATION_DIFFERENCE_SECONDS = 1.0
MAX_DURATION_DIFFERENCE_SHARE = 0.01

Item = TypeVar("Item", bound=tuple)


class Sentence(NamedTuple):
    """
    A sentence as it stands in an annotation file.

    Args:
        where (`str`): File and line, or file, video and number, for messages.
        video (`str`): Name of the video's file.
        video_id (`str`): Name of the video.
        duration_seconds (`float` or `None`): Length of the video; `None` if the file does not say.
        text (`str`): The sentence.
        segments (`list[list[float]]` or `None`):
            Each `[start, end]`, in seconds; none if the sentence is not in the video, `None` if the file does not say.
        split (`str`, *optional*): Split of the sentence, if the file says it.
    """

    where: str
    video: str
    video_id: str
    duration_seconds: float | None
    text: str
    segments: list[list[float]] | None
    split: str | None = None


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
    for where, name, entry in _json_entries(path, {"duration", "timestamps", "sentences"}):
        duration_seconds = _duration_seconds(entry.get("duration"), where)
        video, video_id = _file_name(name), without_extension(name)
        segments = _required(entry, "timestamps", where)
        yield from _sentences(where, video, video_id, duration_seconds, _required(entry, "sentences", where), segments)


def read_tacos(path: Path) -> Iterator[Sentence]:
    """As ActivityNet Captions, but `timestamps` are numbers of frames, and `fps` and `num_frames` say the rest."""
    for where, name, entry in _json_entries(path, {"fps", "num_frames", "timestamps", "sentences"}):
        fps = _number(_required(entry, "fps", where), where)
        if fps <= 0:
            raise malformed(where, fps, "a positive number of frames per second as `fps`")
        duration_seconds = _duration_seconds(_number(_required(entry, "num_frames", where), where) / fps, where)
        video, video_id = _file_name(name), without_extension(name)
        frames = _required(entry, "timestamps", where)
        texts = _required(entry, "sentences", where)
        read = partial(_segments, read_time=partial(_frame_seconds, fps=fps))
        yield from _sentences(where, video, video_id, duration_seconds, texts, frames, read)


QVHIGHLIGHTS_FIELDS = frozenset(
    {"qid", "query", "vid", "duration", "relevant_windows", "relevant_clip_ids", "saliency_scores"}
)


def read_qvhighlights(path: Path) -> Iterator[Sentence]:
    """
    An object a line: `vid`, `query`, `duration`, and `relevant_windows` (seconds), which the test file lacks, and
    which are `[]` where the sentence is not in the video.
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


def read_changing_distributions(path: Path) -> Iterator[Sentence]:
    """
    Charades-CD and ActivityNet-CD (splits in which test moments are distributed otherwise): as ActivityNet Captions.
    Charades-CD has the length as `video_duration`, too.
    """
    return _entries_with_timestamps(path, set())


def read_compositions(path: Path) -> Iterator[Sentence]:
    """
    Charades-CG (splits with new words and new compositions): as ActivityNet Captions, with `news` or `novels`, what is
    new in each sentence, which is not read.
    """
    return _entries_with_timestamps(path, {"news", "novels"})


def read_timelens_bench(path: Path) -> Iterator[Sentence]:
    """An object from names to `duration`, `spans` (seconds) and `queries`."""
    for where, name, entry in _json_entries(path, {"duration", "spans", "queries"}, "`queries` and `spans`"):
        duration_seconds = _duration_seconds(_required(entry, "duration", where), where)
        texts, segments = _required(entry, "queries", where), _required(entry, "spans", where)
        yield from _sentences(where, _file_name(name), without_extension(name), duration_seconds, texts, segments)


def read_qv_m2(path: Path) -> Iterator[Sentence]:
    """As QVHighlights, of which it is an extension; each sentence has its `relevant_windows`, often several."""
    for where, entry in _json_lines(path, QVHIGHLIGHTS_FIELDS):
        name = _text(_required(entry, "vid", where), where)
        duration_seconds = _duration_seconds(_required(entry, "duration", where), where)
        text = _text(_required(entry, "query", where), where)
        segments = _segments(_required(entry, "relevant_windows", where), where)
        yield Sentence(where, _file_name(name), without_extension(name), duration_seconds, text, segments)


def read_ego4d_nlq(path: Path) -> Iterator[Sentence]:
    """
    Ego4D's Natural Language Queries: `videos` of `clips` of `annotations` of `language_queries`. The videos here are
    the clips, `<clip_uid>.mp4`, whose own clock the times are on. Some queries have no text, or no length.
    """
    known = {"query", "template", "slot_x", "verb_x", "slot_y", "verb_y", "raw_tags"}
    known |= {
        f"{of}_{end}_{unit}" for of in ("clip", "video") for end in ("start", "end") for unit in ("sec", "frame")
    }
    for where, clip_uid, duration_seconds, query in _name_unused(path, _nlq_queries(path), known):
        times = [_required(query, name, where) for name in ("clip_start_sec", "clip_end_sec")]
        text = query.get("query") or ""
        if not isinstance(text, str):
            raise malformed(where, text, "a text as 'query', or nothing")
        yield Sentence(where, f"{clip_uid}.mp4", clip_uid, duration_seconds, text, _segments(times, where))


def _nlq_queries(path: Path) -> Iterator[tuple[str, str, float | None, dict]]:
    """Where each query is, its clip, the clip's duration in seconds, and the query."""
    expected = "Ego4D's JSON object with `videos`"
    content = _json_file(path, expected)
    if not isinstance(content, dict):
        raise malformed(path.name, content, expected)
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


def read_didemo(path: Path) -> Iterator[Sentence]:
    """
    A list of objects: `video`, `description`, and `times`, the `[first, last]` chunk of 5 seconds that each of several
    annotators chose. The segment is what most of them chose, of equals the first. The file does not say how long the
    videos are, which end within the last chunk.
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


def read_jsonl(path: Path) -> Iterator[Sentence]:
    """
    An object a line, of a video (`sentences`, `segments`) or of a sentence (`sentence`, and `segment` or `start` and
    `end`); optionally `video_id`, `duration` and `split`. Times are numbers of seconds, or texts like `1:02:03.5`. A
    sentence that is not in the video has `[]`.
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
            raise malformed(where, texts, "a text as 'sentence', or a list of texts as 'sentences'")
        else:
            for sentence in _sentences(where, video, video_id, duration_seconds, texts, segments, read):
                yield sentence._replace(split=split)


def read_csv(path: Path) -> Iterator[Sentence]:
    """
    Columns `video`, `sentence`, and `segment` or `start` and `end`; optionally `video_id`, `duration` and `split`.
    Times are numbers of seconds, or clock times like `1:02:03.5`. Where no comma separates cells, one may be the
    decimal mark. The `segment` of a sentence that is not in the video is `[]`.
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
            segments = _parse_json(row[segment_columns[0]], where, "`[start, end]` in seconds, or a list of such")
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
    "charades-sta": read_charades_sta,
    "activitynet-captions": read_activitynet_captions,
    "qvhighlights": read_qvhighlights,
    "tacos": read_tacos,
    "charades-cd": read_changing_distributions,
    "activitynet-cd": read_changing_distributions,
    "charades-cg": read_compositions,
    "timelens-bench": read_timelens_bench,
    "qv-m2": read_qv_m2,
    "ego4d-nlq": read_ego4d_nlq,
    "didemo": read_didemo,
    "jsonl": read_jsonl,
    "csv": read_csv,
}


def read_durations(paths: Iterable[Path]) -> dict[str, float]:
    """
    Durations from csv files with columns `id` (or `video_id`, `video`) and `length` (or `duration`), in seconds.

    Returns:
        `dict[str, float]`: Seconds by the video's name without extension; empty cells are left out. Of several
        durations of a video that differ little, see [`are_one_duration`], the longest.

    Raises:
        ValueError: If a file has no such columns, a length is no positive number, or a video has two that differ more.
    """
    durations: dict[str, float] = {}
    for path in paths:
        # Not strict: the free text in Charades' file is not ours to correct, and nothing of it is used.
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
                raise malformed(where, seconds, f"the duration that {row[name_column]} has further up; remove one")
            durations[name] = max(earlier_seconds, seconds)
    return durations


def are_one_duration(first_seconds: float, second_seconds: float) -> bool:
    """Whether two durations differ by at most a second, or by at most one per cent of the longer one."""
    tolerance_seconds = max(
        MAX_DURATION_DIFFERENCE_SECONDS, MAX_DURATION_DIFFERENCE_SHARE * max(first_seconds, second_seconds)
    )
    return abs(first_seconds - second_seconds) <= tolerance_seconds


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with `file:line`."""
    # The signature is what Excel and some editors put before UTF-8.
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path.name}:{number}", line
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from error


def _json_lines(path: Path, known: Iterable[str]) -> Iterator[tuple[str, dict]]:
    """The objects of a file that has one a line, each with `file:line`; fields that are not known are named."""
    return _name_unused(path, _json_objects(path), known)


def _json_objects(path: Path) -> Iterator[tuple[str, dict]]:
    for where, line in _lines(path):
        expected = "one JSON object a line"
        if line.lstrip().startswith("["):
            raise malformed(where, line, f"{expected}; write each object of a list on a line of its own")
        entry = _parse_json(line, where, expected)
        if not isinstance(entry, dict):
            raise malformed(where, entry, expected)
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
    """Of a file that is one object: `file: key`, key and value; fields of values that are not known are named."""
    return _name_unused(path, _json_values(path, entry_content), known)


def _json_values(path: Path, entry_content: str) -> Iterator[tuple[str, str, dict]]:
    entries = _json_file(path, "a JSON object with an entry for each video")
    if not isinstance(entries, dict):
        raise malformed(path.name, type(entries).__name__, "a JSON object with an entry for each video")
    for name, entry in entries.items():
        where = f"{path.name}: {name}"
        if not isinstance(entry, dict):
            raise malformed(where, entry, f"an object with {entry_content}")
        yield where, name, entry


def _entries_with_timestamps(path: Path, not_read: set[str]) -> Iterator[Sentence]:
    """As ActivityNet Captions, with fields that are known and not read; the length may be called `video_duration`."""
    known = {"duration", "video_duration", "timestamps", "sentences"} | not_read
    for where, name, entry in _json_entries(path, known):
        length_name = "video_duration" if "duration" not in entry and "video_duration" in entry else "duration"
        duration_seconds = _duration_seconds(_required(entry, length_name, where), where)
        texts, segments = _required(entry, "sentences", where), _required(entry, "timestamps", where)
        yield from _sentences(where, _file_name(name), without_extension(name), duration_seconds, texts, segments)


def _objects(listed: Any, where: str) -> Iterator[tuple[str, dict]]:
    """The objects of a list, each with where it is."""
    if not isinstance(listed, list):
        raise malformed(where, listed, "a list of objects")
    for index, entry in enumerate(listed):
        if not isinstance(entry, dict):
            raise malformed(f"{where}[{index}]", entry, "an object")
        yield f"{where}[{index}]", entry


def _children(parent: dict, name: str, where: str) -> Iterator[tuple[str, dict]]:
    return _objects(_required(parent, name, where), f"{where}: {name}")


def csv_rows(path: Path, is_strict: bool) -> tuple[list[str], list[tuple[str, dict[str, str]]], str]:
    """
    Header in small letters, the rows by it, each with `file:line` of where it begins, and what separates the cells.
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
                    raise malformed(where, f"{len(cells)} cells", expected)
        except csv.Error as error:
            expected = f"cells separated by {SEPARATORS[separator]}, quotes closed"
            raise malformed(f"{path.name}:{number}", str(error), expected) from error
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from error
    if separator != ",":
        logger.warning(
            f"{path.name}: by its header, cells are separated by {SEPARATORS[separator]}; 1,5 in it is read as 1.5."
        )
    return header, rows, separator


def _separator(header: str) -> str:
    """What makes the most cells of a header, since names of columns have none of them inside."""
    return max(SEPARATORS, key=lambda separator: len(next(csv.reader([header], delimiter=separator), [])))


def _decimal_point(cell: str, separator: str) -> str:
    """A number with a point for its comma. Where commas separate cells, `1,234` could be a thousand and more."""
    return cell if separator == "," or "." in cell else cell.replace(",", ".")


def csv_column(path: Path, header: list[str], *names: str) -> str:
    for name in names:
        if header.count(name) > 1:
            raise malformed(path.name, f"{header.count(name)} columns `{name}`", "one of each name")
        if name in header:
            return name
    expected = f"a column `{'` or `'.join(names)}`, separated by commas, semicolons or tabs"
    raise malformed(path.name, f"the columns {header}", expected)


def _parse_json(text: str, where: str, expected: str) -> Any:
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():
            # Half of a pair of escapes is no character, and cannot be written.
            json.dumps(content, ensure_ascii=False).encode()
    except (RecursionError, ValueError) as error:
        raise malformed(f"{where} ({error})", text, expected) from error
    return content


def _required(entry: dict, name: str, where: str) -> Any:
    if name not in entry:
        raise malformed(where, f"the keys {sorted(entry)}", f"also {name!r}")
    return entry[name]


def _name_unused(path: Path, items: Iterable[Item], known: Iterable[str]) -> Iterator[Item]:
    """The items as they are, of which the last part is an object; names the fields that are not known at the end."""
    unused: dict[str, None] = {}
    known = frozenset(known)
    for item in items:
        unused.update((name, None) for name in item[-1] if name not in known)
        yield item
    warn_about_unused(path, list(unused))


def warn_about_unused(path: Path, names: list[str]) -> None:
    """Names the fields or columns of a file that its format does not have; columns without a name are empty ones."""
    if names := [name for name in names if name]:
        logger.warning(f"{path.name}: not used, since the format does not have them: {', '.join(names)}.")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise malformed(where, value, "a text that is not empty")
    return value.strip()


def _number(value: Any, where: str, expected: str = "a number") -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise malformed(where, value, expected)
    return number


def _frame_seconds(value: Any, where: str, fps: float) -> float:
    """From a number of frames."""
    return _number(value, where) / fps


def _time_seconds(value: Any, where: str, video: str | None = None) -> float:
    """From a number of seconds, or a text like `0:01` or `1:02:03.5`."""
    parts = CLOCK_TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    if parts is None:
        of_video = "" if video is None else f" in the video {video!r}"
        return _number(value, where, f"a number of seconds, or a time like 0:01 or 1:02:03.5{of_video}")
    hours, minutes, seconds = parts.groups(default="0")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _duration_seconds(value: Any, where: str) -> float | None:
    if value is None or value == "":
        return None
    seconds = _time_seconds(value, where)
    if seconds <= 0:
        raise malformed(where, value, "a positive duration in seconds, or nothing if it is not known")
    return seconds


def _segments(value: Any, where: str, read_time: Callable[[Any, str], float] = _number) -> list[list[float]]:
    """`[start, end]`, or a list of such, as a list of such; times are numbers, unless `read_time` reads more."""
    pairs = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise malformed(where, value, "`[start, end]` in seconds, or a list of such")
    return [[read_time(time, where) for time in pair] for pair in pairs]


def _any_segments(value: Any, where: str, read_time: Callable[[Any, str], float] = _number) -> list[list[float]]:
    """As `_segments`, and none for `[]`, which says that the sentence is not in the video."""
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
    """The sentences of a video that has a list of them and a list of their segments, which `read` reads."""
    if not isinstance(texts, list) or not isinstance(segments, list) or len(texts) != len(segments):
        counts = [len(value) if isinstance(value, list) else type(value).__name__ for value in (texts, segments)]
        raise malformed(where, f"{counts[0]} sentences and {counts[1]} segments", "two lists of one length")
    for index, (text, of_sentence) in enumerate(zip(texts, segments, strict=True)):
        own = f"{where}[{index}]"
        if not isinstance(text, str):
            raise malformed(own, text, "a sentence")
        yield Sentence(own, video, video_id, duration_seconds, text, read(of_sentence, own))


def malformed(where: str, received: Any, expected: str) -> ValueError:
    shown = received if isinstance(received, str) else repr(received)
    return ValueError(
        f"{where}: received {shown.strip()[:200]!r}, expected {expected}. Correct it, or check the format."
    )


def not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8, in Excel as 'CSV UTF-8'.")


def _file_name(name: str) -> str:
    """The file that the name of a video stands for: the published ones are mp4 unless the name says otherwise."""
    return name if without_extension(name) != name else f"{name}.mp4"
