"""`pipeline("temporal-grounding")`: find segments, in seconds, from a video and a sentence."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from torch.utils.data import DataLoader
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .encoded_video import EncodedVideo
from .fingerprint import check_fingerprint, hash_weights, weights_signature
from .post_processing import check_ranking
from .reading_ahead import read_ahead
from .video_io import VideoReadError, is_file_object
from .video_processing_scada import check_num_frames
from .video_url import redact_url


ADAPTER_CONFIG = "adapter_config.json"
# Errors of one video or its sentences, which do not affect other videos.
INPUT_ERRORS = (OSError, VideoReadError, ValueError)


class TemporalGroundingPipeline(Pipeline):
    """
    Pipeline that finds the segments of a video that a sentence describes.

    The pipeline reads a video longer than the processor's `window_seconds` in windows that overlap by half. It
    reads the next window while the model processes the current one, and ranks the segments of all windows together.
    To query a video repeatedly, encode it once with `pipe.encode(video)`.

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
    processor: Any  # a `ScadaProcessor`; the base class allows `None`
    # Signature and hash of the weights. One assignment replaces both, so that threads always see a matching pair.
    _hashed: tuple[str, str] | None = None

    def __call__(  # type: ignore[override]
        self, video: Any, sentence: str | list | None = None, **kwargs
    ) -> Any:
        """
        Find the segments that sentences describe. The call switches the model to evaluation mode.

        Args:
            video (`str`, `PathLike`, `bytes`, `BinaryIO`, `ndarray`, `Tensor`, [`EncodedVideo`], `dict`, or several):
                Path, http(s) URL, file content, file opened for reading bytes, frames with `video_metadata`, or result
                of `encode`. Alternatively, a dict with `"video"` and `"sentence"` (and `"video_metadata"`). For
                several videos, pass a list, a column (of NumPy, pandas or polars), a generator or a data set.
            sentence (`str`, `list` or column, *optional*):
                Sentence or list of sentences to find. For a list of videos, pass one such entry per video, or one
                sentence for all videos. Not allowed with dicts.
            top_k (`int`, *optional*, defaults to 5):
                Maximum number of segments per sentence.
            threshold (`float`, *optional*, defaults to 0.0):
                Minimum score of a segment. The best segment is always returned.
            nms (`float`, *optional*, defaults to 0.5):
                Width of the decay of soft non-maximum suppression; `None` ranks by score alone.
            num_frames (`int`, *optional*):
                Number of frames per video or window, instead of the processor's value.
            video_metadata (`dict`, *optional*):
                Metadata of videos passed as frames: `{"fps": ...}` or `{"duration": seconds}`.
            batch_size (`int`, *optional*, defaults to 1):
                Number of videos per batch, for several videos.
            num_workers (`int`, *optional*, defaults to 0):
                Number of processes that read videos, for several videos.
            on_error (`str`, *optional*, defaults to `"raise"`):
                Action for an unreadable video or invalid sentences. `"raise"` raises the error and stops the run.
                `"return"` returns a dict instead of the results, with `"video"` (name of the video), `"error"` (name
                of the error) and `"reason"` (message).

        Returns:
            `list[dict]`: Segments `{"score", "start", "end"}`, best first, in seconds from the first frame. A list of
            sentences returns one such list per sentence, with `"sentence"` in each segment. Several videos return a
            list of these results; a generator or a data set returns an iterator.

        Raises:
            ValueError: If a sentence is missing or empty, the number of entries does not match the videos, a setting
                is invalid, or a video was encoded with another model or other settings.
            OSError, VideoReadError: If a video is unreadable.
        """
        inputs = _as_dicts(video, sentence)
        # The base class reads the first element of a list.
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **kwargs)

    def encode(
        self,
        video: Any,
        num_frames: int | None = None,
        video_metadata: dict | None = None,
        progress: Callable[[float], Any] | None = None,
    ) -> EncodedVideo:
        """
        Read and encode a video once, for repeated queries. `pipe(encoded, "a sentence")` returns the same segments as
        the video. Memory holds at most two windows of a long video: the encoded window and the next one.

        Args:
            video (`str`, `PathLike`, `bytes`, `BinaryIO`, `ndarray` or `Tensor`): Video, as for a call.
            num_frames (`int`, *optional*):
                Number of frames per video or window, instead of the processor's value.
            video_metadata (`dict`, *optional*):
                Metadata of a video passed as frames: `{"fps": ...}` or `{"duration": seconds}`.
            progress (`Callable`, *optional*):
                Function called after each window with the share of encoded windows, from 0 to 1.

        Returns:
            [`EncodedVideo`]: Encoded video, with `save` and `load`. It is valid only for the current weights.

        Raises:
            ValueError: If the first layer of the model depends on the sentence, so that only the pixels are reusable;
                or if a setting is invalid.
            OSError, VideoReadError: If the video is unreadable.
        """
        model: Any = self.model
        fingerprint = self.fingerprint(num_frames)
        timelines, parts = [], []
        count = self.processor.video_processor.num_windows(video, video_metadata) if progress is not None else 0
        with self.device_placement(), self.get_inference_context()():
            windows = self.processor.video_processor.iterate_windows(
                video, video_metadata, num_frames, **self._pixel_settings()
            )
            for window in read_ahead(windows):
                pixels = self._to_device(window["pixel_values_videos"])
                parts.append({name: tensor.cpu() for name, tensor in model.encode_video(pixels).tensors().items()})
                timelines += window["timelines"]
                if progress is not None:
                    progress(len(timelines) / count)
        tensors = {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}
        return EncodedVideo(_video_name(video), tensors, timelines, fingerprint)

    def fingerprint(self, num_frames: int | None = None) -> dict[str, Any]:
        """
        Return the fingerprint of encoded videos: the hash of the model's weights, and the settings of the processor.

        Args:
            num_frames (`int`, *optional*): Number of frames, instead of the processor's value.
        """
        model: Any = self.model
        signature = weights_signature(model)
        hashed = self._hashed
        if hashed is None or hashed[0] != signature:
            self._hashed = hashed = (signature, hash_weights(model))
        processor = self.processor.video_processor
        # If the processor does not normalize, the mean and deviation come from the model.
        mean, std = processor.image_mean, processor.image_std
        if not processor.do_normalize:
            mean, std = model.config.image_mean, model.config.image_deviation
        if num_frames is not None:
            check_num_frames(num_frames)
        return {
            "model": hashed[1],
            "num_frames": int(processor.num_frames if num_frames is None else num_frames),
            "size": [processor.size["height"], processor.size["width"]],
            "window_seconds": processor.window_seconds,
            "image_mean": list(mean or ()),
            "image_std": list(std or ()),
        }

    def _pixel_settings(self) -> dict[str, bool]:
        """Keep pixels as bytes if the model normalizes them in the same way as the processor."""
        model: Any = self.model
        model_normalizes = self.processor.video_processor.is_model_to_normalize(model.config)
        return {"do_normalize": False} if model_normalizes else {}

    def _to_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """Move pixels to the model's device; convert floats to its dtype, and keep bytes unchanged."""
        return pixels.to(self.device, self.model.dtype if pixels.is_floating_point() else None)

    def get_inference_context(self) -> Any:
        # After training, the model is in training mode, where dropout makes results random.
        if self.model.training:
            self.model.eval()
        return super().get_inference_context()

    def _sanitize_parameters(  # type: ignore[override]
        self, top_k=None, threshold=None, num_frames=None, video_metadata=None, on_error=None, **nms
    ) -> tuple[dict, dict, dict]:
        if unknown := sorted(set(nms) - {"nms"}):
            raise TypeError(
                f"Received unknown arguments {unknown}; the pipeline's docstring lists the supported arguments."
            )
        if on_error not in (None, "raise", "return"):
            raise ValueError(f"Received on_error={on_error!r}; expected 'raise' or 'return'.")
        if num_frames is not None:
            check_num_frames(num_frames)
        preprocess = _without_none(num_frames=num_frames, video_metadata=video_metadata, on_error=on_error)
        # `nms=None` is a valid setting, so keep it.
        postprocess = _without_none(top_k=top_k, threshold=threshold) | nms
        check_ranking(**postprocess)
        return preprocess, _without_none(on_error=on_error), postprocess

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        # Same as the base class, which cannot join items with different numbers and lengths of sentences.
        dataset: Any
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)  # each additional worker would restart the iterator
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=_join)
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def preprocess(  # type: ignore[override]
        self,
        inputs: dict[str, Any],
        num_frames: int | None = None,
        video_metadata: dict | None = None,
        on_error: str = "raise",
    ) -> dict[str, Any]:
        try:
            return {"items": [self._prepare(inputs, num_frames, video_metadata)]}
        except INPUT_ERRORS as error:
            if on_error == "raise":
                raise
            return {"items": [{"failure": _describe(inputs["video"], error)}]}

    def _prepare(self, inputs: dict[str, Any], num_frames: int | None, video_metadata: dict | None) -> dict[str, Any]:
        """Return a batch item: the sentences, and the pixels of a video or the window iterator of a long one."""
        video, sentence = inputs["video"], as_list(inputs["sentence"])
        metadata = inputs.get("video_metadata", video_metadata)
        if sentence is None:
            raise ValueError("Received no sentence; pass a sentence, or a list of sentences, with the video.")
        if isinstance(video, (list, tuple)):
            raise ValueError(f"Received a video of type {type(video).__name__}; pass one dict per video.")
        sentences = as_sentences(sentence)
        item = {"sentence": sentence, "sentences": sentences}
        if hasattr(video, "made_with"):  # an `EncodedVideo`; code from the Hub contains a copy of the class
            return item | {"encoded": video, "num_frames": num_frames}
        video_processor = self.processor.video_processor
        with video_processor.downloaded(video) as file:
            if video_processor.num_windows(file, metadata) == 1:
                # Read the video here, possibly in a worker.
                item |= video_processor(
                    videos=file,
                    video_metadata=metadata,
                    num_frames=num_frames,
                    return_timelines=True,
                    **self._pixel_settings(),
                )
            else:
                # `_forward` reads the windows of a longer video one by one, and downloads a URL again.
                # A `partial` instead of a tuple keeps the base class from moving a tensor to the model's device.
                item["windows"] = partial(
                    video_processor.iterate_windows, video, metadata, num_frames, **self._pixel_settings()
                )
        return item

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], on_error: str = "raise"
    ) -> dict[str, Any]:
        items = model_inputs["items"]
        outputs: list[dict[str, Any]] = list(items)  # an unreadable video keeps its failure
        single_window = [index for index, item in enumerate(items) if "timelines" in item]
        if single_window:
            pixels = torch.cat([items[index]["pixel_values_videos"] for index in single_window])
            tokens = self._tokens([items[index]["sentences"] for index in single_window])
            batch_outputs = self._run(tokens, pixel_values_videos=self._to_device(pixels))
            for row, index in enumerate(single_window):
                count = len(items[index]["sentences"])
                outputs[index] = {name: value[row : row + 1, :count] for name, value in batch_outputs.items()}
                outputs[index]["timelines"] = items[index]["timelines"]
        for index, item in enumerate(items):
            if "windows" in item:
                outputs[index] = self._forward_windows(item, on_error)
            if "encoded" in item:
                outputs[index] = self._forward_encoded(item, on_error)
        sentences = [{"sentence": item.get("sentence")} for item in items]
        return {"outputs": [output | sentence for output, sentence in zip(outputs, sentences, strict=True)]}

    def _forward_windows(self, item: dict[str, Any], on_error: str) -> dict[str, Any]:
        """Return the model's outputs for the windows of a long video, or the failure."""
        tokens = self._tokens([item["sentences"]])
        timelines, window_outputs = [], []
        for window in _iterate_windows(item["windows"], on_error):
            if "failure" in window:
                return dict(window)
            pixels = self._to_device(window["pixel_values_videos"])
            window_outputs.append(self._run(tokens, pixel_values_videos=pixels))
            timelines += window["timelines"]
        return _join_windows(window_outputs, timelines)

    def _forward_encoded(self, item: dict[str, Any], on_error: str) -> dict[str, Any]:
        """Return the model's outputs for the windows of an encoded video, or the failure."""
        encoded: EncodedVideo = item["encoded"]
        try:
            num_frames = encoded.made_with.get("num_frames") if item["num_frames"] is None else item["num_frames"]
            check_fingerprint(f"the video {encoded.name}", encoded.made_with, self.fingerprint(num_frames))
        except INPUT_ERRORS as error:
            if on_error == "raise":
                raise
            return {"failure": _describe(encoded, error)}
        window_outputs = [
            self.ground_encoded(
                {name: tensor[row : row + 1] for name, tensor in encoded.tensors.items()}, item["sentences"]
            )
            for row in range(len(encoded.timelines))
        ]
        return _join_windows(window_outputs, encoded.timelines)

    def ground_encoded(self, tensors: dict[str, torch.Tensor], sentences: list[str]) -> dict[str, torch.Tensor]:
        """
        Return the model's outputs for encoded windows, with all sentences applied to each window.

        Args:
            tensors (`dict[str, torch.Tensor]`): Tensors of [`EncodedVideo`]s, with `W` windows.
            sentences (`list[str]`): `M` sentences to find.

        Returns:
            `dict[str, torch.Tensor]`: `logits` `(W, M, P)` and `pred_segments` `(W, M, P, 2)`, on the CPU.
        """
        with self.device_placement(), self.get_inference_context()():
            features = self.to_features(tensors)
            tokens = self._tokens([sentences])
            for name, tensor in tokens.items():
                tokens[name] = tensor.expand(features.num_videos, *tensor.shape[1:])
            return self._run(tokens, video_features=features)

    def to_features(self, tensors: dict[str, torch.Tensor]) -> Any:
        """Convert the tensors of encoded windows to [`ScadaVideoFeatures`], on the model's device."""
        model: Any = self.model
        return model.video_features_class.from_tensors(
            {name: tensor.to(self.device) for name, tensor in tensors.items()}
        )

    def _tokens(self, sentences: list[list[str]]) -> dict[str, torch.Tensor]:
        """Return the tokens of the sentences of `B` videos on the model's device, and the masks on the CPU."""
        tokens = {name: torch.from_numpy(array) for name, array in self.processor.encode_text(sentences).items()}
        return tokens | {"input_ids": tokens["input_ids"].to(self.device)}

    def _run(self, tokens: dict[str, torch.Tensor], **videos: Any) -> dict[str, torch.Tensor]:
        """Run the model on pixels or features of `B` videos and tokens; return the outputs on the CPU."""
        outputs = self.model(**videos, **tokens)
        return {"logits": outputs.logits.float().cpu(), "pred_segments": outputs.pred_segments.float().cpu()}

    def postprocess(self, model_outputs: dict[str, Any], **kwargs) -> list | dict[str, str]:
        outputs = model_outputs["outputs"]
        # The base class splits batches, except batches of one.
        outputs = outputs[0] if isinstance(outputs, list) else outputs
        if "failure" in outputs:
            return outputs["failure"]
        (ranked,) = self.processor.post_process_temporal_grounding(
            outputs, timelines=outputs["timelines"], merge_windows=True, **kwargs
        )
        results = [self.format_segments(result) for result in ranked]
        if isinstance(outputs["sentence"], str):
            return results[0]
        return [
            [segment | {"sentence": sentence} for segment in segments]
            for sentence, segments in zip(outputs["sentence"], results, strict=True)
        ]

    def format_segments(self, result: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Convert the segments of a sentence to the output format of the pipeline.

        Args:
            result (`dict`): `scores` and `segments` of [`~ScadaProcessor.post_process_temporal_grounding`].

        Returns:
            `list[dict]`: `{"score", "start", "end"}`, and `found` if the processor has a `found_threshold`.
        """
        segments: list[dict[str, Any]] = [
            {"score": float(score), "start": float(start), "end": float(end)}
            for score, (start, end) in zip(result["scores"], result["segments"], strict=True)
        ]
        # Older processor code from the Hub lacks the attribute.
        if (found_threshold := getattr(self.processor, "found_threshold", None)) is not None:
            for segment in segments:
                segment["found"] = segment["score"] >= found_threshold
        return segments

    def save_pretrained(self, save_directory: str | PathLike, **kwargs) -> None:
        """
        Save the model and the processor, because the base class does not save the processor. For a model with an
        adapter, save the base model and the adapter to the same folder.
        """
        model: Any = self.model
        has_adapter = bool(getattr(model, "peft_config", None))
        if has_adapter:
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            base.save_base_model(save_directory)
        model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        if has_adapter:
            write_base_model_name(save_directory, str(save_directory))

    def push_to_hub(self, repo_id: str, **kwargs) -> str:  # type: ignore[override]
        """
        Upload the files of `save_pretrained`.

        Args:
            repo_id (`str`): Name of the repository, created if missing.
            **kwargs: Arguments of `HfApi.upload_folder`: `commit_message`, `revision`, `token`.

        Returns:
            `str`: URL of the commit.
        """
        api = HfApi(token=kwargs.pop("token", None))
        repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            (Path(folder) / "README.md").unlink(missing_ok=True)  # written by peft, with paths of this machine
            if (Path(folder) / ADAPTER_CONFIG).exists():
                write_base_model_name(folder, repo_id)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **kwargs))


def write_base_model_name(folder: str | PathLike, name_or_path: str) -> None:
    """Set the base model in the configuration of a saved adapter."""
    path = Path(folder) / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": name_or_path}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _join(batch: list[dict[str, list]]) -> dict[str, list]:
    return {"items": [item for part in batch for item in part["items"]]}


def _without_none(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _iterate_windows(windows: partial, on_error: str) -> Iterator[Mapping[str, Any]]:
    """Yield the windows of a long video. With `on_error="return"`, a read error yields a failure at the end."""
    try:
        yield from read_ahead(windows())
    except INPUT_ERRORS as error:
        if on_error == "raise":
            raise
        yield {"failure": _describe(windows.args[0], error)}


def _join_windows(window_outputs: list[dict[str, torch.Tensor]], timelines: list) -> dict[str, Any]:
    """Join the model's outputs for the windows of a video."""
    joined = {name: torch.cat([outputs[name] for outputs in window_outputs]) for name in window_outputs[0]}
    return joined | {"timelines": timelines}


def _describe(video: Any, error: Exception) -> dict[str, str]:
    """Return the entry of an unreadable video, used instead of its results."""
    return {"video": _video_name(video), "error": type(error).__name__, "reason": str(error)}


def _video_name(video: Any) -> str:
    if isinstance(video, bytes):
        return f"<{len(video)} bytes>"
    if isinstance(video, (str, PathLike)):
        return redact_url(str(video))
    return str(getattr(video, "name", f"<{type(video).__name__}>"))


def as_list(values: Any) -> Any:
    """Convert sentences or video names to a list, from a tuple, an array, or a pandas, polars or `datasets` column."""
    if isinstance(values, np.ndarray):
        return values.tolist() if values.dtype.kind in "OU" else values
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        return list(values)
    return values.to_list() if callable(getattr(values, "to_list", None)) else values


def as_sentences(text: Any, owner: str = "") -> list[str]:
    """
    Convert one or several sentences to a list.

    Args:
        text (`str`, `list[str]` or column): Sentences; a string is one sentence.
        owner (`str`, *optional*): Owner of the sentences, for messages: `" for video 3"`.

    Returns:
        `list[str]`: At least one sentence.

    Raises:
        ValueError: If the list is empty, or a sentence is empty or not a string.
    """
    sentences = as_list(text)
    sentences = [sentences] if isinstance(sentences, str) else sentences
    if not isinstance(sentences, list):
        raise ValueError(
            f"Received sentences of type {type(text).__name__}{owner}; pass a sentence, or a list of sentences."
        )
    if not sentences:
        raise ValueError(f"Received no sentence{owner}; pass at least one sentence.")
    for position, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"Received the sentence {sentence!r}{owner}; expected a text at position {position}.")
    return sentences


