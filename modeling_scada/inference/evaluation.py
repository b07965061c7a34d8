"""
Evaluating a saved model on a split of a data set: predictions, metrics, and how these were made. A video is read and
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
from processing.data.files import VideoFiles, resolve_video_root, video_name
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


# What is wrong with a video rather than with the model or the annotations.
BROKEN = (OSError, VideoReadError, SegmentOutsideVideoError)


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
        except BROKEN as error:
            if not self.skip_broken_videos:
                raise
            return row, str(error)


def predict(
    pipe: TemporalGroundingPipeline, rows: DataLoader, top_k: int, skip_broken_videos: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    Args:
        pipe ([`TemporalGroundingPipeline`]): The model.
        rows (`DataLoader`): Over a data set of [`load_annotations`], collated by a [`Reader`].
        top_k (`int`): At most so many segments a sentence.
        skip_broken_videos (`bool`): As for the [`Reader`]; a long video is read here, window by window.

    Returns:
        `tuple`: a dict for each sentence, as a line of `predictions.jsonl`, with `targets` clipped to what the file
        has of its video, as in training; and `{"video", "sentences", "reason"}` for each video that could not be read,
        with the number of its sentences.

    Raises:
        VideoReadError: If no video could be read, or one of them, unless these are left out.
        SegmentOutsideVideoError: If a target lies outside its video, unless such videos are left out.
    """
    predictions, broken = [], []
    for row, inputs in tqdm(rows, desc="videos"):
        reason = inputs if isinstance(inputs, str) else None
        if reason is None:
            try:
                outputs: Any = pipe.forward(inputs)
                (of_video,) = outputs["outputs"]
                of_row = clip_targets(row["segments"], row["sentences"], of_video["timelines"])
            except BROKEN as error:
                if not skip_broken_videos:
                    if isinstance(error, SegmentOutsideVideoError):
                        raise SegmentOutsideVideoError(f"{video_name(row['video'])}: {error}") from error
                    raise
                reason = str(error)
        if reason is not None:
            name = video_name(row["video"])
            tqdm.write(f"Left out {name}, which is broken: {reason}")
            broken.append({"video": name, "sentences": len(row["sentences"]), "reason": reason})
            continue
        found = pipe.postprocess(outputs, top_k=top_k)
        for sentence, targets, ranked in zip(row["sentences"], of_row, found, strict=True):
            predictions.append(
                {
                    "video": row.get("video_id") or video_name(row["video"]),
                    "sentence": sentence,
                    "segments": [[segment["start"], segment["end"], segment["score"]] for segment in ranked],
                    "targets": targets,
                }
            )
    if broken and not predictions:
        raise VideoReadError(f"None of the {len(broken)} videos could be read. The first: {broken[0]['reason']}")
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
    Evaluates a model, and writes `predictions.jsonl` and `metrics.json`.

    Args:
        model (`str`): A model, or an adapter: Hub id or folder.
        dataset (`str`): Annotations, as for [`load_annotations`].
        split (`str`): Split to evaluate on.
        output_dir (`Path`): Where the files go.
        video_root (`str`, *optional*): Folder of the videos; the data set's own folder if not given.
        top_k (`int`, *optional*, defaults to 10): At most so many segments a sentence.
        strict (`bool`, *optional*, defaults to `False`): Whether IoU thresholds are reached by > instead of >=.
        num_workers (`int`, *optional*, defaults to 2): Processes that read videos.
        dtype (`str`, *optional*, defaults to `"float32"`): Of the weights.
        device (`str`, *optional*): Where the model runs; a GPU if there is one.
        skip_broken_videos (`bool`, *optional*, defaults to `False`): Whether videos that cannot be read are left out.
        streaming (`bool`, *optional*, defaults to `False`): Whether annotations are read while evaluating.
        qvhighlights (`Path`, *optional*): QVHighlights' annotation file, to write `submission.jsonl` too.

    Returns:
        `dict[str, Any]`: What `metrics.json` says: `metrics` in percent (those of [`multi_segment_metrics`] too where
        sentences have several segments, of [`rejection_metrics`] where some are not in their
        video), what was evaluated, and `how`.

    Raises:
        OSError: If the folder cannot be written to; that is tried before anything is read.
        FileNotFoundError, VideoReadError: If a video cannot be read, unless these are left out; or if none can.
        ValueError: If `qvhighlights` has a sentence that was not predicted, or see [`load_annotations`].
    """
    make_result_folder(output_dir)
    if qvhighlights is not None and not qvhighlights.is_file():
        raise FileNotFoundError(f"There is no annotation file of QVHighlights at {qvhighlights}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    annotations = load_annotations(dataset, split, streaming)
    pipe: Any = load_pipeline(model, dtype=dtype, device=device)
    video_processor = pipe.processor.video_processor
    reader = Reader(pipe, resolve_video_root(dataset, video_root), skip_broken_videos)
    started_seconds = time.perf_counter()
    rows: DataLoader = DataLoader(annotations, collate_fn=reader, num_workers=num_workers)  # type: ignore[arg-type]
    predictions, broken = predict(pipe, rows, top_k, skip_broken_videos)
    seconds = time.perf_counter() - started_seconds

    there = [row for row in predictions if row["targets"]]
    found, targets = ([row[name] for row in there] for name in ("segments", "targets"))
    # Without a sentence that is there, only rejecting is measured.
    metrics = temporal_grounding_metrics(found, targets, strict=strict) if there or not predictions else {}
    if any(len(sentence_targets) > 1 for sentence_targets in targets):
        metrics |= multi_segment_metrics(found, targets, strict=strict)
    if len(there) < len(predictions):
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
        "broken_videos": broken,  # no part of the metrics
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
        write_qvhighlights_submission(output_dir / "submission.jsonl", as_submission(predictions, qvhighlights))
    return record
