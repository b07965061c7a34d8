"""
Web application to ground sentences in an uploaded video or search an index, and to play and cut the segments found.

It requires Gradio, which only this module imports.
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
    raise RuntimeError('The application requires Gradio; install it with `pip install ".[app]"`.') from error


TITLE = "Temporal grounding in videos"
# Frame around the page of results. It adopts the height of the page, and the light or dark theme of the application.
FRAME = (
    '<iframe title="Segments" style="width: 100%; height: 40rem; border: 0" srcdoc="{page}" '
    'onload="const frame = this, root = frame.contentDocument.documentElement, body = frame.contentDocument.body; '
    "root.style.colorScheme = document.body.classList.contains('dark') ? 'dark' : 'light'; body.style.padding = 0; "
    "root.style.setProperty('--back', getComputedStyle(document.body).getPropertyValue('--body-background-fill')); "
    'new ResizeObserver(() => {{ frame.style.height = body.offsetHeight + 8 + &quot;px&quot;; }}).observe(body)">'
    "</iframe>"
)
# Forward the cut event, which the button of a segment dispatches to the frame's element, to Gradio.
FORWARD_CUT = "element.addEventListener('cut', event => trigger('click', {segment: event.detail}));"
SHOW_CLIP = "() => document.getElementById('clip').scrollIntoView({behavior: 'smooth', block: 'center'})"
# Gradio's error badge is hidden, because the error message already explains the problem.
STYLE = "#found .error { display: none }"
# Delete uploads and clips after a day, checked every hour, and encoded videos after an hour.
DELETE_CACHE = (3600, 86400)
ENCODED_VIDEO_SECONDS = 3600


def _split_sentences(text: str) -> list[str]:
    """
    Split a text into sentences, one per line.

    Raises:
        ValueError: If the text contains no sentence.
    """
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    if not sentences:
        raise ValueError("There is no sentence yet. Type at least one sentence, one per line.")
    return sentences


def run_ground_tab(
    pipe: TemporalGroundingPipeline,
    path: str | None,
    text: str,
    top_k: int,
    cache: tuple[str, EncodedVideo] | None,
    nms: float | None = 0.5,
    progress: Callable[[float], Any] | None = None,
) -> tuple[dict[str, Any], tuple[str, EncodedVideo]]:
    """
    Ground sentences in a video. The video is encoded, unless it is the same as in the previous call.

    Args:
        pipe ([`TemporalGroundingPipeline`]): Pipeline with the model.
        path (`str`): Path of the video.
        text (`str`): Sentences, one per line.
        top_k (`int`): Maximum number of segments per sentence.
        cache (`tuple[str, EncodedVideo]`, *optional*): Path and encoded video of the previous call.
        nms (`float`, *optional*, defaults to 0.5): As for the pipeline.
        progress (`Callable`, *optional*): Function called with the encoded share of the video, from 0 to 1.

    Returns:
        `tuple[dict, tuple[str, EncodedVideo]]`: Record in the format of `scada ground --json`, and the `cache` for the
        next call.

    Raises:
        ValueError, OSError, VideoReadError: If the video or the sentences are missing, or the video cannot be read.
    """
    sentences = _split_sentences(text)
    if path is None:
        raise ValueError("There is no video yet. Upload one first.")
    if cache is None or cache[0] != path:
        cache = (path, pipe.encode(path, progress=progress))
    encoded = cache[1]
    results = find_segments(pipe, encoded, sentences, top_k, nms)
    return {"video": path, "duration": encoded.timelines[-1].end_seconds, "results": results}, cache


def run_search_tab(
    pipe: TemporalGroundingPipeline,
    library: Library,
    text: str,
    top_k: int,
    nms: float | None = 0.5,
    progress: Callable[[float], Any] | None = None,
) -> dict[str, Any]:
    """
    Search all videos of an index.

    Args:
        pipe ([`TemporalGroundingPipeline`]): Pipeline with the model that encoded the index.
        library ([`Library`]): Index to search.
        text (`str`): Sentences, one per line.
        top_k (`int`): Maximum number of segments per sentence, over all videos.
        nms (`float`, *optional*, defaults to 0.5): As for the pipeline.
        progress (`Callable`, *optional*): Function called with the share of the windows scored, from 0 to 1.

    Returns:
        `dict`: Record in the format of `scada search --json`.

    Raises:
        ValueError: If the text contains no sentence, or the index belongs to another model.
    """
    results = search_library(library, _split_sentences(text), pipe, top_k, nms=nms, progress=progress)
    for result in results:
        for segment in result["segments"]:
            segment["video"] = os.path.abspath(segment["video"])
    duration = max((timeline.end_seconds for timeline in library.timelines), default=0.0)
    return {"index": str(library.path), "duration": duration, "results": results}


def embed_result_page(record: dict[str, Any], model_name: str) -> str:
    """Return an HTML frame with a page that plays the segments of a record. This application serves the videos."""
    record = record | {"model": model_name, "can_cut": True}
    if "video" in record:
        video, properties = record["video"], probe(record["video"])
        attributes = f' data-start-seconds="{properties.start_seconds}" src="{html.escape(gradio_file_url(video))}"'
        page = fill_page(record, Path(video).name, attributes)
    else:
        page = fill_page(record | {"sources": describe_videos(record, gradio_file_url)}, Path(record["index"]).name)
    return FRAME.format(page=html.escape(page))


def gradio_file_url(video: str) -> str:
    """Return the URL of a file that this application serves, relative so that it also works behind a proxy."""
    return f"gradio_api/file={urllib.parse.quote(video)}"


def cut_for_player(record: dict[str, Any], number: int, rank: int, folder: Path) -> str:
    """
    Cut a segment out of its video, exactly from its start to its end.

    Args:
        record (`dict`): Record of [`run_ground_tab`] or [`run_search_tab`].
        number (`int`): Index of the sentence, from 0.
        rank (`int`): Index of the segment, from 0.
        folder (`Path`): Folder for the clip.

    Returns:
        `str`: Path of the clip.

    Raises:
        OSError, VideoReadError: If the video is missing or cannot be cut.
    """
    result = record["results"][number]
    selected = record | {"results": [{"sentence": result["sentence"], "segments": [result["segments"][rank]]}]}
    clip: Any
    (clip,) = cut_segments(selected, folder, exact=True)
    return str(clip.path)


def make_app(
    pipe: TemporalGroundingPipeline,
    model_name: str,
    library: Library | None = None,
    threshold: float | None = None,
    nms: float | None = 0.5,
) -> gr.Blocks:
    """
    Build the application.

    Args:
        pipe ([`TemporalGroundingPipeline`]): Pipeline with the model.
        model_name (`str`): Name of the model on the page.
        library ([`Library`], *optional*): Index that users can search, in addition to uploaded videos.
        threshold (`float`, *optional*): Initial value of the lowest score that counts as found.
        nms (`float`, *optional*, defaults to 0.5): As for the pipeline.

    Returns:
        `gradio.Blocks`: Application that [`launch`] starts.

    Raises:
        ValueError: If the first layer of the model depends on the sentence, so that it cannot encode videos alone.
    """
    check_can_encode(pipe)

    # Clear the previous results first, so that an error message never appears next to another video's segments.
    def find(
        target: str,
        path: str | None,
        text: str,
        top_k: int,
        min_score: float,
        cache: tuple[str, EncodedVideo] | None,
        progress: Any = gr.Progress(),  # noqa: B008  Gradio requires it as a default
    ) -> Iterator[tuple]:
        yield (*clear_results(), cache)
        in_index = library is not None and (target == "index" or (target == "either" and path is None))

        def show_share(share: float) -> None:
            progress(share, desc=f"Searching the {'index' if in_index else 'video'}")

        def compute_results() -> tuple:
            if library is not None and in_index:
                return show_results(run_search_tab(pipe, library, text, top_k, nms, show_share), min_score), cache
            record, new_cache = run_ground_tab(pipe, path, text, top_k, cache, nms, show_share)
            return show_results(record, min_score), new_cache

        show_share(0.0)
        folders = [os.path.dirname(path)] if path else []
        if library is not None:
            videos = library.video_path(".")
            folders += [videos, os.path.abspath(videos), os.path.realpath(videos), str(library.path)]
        results, new_cache = _show_errors(folders, compute_results)
        yield (*results, new_cache)

    def clear_results() -> tuple:
        return "", None, gr.Video(value=None, visible=False)

    def show_results(record: dict[str, Any], min_score: float) -> tuple:
        results = apply_threshold(record["results"], min_score or None)
        shown = select_shown(record | {"results": results})
        return embed_result_page(shown, model_name), shown, gr.Video(value=None, visible=False)

    def cut(record: dict[str, Any], event: gr.EventData) -> Iterator[Any]:
        number, rank = event.segment
        segment = record["results"][number]["segments"][rank]
        video = segment.get("video") or record["video"]
        is_long = record["duration"] >= LONG_SECONDS
        start, end = (format_time(segment[name], is_long) for name in ("start", "end"))
        # Gradio copies the clip into its cache before the folder is deleted.
        with tempfile.TemporaryDirectory() as folder:
            clip = _show_errors([os.path.dirname(video), folder], cut_for_player, record, number, rank, Path(folder))
            yield gr.Video(value=clip, label=f"Clip, {start} to {end}{'' if is_long else ' s'}", visible=True)

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=DELETE_CACHE) as app:
        gr.Markdown(f"# {TITLE}\nDescribe events, one sentence per line, and play the segments found.")
        cache = gr.State(None, time_to_live=ENCODED_VIDEO_SECONDS)
        record = gr.State(None)
        video = gr.File(label="Video", elem_id="video")
        text = gr.Textbox(
            label="Sentences, one per line", lines=2, elem_id="sentences", info="Shift+Enter starts the search."
        )
        with gr.Row():
            button = gr.Button("Find in the video", variant="primary", elem_id="find")
            search_button = gr.Button("Find in the index", visible=library is not None, elem_id="search")
        with gr.Accordion("Settings", open=False):
            top_k = gr.Slider(1, 20, value=3, step=1, precision=0, label="Maximum number of segments per sentence")
            min_score = gr.Slider(0, 1, value=threshold or 0, step=0.01, label="Lowest score that counts as found")
        clip = gr.Video(
            visible=False, interactive=False, autoplay=True, buttons=["download"], height=320, elem_id="clip"
        )
        page = gr.HTML(elem_id="found", js_on_load=FORWARD_CUT)
        outputs = [page, record, clip]
        for target, on_event in (("video", button.click), ("index", search_button.click), ("either", text.submit)):
            inputs = [gr.State(target), video, text, top_k, min_score, cache]
            # The model processes one request at a time.
            on_event(find, inputs, [*outputs, cache], concurrency_id="model", show_progress_on=page)
        video.change(clear_results, None, outputs, queue=False, show_progress="hidden")
        page.click(cut, record, clip).success(None, js=SHOW_CLIP)
    return app


def _servable_paths(library: Library) -> list[str]:
    """Return the folder of an index's videos, and the targets of indexed links outside that folder."""
    folder = os.path.realpath(library.video_path("."))
    videos = (os.path.realpath(library.video_path(video)) for video in set(library.videos))
    return [folder, *sorted(video for video in videos if not video.startswith(os.path.join(folder, "")))]


