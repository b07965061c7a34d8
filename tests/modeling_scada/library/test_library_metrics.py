"""Recall over a library, on rankings whose answer can be read off."""

import pytest

from modeling_scada.library.metrics import library_metrics


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
    with pytest.raises(ValueError, match="no video contains"):
        library_metrics([ranked("leaves")], [{"video": "a.mp4", "sentences": ["leaves"], "segments": [[]]}])
    with pytest.raises(ValueError, match="'leaves', a sentence that the annotations do not contain"):
        library_metrics([ranked("leaves")], ANNOTATIONS)


def test_a_video_that_does_not_have_the_sentence_counts_for_nothing():
    """`[]` for its segments; where no video has the sentence, the other sentences alone count."""
    annotations = [
        {"video": "a.mp4", "sentences": ["opens", "never"], "segments": [[], []]},
        {"video": "b.mp4", "sentences": ["opens"], "segments": [[0.0, 2.0]]},
    ]
    segments = [{"video": name, "start": 0.0, "end": 2.0} for name in ("a.mp4", "b.mp4")]
    results = [{"sentence": "opens", "segments": segments}, {"sentence": "never", "segments": segments}]
    expected = {"R1@0.5": 0.0, "video_R1": 0.0, "R2@0.5": 100.0, "video_R2": 100.0}
    assert library_metrics(results, annotations, ks=(1, 2)) == expected
