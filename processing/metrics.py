"""
Temporal IoU, R@n, mIoU, mAP, mR@k and non-maximum suppression: pure functions on NumPy arrays, in float64.

A segment is `[start, end]`; units do not matter as long as predictions and targets share them.
[`temporal_grounding_metrics`] computes all that is reported, and says how the evaluations of other code differ;
[`multi_segment_metrics`] what is reported beside it where sentences have several targets.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from os import PathLike
from typing import Any

import numpy as np

from .post_processing import temporal_iou


# Of mAP. Divisions of integers give the floats nearest to 0.55, 0.6, ...; adding up steps of 0.05 misses some of them
# (`np.linspace` 0.9, `np.arange` most), and an IoU of exactly 0.6 would then count or not by chance.
AP_IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
# Of mR@k, and its k.
MEAN_RECALL_IOU_THRESHOLDS = tuple(percent / 100 for percent in range(30, 100, 5))
MEAN_RECALL_TOP_NS = (1, 2, 3)
# Of each sentence, in the given ranking: mAP looks at no more (QVHighlights), nor does R@5.
NUM_RANKED = 10


def recall_at(
    ious: np.ndarray,
    top_ns: tuple[int, ...] = (1, 5),
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7),
    strict: bool = False,
) -> dict[str, float]:
    """
    `R@n, IoU=m` and mIoU from the IoU of each sentence's ranked segments.

    Args:
        ious (`np.ndarray` of shape `(Q, k)`): IoU of the ranked segments with the sentence's best target, best ranked
            first; NaN where there are fewer than `k`. A sentence without segments counts as missed.
        top_ns (`tuple[int, ...]`): The `n` of `R@n`.
        thresholds (`tuple[float, ...]`): The `m` of `IoU=m`.
        strict (`bool`, *optional*, defaults to `False`): Whether a threshold is reached by `>` instead of `>=`.

    Returns:
        `dict[str, float]`: `R1@0.3` and so on, and `mIoU`, in percent.

    Raises:
        ValueError: If there is no sentence.
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
    Interpolated average precision of each sentence at one IoU threshold.

    One after the other, each prediction takes the target with the highest IoU among those that it reaches and that are
    still free (of equals the first); if there is none, it is wrong. The precision at a rank is then replaced by the
    highest one from there on, and the result is the area under precision over recall.

    Args:
        ious (`np.ndarray` of shape `(Q, k, K)`): IoU of the predictions, the highest score first, with the targets; 0
            where a sentence has fewer of them.
        num_targets (`np.ndarray` of shape `(Q,)`): How many targets each sentence has, at least 1.
        threshold (`float`): IoU that a prediction has to reach, above 0.
        strict (`bool`, *optional*, defaults to `False`): Whether it is reached by `>` instead of `>=`.

    Returns:
        `np.ndarray` of shape `(Q,)`: In `[0, 1]`.
    """
    correct = _find_targets(ious, threshold, strict)
    precision = correct.cumsum(1) / np.arange(1, ious.shape[1] + 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Recall grows by one target at each correct prediction, and nowhere else.
    return (precision * correct).sum(1) / num_targets


def _find_targets(ious: np.ndarray, threshold: float, strict: bool) -> np.ndarray:
    """Which predictions find a target that is still free, `(Q, k)`, bool; see [`average_precision`]."""
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
    """One float64 array `(n, width)` a sentence; a `ValueError` that names the sentence if that cannot be."""
    arrays = []
    for index, rows in enumerate(sentences):
        try:
            array = np.asarray(rows, dtype=np.float64) if len(rows) else np.zeros((0, width))
        except (TypeError, ValueError):  # ragged, or no numbers
            array = np.zeros(0)
        if array.shape[1:] != (width,) or not np.isfinite(array).all():
            raise ValueError(
                f"Received {rows!r:.200} for sentence {index}; expected {what}, all of them finite numbers."
            )
        arrays.append(array)
    return arrays


def temporal_grounding_metrics(
    predictions: Sequence[Any], references: Sequence[Any], strict: bool = False
) -> dict[str, float]:
    """
    R@n, mIoU and mAP of temporal sentence grounding, in percent.

    - `R1@0.3` to `R5@0.7`: share of the sentences of which one of the first `n` predictions reaches that IoU with one
      of the targets.
    - `mIoU`: IoU of the first prediction with the target that it overlaps best, averaged over the sentences.
    - `mAP`: average precision ([`average_precision`]) as QVHighlights defines it, of the first ten predictions,
      averaged over the sentences and over the IoU thresholds 0.5, 0.55, ..., 0.95.

    The order of a sentence's predictions is their rank, whatever their scores say, and decides about R@n, mIoU and who
    is among the ten; within the ten, mAP goes by descending score, and by rank where scores are equal. A sentence
    without predictions is missed: it counts 0 in each metric. A segment without length overlaps nothing, not even
    itself, so a target without length cannot be found; leave such sentences out if they should not count. A prediction
    that ends before it starts overlaps nothing either. IoUs are computed in float64 and compared as they are.

    Other code evaluates differently. `>` in place of `>=` alone takes the predictions that QVHighlights' authors
    published, whose times lie on a grid of 2 seconds, from an R1@0.5 of 53.94 to 51.48.
    - 2D-TAN (`lib/core/eval.py`) reaches a threshold by `>`: pass `strict=True`. It applies an NMS of its own first,
      and its loaders cut targets at the video's duration and drop empty and reversed ones.
    - VSLNet (`util/runner_utils.py`) uses `>=`, as here, for one prediction a sentence.
    - LGI (`src/utils/eval_utils.py`) uses `>=`, but its mIoU takes the best of the first five predictions.
    - SnAG (`libs/worker.py`) uses `>=` on IoUs in float32 with thresholds in float64, so that an IoU of exactly 0.7
      misses 0.7.
    - MMN (`mmn/data/datasets/evaluation.py`) uses `>=` in float32.
    - QVHighlights (moment_detr, `standalone_eval/eval.py`) uses `>=`, as here, and rounds results to two digits. A
      sentence without predictions is left out of its mAP, and its R@1 fails there.

    Args:
        predictions (`Sequence`): For each sentence its `[[start, end, score], ...]`, best first; may be empty.
        references (`Sequence`): For each sentence its targets `[[start, end], ...]`, at least one, in the same unit.
        strict (`bool`, *optional*, defaults to `False`): Whether thresholds are reached by `>` instead of `>=`, in mAP
            too.

    Returns:
        `dict[str, float]`: `R1@0.3`, `R1@0.5`, `R1@0.7`, `R5@0.3`, `R5@0.5`, `R5@0.7`, `mIoU` and `mAP`.

    Raises:
        ValueError: If there is no sentence, or not one entry per sentence in both; if a prediction is not
            `[start, end, score]` or a target not `[start, end]`, with finite numbers; if a sentence has no target, or
            a target ends before it starts.
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
    What QV-M2 ("When One Moment Isn't Enough", NeurIPS 2025) measures where sentences have several targets, in
    percent.

    - `G-mAP`: mean average precision of the groups of sentences with 1, 2, 3, ... targets, each weighted by its number
      of sentences. So it is the `mAP` of [`temporal_grounding_metrics`] under another name.
    - `mAP@1tgt`, `mAP@2tgt`, `mAP@3+tgt`: of the sentences with so many targets; the last one is the mean of the
      groups with 3, 4, ... targets, which weigh the same there.
    - `mR@1`, `mR@2`, `mR@3`: of the sentences with at least `k` targets, the share of `k` targets that the first `k`
      predictions find, each another one; averaged over the IoU thresholds 0.3, 0.35, ..., 0.95.

    Names without a sentence to measure are left out. The authors' own evaluation (`standalone_eval/eval.py`) leaves a
    sentence out of mR@k that has fewer than `k` predictions, and one without any out of mAP; here what is not
    predicted is missed.

    Args:
        predictions, references, strict: As for [`temporal_grounding_metrics`].

    Returns:
        `dict[str, float]`: Those of the names above that there is a sentence for.

    Raises:
        ValueError: As [`temporal_grounding_metrics`].
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
        has_so_many = num_targets >= top_n
        if has_so_many.any():
            first = ious[has_so_many, :top_n]
            found = [_find_targets(first, threshold, strict).mean() for threshold in MEAN_RECALL_IOU_THRESHOLDS]
            results[f"mR@{top_n}"] = 100 * float(np.mean(found))
    return results


