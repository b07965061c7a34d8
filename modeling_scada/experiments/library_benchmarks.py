"""Measure the time, memory and recall of encoded videos and indexes, for `scripts/benchmark_library.py`."""

import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoTokenizer, pipeline

from modeling_scada import ScadaForTemporalGrounding, ScadaProcessor, ScadaVideoProcessor
from processing.data.annotations import load_annotations
from processing.pipeline_temporal_grounding import TemporalGroundingPipeline
from processing.post_processing import temporal_iou
from processing.results.provenance import REPOSITORY

from ..library.index import HEAD_BATCH_SIZE, find_videos, index_videos
from ..library.metrics import library_metrics, targets_by_sentence
from ..library.search import Library, search
from ..library.storage import read_shard, write_shard
from .input_benchmarks import SMALL_VIDEOS, VIDEOS, make_benchmark_videos, read_all
from .measuring import median_seconds
from .model_benchmarks import DEVICE, apply_benchmark_mode, model_config


SENTENCES = ["the red circle moves left", "the blue square appears"]
TOKENIZER = REPOSITORY / "hub_configs" / "models" / "moving_shapes_text"
# Small frames, so that the video is written quickly. The memory to encode a video depends on its length.
LONG_VIDEO = {"num_videos": 1, "fps": 10, "height": 120, "width": 160}


def _random_pipeline(size: str, mode: str, num_frames: int) -> TemporalGroundingPipeline:
    """Return a pipeline with random weights."""
    config: Any = model_config(size)
    image_size = config.video_config.image_size
    video_processor = ScadaVideoProcessor(num_frames=num_frames, size={"height": image_size, "width": image_size})
    model: Any = apply_benchmark_mode(ScadaForTemporalGrounding(config), mode).eval()
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    processor = ScadaProcessor(video_processor, AutoTokenizer.from_pretrained(TOKENIZER))
    return pipeline("temporal-grounding", model=model, processor=processor, device=DEVICE)  # type: ignore[call-overload]


def benchmark_queries(size: str, mode: str, num_frames: int, folder: Path, repeats: int, seed: int) -> dict[str, Any]:
    """
    Compare direct grounding with encoding a video once and grounding a sentence in the encoded video.

    Returns:
        `dict[str, Any]`: Seconds of the direct call (`direct_seconds`), of `encode` (`encode_seconds`) and of a
        sentence in the encoded video (`ask_seconds`); the last over the first (`ask_over_direct`); and the `bytes` of
        the encoded video.
    """
    shape = SMALL_VIDEOS if size == "tiny" else VIDEOS
    rows, _ = make_benchmark_videos(folder, **shape | {"num_videos": 1}, seed=seed)  # type: ignore[arg-type]
    video = rows[0]["video"]
    pipe = _random_pipeline(size, mode, num_frames)
    encoded = pipe.encode(video)
    for found, expected in zip(pipe(encoded, SENTENCES[1]), pipe(video, SENTENCES[1]), strict=True):
        if abs(found["score"] - expected["score"]) > 1e-5:
            raise RuntimeError(f"The encoded video gives {found}; expected {expected}, as in the direct call.")
    ways: dict[str, Callable[[], object]] = {
        "direct_seconds": partial(pipe, video, SENTENCES[0]),
        "encode_seconds": partial(pipe.encode, video),
        "ask_seconds": partial(pipe, encoded, SENTENCES[1]),
    }
    seconds = median_seconds(ways, repeats)
    ratio = seconds["ask_seconds"] / seconds["direct_seconds"]
    return {"size": size, "mode": mode, **seconds, "ask_over_direct": ratio, "bytes": encoded.num_bytes}


def benchmark_long(
    size: str, num_frames: int, window_seconds: float, duration_seconds: int, folder: Path, repeats: int, seed: int
) -> dict[str, Any]:
    """
    Encode a long video with a frozen backbone, in a separate process so that its peak memory can be measured.

    Returns:
        `dict[str, Any]`: Number of `windows`, the `bytes` of the encoded video, and the `peak_bytes` of the process;
        seconds of reading alone, of the model alone on the same number of windows, and of `encode`
        (`encode_seconds`); and `encode_seconds` over the larger of the other two.
    """
    (folder / str(duration_seconds)).mkdir()
    shape = LONG_VIDEO | {"duration_seconds": duration_seconds}
    rows, _ = make_benchmark_videos(folder / str(duration_seconds), **shape, seed=seed)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures = pool.apply(_encode_long, (rows[0]["video"], size, num_frames, window_seconds, repeats))
    return {"size": size, "duration_seconds": duration_seconds, **figures}


