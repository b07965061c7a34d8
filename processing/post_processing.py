"""Ranking of proposals: temporal IoU and non-maximum suppression, on NumPy arrays in float64."""

from math import isnan
from numbers import Integral, Real

import numpy as np


def temporal_iou(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    Return the intersection over union of all pairs of segments.

    Args:
        segments (`np.ndarray` of shape `(n, 2)`): Starts and ends.
        others (`np.ndarray` of shape `(m, 2)`): Starts and ends.

    Returns:
        `np.ndarray` of shape `(n, m)`: IoU in `[0, 1]`; 0 for an empty union.
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
    Apply Gaussian soft non-maximum suppression (Bodla et al., 2017).

    Each step selects the best segment and multiplies the scores of the others by `exp(-iou^2 / sigma)`.

    Args:
        scores (`np.ndarray` of shape `(n,)`): Scores in `[0, 1]`.
        segments (`np.ndarray` of shape `(n, 2)`): Starts and ends.
        top_k (`int`): Maximum number of segments.
        sigma (`float`, *optional*, defaults to 0.5): Width of the decay.
        num_candidates (`int`, *optional*, defaults to 256): Number of best segments to consider.

    Returns:
        `tuple`: Decayed scores `(k,)`, descending, and the matching segments `(k, 2)`, both float64.
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


def check_ranking(top_k: int = 1, threshold: float = 0.0, nms: float | None = None) -> None:
    """
    Check the ranking settings before any computation.

    Args:
        top_k (`int`): Maximum number of segments.
        threshold (`float`): Minimum score.
        nms (`float`, *optional*): The `sigma` of [`soft_nms`], or `None` for no suppression.

    Raises:
        ValueError: If `top_k` is not a positive integer, `threshold` not a number, or `nms` not a positive number.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1:
        raise ValueError(f"Received top_k={top_k!r}; expected a positive number of segments, such as 5.")
    if not isinstance(threshold, Real) or isnan(threshold):
        raise ValueError(f"Received threshold={threshold!r}; expected a score from 0 to 1.")
    if nms is not None and not (isinstance(nms, Real) and nms > 0):
        raise ValueError(f"Received nms={nms!r}; expected a positive number, or None for no suppression.")
