"""
The application: a page on which one drops in a video, or searches an index, and plays and cuts what was found.

It needs Gradio, which is imported here alone.
"""

import html
import os
import re
import socket
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from processing.encoded_video import EncodedVideo
from processing.pipeline_temporal_grounding import INPUT_ERRORS, TemporalGroundingPipeline
from processing.results.clips import cut_segments
from processing.results.page import describe_videos, fill_page
from processing.results.selection import apply_threshold, select_shown
from processing.results.table import LONG_SECONDS, format_time
from processing.video_io import probe

from .inference.grounding import find_segments
from .library.index import check_can_encode
from .library.search import Library
from .library.search import search as search_library


try:
    import gradio as gr
except ImportError as error:
    raise RuntimeError('The application needs Gradio; install it with `pip install ".[app]"`.') from error


# The page lies in a frame, which is as high as the page, and as light or dark as the application.
FRAME = (
    '<iframe title="Segments" style="width: 100%; height: 40rem; border: 0" srcdoc="{page}" '
    'onload="const frame = this, root = frame.contentDocument.documentElement, body = frame.contentDocument.body; '
    "root.style.colorScheme = document.body.classList.contains('dark') ? 'dark' : 'light'; body.style.padding = 0; "
    "root.style.setProperty('--back', getComputedStyle(document.body).getPropertyValue('--body-background-fill')); "
    'new ResizeObserver(() => {{ frame.style.height = body.offsetHeight + 8 + &quot;px&quot;; }}).observe(body)">'
    "</iframe>"
)
# The button of a segment sends the frame an event.
PASS_ON = "element.addEventListener('cut', event => trigger('click', {segment: event.detail}));"
SHOW_CLIP = "() => document.getElementById('clip').scrollIntoView({behavior: 'smooth', block: 'center'})"
# The message says what is wrong; a badge in the place of the answer says no more.
STYLE = "#found .error { display: none }"
# Uploads and clips are deleted after a day, looked for each hour; an encoded video after an hour.
DELETE_CACHE = (3600, 86400)
FORGET_SECONDS = 3600


def split_sentences(text: str) -> list[str]:
    """
    The sentences of a text, one a line.

    Raises:
        ValueError: If there is none.
    """
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    if not sentences:
        raise ValueError("There is no sentence yet. Type what to look for, one sentence a line.")
    return sentences


def ground_video(
    pipe: TemporalGroundingPipeline,
    path: str | None,
    text: str,
    top_k: int,
    known: tuple[str, EncodedVideo] | None,
    nms: float | None = 0.5,
    progress: Callable[[float], Any] | None = None,
) -> tuple[dict[str, Any], tuple[str, EncodedVideo]]:
    """
    Finds the moments of one video; it is encoded unless it is the one that was before.

    Args:
        pipe ([`TemporalGroundingPipeline`]): The model.
        path (`str`): The video file.
        text (`str`): What to look for, one sentence a line.
        top_k (`int`): At most so many segments a sentence.
        known (`tuple[str, EncodedVideo]`, *optional*): What the call before gave.
        nms (`float`, *optional*, defaults to 0.5): As for the pipeline.
        progress (`Callable`, *optional*): Called with the share of the video that is encoded, from 0 to 1.

    Returns:
        `tuple[dict, tuple[str, EncodedVideo]]`: The record as of `scada ground --json`, and what to pass the next
        time.

    Raises:
        ValueError, OSError, VideoReadError: If there is no video or no sentence, or the video cannot be read.
    """
    sentences = split_sentences(text)
    if path is None:
        raise ValueError("There is no video yet. Drop one in first.")
    if known is None or known[0] != path:
        known = (path, pipe.encode(path, progress=progress))
    encoded = known[1]
    results = find_segments(pipe, encoded, sentences, top_k, nms)
    return {"video": path, "duration": encoded.timelines[-1].end_seconds, "results": results}, known


def search_sentences(
    pipe: TemporalGroundingPipeline,
    library: Library,
    text: str,
    top_k: int,
    nms: float | None = 0.5,
    progress: Callable[[float], Any] | None = None,
) -> dict[str, Any]:
    """
    Finds the moments of all videos of an index.

    Args:
        pipe ([`TemporalGroundingPipeline`]): The model of the index.
        library ([`Library`]): The index.
        text (`str`): What to look for, one sentence a line.
        top_k (`int`): At most so many segments a sentence, of all videos together.
        nms (`float`, *optional*, defaults to 0.5): As for the pipeline.
        progress (`Callable`, *optional*): Called with the share of the windows that were asked, from 0 to 1.

    Returns:
        `dict`: The record as of `scada search --json`.

    Raises:
        ValueError: If there is no sentence, or the index was made with another model.
    """
    results = search_library(library, split_sentences(text), pipe, top_k, nms=nms, progress=progress)
    for result in results:
        for segment in result["segments"]:
            segment["video"] = os.path.abspath(segment["video"])
    duration = max((timeline.end_seconds for timeline in library.timelines), default=0.0)
    return {"index": str(library.path), "duration": duration, "results": results}