def check_address(host: str | None, port: int | None) -> None:
    """
    Check that a server can listen at an address.

    Raises:
        OSError: If no server can listen there.
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
    Start the application and run it until it is interrupted.

    Args:
        app (`gradio.Blocks`): Application of [`make_app`].
        library ([`Library`], *optional*): Index whose folder of videos is served, including the linked videos.
        host (`str`, *optional*): Address to listen on. Defaults to `GRADIO_SERVER_NAME`, or to the local machine.
        port (`int`, *optional*):
            Port to listen on. Defaults to `GRADIO_SERVER_PORT`, or to the first free port from 7860.
    """
    url = start_app(app, library, host, port)
    print(f"Open {url} in a browser. Press Ctrl+C to stop the application.", file=sys.stderr)
    app.block_thread()


def start_app(app: gr.Blocks, library: Library | None = None, host: str | None = None, port: int | None = None) -> str:
    """Start the application as [`launch`] does, but return its URL immediately."""
    paths = [] if library is None else _servable_paths(library)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no downloaded fonts
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


def _show_errors(folders: list[str], function: Any, *args: Any) -> Any:
    """Call a function, and show an input error as one message on the page, without folder paths and error numbers."""
    try:
        return function(*args)
    except INPUT_ERRORS as error:
        message = re.sub(r"\[Errno -?\d+\] ", "", str(error))
        for folder in folders:
            message = message.replace(f"{folder}{os.sep}", "")
        raise gr.Error(html.escape(message), print_exception=False) from error
