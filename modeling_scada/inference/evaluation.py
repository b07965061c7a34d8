"""
Evaluate a saved model on a split of a data set, and write predictions, metrics and settings. Each video is read and
encoded once for all its sentences.
"""

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

from processing.data.annotations import clean_sentence, load_annotations
from processing.data.files import VideoFiles, resolve_video_root, video_file_name
from processing.metrics import (
    multi_segment_metrics,
    rejection_metrics,
    temporal_grounding_metrics,
    write_qvhighlights_submission,
)
from processing.pipeline_temporal_grounding import TemporalGroundingPipeline
from processing.processing_scada import SegmentOutsideVideoError, clip_targets
from processing.results.folder import make_result_folder
from processing.results.provenance import get_commit
from processing.video_io import VideoReadError

from .grounding import load_pipeline


# Errors of a single video, in contrast to errors of the model or the annotations.
VIDEO_ERRORS = (OSError, VideoReadError, SegmentOutsideVideoError)


class RowCollator:
    """
    Collator that reads one video and tokenizes its sentences, in the workers of a `DataLoader`.

    Args:
        pipe ([`TemporalGroundingPipeline`]): Pipeline that reads videos and tokenizes sentences.
        video_root (`str`, *optional*): Folder for relative paths.
        skip_broken_videos (`bool`): Whether to return the error of an unreadable video instead of raising it.
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
        except VIDEO_ERRORS as error:
            if not self.skip_broken_videos:
                raise
            return row, str(error)


def predict(
    pipe: TemporalGroundingPipeline, rows: DataLoader, top_k: int, skip_broken_videos: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    Predict the segments of all sentences of a data set.

    Args:
        pipe ([`TemporalGroundingPipeline`]): Pipeline with the model.
        rows (`DataLoader`): Loader over a data set of [`load_annotations`], with a [`RowCollator`].
        top_k (`int`): Maximum number of segments per sentence.
        skip_broken_videos (`bool`): Whether to skip unreadable videos. Long videos are read here, window by window.

    Returns:
        `tuple`: Predictions and unreadable videos. Each prediction is a line of `predictions.jsonl` for one sentence;
        its `targets` are clipped to the duration of the video file, as in training. Each unreadable video is
        `{"video", "sentences", "reason"}`, with the number of its sentences.

    Raises:
        VideoReadError: If all videos are unreadable, or if one is and `skip_broken_videos` is not set.
        SegmentOutsideVideoError: If a target is outside its video and `skip_broken_videos` is not set.
    """
    predictions, broken = [], []
    for row, inputs in tqdm(rows, desc="videos"):
        reason = inputs if isinstance(inputs, str) else None
        if reason is None:
            try:
                outputs: Any = pipe.forward(inputs)
                (video_outputs,) = outputs["outputs"]
                row_targets = clip_targets(row["segments"], row["sentences"], video_outputs["timelines"])
            except VIDEO_ERRORS as error:
                if not skip_broken_videos:
                    if isinstance(error, SegmentOutsideVideoError):
                        raise SegmentOutsideVideoError(f"{video_file_name(row['video'])}: {error}") from error
                    raise
                reason = str(error)
        if reason is not None:
            name = video_file_name(row["video"])
            tqdm.write(f"Skipped {name}: {reason}")
            broken.append({"video": name, "sentences": len(row["sentences"]), "reason": reason})
            continue
        found = pipe.postprocess(outputs, top_k=top_k)
        for sentence, targets, ranked in zip(row["sentences"], row_targets, found, strict=True):
            predictions.append(
                {
                    "video": row.get("video_id") or video_file_name(row["video"]),
                    "sentence": sentence,
                    "segments": [[segment["start"], segment["end"], segment["score"]] for segment in ranked],
                    "targets": targets,
                }
            )
    if broken and not predictions:
        raise VideoReadError(f"All {len(broken)} videos are unreadable. First error: {broken[0]['reason']}")
    return predictions, broken


def _as_submission(predictions: list[dict[str, Any]], annotations: Path) -> list[dict[str, Any]]:
    """
    Return the predictions in the submission format of QVHighlights, with the `qid` of its annotation file.

    Args:
        predictions (`list[dict]`): Predictions of [`predict`].
        annotations (`Path`): Annotation file of QVHighlights.

    Raises:
        ValueError: If the predictions lack a sentence of the file, because the official evaluation requires all.
    """
    segments = {(row["video"], row["sentence"]): row["segments"] for row in predictions}
    submission = []
    for line in annotations.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        key = (row["vid"], clean_sentence(row["query"]))
        if key not in segments:
            raise ValueError(f"Missing the prediction for {row['query']!r} in {row['vid']} (qid {row['qid']}).")
        submission.append({name: row[name] for name in ("qid", "query", "vid")})
        submission[-1]["pred_relevant_windows"] = segments[key]
    return submission


