"""`pipeline("temporal-grounding")`: a video and a sentence in, segments in seconds out."""

from os import PathLike
from typing import Any

from transformers import Pipeline


class TemporalGroundingPipeline(Pipeline):
    """
    Finds the moments of a video that a sentence describes.

    Example:

    ```python
    >>> import modeling_scada  # registers the task
    >>> from transformers import pipeline

    >>> pipe = pipeline("temporal-grounding", model="path/to/model")  # doctest: +SKIP
    >>> pipe("video.mp4", "a person opens the fridge", top_k=1)  # doctest: +SKIP
    [{'score': 0.83, 'start': 12.4, 'end': 15.1}]

    ```"""

    _load_processor = True  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    processor: Any  # a `ScadaProcessor`; `None` is allowed in the base class

    def __call__(  # type: ignore[override]
        self, video: Any, sentence: str | list[str] | None = None, **kwargs
    ) -> Any:
        """
        Args:
            video (`str`, `os.PathLike`, `bytes`, `np.ndarray` or `torch.Tensor`):
                A path, an http(s) URL, a file's content, or frames with `video_metadata`.
            sentence (`str` or `list[str]`):
                What to look for.
            top_k (`int`, *optional*, defaults to 5):
                At most so many segments a sentence.
            threshold (`float`, *optional*, defaults to 0.0):
                Drops segments whose score is lower; the best one always comes back.
            num_frames (`int`, *optional*):
                Frames to sample, instead of the processor's number.
            video_metadata (`dict`, *optional*):
                `{"fps": ...}` or `{"duration": seconds}` of a video given as frames.

        Returns:
            `list[dict]`: `{"score", "start", "end"}`, best first, in seconds from the first frame; for a list of
            sentences one such list per sentence.

        Raises:
            ValueError: If there is no sentence, or an empty one, or more than one video.
            FileNotFoundError, VideoReadError: If the video cannot be read.
        """
        return super().__call__({"video": video, "sentence": sentence}, **kwargs)

    def _sanitize_parameters(  # type: ignore[override]
        self, top_k=None, threshold=None, num_frames=None, video_metadata=None
    ) -> tuple[dict, dict, dict]:
        preprocess = {"num_frames": num_frames, "video_metadata": video_metadata}
        postprocess = {"top_k": top_k, "threshold": threshold}
        return (
            {name: value for name, value in preprocess.items() if value is not None},
            {},
            {name: value for name, value in postprocess.items() if value is not None},
        )

    def preprocess(self, inputs: dict[str, Any], **kwargs) -> dict[str, Any]:  # type: ignore[override]
        if isinstance(inputs["video"], (list, tuple)):
            raise ValueError(f"Received a list of {len(inputs['video'])} videos; call the pipeline once per video.")
        batch = self.processor(videos=inputs["video"], text=inputs["sentence"], return_timelines=True, **kwargs)
        return {**batch, "single": isinstance(inputs["sentence"], str)}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        timelines, single = model_inputs.pop("timelines"), model_inputs.pop("single")
        outputs = self.model(**model_inputs)
        return {
            "logits": outputs.logits,
            "pred_segments": outputs.pred_segments,
            "timelines": timelines,
            "single": single,
        }

    def postprocess(self, model_outputs: dict[str, Any], **kwargs) -> list:
        (sentences,) = self.processor.post_process_temporal_grounding(
            model_outputs, timelines=model_outputs["timelines"], **kwargs
        )
        results = [
            [
                {"score": float(score), "start": float(start), "end": float(end)}
                for score, (start, end) in zip(result["scores"], result["segments"], strict=True)
            ]
            for result in sentences
        ]
        return results[0] if model_outputs["single"] else results

    def save_pretrained(self, save_directory: str | PathLike, **kwargs) -> None:
        """
        Saves the model and the processor.

        The base class saves no processor, and writes `custom_pipelines` into the configuration, which would demand
        `trust_remote_code` from users who have this package installed.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


__all__ = ["TemporalGroundingPipeline"]