def _as_dicts(inputs: Any, sentence: Any) -> Any:
    """Convert the arguments of a call to one or several dicts with `"video"` and `"sentence"`."""
    inputs, sentence = as_list(inputs), as_list(sentence)
    if isinstance(inputs, (dict, str, bytes, PathLike, np.ndarray, torch.Tensor)) or is_file_object(inputs):
        return _as_dict(inputs, sentence)
    if not isinstance(inputs, list):
        # Generators and data sets are read on demand.
        if isinstance(inputs, Sized) and hasattr(inputs, "__getitem__"):
            return PipelineDataset(inputs, _as_dict, {"sentence": sentence})
        if isinstance(inputs, Iterable):
            return (_as_dict(video, sentence) for video in inputs)
        return _as_dict(inputs, sentence)
    if sentence is None or isinstance(sentence, str):
        return [_as_dict(video, sentence) for video in inputs]
    if len(sentence) != len(inputs):
        raise ValueError(
            f"Received {len(inputs)} videos but sentences for {len(sentence)}; pass one sentence, or one list of "
            "sentences, per video."
        )
    return [_as_dict(video, own) for video, own in zip(inputs, sentence, strict=True)]


def _as_dict(video: Any, sentence: Any) -> dict[str, Any]:
    if not isinstance(video, dict):
        return {"video": video, "sentence": sentence}
    if sentence is not None or not {"video", "sentence"} <= video.keys():
        raise ValueError(
            f"Received a dict with {sorted(video)} and {'no' if sentence is None else 'a'} separate sentence; "
            'expected {"video": ..., "sentence": ...} and no other sentence.'
        )
    return video


__all__ = ["TemporalGroundingPipeline"]
