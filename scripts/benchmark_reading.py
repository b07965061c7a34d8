r"""
Time of reading T frames, spread evenly over a video and scaled to 160 x 160: this project's reader against others.

    python scripts/benchmark_reading.py --output_dir outputs/reading
    python scripts/benchmark_reading.py --cells gop12 vp9
    python scripts/benchmark_reading.py --small --output_dir outputs/reading_small   # to try the script itself

The others are transformers' reader by PyAV and, each if it is installed, decord, OpenCV and torchcodec
(`pip install decord opencv-python-headless torchcodec`; torchcodec also needs FFmpeg's shared libraries and, as its
later wheels on PyPI need CUDA, version 0.13 where torch comes without). Each is used as its documentation recommends
for this task: scaling while decoding where it can (decord, torchcodec), and else frame by frame after it. All start
from a closed file, in one process, with as many threads as they choose.

- OpenCV is measured twice, grabbing all frames and retrieving those asked for, and seeking to each of them where that
  can mean fewer frames to decode; the table has the faster one. torchcodec has a column for each of its two ways of
  seeking.
- The videos are made here and kept, with B-frames in h264 and hevc, and with open groups of pictures in hevc, as x264
  and x265 make them unless told otherwise.
- Every picture shows its number in black and white blocks, so a reader's frames are known before it is timed. Instants
  are the middles of frames, so that rounding decides nothing, and readers that count frames get the right count. A
  reader that fails, or gives other frames or other colours than a decoder that goes through the whole file, gets no
  time: the table has what was wrong instead.
- `mean_difference` is from that decoder's frames scaled by libswscale, in grey levels: what ways of scaling, and of
  getting colours of full size from those of half the size that are stored, make of the same frame.
- A long video is 30 s of encoded frames over and over, with numbers that start again too: a reader that is wrong by
  just 30 s would not be noticed.

A cell of the grid is a video and a T. It is a line in `results.jsonl`, with versions, commit and date; a benchmark
that is started again goes on where it was. At the end stands `table.md`: frames per second of `ours`, and how many
times as many these are as each other reader's. All cells take about an hour on two cores; 3 minutes of it, and 0.7 GB
on disk, are the videos.
"""

import argparse
import importlib
import json
import math
import os
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers
from av.video.reformatter import VideoReformatter
from tqdm import tqdm
from transformers.video_utils import read_video_pyav

from modeling_scada.experiments.measuring import cpu_name, median_seconds, to_markdown
from processing.data.synthetic_videos import BITS_PER_PIXEL, draw_frames, write_video
from processing.results.provenance import append_row, get_commit, read_rows
from processing.video_io import SCALING_FLAGS, read_frames, resize_frames


SIDE = 160  # Of the frames that are read, in pixels.
FPS = 25
# What is encoded of a video at most; the rest repeats it.
PERIOD_SECONDS = 30
NUM_PICTURES = 50
# Blocks that show a frame's number; enough for a period.
NUM_BITS = 10
# In grey levels. Ways of scaling differ by less, other frames or swapped colours by more.
MAX_DIFFERENCE = 8.0

# Encoder, its options and the container. Fast, but with B-frames where the codec has them.
CODECS = {
    "h264": ("libx264", {"preset": "veryfast", "threads": "1"}, "mp4"),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "bframes=4:pools=1:log-level=error"}, "mp4"),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, "webm"),
}
# Modules of the readers that need not be there.
PEER_MODULES = {"decord": "decord", "opencv": "cv2", "torchcodec": "torchcodec"}


@dataclass(frozen=True)
class Cell:
    """
    A video and a number of frames to read.

    Args:
        codec (`str`): One of `CODECS`.
        key_frame_distance (`int`): In frames.
        duration_seconds (`int`): Length of the video, in seconds.
        height (`int`), width (`int`): Of its frames, in pixels, even.
        num_frames (`int`): Frames to read, spread evenly.
    """

    codec: str
    key_frame_distance: int
    duration_seconds: int
    height: int
    width: int
    num_frames: int

    @property
    def video_name(self) -> str:
        return f"{self.codec}_gop{self.key_frame_distance}_{self.duration_seconds}s_{self.height}p"

    @property
    def name(self) -> str:
        return f"{self.video_name}_T{self.num_frames}"

    @property
    def indices(self) -> np.ndarray:
        """The frames to read, `(num_frames,)`: the middle ones of equal parts of the video."""
        step = self.duration_seconds * FPS / self.num_frames
        return ((np.arange(self.num_frames) + 0.5) * step).astype(int)


