"""Cleaning of annotated sentences: group by video, clip, repair or drop segments, and report the counts."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .annotations import clean_segment, clean_sentence
from .files import without_extension
from .formats import Sentence, are_one_duration, malformed_annotation


NO_SEGMENT = "it has no relevant_windows, as in QVHighlights' test file"
# Downloaded copies often differ from the annotated video by some tenths of a second.
MAX_DIFFERENCE_SECONDS = 1.0


@dataclass
class AnnotatedVideo:
    """
    Video with its sentences, in file order.

    Args:
        video (`str`): Name of the video's file.
        video_id (`str`): Name of the video.
        duration_seconds (`float` or `None`): Duration of the video in seconds, or `None` if unknown.
        has_unequal_durations (`bool`):
            Whether the file contains several durations for the video. `duration_seconds` is the longest.
        sentences (`list[Sentence]`): Sentences of the video.
    """

    video: str
    video_id: str
    duration_seconds: float | None = None
    has_unequal_durations: bool = False
    sentences: list[Sentence] = field(default_factory=list)


@dataclass
class Report:
    """
    Report on the sentences of one or several splits.

    Args:
        read, kept, clipped, repaired (`int`): Number of sentences read, kept, clipped to the video, and repaired.
        not_there (`int`): Number of kept sentences without a segment, because the file marks them as not in the video.
        videos (`int`): Number of videos with at least one kept sentence.
        dropped (`list[dict]`): `where` and `reason` of each dropped sentence.
        dropped_segments (`list[dict]`): `where` and `reason` of each dropped segment of a kept sentence.
        missing_videos (`int` or `None`): Number of videos without a file, or `None` without a folder of videos.
        missing (`list[str]`): Names of the videos without a file.
        without_duration (`list[str]`): Videos of unknown duration. The ends of their segments are not clipped.
        repeated (`int`): Number of kept sentences that repeat an earlier sentence and its segments in the same video.
        unequal_durations (`int`):
            Number of videos with several durations in the file, see [`are_one_duration`]. The longest duration counts.
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
    """Add up reports. Count a missing video once, even if several splits contain it."""
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
    Group sentences by video, in the order of the first sentence of each video.

    The duration of a video is its annotated duration, or the one in `durations` if the annotations contain none.

    Raises:
        ValueError: If two sentences of a video have different durations, see [`are_one_duration`].
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
            expected = f"{known.duration_seconds} as above for {sentence.video}, within 1 s or 1 %"
            raise malformed_annotation(sentence.where, f"the duration {sentence.duration_seconds}", expected)
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
    Clean the sentences of videos.

    Args:
        videos (`list[AnnotatedVideo]`): Videos of a split.
        paths (`dict[str, str | None]`):
            Value of the column `video` for each annotated name. `None` marks a missing file and keeps the annotated
            name. Empty without a folder of videos.
        repair_reversed (`str`): Treatment of segments that end before they start, see [`clean_segment`].

    Returns:
        `tuple[list[dict[str, Any]], Report]`: Rows of the data set, and the report.
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
