r"""
Measure the savings of encoding a video once, and the costs of an index. Update `benchmark_library.json` after each
part, including versions, device, commit and seed.

    python scripts/benchmark_library.py --output_dir outputs/bench --parts asking
    python scripts/benchmark_library.py --parts long --size tiny --minutes 5 60
    python scripts/make_moving_shapes.py --output_dir outputs/shapes --num_train 1 --num_test 500
    python scripts/benchmark_library.py --parts index --videos outputs/shapes/videos
    python scripts/benchmark_library.py --parts search --videos outputs/shapes/videos --num_windows 500 50000

    python scripts/benchmark_library.py --parts recall --data outputs/shapes --model outputs/run

- `asking`: time of one sentence for a video, of encoding the video, and of one more sentence for the encoded video,
  for a backbone with random weights. The script checks the results for equality before timing.
- `long`: peak memory and time of reading and encoding videos of `--minutes` in windows, next to the time of reading
  alone and of the model alone.
- `index`: time of indexing the videos of a folder, and of only reading and encoding them, in alternation.
- `search`: time of one sentence in an index of these videos, with rows copied up to `--num_windows` windows. The model
  has random weights and a retrieval branch.
- `recall`: recall of a search for the sentences of the test split of a data set from `make_moving_shapes.py`.
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

from modeling_scada import ScadaForTemporalGrounding
from modeling_scada.experiments.library_benchmarks import (
    benchmark_index,
    benchmark_long,
    benchmark_queries,
    benchmark_recall,
    benchmark_search,
    copy_rows,
)
from modeling_scada.experiments.measuring import cpu_name
from modeling_scada.experiments.model_benchmarks import DEVICE, SIZES
from modeling_scada.inference.loading import load_pipeline
from modeling_scada.library.index import index_videos
from processing.results.provenance import get_commit


PARTS = ["asking", "long", "index", "search", "recall"]


def main() -> None:
    """Run the selected parts and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--size", choices=[*SIZES], default="base", help="Size of the backbone, for `asking` and `long`."
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["frozen", "scada_outer", "scada_pooling", "scada_inner", "scada_both"],
        help="Modes for `asking`.",
    )
    parser.add_argument("--num_frames", type=int, default=64, help="Frames per window, for `asking` and `long`.")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 60], help="Video lengths, for `long`.")
    parser.add_argument("--window_seconds", type=float, default=20.0, help="Window length, for `long`.")
    parser.add_argument("--videos", type=Path, help="Folder with videos, for `index` and `search`.")
    parser.add_argument(
        "--model", default="hub_configs/models/moving_shapes_model", help="Model for `index`, `search`, `recall`."
    )
    parser.add_argument(
        "--num_windows", type=int, nargs="+", default=[500, 50000], help="Windows per index, for `search`."
    )
    parser.add_argument(
        "--num_candidates",
        type=int,
        nargs="+",
        default=[200],
        help="Candidates for `recall`; `search` uses the first.",
    )
    parser.add_argument("--data", type=Path, help="Folder of a data set with videos, for `recall`.")
    parser.add_argument("--num_sentences", type=int, default=100, help="Number of sentences, for `recall`.")
    parser.add_argument("--repeats", type=int, default=3, help="Number of timed calls, after one warm-up.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.videos is None and {"index", "search"} & set(args.parts):
        parser.error("--videos is required for index and search.")
    if args.data is None and "recall" in args.parts:
        parser.error("--data is required for recall.")
    torch.manual_seed(args.seed)
    results: dict[str, Any] = {}
    record = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "device": DEVICE.type,
        "device_name": cpu_name() if DEVICE.type == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "commit": get_commit(),
        "seed": args.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": results,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)

    def save(name: str, result: Any) -> None:
        results[name] = result
        (args.output_dir / "benchmark_library.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        print(json.dumps({name: result}, indent=2))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "asking" in args.parts:
            save(
                "asking",
                [
                    benchmark_queries(args.size, mode, args.num_frames, folder, args.repeats, args.seed)
                    for mode in args.modes
                ],
            )
        if "long" in args.parts:
            settings = (args.size, args.num_frames, args.window_seconds)
            rows = [
                benchmark_long(*settings, round(60 * minutes), folder, args.repeats, args.seed)
                for minutes in args.minutes
            ]
            save("long", rows)
        if "index" in args.parts:
            save("index", benchmark_index(args.videos, load_pipeline(args.model), folder / "rounds", rounds=5))
        if "search" in args.parts:
            pipe = load_pipeline(args.model)
            config = pipe.model.config
            config.retrieval_dim = 64
            pipe.model = ScadaForTemporalGrounding(config).eval().to(pipe.device)  # type: ignore[arg-type, assignment]
            rows = []
            for num_windows in args.num_windows:
                index = folder / f"index_{num_windows}"
                index_videos(args.videos, pipe, index)
                copy_rows(index, num_windows)
                rows.append(benchmark_search(index, pipe, args.num_candidates[0]))
            save("search", rows)
        if "recall" in args.parts:
            pipe = load_pipeline(args.model)
            counts = (args.num_sentences, args.num_candidates, args.seed)
            save("recall", benchmark_recall(args.data, folder / "index_recall", pipe, *counts))


if __name__ == "__main__":
    main()
