r"""
Memory and speed of what this project makes its own. Models are random and nothing is downloaded; results are checked
for equality before anything is timed.

    make bench
    python scripts/benchmark.py --output_dir outputs/bench
    python scripts/benchmark.py --parts tuning --sizes base --no_time
    python scripts/benchmark.py --parts tuning --sizes base large huge giant --num_frames 512   # with a GPU

- `proposal_features`: the linear layer over 16 sampled points of all proposals, as the head computes it
  (`embedding_bag`), as a CSR product, and literally, building the points; always on the CPU.
- `tuning`: for each size of VideoMAE and each mode of `run_temporal_grounding.py`, with one video a batch,
    - `trainable_parameters` of the backbone and of the head;
    - `bytes_kept` for the backward pass at 1, 4 and 8 sentences, head and loss included, and
      `bytes_kept_checkpointed`, the same with (non-reentrant) checkpointing. Both are counts and come out the same
      each time;
    - `peak_bytes` of a training step at 1, 4 and 8 sentences, on a GPU;
    - `step_seconds`: forward, backward and AdamW at 1 sentence;
    - `inference_seconds` for 1, 4 and 16 sentences, in the modes where inference differs.
- `input_pipeline`: which of the two waits, the training step or the reading of videos. For each size, with one video
  and one sentence a batch,
    - `videos_per_second` of a `DataLoader` over the collator, with 0, 1 and 2 workers: decoding, scaling, normalising
      and tokenizing, with nothing else to do (the decoder has threads of its own). All of them give the same
      batches, which is checked first. The videos are made here, and stay in the system's cache: what a slow disk costs
      is not in it;
    - `step_seconds` of the mode `scada` on the loader's first batch, with no videos read meanwhile;
    - `pipeline_over_step`: the loader's seconds a batch over the step's. With workers the step waits for videos where
      this is more than 1; with 0 workers, which read between the steps, it is what reading adds to each step. On a CPU
      workers and step also take the cores from each other.

Runs on a GPU, in bfloat16 but for the adapters, if there is one, else on the CPU in float32. On a GPU, what does not
fit is `null` in the record. A CPU has no such guard: choose sizes that fit (`full` keeps model, gradients and two
moments, 16 bytes a parameter, and 4 more for the model that it is copied from, beside `bytes_kept`).

Writes `benchmark.json`, with versions, device, commit and seed, anew after each measurement, and prints tables.
"""

import argparse
import copy
import gc
import json
import platform
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import peft
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoTokenizer

from modeling_scada import (
    ScadaConfig,
    ScadaForTemporalGrounding,
    ScadaProcessor,
    ScadaVideoProcessor,
    TuningArguments,
    prepare_tuning,
)
from modeling_scada.head_scada import ProposalFeatures, all_proposals, sample_points
from processing.collator import TemporalGroundingCollator
from processing.provenance import REPOSITORY, current_commit


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32

# Width, layers, heads, width of the MLP, patch size and image size, in pixels.
SIZES = {
    "tiny": (32, 4, 2, 64, 16, 32),
    "small": (384, 12, 6, 1536, 16, 160),
    "base": (768, 12, 12, 3072, 16, 160),
    "large": (1024, 24, 16, 4096, 16, 160),
    "huge": (1280, 32, 16, 5120, 16, 160),
    "giant": (1408, 40, 16, 6144, 14, 168),
}
MODES = ("full", "frozen", "partial", "lora", "tia", "scada", "scada_inner", "scada_outer")
CHECKPOINTED_MODES = ("full", "scada", "scada_outer")
# The others' inference is that of `frozen`, or hardly differs.
INFERENCE_MODES = ("frozen", "scada", "scada_inner", "scada_outer")
TRAINING_SENTENCES = (1, 4, 8)
INFERENCE_SENTENCES = (1, 4, 16)

PIPELINE_MODE = "scada"
NUM_WORKERS = (0, 1, 2)
# Such as data sets of people's videos hold; sizes in pixels.
VIDEOS = {"num_videos": 12, "duration_seconds": 30, "fps": 25, "height": 360, "width": 480}
SMALL_VIDEOS = {"num_videos": 4, "duration_seconds": 2, "fps": 10, "height": 48, "width": 64}
# At this rate they took about as long to decode, for their size, as real h264 videos did.
BITS_PER_PIXEL = 0.1


