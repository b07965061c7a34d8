"""
Which parameters train: the tuning modes, on one switch, so that they can be compared (docs/design.md section 10).
"""

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

from processing.arguments import TuningArguments

from ..adapter_scada import ScadaAdapterConfig, resolve_layers
from ..modeling_scada import ScadaForTemporalGrounding


# Queries and values, by the names that encoders have for them (TimeSformer has one layer for all three). Convolutions:
# C3D's and I3D's; ConvNeXt's, EfficientNet-Lite's and the outer ones of a block of ResNet and RegNet, none of which is
# in groups: those have few weights, and LoRA's rank would have to be a multiple of their number.
LORA_TARGETS = (
    r".*video_backbone\..*\.(query|value|q_proj|v_proj|qkv|conv\d\w?|conv3d|pwconv\d"
    r"|(expand|project)\.conv|layer\.[023]\.convolution)"
)


def peft_config(args: TuningArguments) -> PeftConfig | None:
    """The adapter that `tuning` stands for; `None` where there is none."""
    modules_to_save = ["head", "text_encoder"] if args.train_text else ["head"]
    if args.tuning == "lora":
        return LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS, modules_to_save=modules_to_save)
    if args.tuning in ("tia", "scada"):
        branches = "inner" if args.tuning == "tia" else args.scada_branches
        return ScadaAdapterConfig(
            reduction=args.reduction,
            inner_layers=[] if branches == "outer" else args.inner_layers,
            outer_layers=[] if branches == "inner" else args.outer_layers,
            conditioning=args.tuning == "scada",
            modules_to_save=modules_to_save,
        )
    return None


def prepare_tuning(model: ScadaForTemporalGrounding, args: TuningArguments) -> ScadaForTemporalGrounding | PeftModel:
    """
    Sets which parameters train; adds the adapter where there is one. A model that was saved with such an adapter goes
    on with it.

    Args:
        model ([`ScadaForTemporalGrounding`]): It is changed in place.
        args ([`TuningArguments`]): The mode, and what belongs to it.

    Returns:
        [`ScadaForTemporalGrounding`] or `peft.PeftModel`: What to train: the model itself, or peft's around it.

    Raises:
        ValueError: If the layers cannot be resolved, see [`ScadaAdapterConfig`], or if the model has another adapter.

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
    """peft's model around one with an adapter, whose weights stay what they are."""
    num_layers = len(model.model.video_backbone.layers)
    there = [_settings(adapter, num_layers) for adapter in trained]
    asked = config and _settings(config, num_layers)
    if config is None or there != [asked]:
        raise ValueError(
            f"Received a model that has an adapter with {there}, and a tuning that has {asked or 'none'}. Give the "
            "tuning and the layers that it was trained with to go on with it, or a model without an adapter."
        )
    weights = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    with warnings.catch_warnings():
        # That there is an adapter already, whose weights peft draws anew.
        warnings.filterwarnings("ignore", message="You are trying to modify a model with PEFT for a second time")
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        peft_model = get_peft_model(model, config)
    set_peft_model_state_dict(model, weights)
    return peft_model


def _settings(config: PeftConfig, num_layers: int) -> dict[str, Any]:
    """What two adapters have in common if their weights fit each other."""
    names = ("peft_type", "r", "reduction", "kernel_size", "conditioning")
    settings = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    settings["peft_type"] = getattr(config.peft_type, "value", config.peft_type)
    for name in ("inner_layers", "outer_layers"):
        if (layers := getattr(config, name, None)) is not None:
            settings[name] = resolve_layers(layers, num_layers)
    return settings | {"modules_to_save": sorted(getattr(config, "modules_to_save", None) or [])}