def _encode_long(video: str, size: str, num_frames: int, window_seconds: float, repeats: int) -> dict[str, Any]:
    pipe = _random_pipeline(size, "frozen", num_frames)
    processor = pipe.processor.video_processor
    processor.window_seconds = window_seconds
    encoded = pipe.encode(video)
    # Read first, because later measurements may need more memory. Linux reports kB.
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    windows = partial(processor.iterate_windows, video, do_normalize=False)
    pixels = next(windows())["pixel_values_videos"].to(DEVICE)
    model: Any = pipe.model

    @torch.inference_mode()
    def run_model() -> None:
        for _ in encoded.timelines:
            model.encode_video(pixels)

    ways: dict[str, Callable[[], object]] = {
        "read_seconds": lambda: read_all(windows()),
        "model_seconds": run_model,
        "encode_seconds": partial(pipe.encode, video),
    }
    seconds = median_seconds(ways, repeats)
    return {
        "windows": len(encoded.timelines),
        "bytes": encoded.num_bytes,
        "peak_bytes": peak_bytes,
        **seconds,
        "encode_over_larger": seconds["encode_seconds"] / max(seconds["read_seconds"], seconds["model_seconds"]),
    }


def benchmark_index(videos: Path, pipe: TemporalGroundingPipeline, folder: Path, rounds: int) -> dict[str, Any]:
    """
    Compare indexing the videos of a folder with only encoding them. Each round does both for one part of the videos.

    Returns:
        `dict[str, Any]`: Videos per second of both, and the overhead of the index. Each is given in wall-clock time
        and in processor time, which other load on the machine hardly affects.
    """
    names = list(find_videos(videos).videos)
    (folder / "first").mkdir(parents=True)
    (folder / "first" / f"0{Path(names[0]).suffix}").symlink_to((videos / names[0]).resolve())
    index_videos(folder / "first", pipe, folder / "warm")  # to warm up
    times = {"encode": [0.0, 0.0], "index": [0.0, 0.0]}
    for part in range(rounds):
        links = folder / f"videos_{part}"
        links.mkdir(parents=True)
        for number, name in enumerate(names[part::rounds]):
            (links / f"{number:06}{Path(name).suffix}").symlink_to((videos / name).resolve())
        paths = sorted(links.iterdir())

        def encode(paths: list[Path] = paths) -> None:
            for path in paths:
                pipe.encode(path)

        ways: dict[str, Callable[[], object]] = {
            "encode": encode,
            "index": partial(index_videos, links, pipe, folder / f"index_{part}"),
        }
        for name in list(ways)[:: 1 if part % 2 else -1]:
            clock, processor = time.perf_counter(), time.process_time()
            ways[name]()
            times[name][0] += time.perf_counter() - clock
            times[name][1] += time.process_time() - processor
    num_bytes = sum(path.stat().st_size for path in folder.glob("index_*/part-*"))
    return {
        "videos": len(names),
        "videos_per_second": {name: len(names) / seconds for name, (seconds, _) in times.items()},
        "videos_per_processor_second": {name: len(names) / seconds for name, (_, seconds) in times.items()},
        "overhead": times["index"][0] / times["encode"][0] - 1,
        "overhead_processor": times["index"][1] / times["encode"][1] - 1,
        "index_bytes_per_video": num_bytes / len(names),
    }