def show(record: dict[str, Any], model_name: str) -> str:
    """The page that plays the segments of a record, as a frame whose videos this application serves."""
    record = record | {"model": model_name, "can_cut": True}
    if "video" in record:
        video, properties = record["video"], probe(record["video"])
        attributes = f' data-start-seconds="{properties.start_seconds}" src="{html.escape(file_url(video))}"'
        page = fill_page(record, Path(video).name, attributes)
    else:
        page = fill_page(record | {"sources": describe_videos(record, file_url)}, Path(record["index"]).name)
    return FRAME.format(page=html.escape(page))


def file_url(video: str) -> str:
    """Where this application serves a file; without a slash at the front, so that it holds behind a proxy too."""
    return f"gradio_api/file={urllib.parse.quote(video)}"


def cut_segment(record: dict[str, Any], number: int, rank: int, folder: Path) -> str:
    """
    Cuts a segment out, from its start to its end.

    Args:
        record (`dict`): What `ground_video` or `search_sentences` gave.
        number (`int`): Of the sentence, from 0.
        rank (`int`): Of the segment, from 0.
        folder (`Path`): Where the clip goes.

    Returns:
        `str`: The clip.

    Raises:
        OSError, VideoReadError: If the video is gone, or cannot be cut.
    """
    result = record["results"][number]
    one = record | {"results": [{"sentence": result["sentence"], "segments": [result["segments"][rank]]}]}
    clip: Any
    (clip,) = cut_segments(one, folder, exact=True)
    return str(clip.path)


def make_app(
    pipe: TemporalGroundingPipeline,
    model_name: str,
    library: Library | None = None,
    threshold: float | None = None,
    nms: float | None = 0.5,
) -> gr.Blocks:
    """
    Args:
        pipe ([`TemporalGroundingPipeline`]): The model.
        model_name (`str`): How the page calls it.
        library ([`Library`], *optional*): An index that can be searched, besides videos that are dropped in.
        threshold (`float`, *optional*): Lowest score of a segment that counts as found, to begin with.
        nms (`float`, *optional*, defaults to 0.5): As for the pipeline.

    Returns:
        `gradio.Blocks`: To be started with [`launch`].

    Raises:
        ValueError: If the first layer of the model depends on the sentence, so that no video can be encoded.
    """
    check_can_encode(pipe)

    # An answer starts by taking away what is there, so that a message never stands next to another video's segments.
    def find(
        where: str,
        path: str | None,
        text: str,
        top_k: int,
        lowest: float,
        known: tuple[str, EncodedVideo] | None,
        progress: Any = gr.Progress(),  # noqa: B008  Gradio looks for it there
    ) -> Iterator[tuple]:
        yield (*nothing(), known)
        in_index = library is not None and (where == "index" or (where == "either" and path is None))

        def show_share(share: float) -> None:
            progress(share, desc=f"Looking through the {'index' if in_index else 'video'}")

        def ask() -> tuple:
            if library is not None and in_index:
                return fill(search_sentences(pipe, library, text, top_k, nms, show_share), lowest), known
            record, encoded = ground_video(pipe, path, text, top_k, known, nms, show_share)
            return fill(record, lowest), encoded

        show_share(0.0)
        folders = [os.path.dirname(path)] if path else []
        if library is not None:
            videos = library.video_path(".")
            folders += [videos, os.path.abspath(videos), os.path.realpath(videos), str(library.path)]
        answer, encoded = _as_message(folders, ask)
        yield (*answer, encoded)

    def nothing() -> tuple:
        return "", None, gr.Video(value=None, visible=False)

    def fill(record: dict[str, Any], lowest: float) -> tuple:
        results = apply_threshold(record["results"], lowest or None)
        shown = select_shown(record | {"results": results})
        return show(shown, model_name), shown, gr.Video(value=None, visible=False)

    def cut(record: dict[str, Any], event: gr.EventData) -> Iterator[Any]:
        number, rank = event.segment
        segment = record["results"][number]["segments"][rank]
        video = segment.get("video") or record["video"]
        is_long = record["duration"] >= LONG_SECONDS
        start, end = (format_time(segment[name], is_long) for name in ("start", "end"))
        # Gradio copies the clip to where it serves it.
        with tempfile.TemporaryDirectory() as folder:
            clip = _as_message([os.path.dirname(video), folder], cut_segment, record, number, rank, Path(folder))
            yield gr.Video(value=clip, label=f"Clip, {start} to {end}{'' if is_long else ' s'}", visible=True)

    with gr.Blocks(title="Moments in videos", analytics_enabled=False, delete_cache=DELETE_CACHE) as app:
        gr.Markdown("# Moments in videos\nType what happens, one sentence a line, and play what is found.")
        known = gr.State(None, time_to_live=FORGET_SECONDS)
        record = gr.State(None)
        video = gr.File(label="Video", elem_id="video")
        text = gr.Textbox(
            label="Sentences, one a line", lines=2, elem_id="sentences", info="Shift+Enter starts the search."
        )
        with gr.Row():
            button = gr.Button("Find in the video", variant="primary", elem_id="find")
            search_button = gr.Button("Find in the index", visible=library is not None, elem_id="search")
        with gr.Accordion("Settings", open=False):
            top_k = gr.Slider(1, 20, value=3, step=1, precision=0, label="At most so many segments a sentence")
            lowest = gr.Slider(0, 1, value=threshold or 0, step=0.01, label="Lowest score that counts as found")
        clip = gr.Video(
            visible=False, interactive=False, autoplay=True, buttons=["download"], height=320, elem_id="clip"
        )
        page = gr.HTML(elem_id="found", js_on_load=PASS_ON)
        shown = [page, record, clip]
        for where, on in (("video", button.click), ("index", search_button.click), ("either", text.submit)):
            inputs = [gr.State(where), video, text, top_k, lowest, known]
            # One question at a time goes through the model.
            on(find, inputs, [*shown, known], concurrency_id="model", show_progress_on=page)
        video.change(nothing, None, shown, queue=False, show_progress="hidden")
        page.click(cut, record, clip).success(None, js=SHOW_CLIP)
    return app


