"""Clean annotated sentences: group them by video, clip, repair or drop their segments, and count what happened."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .annotations import clean_segment, clean_sentence
from .files import without_extension
from .formats import Sentence, are_one_duration, malformed


NO_SEGMENT = "it has no relevant_windows, as in QVHighlights' test file"
# Downloaded copies are often some tenths of a second longer or shorter than what was annotated.
MAX_DIFFERENCE_SECONDS = 1.0


@dataclass
class AnnotatedVideo:
    """
    A video with its sentences in the order of the file.

    Args:
        video (`str`): Name of the video's file.
        video_id (`str`): Name of the video.
        duration_seconds (`float` or `None`): Length of the video; `None` if nothing says it.
        has_unequal_durations (`bool`): Whether the file gives several durations, of which this is the longest.
        sentences (`list[Sentence]`): Its sentences.
    """

    video: str
    video_id: str
    duration_seconds: float | None = None
    has_unequal_durations: bool = False
    sentences: list[Sentence] = field(default_factory=list)


@dataclass
class Report:
    """
    What became of the sentences of a split, or of several.

    Args:
        read, kept, clipped, repaired (`int`): Numbers of sentences.
        not_there (`int`): How many of those kept are said not to be in their video, and so have no segment.
        videos (`int`): Number of videos that have a sentence left.
        dropped (`list[dict]`): `where` and `reason` of each sentence that was dropped.
        dropped_segments (`list[dict]`): The same, of segments whose sentence has others left.
        missing_videos (`int` or `None`): Number of videos without a file; `None` if none was looked for.
        missing (`list[str]`): Their names.
        without_duration (`list[str]`): Videos of unknown duration; ends of their segments are not clipped.
        repeated (`int`): How many of those kept say the same of the same video as one further up.
        unequal_durations (`int`):
            Number of videos that the file gives several durations, see [`are_one_duration`]; the longest was taken.
    """

    read: int = 0
    kept: int = 0
    clipped: int = 0
    repaired: int = 0
    not_there: int = 0
    videos: int = 0
    dropped: list[dict[str, str]] = field(default_factory=list)
    dropped_segments: list[dict[str, str]] = field(default_factory=list)
    missing_videos: int | None = None
    missing: list[str] = field(default_factory=list)
    without_duration: list[str] = field(default_factory=list)
    repeated: int = 0
    unequal_durations: int = 0


def sum_reports(reports: Iterable[Report]) -> Report:
    """Totals; a video that several splits annotate is missing once."""
    total = Report()
    summed = ("read", "kept", "clipped", "repaired", "not_there", "videos", "dropped", "dropped_segments")
    for report in reports:
        for name in (*summed, "repeated", "unequal_durations"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        total.missing = list(dict.fromkeys(total.missing + report.missing))
        total.without_duration = list(dict.fromkeys(total.without_duration + report.without_duration))
        if report.missing_videos is not None:
            total.missing_videos = len(total.missing)
    return total


def group_by_video(sentences: Iterable[Sentence], durations: dict[str, float]) -> list[AnnotatedVideo]:
    """
    Videos in the order of their first sentence; their duration is the annotation's, else that in `durations`.

    Raises:
        ValueError: If two sentences of a video give it durations that differ, see [`are_one_duration`].
    """
    videos: dict[str, AnnotatedVideo] = {}
    shortest_seconds: dict[str, float] = {}
    for sentence in sentences:
        known = videos.setdefault(sentence.video, AnnotatedVideo(sentence.video, sentence.video_id))
        known.sentences.append(sentence)
        if sentence.duration_seconds is None:
            continue
        shortest = min(sentence.duration_seconds, shortest_seconds.get(sentence.video, sentence.duration_seconds))
        longest = max(sentence.duration_seconds, known.duration_seconds or 0.0)
        if not are_one_duration(shortest, longest):
            expected = f"{known.duration_seconds} as further up for {sentence.video}, or up to 1 s or 1 % from it"
            raise malformed(sentence.where, f"the duration {sentence.duration_seconds}", expected)
        shortest_seconds[sentence.video], known.duration_seconds = shortest, longest
        known.has_unequal_durations = shortest < longest
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
        report.unequal_durations += video.has_unequal_durations
        for sentence in video.sentences:
            report.read += 1
            text = clean_sentence(sentence.text)
            pairs = sentence.segments or []
            cleaned = [clean_segment(pair, video.duration_seconds, repair_reversed) for pair in pairs]
            kept = [part for part in cleaned if part.segment is not None]
            reasons = [str(part.reason) for part in cleaned if part.segment is None]
            is_not_there = sentence.segments == []
            if not text or not (kept or is_not_there):
                reason = "; ".join(dict.fromkeys(reasons)) or NO_SEGMENT
                report.dropped.append({"where": sentence.where, "reason": reason if text else "its text is empty"})
                continue
            report.dropped_segments += [{"where": sentence.where, "reason": reason} for reason in reasons]
            report.kept += 1
            report.clipped += any(part.is_clipped for part in kept)
            report.repaired += any(part.is_repaired for part in kept)
            report.not_there += is_not_there
            segments = [part.segment for part in kept]
            report.repeated += (text, segments) in zip(row["sentences"], row["segments"], strict=True)
            row["sentences"].append(text)
            row["segments"].append(segments)
        if row["sentences"]:
            rows.append(row)
    report.videos = len(rows)
    return rows, report
