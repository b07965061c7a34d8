"""`pipeline("temporal-grounding")`: a video and a sentence in, segments in seconds out."""

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

from .encoded_video import EncodedVideo, check_fingerprint, hash_weights, weights_signature
from .post_processing import check_ranking
from .reading_ahead import read_ahead
from .video_io import VideoReadError, is_file_object
from .video_processing_scada import check_num_frames
from .video_url import redact_url


ADAPTER_CONFIG = "adapter_config.json"
# What is wrong with one video or its sentences, and says nothing of the next.
INPUT_ERRORS = (OSError, VideoReadError, ValueError)


class TemporalGroundingPipeline(Pipeline):
    """
    Finds the moments of a video that a sentence describes.

    A video longer than the processor's `window_seconds` is read in windows that overlap by half, each while the one
    before goes through the model, and their segments are ranked together. A video that is asked more than once is best
    encoded before, with `encode`.

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
    # The weights' signature and their hash. Replaced as a whole, so that threads never see one without the other.
    _hashed: tuple[str, str] | None = None

    def __call__(  # type: ignore[override]
        self, video: Any, sentence: str | list | None = None, **kwargs
    ) -> Any:
        """
        Args:
            video (`str`, `PathLike`, `bytes`, `BinaryIO`, `ndarray`, `Tensor`, [`EncodedVideo`], `dict`, or several):
                A video: a path, an http(s) URL, a file's content, a file opened for reading bytes, frames with
                `video_metadata`, or what `encode` gave; or a dict with `"video"` and `"sentence"` (and
                `"video_metadata"`). Several come as a list, a column (of NumPy, pandas or polars), a generator or a
                data set.
            sentence (`str`, `list` or column, *optional*):
                What to look for, a sentence or a list of sentences; for a list of videos a list with one such entry
                per video, or one sentence for all of them. Not with dicts.
            top_k (`int`, *optional*, defaults to 5):
                At most so many segments a sentence.
            threshold (`float`, *optional*, defaults to 0.0):
                Drops segments whose score is lower; the best one always comes back.
            nms (`float`, *optional*, defaults to 0.5):
                Width of the decay of soft non-maximum suppression; `None` ranks by score alone.
            num_frames (`int`, *optional*):
                Frames to sample from a video or window, instead of the processor's number.
            video_metadata (`dict`, *optional*):
                `{"fps": ...}` or `{"duration": seconds}` of videos given as frames.
            batch_size (`int`, *optional*, defaults to 1):
                Videos that go through the model together, where there are several.
            num_workers (`int`, *optional*, defaults to 0):
                Processes that read videos, where there are several.
            on_error (`str`, *optional*, defaults to `"raise"`):
                What becomes of a video that cannot be read, or whose sentences are none: `"raise"` its error, which
                ends the run, or `"return"` it in the place of the video's results, as a dict with `"video"` (its
                name), `"error"` (the error's name) and `"reason"` (its message).

        Returns:
            `list[dict]`: `{"score", "start", "end"}`, best first, in seconds from the first frame. For a list of
            sentences one such list per sentence, each segment with its `"sentence"`. For several videos a list of
            these; for a generator or a data set an iterator over them.

        The model is put into evaluation mode.

        Raises:
            ValueError: If there is no sentence, or an empty one, or not one entry per video; if a setting is wrong; or
                if a video was encoded with another model or other settings.
            OSError, VideoReadError: If a video cannot be read.
        """
        inputs = _as_dicts(video, sentence)
        # The base class looks at the first of a list.
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **kwargs)

    def encode(
        self,
        video: Any,
        num_frames: int | None = None,
        video_metadata: dict | None = None,
        progress: Callable[[float], Any] | None = None,
    ) -> EncodedVideo:
        """
        Reads and encodes a video once, to be asked as often as one likes: `pipe(encoded, "a sentence")` gives what the
        video itself gives. Of a long video two windows are in memory at a time: one is read, one is encoded.

        Args:
            video (`str`, `PathLike`, `bytes`, `BinaryIO`, `ndarray` or `Tensor`): As for a call.
            num_frames (`int`, *optional*):
                Frames to sample from the video or each of its windows, instead of the processor's number.
            video_metadata (`dict`, *optional*):
                `{"fps": ...}` or `{"duration": seconds}` of a video given as frames.
            progress (`Callable`, *optional*):
                Called after each window with the share of the windows that are encoded, from 0 to 1.

        Returns:
            [`EncodedVideo`]: With `save` and `load`. It belongs to the model's weights as they are now.

        Raises:
            ValueError: If the model's first layer depends on the sentence, so that there is nothing to keep but the
                pixels; or if a setting is wrong.
            OSError, VideoReadError: If the video cannot be read.
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
        What an encoded video depends on: the hash of the model's weights, and how a video is sampled and scaled.

        Args:
            num_frames (`int`, *optional*): Instead of the processor's number.
        """
        model: Any = self.model
        signature = weights_signature(model)
        hashed = self._hashed
        if hashed is None or hashed[0] != signature:
            self._hashed = hashed = (signature, hash_weights(model))
        processor = self.processor.video_processor
        # Whose mean and deviation it is, where the processor leaves them to the model.
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
        """Pixels are read as bytes where the model normalises them as the processor would."""
        model: Any = self.model
        can = self.processor.video_processor.is_model_to_normalize(model.config)
        return {"do_normalize": False} if can else {}

    def _to_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels on the model's device: floats in its type, bytes as they are."""
        return pixels.to(self.device, self.model.dtype if pixels.is_floating_point() else None)

    def get_inference_context(self) -> Any:
        # A model comes out of a training in the mode for training, where dropout makes each answer another.
        if self.model.training:
            self.model.eval()
        return super().get_inference_context()

    def _sanitize_parameters(  # type: ignore[override]
        self, top_k=None, threshold=None, num_frames=None, video_metadata=None, on_error=None, **nms
    ) -> tuple[dict, dict, dict]:
        if unknown := sorted(set(nms) - {"nms"}):
            raise TypeError(f"Received unknown arguments {unknown}; see the pipeline's docstring for those there are.")
        if on_error not in (None, "raise", "return"):
            raise ValueError(f"Received on_error={on_error!r}; expected 'raise' or 'return'.")
        if num_frames is not None:
            check_num_frames(num_frames)
        preprocess = _without_none(num_frames=num_frames, video_metadata=video_metadata, on_error=on_error)
        # `nms=None` has a meaning of its own.
        postprocess = _without_none(top_k=top_k, threshold=threshold) | nms
        check_ranking(**postprocess)
        return preprocess, _without_none(on_error=on_error), postprocess

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        # As in the base class, which cannot join items whose sentences differ in number and length.
        dataset: Any
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)  # each worker would start from the beginning
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
        """Sentences and what was read of a video, or of a long one how to read it, as an item of a batch."""
        video, sentence = inputs["video"], as_list(inputs["sentence"])
        metadata = inputs.get("video_metadata", video_metadata)
        if sentence is None:
            raise ValueError("Received no sentence; pass one, or a list of sentences, with the video.")
        if isinstance(video, (list, tuple)):
            raise ValueError(f"Received a video of type {type(video).__name__}; pass one dict per video.")
        sentences = as_sentences(sentence)
        item = {"sentence": sentence, "sentences": sentences}
        if hasattr(video, "made_with"):  # an `EncodedVideo`; code from the Hub brings its own copy of the class
            return item | {"encoded": video, "num_frames": num_frames}
        video_processor = self.processor.video_processor
        with video_processor.downloaded(video) as file:
            if video_processor.num_windows(file, metadata) == 1:
                # Read here, which may be in a worker.
                item |= video_processor(
                    videos=file,
                    video_metadata=metadata,
                    num_frames=num_frames,
                    return_timelines=True,
                    **self._pixel_settings(),
                )
            else:
                # Those of a longer video are read one by one in `_forward`, where a URL is downloaded again.
                # Not as a tuple: the base class would move a video that came as a tensor to the model's device.
                item["windows"] = partial(
                    video_processor.iterate_windows, video, metadata, num_frames, **self._pixel_settings()
                )
        return item

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], on_error: str = "raise"
    ) -> dict[str, Any]:
        items = model_inputs["items"]
        outputs: list[dict[str, Any]] = list(items)  # of a video that could not be read the failure stays
        whole = [index for index, item in enumerate(items) if "timelines" in item]
        if whole:
            pixels = torch.cat([items[index]["pixel_values_videos"] for index in whole])
            tokens = self._tokens([items[index]["sentences"] for index in whole])
            found = self._run(tokens, pixel_values_videos=self._to_device(pixels))
            for row, index in enumerate(whole):
                count = len(items[index]["sentences"])
                outputs[index] = {name: value[row : row + 1, :count] for name, value in found.items()}
                outputs[index]["timelines"] = items[index]["timelines"]
        for index, item in enumerate(items):
            if "windows" in item:
                outputs[index] = self._forward_windows(item, on_error)
            if "encoded" in item:
                outputs[index] = self._forward_encoded(item, on_error)
        sentences = [{"sentence": item.get("sentence")} for item in items]
        return {"outputs": [found | sentence for found, sentence in zip(outputs, sentences, strict=True)]}

    def _forward_windows(self, item: dict[str, Any], on_error: str) -> dict[str, Any]:
        """The model's outputs for the windows of a long video, or its failure."""
        tokens = self._tokens([item["sentences"]])
        timelines, found_in = [], []
        for window in _iterate_windows(item["windows"], on_error):
            if "failure" in window:
                return dict(window)
            pixels = self._to_device(window["pixel_values_videos"])
            found_in.append(self._run(tokens, pixel_values_videos=pixels))
            timelines += window["timelines"]
        return _join_windows(found_in, timelines)

    def _forward_encoded(self, item: dict[str, Any], on_error: str) -> dict[str, Any]:
        """The model's outputs for the windows of a video that was encoded before, or its failure."""
        encoded: EncodedVideo = item["encoded"]
        try:
            num_frames = encoded.made_with.get("num_frames") if item["num_frames"] is None else item["num_frames"]
            check_fingerprint(f"the video {encoded.name}", encoded.made_with, self.fingerprint(num_frames))
        except INPUT_ERRORS as error:
            if on_error == "raise":
                raise
            return {"failure": _describe(encoded, error)}
        found_in = [
            self.ground_encoded(
                {name: tensor[row : row + 1] for name, tensor in encoded.tensors.items()}, item["sentences"]
            )
            for row in range(len(encoded.timelines))
        ]
        return _join_windows(found_in, encoded.timelines)

    def ground_encoded(self, tensors: dict[str, torch.Tensor], sentences: list[str]) -> dict[str, torch.Tensor]:
        """
        The model's outputs for windows that were encoded before, each asked all of the sentences.

        Args:
            tensors (`dict[str, torch.Tensor]`): Those of [`EncodedVideo`]s, of `W` windows.
            sentences (`list[str]`): What to look for, `M` of them.

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
        """The [`ScadaVideoFeatures`] of windows that were encoded before, on the model's device."""
        model: Any = self.model
        return model.video_features_class.from_tensors(
            {name: tensor.to(self.device) for name, tensor in tensors.items()}
        )

    def _tokens(self, sentences: list[list[str]]) -> dict[str, torch.Tensor]:
        """The tokens of the sentences of `B` videos, on the model's device, and their masks, which the CPU reads."""
        tokens = {name: torch.from_numpy(array) for name, array in self.processor.encode_text(sentences).items()}
        return tokens | {"input_ids": tokens["input_ids"].to(self.device)}

    def _run(self, tokens: dict[str, torch.Tensor], **videos: Any) -> dict[str, torch.Tensor]:
        """The model on pixels or features of `B` videos and their sentences' tokens; its outputs on the CPU."""
        outputs = self.model(**videos, **tokens)
        return {"logits": outputs.logits.float().cpu(), "pred_segments": outputs.pred_segments.float().cpu()}

    def postprocess(self, model_outputs: dict[str, Any], **kwargs) -> list | dict[str, str]:
        outputs = model_outputs["outputs"]
        # The base class takes batches apart, but not those of one.
        outputs = outputs[0] if isinstance(outputs, list) else outputs
        if "failure" in outputs:
            return outputs["failure"]
        (found,) = self.processor.post_process_temporal_grounding(
            outputs, timelines=outputs["timelines"], merge_windows=True, **kwargs
        )
        results = [self.format_segments(result) for result in found]
        if isinstance(outputs["sentence"], str):
            return results[0]
        return [
            [segment | {"sentence": sentence} for segment in segments]
            for sentence, segments in zip(outputs["sentence"], results, strict=True)
        ]

    def format_segments(self, result: dict[str, Any]) -> list[dict[str, Any]]:
        """
        The segments of a sentence, as the pipeline gives them.

        Args:
            result (`dict`): `scores` and `segments` of [`~ScadaProcessor.post_process_temporal_grounding`].

        Returns:
            `list[dict]`: `{"score", "start", "end"}`, and `found` if the processor has a threshold for it.
        """
        segments: list[dict[str, Any]] = [
            {"score": float(score), "start": float(start), "end": float(end)}
            for score, (start, end) in zip(result["scores"], result["segments"], strict=True)
        ]
        # Not there in a processor whose code, from the Hub, is older.
        if (found_threshold := getattr(self.processor, "found_threshold", None)) is not None:
            for segment in segments:
                segment["found"] = segment["score"] >= found_threshold
        return segments

    def save_pretrained(self, save_directory: str | PathLike, **kwargs) -> None:
        """
        Saves the model and the processor, of which the base class forgets the latter. Of a model with an adapter the
        folder gets both.
        """
        model: Any = self.model
        has_adapter = bool(getattr(model, "peft_config", None))
        if has_adapter:
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            base.save_base_model(save_directory)
        model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        if has_adapter:
            set_base_model(save_directory, str(save_directory))

    def push_to_hub(self, repo_id: str, **kwargs) -> str:  # type: ignore[override]
        """
        Uploads what `save_pretrained` saves.

        Args:
            repo_id (`str`): Name of the repository, made if it does not exist.
            **kwargs: Passed to `HfApi.upload_folder`: `commit_message`, `revision`, `token`.

        Returns:
            `str`: URL of the commit.
        """
        api = HfApi(token=kwargs.pop("token", None))
        repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's, with paths of this machine
            if (Path(folder) / ADAPTER_CONFIG).exists():
                set_base_model(folder, repo_id)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **kwargs))


