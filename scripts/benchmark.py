r"""
Benchmark memory and speed of the components of this project. Models have random weights and nothing is downloaded. The
script checks results for equality before timing.

    make bench
    python scripts/benchmark.py --output_dir outputs/bench
    python scripts/benchmark.py --parts tuning --sizes base --no_time
    python scripts/benchmark.py --parts tuning --sizes base large huge giant --num_frames 512   # with a GPU

- `proposal_features`: the linear layer over 16 sampled points of all proposals, in three implementations: as in the
  head (`embedding_bag`), as a CSR product, and with explicit points; always on the CPU.
- `tuning`: for each size of VideoMAE and each mode of `run_temporal_grounding.py`, with one video per batch,
    - `trainable_parameters` of the backbone and of the head;
    - `bytes_kept`: bytes saved for the backward pass at 1, 4 and 8 sentences, including head and loss;
    - `bytes_kept_checkpointed`: the same with (non-reentrant) checkpointing. Both counts are deterministic;
    - `peak_bytes`: peak memory of a training step at 1, 4 and 8 sentences, on a GPU;
    - `step_seconds`: time of forward, backward and AdamW at 1 sentence;
    - `inference_seconds` for 1, 4 and 16 sentences, in the modes with different inference.
- `backbone`: a forward pass of the backbone alone, in float32, and in bfloat16 on hardware with such instructions,
    - `operations` of its matrix products and convolutions; a multiply-add counts as two;
    - `seconds`, and `operations_per_second` of a product of two matrices of 2048 x 2048 in the same run;
    - `of_limit`: ideal time of the operations at that rate, divided by their measured time.
- `graph`: the mode `scada` compiled by `torch.compile`, for a forward pass (`inference`) and a training `step` with
  one sentence,
    - `first_call_seconds`, mostly compilation;
    - `seconds` of later calls, and `over_eager`, the ratio to the time of the eager model;
- `input_pipeline`: whether the training step or the reading of videos is the bottleneck. For each size, with one video
  and one sentence per batch, with pixels as bytes (normalised by the model) and as floats,
    - `pixel_bytes`: size of the pixels of a batch that a worker sends;
    - `videos_per_second` of a `DataLoader` with the collator, with 0, 1 and 2 workers and no other load. It includes
      decoding, scaling, normalising and tokenizing (the decoder uses its own threads). The script first checks that
      all loaders return the same batches. It generates the videos, which stay in the system's cache, so the result
      excludes the cost of a slow disk;
    - `step_seconds` of the mode `scada` on the first batch of the loader, without reading videos at the same time;
    - `pipeline_over_step`: loading time per batch, divided by the time of a step. With workers, the step waits for
      videos if this ratio exceeds 1. With 0 workers, reading adds this ratio to each step. On a CPU, workers and step
      also compete for the cores.

The benchmark runs on a GPU if available, in bfloat16 except for the adapters, otherwise on the CPU in float32. On a
GPU, the record contains `null` for out-of-memory measurements. On a CPU, choose sizes that fit into memory. Besides
`bytes_kept`, `full` needs 16 bytes per parameter for model, gradients and two moments, and 4 more for the original
of its copy.

The script updates `benchmark.json` after each measurement, including versions, device, commit and seed, and prints
tables.
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from tqdm import tqdm

from modeling_scada import ScadaForTemporalGrounding
from modeling_scada.experiments.input_benchmarks import (
    SMALL_VIDEOS,
    VIDEOS,
    benchmark_input_pipeline,
    make_benchmark_videos,
    pipeline_table,
)
from modeling_scada.experiments.measuring import cpu_name
from modeling_scada.experiments.model_benchmarks import (
    DEVICE,
    DTYPE,
    MODES,
    PIPELINE_MODE,
    SIZES,
    backbone_table,
    benchmark_backbone,
    benchmark_graph,
    benchmark_mode,
    benchmark_proposal_features,
    make_benchmark_batch,
    model_config,
    tuning_table,
)
from processing.results.provenance import get_commit


def main() -> None:
    """Run the selected parts and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    parts = ["proposal_features", "tuning", "backbone", "graph", "input_pipeline"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--sizes", nargs="+", choices=[*SIZES], default=["small", "base"], help="Backbone sizes.")
    sizes.add_argument("--small", action="store_true", help="Use tiny shapes, to test the script itself.")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--num_frames", type=int, default=64, help="Frames of the video, a multiple of 16.")
    parser.add_argument("--no_time", action="store_true", help="Only count parameters and bytes, in part `tuning`.")
    parser.add_argument("--repeats", type=int, default=3, help="Number of timed calls, after one warm-up.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes_to_run = ["tiny"] if args.small else args.sizes
    torch.manual_seed(args.seed)
    results: dict[str, Any] = {}
    record = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "device": DEVICE.type,
        "device_name": cpu_name() if DEVICE.type == "cpu" else torch.cuda.get_device_name(),
        "dtype": str(DTYPE).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "commit": get_commit(),
        "seed": args.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "small": args.small,
        "num_frames": args.num_frames,
        "repeats": args.repeats,
        "null": "out of memory",
        "results": results,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    part_number = {
        "proposal_features": 1,
        "tuning": len(sizes_to_run) * len(args.modes),
        "backbone": len(sizes_to_run),
        "graph": len(sizes_to_run),
        "input_pipeline": len(sizes_to_run),
    }
    progress = tqdm(total=sum(part_number[part] for part in args.parts), desc="benchmark")

    def save() -> None:
        (args.output_dir / "benchmark.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
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
            batch = make_benchmark_batch(args.num_frames, plain.config.video_config.image_size)
            for mode in args.modes:
                progress.set_postfix_str(f"{size}, {mode}")
                row = {"size": size, "mode": mode}
                rows.append(row | benchmark_mode(plain, mode, batch, None if args.no_time else args.repeats))
                save()
        print(tuning_table(rows))
    if "backbone" in args.parts:
        rows = results["backbone"] = []
        for size in sizes_to_run:
            progress.set_postfix_str(f"{size}, backbone")
            plain = ScadaForTemporalGrounding(model_config(size)).eval()
            pixels = make_benchmark_batch(args.num_frames, plain.config.video_config.image_size)["pixel_values_videos"]
            rows.append({"size": size} | benchmark_backbone(plain, pixels, args.repeats))
            save()
        print(backbone_table(rows))
    if "graph" in args.parts:
        rows = results["graph"] = []
        for size in sizes_to_run:
            progress.set_postfix_str(f"{size}, graph")
            plain = ScadaForTemporalGrounding(model_config(size))
            batch = make_benchmark_batch(args.num_frames, plain.config.video_config.image_size)
            rows.append({"size": size} | benchmark_graph(plain, batch, args.repeats))
            save()
        print(json.dumps(rows, indent=2))
    if "input_pipeline" in args.parts:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            progress.set_postfix_str("generating videos")
            shape = SMALL_VIDEOS if args.small else VIDEOS
            videos, facts = make_benchmark_videos(Path(folder), **shape, seed=args.seed)
            results["input_pipeline"] = facts | {"rows": rows}
            for size in sizes_to_run:
                progress.set_postfix_str(f"{size}, input pipeline")
                plain = ScadaForTemporalGrounding(model_config(size))
                figures = benchmark_input_pipeline(plain, videos, args.num_frames, args.repeats)
                rows.append({"size": size, "mode": PIPELINE_MODE} | figures)
                save()
        print(json.dumps(facts))  # The facts name the encoder, because it differs between machines.
        print(pipeline_table(rows))


if __name__ == "__main__":
    main()
