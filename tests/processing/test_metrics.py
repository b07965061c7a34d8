"""
Temporal IoU, soft non-maximum suppression, recall and average precision, against plain Python, numbers worked out by
hand, and the numbers that QVHighlights' authors published for predictions of theirs.
"""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from processing.metrics import (
    AP_IOU_THRESHOLDS,
    average_precision,
    best_rejection_threshold,
    multi_segment_metrics,
    recall_at,
    rejection_auroc,
    rejection_f1,
    rejection_metrics,
    temporal_grounding_metrics,
    write_qvhighlights_submission,
)
from processing.post_processing import soft_nms, temporal_iou


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


def test_recall_strict_is_not_reached_by_equality():
    ious = np.array([[0.5, 0.7], [np.nextafter(0.5, 1), 0.1]])
    assert recall_at(ious, thresholds=(0.5, 0.7))["R1@0.5"] == 100
    results = recall_at(ious, top_ns=(1, 2), thresholds=(0.5, 0.7), strict=True)
    assert results == pytest.approx({"R1@0.5": 50, "R1@0.7": 0, "R2@0.5": 100, "R2@0.7": 0, "mIoU": 50})


# What follows is over sentences: the predictions and targets of each.

NAMES = ["R1@0.3", "R1@0.5", "R1@0.7", "R5@0.3", "R5@0.5", "R5@0.7", "mIoU", "mAP"]


def exact_iou(first, second):
    """As a fraction: a threshold is reached exactly or not at all."""
    first, second = [Fraction(t) for t in first], [Fraction(t) for t in second]
    intersection = max(Fraction(0), min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - intersection
    return intersection / union if union > 0 else Fraction(0)


def plain_average_precision(predictions, targets, percent, strict):
    """Mean over the recalls 1/n, 2/n, ..., 1 of the best precision that is had with at least that recall."""
    threshold = Fraction(percent, 100)
    free, points = list(targets), []
    for segment_and_score in sorted(predictions[:10], key=lambda prediction: -prediction[2]):
        ious = [exact_iou(segment_and_score[:2], target) for target in free]
        reached = [i for i, iou in enumerate(ious) if iou > threshold or (iou == threshold and not strict)]
        if reached:
            free.pop(max(reached, key=lambda i: ious[i]))
        found = len(targets) - len(free)
        points.append((found, Fraction(found, len(points) + 1)))
    best = [
        max([precision for found, precision in points if found >= n], default=0) for n in range(1, len(targets) + 1)
    ]
    return Fraction(sum(best), len(targets))


def plain_metrics(predictions, references, strict):
    """Of sentences given as lists of Python numbers, in fractions until the end."""
    results = dict.fromkeys(NAMES, Fraction(0))
    for of_sentence, targets in zip(predictions, references, strict=True):
        ious = [max(exact_iou(prediction[:2], target) for target in targets) for prediction in of_sentence]
        for n in (1, 5):
            for percent in (30, 50, 70):
                threshold = Fraction(percent, 100)
                hit = any(iou > threshold or (iou == threshold and not strict) for iou in ious[:n])
                results[f"R{n}@{percent / 100}"] += hit
        results["mIoU"] += ious[0] if ious else 0
        results["mAP"] += sum(plain_average_precision(of_sentence, targets, p, strict) for p in range(50, 100, 5)) / 10
    return {name: float(100 * total / len(references)) for name, total in results.items()}


# On a grid of quarters, so that thresholds are often met exactly, segments coincide or have no length, and scores tie.
grid_segment = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: [t / 4 for t in sorted(pair)])
prediction = st.tuples(grid_segment, st.sampled_from([0.1, 0.5, 0.9])).map(lambda pair: [*pair[0], pair[1]])
sentence = st.tuples(st.lists(prediction, max_size=12), st.lists(grid_segment, min_size=1, max_size=5))
sentences = st.lists(sentence, min_size=1, max_size=6).map(
    lambda rows: [list(column) for column in zip(*rows, strict=True)]
)


@settings(deadline=None, max_examples=300)
@given(sentences, st.booleans())
def test_metrics_are_those_of_plain_loops(rows, strict):
    results = temporal_grounding_metrics(*rows, strict=strict)
    assert list(results) == NAMES
    assert all(type(value) is float for value in results.values())
    assert results == pytest.approx(plain_metrics(*rows, strict=strict), rel=1e-12, abs=1e-12)


