"""Segments that were found, as a picture: frames of the video over a time axis, and the segments below."""

from pathlib import Path
from typing import Any

import numpy as np

from ..timeline import Timeline
from ..video_io import VideoProperties, read_frames
from .selection import is_near_zero
from .table import LONG_SECONDS, format_score, format_time, strength


PICTURE_FRAMES = 12
PICTURE_FRAME_HEIGHT = 180
BAR_COLOUR = "#d1495b"
# Of a segment with a score near zero, and of the text about it.
NEAR_ZERO_COLOUR = "#6b747e"
LEGEND = "the fuller the colour, the higher the score"
NEAR_ZERO_LEGEND = "grey: a score near zero"


def import_pyplot(needed_for: str) -> Any:
    """
    matplotlib's pyplot, for files rather than a screen.

    Args:
        needed_for (`str`): What is not there without it, for the message.

    Raises:
        RuntimeError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError(
            f"{needed_for} needs matplotlib, which is not installed; run `pip install matplotlib`."
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def check_picture_name(path: Path) -> None:
    """
    Raises:
        RuntimeError: If matplotlib is not installed.
        ValueError: If the name ends in no format that it writes.
    """
    import_pyplot("--plot")
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in formats:
        raise ValueError(f"Received the picture {path}; expected a name that ends in one of {', '.join(formats)}.")


def draw(
    record: dict[str, Any], properties: VideoProperties, path: Path, targets: list[list[float]] | None = None
) -> None:
    """
    Frames along a time axis, and under them a lane with the ranked segments of each sentence, best on top, the fuller
    in colour the higher they score; the true one above it in grey, if it is known.

    Args:
        record (`dict`): What `scada ground --json` prints.
        facts ([`VideoProperties`]): Length and size of the video.
        path (`Path`): Where the picture goes.
        targets (`list[list[float]]`, *optional*): The true `[start, end]` of each sentence, in seconds.

    Raises:
        RuntimeError: If matplotlib is not installed.
        VideoReadError: If the video cannot be read.
    """
    pyplot = import_pyplot(path.name)
    duration_seconds, is_long = record["duration"], record["duration"] >= LONG_SECONDS
    shape = properties.width / properties.height
    frames = read_frames(
        record["video"],
        Timeline(0.0, duration_seconds, PICTURE_FRAMES).center_seconds(),
        size=(PICTURE_FRAME_HEIGHT, max(1, round(PICTURE_FRAME_HEIGHT * shape))),
    )
    # In inches. The strip is as high as frames of their own shape side by side.
    width = 12.0
    strip_height = width / PICTURE_FRAMES / shape
    title_height, best_height, row_height, gap = 0.3, 0.22, 0.11, 0.18
    true_height = 0.0 if targets is None else best_height
    lanes_height = sum(
        title_height + true_height + best_height + row_height * (len(result["segments"]) - 1) + gap
        for result in record["results"]
    )
    figure, (strip, lanes) = pyplot.subplots(
        2,
        1,
        figsize=(width, strip_height + lanes_height + 0.6),
        height_ratios=[strip_height, lanes_height],
        layout="constrained",
    )
    strip.imshow(np.concatenate(list(frames), axis=1), extent=(0, duration_seconds, 0, 1), aspect="auto")
    strip.set_axis_off()
    top = 0.0
    for sentence_index, result in enumerate(record["results"]):
        best = result["segments"][0]
        times = " to ".join(format_time(best[name], is_long) for name in ("start", "end"))
        # A sentence may have dollar signs, which are no formula.
        unit = "" if is_long else " s"
        title = f"{result['sentence']}  ({times}{unit}, {format_score(best)})"
        if targets is not None:
            true_times = " to ".join(format_time(seconds, is_long) for seconds in targets[sentence_index])
            title += f"  true: {true_times}{unit}"
        ink = NEAR_ZERO_COLOUR if is_near_zero(best) else "black"
        lanes.text(0, top + title_height / 2, title, fontsize=9, va="center", color=ink, parse_math=False)
        top += title_height
        lane_height = true_height + best_height + row_height * (len(result["segments"]) - 1)
        lanes.axhspan(top - 0.02, top + lane_height, color="#f1f3f5")
        if targets is not None:
            start_seconds, end_seconds = targets[sentence_index]
            span = (start_seconds, end_seconds - start_seconds)
            lanes.broken_barh([span], (top, 0.85 * true_height), color="#9aa5b1")
            top += true_height
        for index, segment in enumerate(result["segments"]):
            height = row_height if index else best_height
            span = (segment["start"], segment["end"] - segment["start"])
            colour = NEAR_ZERO_COLOUR if is_near_zero(segment) else BAR_COLOUR
            fill = (colour, strength(segment["score"]))
            # The outline is there for the faintest to be seen too.
            line = {"linewidth": 1.0, "linestyle": "-" if segment.get("found", True) else "--"}
            lanes.broken_barh([span], (top, 0.85 * height), facecolor=fill, edgecolor=colour, **line)
            top += height
        top += gap
    lanes.set(xlim=(0, duration_seconds), ylim=(lanes_height, 0), yticks=[])
    if is_long:
        lanes.xaxis.set_major_formatter(lambda seconds, _: format_time(seconds, is_long).removesuffix(".0"))
    has_grey = any(is_near_zero(segment) for result in record["results"] for segment in result["segments"])
    lanes.set_xlabel("; ".join(["seconds"] * (not is_long) + [LEGEND] + [NEAR_ZERO_LEGEND] * has_grey))
    lanes.spines[["left", "right", "top"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
