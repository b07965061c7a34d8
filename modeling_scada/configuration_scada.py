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

# Pipeline for users who load a Hub repository, with its copy of the code, without this package.
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
    localization head. [`ScadaProcessor`], not this class, handles frame rates and seconds.

    Args:
        video_config (`dict` or `PreTrainedConfig`, *optional*, defaults to `VideoMAEConfig()`):
            Configuration of the video backbone.
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to `DistilBertConfig()`):
            Configuration of the sentence encoder, of any text model known to `AutoModel`.
        hidden_size (`int`, *optional*, defaults to 256):
            Width `D` of the localization head.
        grid_size (`int`, *optional*, defaults to 128):
            Number `S` of time steps in the head. The head scores all `S (S + 1) / 2` proposals between step edges.
        num_sample_points (`int`, *optional*, defaults to 16):
            Number of sampling points per proposal, over the proposal widened by half its length on both sides.
        num_train_proposals (`int`, *optional*, defaults to 512):
            Number of random proposals per training step.
        num_kept_proposals (`int`, *optional*, defaults to 256):
            Number of best proposals to return per sentence at inference. Post-processing reads at most 256.
        spatial_pool_size (`int`, *optional*, defaults to 1):
            Number of pooling areas per side of the frame. The head reads the concatenated means of all areas. With 1,
            the head reads the mean over the whole frame, as in the paper. Larger values preserve location [D].
            The earlier name `num_places` also works.
        subtract_video_mean (`bool`, *optional*, defaults to `False`):
            Whether to subtract each video's mean over time from the features, to remove constant content such as the
            scene and clothes [D].
        feature_dropout (`float`, *optional*, defaults to 0.0):
            Fraction of backbone channels to drop at the input of the head, drawn per sentence and training step.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of the head's output layers.
        listwise_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the listwise loss: softmax cross-entropy over the proposals of a sentence. Defaults to 0 when
            loading an older configuration without this field.
        matching_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the matching loss: softmax cross-entropy between the sentences and segments of a video. Defaults
            to 0 when loading an older configuration without this field.
        retrieval_dim (`int`, *optional*, defaults to 0):
            Size `E` of the proposal and sentence embeddings for search in many videos. 0 disables the retrieval
            branch.
        image_mean (`list[float]`, *optional*):
            Channel means, for pixels in `[0, 1]`, with which the model normalises `uint8` pixels. Without this value,
            as in older configurations, the model accepts only normalised pixels.
        image_deviation (`list[float]`, *optional*):
            Channel standard deviations, required with `image_mean`. The earlier name `image_std` also works. It is not
            the main name because some tools, such as transformers' tests, treat every `..._std` field as an
            initialisation scale.

    Raises:
        StrictDataclassClassValidationError: If a size is too small or odd, or if mean and deviation are not three
            numbers each. (huggingface_hub raises this error for all configurations.)
        StrictDataclassFieldValidationError: If a value has another type.
        ValueError: If a sub-configuration has no model type known to transformers.

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
        # transformers prefers the pipeline of a repository to the registered pipeline, and then requires
        # `trust_remote_code`. The installed class therefore drops this entry; the copy in a repository keeps it.
        kwargs.pop("custom_pipelines", None)
        if __name__.startswith("transformers_modules."):
            self.custom_pipelines = deepcopy(CUSTOM_PIPELINES)  # transformers replaces its names with classes
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
                f"Received `{name}` with model_type {model_type!r}, which transformers does not know. Pass a "
                f"configuration object, or a dict with a 'model_type' of transformers, such as "
                f"{default.model_type!r}."
            )
        return CONFIG_MAPPING[model_type](**config)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        # A saved configuration has all fields of its time. Without these fields, it predates the two losses.
        return super().from_dict({"listwise_loss_weight": 0.0, "matching_loss_weight": 0.0} | config_dict, **kwargs)

    def to_dict(self) -> dict:
        return super().to_dict() | {"custom_pipelines": deepcopy(CUSTOM_PIPELINES)}

    def validate_sizes(self):
        """Validate the sizes of the head and the weights of the losses; `@strict` calls this method."""
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
                raise ValueError(f"Received {name}={getattr(self, name)}; expected at least {minimum}.")
        for name in ("listwise_loss_weight", "matching_loss_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Received {name}={getattr(self, name)}; expected a finite number of at least 0.")
        if not 0 <= self.feature_dropout < 1:
            raise ValueError(f"Received feature_dropout={self.feature_dropout}; expected at least 0 and less than 1.")
        if self.hidden_size % 2:
            raise ValueError(f"Received hidden_size={self.hidden_size}; expected an even number.")

    def validate_pixels(self):
        """Validate the normalisation of `uint8` pixels; `@strict` calls this method."""
        mean, std = self.image_mean, self.image_deviation
        if mean is None and std is None:
            return
        values = [*(mean or ()), *(std or ())]
        if len(mean or ()) != 3 or len(std or ()) != 3 or not all(map(math.isfinite, values)) or min(values[3:]) <= 0:
            raise ValueError(
                f"Received image_mean={mean} and image_deviation={std}; expected three numbers each, with "
                "positive deviations, or neither."
            )

    @classmethod
    def own_fields(cls) -> set[str]:
        """Return the names of the fields that this class adds to `PreTrainedConfig`."""
        return {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}


__all__ = ["ScadaConfig"]