def _ranked_ious(predictions: Sequence[Any], references: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    IoUs of the first `NUM_RANKED` predictions with the targets, `(Q, NUM_RANKED, K)`, 0 where there are fewer: as they
    are ranked, and by descending score; and how many targets each sentence has, `(Q,)`. Checks what was passed, see
    [`temporal_grounding_metrics`].
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"Received predictions for {len(predictions)} sentences but references for {len(references)}; pass one "
            "entry per sentence in both (an empty list where nothing is predicted)."
        )
    if len(predictions) == 0:
        raise ValueError("Received no sentence; there is nothing to average over.")
    ranked = _as_arrays(predictions, 3, "predictions [[start, end, score], ...]")
    targets = _as_arrays(references, 2, "targets [[start, end], ...]")
    for index, sentence_segments in enumerate(targets):
        if len(sentence_segments) == 0:
            raise ValueError(f"Received no target for sentence {index}; each sentence needs at least one.")
        if (sentence_segments[:, 1] < sentence_segments[:, 0]).any():
            raise ValueError(
                f"Received targets {sentence_segments.tolist()} for sentence {index}, one of which ends before it "
                f"starts; "
                "repair or drop it."
            )
    num_targets = np.array([len(sentence_segments) for sentence_segments in targets])
    # Where there are fewer than ten, IoUs of 0 that come last: wrong predictions behind all others change no metric.
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
    Whether scores tell sentences that are in their video from others: the probability, in percent, that one that is
    there has the higher score, equal ones counting half (the area under the ROC curve).

    Args:
        scores (`np.ndarray` of shape `(Q,)`): Of each sentence's best segment.
        is_present (`np.ndarray` of shape `(Q,)`): Whether the sentence is in its video.

    Returns:
        `float`: 50 by chance; `nan` if there are only sentences of one kind.
    """
    scores, is_present = np.asarray(scores, dtype=np.float64), np.asarray(is_present, dtype=bool)
    there, others = np.sort(scores[is_present]), scores[~is_present]
    if not len(there) or not len(others):
        return float("nan")
    lower = np.searchsorted(there, others, side="left")
    equal = np.searchsorted(there, others, side="right") - lower
    higher = len(there) - lower - equal
    return 100 * float((higher + equal / 2).mean() / len(there))


def rejection_f1(scores: np.ndarray, is_present: np.ndarray, threshold: float) -> float:
    """
    F1, in percent, of rejecting the sentences that are not in their video: those whose score is below `threshold`.

    Args:
        scores, is_present: As for [`rejection_auroc`].
        threshold (`float`): Sentences with this score or a higher one are found.

    Returns:
        `float`: 0 if none is rejected that should be.
    """
    rejected = np.asarray(scores) < threshold
    absent = ~np.asarray(is_present, dtype=bool)
    right = int((rejected & absent).sum())
    return 100 * 2 * right / max(int(rejected.sum() + absent.sum()), 1)


def best_rejection_threshold(scores: np.ndarray, is_present: np.ndarray) -> float:
    """
    Args:
        scores, is_present: As for [`rejection_auroc`].

    Returns:
        `float`: The threshold with the best [`rejection_f1`], halfway to the next lower score; the lowest such. Above
        all scores (so above 1, if one is 1) where it is best to reject all.
    """
    distinct = np.unique(np.asarray(scores, dtype=np.float64))
    candidates = [*((distinct[1:] + distinct[:-1]) / 2), distinct[-1] + 1e-6]
    return float(max(candidates, key=lambda threshold: rejection_f1(scores, is_present, threshold)))


def rejection_metrics(
    scores: np.ndarray, is_present: np.ndarray, found_threshold: float | None = None
) -> dict[str, float]:
    """
    Args:
        scores, is_present: As for [`rejection_auroc`].
        found_threshold (`float`, *optional*): From which score on a sentence is found; the best one if not given.

    Returns:
        `dict[str, float]`: `RejF1` in percent and its `found_threshold`; and `AUROC` in percent, where there are
        sentences of both kinds.
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
    Write predictions in the format that QVHighlights' evaluation reads: JSON Lines, one sentence a line.

    That evaluation takes the first window for R@1 and the first ten for mAP, so the order is kept; it fails on a
    sentence without windows.

    Args:
        path (`str` or `PathLike`): The file to write.
        rows (`Iterable[Mapping]`): For each sentence `qid`, `query` and `vid` as in the annotations, and
            `pred_relevant_windows`, its `[[start, end, score], ...]` in seconds, best first. Other keys (its
            `pred_saliency_scores`) are written as they are.

    Raises:
        ValueError: If a row lacks a key, or a prediction is not `[start, end, score]` with finite numbers. Nothing is
            written then.
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
