r"""
Finds the moments of a video that sentences describe.

    python scripts/ground.py kitchen.mp4 "a person opens the fridge" "he drinks" --model outputs/demo/scada
    python scripts/ground.py kitchen.mp4 "he drinks" --model outputs/demo/scada --top_k 1 --json > found.json
    python scripts/ground.py kitchen.mp4 "he drinks" --model outputs/demo/scada \
        --plot found.png --html found.html --cut clips/

Prints a table, or JSON with `--json`, on stdout; all else goes to stderr. Times are seconds from the first frame; the
table of a video of a minute or more has them as mm:ss.s. On request it also writes
- `--plot`: a picture, frames of the video over a time axis and the segments below (needs matplotlib);
- `--html`: a page that plays the segments, in one file with the video in it if that is no larger than 100 MB;
- `--cut`: each segment as a clip, in the container of the video. Nothing is encoded anew, so a clip begins with the
  last key frame at or before the start of its segment; what it really covers is printed.

Returns 1, with one line on stderr, if something is wrong with what was given, and 2 if the arguments are.
"""

import argparse
import base64
import html
import json
import math
import os
import re
import string
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
from transformers import pipeline

import modeling_scada  # noqa: F401  registers the task
from processing.timeline import Timeline
from processing.video_io import VideoFacts, cut_video, probe, read_frames


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
LONG_SECONDS = 60.0
PICTURE_FRAMES = 12
PICTURE_FRAME_HEIGHT = 180

# Filled in by `string.Template`, so the script does without dollar signs.
PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --back: #fff; --text: #1c2128; --soft: #59636e; --line: #d5dae0; --lane: #f1f3f5;
  --mark: #c2354a; --now: #0b62c4; }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181c; --text: #e8eaed; --soft: #a0a9b4; --line: #3a424c; --lane: #20252b;
    --mark: #f0798a; --now: #6cb2ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem 1.25rem 3rem; background: var(--back); color: var(--text);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.25rem; overflow-wrap: anywhere; }
header p { margin: 0 0 .75rem; color: var(--soft); font-size: .875rem; overflow-wrap: anywhere; }
video { display: block; margin: 0 auto; max-width: 100%; width: 100%; max-height: 46vh; background: #000; }
#problem { border-left: 4px solid var(--mark); padding-left: .75rem; }
#timeline { position: relative; margin: 1rem 0 1.5rem; }
#axis { position: relative; height: 1.4rem; border-bottom: 1px solid var(--line); color: var(--soft);
  font-size: .75rem; font-variant-numeric: tabular-nums; }
#axis span { position: absolute; bottom: 0; border-left: 1px solid var(--line); padding-left: .25rem; }
#now { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: var(--now);
  pointer-events: none; }
h2 { position: relative; z-index: 1; margin: 0; padding: .75rem 0 .25rem; background: var(--back); font-size: .9375rem;
  font-weight: 600; overflow-wrap: anywhere; }
