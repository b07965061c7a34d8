"""
Measure the memory and speed of the model, for `scripts/benchmark.py`. Models have random weights, and results are
checked for equality before any timing.
"""

import copy
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from modeling_scada import (
    ScadaConfig,
    ScadaForTemporalGrounding,
    ScadaVideoProcessor,
    TuningArguments,
    prepare_tuning,
)

from ..head_scada import ProposalFeatures, all_proposals, sample_points
from .measuring import measure_seconds, median_seconds, none_if_out_of_memory, peak_bytes, saved_activation_bytes
from .tables import format_numbers, to_markdown


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
MODES = ("full", "frozen", "partial", "lora", "tia", "scada_both", "scada_inner", "scada_outer", "scada_pooling")
CHECKPOINTED_MODES = ("full", "scada_both", "scada_outer", "scada_pooling")
# In the other modes, inference is the same as in `frozen`, or nearly so.
INFERENCE_MODES = ("frozen", "scada_both", "scada_inner", "scada_outer", "scada_pooling")
TRAINING_SENTENCES = (1, 4, 8)
INFERENCE_SENTENCES = (1, 4, 16)
# A CPU without bfloat16 instructions emulates them, which takes minutes.
HAS_BFLOAT16 = DEVICE.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
BACKBONE_DTYPES = (torch.float32, torch.bfloat16) if HAS_BFLOAT16 else (torch.float32,)
# Rows and columns of the matrices whose product defines the limit of operations per second.
MATRIX_SIZE = 2048
PIPELINE_MODE = "scada_pooling"


@torch.no_grad()
def benchmark_proposal_features(grid_size: int, dim: int, num_sentences: int, repeats: int) -> dict[str, float]:
    """
    Compare implementations of the linear layer over sampled proposal features.

    Returns:
        `dict[str, float]`: Seconds of the head's implementation, and the times of the others relative to it.
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
        return F.linear(points.flatten(2), layer.linear.weight, layer.linear.bias)

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
    """Return the configuration of a model size. `tiny` also has a small head and sentence encoder."""
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
        image_mean=list(ScadaVideoProcessor.image_mean),
        image_deviation=list(ScadaVideoProcessor.image_std),
    )


def make_benchmark_batch(num_frames: int, image_size: int) -> dict[str, torch.Tensor]:
    """
    Create a random batch.

    Returns:
        `dict[str, torch.Tensor]`: One video of noise and 16 sentences of 12 tokens. The target of every sentence is
        the middle of the video.
    """
    num_sentences = max(INFERENCE_SENTENCES)
    return {
        "pixel_values_videos": torch.randn(1, num_frames, 3, image_size, image_size),
        "input_ids": torch.randint(5, 100, (1, num_sentences, 12)),
        "labels": torch.tensor([0.25, 0.75]).repeat(1, num_sentences, 1),
    }


def _select_sentences(batch: dict[str, torch.Tensor], start: int, end: int) -> dict[str, torch.Tensor]:
    """Return the batch with only the sentences `start` to `end - 1`."""
    return {name: value if name == "pixel_values_videos" else value[:, start:end] for name, value in batch.items()}


def apply_benchmark_mode(model: ScadaForTemporalGrounding, mode: str) -> nn.Module:
    """Prepare the model as `run_temporal_grounding.py` does. `scada_inner` and others have one kind of branch each."""
    tuning, _, branches = mode.partition("_")
    return prepare_tuning(model, TuningArguments(tuning, **({"scada_branches": branches} if branches else {})))


@torch.no_grad()
def _check_equality(plain: ScadaForTemporalGrounding, mode: str, batch: dict[str, torch.Tensor]) -> None:
    """
    Check that a mode keeps the results of the model, in float32 on the first two clips of the video.

    A new adapter must not change the logits. With random adapter weights, the first and the last of 16 sentences must
    get the same logits alone as in the batch.

    Raises:
        AssertionError: If the logits differ.
    """
    num_frames = 2 * plain.config.video_config.num_frames
    batch = {
        "pixel_values_videos": batch["pixel_values_videos"][:, :num_frames].to(DEVICE),
        "input_ids": batch["input_ids"].to(DEVICE),
    }
    assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    # Otherwise cuDNN's convolutions round to TF32.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        model: Any = copy.deepcopy(plain)
        model.to(DEVICE).eval()
        expected = model(**batch).logits
        model = apply_benchmark_mode(model, mode).eval()
        assert_close(model(**batch).logits, expected)
        for name, parameter in model.named_parameters():
            if "scada_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        together = model(**batch).logits
        for i in (0, max(INFERENCE_SENTENCES) - 1):
            assert_close(model(**_select_sentences(batch, i, i + 1)).logits, together[:, i : i + 1])


def run_benchmark_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> None:
    """Run the forward pass, the backward pass and the optimizer's update."""
    optimizer.zero_grad()
    model(**batch).loss.backward()
    optimizer.step()


