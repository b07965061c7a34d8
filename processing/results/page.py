"""HTML pages that play found segments. Their template is page.html."""

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


# Containers that browsers play if they support the codec. Chromium plays .mov only as video/mp4.
MIME_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
    ".ogg": "video/ogg",
    ".ogv": "video/ogg",
}
MAX_EMBEDDED_BYTES = 100_000_000
# A `string.Template`, so the script of the page contains no other dollar signs.
PAGE = string.Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def write_page(record: dict[str, Any], properties: VideoProperties, path: Path) -> str | None:
    """
    Write a page that lists the segments in a table and on a timeline, and plays them. Colours become more intense with
    higher scores.

    Args:
        record (`dict`): Output of `scada ground --json` for a video of one of the `MIME_TYPES`.
        properties ([`VideoProperties`]): Properties of the video. The page uses its start time.
        path (`Path`): Output path.

    Returns:
        `str`, *optional*: Link to the video, if the video is too large to embed.
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
    Write a page that plays the segments of several videos, each on the timeline of its video. Relative links refer to
    the videos.

    Args:
        record (`dict`): Output of `scada search --json`.
        path (`Path`): Output path.

    Returns:
        `dict[str, str]`: Error message of each missing or unreadable video. The page marks these videos.
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
    Return the properties of all videos on a page.

    Args:
        record (`dict`): Output of `scada search --json`.
        get_source (`Callable`): Function that returns the link to a video file.

    Returns:
        `dict[str, dict]`: Per path, the `name` (the path relative to the common folder of all videos), `source`,
        `duration` and `start_seconds`. For a missing or unreadable video, the dict also contains the error message as
        `problem`, the name is marked, and the duration is the end of the last segment.
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
    Fill the template of the page.

    Args:
        record (`dict`): Output of `scada ground --json`, or of `scada search --json` with the result of
            [`describe_videos`] as `sources`. With `can_cut`, each segment has a button that dispatches the event `cut`
            to the frame of the page, with the indices of sentence and segment.
        title (`str`): Title of the page.
        video_attributes (`str`, *optional*): HTML attributes of the video element, for a page with a single video.

    Returns:
        `str`: HTML of the page.
    """
    return PAGE.substitute(
        title=html.escape(title),
        video=video_attributes,
        video_column='<th scope="col" class="video">Video</th>' if "sources" in record else "",
        cut_column='<th scope="col"></th>' if record.get("can_cut") else "",
        near_zero=NEAR_ZERO,
        long_seconds=LONG_SECONDS,
        faintest=FAINTEST,
        # Prevent sentences from closing the script element.
        data=json.dumps(record).replace("<", "\\u003c"),
    )
