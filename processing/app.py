"""
The application: a page on which one drops in a video, or searches an index, and plays and cuts what was found.

It needs Gradio, which is imported here alone.
"""

import html
import os
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any

from .clips import cut_segments
from .encoded_video import EncodedVideo
from .grounding import find_segments
from .library import Library
from .library import search as search_library
from .pipeline_temporal_grounding import INPUT_ERRORS, TemporalGroundingPipeline
from .result_page import describe_videos, fill_page
from .result_table import LONG_SECONDS, format_score, format_time
from .video_io import probe


try:
    import gradio as gr
except ImportError as error:
    raise RuntimeError('The application needs Gradio; install it with `pip install ".[app]"`.') from error


# The page lies in a frame, which is as high as the page.
FRAME = (
    '<iframe title="Segments" style="width: 100%; height: 40rem; border: 0" srcdoc="{page}" '
    'onload="const frame = this, body = frame.contentDocument.body; body.style.padding = 0; new ResizeObserver(() => '
    '{{ frame.style.height = body.offsetHeight + 8 + &quot;px&quot;; }}).observe(body)"></iframe>'
)
# Uploads and clips are deleted after a day, looked for each hour; an encoded video after an hour.
DELETE_CACHE = (3600, 86400)
FORGET_SECONDS = 3600


def sentences_of(text: str) -> list[str]:
    """
    The sentences of a text, one a line.

    Raises:
        ValueError: If there is none.
    """
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    if not sentences:
        raise ValueError("Received no sentence; type what to look for, one sentence a line.")
    return sentences


def ask_video(
    pipe: TemporalGroundingPipeline, path: str | None, text: str, top_k: int, known: tuple[str, EncodedVideo] | None
) -> tuple[dict[str, Any], tuple[str, EncodedVideo]]:
    """
    Finds the moments of one video; it is encoded unless it is the one that was before.

    Args:
        pipe ([`TemporalGroundingPipeline`]): The model.
        path (`str`): The video file.
        text (`str`): What to look for, one sentence a line.
        top_k (`int`): At most so many segments a sentence.
        known (`tuple[str, EncodedVideo]`, *optional*): What the call before gave.

    Returns:
        `tuple[dict, tuple[str, EncodedVideo]]`: The record as of `scada ground --json`, and what to pass the next
        time.

    Raises:
        ValueError, OSError, VideoReadError: If there is no video or no sentence, or the video cannot be read.
    """
    sentences = sentences_of(text)
    if path is None:
        raise ValueError("Received no video; drop one in first.")
    if known is None or known[0] != path:
        known = (path, pipe.encode(path))
    encoded: Any = known[1]
    results = find_segments(pipe, encoded, sentences, top_k)
    return {"video": path, "duration": encoded.timelines[-1].end_seconds, "results": results}, known


def ask_library(pipe: TemporalGroundingPipeline, library: Any, text: str, top_k: int) -> dict[str, Any]:
    """
    Finds the moments of all videos of an index.

    Args:
        pipe ([`TemporalGroundingPipeline`]): The model of the index.
        library ([`Library`]): The index.
        text (`str`): What to look for, one sentence a line.
        top_k (`int`): At most so many segments a sentence, of all videos together.

    Returns:
        `dict`: The record as of `scada search --json`.

    Raises:
        ValueError: If there is no sentence, or the index was made with another model.
    """
    results = search_library(library, sentences_of(text), pipe, top_k)
    for result in results:
        for segment in result["segments"]:
            segment["video"] = os.path.abspath(segment["video"])
    duration = max((timeline.end_seconds for timeline in library.timelines), default=0.0)
    return {"index": str(library.path), "duration": duration, "results": results}


def show(record: dict[str, Any], model_name: str) -> str:
    """The page that plays the segments of a record, as a frame whose videos this application serves."""
    record = record | {"model": model_name}
    if "video" in record:
        video, facts = record["video"], probe(record["video"])
        attributes = f' data-start-seconds="{facts.start_seconds}" src="{html.escape(link_to(video))}"'
        page = fill_page(record, Path(video).name, attributes)
    else:
        page = fill_page(record | {"sources": describe_videos(record, link_to)}, Path(record["index"]).name)
    return FRAME.format(page=html.escape(page))


def link_to(video: str) -> str:
    """Where this application serves a file; without a slash at the front, so that it holds behind a proxy too."""
    return f"gradio_api/file={urllib.parse.quote(video)}"