def unless_out_of_memory(measure: Callable[[], Any]) -> Any:
    """What `measure` returns; `None` if the GPU's memory was not enough."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        pass  # Until here the exception holds the tensors.
    torch.cuda.empty_cache()
    return None


def seconds_of(function: Callable[[], object]) -> float:
    """Time of a call, in seconds, until the device is through with it."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    started_seconds = time.perf_counter()
    function()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started_seconds


def median_seconds(functions: dict[Any, Callable[[], object]], repeats: int) -> dict[Any, Any]:
    """
    Times functions in turns, so that what else the machine does meets all of them.

    Returns:
        `dict[Any, Any]`: Median time of a call of each, in seconds, after one call to warm up; `None` where the GPU's
        memory was not enough.
    """
    rounds = [
        {name: unless_out_of_memory(partial(seconds_of, function)) for name, function in functions.items()}
        for _ in range(1 + repeats)
    ]
    times_seconds = {name: [times[name] for times in rounds] for name in functions}
    return {name: None if None in times else statistics.median(times[1:]) for name, times in times_seconds.items()}


class _Packed:
    """A tensor kept for the backward pass. It lives as long as the graph holds it."""

    def __init__(self, tensor: torch.Tensor):
        # With its own graph it would be part of a circle that nothing frees, not even once the loss is gone.
        self.tensor = tensor.detach()


def bytes_kept(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """
    Bytes that a forward pass keeps for the backward pass of its loss.

    Each storage counts once and in full, whatever part of it is kept; parameters, buffers and pixels do not count, as
    they are there anyway. What only the outputs beside the loss hold does not count either.

    Args:
        model (`nn.Module`): Returns outputs with a `loss`.
        batch (`dict[str, torch.Tensor]`): Its arguments; the pixels are `pixel_values_videos`.

    Returns:
        `int`: Bytes.
    """
    # Weakly: a checkpointed layer drops some of what it packed as soon as it is through.
    packed: weakref.WeakSet[_Packed] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> _Packed:
        kept = _Packed(tensor)
        packed.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss = model(**batch).loss
    present = [*model.parameters(), *model.buffers(), batch["pixel_values_videos"]]
    storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in packed}
    del loss  # It held the graph.
    for tensor in present:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@torch.no_grad()
def benchmark_proposal_features(grid_size: int, dim: int, num_sentences: int, repeats: int) -> dict[str, float]:
    """
    Returns:
        `dict[str, float]`: Seconds of the head's way, and the other ways' times as multiples of it.
    """
    layer = ProposalFeatures(dim, 16)
    proposals = all_proposals(grid_size)
    features = torch.randn(num_sentences, grid_size, dim)
    steps, weights = sample_points(proposals, 16, grid_size)
    columns = (steps + grid_size * torch.arange(16)[:, None]).flatten(1)
    rows = torch.arange(len(proposals) + 1) * columns.shape[1]
    matrix = torch.sparse_csr_tensor(rows, columns.flatten(), weights.flatten(), (len(proposals), 16 * grid_size))

    def by_csr() -> torch.Tensor:
        table = torch.einsum("qsd,okd->ksqo", features, layer.linear.weight.view(-1, 16, dim))
        sums = matrix @ table.reshape(16 * grid_size, -1)
        return sums.view(len(proposals), num_sentences, -1).transpose(0, 1) + layer.linear.bias

    def by_points() -> torch.Tensor:
        points = (features[:, steps] * weights[..., None]).sum(-2)  # (Q, P, 16, D)
        return layer.linear(points.flatten(2))

    ways: dict[Any, Callable[[], Any]] = {
        "embedding_bag": lambda: layer(features, proposals),
        "csr": by_csr,
        "literal": by_points,
    }
    for way in ways.values():
        torch.testing.assert_close(way(), layer(features, proposals), rtol=1e-4, atol=1e-4)
    seconds = median_seconds(ways, repeats)
    base_seconds = seconds.pop("embedding_bag")
    return {"seconds": base_seconds} | {f"{name}_ratio": value / base_seconds for name, value in seconds.items()}