def plain_num_found(predictions, targets, percent, strict):
    """Of targets: each prediction in turn takes the free one that it overlaps best, if it reaches it."""
    free = list(targets)
    for prediction in predictions:
        ious = [exact_iou(prediction[:2], target) for target in free]
        best = max(ious, default=-1)
        if best > Fraction(percent, 100) or (best == Fraction(percent, 100) and not strict):
            free.pop(ious.index(best))
    return len(targets) - len(free)


def plain_multi_segment_metrics(predictions, references, strict):
    """By groups of as many targets, as the paper has it, in fractions until the end."""
    groups, results = {}, {}
    rows = list(zip(predictions, references, strict=True))
    for of_sentence, targets in rows:
        precisions = [plain_average_precision(of_sentence, targets, p, strict) for p in range(50, 100, 5)]
        groups.setdefault(len(targets), []).append(Fraction(sum(precisions), 10))
    means = {count: Fraction(sum(group), len(group)) for count, group in groups.items()}
    results["G-mAP"] = sum(Fraction(len(groups[count]), len(rows)) * mean for count, mean in means.items())
    results |= {f"mAP@{count}tgt": means[count] for count in (1, 2) if count in means}
    many = [mean for count, mean in means.items() if count > 2]
    if many:
        results["mAP@3+tgt"] = Fraction(sum(many), len(many))
    for k in (1, 2, 3):
        of_many = [(of_sentence[:k], targets) for of_sentence, targets in rows if len(targets) >= k]
        recalls = [
            Fraction(sum(plain_num_found(*row, percent, strict) for row in of_many), k * len(of_many))
            for percent in range(30, 100, 5)
            if of_many
        ]
        if recalls:
            results[f"mR@{k}"] = Fraction(sum(recalls), 14)
    return {name: float(100 * value) for name, value in results.items()}


@settings(deadline=None, max_examples=300)
@given(sentences, st.booleans())
def test_multi_segment_metrics_are_those_of_plain_loops(rows, strict):
    results = multi_segment_metrics(*rows, strict=strict)
    expected = plain_multi_segment_metrics(*rows, strict=strict)
    assert list(results) == list(expected) and all(type(value) is float for value in results.values())
    assert results == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert results["G-mAP"] == pytest.approx(temporal_grounding_metrics(*rows, strict=strict)["mAP"])


def test_multi_segment_metrics_worked_out_by_hand():
    """
    First sentence: the first prediction is exact, the second hits the same target again, the third has an IoU of 0.5
    with the second target (5 of 14 thresholds, 0.3 to 0.5, and 1 of mAP's 10, at rank 3). Second sentence: exact.
    """
    predictions = [[[0, 10, 0.9], [0, 10, 0.8], [20, 25, 0.7]], [[3, 4, 0.9]]]
    references = [[[0, 10], [20, 30]], [[3, 4]]]
    results = multi_segment_metrics(predictions, references)
    # At 0.5: precision 1 at recall 1/2, 2/3 at 1. Above: 1 at 1/2 alone.
    two = (1 * (1 + 2 / 3) / 2 + 9 * 1 / 2) / 10
    assert results == pytest.approx(
        {
            "G-mAP": 100 * (two + 1) / 2,
            "mAP@1tgt": 100,
            "mAP@2tgt": 100 * two,
            "mR@1": 100,
            "mR@2": 50,
        }
    )


def test_multi_segment_metrics_refuse_what_the_others_do():
    with pytest.raises(ValueError, match="predictions for 1 sentences but references for 0"):
        multi_segment_metrics([[]], [])


@settings(deadline=None)
@given(sentences, st.randoms(use_true_random=False))
def test_order_of_sentences_does_not_matter(rows, random):
    shuffled = list(zip(*rows, strict=True))
    random.shuffle(shuffled)
    assert temporal_grounding_metrics(*zip(*shuffled, strict=True)) == pytest.approx(temporal_grounding_metrics(*rows))


@settings(deadline=None)
@given(sentences)
def test_strict_counts_no_more(rows):
    loose, strict = temporal_grounding_metrics(*rows), temporal_grounding_metrics(*rows, strict=True)
    assert all(strict[name] <= loose[name] for name in NAMES)


