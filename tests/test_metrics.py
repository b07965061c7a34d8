"""Temporal IoU, soft non-maximum suppression and recall, against plain Python and numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from processing.metrics import recall_at, soft_nms, temporal_iou


def plain_iou(first, second):
    """Of two segments given as Python floats."""
    intersection = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - intersection
    return intersection / union if union > 0 else 0.0


def plain_soft_nms(scores, segments, top_k, sigma=0.5, num_candidates=256):
    """As the docstring says it: take the best, multiply the others' scores by `exp(-iou^2 / sigma)`, and so on."""
    left = sorted(zip(scores, segments, strict=True), key=lambda item: -item[0])[:num_candidates]
    taken = []
    while left and len(taken) < top_k:
        best = max(range(len(left)), key=lambda i: left[i][0])
        score, segment = left.pop(best)
        taken.append((score, segment))
        left = [(s * math.exp(-(plain_iou(segment, other) ** 2) / sigma), other) for s, other in left]
    return [score for score, _ in taken], [segment for _, segment in taken]


time = st.floats(0, 1000, width=32)
segment = st.tuples(time, time).map(sorted)


@settings(deadline=None)
@given(st.lists(segment, min_size=1, max_size=5), st.lists(segment, min_size=1, max_size=5))
@example([[1.0, 1.0]], [[1.0, 1.0], [0.0, 2.0]])
@example([[0.0, 1.0]], [[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]])
def test_temporal_iou_is_that_of_a_plain_loop(first, second):
    ious = temporal_iou(np.array(first, dtype=np.float32), np.array(second, dtype=np.float32))
    assert ious.dtype == np.float64 and ious.shape == (len(first), len(second))
    expected = [[plain_iou(a, b) for b in second] for a in first]
    np.testing.assert_allclose(ious, expected, rtol=1e-12, atol=0)


def test_temporal_iou_computes_in_float64():
    """The times are exact in float32, but a third is not: in float32 it would be off by 3e-8."""
    segments = np.array([[1_000_000.0, 1_000_000.125]], dtype=np.float32)
    others = np.array([[1_000_000.0625, 1_000_000.1875]], dtype=np.float32)
    assert temporal_iou(segments, others)[0, 0] == pytest.approx(1 / 3, rel=1e-12)


def test_temporal_iou_worked_out_by_hand():
    ious = temporal_iou([[0, 4], [2, 6]], [[0, 4], [3, 5], [6, 8], [-1, 9]])
    np.testing.assert_allclose(ious, [[1, 1 / 5, 0, 4 / 10], [2 / 6, 2 / 4, 0, 4 / 10]], rtol=1e-15)


@pytest.mark.filterwarnings("error")
def test_segments_without_length_overlap_nothing():
    ious = temporal_iou([[2, 2], [0, 4]], [[2, 2], [0, 4], [5, 5]])
    np.testing.assert_array_equal(ious, [[0, 0, 0], [0, 1, 0]])


def test_temporal_iou_of_one_or_no_segment():
    assert temporal_iou(np.array([0.0, 2.0]), np.array([[1.0, 2.0]])).tolist() == [[0.5]]
    assert temporal_iou(np.zeros((0, 2)), np.zeros((3, 2))).shape == (0, 3)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_soft_nms_is_that_of_a_plain_loop(seed, sigma):
    rng = np.random.default_rng(seed)
    scores = rng.random(60).astype(np.float32)
    segments = np.sort(rng.random((60, 2)), axis=1).astype(np.float32)
    for top_k, num_candidates in ((1, 256), (5, 256), (60, 256), (30, 20)):
        kept_scores, kept_segments = soft_nms(scores, segments, top_k, sigma, num_candidates)
        expected = plain_soft_nms(scores.tolist(), segments.tolist(), top_k, sigma, num_candidates)
        assert kept_scores.dtype == kept_segments.dtype == np.float64
        np.testing.assert_allclose(kept_scores, expected[0], rtol=1e-12)
        np.testing.assert_array_equal(kept_segments, expected[1])
        assert len(kept_scores) == min(top_k, num_candidates, 60)
        assert np.all(np.diff(kept_scores) <= 0)