h2 span { margin-left: .5rem; color: var(--soft); font-weight: 400; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.lane { background: var(--lane); padding: 3px 0; overflow: hidden; }
.row { position: relative; height: 14px; margin: 2px 0; }
.row:first-child { height: 24px; }
.segment { position: absolute; top: 0; bottom: 0; min-width: 6px; border: 0; border-radius: 3px; padding: 0;
  background: color-mix(in srgb, var(--mark) 45%, var(--lane)); cursor: pointer; }
.row:first-child .segment { background: var(--mark); }
.segment:hover { filter: brightness(1.15); }
.segment[aria-current], .segment:focus-visible { outline: 2px solid var(--now); outline-offset: -1px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; vertical-align: top; }
thead th { color: var(--soft); font-size: .8125rem; font-weight: 600; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; font-weight: 600; overflow-wrap: anywhere; }
tbody { border-bottom: 1px solid var(--line); }
tbody tr { cursor: pointer; }
tbody tr:hover td, tbody tr[aria-current] td { background: var(--lane); }
tbody tr[aria-current] td { color: var(--now); font-weight: 600; }
td button { border: 0; padding: 0 .25rem; background: none; color: inherit; font: inherit; cursor: pointer; }
td button:focus-visible { outline: 2px solid var(--now); }
</style>
</head>
<body>
<header><h1>$title</h1><p id="about"></p></header>
<main>
<video controls playsinline preload="auto" data-start-seconds="$start_seconds" src="$source"></video>
<p id="problem" role="alert" hidden>This browser cannot play the video. It may not know the codec, or not find the
file if the video is not part of this page; the times below hold all the same.</p>
<section id="timeline" aria-label="Time line"><div id="axis" aria-hidden="true"></div></section>
<table>
<thead><tr><th scope="col">Sentence</th><th scope="col">Rank</th><th scope="col">Start</th><th scope="col">End</th>
<th scope="col">Score</th></tr></thead>
</table>
</main>
<noscript>The time line and the table need JavaScript.</noscript>
<script type="application/json" id="data">$data</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const video = document.querySelector("video"), timeline = document.getElementById("timeline");
const isLong = data.duration >= $long_seconds;
let playing = null;  // the segment that is to be played to its end, and the elements that stand for it

function add(parent, name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
}

function time(seconds) {
  const tenths = Math.round(seconds * 10);
  if (!isLong) return (tenths / 10).toFixed(1);
  const hours = Math.floor(tenths / 36000), minutes = Math.floor(tenths / 600) % 60;
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  return (hours ? hours + ":" : "") + String(minutes).padStart(2, "0") + ":" + rest;
}

function percent(seconds) {
  return 100 * Math.min(Math.max(seconds / data.duration, 0), 1) + "%";
}

// Some browsers count from the first frame, others go by the clock of the file; its length tells.
function offset() {
  const start = Number(video.dataset.startSeconds), length = video.duration;
  return Math.abs(length - start - data.duration) < Math.abs(length - data.duration) ? start : 0;
}

function play(segment, elements) {
  if (playing) playing.elements.forEach(element => element.removeAttribute("aria-current"));
  elements.forEach(element => element.setAttribute("aria-current", "true"));
  playing = {start: segment.start + offset(), end: segment.end + offset(), toEnd: true, elements};
  video.currentTime = playing.start;
  video.play().catch(() => {});  // what hinders it is shown by the video or by #problem
}

const now = add(timeline, "div");
now.id = "now";
function follow() {
  now.style.left = percent(video.currentTime - offset());
  if (playing && playing.toEnd && !video.seeking && video.currentTime >= playing.end) {
    playing.toEnd = false;
    video.pause();
  }
  if (!video.paused) requestAnimationFrame(follow);
}
video.addEventListener("play", follow);
video.addEventListener("timeupdate", follow);
// Who goes elsewhere with the video's own controls is not held up at the end of the segment.
video.addEventListener("seeking", () => {
  if (playing && Math.abs(video.currentTime - playing.start) > 0.01) playing.toEnd = false;
});
video.addEventListener("error", () => { document.getElementById("problem").hidden = false; });

const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const step = steps.find(step => data.duration / step <= 8) || data.duration / 8;
for (let k = 0; k * step < data.duration * 0.93; k++) {
  const label = step < 1 ? time(k * step) : time(k * step).replace(/\\.0$$/, "");
  add(document.getElementById("axis"), "span", "", label).style.left = percent(k * step);
}
document.getElementById("about").textContent = time(data.duration) + (isLong ? "" : " s") + ", " + data.model;

for (const {sentence, segments} of data.results) {
  const title = add(timeline, "h2", "", sentence);
  const lane = add(timeline, "div", "lane"), body = add(document.querySelector("table"), "tbody");
  segments.forEach((segment, index) => {
    const span = time(segment.start) + " to " + time(segment.end), score = segment.score.toFixed(3);
    const bar = add(add(lane, "div", "row"), "button", "segment");
    bar.type = "button";
    bar.title = "rank " + (index + 1) + ": " + span + ", score " + score;
    bar.setAttribute("aria-label", sentence + ", " + bar.title);
    bar.style.left = "min(" + percent(segment.start) + ", 100% - 6px)";
    bar.style.width = percent(segment.end - segment.start);

    const row = add(body, "tr");
    if (!index) {
      add(title, "span", "", span + (isLong ? "" : " s"));
      const head = add(row, "th", "", sentence);
      head.scope = "rowgroup";
      head.rowSpan = segments.length;
    }
    const button = add(add(row, "td"), "button", "", "\\u25b6\\ufe0e " + (index + 1));
    button.type = "button";
    button.setAttribute("aria-label", "Play " + bar.title);
    for (const text of [time(segment.start), time(segment.end), score]) add(row, "td", "", text);
    bar.addEventListener("click", () => play(segment, [bar, row]));
    row.addEventListener("click", () => play(segment, [bar, row]));  // and so does its button
  });
}
</script>
</body>
</html>
""")


def ground(video: str, sentences: list[str], model: str, top_k: int, duration_seconds: float) -> dict[str, Any]:
    """
    Args:
        video (`str`): The video file.
        sentences (`list[str]`): What to look for.
        model (`str`): A model, or an adapter: Hub id or folder.
        top_k (`int`): At most so many segments a sentence.
        duration_seconds (`float`): The video's length, in seconds.

    Returns:
        `dict`: What `--json` prints: `video`, `duration`, `model`, and in `results` for each sentence its `segments`,
        `{"score", "start", "end"}`, best first. Times in seconds from the first frame.

    Raises:
        RuntimeError: If the model cannot be loaded.
        ValueError, VideoReadError: As from the pipeline.
    """
    print(f"Loading {model}", file=sys.stderr)
    try:
        pipe = pipeline("temporal-grounding", model=model)  # type: ignore[call-overload]
    except (OSError, ValueError) as error:
        # transformers' message need not name the model.
        raise RuntimeError(f"Could not load the model {model}: {error}") from error
    print(f"Looking through {duration_seconds:.1f} s of {video}", file=sys.stderr)
    results = [
        {
            "sentence": sentence,
            "segments": [{name: segment[name] for name in ("score", "start", "end")} for segment in segments],
        }
        for sentence, segments in zip(sentences, pipe(video, sentences, top_k=top_k), strict=True)
    ]
    return {"video": video, "duration": duration_seconds, "model": model, "results": results}


def format_time(seconds: float, is_long: bool) -> str:
    """`"75.3"`, or in a long video `"01:15.3"` and from an hour on `"1:01:15.3"`. As `time` on the page."""
    tenths = math.floor(seconds * 10 + 0.5)
    if not is_long:
        return f"{tenths / 10:.1f}"
    hours, minutes = tenths // 36000, tenths // 600 % 60
    return f"{f'{hours}:' if hours else ''}{minutes:02}:{tenths % 600 / 10:04.1f}"


def format_table(record: dict[str, Any]) -> str:
    """The result of [`ground`] as lines of text, a line a segment, each sentence on the line of its best one."""
    is_long = record["duration"] >= LONG_SECONDS
    rows = [["sentence", "rank", "start", "end", "score"]]
    for result in record["results"]:
        for index, segment in enumerate(result["segments"]):
            times = [format_time(segment[name], is_long) for name in ("start", "end")]
            sentence = "" if index else " ".join(result["sentence"].split())
            rows.append([sentence, str(index + 1), *times, f"{segment['score']:.3f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for sentence, *cells in rows:
        right = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([f"{sentence:{widths[0]}}", *right]))
    return "\n".join(lines)


def import_pyplot() -> Any:
    """
    matplotlib's pyplot, for files rather than a screen.

    Raises:
        RuntimeError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError("--plot needs matplotlib, which is not installed; run `pip install matplotlib`.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(record: dict[str, Any], facts: VideoFacts, path: Path) -> None:
    """
    Frames along a time axis, and under them a lane with the ranked segments of each sentence, best on top.

    Args:
        record (`dict`): The result of [`ground`].
        facts ([`VideoFacts`]): Length and size of the video.
        path (`Path`): Where the picture goes.
    """
    pyplot = import_pyplot()
    duration_seconds, is_long = record["duration"], record["duration"] >= LONG_SECONDS
    shape = facts.width / facts.height
    frames = read_frames(
        record["video"],
        Timeline(0.0, duration_seconds, PICTURE_FRAMES).center_seconds(),
        size=(PICTURE_FRAME_HEIGHT, max(1, round(PICTURE_FRAME_HEIGHT * shape))),
    )
    # In inches. The strip is as high as frames of their own shape side by side.
    width = 12.0
    strip_height = width / PICTURE_FRAMES / shape
    title_height, best_height, row_height, gap = 0.3, 0.22, 0.11, 0.18
    lanes_height = sum(
        title_height + best_height + row_height * (len(result["segments"]) - 1) + gap for result in record["results"]
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
    for result in record["results"]:
        best = result["segments"][0]
        times = " to ".join(format_time(best[name], is_long) for name in ("start", "end"))
        # A sentence may have dollar signs, which are no formula.
        title = f"{result['sentence']}  ({times}{'' if is_long else ' s'}, {best['score']:.2f})"
        lanes.text(0, top + title_height / 2, title, fontsize=9, va="center", parse_math=False)
        top += title_height
        lane_height = best_height + row_height * (len(result["segments"]) - 1)
        lanes.axhspan(top - 0.02, top + lane_height, color="#f1f3f5")
        for index, segment in enumerate(result["segments"]):
            height = row_height if index else best_height
            span = (segment["start"], segment["end"] - segment["start"])
            lanes.broken_barh([span], (top, 0.85 * height), color="#d1495b", alpha=0.35 if index else 1.0)
            top += height
        top += gap
    lanes.set(xlim=(0, duration_seconds), ylim=(lanes_height, 0), yticks=[])
    if is_long:
        lanes.xaxis.set_major_formatter(lambda seconds, _: format_time(seconds, is_long).removesuffix(".0"))
    else:
        lanes.set_xlabel("seconds")
    lanes.spines[["left", "right", "top"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_page(record: dict[str, Any], facts: VideoFacts, path: Path) -> None:
    """
    A page that shows the segments on a time line and in a table, and plays them.

    Args:
        record (`dict`): The result of [`ground`], of a video of one of the `MIME_TYPES`.
        facts ([`VideoFacts`]): When the video starts on its own clock.
        path (`Path`): Where the page goes.
    """
    video = Path(record["video"])
    path.parent.mkdir(parents=True, exist_ok=True)
    if video.stat().st_size <= MAX_EMBEDDED_BYTES:
        content = base64.b64encode(video.read_bytes()).decode()
        source = f"data:{MIME_TYPES[video.suffix.lower()]};base64,{content}"
    else:
        source = urllib.parse.quote(Path(os.path.relpath(video, path.parent)).as_posix())
        print(
            f"{video} is larger than {MAX_EMBEDDED_BYTES / 1e6:g} MB and no part of {path}, which refers to it as "
            f"{source}: keep them in place.",
            file=sys.stderr,
        )
    page = PAGE.substitute(
        title=html.escape(video.name),
        start_seconds=facts.start_seconds,
        source=html.escape(source),
        long_seconds=LONG_SECONDS,
        # Nothing in a sentence may end the script element.
        data=json.dumps(record).replace("<", "\\u003c"),
    )
    path.write_text(page, encoding="utf-8")


def cut(record: dict[str, Any], folder: Path) -> None:
    """
    Writes each segment into a clip `01_<sentence>_rank1` in the container of the video, and prints what it covers.

    Args:
        record (`dict`): The result of [`ground`].
        folder (`Path`): Where the clips go.

    Raises:
        VideoReadError: If the video cannot be cut without encoding it anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, result in enumerate(record["results"], start=1):
        slug = re.sub(r"\W+", "_", result["sentence"].lower())[:40].strip("_") or "sentence"
        for rank, segment in enumerate(result["segments"], start=1):
            path = folder / f"{number:02}_{slug}_rank{rank}{Path(record['video']).suffix}"
            start_seconds, end_seconds = cut_video(record["video"], segment["start"], segment["end"], path)
            print(
                f"Wrote {path}: {start_seconds:.1f} to {end_seconds:.1f} s (asked for {segment['start']:.1f} to "
                f"{segment['end']:.1f} s; a clip begins with a key frame)",
                file=sys.stderr,
            )


def run(args: argparse.Namespace) -> None:
    """Does what the arguments ask for. What can be refused is refused before the model is loaded."""
    if not Path(args.video).is_file():
        raise FileNotFoundError(f"There is no video file at {args.video}.")
    if args.plot is not None:
        import_pyplot()
    if args.html is not None and Path(args.video).suffix.lower() not in MIME_TYPES:
        raise ValueError(f"Browsers do not play {args.video}; --html takes {', '.join(MIME_TYPES)}.")
    for sentence in args.sentences:
        if not sentence.strip():
            raise ValueError(f"Received the sentence {sentence!r}; expected a text.")
    facts = probe(args.video)

    record = ground(args.video, args.sentences, args.model, args.top_k, facts.duration_seconds)
    print(json.dumps(record, indent=2, ensure_ascii=False) if args.json else format_table(record), flush=True)
    for write, path in ((draw, args.plot), (write_page, args.html)):
        if path is not None:
            write(record, facts, path)
            print(f"Wrote {path}", file=sys.stderr)
    if args.cut is not None:
        cut(record, args.cut)


def main(argv: list[str] | None = None) -> int:
    """Reads the arguments, prints and writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", metavar="VIDEO", help="The video file.")
    parser.add_argument("sentences", metavar="sentence", nargs="+", help="What to look for.")
    parser.add_argument("--model", required=True, help="A model, or an adapter: Hub id or folder.")
    parser.add_argument("--top_k", type=int, default=5, help="At most so many segments a sentence.")
    parser.add_argument("--json", action="store_true", help="Print JSON in place of the table.")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="Draw frames and segments.")
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="Write a page that plays the segments.")
    parser.add_argument("--cut", type=Path, metavar="DIR", help="Write the segments as clips into this folder.")
    args = parser.parse_args(argv)
    if args.top_k < 1:
        parser.error(f"--top_k {args.top_k}: expected a positive number of segments.")
    try:
        run(args)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"ground.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
