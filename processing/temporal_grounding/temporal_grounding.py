"""
The metrics of `processing.metrics` as a module of `evaluate`: `evaluate.load("processing/temporal_grounding")`.

`evaluate` copies this file to a separate folder. The absolute import therefore requires the installed package.
"""

import datasets
import evaluate

from processing.metrics import temporal_grounding_metrics


_DESCRIPTION = """
R@n, mIoU and mAP of temporal sentence grounding measure how well ranked segments of a video match the segments that a
sentence describes. `R1@0.5` is the share of sentences whose top-ranked segment has an IoU of at least 0.5 with a
target. mIoU is the mean IoU of the top-ranked segment. mAP follows QVHighlights, over the IoU thresholds 0.5 to 0.95.
The documentation of `processing.metrics.temporal_grounding_metrics` lists differences from other evaluation code.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[list[list[float]]]`): Segments `[[start, end, score], ...]` of each sentence, best first. An
        empty list counts as a miss.
    references (`list[list[list[float]]]`): Targets `[[start, end], ...]` of each sentence, at least one, in the same
        unit.
    strict (`bool`, *optional*, defaults to `False`): Whether to compare IoU and threshold with `>` (as in 2D-TAN)
        instead of `>=`.

Returns:
    `dict[str, float]`: `R1@0.3`, `R1@0.5`, `R1@0.7`, `R5@0.3`, `R5@0.5`, `R5@0.7`, `mIoU` and `mAP`, in percent.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("processing/temporal_grounding")
    >>> results = metric.compute(
    ...     predictions=[[[0.0, 6.0, 0.9], [2.0, 10.0, 0.4]], []],
    ...     references=[[[0.0, 10.0]], [[3.0, 5.0]]],
    ... )
    >>> {name: round(results[name], 2) for name in ("R1@0.5", "R5@0.7", "mIoU", "mAP")}
    {'R1@0.5': 50.0, 'R5@0.7': 50.0, 'mIoU': 30.0, 'mAP': 25.0}
"""

_CITATION = """
@inproceedings{gao2017tall,
    title = {{TALL}: Temporal Activity Localization via Language Query},
    author = {Gao, Jiyang and Sun, Chen and Yang, Zhenheng and Nevatia, Ram},
    booktitle = {ICCV},
    year = {2017}
}
@inproceedings{lei2021detecting,
    title = {Detecting Moments and Highlights in Videos via Natural Language Queries},
    author = {Lei, Jie and Berg, Tamara L. and Bansal, Mohit},
    booktitle = {NeurIPS},
    year = {2021}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class TemporalGrounding(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        # With float32, evaluate would round segments and scores.
        rows = datasets.List(datasets.List(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions: list, references: list, strict: bool = False) -> dict[str, float]:
        return temporal_grounding_metrics(predictions, references, strict=strict)