def test_soft_nms_defaults():
    rng = np.random.default_rng(0)
    scores, segments = rng.random(400), np.sort(rng.random((400, 2)), axis=1)
    expected = plain_soft_nms(scores.tolist(), segments.tolist(), 300, sigma=0.5, num_candidates=256)
    kept_scores, kept_segments = soft_nms(scores, segments, 300)
    assert len(kept_scores) == 256
    np.testing.assert_allclose(kept_scores, expected[0], rtol=1e-12)
    np.testing.assert_array_equal(kept_segments, expected[1])


def test_soft_nms_worked_out_by_hand():
    """The second best overlaps the best with an IoU of 0.8, so the third best comes before it."""
    scores, segments = soft_nms([0.9, 0.8, 0.5], [[0, 10], [0, 8], [20, 30]], top_k=3)
    assert segments.tolist() == [[0, 10], [20, 30], [0, 8]]
    assert scores == pytest.approx([0.9, 0.5, 0.8 * math.exp(-0.64 / 0.5)])


def test_soft_nms_takes_the_first_of_equals():
    apart = [[10 * i, 10 * i + 5] for i in (3, 0, 4, 1, 2)]
    assert soft_nms([0.5] * 5, apart, top_k=5)[1].tolist() == apart
    # Among many, where an unstable sort would show, and as to who takes part at all.
    many = [[10 * i, 10 * i + 5] for i in range(100)]
    assert soft_nms([0.5] * 50 + [0.7] * 50, many, top_k=80, num_candidates=80)[1].tolist() == many[50:] + many[:30]


def test_soft_nms_of_few_and_no_segments():
    scores, segments = soft_nms([0.2, 0.4], [[0, 1], [2, 3]], top_k=5)
    assert (scores.tolist(), segments.tolist()) == ([0.4, 0.2], [[2, 3], [0, 1]])
    scores, segments = soft_nms(np.zeros(0), np.zeros((0, 2)), top_k=5)
    assert (scores.shape, segments.shape) == ((0,), (0, 2))


def test_soft_nms_leaves_its_inputs_alone():
    scores, segments = np.array([0.9, 0.8]), np.array([[0.0, 2.0], [0.0, 2.0]])
    soft_nms(scores, segments, top_k=2)
    assert (scores.tolist(), segments.tolist()) == ([0.9, 0.8], [[0, 2], [0, 2]])


def test_recall_worked_out_by_hand():
    ious = np.array(
        [
            [0.50, 0.10, 0.90],  # exactly at 0.5
            [0.20, 0.70, 0.10],  # exactly at 0.7, and by the second only
            [0.10, 0.20, 0.30],  # exactly at 0.3, and by the third only
            [0.71, np.nan, np.nan],  # one segment
            [np.nan, np.nan, np.nan],  # none: missed
        ]
    )
    assert recall_at(ious, top_ns=(1, 2, 3)) == pytest.approx(
        {
            **{"R1@0.3": 40.0, "R1@0.5": 40.0, "R1@0.7": 20.0},
            **{"R2@0.3": 60.0, "R2@0.5": 60.0, "R2@0.7": 40.0},
            **{"R3@0.3": 80.0, "R3@0.5": 60.0, "R3@0.7": 60.0},
            "mIoU": 100 * (0.50 + 0.20 + 0.10 + 0.71) / 5,
        }
    )


def test_recall_defaults_and_fewer_segments_than_asked_for():
    results = recall_at(np.array([[0.4, 0.6]]))
    names = ["R1@0.3", "R1@0.5", "R1@0.7", "R5@0.3", "R5@0.5", "R5@0.7", "mIoU"]
    assert list(results) == names
    assert results == pytest.approx(dict(zip(names, [100, 0, 0, 100, 100, 0, 40], strict=True)))
    assert all(type(value) is float for value in results.values())


def test_recall_leaves_its_input_alone():
    ious = np.array([[0.5, np.nan]])
    recall_at(ious)
    assert np.isnan(ious[0, 1])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (4,), (2, 3, 4), ()])
def test_recall_of_no_sentences_or_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="Received IoUs of shape"):
        recall_at(np.zeros(shape))
