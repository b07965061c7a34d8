r"""
Ground sentences in unseen videos within a minute, without network access or a GPU.

    make demo
    python scripts/demo.py --output_dir outputs/demo

The demo generates a few held-out videos of MovingShapes and grounds three sentences per video with the model in
`hub_configs/models/moving_shapes_model`. It prints the predicted segments next to the true ones, and writes a picture
and a page that plays the segments for each video.
"""

import argparse
from pathlib import Path

from datasets import load_from_disk

from modeling_scada.inference.grounding import find_segments
from modeling_scada.inference.loading import load_pipeline
from processing.data.moving_shapes import make_moving_shapes
from processing.results.page import write_page
from processing.results.picture import draw
from processing.results.provenance import REPOSITORY
from processing.results.selection import select_shown
from processing.video_io import probe


MODEL = REPOSITORY / "hub_configs" / "models" / "moving_shapes_model"
NUM_VIDEOS = 4
NUM_SENTENCES = 3


def main() -> None:
    """Run the demo, and reuse existing videos in the output folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"))
    args = parser.parse_args()
    data = args.output_dir / "data"
    if not (data / "dataset_dict.json").exists():
        make_moving_shapes(data, num_train=1, num_test=NUM_VIDEOS)
    pipe = load_pipeline(str(MODEL), device="cpu")
    for row in load_from_disk(str(data))["test"]:
        video = data / row["video"]
        sentences, targets = row["sentences"][:NUM_SENTENCES], [segments[0] for segments in row["segments"]]
        results = find_segments(pipe, str(video), sentences, top_k=3)
        print(f"\n{video}")
        for result, (start_seconds, end_seconds) in zip(results, targets, strict=False):
            best = result["segments"][0]
            print(
                f"  {result['sentence']:<64} {best['start']:5.1f} to {best['end']:4.1f} s "
                f"(score {best['score']:.2f}), true {start_seconds:5.1f} to {end_seconds:4.1f} s"
            )
        properties = probe(str(video))
        record = {
            "video": str(video),
            "duration": properties.duration_seconds,
            "model": MODEL.name,
            "results": results,
        }
        shown = select_shown(record)
        draw(shown, properties, args.output_dir / f"{video.stem}.png", targets[:NUM_SENTENCES])
        write_page(shown, properties, args.output_dir / f"{video.stem}.html")
    print(f"\nView {args.output_dir}/*.png, and open {args.output_dir}/*.html in a browser to play the segments.")


if __name__ == "__main__":
    main()
