"""
Temporal IoU, recall and non-maximum suppression: pure functions on NumPy arrays, in float64.

A segment is `[start, end]`; units do not matter as long as predictions and targets share them.
"""

import numpy as np


def temporal_iou(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    Intersection over union of all pairs.

    Args:
        segments (`np.ndarray` of shape `(n, 2)`): Starts and ends.
        others (`np.ndarray` of shape `(m, 2)`): Starts and ends.

    Returns:
        `np.ndarray` of shape `(n, m)`: In `[0, 1]`; 0 where the union is empty.
    """
    first = np.asarray(segments, dtype=np.float64).reshape(-1, 1, 2)
    second = np.asarray(others, dtype=np.float64).reshape(1, -1, 2)
    intersection = np.minimum(first[..., 1], second[..., 1]) - np.maximum(first[..., 0], second[..., 0])
    intersection = np.clip(intersection, 0, None)
    union = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def soft_nms(
    scores: np.ndarray, segments: np.ndarray, top_k: int, sigma: float = 0.5, num_candidates: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """
    Gaussian soft non-maximum suppression (Bodla et al., 2017).

    The best segment is taken, the others' scores are multiplied by `exp(-iou^2 / sigma)`, and so on.

    Args:
        scores (`np.ndarray` of shape `(n,)`): In `[0, 1]`.
        segments (`np.ndarray` of shape `(n, 2)`): Starts and ends.
        top_k (`int`): How many to take at most.
        sigma (`float`, *optional*, defaults to 0.5): Width of the decay.
        num_candidates (`int`, *optional*, defaults to 256): Only so many of the best take part.

    Returns:
        `tuple`: decayed scores `(k,)`, descending, and their segments `(k, 2)`, both float64.
    """
    scores = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")[:num_candidates]
    scores, segments = scores[order], np.asarray(segments, dtype=np.float64)[order]
    kept_scores, kept_segments = [], []
    for _ in range(min(top_k, len(scores))):
        best = int(np.argmax(scores))
        kept_scores.append(scores[best])
        kept_segments.append(segments[best])
        scores = scores * np.exp(-(temporal_iou(segments[best], segments)[0] ** 2) / sigma)
        scores[best] = -np.inf
    return np.array(kept_scores), np.array(kept_segments).reshape(-1, 2)


def recall_at(
    ious: np.ndarray, top_ns: tuple[int, ...] = (1, 5), thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
) -> dict[str, float]:
    """
    `R@n, IoU=m` and mIoU from the IoU of each sentence's ranked segments.

    Args:
        ious (`np.ndarray` of shape `(Q, k)`): IoU of the ranked segments with the sentence's best target, best ranked
            first; NaN where there are fewer than `k`. A sentence without segments counts as missed.
        top_ns (`tuple[int, ...]`): The `n` of `R@n`.
        thresholds (`tuple[float, ...]`): The `m` of `IoU=m`; reached by `>=`.

    Returns:
        `dict[str, float]`: `R1@0.3` and so on, and `mIoU`, in percent.

    Raises:
        ValueError: If there is no sentence.
    """
    ious = np.nan_to_num(np.asarray(ious, dtype=np.float64))
    if ious.ndim != 2 or 0 in ious.shape:
        raise ValueError(f"Received IoUs of shape {ious.shape}; expected (sentences, ranked segments), at least one.")
    results = {
        f"R{n}@{threshold}": 100 * float((ious[:, :n].max(1) >= threshold).mean())
        for n in top_ns
        for threshold in thresholds
    }
    results["mIoU"] = 100 * float(ious[:, 0].mean())
    return results