def model_config(size: str) -> ScadaConfig:
    """The model of a size: the backbone's shape, and with `tiny` a small head and sentence encoder too."""
    width, num_layers, num_heads, mlp_width, patch_size, image_size = SIZES[size]
    tiny = size == "tiny"
    text_shape = {"n_layers": 2, "dim": 32, "n_heads": 2, "hidden_dim": 64} if tiny else {}
    return ScadaConfig(
        video_config={
            "model_type": "videomae",
            "hidden_size": width,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "intermediate_size": mlp_width,
            "patch_size": patch_size,
            "image_size": image_size,
        },
        text_config={"model_type": "distilbert", **text_shape},
        hidden_size=16 if tiny else 256,
        grid_size=16 if tiny else 128,
    )


def make_batch(num_frames: int, image_size: int) -> dict[str, torch.Tensor]:
    """
    Returns:
        `dict[str, torch.Tensor]`: One video of noise, 16 sentences of 12 tokens, and the middle of the video as the
        target of each.
    """
    num_sentences = max(INFERENCE_SENTENCES)
    return {
        "pixel_values_videos": torch.randn(1, num_frames, 3, image_size, image_size),
        "input_ids": torch.randint(5, 100, (1, num_sentences, 12)),
        "labels": torch.tensor([0.25, 0.75]).repeat(1, num_sentences, 1),
    }


def with_sentences(batch: dict[str, torch.Tensor], start: int, end: int) -> dict[str, torch.Tensor]:
    """The batch with the sentences `start` to `end - 1` alone."""
    return {name: value if name == "pixel_values_videos" else value[:, start:end] for name, value in batch.items()}


def add_tuning(model: ScadaForTemporalGrounding, mode: str) -> nn.Module:
    """Prepares the model as `run_temporal_grounding.py` does; `scada_inner` and `scada_outer` have one branch each."""
    tuning, _, branches = mode.partition("_")
    return prepare_tuning(model, TuningArguments(tuning=tuning, scada_branches=branches or "both"))


@torch.no_grad()
def check_equality(plain: ScadaForTemporalGrounding, mode: str, batch: dict[str, torch.Tensor]) -> None:
    """
    Checks, in float32 and on the first two clips of the video, that a fresh adapter changes nothing, and that the
    first and the last of 16 sentences get alone what they get together once the adapter has random weights.

    Raises:
        AssertionError: If not.
    """
    num_frames = 2 * plain.config.video_config.num_frames
    batch = {
        "pixel_values_videos": batch["pixel_values_videos"][:, :num_frames].to(DEVICE),
        "input_ids": batch["input_ids"].to(DEVICE),
    }
    assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    # cuDNN's convolutions round to TF32 otherwise.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        model: Any = copy.deepcopy(plain)
        model.to(DEVICE).eval()
        expected = model(**batch).logits
        model = add_tuning(model, mode).eval()
        assert_close(model(**batch).logits, expected)
        for name, parameter in model.named_parameters():
            if "scada_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        together = model(**batch).logits
        for i in (0, max(INFERENCE_SENTENCES) - 1):
            assert_close(model(**with_sentences(batch, i, i + 1)).logits, together[:, i : i + 1])


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward pass and the optimizer's update."""
    optimizer.zero_grad()
    model(**batch).loss.backward()
    optimizer.step()


def prepare_step(
    plain: ScadaForTemporalGrounding, mode: str
) -> tuple[Any, Any, Callable[[dict[str, torch.Tensor]], None]]:
    """
    Returns:
        `tuple`: A copy of the model on the device, the same prepared for the mode and in training mode, and its
        training step.
    """
    gc.collect()  # A checkpointed model refers to itself, and the last one would count towards this one's peak.
    base: Any = copy.deepcopy(plain)
    model: Any = add_tuning(base.to(DEVICE, DTYPE), mode).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return base, model, partial(training_step, model, torch.optim.AdamW(trainable, lr=1e-5))


