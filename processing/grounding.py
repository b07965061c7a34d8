"""Finding the segments of a video that sentences describe, with a saved model."""

from typing import Any

from transformers import pipeline

import modeling_scada  # noqa: F401  registers the task

from .pipeline_temporal_grounding import TemporalGroundingPipeline


def load_pipeline(model: str, **kwargs) -> TemporalGroundingPipeline:
    """
    Args:
        model (`str`): A model, or an adapter: Hub id or folder.
        kwargs: As `transformers.pipeline` takes them.

    Raises:
        RuntimeError: If the model cannot be loaded.
    """
    try:
        return pipeline("temporal-grounding", model=model, **kwargs)  # type: ignore[call-overload]
    except (OSError, ValueError) as error:
        # transformers' message need not name the model.
        raise RuntimeError(f"Could not load the model {model}: {error}") from error


def find_segments(
    pipe: TemporalGroundingPipeline, video: str, sentences: list[str], top_k: int
) -> list[dict[str, Any]]:
    """
    Args:
        pipe ([`TemporalGroundingPipeline`]): The model.
        video (`str`): The video file.
        sentences (`list[str]`): What to look for.
        top_k (`int`): At most so many segments a sentence.

    Returns:
        `list[dict]`: For each sentence itself and its `segments`, `{"score", "start", "end"}`, best first. Times in
        seconds from the first frame. With `found` if the processor has a threshold for it.

    Raises:
        ValueError, VideoReadError: As from the pipeline.
    """
    found: Any = pipe(video, sentences, top_k=top_k)
    return [
        {
            "sentence": sentence,
            "segments": [
                {name: value for name, value in segment.items() if name != "sentence"} for segment in segments
            ],
        }
        for sentence, segments in zip(sentences, found, strict=True)
    ]
