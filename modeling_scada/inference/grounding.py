"""Finding the segments of a video that sentences describe, with a saved model."""

from typing import Any

import torch
from transformers import pipeline

from modeling_scada import AutoModelForTemporalGrounding, ScadaProcessor
from processing.pipeline_temporal_grounding import TemporalGroundingPipeline, as_sentences

from .loading import loading_model


def load_pipeline(
    model: str, device: str | int | None = None, dtype: str | torch.dtype = "auto"
) -> TemporalGroundingPipeline:
    """
    Args:
        model (`str`): A model, or an adapter: Hub id or folder.
        device (`str` or `int`, *optional*): As `transformers.pipeline` takes it.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): Of the weights; by default as saved.

    Raises:
        RuntimeError: If the model cannot be loaded. The message is one line.
    """
    with loading_model(model):
        # Not by `pipeline`, which tries twice and puts both tracebacks into the message.
        loaded = AutoModelForTemporalGrounding.from_pretrained(model, dtype=dtype)
        processor = ScadaProcessor.from_pretrained(model)
    return pipeline("temporal-grounding", model=loaded, processor=processor, device=device)  # type: ignore[call-overload]


def check_device(device: str | None) -> None:
    """
    Args:
        device (`str`, *optional*): A device of torch, such as `"cpu"` or `"cuda:1"`.

    Raises:
        ValueError: If this machine does not have it.
    """
    if device is None:
        return
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        reason = str(error).splitlines()[0]
        raise ValueError(f"Received the device {device}, which this machine does not have ({reason}).") from error


def find_segments(
    pipe: TemporalGroundingPipeline,
    video: Any,
    sentences: str | list[str],
    top_k: int,
    nms: float | None = 0.5,
) -> list[dict[str, Any]]:
    """
    Args:
        pipe ([`TemporalGroundingPipeline`]): The model.
        video (`str` or [`EncodedVideo`]): The video file, or what `pipe.encode` gave.
        sentences (`str` or `list[str]`): What to look for, a sentence or several.
        top_k (`int`): At most so many segments a sentence.
        nms (`float`, *optional*, defaults to 0.5):
            Width of the decay of soft non-maximum suppression; `None` ranks by score alone.

    Returns:
        `list[dict]`: For each sentence itself and its `segments`, `{"score", "start", "end"}`, best first. Times in
        seconds from the first frame. With `found` if the processor has a threshold for it.

    Raises:
        OSError, ValueError, VideoReadError: As from the pipeline.
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