def to_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch where and how the model wants it."""
    batch = {name: value.to(DEVICE) for name, value in batch.items()}
    return batch | {"pixel_values_videos": batch["pixel_values_videos"].to(DTYPE)}


def peak_bytes(step: Callable[[dict[str, torch.Tensor]], None], batch: dict[str, torch.Tensor]) -> int:
    """The most bytes on the GPU at a time during a training step, model, optimizer and pixels included."""
    step(batch)  # The first one makes the optimizer's state.
    torch.cuda.reset_peak_memory_stats()
    step(batch)
    return torch.cuda.max_memory_allocated()


def measure_memory(
    model: nn.Module, step: Callable[[dict[str, torch.Tensor]], None], batches: dict[int, dict[str, torch.Tensor]]
) -> dict[str, dict[int, int | None]]:
    """
    Args:
        model (`nn.Module`): In training mode.
        step (`Callable`): Its training step.
        batches (`dict[int, dict[str, torch.Tensor]]`): By number of sentences.

    Returns:
        `dict[str, dict[int, int | None]]`: `bytes_kept`, and on a GPU `peak_bytes`, by number of sentences.
    """
    measures = {"bytes_kept": partial(bytes_kept, model)}
    if DEVICE.type == "cuda":
        measures["peak_bytes"] = partial(peak_bytes, step)
    return {
        name: {count: unless_out_of_memory(partial(measure, batch)) for count, batch in batches.items()}
        for name, measure in measures.items()
    }


@torch.no_grad()
def inference_seconds(model: nn.Module, batch: dict[str, torch.Tensor], repeats: int) -> dict[int, float | None]:
    """Seconds for 1, 4 and 16 sentences of the video."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return median_seconds(
        {count: partial(model, **with_sentences(inputs, 0, count)) for count in INFERENCE_SENTENCES}, repeats
    )


def benchmark_mode(
    plain: ScadaForTemporalGrounding, mode: str, batch: dict[str, torch.Tensor], repeats: int | None
) -> dict[str, Any]:
    """
    Args:
        plain (`ScadaForTemporalGrounding`): The model without an adapter, in float32, on the CPU; it is copied.
        mode (`str`): One of `MODES`.
        batch (`dict[str, torch.Tensor]`): A video and 16 sentences, the pixels in float32, on the CPU.
        repeats (`int` or `None`): Calls that are timed; `None` to time nothing.

    Returns:
        `dict[str, Any]`: The figures that the module's docstring names, by number of sentences where there are
        several; `None` for those that the GPU's memory was not enough for.
    """
    if repeats is not None and mode in INFERENCE_MODES:
        check_equality(plain, mode, batch)
    batch = to_device(batch)
    base, model, step = prepare_step(plain, mode)
    batches = {count: with_sentences(batch, 0, count) for count in TRAINING_SENTENCES}
    result: dict[str, Any] = {
        "trainable_parameters": {
            name: sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
            for name, part in (("backbone", base.model.video_backbone), ("head", base.head))
        }
    }
    result |= measure_memory(model, step, batches)
    if repeats is not None:
        result["step_seconds"] = median_seconds({1: partial(step, batches[1])}, repeats)
        if mode in INFERENCE_MODES:
            model.eval()
            result["inference_seconds"] = inference_seconds(model, batch, repeats)
            model.train()
    if mode in CHECKPOINTED_MODES:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        result |= {f"{name}_checkpointed": value for name, value in measure_memory(model, step, batches).items()}
    return result