def prepare_step(
    plain: ScadaForTemporalGrounding, mode: str
) -> tuple[Any, Any, Callable[[dict[str, torch.Tensor]], None]]:
    """
    Prepare a copy of the model for training in a mode.

    Returns:
        `tuple`: Copy of the model on the device, the same model prepared for the mode in training mode, and its
        training step.
    """
    gc.collect()  # A checkpointed model refers to itself, so the previous one would count towards this peak.
    base: Any = copy.deepcopy(plain)
    model: Any = apply_benchmark_mode(base.to(DEVICE, DTYPE), mode).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return base, model, partial(run_benchmark_step, model, torch.optim.AdamW(trainable, lr=1e-5))


def batch_to_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move the batch to the device, with floating-point pixels in the model's dtype."""
    batch = {name: value.to(DEVICE) for name, value in batch.items()}
    pixels = batch["pixel_values_videos"]
    return batch | {"pixel_values_videos": pixels.to(DTYPE) if pixels.is_floating_point() else pixels}


def _measure_memory(
    model: nn.Module, step: Callable[[dict[str, torch.Tensor]], None], batches: dict[int, dict[str, torch.Tensor]]
) -> dict[str, dict[int, int | None]]:
    """
    Measure the memory of a training step.

    Args:
        model (`nn.Module`): Model in training mode.
        step (`Callable`): Training step of the model.
        batches (`dict[int, dict[str, torch.Tensor]]`): Batches by number of sentences.

    Returns:
        `dict[str, dict[int, int | None]]`: Saved activations (`bytes_kept`), and on a GPU `peak_bytes`, by number of
        sentences. See [`saved_activation_bytes`].
    """
    measures = {"bytes_kept": partial(saved_activation_bytes, model)}
    if DEVICE.type == "cuda":
        measures["peak_bytes"] = partial(peak_bytes, step)
    return {
        name: {count: none_if_out_of_memory(partial(measure, batch)) for count, batch in batches.items()}
        for name, measure in measures.items()
    }


