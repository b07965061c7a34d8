"""Segments that were found, as a page that plays them. The page itself is result_page.html."""

import base64
import html
import json
import os
import string
import urllib.parse
from pathlib import Path
from typing import Any

from .result_table import LONG_SECONDS
from .video_io import VideoFacts


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
PAGE = string.Template(Path(__file__).with_name("result_page.html").read_text(encoding="utf-8"))


def write_page(record: dict[str, Any], facts: VideoFacts, path: Path) -> str | None:
    """
    A page that shows the segments on a time line and in a table, and plays them.

    Args:
        record (`dict`): What `scada ground --json` prints, of a video of one of the `MIME_TYPES`.
        facts ([`VideoFacts`]): When the video starts on its own clock.
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
    page = PAGE.substitute(
        title=html.escape(video.name),
        start_seconds=facts.start_seconds,
        source=html.escape(source),
        long_seconds=LONG_SECONDS,
        # Nothing in a sentence may end the script element.
        data=json.dumps(record).replace("<", "\\u003c"),
    )
    path.write_text(page, encoding="utf-8")
    return None if is_embedded else source
