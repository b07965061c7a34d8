"""Find the segments of a video that match sentences, with a saved model."""

from typing import Any

from processing.pipeline_temporal_grounding import TemporalGroundingPipeline, as_sentences

from .loading import check_device, load_pipeline  # noqa: F401  public here in version 0.1.0


def find_segments(
    pipe: TemporalGroundingPipeline,
    video: Any,
    sentences: str | list[str],
    top_k: int,
    nms: float | None = 0.5,
) -> list[dict[str, Any]]:
    """
    Find the segments of a video for one or more sentences.

    Args:
        pipe ([`TemporalGroundingPipeline`]): Pipeline with the model.
        video (`str` or [`EncodedVideo`]): Video file, or output of `pipe.encode`.
        sentences (`str` or `list[str]`): One or more sentences to find.
        top_k (`int`): Maximum number of segments per sentence.
        nms (`float`, *optional*, defaults to 0.5):
            Decay width of soft non-maximum suppression; `None` ranks by score alone.

    Returns:
        `list[dict]`: The `sentence` and its `segments`, per sentence. Each segment is `{"score", "start", "end"}` in
        seconds from the first frame, best first, with `found` if the processor has a threshold.

    Raises:
        OSError, ValueError, VideoReadError: If the pipeline raises it.
    """
    sentences = as_sentences(sentences)
    found: Any = pipe(video, sentences, top_k=top_k, nms=nms)
    return [
        {
            "sentence": sentence,
            "segments": [
                {name: value for name, value in segment.items() if name != "sentence"} for segment in segments
            ],
        }
        for sentence, segments in zip(sentences, found, strict=True)
    ]