def choices_of(record: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """What can be cut: how it is called, and its sentence and rank, counted from 0."""
    is_long = record["duration"] >= LONG_SECONDS
    choices = []
    for number, result in enumerate(record["results"]):
        for rank, segment in enumerate(result["segments"]):
            start, end = (format_time(segment[name], is_long) for name in ("start", "end"))
            name = Path(segment.get("video") or record["video"]).name
            label = f"{result['sentence']}: {start} to {end}, {name}, {format_score(segment)}"
            choices.append((f"{rank + 1}. {label}", [number, rank]))
    return choices


def cut_one(record: dict[str, Any], number: int, rank: int, folder: Path) -> str:
    """
    Cuts a segment out, from its start to its end.

    Args:
        record (`dict`): What `ask_video` or `ask_library` gave.
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


def make_app(pipe: TemporalGroundingPipeline, model_name: str, library: Library | None = None) -> gr.Blocks:
    """
    Args:
        pipe ([`TemporalGroundingPipeline`]): The model.
        model_name (`str`): How the page calls it.
        library ([`Library`], *optional*): An index that can be searched, besides videos that are dropped in.

    Returns:
        `gradio.Blocks`: To be started with [`launch`].
    """

    def find(path: str | None, text: str, top_k: float, known: tuple[str, EncodedVideo] | None) -> tuple:
        record, known = _as_message(ask_video, pipe, path, text, int(top_k), known)
        return (*fill(record), known)

    def find_in_index(text: str, top_k: float) -> tuple:
        return fill(_as_message(ask_library, pipe, library, text, int(top_k)))

    def fill(record: dict[str, Any]) -> tuple:
        page = _as_message(show, record, model_name)
        choices = [(label, str(index)) for index, (label, _) in enumerate(choices_of(record))]
        chosen = gr.Dropdown(choices=choices, value=choices[0][1] if choices else None, visible=bool(choices))
        return page, record, chosen, gr.Button(visible=bool(choices)), gr.File(value=None, visible=False)

    def cut(record: dict[str, Any] | None, chosen: str | None) -> Any:
        if record is None or chosen is None:
            raise gr.Error("Received no segment; ask first, and choose one.", print_exception=False)
        number, rank = choices_of(record)[int(chosen)][1]
        folder = Path(tempfile.mkdtemp())
        return gr.File(value=_as_message(cut_one, record, number, rank, folder), visible=True)

    with gr.Blocks(title="Moments in videos", analytics_enabled=False, delete_cache=DELETE_CACHE) as app:
        gr.Markdown("# Moments in videos\nType what happens, one sentence a line, and play what is found.")
        known = gr.State(None, time_to_live=FORGET_SECONDS)
        record = gr.State(None)
        video = gr.File(label="Video", elem_id="video")
        text = gr.Textbox(label="Sentences, one a line", lines=2, elem_id="sentences")
        top_k = gr.Slider(1, 20, value=3, step=1, label="At most so many segments a sentence")
        with gr.Row():
            button = gr.Button("Find in the video", variant="primary", elem_id="find")
            search_button = gr.Button("Find in the index", visible=library is not None, elem_id="search")
        page = gr.HTML(elem_id="found")
        chosen = gr.Dropdown(label="Segment to cut out", visible=False, elem_id="chosen")
        cut_button = gr.Button("Cut it out", visible=False, elem_id="cut")
        clip = gr.File(label="Clip", visible=False, interactive=False, elem_id="clip")
        # One question at a time goes through the model.
        shown = [page, record, chosen, cut_button, clip]
        button.click(find, [video, text, top_k, known], [*shown, known], concurrency_id="model")
        search_button.click(find_in_index, [text, top_k], shown, concurrency_id="model")
        cut_button.click(cut, [record, chosen], clip)
    return app


def servable_paths(library: Library) -> list[str]:
    """The folder of an index's videos, and the indexed videos that links lead to elsewhere."""
    folder = os.path.realpath(library.path_of("."))
    videos = (os.path.realpath(library.path_of(video)) for video in set(library.videos))
    return [folder, *sorted(video for video in videos if not video.startswith(os.path.join(folder, "")))]


def launch(app: gr.Blocks, library: Library | None = None, **kwargs: Any) -> Any:
    """
    Starts the application.

    Args:
        app (`gradio.Blocks`): As `make_app` gives it.
        library ([`Library`], *optional*): The index, whose folder of videos is served, and the videos linked there.
        kwargs: As `gradio.Blocks.launch` takes them.
    """
    paths = [] if library is None else servable_paths(library)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none from elsewhere
    return app.launch(allowed_paths=paths, theme=theme, run_history=False, **kwargs)


def _as_message(function: Any, *args: Any) -> Any:
    """Calls a function; what is wrong with what was given becomes a message on the page."""
    try:
        return function(*args)
    except INPUT_ERRORS as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