@settings(deadline=None)
@given(sentences)
def test_a_wrong_prediction_never_helps(rows):
    predictions, references = rows
    before = temporal_grounding_metrics(predictions, references)
    worse = [[*of_sentence, [1000, 1001, -1]] for of_sentence in predictions]
    assert temporal_grounding_metrics(worse, references) == before
    better = [[[1000, 1001, 2], *of_sentence] for of_sentence in predictions]
    after = temporal_grounding_metrics(better, references)
    assert all(after[name] <= before[name] for name in NAMES)
    assert after["mIoU"] == after["R1@0.3"] == 0


def test_metrics_worked_out_by_hand():
    predictions = [
        # IoU 0.6 and 0.8: the first is right at 0.5, 0.55 and 0.6, the second (rank 2, so 1/2) from 0.65 to 0.8.
        [[0, 6, 0.9], [2, 10, 0.4]],
        # Two targets, each found exactly, at ranks 1 and 3: 1/2 * 1 + 1/2 * 2/3.
        [[0, 2, 0.9], [0, 2, 0.8], [4, 8, 0.7]],
        # Nothing.
        [],
    ]
    references = [[[0, 10]], [[0, 2], [4, 8]], [[3, 5]]]
    average_precisions = [(3 * 1 + 4 * 1 / 2) / 10, 1 / 2 + 1 / 3, 0]
    assert temporal_grounding_metrics(predictions, references) == pytest.approx(
        {
            **{"R1@0.3": 200 / 3, "R1@0.5": 200 / 3, "R1@0.7": 100 / 3},
            **{"R5@0.3": 200 / 3, "R5@0.5": 200 / 3, "R5@0.7": 200 / 3},
            "mIoU": 100 * (0.6 + 1 + 0) / 3,
            "mAP": 100 * sum(average_precisions) / 3,
        }
    )


def test_thresholds_are_decimals():
    assert AP_IOU_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@pytest.mark.parametrize("percent", range(50, 100, 5))
def test_an_iou_of_exactly_the_threshold_counts_unless_strict(percent):
    """A prediction of `percent` hundredths of its target is right up to that threshold, itself included."""
    predictions, references = [[[0, percent, 1.0]]], [[[0, 100]]]
    num_below = (percent - 50) // 5
    assert temporal_grounding_metrics(predictions, references)["mAP"] == pytest.approx(10 * (num_below + 1))
    assert temporal_grounding_metrics(predictions, references, strict=True)["mAP"] == pytest.approx(10 * num_below)


def test_rank_decides_about_recall_and_score_about_average_precision():
    predictions, references = [[[0, 1, 0.1], [0, 10, 0.9]]], [[[0, 10]]]
    results = temporal_grounding_metrics(predictions, references)
    assert (results["R1@0.3"], results["R5@0.7"], results["mIoU"], results["mAP"]) == pytest.approx((0, 100, 10, 100))


def test_of_equal_scores_the_better_rank_comes_first():
    # Enough of them for an unstable sort to mix them up.
    wrong = [[20 + i, 21 + i, 0.5] for i in range(9)]
    first = temporal_grounding_metrics([[[0, 10, 0.5], *wrong]], [[[0, 10]]])
    last = temporal_grounding_metrics([[*wrong, [0, 10, 0.5]]], [[[0, 10]]])
    assert (first["mAP"], last["mAP"]) == pytest.approx((100, 10))


def test_only_ten_predictions_count():
    wrong = [[20 + i, 21 + i, 0.1] for i in range(10)]
    assert temporal_grounding_metrics([[*wrong[:9], [0, 10, 0.9]]], [[[0, 10]]])["mAP"] == pytest.approx(100)
    assert temporal_grounding_metrics([[*wrong, [0, 10, 0.9]]], [[[0, 10]]])["mAP"] == 0


def test_each_target_is_matched_once_and_best_overlap_first():
    # The first prediction reaches both targets and takes the second, with which its IoU is higher (7/14 and 10/11), so
    # that the second prediction, which reaches the first target alone (9/10 and 5/14), is right too.
    ious = temporal_iou([[3, 14], [0, 9]], [[0, 10], [4, 14]])[None]
    assert average_precision(ious, np.array([2]), 0.5) == pytest.approx([1])
    # The same again and again: at 0.5 the second one finds the other target (6/10), at 0.7 nothing.
    ious = temporal_iou([[2, 10], [2, 10], [2, 10]], [[0, 8], [2, 10]])[None]
    assert average_precision(ious, np.array([2]), 0.5) == pytest.approx([1])
    assert average_precision(ious, np.array([2]), 0.7) == pytest.approx([0.5])


