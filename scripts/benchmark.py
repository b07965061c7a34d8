r"""
Speed of what this project makes its own, as ratios within one run; results are checked for equality before timing.

    make bench
    python scripts/benchmark.py --output_dir outputs/bench

- `proposal_features`: the linear layer over 16 sampled points of all proposals, as the head computes it
  (`embedding_bag`), as a CSR product, and literally, building the points.
- `sentences`: inference for 1, 4 and 16 sentences of one video, which is encoded once.

Writes `benchmark.json` with versions, device, commit and seed.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from modeling_scada import ScadaConfig, ScadaForTemporalGrounding
from modeling_scada.head_scada import ProposalFeatures, all_proposals, sample_points


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call, in seconds, after one call to warm up."""
    function()
    times_seconds = []
    for _ in range(repeats):
        started_seconds = time.perf_counter()
        function()
        times_seconds.append(time.perf_counter() - started_seconds)
    return statistics.median(times_seconds)


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

    ways: dict[str, Callable[[], torch.Tensor]] = {"csr": by_csr, "literal": by_points}
    expected = layer(features, proposals)
    for way in ways.values():
        torch.testing.assert_close(way(), expected, rtol=1e-4, atol=1e-4)
    base_seconds = median_seconds(lambda: layer(features, proposals), repeats)
    ratios = {f"{name}_ratio": median_seconds(way, repeats) / base_seconds for name, way in ways.items()}
    return {"seconds": base_seconds} | ratios


@torch.no_grad()
def benchmark_sentences(config: ScadaConfig, num_frames: int, image_size: int, repeats: int) -> dict[str, float]:
    """
    Returns:
        `dict[str, float]`: Seconds for one sentence, and the times for 4 and 16 as multiples of it.
    """
    model = ScadaForTemporalGrounding(config).eval()
    pixels = torch.randn(1, num_frames, 3, image_size, image_size)
    input_ids = torch.randint(5, 100, (1, 16, 12))
    together = model(pixels, input_ids).logits
    for i in (0, 15):
        alone = model(pixels, input_ids[:, i : i + 1]).logits
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=1e-4, atol=1e-4)
    base_seconds = median_seconds(partial(model, pixels, input_ids[:, :1]), repeats)
    ratios = {}
    for count in (4, 16):
        some_ids = input_ids[:, :count]
        ratios[f"{count}_sentences_ratio"] = median_seconds(partial(model, pixels, some_ids), repeats) / base_seconds
    return {"seconds": base_seconds} | ratios


def main() -> None:
    """Runs both and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="Tiny shapes, to try the script itself.")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    size = {"grid_size": 16, "dim": 16} if args.small else {"grid_size": 128, "dim": 256}
    layers = {"num_hidden_layers": 2} if args.small else {}
    config = ScadaConfig(
        video_config={"model_type": "videomae", **layers},
        text_config={"model_type": "distilbert", "n_layers": 2 if args.small else 6},
        hidden_size=size["dim"],
        grid_size=size["grid_size"],
    )
    progress = tqdm(total=2, desc="benchmark")
    results = {"proposal_features": benchmark_proposal_features(**size, num_sentences=4, repeats=args.repeats)}
    progress.update()
    results["sentences"] = benchmark_sentences(
        config, 16 if args.small else 64, 32 if args.small else 160, args.repeats
    )
    progress.update()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    record = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "commit": commit,
        "seed": args.seed,
        "small": args.small,
        "results": results,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "benchmark.json").write_text(json.dumps(record, indent=2))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