CELLS = (
    Cell("h264", 250, 30, 360, 640, 64),
    Cell("h264", 12, 30, 360, 640, 256),
    Cell("h264", 250, 120, 720, 1280, 64),
    Cell("h264", 250, 120, 720, 1280, 768),
    Cell("h264", 12, 120, 1080, 1920, 64),
    Cell("h264", 12, 120, 1080, 1920, 256),
    Cell("h264", 250, 120, 1080, 1920, 256),
    Cell("h264", 250, 600, 360, 640, 64),
    Cell("h264", 250, 600, 360, 640, 768),
    Cell("h264", 12, 600, 720, 1280, 64),
    Cell("vp9", 250, 120, 360, 640, 64),
    Cell("vp9", 12, 120, 720, 1280, 256),
    Cell("hevc", 250, 120, 720, 1280, 64),
    Cell("hevc", 12, 30, 1080, 1920, 256),
)
SMALL_CELLS = (Cell("h264", 12, 3, 64, 96, 8), Cell("vp9", 250, 2, 64, 96, 8))


def draw_number(image: np.ndarray, number: int) -> np.ndarray:
    """The picture `(H, W, 3)` with a number, of `NUM_BITS` bits, in blocks along its upper edge, low bits first."""
    height, width = image.shape[:2]
    column_bits = np.arange(width) * NUM_BITS // width
    numbered = image.copy()
    numbered[: height // 8] = np.where(number >> column_bits & 1, 235, 16)[:, None]
    return numbered


def drawn_numbers(frames: np.ndarray) -> np.ndarray:
    """The numbers, `(T,)`, on frames `(T, H, W, 3)` of any size, as [`draw_number`] draws them."""
    height, width = frames.shape[1:3]
    columns = ((np.arange(NUM_BITS) + 0.5) * width / NUM_BITS).astype(int)
    bits = frames[:, height // 16 - 1 : height // 16 + 2, columns].mean((1, 3)) > 128
    return bits @ (1 << np.arange(NUM_BITS))


def encode(cell: Cell, num_frames: int, path: Path, seed: int) -> None:
    """Writes the first frames of the cell's video. Few pictures, to and fro, as drawing takes longer than encoding."""
    encoder, options, _ = CODECS[cell.codec]
    pictures = list(draw_frames(np.random.default_rng(seed), NUM_PICTURES, cell.height, cell.width))
    last = NUM_PICTURES - 1
    frames = (draw_number(pictures[last - abs(k % (2 * last) - last)], k) for k in range(num_frames))
    bit_rate = int(BITS_PER_PIXEL * FPS * cell.height * cell.width)
    write_video(path, frames, FPS, encoder, options | {"g": str(cell.key_frame_distance)}, bit_rate)


def make_video(cell: Cell, folder: Path, seed: int) -> Path:
    """
    Makes the cell's video if it is not there.

    Args:
        cell ([`Cell`]): Its duration is at most `PERIOD_SECONDS` or a multiple of it.
        folder (`Path`): Where videos are kept.
        seed (`int`): Of all randomness.

    Returns:
        `Path`: The video.
    """
    path = folder / f"{cell.video_name}_seed{seed}.{CODECS[cell.codec][2]}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    period_seconds = min(cell.duration_seconds, PERIOD_SECONDS)
    period_path, whole_path = (path.with_name(f"{part}{path.suffix}") for part in ("period", "whole"))
    encode(cell, period_seconds * FPS, period_path, seed)
    with av.open(str(whole_path), "w") as whole:
        stream = None
        for start_seconds in range(0, cell.duration_seconds, period_seconds):
            with av.open(str(period_path)) as period:
                source = period.streams.video[0]
                stream = stream or whole.add_stream_from_template(source)
                for packet in period.demux(source):
                    if packet.pts is None or packet.dts is None:  # The end of the stream.
                        continue
                    shift = round(start_seconds / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    whole.mux(packet)
    period_path.unlink()
    whole_path.rename(path)
    return path


def read_reference(path: Path, cell: Cell) -> np.ndarray:
    """
    The frames that a decoder gives that goes through the file, scaled by libswscale's bilinear filter.

    Returns:
        `np.ndarray` of shape `(T, SIDE, SIDE, 3)`, uint8: RGB frames.
    """
    asked, reformatter, frames = set(cell.indices.tolist()), VideoReformatter(), []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for index, frame in enumerate(container.decode(video=0)):
            if index in asked:
                scaled = reformatter.reformat(frame, SIDE, SIDE, "rgb24", interpolation=SCALING_FLAGS)
                frames.append(scaled.to_ndarray())
    return np.stack(frames)


def read_with_ours(path: Path, cell: Cell) -> np.ndarray:
    return read_frames(path, (cell.indices + 0.5) / FPS, size=(SIDE, SIDE))


def read_with_transformers(path: Path, cell: Cell) -> np.ndarray:
    frames, _ = read_video_pyav(str(path), lambda metadata: cell.indices)  # type: ignore[arg-type]
    return resize_frames(frames, (SIDE, SIDE))


def read_with_decord(path: Path, cell: Cell) -> np.ndarray:
    from decord import VideoReader, cpu

    num_threads = 1 if cell.codec == "vp9" else 0  # With more it fails on VP9: dmlc/decord#246.
    reader = VideoReader(str(path), ctx=cpu(0), width=SIDE, height=SIDE, num_threads=num_threads)
    return reader.get_batch(cell.indices).asnumpy()


def read_with_opencv(path: Path, cell: Cell, seek: bool) -> np.ndarray:
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    position = 0
    for index in cell.indices.tolist():
        if seek:
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        else:
            for _ in range(index - position):
                capture.grab()
            position = index + 1
        _, image = capture.read()
        scaled = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        frames.append(cv2.cvtColor(scaled, cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames)


def read_with_torchcodec(path: Path, cell: Cell, seek_mode: str) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    decoder = VideoDecoder(
        path,
        seek_mode=seek_mode,
        num_ffmpeg_threads=0,  # As many as FFmpeg chooses.
        dimension_order="NHWC",
        transforms=[Resize((SIDE, SIDE))],
    )
    return decoder.get_frames_played_at(((cell.indices + 0.5) / FPS).tolist()).data.numpy()


Reader = Callable[[Path, Cell], np.ndarray]

# The first word is the peer's name.
READERS: dict[str, Reader] = {
    "ours": read_with_ours,
    "transformers": read_with_transformers,
    "decord": read_with_decord,
    "opencv grab": partial(read_with_opencv, seek=False),
    "opencv seek": partial(read_with_opencv, seek=True),
    "torchcodec exact": partial(read_with_torchcodec, seek_mode="exact"),
    "torchcodec approximate": partial(read_with_torchcodec, seek_mode="approximate"),
}
# Several readers of a column count as the fastest of them.
COLUMNS = {
    "transformers": ["transformers"],
    "decord": ["decord"],
    "opencv": ["opencv grab", "opencv seek"],
    "torchcodec exact": ["torchcodec exact"],
    "torchcodec approximate": ["torchcodec approximate"],
}


def short_text(error: Exception) -> str:
    """An exception in a line that fits into a table."""
    text = re.sub(r"\[[\d:]+\] \S+: ", "", str(error))  # Where and when decord's errors happened.
    return f"{type(error).__name__}: {' '.join(text.split())[:100]}".replace("|", "/")


def installed_peers() -> tuple[dict[str, str], dict[str, str]]:
    """
    Returns:
        `tuple[dict[str, str], dict[str, str]]`: Versions of the peers that can be imported; and why the others cannot.
    """
    versions, missing = {}, {}
    for name, module in PEER_MODULES.items():
        try:
            versions[name] = importlib.import_module(module).__version__
        except (ImportError, OSError, RuntimeError) as error:  # The latter two: a library that does not load.
            missing[name] = short_text(error)
    return versions, missing


def check_frames(frames: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """
    Compares a reader's frames with the reference's.

    Returns:
        `dict[str, Any]`: `mean_difference`, in grey levels; and `error` if they are not the same frames.
    """
    if frames.shape != reference.shape:
        return {"error": f"wrong shape: {frames.shape}"}
    num_wrong = int((drawn_numbers(frames) != drawn_numbers(reference)).sum())
    if num_wrong:
        return {"error": f"wrong frames: {num_wrong} of {len(frames)}"}
    difference = float(np.abs(frames.astype(np.int16) - reference).mean())
    error = {} if difference <= MAX_DIFFERENCE else {"error": f"other pixels, by {difference:.1f}"}
    return {"mean_difference": difference} | error


def measure_cell(cell: Cell, path: Path, readers: dict[str, Reader], repeats: int) -> dict[str, dict[str, Any]]:
    """
    Checks all readers on a video, then times those that give the right frames.

    Args:
        cell ([`Cell`]): What to read.
        path (`Path`): Its video.
        readers (`dict[str, Reader]`): By name.
        repeats (`int`): Readings that are timed.

    Returns:
        `dict[str, dict[str, Any]]`: For each reader `mean_difference`, `seconds` and `frames_per_second`, or `error`.

    Raises:
        AssertionError: If the video itself is not as it should be.
    """
    reference = read_reference(path, cell)
    np.testing.assert_array_equal(drawn_numbers(reference), cell.indices % (PERIOD_SECONDS * FPS))
    results: dict[str, dict[str, Any]] = {}
    for name, reader in readers.items():
        try:
            results[name] = check_frames(reader(path, cell), reference)
        except Exception as error:  # Whatever it is that readers raise.
            results[name] = {"error": short_text(error)}
    right: dict[Any, Callable[[], object]] = {
        name: partial(readers[name], path, cell) for name, result in results.items() if "error" not in result
    }
    for name, seconds in median_seconds(right, repeats).items():
        results[name] |= {"seconds": seconds, "frames_per_second": cell.num_frames / seconds}
    return results


def readers_for(cell: Cell, peers: dict[str, str]) -> dict[str, Reader]:
    """The readers that are there, less OpenCV's seeking where it decodes no fewer frames than reading through."""
    num_decoded_seeking = cell.num_frames * cell.key_frame_distance / 2
    readers = {
        name: reader
        for name, reader in READERS.items()
        if (peer := name.split()[0]) not in PEER_MODULES or peer in peers
    }
    if num_decoded_seeking >= cell.duration_seconds * FPS:
        readers.pop("opencv seek", None)
    return readers


def speed_ratio(row: dict[str, Any], column: str) -> tuple[float | None, str]:
    """
    Frames per second of `ours` over those of the column's fastest reader.

    Args:
        row (`dict[str, Any]`): A cell's, with the results of [`measure_cell`] as `readers`.
        column (`str`): One of `COLUMNS`.

    Returns:
        `tuple[float | None, str]`: The ratio, `None` if there is none; and what the table says.
    """
    results = {name: row["readers"][name] for name in COLUMNS[column] if name in row["readers"]}
    speeds = {name: result["frames_per_second"] for name, result in results.items() if "error" not in result}
    ours = row["readers"]["ours"].get("frames_per_second")
    if not speeds or ours is None:
        return None, "; ".join(result["error"] for result in results.values() if "error" in result) or "-"
    fastest = max(speeds, key=lambda name: speeds[name])
    ratio = ours / speeds[fastest]
    return ratio, f"{ratio:.2f}{fastest.removeprefix(column)}"


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """
    Args:
        rows (`list[dict[str, Any]]`): Those of `results.jsonl`, at least one.

    Returns:
        `str`: A line for each, and the geometric means over the cells that have a ratio.
    """
    lines = []
    ratios: dict[str, list[float]] = {column: [] for column in [*COLUMNS, "smallest"]}
    for row in rows:
        ours = row["readers"]["ours"]
        speed = ours["error"] if "error" in ours else f"{ours['frames_per_second']:.1f}"
        column_values = {column: speed_ratio(row, column) for column in COLUMNS}
        known = {column: ratio for column, (ratio, _) in column_values.items() if ratio is not None}
        if known:
            known["smallest"] = min(known.values())
        for column, ratio in known.items():
            ratios[column].append(ratio)
        texts = {f"ours / {column}": text for column, (_, text) in column_values.items()}
        smallest = f"{known['smallest']:.2f}" if known else "-"
        lines.append({"cell": row["cell"], "ours, frames/s": speed} | texts | {"smallest ratio": smallest})
    means = [f"{math.exp(statistics.mean(map(math.log, r))):.2f} ({len(r)})" if r else "-" for r in ratios.values()]
    lines.append(dict(zip(lines[0], ["geometric mean (cells)", "-", *means], strict=True)))
    return to_markdown(lines)


def main() -> None:
    """Measures the cells that the record does not have yet, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/reading"))
    parser.add_argument("--small", action="store_true", help="Tiny videos, to try the script itself.")
    parser.add_argument("--cells", nargs="+", default=[""], help="Parts of the names of the cells to measure.")
    parser.add_argument("--repeats", type=int, default=3, help="Readings that are timed, after one to warm up.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cells = [cell for cell in (SMALL_CELLS if args.small else CELLS) if any(part in cell.name for part in args.cells)]
    if not cells:
        parser.error(f"--cells {' '.join(args.cells)} is part of no name, such as {CELLS[0].name}.")

    peers, missing = installed_peers()
    record = {
        "versions": {"av": av.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
        | peers,
        "missing": missing,
        "device": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "commit": get_commit(),
        "seed": args.seed,
        "repeats": args.repeats,
    }
    print(json.dumps(record))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results_path = args.output_dir / "results.jsonl"
    done = {(row["cell"], row["seed"]) for row in read_rows(results_path)}
    progress = tqdm([cell for cell in cells if (cell.name, args.seed) not in done], desc="cells")
    for cell in progress:
        progress.set_postfix_str(cell.name)
        path = make_video(cell, args.output_dir / "videos", args.seed)
        results = measure_cell(cell, path, readers_for(cell, peers), args.repeats)
        date = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        append_row(results_path, {"cell": cell.name} | asdict(cell) | {"readers": results} | record | date)
    table = markdown_table([row for row in read_rows(results_path) if row["seed"] == args.seed])
    (args.output_dir / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
