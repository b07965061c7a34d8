"""Picture of found segments, with video frames over a time axis and the segments below."""

from pathlib import Path
from typing import Any

import numpy as np

from ..timeline import Timeline
from ..video_io import VideoProperties, read_frames
from .selection import is_near_zero
from .table import LONG_SECONDS, format_score, format_time, score_strength


PICTURE_FRAMES = 12
PICTURE_FRAME_HEIGHT = 180
BAR_COLOUR = "#d1495b"
# Colour of segments with a score near zero, and of their titles.
NEAR_ZERO_COLOUR = "#6b747e"
LEGEND = "more intense colour: higher score"
NEAR_ZERO_LEGEND = "grey: a score near zero"


def import_pyplot(needed_for: str) -> Any:
    """
    Import matplotlib's pyplot with a backend for files.

    Args:
        needed_for (`str`): Feature that needs matplotlib, for the error message.

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
    Check the file extension of a picture.

    Raises:
        RuntimeError: If matplotlib is not installed.
        ValueError: If matplotlib does not support the extension.
    """
    import_pyplot("--plot")
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in formats:
        raise ValueError(f"Received the picture {path}; expected one of the extensions {', '.join(formats)}.")


def draw(
    record: dict[str, Any], properties: VideoProperties, path: Path, targets: list[list[float]] | None = None
) -> None:
    """
    Draw video frames along a time axis, with one lane per sentence below.

    A lane shows the ranked segments of a sentence, the best on top. Colours become more intense with higher scores.
    The ground truth, if given, appears above in grey.

    Args:
        record (`dict`): Output of `scada ground --json`.
        properties ([`VideoProperties`]): Properties of the video. The picture uses its width and height.
        path (`Path`): Output path.
        targets (`list[list[float]]`, *optional*): True `[start, end]` of each sentence, in seconds.

    Raises:
        RuntimeError: If matplotlib is not installed.
        VideoReadError: If the video is unreadable.
    """
    pyplot = import_pyplot(path.name)
    duration_seconds, is_long = record["duration"], record["duration"] >= LONG_SECONDS
    shape = properties.width / properties.height
    frames = read_frames(
        record["video"],
        Timeline(0.0, duration_seconds, PICTURE_FRAMES).center_seconds(),
        size=(PICTURE_FRAME_HEIGHT, max(1, round(PICTURE_FRAME_HEIGHT * shape))),
    )
    # In inches. The strip height preserves the aspect ratio of the frames.
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
        # Without `parse_math`, because dollar signs in a sentence mark no formula.
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
            fill = (colour, score_strength(segment["score"]))
            # The outline keeps the lightest segments visible.
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