@torch.no_grad()
def benchmark_inference(model: nn.Module, batch: dict[str, torch.Tensor], repeats: int) -> dict[int, float | None]:
    """Measure the seconds of inference with 1, 4 and 16 sentences of the video."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return median_seconds(
        {count: partial(model, **_select_sentences(inputs, 0, count)) for count in INFERENCE_SENTENCES}, repeats
    )


def benchmark_mode(
    plain: ScadaForTemporalGrounding, mode: str, batch: dict[str, torch.Tensor], repeats: int | None
) -> dict[str, Any]:
    """
    Measure the memory and speed of a tuning mode.

    Args:
        plain (`ScadaForTemporalGrounding`): Model without an adapter, in float32, on the CPU. It is copied.
        mode (`str`): One of `MODES`.
        batch (`dict[str, torch.Tensor]`): Video and 16 sentences, with pixels in float32, on the CPU.
        repeats (`int` or `None`): Number of timed calls. `None` skips all timing.

    Returns:
        `dict[str, Any]`: Figures that `scripts/benchmark.py` describes, by number of sentences where applicable. A
        figure is `None` if the GPU ran out of memory.
    """
    if repeats is not None and mode in INFERENCE_MODES:
        _check_equality(plain, mode, batch)
    batch = batch_to_device(batch)
    base, model, step = prepare_step(plain, mode)
    batches = {count: _select_sentences(batch, 0, count) for count in TRAINING_SENTENCES}
    result: dict[str, Any] = {
        "trainable_parameters": {
            name: sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
            for name, part in (("backbone", base.model.video_backbone), ("head", base.head))
        }
    }
    result |= _measure_memory(model, step, batches)
    if repeats is not None:
        result["step_seconds"] = median_seconds({1: partial(step, batches[1])}, repeats)
        if mode in INFERENCE_MODES:
            model.eval()
            result["inference_seconds"] = benchmark_inference(model, batch, repeats)
            model.train()
    if mode in CHECKPOINTED_MODES:
        # transformers 5.18 has only the second name, which later releases deprecate.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
        result |= {f"{name}_checkpointed": value for name, value in _measure_memory(model, step, batches).items()}
    return result


@torch.no_grad()
def benchmark_backbone(
    plain: ScadaForTemporalGrounding, pixel_values_videos: torch.Tensor, repeats: int
) -> dict[str, Any]:
    """
    Measure the speed of the backbone's forward pass relative to a matrix product.

    Args:
        plain (`ScadaForTemporalGrounding`): Model without an adapter, in float32, on the CPU.
        pixel_values_videos (`torch.Tensor` of shape `(1, T, 3, H, W)`): Pixels in float32, on the CPU.
        repeats (`int`): Number of timed forward passes.

    Returns:
        `dict[str, Any]`: Figures that `scripts/benchmark.py` describes, by dtype where applicable.
    """
    # Eager attention consists of matrix products, which the counter recognizes.
    counted: Any = copy.deepcopy(plain.model.video_backbone).to("meta")
    counted.encoder.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        counted(pixel_values_videos.to("meta"))
    operations = counter.get_total_flops()

    ways: dict[Any, Callable[[], Any]] = {}
    for dtype in BACKBONE_DTYPES:
        backbone: Any = copy.deepcopy(plain.model.video_backbone).to(DEVICE, dtype).eval()
        matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=DEVICE, dtype=dtype)
        ways[dtype, "backbone"] = partial(backbone, pixel_values_videos.to(DEVICE, dtype))
        ways[dtype, "product"] = partial(torch.mm, matrix, matrix)
    seconds = median_seconds(ways, repeats)
    result: dict[str, Any] = {"operations": operations, "seconds": {}, "operations_per_second": {}, "of_limit": {}}
    for dtype in BACKBONE_DTYPES:
        name = str(dtype).removeprefix("torch.")
        rate = 2 * MATRIX_SIZE**3 / seconds[dtype, "product"]
        result["seconds"][name] = seconds[dtype, "backbone"]
        result["operations_per_second"][name] = rate
        result["of_limit"][name] = operations / rate / seconds[dtype, "backbone"]
    return result


def benchmark_graph(
    plain: ScadaForTemporalGrounding, batch: dict[str, torch.Tensor], repeats: int
) -> dict[str, dict[str, float]]:
    """
    Compare the compiled model with the eager model.

    Args:
        plain (`ScadaForTemporalGrounding`): Model without an adapter, in float32, on the CPU. It is copied.
        batch (`dict[str, torch.Tensor]`): Video and its sentences. Only the first sentence is used.
        repeats (`int`): Number of timed calls.

    Returns:
        `dict[str, dict[str, float]]`: Figures that `scripts/benchmark.py` describes, for `inference` and `step`.

    Raises:
        AssertionError: If the logits of the compiled model differ.
    """
    batch = _select_sentences(batch_to_device(batch), 0, 1)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    models: dict[str, Any] = {}
    ways: dict[str, dict[str, Callable[[], object]]] = {"inference": {}, "step": {}}
    for name in ("eager", "compiled"):
        _, model, step = prepare_step(plain, PIPELINE_MODE)
        if name == "compiled":
            model.compile()
        models[name] = model
        ways["inference"][name] = torch.no_grad()(partial(model, **inputs))
        ways["step"][name] = partial(step, batch)

    figures: dict[str, dict[str, float]] = {}
    for phase, way_by_name in ways.items():
        for model in models.values():
            model.train(phase == "step")
        first_call_seconds = measure_seconds(way_by_name["compiled"])
        if phase == "inference":
            expected, found = (way() for way in way_by_name.values())
            tolerance = 1e-4 if DTYPE == torch.float32 else 5e-2
            torch.testing.assert_close(found.logits, expected.logits, rtol=tolerance, atol=tolerance)  # type: ignore[attr-defined]
        seconds = median_seconds(way_by_name, repeats)
        figures[phase] = {
            "first_call_seconds": first_call_seconds,
            "seconds": seconds["compiled"],
            "over_eager": seconds["compiled"] / seconds["eager"],
        }
    return figures


def backbone_table(rows: list[dict[str, Any]]) -> str:
    """Format results of [`benchmark_backbone`], each with its `size`, as a markdown table."""
    return to_markdown(
        [
            {
                "size": row["size"],
                "operations, 10^9": format_numbers([row["operations"] / 1e9]),
                "forward pass, s: float32 / bfloat16": format_numbers(row["seconds"].values()),
                "matrix product, 10^9 per second": format_numbers(
                    rate / 1e9 for rate in row["operations_per_second"].values()
                ),
                "relative to the limit": format_numbers(row["of_limit"].values()),
            }
            for row in rows
        ]
    )


def tuning_table(rows: list[dict[str, Any]]) -> str:
    """
    Format results of [`benchmark_mode`] as a markdown table.

    Args:
        rows (`list[dict[str, Any]]`): Results, each with its `size` and `mode`.

    Returns:
        `str`: Table with one line per result. "relative to full" compares with the mode `full` at the same number of
        sentences. Columns without measurements are left out.
    """

    def over(values: dict[int, Any], units: dict[int, Any]) -> dict[int, float | None]:
        pairs = {n: (value, units[n]) for n, value in values.items() if n in units}
        return {n: None if None in pair else pair[0] / pair[1] for n, pair in pairs.items()}

    gib = dict.fromkeys(TRAINING_SENTENCES, 2**30)
    lines = []
    for row in rows:
        full: dict[str, Any] = next(
            (other for other in rows if other["size"] == row["size"] and other["mode"] == "full"), {}
        )
        step_seconds, inference_seconds = row.get("step_seconds", {}), row.get("inference_seconds", {})
        trainable = [f"{count / 1e6:.2f}" for count in row["trainable_parameters"].values()]
        numbers = {
            "saved activations, GiB: 1 / 4 / 8 sentences": over(row["bytes_kept"], gib),
            "saved activations, relative to full": over(row["bytes_kept"], full.get("bytes_kept", {})),
            "saved activations, checkpointed, GiB": over(row.get("bytes_kept_checkpointed", {}), gib),
            "peak, GiB": over(row.get("peak_bytes", {}), gib),
            "peak, checkpointed, GiB": over(row.get("peak_bytes_checkpointed", {}), gib),
            "step, s": step_seconds,
            "step, relative to full": over(step_seconds, full.get("step_seconds", {})),
            "inference, s: 1 / 4 / 16 sentences": inference_seconds,
            "inference, relative to 1 sentence": over(
                inference_seconds, dict.fromkeys(inference_seconds, inference_seconds.get(1))
            ),
        }
        names = {"size": row["size"], "mode": row["mode"], "trainable, M: backbone + head": " + ".join(trainable)}
        lines.append(names | {title: format_numbers(values.values()) for title, values in numbers.items()})
    return to_markdown(lines)