def set_base_model(folder: str | PathLike, name_or_path: str) -> None:
    """Writes into a saved adapter's configuration which model it belongs to."""
    path = Path(folder) / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": name_or_path}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _join(batch: list[dict[str, list]]) -> dict[str, list]:
    return {"items": [item for part in batch for item in part["items"]]}


def _without_none(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _iterate_windows(windows: partial, on_error: str) -> Iterator[Mapping[str, Any]]:
    """The windows of a long video; last, where it cannot be read on and that is no error, its failure."""
    try:
        yield from read_ahead(windows())
    except INPUT_ERRORS as error:
        if on_error == "raise":
            raise
        yield {"failure": _describe(windows.args[0], error)}


def _join_windows(found_in: list[dict[str, torch.Tensor]], timelines: list) -> dict[str, Any]:
    """The model's outputs for the windows of a video."""
    found = {name: torch.cat([found[name] for found in found_in]) for name in found_in[0]}
    return found | {"timelines": timelines}


def _describe(video: Any, error: Exception) -> dict[str, str]:
    """What stands in the place of the results of a video that cannot be read."""
    return {"video": _video_name(video), "error": type(error).__name__, "reason": str(error)}


def _video_name(video: Any) -> str:
    if isinstance(video, bytes):
        return f"<{len(video)} bytes>"
    if isinstance(video, (str, PathLike)):
        return redact_url(str(video))
    return str(getattr(video, "name", f"<{type(video).__name__}>"))


def as_list(values: Any) -> Any:
    """Sentences, or names of videos, as a list: a tuple, an array of texts, a column of pandas, polars, `datasets`."""
    if isinstance(values, np.ndarray):
        return values.tolist() if values.dtype.kind in "OU" else values
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        return list(values)
    return values.to_list() if callable(getattr(values, "to_list", None)) else values


def as_sentences(text: Any, of_what: str = "") -> list[str]:
    """
    A sentence, or several, as a list.

    Args:
        text (`str`, `list[str]` or column): What to look for; a text is one sentence.
        of_what (`str`, *optional*): What the sentences belong to, for a message: `" for video 3"`.

    Returns:
        `list[str]`: The sentences, at least one.

    Raises:
        ValueError: If there is no sentence, or one of them is empty or no text.
    """
    sentences = as_list(text)
    sentences = [sentences] if isinstance(sentences, str) else sentences
    if not isinstance(sentences, list):
        raise ValueError(
            f"Received sentences of type {type(text).__name__}{of_what}; pass a sentence, or a list of sentences."
        )
    if not sentences:
        raise ValueError(f"Received no sentence{of_what}; pass at least one.")
    for position, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"Received the sentence {sentence!r}{of_what}; expected a text at position {position}.")
    return sentences


def _as_dicts(inputs: Any, sentence: Any) -> Any:
    """What the pipeline was called with, as one dict with `"video"` and `"sentence"`, or several."""
    inputs, sentence = as_list(inputs), as_list(sentence)
    if isinstance(inputs, (dict, str, bytes, PathLike, np.ndarray, torch.Tensor)) or is_file_object(inputs):
        return _as_dict(inputs, sentence)
    if not isinstance(inputs, list):
        # A generator or a data set is read on demand.
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
            f"Received a dict with {sorted(video)}, and {'no' if sentence is None else 'a'} sentence beside it; "
            'expected {"video": ..., "sentence": ...}, and no other sentence.'
        )
    return video


__all__ = ["TemporalGroundingPipeline"]