@pytest.mark.filterwarnings("error")
def test_metrics_of_segments_without_length():
    results = temporal_grounding_metrics([[[2, 2, 0.9]], [[3, 3, 0.9], [0, 4, 0.8]]], [[[2, 2]], [[0, 4], [1, 1]]])
    expected = {"R1@0.3": 0, "R5@0.7": 50, "mIoU": 0, "mAP": 100 * (0 + 1 / 2 * 1 / 2) / 2}
    assert {name: results[name] for name in expected} == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_metrics_of_no_predictions_and_of_reversed_ones():
    assert temporal_grounding_metrics([[], []], [[[0, 4]], [[1, 2], [3, 4]]]) == dict.fromkeys(NAMES, 0.0)
    assert temporal_grounding_metrics([[[4, 0, 1.0]]], [[[0, 4]]]) == dict.fromkeys(NAMES, 0.0)


def test_metrics_compute_in_float64():
    """The times are exact in float32, but a third is not: in float32 it would be off by 3e-8."""
    predictions = [np.array([[1_000_000.0, 1_000_000.125, 0.9]], dtype=np.float32), np.zeros((0, 3), dtype=np.float32)]
    references = [np.array([[1_000_000.0625, 1_000_000.1875]], dtype=np.float32)] * 2
    results = temporal_grounding_metrics(predictions, references)
    assert results["mIoU"] == pytest.approx(100 / 6, rel=1e-12)
    assert all(type(value) is float for value in results.values())


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no sentence"),
        ([[]], [], "predictions for 1 sentences but references for 0"),
        ([[[0, 1]]], [[[0, 1]]], "for sentence 0; expected predictions"),
        ([[], [0, 1, 0.5]], [[[0, 1]]] * 2, "for sentence 1; expected predictions"),
        ([[[0, 1, 0.5], [0, 1]]], [[[0, 1]]], "for sentence 0; expected predictions"),
        ([None], [[[0, 1]]], "Received None for sentence 0"),
        ([[[0, 1, "high"]]], [[[0, 1]]], "for sentence 0; expected predictions"),
        ([[[0, 1, math.nan]]], [[[0, 1]]], "finite"),
        ([[[0, math.inf, 0.5]]], [[[0, 1]]], "finite"),
        ([[[0, 1, None]]], [[[0, 1]]], "finite"),
        ([[]], [[[0, math.nan]]], "expected targets .* finite"),
        ([[]], [[0, 1]], "for sentence 0; expected targets"),
        ([[]], [[[0, 1, 0.5]]], "for sentence 0; expected targets"),
        ([[], []], [[[0, 1]], []], "no target for sentence 1"),
        ([[], []], [[[0, 1]], [[0, 1], [3, 2]]], "for sentence 1, one of which ends before it starts"),
    ],
)
def test_bad_predictions_and_references_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        temporal_grounding_metrics(predictions, references)


@pytest.fixture(scope="module")
def published(fixtures_dir):
    """Predictions, annotations and the metrics that their authors' evaluation gives for them."""
    folder = fixtures_dir / "metrics"
    predictions, annotations = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("sample_val_preds.jsonl", "highlight_val_release.jsonl")
    )
    assert [row["qid"] for row in predictions] == [row["qid"] for row in annotations]
    metrics = json.loads((folder / "sample_val_preds_metrics_raw.json").read_text())
    windows = [row["pred_relevant_windows"] for row in predictions]
    return windows, [row["relevant_windows"] for row in annotations], metrics


@pytest.mark.parametrize(
    ("name", "shortest", "longest"), [("full", 0, 150), ("long", 30, 150), ("middle", 10, 30), ("short", 0, 10)]
)
def test_published_metrics_come_out(published, name, shortest, longest):
    """Over all targets and over those of some length: a sentence with none of these is left out."""
    targets = [[t for t in of_sentence if shortest < t[1] - t[0] <= longest] for of_sentence in published[1]]
    predictions, references = zip(*[row for row in zip(published[0], targets, strict=True) if row[1]], strict=True)
    results = temporal_grounding_metrics(predictions, references)
    expected = published[2][name]
    assert round(results["mAP"], 2) == expected["MR-mAP"]["average"]
    assert round(results["R1@0.5"], 2) == expected["MR-R1"]["0.5"]
    assert round(results["R1@0.7"], 2) == expected["MR-R1"]["0.7"]
    if name == "full":
        assert [round(results[key], 2) for key in ("mAP", "R1@0.5", "R1@0.7")] == [32.20, 53.94, 34.84]