def servable_paths(library: Library) -> list[str]:
    """The folder of an index's videos, and the indexed videos that links lead to elsewhere."""
    folder = os.path.realpath(library.video_path("."))
    videos = (os.path.realpath(library.video_path(video)) for video in set(library.videos))
    return [folder, *sorted(video for video in videos if not video.startswith(os.path.join(folder, "")))]


def check_address(host: str | None, port: int | None) -> None:
    """
    Raises:
        OSError: If no server can listen at this address.
    """
    if host is None and port is None:
        return
    try:
        with socket.create_server((host or "127.0.0.1", port or 0)):
            pass
    except OSError as error:
        where = f"{host or '127.0.0.1'}{'' if port is None else f', port {port}'}"
        reason = str(error.strerror).partition(" (while")[0]
        raise OSError(f"Could not listen at {where}: {reason}. Choose another --host or --port.") from error


def launch(app: gr.Blocks, library: Library | None = None, host: str | None = None, port: int | None = None) -> None:
    """
    Starts the application, until it is interrupted.

    Args:
        app (`gradio.Blocks`): As `make_app` gives it.
        library ([`Library`], *optional*): The index, whose folder of videos is served, and the videos linked there.
        host (`str`, *optional*): Address to listen on; else `GRADIO_SERVER_NAME`, or this machine's own.
        port (`int`, *optional*): Port to listen on; else `GRADIO_SERVER_PORT`, or the first free one from 7860 on.
    """
    url = start(app, library, host, port)
    print(f"Open {url} in a browser. Ctrl+C ends the application.", file=sys.stderr)
    app.block_thread()


def start(app: gr.Blocks, library: Library | None = None, host: str | None = None, port: int | None = None) -> str:
    """As [`launch`], which waits for the end; returns the address of the page."""
    paths = [] if library is None else servable_paths(library)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none from elsewhere
    _, url, _ = app.launch(
        server_name=host,
        server_port=port,
        allowed_paths=paths,
        theme=theme,
        css=STYLE,
        run_history=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
    )
    return url


def _as_message(folders: list[str], function: Any, *args: Any) -> Any:
    """
    Calls a function; what is wrong with what was given becomes a message on the page, without the folders and without
    the numbers of errors.
    """
    try:
        return function(*args)
    except INPUT_ERRORS as error:
        message = re.sub(r"\[Errno -?\d+\] ", "", str(error))
        for folder in folders:
            message = message.replace(f"{folder}{os.sep}", "")
        raise gr.Error(html.escape(message), print_exception=False) from error