def evaluate_model(
    model: str,
    dataset: str,
    split: str,
    output_dir: Path,
    video_root: str | None = None,
    top_k: int = 10,
    strict: bool = False,
    num_workers: int = 2,
    dtype: str = "float32",
    device: str | None = None,
    skip_broken_videos: bool = False,
    streaming: bool = False,
    qvhighlights: Path | None = None,
) -> dict[str, Any]:
    """
    Evaluate a model, and write `predictions.jsonl` and `metrics.json`.

    Args:
        model (`str`): Hub id or folder of a model or adapter.
        dataset (`str`): Annotations, as for [`load_annotations`].
        split (`str`): Split to evaluate on.
        output_dir (`Path`): Folder for the results.
        video_root (`str`, *optional*): Folder of the videos; by default the folder of the data set.
        top_k (`int`, *optional*, defaults to 10): Maximum number of segments per sentence.
        strict (`bool`, *optional*, defaults to `False`): Whether IoU thresholds use > instead of >=.
        num_workers (`int`, *optional*, defaults to 2): Number of processes that read videos.
        dtype (`str`, *optional*, defaults to `"float32"`): Data type of the weights.
        device (`str`, *optional*): Device of the model; by default a GPU if available.
        skip_broken_videos (`bool`, *optional*, defaults to `False`): Whether to skip unreadable videos.
        streaming (`bool`, *optional*, defaults to `False`): Whether to stream the annotations.
        qvhighlights (`Path`, *optional*): Annotation file of QVHighlights, to also write `submission.jsonl`.

    Returns:
        `dict[str, Any]`: Content of `metrics.json`: `metrics` in percent, the evaluated data, and the settings as
        `how`. Sentences with several segments add [`multi_segment_metrics`]; negative sentences add
        [`rejection_metrics`].

    Raises:
        OSError: If the folder is not writable, before anything is read.
        FileNotFoundError, VideoReadError: If a video is unreadable and `skip_broken_videos` is not set, or if all are.
        ValueError: If the predictions lack a sentence of `qvhighlights`, or if [`load_annotations`] raises it.
    """
    make_result_folder(output_dir)
    if qvhighlights is not None and not qvhighlights.is_file():
        raise FileNotFoundError(f"Found no annotation file of QVHighlights at {qvhighlights}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    annotations = load_annotations(dataset, split, streaming)
    pipe: Any = load_pipeline(model, dtype=dtype, device=device)
    video_processor = pipe.processor.video_processor
    collator = RowCollator(pipe, resolve_video_root(dataset, video_root), skip_broken_videos)
    started_seconds = time.perf_counter()
    rows: DataLoader = DataLoader(annotations, collate_fn=collator, num_workers=num_workers)  # type: ignore[arg-type]
    predictions, broken = predict(pipe, rows, top_k, skip_broken_videos)
    seconds = time.perf_counter() - started_seconds

    positives = [row for row in predictions if row["targets"]]
    found, targets = ([row[name] for row in positives] for name in ("segments", "targets"))
    # With negatives alone, measure only their rejection.
    metrics = temporal_grounding_metrics(found, targets, strict=strict) if positives or not predictions else {}
    if any(len(sentence_targets) > 1 for sentence_targets in targets):
        metrics |= multi_segment_metrics(found, targets, strict=strict)
    if len(positives) < len(predictions):
        scores = np.array([row["segments"][0][2] for row in predictions])
        is_present = np.array([bool(row["targets"]) for row in predictions])
        metrics |= rejection_metrics(scores, is_present, pipe.processor.found_threshold)
    cuda_name = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    record = {
        "model": model,
        "dataset": dataset,
        "split": split,
        "metrics": metrics,
        "videos": len({row["video"] for row in predictions}),
        "sentences": len(predictions),
        "broken_videos": broken,  # excluded from the metrics
        "how": {
            "num_frames": video_processor.num_frames,
            "size": dict(video_processor.size),
            "window_seconds": video_processor.window_seconds,
            "top_k": top_k,
            "thresholds_reached_by": ">" if strict else ">=",
            "dtype": dtype,
            "device": cuda_name or platform.processor() or platform.machine(),
            "seconds": round(seconds, 1),
            "date": time.strftime("%Y-%m-%d"),
            "commit": get_commit(),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "av")},
        },
    }
    with open(output_dir / "predictions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
    (output_dir / "metrics.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    if qvhighlights is not None:
        write_qvhighlights_submission(output_dir / "submission.jsonl", _as_submission(predictions, qvhighlights))
    return record