def test_published_average_precision_comes_out_at_each_threshold(published):
    predictions, references, metrics = published
    num_targets = np.array([len(of_sentence) for of_sentence in references])
    ious = np.zeros((len(predictions), 10, num_targets.max()))
    for of_sentence, segments, targets in zip(ious, predictions, references, strict=True):
        of_sentence[:, : len(targets)] = temporal_iou(np.array(segments)[:, :2], np.array(targets))
    for threshold in AP_IOU_THRESHOLDS:
        result = 100 * average_precision(ious, num_targets, threshold).mean()
        assert round(result, 2) == metrics["full"]["MR-mAP"][str(threshold)]


def test_submission_is_written_as_qvhighlights_has_it(fixtures_dir, tmp_path):
    sample = (fixtures_dir / "metrics" / "sample_val_preds.jsonl").read_text()
    write_qvhighlights_submission(tmp_path / "preds.jsonl", [json.loads(line) for line in sample.splitlines()])
    assert (tmp_path / "preds.jsonl").read_text() == sample.rstrip() + "\n"


def test_submission_takes_arrays_and_any_text(tmp_path):
    rows = [
        {
            "qid": 7,
            "query": 'a "quoted"\nline, ü',
            "vid": "v_1",
            "pred_relevant_windows": np.float32([[0, 1.5, 0.25]]),
        },
        {"qid": 8, "query": "nothing", "vid": "v_1", "pred_relevant_windows": []},
    ]
    write_qvhighlights_submission(str(tmp_path / "preds.jsonl"), iter(rows))
    lines = (tmp_path / "preds.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"qid": 7, "query": 'a "quoted"\nline, ü', "vid": "v_1", "pred_relevant_windows": [[0.0, 1.5, 0.25]]},
        {"qid": 8, "query": "nothing", "vid": "v_1", "pred_relevant_windows": []},
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_relevant_windows": [[0, 1]]}, "for sentence 1; expected predictions"),
        ({"pred_relevant_windows": [[0, math.nan, 1]]}, "finite"),
        ({"vid": None}, r"Row 1 lacks \['vid'\]"),
    ],
)
def test_bad_submission_is_refused_and_nothing_written(tmp_path, change, message):
    row = {"qid": 7, "query": "a", "vid": "v_1", "pred_relevant_windows": [[0, 1, 0.5]]}
    bad = {key: value for key, value in {**row, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        write_qvhighlights_submission(tmp_path / "preds.jsonl", [row, bad])
    assert not (tmp_path / "preds.jsonl").exists()


def test_rejection_is_that_of_plain_loops():
    """Scores on a coarse grid, so that many are equal."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, is_present = rng.integers(0, 8, 30) / 8, rng.random(30) < 0.5
        pairs = [(a > b) + (a == b) / 2 for a in scores[is_present] for b in scores[~is_present]]
        assert rejection_auroc(scores, is_present) == pytest.approx(100 * sum(pairs) / len(pairs))
        best = 0.0
        for threshold in [*(np.arange(-1, 10) / 8 + 0.01)]:
            right = sum(bool(score < threshold and not there) for score, there in zip(scores, is_present, strict=True))
            rejected = sum(bool(score < threshold) for score in scores)
            precision, recall = right / max(rejected, 1), right / sum(~is_present)
            expected = 100 * 2 * precision * recall / max(precision + recall, 1e-9)
            assert rejection_f1(scores, is_present, threshold) == pytest.approx(expected)
            best = max(best, expected)
        assert rejection_f1(scores, is_present, best_rejection_threshold(scores, is_present)) == pytest.approx(best)


def test_rejection_at_its_ends():
    assert rejection_auroc(np.array([0.9, 0.1]), np.array([True, False])) == 100
    assert rejection_auroc(np.array([0.1, 0.9]), np.array([True, False])) == 0
    assert math.isnan(rejection_auroc(np.array([0.1, 0.9]), np.array([True, True])))
    assert best_rejection_threshold(np.array([0.2, 0.2]), np.array([False, False])) > 0.2
    # Rejecting all, with an F1 of 80, is best; the highest score is exactly 1.
    scores, is_present = np.array([1.0, 1.0, 0.5]), np.array([True, False, False])
    assert rejection_f1(scores, is_present, best_rejection_threshold(scores, is_present)) == pytest.approx(80)
    assert rejection_metrics(scores, np.zeros(3, bool)).keys() == {"RejF1", "found_threshold"}
