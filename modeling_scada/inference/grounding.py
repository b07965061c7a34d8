"""Find the segments of a video that match sentences, with a saved model."""

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
    Load a model or adapter with its processor into a pipeline.

    Args:
        model (`str`): Hub id or folder of a model or adapter.
        device (`str` or `int`, *optional*): Device, as for `transformers.pipeline`.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): Type of the weights; as saved by default.

    Raises:
        RuntimeError: If loading fails, with a message of one line.
    """
    with loading_model(model):
        # Load the model before `pipeline`, which tries twice and reports both tracebacks.
        loaded = AutoModelForTemporalGrounding.from_pretrained(model, dtype=dtype)
        processor = ScadaProcessor.from_pretrained(model)
    return pipeline("temporal-grounding", model=loaded, processor=processor, device=device)  # type: ignore[call-overload]


def check_device(device: str | None) -> None:
    """
    Check that a device exists.

    Args:
        device (`str`, *optional*): Device of torch, such as `"cpu"` or `"cuda:1"`.

    Raises:
        ValueError: If this machine does not have the device.
    """
    if device is None:
        return
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError if torch was built without the backend
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
