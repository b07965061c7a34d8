"""
Metrics R@n, mIoU, mAP and mR@k, as pure functions on NumPy arrays in float64.

A segment is `[start, end]`, in any unit shared by predictions and targets. [`temporal_grounding_metrics`] computes the
main metrics, and lists differences from other evaluation code. [`multi_segment_metrics`] computes additional metrics
for sentences with several targets.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from os import PathLike
from typing import Any

import numpy as np

from .post_processing import temporal_iou


# Thresholds of mAP. Integer division returns the floats nearest to 0.55, 0.6, ... Sums of steps of 0.05 miss some of
# them (`np.linspace` misses 0.9, `np.arange` most), and rounding would decide whether an IoU of exactly 0.6 counts.
AP_IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
# Thresholds and values of k of mR@k.
MEAN_RECALL_IOU_THRESHOLDS = tuple(percent / 100 for percent in range(30, 100, 5))
MEAN_RECALL_TOP_NS = (1, 2, 3)
# Number of ranked predictions per sentence: enough for mAP (QVHighlights) and R@5.
NUM_RANKED = 10


def recall_at(
    ious: np.ndarray,
    top_ns: tuple[int, ...] = (1, 5),
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7),
    strict: bool = False,
) -> dict[str, float]:
    """
    Return `R@n, IoU=m` and mIoU from the IoU of each sentence's ranked segments.

    Args:
        ious (`np.ndarray` of shape `(Q, k)`): IoU of the ranked segments with the best target of the sentence, top
            rank first; NaN for missing segments. A sentence without segments counts as a miss.
        top_ns (`tuple[int, ...]`): Values of `n` in `R@n`.
        thresholds (`tuple[float, ...]`): Values of `m` in `IoU=m`.
        strict (`bool`, *optional*, defaults to `False`): Whether to compare IoU and threshold with `>` instead of
            `>=`.

    Returns:
        `dict[str, float]`: `R1@0.3` etc. and `mIoU`, in percent.

    Raises:
        ValueError: If the array contains no sentence.
    """
    ious = np.nan_to_num(np.asarray(ious, dtype=np.float64))
    if ious.ndim != 2 or 0 in ious.shape:
        raise ValueError(f"Received IoUs of shape {ious.shape}; expected (sentences, ranked segments), at least one.")
    reaches = np.greater if strict else np.greater_equal
    results = {
        f"R{n}@{threshold}": 100 * float(reaches(ious[:, :n].max(1), threshold).mean())
        for n in top_ns
        for threshold in thresholds
    }
    results["mIoU"] = 100 * float(ious[:, 0].mean())
    return results


def average_precision(ious: np.ndarray, num_targets: np.ndarray, threshold: float, strict: bool = False) -> np.ndarray:
    """
    Return the interpolated average precision of each sentence at one IoU threshold.

    In order of rank, each prediction is matched to the unmatched target with the highest IoU that reaches the
    threshold (the first of equal ones). A prediction without a match is wrong. The precision at each rank is then
    replaced by the highest precision at this or a later rank. The result is the area under the precision-recall curve.

    Args:
        ious (`np.ndarray` of shape `(Q, k, K)`): IoU of predictions and targets, highest score first; 0 for missing
            predictions or targets.
        num_targets (`np.ndarray` of shape `(Q,)`): Number of targets per sentence, at least 1.
        threshold (`float`): IoU threshold, above 0.
        strict (`bool`, *optional*, defaults to `False`): Whether to compare IoU and threshold with `>` instead of
            `>=`.

    Returns:
        `np.ndarray` of shape `(Q,)`: Average precision in `[0, 1]`.
    """
    correct = _find_targets(ious, threshold, strict)
    precision = correct.cumsum(1) / np.arange(1, ious.shape[1] + 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Recall increases by one target at each correct prediction only.
    return (precision * correct).sum(1) / num_targets


def _find_targets(ious: np.ndarray, threshold: float, strict: bool) -> np.ndarray:
    """Return which predictions match an unmatched target, `(Q, k)`, bool; see [`average_precision`]."""
    reached = ious > threshold if strict else ious >= threshold
    sentences = np.arange(len(ious))
    free = np.ones((ious.shape[0], ious.shape[2]), dtype=bool)
    correct = np.zeros(ious.shape[:2], dtype=bool)
    for rank in range(ious.shape[1]):
        candidates = np.where(reached[:, rank] & free, ious[:, rank], 0.0)
        best = candidates.argmax(1)
        correct[:, rank] = candidates[sentences, best] > 0
        free[sentences, best] &= ~correct[:, rank]
    return correct


def _as_arrays(sentences: Sequence[Any], width: int, what: str) -> list[np.ndarray]:
    """Convert to one float64 array `(n, width)` per sentence; a `ValueError` names an invalid sentence."""
    arrays = []
    for index, rows in enumerate(sentences):
        try:
            array = np.asarray(rows, dtype=np.float64) if len(rows) else np.zeros((0, width))
        except (TypeError, ValueError):  # ragged, or not numeric
            array = np.zeros(0)
        if array.shape[1:] != (width,) or not np.isfinite(array).all():
            raise ValueError(f"Received {rows!r:.200} for sentence {index}; expected {what} with finite numbers.")
        arrays.append(array)
    return arrays


def temporal_grounding_metrics(
    predictions: Sequence[Any], references: Sequence[Any], strict: bool = False
) -> dict[str, float]:
    """
    Return R@n, mIoU and mAP of temporal sentence grounding, in percent.

    - `R1@0.3` to `R5@0.7`: share of sentences with this IoU between one of the first `n` predictions and a target.
    - `mIoU`: IoU of the first prediction with its best target, averaged over the sentences.
    - `mAP`: average precision ([`average_precision`]) as defined by QVHighlights, of the first ten predictions,
      averaged over the sentences and over the IoU thresholds 0.5, 0.55, ..., 0.95.

    The order of the predictions, regardless of their scores, is the rank. The rank determines R@n, mIoU and the first
    ten predictions. Among these ten, mAP sorts by descending score, and by rank for equal scores. A sentence without
    predictions counts as 0 in each metric. A segment without length has an IoU of 0 with every segment, including
    itself. Such a target is therefore always missed; remove the sentence if it should not count. A prediction with its
    end before its start also has an IoU of 0. IoUs are computed and compared in float64, without rounding.

    Other evaluation code differs. With `>` instead of `>=`, the R1@0.5 of the predictions published by the authors of
    QVHighlights, on a grid of 2 seconds, drops from 53.94 to 51.48.
    - 2D-TAN (`lib/core/eval.py`) uses `>`; pass `strict=True`. It also applies NMS first. Its loaders clip targets to
      the duration of the video, and drop empty and reversed targets.
    - VSLNet (`util/runner_utils.py`) uses `>=`, like this function, with one prediction per sentence.
    - LGI (`src/utils/eval_utils.py`) uses `>=`, but computes mIoU from the best of the first five predictions.
    - SnAG (`libs/worker.py`) uses `>=` with IoUs in float32 and thresholds in float64, so an IoU of exactly 0.7 misses
      the threshold 0.7.
    - MMN (`mmn/data/datasets/evaluation.py`) uses `>=` in float32.
    - QVHighlights (moment_detr, `standalone_eval/eval.py`) uses `>=`, like this function, and rounds results to two
      digits. Its mAP excludes sentences without predictions, and its R@1 fails for them.

    Args:
        predictions (`Sequence`): Segments `[[start, end, score], ...]` of each sentence, best first; may be empty.
        references (`Sequence`): Targets `[[start, end], ...]` of each sentence, at least one, in the same unit.
        strict (`bool`, *optional*, defaults to `False`): Whether to compare IoU and threshold with `>` instead of
            `>=`, also in mAP.

    Returns:
        `dict[str, float]`: `R1@0.3`, `R1@0.5`, `R1@0.7`, `R5@0.3`, `R5@0.5`, `R5@0.7`, `mIoU` and `mAP`.

    Raises:
        ValueError: If the input has no sentence, or predictions and references differ in length; if a prediction is
            not `[start, end, score]` or a target not `[start, end]`, with finite numbers; if a sentence has no target,
            or a target ends before it starts.
    """
    ious, by_score, num_targets = _ranked_ious(predictions, references)
    results = recall_at(ious.max(2), strict=strict)
    results["mAP"] = 100 * float(
        np.mean([average_precision(by_score, num_targets, threshold, strict) for threshold in AP_IOU_THRESHOLDS])
    )
    return results


def multi_segment_metrics(
    predictions: Sequence[Any], references: Sequence[Any], strict: bool = False
) -> dict[str, float]:
    """
    Return the metrics of QV-M2 ("When One Moment Isn't Enough", NeurIPS 2025) for sentences with several targets, in
    percent.

    - `G-mAP`: mean average precision of the groups of sentences with 1, 2, 3, ... targets, each weighted by its number
      of sentences. It equals the `mAP` of [`temporal_grounding_metrics`].
    - `mAP@1tgt`, `mAP@2tgt`, `mAP@3+tgt`: mAP of the sentences with this number of targets. The last one is the
      unweighted mean over the groups with 3, 4, ... targets.
    - `mR@1`, `mR@2`, `mR@3`: share of `k` targets matched by the first `k` predictions, each with a different target,
      for sentences with at least `k` targets. The value is averaged over the IoU thresholds 0.3, 0.35, ..., 0.95.

    A metric without matching sentences is omitted. The authors' evaluation (`standalone_eval/eval.py`) excludes
    sentences with fewer than `k` predictions from mR@k, and sentences without predictions from mAP. This function
    counts missing predictions as misses.

    Args:
        predictions, references, strict: Same as for [`temporal_grounding_metrics`].

    Returns:
        `dict[str, float]`: Metrics listed above that have matching sentences.

    Raises:
        ValueError: Same cases as for [`temporal_grounding_metrics`].
    """
    ious, by_score, num_targets = _ranked_ious(predictions, references)
    precisions = np.mean(
        [average_precision(by_score, num_targets, threshold, strict) for threshold in AP_IOU_THRESHOLDS], axis=0
    )
    precision_by_count = {
        count: 100 * float(precisions[num_targets == count].mean()) for count in np.unique(num_targets)
    }
    many_target_precisions = [precision for count, precision in precision_by_count.items() if count >= 3]
    results = {"G-mAP": 100 * float(precisions.mean())}
    results |= {f"mAP@{count}tgt": precision_by_count[count] for count in (1, 2) if count in precision_by_count}
    if many_target_precisions:
        results["mAP@3+tgt"] = float(np.mean(many_target_precisions))
    for top_n in MEAN_RECALL_TOP_NS:
        has_enough_targets = num_targets >= top_n
        if has_enough_targets.any():
            first = ious[has_enough_targets, :top_n]
            found = [_find_targets(first, threshold, strict).mean() for threshold in MEAN_RECALL_IOU_THRESHOLDS]
            results[f"mR@{top_n}"] = 100 * float(np.mean(found))
    return results


def _ranked_ious(predictions: Sequence[Any], references: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Check the input, and return IoUs by rank, IoUs by descending score, and the number of targets per sentence.

    The IoUs are those of the first `NUM_RANKED` predictions with the targets, `(Q, NUM_RANKED, K)`, 0 for missing
    entries. The number of targets has the shape `(Q,)`. For the checks, see [`temporal_grounding_metrics`].
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"Received predictions for {len(predictions)} sentences but references for {len(references)}; pass one "
            "entry per sentence in both (an empty list for no predictions)."
        )
    if len(predictions) == 0:
        raise ValueError("Received no sentence; pass at least one sentence.")
    ranked = _as_arrays(predictions, 3, "predictions [[start, end, score], ...]")
    targets = _as_arrays(references, 2, "targets [[start, end], ...]")
    for index, sentence_segments in enumerate(targets):
        if len(sentence_segments) == 0:
            raise ValueError(f"Received no target for sentence {index}; each sentence needs at least one.")
        if (sentence_segments[:, 1] < sentence_segments[:, 0]).any():
            raise ValueError(
                f"Received targets {sentence_segments.tolist()} for sentence {index}, one of which ends before it "
                "starts; repair or drop it."
            )
    num_targets = np.array([len(sentence_segments) for sentence_segments in targets])
    # Missing predictions have an IoU of 0 and the last rank, because wrong predictions at the end change no metric.
    ious = np.zeros((len(ranked), NUM_RANKED, num_targets.max()))
    scores = np.full((len(ranked), NUM_RANKED), -np.inf)
    for index, (sentence_segments, its_targets) in enumerate(zip(ranked, targets, strict=True)):
        first = sentence_segments[:NUM_RANKED]
        ious[index, : len(first), : len(its_targets)] = temporal_iou(first[:, :2], its_targets)
        scores[index, : len(first)] = first[:, 2]
    by_score = np.take_along_axis(ious, np.argsort(-scores, axis=1, kind="stable")[..., None], axis=1)
    return ious, by_score, num_targets


def rejection_auroc(scores: np.ndarray, is_present: np.ndarray) -> float:
    """
    Return the area under the ROC curve, in percent, for sentences present in or absent from their video.

    It is the probability that a present sentence has a higher score than an absent one. Equal scores count as half.

    Args:
        scores (`np.ndarray` of shape `(Q,)`): Score of the best segment of each sentence.
        is_present (`np.ndarray` of shape `(Q,)`): Whether each sentence is present in its video.

    Returns:
        `float`: Area in percent, 50 by chance; `nan` if all sentences are present or all absent.
    """
    scores, is_present = np.asarray(scores, dtype=np.float64), np.asarray(is_present, dtype=bool)
    present, absent = np.sort(scores[is_present]), scores[~is_present]
    if not len(present) or not len(absent):
        return float("nan")
    lower = np.searchsorted(present, absent, side="left")
    equal = np.searchsorted(present, absent, side="right") - lower
    higher = len(present) - lower - equal
    return 100 * float((higher + equal / 2).mean() / len(present))


def rejection_f1(scores: np.ndarray, is_present: np.ndarray, threshold: float) -> float:
    """
    Return the F1, in percent, of rejecting absent sentences with a score below `threshold`.

    Args:
        scores, is_present: Same as for [`rejection_auroc`].
        threshold (`float`): Minimum score of a found sentence.

    Returns:
        `float`: F1 in percent; 0 without a correct rejection.
    """
    rejected = np.asarray(scores) < threshold
    absent = ~np.asarray(is_present, dtype=bool)
    right = int((rejected & absent).sum())
    return 100 * 2 * right / max(int(rejected.sum() + absent.sum()), 1)


def best_rejection_threshold(scores: np.ndarray, is_present: np.ndarray) -> float:
    """
    Return the threshold with the best [`rejection_f1`].

    Args:
        scores, is_present: Same as for [`rejection_auroc`].

    Returns:
        `float`: Threshold halfway between two neighbouring scores; of equally good ones, the lowest. If rejecting all
        sentences is best, the threshold is above all scores (above 1 if a score is 1).
    """
    distinct = np.unique(np.asarray(scores, dtype=np.float64))
    candidates = [*((distinct[1:] + distinct[:-1]) / 2), distinct[-1] + 1e-6]
    return float(max(candidates, key=lambda threshold: rejection_f1(scores, is_present, threshold)))


def rejection_metrics(
    scores: np.ndarray, is_present: np.ndarray, found_threshold: float | None = None
) -> dict[str, float]:
    """
    Return the metrics of rejecting absent sentences.

    Args:
        scores, is_present: Same as for [`rejection_auroc`].
        found_threshold (`float`, *optional*): Minimum score of a found sentence. Defaults to the best threshold.

    Returns:
        `dict[str, float]`: `RejF1` in percent and its `found_threshold`. With both present and absent sentences, also
        `AUROC` in percent.
    """
    if found_threshold is None:
        found_threshold = best_rejection_threshold(scores, is_present)
    auroc = rejection_auroc(scores, is_present)
    metrics = {} if isnan(auroc) else {"AUROC": auroc}
    return metrics | {
        "RejF1": rejection_f1(scores, is_present, found_threshold),
        "found_threshold": found_threshold,
    }


def write_qvhighlights_submission(path: str | PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """
    Write predictions in the format of QVHighlights' evaluation: JSON Lines, one sentence per line.

    The evaluation uses the first window for R@1 and the first ten for mAP, so the order stays the same. It fails for a
    sentence without windows.

    Args:
        path (`str` or `PathLike`): Output file.
        rows (`Iterable[Mapping]`): One row per sentence, with `qid`, `query` and `vid` as in the annotations, and
            `pred_relevant_windows` with `[[start, end, score], ...]` in seconds, best first. Other keys, such as
            `pred_saliency_scores`, stay unchanged.

    Raises:
        ValueError: If a row lacks a key, or a prediction is not `[start, end, score]` with finite numbers. In this
            case, no file is written.
    """
    rows = list(rows)
    for index, row in enumerate(rows):
        missing = {"qid", "query", "vid", "pred_relevant_windows"} - row.keys()
        if missing:
            raise ValueError(f"Row {index} lacks {sorted(missing)}.")
    windows = _as_arrays([row["pred_relevant_windows"] for row in rows], 3, "predictions [[start, end, score], ...]")
    lines = [
        json.dumps({**row, "pred_relevant_windows": sentence_segments.tolist()}) + "\n"
        for row, sentence_segments in zip(rows, windows, strict=True)
    ]
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)
