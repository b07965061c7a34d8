"""Segments that were found, as a page that plays them. The page itself is page.html."""

import base64
import html
import json
import os
import string
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..video_io import VideoProperties, VideoReadError, probe
from .selection import NEAR_ZERO
from .table import FAINTEST, LONG_SECONDS


# What browsers play if they know the codec. Under its own name Chromium refuses .mov, which it plays as MP4.
MIME_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
    ".ogg": "video/ogg",
    ".ogv": "video/ogg",
}
MAX_EMBEDDED_BYTES = 100_000_000
# Filled in by `string.Template`, so the script does without dollar signs.
PAGE = string.Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def write_page(record: dict[str, Any], properties: VideoProperties, path: Path) -> str | None:
    """
    A page that shows the segments in a table and on a time line, the fuller in colour the higher they score, and plays
    them.

    Args:
        record (`dict`): What `scada ground --json` prints, of a video of one of the `MIME_TYPES`.
        facts ([`VideoProperties`]): When the video starts on its own clock.
        path (`Path`): Where the page goes.

    Returns:
        `str`, *optional*: How the page refers to the video, if that is too large to be a part of it.
    """
    video = Path(record["video"])
    path.parent.mkdir(parents=True, exist_ok=True)
    is_embedded = video.stat().st_size <= MAX_EMBEDDED_BYTES
    if is_embedded:
        content = base64.b64encode(video.read_bytes()).decode()
        source = f"data:{MIME_TYPES[video.suffix.lower()]};base64,{content}"
    else:
        source = urllib.parse.quote(Path(os.path.relpath(video, path.parent)).as_posix())
    attributes = f' data-start-seconds="{properties.start_seconds}" src="{html.escape(source)}"'
    path.write_text(fill_page(record, video.name, attributes), encoding="utf-8")
    return None if is_embedded else source


def write_library_page(record: dict[str, Any], path: Path) -> dict[str, str]:
    """
    A page that shows the segments of several videos, each on its own video's time line, and plays them. It refers to
    the videos by relative links.

    Args:
        record (`dict`): What `scada search --json` prints.
        path (`Path`): Where the page goes.

    Returns:
        `dict[str, str]`: The reason for each video that is missing or cannot be read, and is marked on the page.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = describe_videos(
        record, lambda video: urllib.parse.quote(Path(os.path.relpath(video, path.parent)).as_posix())
    )
    title = f"Segments in {Path(record['index']).name}"
    path.write_text(fill_page(record | {"sources": sources}, title), encoding="utf-8")
    return {video: source["problem"] for video, source in sources.items() if "problem" in source}


def describe_videos(record: dict[str, Any], get_source: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """
    What the page has to know of the videos that the segments are of.

    Args:
        record (`dict`): What `scada search --json` prints.
        get_source (`Callable`): Gives the link to a video's file.

    Returns:
        `dict[str, dict]`: For each path its `name` (the path without the folder that all share), `source`, `duration`
        and `start_seconds`. A video that is missing or cannot be read has the reason as `problem`, a mark in its name,
        and the end of its last segment as duration.
    """
    segments = [segment for result in record["results"] for segment in result["segments"]]
    videos = sorted({segment["video"] for segment in segments})
    folder = os.path.commonpath([os.path.dirname(video) for video in videos]) if videos else ""
    described: dict[str, dict[str, Any]] = {}
    for video in videos:
        name = Path(os.path.relpath(video, folder or None)).as_posix()
        described[video] = {"name": name, "source": get_source(video)}
        try:
            properties = probe(video)
            described[video] |= {"duration": properties.duration_seconds, "start_seconds": properties.start_seconds}
        except (FileNotFoundError, VideoReadError) as error:
            mark = "missing" if isinstance(error, FileNotFoundError) else "cannot be read"
            end_seconds = max(segment["end"] for segment in segments if segment["video"] == video)
            described[video] |= {"name": f"{name} ({mark})", "duration": end_seconds, "start_seconds": 0.0}
            described[video]["problem"] = str(error)
    return described


def fill_page(record: dict[str, Any], title: str, video_attributes: str = "") -> str:
    """
    Args:
        record (`dict`): What `scada ground --json` prints, or `scada search --json` with `sources` as
            [`describe_videos`] gives them. With `can_cut`, each segment has a button that sends the frame of the page
            the event `cut`, with the indices of sentence and segment.
        title (`str`): The page's title.
        video_attributes (`str`, *optional*): Of the page's video, if there is one alone.

    Returns:
        `str`: The page.
    """
    return PAGE.substitute(
        title=html.escape(title),
        video=video_attributes,
        video_column='<th scope="col" class="video">Video</th>' if "sources" in record else "",
        cut_column='<th scope="col"></th>' if record.get("can_cut") else "",
        near_zero=NEAR_ZERO,
        long_seconds=LONG_SECONDS,
        faintest=FAINTEST,
        # Nothing in a sentence may end the script element.
        data=json.dumps(record).replace("<", "\\u003c"),
    )
