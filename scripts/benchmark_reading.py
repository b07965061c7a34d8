r"""
Benchmark the reading of T evenly spaced frames at 160 x 160 pixels, with this project's reader and others.

    python scripts/benchmark_reading.py --output_dir outputs/reading
    python scripts/benchmark_reading.py --cells gop12 vp9
    python scripts/benchmark_reading.py --small --output_dir outputs/reading_small   # to try the script itself

The other readers are transformers' PyAV reader and, if installed, decord, OpenCV and torchcodec
(`pip install decord opencv-python-headless torchcodec`). torchcodec also needs FFmpeg's shared libraries. With a torch
build without CUDA, use version 0.13, because later wheels on PyPI need CUDA. Each reader runs as its documentation
recommends for this task. It scales during decoding if it can (decord, torchcodec), and frame by frame afterwards
otherwise. All readers start from a closed file, in one process, with their own number of threads.

- OpenCV runs in two ways: it grabs all frames and retrieves the requested ones, or it seeks to each requested frame if
  that can decode fewer frames. The table shows the faster way. torchcodec has one column per seek mode.
- The script makes the videos and keeps them. They have B-frames in h264 and hevc, and open groups of pictures in hevc,
  the defaults of x264 and x265.
- Each image shows its number in black and white blocks, to check the frames of a reader before its timing. The
  requested timestamps are the middles of frames, so rounding has no effect. If a reader fails, or its frames or pixels
  differ from a decoder of the whole file, the table shows the error instead of a time.
- `mean_difference` is the mean difference to the frames of that decoder, scaled by libswscale, in grey levels. It
  reflects different methods of scaling and of chroma upsampling.
- A long video repeats 30 s of encoded frames and their numbers. An error of exactly 30 s would remain undetected.

Each cell, a video and a number T, is a line in `results.jsonl`, with versions, commit and date. Repeat the command to
resume an interrupted benchmark. The final `table.md` has the frames per second of `ours`, and its ratio to each other
reader. All cells take about an hour on two cores, of which the videos take 3 minutes. The videos take 0.7 GB on disk.
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

from modeling_scada.experiments.measuring import cpu_name, median_seconds
from modeling_scada.experiments.tables import to_markdown
from processing.data.synthetic_videos import BITS_PER_PIXEL, draw_frames, write_synthetic_video
from processing.results.provenance import append_jsonl_row, get_commit, read_jsonl_rows
from processing.video_io import SCALING_FLAGS, read_frames, resize_frames


SIDE = 160  # height and width of the frames, in pixels
FPS = 25
# Maximum duration to encode; longer videos repeat it.
PERIOD_SECONDS = 30
NUM_PICTURES = 50
# Number of blocks for the number of a frame, enough for one period.
NUM_BITS = 10
# In grey levels. Methods of scaling differ by less; wrong frames or swapped colours differ by more.
MAX_DIFFERENCE = 8.0

# Encoder, options and container: fast settings, with B-frames if the codec supports them.
CODECS = {
    "h264": ("libx264", {"preset": "veryfast", "threads": "1"}, "mp4"),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "bframes=4:pools=1:log-level=error"}, "mp4"),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, "webm"),
}
# Modules of the optional readers.
PEER_MODULES = {"decord": "decord", "opencv": "cv2", "torchcodec": "torchcodec"}


@dataclass(frozen=True)
class Cell:
    """
    A video and a number of frames to read.

    Args:
        codec (`str`): Name in `CODECS`.
        key_frame_distance (`int`): Distance of key frames, in frames.
        duration_seconds (`int`): Length of the video, in seconds.
        height (`int`), width (`int`): Size of the frames, in pixels, even.
        num_frames (`int`): Number of evenly spaced frames to read.
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
        """Return the indices of the frames to read, `(num_frames,)`: the middles of equal parts of the video."""
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
    """Draw a number of `NUM_BITS` bits on an image `(H, W, 3)`, as blocks along its upper edge, low bits first."""
    height, width = image.shape[:2]
    column_bits = np.arange(width) * NUM_BITS // width
    numbered = image.copy()
    numbered[: height // 8] = np.where(number >> column_bits & 1, 235, 16)[:, None]
    return numbered


def drawn_numbers(frames: np.ndarray) -> np.ndarray:
    """Read the numbers `(T,)` that [`draw_number`] drew on frames `(T, H, W, 3)` of any size."""
    height, width = frames.shape[1:3]
    columns = ((np.arange(NUM_BITS) + 0.5) * width / NUM_BITS).astype(int)
    bits = frames[:, height // 16 - 1 : height // 16 + 2, columns].mean((1, 3)) > 128
    return bits @ (1 << np.arange(NUM_BITS))


def encode(cell: Cell, num_frames: int, path: Path, seed: int) -> None:
    """Write the first frames of a cell's video: a few images, forwards and backwards, because drawing is slow."""
    encoder, options, _ = CODECS[cell.codec]
    pictures = list(draw_frames(np.random.default_rng(seed), NUM_PICTURES, cell.height, cell.width))
    last = NUM_PICTURES - 1
    frames = (draw_number(pictures[last - abs(k % (2 * last) - last)], k) for k in range(num_frames))
    bit_rate = int(BITS_PER_PIXEL * FPS * cell.height * cell.width)
    write_synthetic_video(path, frames, FPS, encoder, options | {"g": str(cell.key_frame_distance)}, bit_rate)


def make_video(cell: Cell, folder: Path, seed: int) -> Path:
    """
    Make a cell's video if it does not exist.

    Args:
        cell ([`Cell`]): Cell with a duration of at most `PERIOD_SECONDS` or a multiple of it.
        folder (`Path`): Folder of the videos.
        seed (`int`): Seed of the images.

    Returns:
        `Path`: Path of the video.
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
                    if packet.pts is None or packet.dts is None:  # end of the stream
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
    Decode the whole file, and scale the requested frames by libswscale's bilinear filter.

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
    """Return an exception as one line for a table."""
    text = re.sub(r"\[[\d:]+\] \S+: ", "", str(error))  # place and time of decord's errors
    return f"{type(error).__name__}: {' '.join(text.split())[:100]}".replace("|", "/")


def installed_peers() -> tuple[dict[str, str], dict[str, str]]:
    """
    Import the other readers.

    Returns:
        `tuple[dict[str, str], dict[str, str]]`: Versions of the installed readers, and the errors of the others.
    """
    versions, missing = {}, {}
    for name, module in PEER_MODULES.items():
        try:
            versions[name] = importlib.import_module(module).__version__
        except (ImportError, OSError, RuntimeError) as error:  # the last two: the library does not load
            missing[name] = short_text(error)
    return versions, missing


def check_frames(frames: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """
    Compare the frames of a reader with the reference.

    Returns:
        `dict[str, Any]`: `mean_difference`, in grey levels, and `error` if the frames differ.
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
    Check all readers on a video, and time the readers with correct frames.

    Args:
        cell ([`Cell`]): Cell to measure.
        path (`Path`): Video of the cell.
        readers (`dict[str, Reader]`): Readers by name.
        repeats (`int`): Number of timed calls.

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
        except Exception as error:  # readers raise any exception
            results[name] = {"error": short_text(error)}
    right: dict[Any, Callable[[], object]] = {
        name: partial(readers[name], path, cell) for name, result in results.items() if "error" not in result
    }
    for name, seconds in median_seconds(right, repeats).items():
        results[name] |= {"seconds": seconds, "frames_per_second": cell.num_frames / seconds}
    return results


def readers_for(cell: Cell, peers: dict[str, str]) -> dict[str, Reader]:
    """Return the installed readers, without OpenCV's seeking if it decodes as many frames as reading in order."""
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
    Return the ratio of frames per second between `ours` and the fastest reader of a column.

    Args:
        row (`dict[str, Any]`): Row of a cell, with the results of [`measure_cell`] as `readers`.
        column (`str`): Name in `COLUMNS`.

    Returns:
        `tuple[float | None, str]`: Ratio, or `None` without a result, and the text for the table.
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
    Return the results as a table.

    Args:
        rows (`list[dict[str, Any]]`): Rows of `results.jsonl`, at least one.

    Returns:
        `str`: Table with a line per row, and the geometric means over all cells with a ratio.
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
    """Measure the missing cells, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/reading"))
    parser.add_argument("--small", action="store_true", help="Use tiny videos, to test the script itself.")
    parser.add_argument("--cells", nargs="+", default=[""], help="Substrings of the names of cells to measure.")
    parser.add_argument("--repeats", type=int, default=3, help="Number of timed calls, after one warm-up call.")
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
    done = {(row["cell"], row["seed"]) for row in read_jsonl_rows(results_path)}
    progress = tqdm([cell for cell in cells if (cell.name, args.seed) not in done], desc="cells")
    for cell in progress:
        progress.set_postfix_str(cell.name)
        path = make_video(cell, args.output_dir / "videos", args.seed)
        results = measure_cell(cell, path, readers_for(cell, peers), args.repeats)
        date = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        append_jsonl_row(results_path, {"cell": cell.name} | asdict(cell) | {"readers": results} | record | date)
    table = markdown_table([row for row in read_jsonl_rows(results_path) if row["seed"] == args.seed])
    (args.output_dir / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
