r"""
Evaluates a model on a split of a data set: predictions as JSON Lines, metrics as JSON.

    python scripts/evaluate.py outputs/demo/scada outputs/demo/data --split test --output_dir outputs/demo/scada_test
    python scripts/evaluate.py outputs/charades_sta_videomae_base data/charades_sta --split test \
        --video_root path/to/Charades_v1_480 --dtype bfloat16 --num_workers 8
    python scripts/evaluate.py outputs/qvhighlights data/qvhighlights --split val --video_root path/to/videos \
        --qvhighlights highlight_val_release.jsonl

Writes into the output folder
- `predictions.jsonl`, a line for each sentence: `video`, `sentence`, `segments` (`[[start, end, score], ...]` in
  seconds, best first) and `targets`;
- `metrics.json`: the metrics in percent (see `processing.metrics.temporal_grounding_metrics`), the split, and how they
  were made;
- with `--qvhighlights`, the predictions as `submission.jsonl` in the format of QVHighlights' own evaluation.

A video is read and encoded once for all its sentences.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import pipeline

from modeling_scada import TemporalGroundingPipeline
from processing.annotations import clean_sentence, load_annotations
from processing.metrics import temporal_grounding_metrics, write_qvhighlights_submission
from processing.provenance import current_commit
from processing.video_files import VideoFiles, folder_of_videos, video_name
from processing.video_io import VideoReadError


class Reader:
    """
    Collates a row to what the model needs: in the workers of the `DataLoader`, and one video at a time.

    Args:
        pipe ([`TemporalGroundingPipeline`]): Reads videos and tokenizes sentences.
        video_root (`str`, *optional*): Folder that relative paths start from.
        skip_broken_videos (`bool`): Whether a video that cannot be read comes as its error, instead of raising it.
    """

    def __init__(self, pipe: TemporalGroundingPipeline, video_root: str | None, skip_broken_videos: bool):
        self.pipe = pipe
        self.video_files = VideoFiles(video_root)
        self.skip_broken_videos = skip_broken_videos

    def __call__(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], Any]:
        (row,) = rows
        try:
            video = self.video_files.find(row["video"])
            return row, self.pipe.preprocess({"video": video, "sentence": row["sentences"]})
        except (FileNotFoundError, VideoReadError) as error:
            if not self.skip_broken_videos:
                raise
            return row, str(error)


def predict(
    pipe: TemporalGroundingPipeline, rows: DataLoader, top_k: int
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """
    Args:
        pipe ([`TemporalGroundingPipeline`]): The model.
        rows (`DataLoader`): Over a data set of [`load_annotations`], collated by a [`Reader`].
        top_k (`int`): At most so many segments a sentence.

    Returns:
        `tuple`: a dict for each sentence, as a line of `predictions.jsonl`; and `{"video", "reason"}` for each video
        that could not be read.
    """
    predictions, broken = [], []
    for row, inputs in tqdm(rows, desc="videos"):
        if isinstance(inputs, str):
            tqdm.write(f"Left out {video_name(row['video'])}, which is broken: {inputs}")
            broken.append({"video": video_name(row["video"]), "reason": inputs})
            continue
        found = pipe.postprocess(pipe.forward(inputs), top_k=top_k)
        for sentence, targets, ranked in zip(row["sentences"], row["segments"], found, strict=True):
            predictions.append(
                {
                    "video": row.get("video_id") or video_name(row["video"]),
                    "sentence": sentence,
                    "segments": [[segment["start"], segment["end"], segment["score"]] for segment in ranked],
                    "targets": np.reshape(targets, (-1, 2)).tolist(),
                }
            )
    return predictions, broken


def as_submission(predictions: list[dict[str, Any]], annotations: Path) -> list[dict[str, Any]]:
    """
    The predictions with the `qid` of QVHighlights' own annotation file.

    Raises:
        ValueError: If a sentence of the file was not predicted: its evaluation fails on such a submission.
    """
    segments = {(row["video"], row["sentence"]): row["segments"] for row in predictions}
    submission = []
    for line in annotations.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        key = (row["vid"], clean_sentence(row["query"]))
        if key not in segments:
            raise ValueError(f"There is no prediction for {row['query']!r} of {row['vid']} (qid {row['qid']}).")
        submission.append({name: row[name] for name in ("qid", "query", "vid")})
        submission[-1]["pred_relevant_windows"] = segments[key]
    return submission


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Reads the arguments, evaluates, writes; returns the metrics in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="A model, or an adapter: Hub id or folder.")
    parser.add_argument("dataset", help="Annotations: a Hub id, a folder, or a json or parquet file.")
    parser.add_argument("--split", required=True, help="Split to evaluate on, such as test or val_2.")
    parser.add_argument("--video_root", help="Folder of the videos; the data set's own folder if not given.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluation"))
    parser.add_argument("--top_k", type=int, default=10, help="At most so many segments a sentence.")
    parser.add_argument("--strict", action="store_true", help="Reach IoU thresholds by > instead of >=, as 2D-TAN.")
    parser.add_argument("--num_workers", type=int, default=2, help="Processes that read videos.")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="Of the weights.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--skip_broken_videos", action="store_true", help="Leave out videos that cannot be read.")
    parser.add_argument("--streaming", action="store_true", help="Read annotations while evaluating.")
    parser.add_argument("--qvhighlights", type=Path, help="QVHighlights' annotation file, to write a submission.")
    args = parser.parse_args(argv)

    dataset = load_annotations(args.dataset, args.split, args.streaming)
    pipe: Any = pipeline(
        "temporal-grounding",  # type: ignore[call-overload]
        model=args.model,
        dtype=args.dtype,
        device=args.device,
    )
    video_processor = pipe.processor.video_processor
    reader = Reader(pipe, folder_of_videos(args.dataset, args.video_root), args.skip_broken_videos)
    started_seconds = time.perf_counter()
    rows: DataLoader = DataLoader(dataset, collate_fn=reader, num_workers=args.num_workers)  # type: ignore[arg-type]
    predictions, broken = predict(pipe, rows, args.top_k)
    seconds = time.perf_counter() - started_seconds

    metrics = temporal_grounding_metrics(
        [row["segments"] for row in predictions], [row["targets"] for row in predictions], strict=args.strict
    )
    cuda_name = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else None
    record = {
        "model": args.model,
        "dataset": args.dataset,
        "split": args.split,
        "metrics": metrics,
        "videos": len({row["video"] for row in predictions}),
        "sentences": len(predictions),
        "broken_videos": broken,
        "how": {
            "num_frames": video_processor.num_frames,
            "size": dict(video_processor.size),
            "window_seconds": video_processor.window_seconds,
            "top_k": args.top_k,
            "thresholds_reached_by": ">" if args.strict else ">=",
            "dtype": args.dtype,
            "device": cuda_name or platform.processor() or platform.machine(),
            "seconds": round(seconds, 1),
            "date": time.strftime("%Y-%m-%d"),
            "commit": current_commit(),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "av")},
        },
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with open(args.output_dir / "predictions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
    (args.output_dir / "metrics.json").write_text(json.dumps(record, indent=2))
    if args.qvhighlights is not None:
        write_qvhighlights_submission(
            args.output_dir / "submission.jsonl", as_submission(predictions, args.qvhighlights)
        )
    print(f"{args.split} of {args.dataset}: {record['sentences']} sentences of {record['videos']} videos")
    print("  ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
    if broken:
        print(f"{len(broken)} videos could not be read and were left out.")
    return metrics


if __name__ == "__main__":
    main()
