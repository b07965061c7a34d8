r"""
Run the full workflow on two cores without network access: generate MovingShapes, train, compare, reload and draw.

    make demo-train
    python scripts/demo_train.py --output_dir outputs/demo_train

The demo runs the recipe hub_configs/recipes/moving_shapes.json four times for the same number of steps, two runs at a
time with one core each. All runs train the sentence encoder and the head:
- `scada`: trains the backbone through the Sentence-Conditioned Adapter;
- `full`: trains the entire backbone;
- `frozen`: keeps the backbone frozen;
- `blind`: same as `scada`, with noise instead of frames.

It writes `results.json`, `grounding.png`, the four models and the data to the output folder.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets import load_from_disk

from modeling_scada.experiments.study import METRICS, train
from modeling_scada.inference.grounding import find_segments
from modeling_scada.inference.loading import load_pipeline
from processing.data.moving_shapes import make_moving_shapes
from processing.results.picture import draw
from processing.results.provenance import REPOSITORY
from processing.video_io import probe


RECIPE = REPOSITORY / "hub_configs" / "recipes" / "moving_shapes.json"
PICTURE_SENTENCES = 3


def main() -> None:
    """Run the demo, and move the results of an earlier demo to a backup folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo_train"))
    parser.add_argument("--max_steps", type=int, default=700, help="Number of steps per run (2000 in the recipe).")
    parser.add_argument("--num_train", type=int, default=1000, help="Number of training videos.")
    parser.add_argument("--num_test", type=int, default=100, help="Number of test videos.")
    args = parser.parse_args()
    started_seconds = time.perf_counter()
    output_dir = args.output_dir.resolve()
    if output_dir.exists() and any(output_dir.iterdir()):
        backup = output_dir.with_name(f"{output_dir.name}_before_{time.strftime('%Y%m%d_%H%M%S')}")
        output_dir.rename(backup)
        print(f"Moved the earlier demo to {backup}.")
    make_moving_shapes(output_dir / "data", num_train=args.num_train, num_test=args.num_test)

    modes: dict[str, dict] = {
        "scada": {"tuning": "scada"},
        "full": {"tuning": "full"},
        "frozen": {"tuning": "frozen"},
        "blind": {"tuning": "scada", "blind": True},
    }
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = {
            name: pool.submit(train, RECIPE, output_dir / "data", output_dir / name, max_steps=args.max_steps, **mode)
            for name, mode in modes.items()
        }
        metrics = {name: run.result() for name, run in runs.items()}

    model = str(output_dir / "scada")
    row = load_from_disk(str(output_dir / "data"))["test"][0]
    video = str(output_dir / "data" / row["video"])
    results = find_segments(load_pipeline(model, device="cpu"), video, row["sentences"][:PICTURE_SENTENCES], top_k=1)
    targets = [segments[0] for segments in row["segments"][:PICTURE_SENTENCES]]
    for result, (start_seconds, end_seconds) in zip(results, targets, strict=True):
        best = result["segments"][0]
        print(
            f"{result['sentence']!r}: {best['start']:.1f} to {best['end']:.1f} s (score {best['score']:.2f}), "
            f"true {start_seconds:.1f} to {end_seconds:.1f} s"
        )
    properties = probe(video)
    record = {"video": video, "duration": properties.duration_seconds, "model": model, "results": results}
    draw(record, properties, output_dir / "grounding.png", targets)

    seconds = round(time.perf_counter() - started_seconds, 1)
    (output_dir / "results.json").write_text(json.dumps(metrics | {"seconds": seconds}, indent=2), encoding="utf-8")
    print(f"\n| {'':16} | " + " | ".join(f"{metric:>6}" for metric in METRICS) + " |  steps | train s |")
    print("|" + "---|" * (len(METRICS) + 3))
    for name, result in metrics.items():
        cells = " | ".join(f"{result[metric]:6.1f}" for metric in METRICS)
        print(f"| {name:16} | {cells} | {result['steps']:6} | {result['train_seconds']:7.0f} |")
    print(f"\nTotal time: {seconds:.0f} s. Results, models and picture are in {output_dir}")


if __name__ == "__main__":
    main()