def draw_frames(rng: np.random.Generator, num_frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """
    Frames that a codec has some work with: a camera that swings over a texture, another part of it in the middle that
    goes the other way, and grain.

    Args:
        rng (`np.random.Generator`): Source of all randomness.
        num_frames (`int`): How many.
        height (`int`), width (`int`): Of the frames, in pixels.

    Yields:
        `np.ndarray` of shape `(height, width, 3)`, uint8: RGB frames.
    """
    canvas_size = (2 * height, 2 * width)
    texture = np.zeros((*canvas_size, 3))
    for cell in (3, 12, 48):
        noise = torch.from_numpy(rng.random((1, 3, canvas_size[0] // cell + 1, canvas_size[1] // cell + 1)))
        texture += nn.functional.interpolate(noise, canvas_size, mode="bilinear")[0].permute(1, 2, 0).numpy() / 3
    canvas = (240 * texture).astype(np.uint8)
    phases, periods = rng.uniform(0, 2 * np.pi, 2), np.array([250, 380])
    for k in range(num_frames):
        y, x = ((1 + np.sin(phases + 2 * np.pi * k / periods)) / 2 * (height, width)).astype(int)
        frame = canvas[y : y + height, x : x + width].copy()
        patch = canvas[height - y : 2 * height - y, width - x : 2 * width - x]
        middle = np.s_[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
        frame[middle] = patch[middle]
        yield frame + rng.integers(0, 12, frame.shape, dtype=np.uint8)


def make_videos(
    folder: Path, num_videos: int, duration_seconds: int, fps: int, height: int, width: int, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Writes videos, which the seed determines, as h264 in mp4, or as MPEG-4 part 2 where PyAV comes without x264.

    Args:
        folder (`Path`): To write to.
        num_videos (`int`): How many.
        duration_seconds (`int`): Length of each, in seconds.
        fps (`int`): Frames per second.
        height (`int`), width (`int`): In pixels, even.
        seed (`int`): Of all randomness.

    Returns:
        `tuple`: Their rows, as the collator takes them, with one sentence each; and what the record says of them.
    """
    encoder = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    # One thread, and no instructions of this CPU alone: otherwise equal frames give slightly different files.
    x264_options = {"preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}
    rows = []
    for index in range(num_videos):
        path = folder / f"{index}.mp4"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(encoder, rate=fps, options=x264_options if encoder == "libx264" else {})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.bit_rate = int(BITS_PER_PIXEL * fps * height * width)
            frames = draw_frames(np.random.default_rng([seed, index]), duration_seconds * fps, height, width)
            for k, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = k
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        # Another segment for each video, as its pixels are others too: batches in another order differ in both.
        start_seconds = duration_seconds * index / (2 * num_videos)
        segment = [start_seconds, start_seconds + duration_seconds / 4]
        rows.append({"video": str(path), "sentences": ["the red circle moves left"], "segments": [[segment]]})
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    facts = {
        "encoder": encoder,
        "num_videos": num_videos,
        "duration_seconds": duration_seconds,
        "fps": fps,
        "height": height,
        "width": width,
        "megabits_per_second": 8e-6 * num_bytes / (num_videos * duration_seconds),
    }
    return rows, facts


def make_loader(rows: list[dict[str, Any]], collator: TemporalGroundingCollator, num_workers: int) -> DataLoader:
    """The loader that `Trainer` makes of the rows, but in their order and with one video a batch."""
    return DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=1,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=DEVICE.type == "cuda",
        # Started once, by the check: an epoch is many more videos than there are here.
        persistent_workers=num_workers > 0,
    )


def check_same_batches(loaders: Mapping[int, Iterable[dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """
    Checks that loaders give equal batches in the same order.

    Args:
        loaders (`Mapping[int, Iterable]`): By number of workers.

    Returns:
        `dict[str, torch.Tensor]`: The first batch.

    Raises:
        AssertionError: If a batch differs.
        ValueError: If one of the loaders gives more batches than another.
    """
    first_batch: dict[str, torch.Tensor] = {}
    for index, batches in enumerate(zip(*loaders.values(), strict=True)):
        expected = batches[0]
        first_batch = first_batch or expected
        for num_workers, batch in zip(loaders, batches, strict=True):
            if set(batch) != set(expected) or not all(torch.equal(batch[name], expected[name]) for name in expected):
                raise AssertionError(f"Batch {index} with {num_workers} workers is not that of {next(iter(loaders))}.")
    return first_batch


def read_all(loader: Iterable[object]) -> None:
    """A pass over all batches of the loader."""
    for _ in loader:
        pass


def benchmark_input_pipeline(
    plain: ScadaForTemporalGrounding, rows: list[dict[str, Any]], num_frames: int, repeats: int
) -> dict[str, Any]:
    """
    Args:
        plain (`ScadaForTemporalGrounding`): The model without an adapter, in float32, on the CPU.
        rows (`list[dict[str, Any]]`): Of the videos, see [`make_videos`].
        num_frames (`int`): Frames sampled from a video.
        repeats (`int`): Passes over all videos, and steps, that are timed.

    Returns:
        `dict[str, Any]`: The figures that the module's docstring names, by number of workers where there are several;
        `None` for those that the GPU's memory was not enough for.
    """
    image_size = plain.config.video_config.image_size
    processor = ScadaProcessor(
        ScadaVideoProcessor(num_frames=num_frames, size={"height": image_size, "width": image_size}),
        AutoTokenizer.from_pretrained(REPOSITORY / "hub_configs" / "moving_shapes_text"),
    )
    collator = TemporalGroundingCollator(processor)
    loaders = {num_workers: make_loader(rows, collator, num_workers) for num_workers in NUM_WORKERS}
    batch = to_device(check_same_batches(loaders))
    _, _, step = prepare_step(plain, PIPELINE_MODE)
    passes = {num_workers: partial(read_all, loader) for num_workers, loader in loaders.items()}
    seconds = median_seconds(passes | {"step": partial(step, batch)}, repeats)
    step_seconds = seconds.pop("step")
    return {
        "videos_per_second": {n: len(rows) / pass_seconds for n, pass_seconds in seconds.items()},
        "step_seconds": step_seconds,
        "pipeline_over_step": {
            n: None if step_seconds is None else pass_seconds / len(rows) / step_seconds
            for n, pass_seconds in seconds.items()
        },
    }


def numbers_text(values: Iterable[float | None]) -> str:
    """The numbers of a cell."""
    return " / ".join("out of memory" if value is None else f"{value:.3f}" for value in values) or "-"


def table_of(lines: list[dict[str, str]]) -> str:
    """Lines by title to a markdown table; titles under which no line has anything are left out."""
    titles = [title for title in lines[0] if any(line[title] != "-" for line in lines)]
    cells = [titles, ["---"] * len(titles), *([line[title] for title in titles] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def pipeline_table(rows: list[dict[str, Any]]) -> str:
    """A line for each of the results of [`benchmark_input_pipeline`] with their `size` and `mode`."""
    workers = " / ".join(map(str, NUM_WORKERS))
    return table_of(
        [
            {
                "size": row["size"],
                "mode": row["mode"],
                f"videos per second: {workers} workers": numbers_text(row["videos_per_second"].values()),
                "step, s": numbers_text([row["step_seconds"]]),
                f"reading a batch, of a step: {workers} workers": numbers_text(row["pipeline_over_step"].values()),
            }
            for row in rows
        ]
    )


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """
    Args:
        rows (`list[dict[str, Any]]`): Results of [`benchmark_mode`] with their `size` and `mode`.

    Returns:
        `str`: A line for each; "of full" is relative to the mode `full` at as many sentences. Columns of what was not
        measured are left out.
    """

    def over(values: dict[int, Any], units: dict[int, Any]) -> dict[int, float | None]:
        pairs = {n: (value, units[n]) for n, value in values.items() if n in units}
        return {n: None if None in pair else pair[0] / pair[1] for n, pair in pairs.items()}

    gib = dict.fromkeys(TRAINING_SENTENCES, 2**30)
    lines = []
    for row in rows:
        full: dict[str, Any] = next((it for it in rows if it["size"] == row["size"] and it["mode"] == "full"), {})
        step_seconds, inference_seconds = row.get("step_seconds", {}), row.get("inference_seconds", {})
        trainable = [f"{count / 1e6:.2f}" for count in row["trainable_parameters"].values()]
        numbers = {
            "kept for backward, GiB: 1 / 4 / 8 sentences": over(row["bytes_kept"], gib),
            "kept, of full": over(row["bytes_kept"], full.get("bytes_kept", {})),
            "kept, checkpointed, GiB": over(row.get("bytes_kept_checkpointed", {}), gib),
            "peak, GiB": over(row.get("peak_bytes", {}), gib),
            "peak, checkpointed, GiB": over(row.get("peak_bytes_checkpointed", {}), gib),
            "step, s": step_seconds,
            "step, of full": over(step_seconds, full.get("step_seconds", {})),
            "inference, s: 1 / 4 / 16 sentences": inference_seconds,
            "inference, of 1": over(inference_seconds, dict.fromkeys(inference_seconds, inference_seconds.get(1))),
        }
        names = {"size": row["size"], "mode": row["mode"], "trainable, M: backbone + head": " + ".join(trainable)}
        lines.append(names | {title: numbers_text(values.values()) for title, values in numbers.items()})
    return table_of(lines)


def main() -> None:
    """Runs the parts asked for and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    parts = ["proposal_features", "tuning", "input_pipeline"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--sizes", nargs="+", choices=[*SIZES], default=["small", "base"], help="Of the backbone.")
    sizes.add_argument("--small", action="store_true", help="Tiny shapes everywhere, to try the script itself.")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--num_frames", type=int, default=64, help="Frames of the video, a multiple of 16.")
    parser.add_argument("--no_time", action="store_true", help="Count parameters and bytes only, in part `tuning`.")
    parser.add_argument("--repeats", type=int, default=3, help="Calls that are timed, after one to warm up.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes_to_run = ["tiny"] if args.small else args.sizes
    torch.manual_seed(args.seed)
    results: dict[str, Any] = {}
    cpu_name = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    record = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "device": DEVICE.type,
        "device_name": cpu_name if DEVICE.type == "cpu" else torch.cuda.get_device_name(),
        "dtype": str(DTYPE).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "commit": current_commit(),
        "seed": args.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "small": args.small,
        "num_frames": args.num_frames,
        "repeats": args.repeats,
        "null": "out of memory",
        "results": results,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    num_of_part = {
        "proposal_features": 1,
        "tuning": len(sizes_to_run) * len(args.modes),
        "input_pipeline": len(sizes_to_run),
    }
    progress = tqdm(total=sum(num_of_part[part] for part in args.parts), desc="benchmark")

    def save() -> None:
        (args.output_dir / "benchmark.json").write_text(json.dumps(record, indent=2))
        progress.update()

    if "proposal_features" in args.parts:
        shape = {"grid_size": 16, "dim": 16} if args.small else {"grid_size": 128, "dim": 256}
        times = benchmark_proposal_features(**shape, num_sentences=4, repeats=args.repeats)
        results["proposal_features"] = {"device": "cpu"} | times
        save()
        print(json.dumps(results, indent=2))
    if "tuning" in args.parts:
        rows = results["tuning"] = []
        for size in sizes_to_run:
            plain = ScadaForTemporalGrounding(model_config(size))
            batch = make_batch(args.num_frames, plain.config.video_config.image_size)
            for mode in args.modes:
                progress.set_postfix_str(f"{size}, {mode}")
                row = {"size": size, "mode": mode}
                rows.append(row | benchmark_mode(plain, mode, batch, None if args.no_time else args.repeats))
                save()
        print(markdown_table(rows))
    if "input_pipeline" in args.parts:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            progress.set_postfix_str("making videos")
            shape = SMALL_VIDEOS if args.small else VIDEOS
            videos, facts = make_videos(Path(folder), **shape, seed=args.seed)
            results["input_pipeline"] = facts | {"rows": rows}
            for size in sizes_to_run:
                progress.set_postfix_str(f"{size}, input pipeline")
                plain = ScadaForTemporalGrounding(model_config(size))
                figures = benchmark_input_pipeline(plain, videos, args.num_frames, args.repeats)
                rows.append({"size": size, "mode": PIPELINE_MODE} | figures)
                save()
        print(json.dumps(facts))  # It names the encoder, which is not x264 everywhere.
        print(pipeline_table(rows))


if __name__ == "__main__":
    main()
