"""Configuration of the SCADA models."""

import math
from copy import deepcopy
from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, DistilBertConfig, PreTrainedConfig, VideoMAEConfig

from .configuration_c3d import C3DConfig
from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .configuration_i3d import I3DConfig


AutoConfig.register("c3d", C3DConfig, exist_ok=True)
AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig, exist_ok=True)
AutoConfig.register("i3d", I3DConfig, exist_ok=True)

# For whoever loads a repository without this package: the pipeline that its copy of the code has.
CUSTOM_PIPELINES = {
    "temporal-grounding": {
        "impl": "pipeline_temporal_grounding.TemporalGroundingPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}


@strict
class ScadaConfig(PreTrainedConfig):
    r"""
    Configuration of [`ScadaModel`] and [`ScadaForTemporalGrounding`]: a video backbone, a sentence encoder and the
    localization head. It knows no frame rate and no seconds: those belong to [`ScadaProcessor`].

    Args:
        video_config (`dict` or `PreTrainedConfig`, *optional*, defaults to `VideoMAEConfig()`):
            Configuration of the video backbone.
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to `DistilBertConfig()`):
            Configuration of the sentence encoder, any that `AutoModel` knows.
        hidden_size (`int`, *optional*, defaults to 256):
            Width `D` of the localization head.
        grid_size (`int`, *optional*, defaults to 128):
            Number `S` of time steps that the head works on; it considers all `S (S + 1) / 2` proposals between their
            edges.
        num_sample_points (`int`, *optional*, defaults to 16):
            Points at which the sequence is sampled over a proposal widened by half its length on both sides.
        num_train_proposals (`int`, *optional*, defaults to 512):
            Proposals drawn at random for each training step.
        num_kept_proposals (`int`, *optional*, defaults to 256):
            Proposals of each sentence that come out at inference, those of all with the best scores. Post-processing
            reads no more than 256.
        spatial_pool_size (`int`, *optional*, defaults to 1):
            Areas a side into which the backbone's picture is divided; the head reads the mean of each, side by side.
            With 1 it is the mean over the whole picture, as in the paper. More tell where something happens [D].
        subtract_video_mean (`bool`, *optional*, defaults to `False`):
            Whether the head reads what differs from the video's mean over time: without the scene and the clothes [D].
        feature_dropout (`float`, *optional*, defaults to 0.0):
            Share of the backbone's channels that are hidden from the head, others for each sentence and step.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of the head's output layers.
        listwise_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss in which a sentence's proposals compete. 0 in configurations saved before it existed.
        matching_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss in which the sentences and segments of a video compete. 0 likewise.
        retrieval_dim (`int`, *optional*, defaults to 0):
            Size `E` of the embeddings of proposals and sentences that search many videos; with 0 there are none.
        image_mean (`list[float]`, *optional*):
            Mean of the three channels, for pixels in `[0, 1]`, by which the model normalises `uint8` pixels itself.
            Without it the model takes normalised pixels alone, as all did before it existed.
        image_deviation (`list[float]`, *optional*):
            Standard deviation of the channels, with `image_mean`. `image_std`, its earlier name, is read too: tools
            that scale initialisations, transformers' tests among them, take every `..._std` for one.

    Raises:
        StrictDataclassClassValidationError: If a size is too small or odd, or mean and deviation are not three numbers
            each (of huggingface_hub, as for all
            configurations); StrictDataclassFieldValidationError if it has another type.
        ValueError: If a sub-configuration names no model type that transformers knows.

    Example:

    ```python
    >>> from modeling_scada import ScadaConfig, ScadaForTemporalGrounding

    >>> config = ScadaConfig(
    ...     video_config={"model_type": "videomae", "image_size": 32, "num_hidden_layers": 2, "hidden_size": 32,
    ...                   "num_attention_heads": 2, "intermediate_size": 64},
    ...     text_config={"model_type": "distilbert", "n_layers": 2, "dim": 32, "n_heads": 2, "hidden_dim": 64},
    ... )
    >>> model = ScadaForTemporalGrounding(config)

    ```"""

    model_type = "scada"
    sub_configs = {"video_config": AutoConfig, "text_config": AutoConfig}
    # Earlier names, still read from saved configurations and accepted as arguments.
    attribute_map = {"image_std": "image_deviation", "num_places": "spatial_pool_size"}
    keys_to_ignore_at_inference = ["loss_dict", "hidden_states"]

    video_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 256
    grid_size: int = 128
    num_sample_points: int = 16
    num_train_proposals: int = 512
    num_kept_proposals: int = 256
    spatial_pool_size: int = 1
    subtract_video_mean: bool = False
    feature_dropout: float = 0.0
    initializer_range: float = 0.02
    listwise_loss_weight: float = 1.0
    matching_loss_weight: float = 1.0
    retrieval_dim: int = 0
    image_mean: list[float] | tuple[float, ...] | None = None
    image_deviation: list[float] | tuple[float, ...] | None = None

    def __post_init__(self, **kwargs):
        self.video_config = self._resolve(self.video_config, VideoMAEConfig, "video_config")
        self.text_config = self._resolve(self.text_config, DistilBertConfig, "text_config")
        # transformers prefers a repository's pipeline to the registered one, and asks for `trust_remote_code`. So the
        # installed class, unlike the copy of it that a repository has, forgets about it when it loads.
        kwargs.pop("custom_pipelines", None)
        if __name__.startswith("transformers_modules."):
            self.custom_pipelines = deepcopy(CUSTOM_PIPELINES)  # transformers replaces names by classes in it
        super().__post_init__(**kwargs)

    @staticmethod
    def _resolve(config: dict | PreTrainedConfig | None, default: type[PreTrainedConfig], name: str):
        if config is None:
            return default()
        if isinstance(config, PreTrainedConfig):
            return config
        config = dict(config)
        model_type = config.pop("model_type", None)
        if model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"Received `{name}` with model_type {model_type!r}, which transformers does not know. Pass the "
                f"configuration itself, or a dict whose 'model_type' is one of transformers' (such as "
                f"{default.model_type!r})."
            )
        return CONFIG_MAPPING[model_type](**config)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        # A saved configuration has all fields; one without these is of a time when the terms did not exist.
        return super().from_dict({"listwise_loss_weight": 0.0, "matching_loss_weight": 0.0} | config_dict, **kwargs)

    def to_dict(self) -> dict:
        return super().to_dict() | {"custom_pipelines": deepcopy(CUSTOM_PIPELINES)}

    def validate_sizes(self):
        """Part of `@strict` validation: the head's sizes and the loss's weights."""
        minima = {
            "hidden_size": 2,
            "grid_size": 2,
            "num_sample_points": 2,
            "num_train_proposals": 1,
            "num_kept_proposals": 1,
            "spatial_pool_size": 1,
            "retrieval_dim": 0,
        }
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"Received {name}={getattr(self, name)}; it has to be at least {minimum}.")
        for name in ("listwise_loss_weight", "matching_loss_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Received {name}={getattr(self, name)}; it has to be a number from 0 on.")
        if not 0 <= self.feature_dropout < 1:
            raise ValueError(f"Received feature_dropout={self.feature_dropout}; it has to be from 0 to below 1.")
        if self.hidden_size % 2:
            raise ValueError(f"Received hidden_size={self.hidden_size}; it has to be even.")

    def validate_pixels(self):
        """Part of `@strict` validation: what `uint8` pixels are normalised by."""
        mean, std = self.image_mean, self.image_deviation
        if mean is None and std is None:
            return
        values = [*(mean or ()), *(std or ())]
        if len(mean or ()) != 3 or len(std or ()) != 3 or not all(map(math.isfinite, values)) or min(values[3:]) <= 0:
            raise ValueError(
                f"Received image_mean={mean} and image_deviation={std}; expected three numbers each, the deviations "
                "positive, or neither."
            )

    @classmethod
    def own_fields(cls) -> set[str]:
        """Names of the arguments that this class adds to `PreTrainedConfig`."""
        return {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}


__all__ = ["ScadaConfig"]
