"""Select the trainable parameters: all tuning modes on one switch, for comparisons (docs/design.md section 10)."""

import warnings
from typing import Any

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

from processing.recipe_arguments import TuningArguments

from ..adapter_scada import LAYER_LISTS, ScadaAdapterConfig, resolve_layers
from ..modeling_scada import ScadaForTemporalGrounding


# Query and value layers under the names of each encoder (TimeSformer has one layer for query, key and value).
# Convolutions of C3D, I3D, ConvNeXt and EfficientNet-Lite, and the outer convolutions of ResNet and RegNet blocks. No
# grouped convolutions, because they have few weights and require a LoRA rank divisible by their number of groups.
LORA_TARGETS = (
    r".*video_backbone\..*\.(query|value|q_proj|v_proj|qkv|conv\d\w?|conv3d|pwconv\d"
    r"|(expand|project)\.conv|layer\.[023]\.convolution)"
)


def peft_config(args: TuningArguments) -> PeftConfig | None:
    """Return the adapter configuration of a tuning mode, or `None` for a mode without an adapter."""
    modules_to_save = ["head", "text_encoder"] if args.train_text else ["head"]
    if args.tuning == "lora":
        return LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS, modules_to_save=modules_to_save)
    if args.tuning in ("tia", "scada"):
        branches = "inner" if args.tuning == "tia" else args.scada_branches
        return ScadaAdapterConfig(
            reduction=args.reduction,
            inner_layers=args.inner_layers if branches in ("inner", "both") else [],
            outer_layers=args.outer_layers if branches in ("outer", "both") else [],
            pooling_layers=args.pooling_layers if branches == "pooling" else [],
            conditioning=args.tuning == "scada",
            modules_to_save=modules_to_save,
        )
    return None


def prepare_tuning(model: ScadaForTemporalGrounding, args: TuningArguments) -> ScadaForTemporalGrounding | PeftModel:
    """
    Freeze and unfreeze parameters for a tuning mode, and add its adapter.

    Training continues from the adapter of a model that has one.

    Args:
        model ([`ScadaForTemporalGrounding`]): Model, changed in place.
        args ([`TuningArguments`]): Tuning mode and its arguments.

    Returns:
        [`ScadaForTemporalGrounding`] or `peft.PeftModel`: Model to train; with an adapter, wrapped by peft.

    Raises:
        ValueError: If layers are invalid, see [`ScadaAdapterConfig`], or if the model has a different adapter.

    Example:

    ```python
    >>> from modeling_scada import ScadaForTemporalGrounding, TuningArguments, prepare_tuning

    >>> model = ScadaForTemporalGrounding.from_pretrained("my-name/my-videos")  # doctest: +SKIP
    >>> model = prepare_tuning(model, TuningArguments("scada", inner_layers="all"))  # doctest: +SKIP

    ```
    """
    config = peft_config(args)
    if trained := getattr(model, "peft_config", None):
        return _resume_adapter(model, list(trained.values()), config)
    if config is not None:
        return get_peft_model(model, config)
    backbone = model.model.video_backbone
    backbone.requires_grad_(args.tuning == "full")
    if args.tuning == "partial":
        for index in resolve_layers(args.inner_layers, len(backbone.layers)):
            backbone.layers[index].requires_grad_(True)
    model.model.text_encoder.requires_grad_(args.train_text)
    return model


def _resume_adapter(
    model: ScadaForTemporalGrounding, trained: list[PeftConfig], config: PeftConfig | None
) -> PeftModel:
    """Return a `PeftModel` around a model that has an adapter, with the weights of the adapter unchanged."""
    num_layers = len(model.model.video_backbone.layers)
    existing = [_settings(adapter, num_layers) for adapter in trained]
    requested = config and _settings(config, num_layers)
    if config is None or existing != [requested]:
        raise ValueError(
            f"Received a model with the adapter {existing}, and a tuning mode with {requested or 'no adapter'}. "
            "Use the tuning mode and layers of its training to continue, or a model without an adapter."
        )
    weights = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    with warnings.catch_warnings():
        # peft warns about the existing adapter, because it re-initializes its weights.
        warnings.filterwarnings("ignore", message="You are trying to modify a model with PEFT for a second time")
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        peft_model = get_peft_model(model, config)
    set_peft_model_state_dict(model, weights)
    return peft_model


def _settings(config: PeftConfig, num_layers: int) -> dict[str, Any]:
    """Return the settings that determine the shapes of the weights of an adapter."""
    names = ("peft_type", "r", "reduction", "kernel_size", "conditioning")
    settings = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    settings["peft_type"] = getattr(config.peft_type, "value", config.peft_type)
    for name in LAYER_LISTS:
        if (layers := getattr(config, name, None)) is not None:
            settings[name] = resolve_layers(layers, num_layers)
    return settings | {"modules_to_save": sorted(getattr(config, "modules_to_save", None) or [])}
