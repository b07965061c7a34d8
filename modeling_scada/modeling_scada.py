"""
PyTorch models for temporal sentence grounding in videos.

[`ScadaModel`] turns pixels and tokens into snippet features and sentence vectors. [`ScadaForTemporalGrounding`] adds
the localization head. The models flatten all sentences of a batch to `Q` rows, and `video_index` maps each sentence to
its video. The backbone therefore encodes each video once, for any number of sentences.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import ModelOutput, cached_file, is_peft_available
from transformers.utils.generic import can_return_tuple

from .adapter_mixin_scada import ScadaAdapterMixin
from .backbone_scada import VideoBackbone, build_encoder, find_encoder, normalize_pixels, spatial_mean_pool
from .configuration_scada import ScadaConfig
from .head_scada import (
    HeadOutput,
    LocalizationHead,
    all_proposals,
    best_proposals,
    decode_offsets,
    gather_proposals,
    score_logits,
)
from .loss_scada import ranking_loss, retrieval_loss, temporal_grounding_loss
from .sentences_scada import check_sentences, expand_to_sentences, padding_mask, sentence_positions
from .video_features_scada import ScadaVideoFeatures


try:  # code loaded from the Hub includes the adapter and registers it with peft
    from .adapter_scada import register_peft_method
except ImportError:  # without peft, loading an adapter raises an error
    pass
else:
    register_peft_method()


@dataclass
class ScadaModelOutput(ModelOutput):
    """
    Output of [`ScadaModel`] for `Q` sentences over `B` videos.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(Q, N, spatial_pool_size² C)`):
            Snippet features of each sentence's video, averaged over space, plus the adapter's outer features.
        sentence_embeds (`torch.FloatTensor` of shape `(Q, C_text)`):
            Sentence vectors.
        video_index (`torch.LongTensor` of shape `(Q,)`):
            Video of each sentence.
        sentence_index (`torch.LongTensor` of shape `(Q,)`):
            Position of each sentence in the padded batch of `B M` sentences.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*, returned when `output_hidden_states=True`):
            States of the video backbone before the first layer and after each layer, of shape `(B, N, h, w, C)`. With
            an adapter, states from the first sentence-dependent layer on have shape `(Q, N, h, w, C)`.
    """

    last_hidden_state: torch.Tensor | None = None
    sentence_embeds: torch.Tensor | None = None
    video_index: torch.Tensor | None = None
    sentence_index: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class ScadaTemporalGroundingOutput(ModelOutput):
    """
    Output of [`ScadaForTemporalGrounding`] for `B` videos with up to `M` sentences and `P` proposals.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` are given):
            Sum of `loss_dict`, scaled to this batch's share if `num_items_in_batch` is given.
        logits (`torch.FloatTensor` of shape `(B, M, P)`):
            Log-odds of each proposal's score: `logits.sigmoid()` is the score. Padding sentences get the lowest value
            of the dtype. At inference, each sentence keeps its `num_kept_proposals` best proposals (or all proposals,
            if fewer), in grid order. In training, the proposals are a random sample.
        pred_segments (`torch.FloatTensor` of shape `(B, M, P, 2)`):
            Refined start and end of each proposal, in `[0, 1]` of the window.
        loss_dict (`dict[str, torch.FloatTensor]`, *optional*):
            Weighted terms of the loss.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            See [`ScadaModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pred_segments: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class ScadaPreTrainedModel(ScadaAdapterMixin, PreTrainedModel):  # type: ignore[misc]
    """Base class of the SCADA models, for loading, saving and initialisation."""

    config_class = ScadaConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # With this flag, Trainer passes `num_items_in_batch` instead of dividing by accumulation steps and devices.
    accepts_loss_kwargs = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The backbone and the sentence encoder initialise themselves, by the rules of their own classes. This method
        # handles only modules that hold weights directly, because transformers silently skips other modules of
        # classes defined outside transformers.
        if isinstance(module, nn.RNNBase):
            for name, parameter in module.named_parameters():
                if "weight" in name:
                    init.xavier_uniform_(parameter)
                else:
                    init.zeros_(parameter)
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            std = getattr(module, "initial_std", None)
            if std is None:
                init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args, use_safetensors: bool | None = True, **kwargs
    ) -> Any:
        """
        Load a pretrained model from safetensors weights, with the arguments of transformers' `from_pretrained`.

        Pickled weights raise an error because loading a pickle can run arbitrary code.

        Raises:
            ValueError: If `use_safetensors=False`.
            ImportError: If the checkpoint has an adapter and peft is not installed.
            OSError: If the checkpoint has no safetensors weights, or for the reasons listed in transformers.
        """
        if use_safetensors is False:
            raise ValueError("Received use_safetensors=False; pickled weights are not loaded. Convert them first.")
        if not is_peft_available() and pretrained_model_name_or_path is not None:
            where = {
                name: kwargs[name] for name in ("cache_dir", "local_files_only", "revision", "token") if name in kwargs
            }
            missing: Any = {"_raise_exceptions_for_missing_entries": False}
            if cached_file(pretrained_model_name_or_path, "adapter_config.json", **where, **missing) is not None:
                raise ImportError(
                    f"{pretrained_model_name_or_path} has an adapter, which needs peft; run `pip install peft`. "
                    "Without the adapter and its trained head, the model cannot ground sentences."
                )
        return super().from_pretrained(pretrained_model_name_or_path, *args, use_safetensors=True, **kwargs)

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
        # Every loading path calls this method.
        if pickled := [str(path) for path in checkpoint_files or [] if not str(path).endswith(".safetensors")]:
            raise OSError(
                f"Received the weights {pickled}; pickled weights are not loaded. Convert them to safetensors first."
            )
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        Load weights under their current names or under the names that `save_pretrained` writes.

        `save_pretrained` writes older names for some backbones. `from_pretrained` converts these names, but `Trainer`
        passes them on unchanged.
        """
        if not state_dict.keys() <= self.state_dict().keys():
            floats = [value.dtype for value in state_dict.values() if value.is_floating_point()]
            loaded, info = type(self).from_pretrained(
                None,
                config=self.config,
                state_dict=dict(state_dict),
                output_loading_info=True,
                dtype=reduce(torch.promote_types, floats, torch.float32),  # avoids rounding
            )
            converted = loaded.state_dict()
            unexpected = {name: state_dict[name] for name in info["unexpected_keys"]}
            state_dict = {name: converted[name] for name in converted.keys() - info["missing_keys"]} | unexpected
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any module uses gradient checkpointing. peft reads this name; transformers' version warns."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def enable_input_require_grads(self) -> None:
        """
        Do nothing, because `_set_gradient_checkpointing` already lets gradients flow.

        peft calls this method for reentrant checkpointing. With gradients required on the inputs, the frozen layers
        before the first trainable layer would store activations and run again.
        """

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        backbone: Any = self.base_model.video_backbone  # type: ignore[union-attr]
        if enable and not any(hasattr(module, "gradient_checkpointing") for module in backbone.modules()):
            raise ValueError(
                f"Received a {backbone.config.model_type} to train with gradient checkpointing, which "
                "transformers does not support for this backbone. Disable it, or train with fewer frames per step."
            )
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        modules: Iterable[Any] = self.modules()
        for module in modules:
            if "_gradient_checkpointing_func" in vars(module):
                module._gradient_checkpointing_func = partial(
                    _checkpoint_layer, module, module._gradient_checkpointing_func
                )


def _without_pooler(text_encoder: Any) -> Any:
    """Remove BERT's pooler over the first token, because sentence vectors do not use it."""
    if getattr(text_encoder, "pooler", None) is not None:
        text_encoder.pooler = None
    return text_encoder


def add_outer_features(features: torch.Tensor, outer_features: list[torch.Tensor | None]) -> torch.Tensor:
    """
    Add the features of outer branches to the snippet features.

    Args:
        features (`torch.Tensor` of shape `(Q, N, spatial_pool_size² C)`): Snippet features.
        outer_features (`list[torch.Tensor | None]`): Features of each outer branch, of shape `(Q, N_i, C)`. All areas
            receive the same features. Features with a higher temporal resolution, from convolutional stages, are
            averaged over time.

    Returns:
        `torch.Tensor` of shape `(Q, N, spatial_pool_size² C)`: Sum of all features.
    """
    for branch_features in outer_features:
        if branch_features is not None:
            if branch_features.shape[1] != features.shape[1]:
                branch_features = F.adaptive_avg_pool1d(branch_features.mT, features.shape[1]).mT
            spatial_pool_size = features.shape[2] // branch_features.shape[2]
            features = features + branch_features.to(features.dtype).repeat(1, 1, spatial_pool_size)
    return features


class ScadaModel(ScadaPreTrainedModel):
    """
    Video backbone and sentence encoder, from pixels and tokens to snippet features and sentence vectors.

    Args:
        config ([`ScadaConfig`]): Configuration whose `video_config` and `text_config` define the two encoders.
    """

    def __init__(self, config: ScadaConfig):
        super().__init__(config)
        self.video_backbone = VideoBackbone(build_encoder(config.video_config))  # type: ignore[arg-type]
        self.text_encoder = _without_pooler(AutoModel.from_config(config.text_config))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.video_backbone.encoder.get_input_embeddings()

    def train(self, mode: bool = True) -> "ScadaModel":
        """Set the training mode, but keep encoders without trainable parameters in evaluation mode (no dropout)."""
        super().train(mode)
        for encoder in (self.video_backbone, self.text_encoder):
            if not any(parameter.requires_grad for parameter in encoder.parameters()):
                encoder.eval()
        return self

    def encode_sentences(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """
        Return sentence vectors: the mean over unmasked tokens, then a LayerNorm without weights (docs/design.md
        section 4).

        Args:
            input_ids (`torch.LongTensor` of shape `(Q, L)`): Tokens.
            attention_mask (`torch.LongTensor` of shape `(Q, L)`): 1 for tokens, 0 for padding.

        Returns:
            `torch.FloatTensor` of shape `(Q, C_text)`.
        """
        # transformers checks a given mask for padding, which would synchronise a GPU.
        is_full = not torch.compiler.is_compiling() and attention_mask.device.type == "cpu" and attention_mask.all()
        attention_mask = attention_mask.to(input_ids.device, non_blocking=True)
        encoded = self.text_encoder(input_ids=input_ids, attention_mask=None if is_full else attention_mask)
        states = encoded.last_hidden_state
        mask = attention_mask[..., None].to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
        return F.layer_norm(mean, mean.shape[-1:])

    def encode_video(self, pixel_values_videos: torch.Tensor) -> ScadaVideoFeatures:
        """
        Encode videos once, for `forward` calls with any sentences.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`):
                Frames, normalised or (see [`ScadaConfig`]) `uint8`; `T` a multiple of the backbone's clip length.

        Returns:
            [`ScadaVideoFeatures`]: Sentence-free part of the computation: the states before the first conditioned
            inner branch or, without such a branch, the snippet features.

        Raises:
            ValueError: If the first layer has a conditioned inner branch, or the shapes do not fit the backbone.
        """
        first = self._first_sentence_dependent_layer()
        if first == 0:
            raise ValueError(
                "Received a video to encode with a model whose first layer depends on the sentence, so there is "
                "nothing to keep but the pixels. Call the model with the pixels, or train it with inner branches on "
                'later layers, such as `inner_layers="last 3"`.'
            )
        grid = self.video_backbone.grid(pixel_values_videos)
        pixel_values_videos = normalize_pixels(
            pixel_values_videos, self.config.image_mean, self.config.image_deviation
        )
        with self._condition(None, None, grid) as (_, from_outer_branches):
            if first is None:
                features, _ = self.video_backbone(pixel_values_videos)
            else:
                states = self.video_backbone.states_before(first, pixel_values_videos)
        sequences = tuple(sequence for sequence in from_outer_branches if sequence is not None) or None
        if first is None:
            features = spatial_mean_pool(features, self.config.spatial_pool_size)
            return ScadaVideoFeatures(snippet_features=features, outer_sequences=sequences)
        frame_size = torch.tensor(pixel_values_videos.shape[-2:], device=states.device).expand(len(states), 2)
        return ScadaVideoFeatures(states=states, outer_sequences=sequences, frame_size=frame_size)

    def sentence_free_features(self, video_features: ScadaVideoFeatures) -> torch.Tensor:
        """
        Return sentence-free snippet features, computed with a zero sentence vector.

        Args:
            video_features ([`ScadaVideoFeatures`]): Output of `encode_video` for `B` videos.

        Returns:
            `torch.FloatTensor` of shape `(B, N, C)`.

        Raises:
            ValueError: If the features come from another model.
        """
        tensor = next(iter(video_features.tensors().values()))
        no_sentence = tensor.new_zeros(len(tensor), self.text_encoder.config.hidden_size)
        videos = torch.arange(len(tensor), device=tensor.device)
        features, _, from_outer_branches = self._forward_from_features(video_features, no_sentence, videos)
        return add_outer_features(features, from_outer_branches)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sentence_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        video_features: ScadaVideoFeatures | None = None,
        **kwargs,
    ) -> ScadaModelOutput:
        """
        Encode videos and sentences.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`, *optional*):
                Frames, normalised or (see [`ScadaConfig`]) `uint8`; `T` a multiple of the backbone's clip length.
            input_ids (`torch.LongTensor` of shape `(B, M, L)`):
                Tokens of up to `M` sentences per video.
            attention_mask (`torch.LongTensor` of shape `(B, M, L)`, *optional*):
                1 for tokens, 0 for padding. Defaults to all ones. Keep both masks on the CPU to avoid synchronising
                a GPU.
            sentence_mask (`torch.LongTensor` of shape `(B, M)`, *optional*):
                1 for sentences, 0 for padding. Defaults to all ones.
            output_hidden_states (`bool`, *optional*):
                Whether to also return the states of the video backbone.
            video_features ([`ScadaVideoFeatures`], *optional*):
                Output of `encode_video` for `B` videos, instead of the pixels.

        Raises:
            ValueError: If both or neither of pixels and features are given, if the features come from another model,
                if `output_hidden_states=True` with features, or if a shape does not fit the others or the backbone.
        """
        input_ids, attention_mask, sentence_mask = check_sentences(
            pixel_values_videos, video_features, input_ids, attention_mask, sentence_mask
        )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        sentence_index = sentence_positions(sentence_mask)  # (Q,)
        # A compiled graph also encodes padding, and a row needs at least one token to attend to.
        attention_mask = attention_mask.masked_fill(padding_mask(sentence_mask, attention_mask)[..., None], 1)
        attention_mask = attention_mask.flatten(0, 1)[sentence_index.to(attention_mask.device)]
        sentence_index = sentence_index.to(input_ids.device, non_blocking=True)
        video_index = sentence_index // input_ids.shape[1]
        sentence_embeds = self.encode_sentences(input_ids.flatten(0, 1)[sentence_index], attention_mask)

        hidden_states = None
        if video_features is None:
            pixels: Any = pixel_values_videos
            grid = self.video_backbone.grid(pixels)
            pixels = normalize_pixels(pixels, self.config.image_mean, self.config.image_deviation)
            with self._condition(sentence_embeds, video_index, grid) as (per_sentence, from_outer_branches):
                features, hidden_states = self.video_backbone(pixels, output_hidden_states=output_hidden_states)
            fused = spatial_mean_pool(features, self.config.spatial_pool_size)  # (B or Q, N, C)
        else:
            if output_hidden_states:
                raise ValueError(
                    "Received output_hidden_states=True with `video_features`, which contain no hidden states; pass "
                    "`pixel_values_videos` instead."
                )
            fused, per_sentence, from_outer_branches = self._forward_from_features(
                video_features, sentence_embeds, video_index
            )
        if not per_sentence:
            fused = expand_to_sentences(fused, video_index)
        fused = add_outer_features(fused, from_outer_branches)

        return ScadaModelOutput(
            last_hidden_state=fused,
            sentence_embeds=sentence_embeds,
            video_index=video_index,
            sentence_index=sentence_index,
            hidden_states=hidden_states,
        )

    # Only the methods below know about adapters. They give the sentences to the wrapped layers before the backbone
    # runs, and collect the outer features after it. They find wrapped layers by attribute rather than by class,
    # because code from the Hub can define the class twice.

    def _wrapped_layers(self) -> list[Any]:
        return [layer for layer in self.video_backbone.modules() if hasattr(layer, "set_condition")]

    def _first_sentence_dependent_layer(self) -> int | None:
        dependent = {layer for layer in self._wrapped_layers() if layer.depends_on_sentence}
        layers = enumerate(self.video_backbone.layers)
        return next((index for index, layer in layers if not dependent.isdisjoint(layer.modules())), None)

    @contextmanager
    def _condition(
        self, sentence_embeds: torch.Tensor | None, video_index: torch.Tensor | None, grid: Any
    ) -> Iterator[tuple[bool, list[torch.Tensor | None]]]:
        """
        Condition the wrapped layers on the sentences, or on no sentence, during a call of the backbone.

        Yields:
            `tuple`: Whether the backbone will return one row per sentence instead of one per video, and a list. After
            the call, the list holds the output of `take_outer_features` of each wrapped layer.
        """
        wrapped = self._wrapped_layers()
        from_outer_branches: list[torch.Tensor | None] = []
        per_sentence = False
        for layer in wrapped:
            per_sentence = layer.set_condition(sentence_embeds, video_index, grid, per_sentence)
        try:
            yield per_sentence, from_outer_branches
        finally:
            from_outer_branches += [layer.take_outer_features() for layer in wrapped]

    def _forward_from_features(
        self, video_features: ScadaVideoFeatures, sentence_embeds: torch.Tensor, video_index: torch.Tensor
    ) -> tuple[torch.Tensor, bool, list[torch.Tensor | None]]:
        """
        Run the layers after `encode_video`.

        Returns:
            `tuple`: Features of shape `(B or Q, N, C)`, whether they have `Q` rows, and the outer features.
        """
        first = self._first_sentence_dependent_layer()
        sequences = video_features.outer_sequences or ()
        layers = list(self.video_backbone.layers)
        before = [layer for layer in self._wrapped_layers() if layer.has_outer_branch]
        if first is not None:
            dependent = {module for layer in layers[first:] for module in layer.modules()}
            before = [layer for layer in before if layer not in dependent]
        if (video_features.states is None) != (first is None) or len(sequences) != len(before):
            raise ValueError(
                f"Received `video_features` with {sorted(video_features.tensors())}, which do not fit this model with "
                "its active adapter; encode the video again with this model."
            )
        from_outer_branches: list[torch.Tensor | None] = [
            layer.outer_features(sequence, sentence_embeds, video_index)
            for layer, sequence in zip(before, sequences, strict=True)
        ]
        if first is None:
            return video_features.snippet_features, False, from_outer_branches  # type: ignore[return-value]
        states: Any = video_features.states
        height, width = video_features.frame_size[0].tolist()  # type: ignore[index]
        grid = self.video_backbone.grid_from_states(states, (height, width))
        with self._condition(sentence_embeds, video_index, grid) as (per_sentence, from_later_branches):
            features = self.video_backbone.forward_from(first, states, (height, width))
        features = spatial_mean_pool(features, self.config.spatial_pool_size)
        return features, per_sentence, from_outer_branches + from_later_branches


class ScadaForTemporalGrounding(ScadaPreTrainedModel):
    """
    SCADA model for temporal sentence grounding, with scores and segments of all proposals for each sentence.

    Args:
        config ([`ScadaConfig`]): Configuration of the backbone, the sentence encoder and the head.
    """

    video_features_class = ScadaVideoFeatures  # for callers that cannot import a class from the Hub

    def __init__(self, config: ScadaConfig):
        super().__init__(config)
        self.model = ScadaModel(config)
        text_dim = self.model.text_encoder.config.hidden_size
        video_dim = self.model.video_backbone.layer_dims[-1] * config.spatial_pool_size**2
        self.head = LocalizationHead(config, video_dim, text_dim)
        self.post_init()

    @classmethod
    def from_backbones(
        cls, video_model: str | PathLike | PreTrainedModel, text_model: str | PathLike | PreTrainedModel, **config
    ) -> "ScadaForTemporalGrounding":
        """
        Create a model with pretrained encoders and a new head.

        Args:
            video_model (`str`, `os.PathLike` or `PreTrainedModel`): Hub id or folder of an encoder listed in
                `ENCODER_TYPES` (see `backbone_scada.py`), or the encoder itself.
            text_model (`str`, `os.PathLike` or `PreTrainedModel`): Hub id or folder of a text encoder, or
                the encoder itself.
            **config: Arguments of [`ScadaConfig`], except the configurations of the encoders.

        Raises:
            TypeError: If [`ScadaConfig`] has no such argument.

        Example:

        ```python
        >>> from modeling_scada import ScadaForTemporalGrounding

        >>> model = ScadaForTemporalGrounding.from_backbones(
        ...     "MCG-NJU/videomae-base", "distilbert-base-uncased", grid_size=128
        ... )  # doctest: +SKIP

        ```
        """
        config = {ScadaConfig.attribute_map.get(name, name): value for name, value in config.items()}
        allowed = ScadaConfig.own_fields() - {"video_config", "text_config"}
        if unknown := sorted(set(config) - allowed):
            raise TypeError(f"Received unknown arguments {unknown}; ScadaConfig's are {sorted(allowed)}.")
        video, text = (
            model if isinstance(model, PreTrainedModel) else AutoModel.from_pretrained(model)
            for model in (video_model, text_model)
        )
        video_encoder, text_encoder = find_encoder(video), _without_pooler(getattr(text, text.base_model_prefix, text))
        model = cls(ScadaConfig(video_config=video_encoder.config, text_config=text_encoder.config, **config))
        model.model.video_backbone = VideoBackbone(video_encoder)
        model.model.text_encoder = text_encoder
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def save_base_model(self, save_directory: str | PathLike) -> None:
        """
        Save the model without its adapters. In contrast, `save_pretrained` saves only the adapter, if present.

        Args:
            save_directory (`str` or `os.PathLike`): Output folder for the configuration and the weights.
        """
        with torch.device("meta"):
            base = type(self)(self.config)  # type: ignore[arg-type]
        weights = {
            name.replace(".base_layer", "").replace(".original_module", ""): value
            for name, value in self.state_dict().items()
            if not any(part in name for part in (".scada_", ".lora_", ".modules_to_save."))
        }
        base.load_state_dict(weights, assign=True)
        base.save_pretrained(save_directory)

    def encode_video(self, pixel_values_videos: torch.Tensor) -> ScadaVideoFeatures:
        """
        Encode videos once, to query them repeatedly. Pass the output as `video_features` instead of the pixels.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`):
                Frames, normalised or (see [`ScadaConfig`]) `uint8`; `T` a multiple of the backbone's clip length.

        Returns:
            [`ScadaVideoFeatures`]: See [`~ScadaModel.encode_video`].

        Raises:
            ValueError: If the first layer depends on the sentence, or the shapes do not fit the backbone.

        Example:

        ```python
        >>> features = model.encode_video(inputs["pixel_values_videos"])  # doctest: +SKIP
        >>> features.save("kitchen.safetensors")  # doctest: +SKIP
        >>> model(video_features=features, input_ids=inputs["input_ids"]).logits.shape  # doctest: +SKIP
        torch.Size([1, 2, 256])

        ```
        """
        return self.model.encode_video(pixel_values_videos)

    def embed_proposals(
        self, video_features: ScadaVideoFeatures, proposals_grid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Return sentence-free embeddings of proposals, to search segments in many videos.

        Args:
            video_features ([`ScadaVideoFeatures`]): Output of `encode_video` for `B` videos.
            proposals_grid (`torch.Tensor` of shape `(P, 2)`, *optional*): Edges `i < j` in `0..S`. Defaults to all
                proposals.

        Returns:
            `torch.FloatTensor` of shape `(B, P, E)`: Embeddings of length 1, so that their products are cosines.

        Raises:
            ValueError: If the model has no retrieval branch, or if the features come from another model.
        """
        retrieval = self._retrieval_branch()
        features = self.model.sentence_free_features(video_features)
        if proposals_grid is None:
            proposals_grid = all_proposals(self.config.grid_size, features.device)
        return retrieval.embed_proposals(features, proposals_grid)

    def embed_sentences(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """
        Return embeddings of sentences, to compare with `embed_proposals`.

        Args:
            input_ids (`torch.LongTensor` of shape `(Q, L)`): Tokens.
            attention_mask (`torch.LongTensor` of shape `(Q, L)`): 1 for tokens, 0 for padding.

        Returns:
            `torch.FloatTensor` of shape `(Q, E)`: Embeddings of length 1. The best proposals have the largest products
            with them.

        Raises:
            ValueError: If the model has no retrieval branch.
        """
        return self._retrieval_branch().embed_sentences(self.model.encode_sentences(input_ids, attention_mask))

    def _retrieval_branch(self) -> Any:
        if not self.config.retrieval_dim:
            raise ValueError(
                "Received a model without a retrieval branch, which embeddings need; train a model with "
                "`ScadaConfig(retrieval_dim=64)` or `--retrieval_dim 64`."
            )
        return self.head.retrieval

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sentence_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        video_features: ScadaVideoFeatures | None = None,
        **kwargs,
    ) -> ScadaTemporalGroundingOutput:
        """
        Score and refine proposals for each sentence, and compute the loss if `labels` are given.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(B, T, C, H, W)`, *optional*):
                Frames, normalised or (see [`ScadaConfig`]) `uint8`; `T` a multiple of the backbone's clip length.
            input_ids (`torch.LongTensor` of shape `(B, M, L)`):
                Tokens of up to `M` sentences per video.
            attention_mask (`torch.LongTensor` of shape `(B, M, L)`, *optional*):
                1 for tokens, 0 for padding. Defaults to all ones.
            sentence_mask (`torch.LongTensor` of shape `(B, M)`, *optional*):
                1 for sentences, 0 for padding. Defaults to all ones.
            labels (`torch.FloatTensor` of shape `(B, M, K, 2)` or `(B, M, 2)`, *optional*):
                Start and end of up to `K` target segments per sentence, in `[0, 1]` of the window, padded with -100.
                `[-1, -1]` marks a sentence without a match in its video.
            output_hidden_states (`bool`, *optional*):
                Whether to also return the states of the video backbone.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of `labels` values other than -100 in all accumulated batches, as counted by `Trainer`. The loss
                is then this batch's share of the mean over all accumulated sentences. The share is exact if all
                sentences have the same number of segments.
            video_features ([`ScadaVideoFeatures`], *optional*):
                Output of `encode_video` for `B` videos, instead of the pixels.

        Raises:
            ValueError: See [`ScadaModel`].
        """
        input_ids, attention_mask, sentence_mask = check_sentences(
            pixel_values_videos, video_features, input_ids, attention_mask, sentence_mask
        )
        is_padding = padding_mask(sentence_mask, input_ids)  # (B, M)
        outputs, sentence_free_features = self._encode(
            pixel_values_videos,
            video_features,
            needs_sentence_free_features=bool(self.config.retrieval_dim) and labels is not None,
            input_ids=input_ids,
            attention_mask=attention_mask,
            sentence_mask=sentence_mask,
            output_hidden_states=output_hidden_states,
        )
        targets = None if labels is None else self._select_targets(labels, is_padding, outputs.sentence_index)
        head = self.head(
            outputs.last_hidden_state,
            outputs.sentence_embeds,
            None if targets is None else targets.flatten(0, 1) * self.config.grid_size,
            sentence_free_features,
        )
        logits, pred_segments = self._predict(head, is_padding, outputs.sentence_index)
        loss, loss_dict = None, None
        if targets is not None:
            loss_dict = self._compute_losses(head, targets, outputs, input_ids, attention_mask)
            loss = torch.stack(list(loss_dict.values())).sum()
            if num_items_in_batch is not None:
                # The number is 0 if no video of the batch could be read.
                loss = loss * targets.ne(-100).sum() / torch.as_tensor(num_items_in_batch).clamp_min(1)
        return ScadaTemporalGroundingOutput(
            loss=loss,
            logits=logits,
            pred_segments=pred_segments,
            loss_dict=loss_dict,
            hidden_states=outputs.hidden_states,
        )

    def _encode(
        self,
        pixel_values_videos: torch.Tensor | None,
        video_features: ScadaVideoFeatures | None,
        needs_sentence_free_features: bool,
        **sentence_inputs,
    ) -> tuple[Any, torch.Tensor | None]:
        """Return the output of [`ScadaModel`] and, if needed, sentence-free features of shape `(B, N, C)`."""
        sentence_free_features = None
        if needs_sentence_free_features:
            # Both need the layers before the first sentence-dependent one; `encode_video` runs these layers once.
            if video_features is None:
                video_features = self.encode_video(pixel_values_videos)  # type: ignore[arg-type]
                pixel_values_videos = None
            sentence_free_features = self.model.sentence_free_features(video_features)
        outputs = self.model(pixel_values_videos, video_features=video_features, return_dict=True, **sentence_inputs)
        return outputs, sentence_free_features

    @staticmethod
    def _select_targets(labels: torch.Tensor, is_padding: torch.Tensor, sentence_index: torch.Tensor) -> torch.Tensor:
        """Check `labels` and return the target segments of the `Q` sentences, of shape `(Q, K, 2)`."""
        labels = labels[:, :, None] if labels.dim() == 3 else labels
        if labels.dim() != 4 or labels.shape[:2] != is_padding.shape or labels.shape[-1] != 2:
            raise ValueError(
                f"Received `labels` of shape {tuple(labels.shape)}; expected (videos, sentences, segments, 2) "
                f"with {is_padding.shape[0]} videos and {is_padding.shape[1]} sentences. ScadaProcessor makes them "
                "from `segments`."
            )
        return labels.masked_fill(is_padding[..., None, None], -100).flatten(0, 1)[sentence_index]

    def _predict(
        self, head: HeadOutput, is_padding: torch.Tensor, sentence_index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the `logits` and `pred_segments` of [`ScadaTemporalGroundingOutput`]."""
        scores = score_logits(head.iou_logits.float())  # (Q, P)
        segments = decode_offsets(head.proposals_grid, head.offsets, self.config.grid_size)  # (Q, P, 2)
        if not self.training:
            kept = best_proposals(scores, self.config.num_kept_proposals)
            scores, segments = scores.gather(1, kept), gather_proposals(segments, kept)
        # Back to (B, M, ...), with padding.
        lowest = torch.finfo(scores.dtype).min
        logits = scores.new_full((is_padding.numel(), scores.shape[-1]), lowest).index_copy(0, sentence_index, scores)
        logits = logits.unflatten(0, is_padding.shape).masked_fill(is_padding[..., None], lowest)
        pred_segments = segments.new_zeros(is_padding.numel(), *segments.shape[1:])
        pred_segments = pred_segments.index_copy(0, sentence_index, segments).unflatten(0, is_padding.shape)
        return logits, pred_segments.masked_fill(is_padding[..., None, None], 0)

    def _compute_losses(
        self,
        head: HeadOutput,
        targets: torch.Tensor,
        outputs: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the weighted terms of the loss for `targets` of shape `(Q, K, 2)`."""
        loss_dict = temporal_grounding_loss(
            head.boundary_logits, head.iou_logits, head.offsets, head.proposals_grid, targets
        )
        weights = {
            "loss_listwise": self.config.listwise_loss_weight,
            "loss_matching": self.config.matching_loss_weight,
        }
        if any(weights.values()):
            terms = ranking_loss(
                head.iou_logits[..., 0], head.proposals_grid, targets, outputs.video_index, self.config.grid_size
            )
            loss_dict |= {name: weights[name] * term for name, term in terms.items()}
        if head.proposal_embeds is not None:
            tokens = (input_ids * attention_mask.to(input_ids.device)).flatten(0, 1)[outputs.sentence_index]  # (Q, L)
            loss_dict["loss_retrieval"] = retrieval_loss(
                head.proposal_embeds,
                head.sentence_embeds,  # type: ignore[arg-type]
                head.proposals_grid,
                targets,
                outputs.video_index,
                (tokens[:, None] == tokens).all(-1),
                self.config.grid_size,
            )
        return loss_dict


class AutoModelForTemporalGrounding(_BaseAutoModelClass):
    """Auto class for temporal sentence grounding models."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())  # type: ignore[assignment]


def _checkpoint_layer(layer: nn.Module, checkpoint: Callable, run: Callable, *args):
    """
    Run a layer with checkpointing if the layer, or an earlier layer, has trainable weights.

    A reentrant checkpoint computes no weight gradients unless an input requires gradients. The first trainable layer
    therefore gets such an input. Earlier, frozen layers run without checkpointing and store no activations.
    """
    if not any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args):
        if not any(parameter.requires_grad for parameter in layer.parameters()):
            return run(*args)
        args = (args[0].detach().requires_grad_(torch.is_grad_enabled()), *args[1:])
    return checkpoint(run, *args)


__all__ = ["AutoModelForTemporalGrounding", "ScadaForTemporalGrounding", "ScadaModel", "ScadaPreTrainedModel"]