def copy_rows(index: Path, num_windows: int) -> None:
    """Enlarge an index with copies of its rows under new names, with random embeddings."""
    paths = list(index.glob("part-*.arrow"))
    path, table = paths[0], pa.concat_tables([read_shard(path) for path in paths]).combine_chunks()
    videos = table.column("video").to_pylist()
    generator = np.random.default_rng(0)
    for number in range(1, -(-num_windows // len(videos))):
        copy = table.set_column(0, table.schema.field(0), pa.array([f"{number:06}/{video}" for video in videos]))
        position = table.column_names.index("proposal_embeds")
        field = table.schema.field(position)
        noise = generator.standard_normal(len(videos) * field.type.list_size, dtype=np.float32)
        embeds = pa.array((noise / 8).astype(np.float16))
        copy = copy.set_column(position, field, pa.FixedSizeListArray.from_arrays(embeds, field.type.list_size))
        write_shard(path.with_name(f"{path.stem}-{number:06}.arrow"), copy)


@torch.no_grad()
def benchmark_search(index: Path, pipe: TemporalGroundingPipeline, num_candidates: int) -> dict[str, Any]:
    """
    Measure a search for one sentence.

    Returns:
        `dict[str, Any]`: Seconds to open the index; seconds of the first stage and of the whole search, each for the
        first and the second call; bytes per window; and the peak memory of the process so far, mapped files included.
    """
    started = time.perf_counter()
    library = Library(index)
    seconds = {"open_seconds": time.perf_counter() - started}
    encoded = pipe.processor.encode_text([SENTENCES[:1]])
    tokens = [torch.from_numpy(encoded[name][0]).to(pipe.device) for name in ("input_ids", "attention_mask")]
    embeds = pipe.model.embed_sentences(*tokens).float().cpu()  # type: ignore[union-attr, operator]
    ways: dict[str, Callable[[], object]] = {
        "products": partial(library.window_similarities, embeds),
        "search": partial(search, library, SENTENCES[:1], pipe, 10, num_candidates),
    }
    for name, way in ways.items():
        for when in ("first", "again"):
            started = time.perf_counter()
            way()
            seconds[f"{name}_{when}_seconds"] = time.perf_counter() - started
    num_bytes = sum(path.stat().st_size for path in index.glob("part-*"))
    return {
        "windows": len(library.videos),
        "num_candidates": num_candidates,
        "asked_together": HEAD_BATCH_SIZE,
        **seconds,
        "bytes_per_window": num_bytes / len(library.videos),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts in kB
    }


def benchmark_recall(
    folder: Path, index: Path, pipe: TemporalGroundingPipeline, num_sentences: int, candidates: list[int], seed: int
) -> dict[str, Any]:
    """
    Measure the recall of a search on the test split of a data set. The index holds all videos in its folder.

    Returns:
        `dict[str, Any]`: [`library_metrics`] and seconds per sentence of a search with each number of candidates, and
        of a search where the head scores all windows (`searches`); the metrics if the video of each sentence is known
        (`video_known`); and the metrics of random videos with the best constant segment (`chance`).
    """
    rows = [{**row, "video": str(folder / row["video"])} for row in load_annotations(str(folder), "test")]
    targets = {sentence: videos for sentence, videos in targets_by_sentence(rows).items() if videos}
    num_sentences = min(num_sentences, len(targets))
    sentences = np.random.default_rng(seed).choice(sorted(targets), num_sentences, False).tolist()
    index_videos(folder, pipe, index)
    library = Library(index)
    searches = []
    for num_candidates in [*candidates, len(library.videos)]:
        started = time.perf_counter()
        results = search(library, sentences, pipe, 10, num_candidates)
        seconds = (time.perf_counter() - started) / len(sentences)
        metrics = library_metrics(results, rows)
        searches.append({"num_candidates": num_candidates, "seconds_a_sentence": seconds, **metrics})
    known = []
    for sentence in sentences:
        video = next(iter(targets[sentence]))
        segments = [{"video": video, **found} for found in pipe(video, sentence, top_k=10)]  # type: ignore[union-attr]
        known.append({"sentence": sentence, "segments": segments})
    return {
        "windows": len(library.videos),
        "videos": len(set(library.videos)),
        "sentences": len(sentences),
        "videos_of_a_sentence": float(np.mean([len(targets[sentence]) for sentence in sentences])),
        "searches": searches,
        "video_known": library_metrics(known, rows),
        "chance": _chance(rows, [targets[sentence] for sentence in sentences], len(set(library.videos))),
    }


def _chance(
    rows: list[dict[str, Any]], targets_by_sentence: list[dict[str, Any]], num_videos: int
) -> dict[str, float]:
    """Return the recall of random videos with the best constant segment, in percent."""
    durations = {row["video"]: row["duration"] for row in rows}
    shares = [(start / 20, stop / 20) for start in range(20) for stop in range(start + 1, 21)]
    best = {1: 0.0, 10: 0.0}
    for share in shares:
        num_hits = []  # per sentence, the number of videos where the segment is a hit
        for videos in targets_by_sentence:
            ious = [
                temporal_iou(np.array([share]) * durations[video], np.array(targets)).max()
                for video, targets in videos.items()
            ]
            num_hits.append(sum(iou >= 0.5 for iou in ious))
        for k in best:
            drawn = min(k, num_videos)
            misses = [math.comb(num_videos - count, drawn) / math.comb(num_videos, drawn) for count in num_hits]
            best[k] = max(best[k], 100 * (1 - float(np.mean(misses))))
    return {f"R{k}@0.5": value for k, value in best.items()}
