"""Recall over a library, on rankings whose answer can be read off."""

import pytest

from processing.library_metrics import library_metrics


ANNOTATIONS = [
    {"video": "a", "sentences": ["opens", "closes"], "segments": [[[0, 4]], [[6, 10], [12, 14]]]},
    {"video": "b", "sentences": ["opens"], "segments": [[[2, 6]]]},
]


def ranked(sentence: str, *segments: tuple[str, float, float]) -> dict:
    return {
        "sentence": sentence,
        "segments": [{"video": v, "score": 0.5, "start": s, "end": e} for v, s, e in segments],
    }


def test_recall_over_all_videos():
    results = [
        ranked("opens", ("b", 2, 6.5), ("a", 0, 4)),  # the other video that has it is right too
        ranked("opens", ("c", 0, 4), ("b", 5, 9), ("a", 0, 8)),  # of another video; IoU 1/7; exactly 0.5
        ranked("closes", ("b", 6, 10), ("a", 12, 13)),  # not in b; the second segment in a
        ranked("closes"),
    ]
    metrics = library_metrics(results, ANNOTATIONS, ks=(1, 2, 3))
    assert metrics == {
        "R1@0.5": 25.0, "R2@0.5": 50.0, "R3@0.5": 75.0, "video_R1": 25.0, "video_R2": 75.0, "video_R3": 75.0
    }  # fmt: skip
    assert library_metrics(results, ANNOTATIONS, ks=(3,), iou_threshold=0.6) == {"R3@0.6": 25.0, "video_R3": 75.0}


def test_what_cannot_be_evaluated():
    with pytest.raises(ValueError, match="no results of a search"):
        library_metrics([], ANNOTATIONS)
    with pytest.raises(ValueError, match="'leaves', a sentence that the annotations do not have"):
        library_metrics([ranked("leaves")], ANNOTATIONS)
