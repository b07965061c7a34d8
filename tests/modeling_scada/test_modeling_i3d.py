"""
I3D, and the conversion of its original weights.

The originals are random weights under the names of piergiaj/pytorch-i3d. What they should compute is written here from
those names alone.
"""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn

from modeling_scada.configuration_i3d import I3DConfig
from modeling_scada.modeling_i3d import I3DMaxPool, I3DModel


SPEC = importlib.util.spec_from_file_location(
    "convert_checkpoint_script", Path(__file__).resolve().parents[2] / "scripts" / "convert_checkpoint.py"
)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

BASE_CHANNELS = 8
# Channels of b0, b1a, b1b, b2a, b2b, b3b, an eighth of Inception-v1's.
BLOCKS = {
    "Mixed_3b": [8, 12, 16, 2, 4, 4],
    "Mixed_3c": [16, 16, 24, 4, 12, 8],
    "Mixed_4b": [24, 12, 26, 2, 6, 8],
    "Mixed_4c": [20, 14, 28, 3, 8, 8],
    "Mixed_4d": [16, 16, 32, 3, 8, 8],
    "Mixed_4e": [14, 18, 36, 4, 8, 8],
    "Mixed_4f": [32, 20, 40, 4, 16, 16],
    "Mixed_5b": [32, 20, 40, 4, 16, 16],
    "Mixed_5c": [48, 24, 48, 6, 16, 16],
}


@pytest.fixture
def config() -> I3DConfig:
    return I3DConfig(base_channels=BASE_CHANNELS, image_size=32)


def randomize_statistics(model: I3DModel) -> I3DModel:
    generator = torch.Generator().manual_seed(2)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


@pytest.fixture
def model(config, randomize_weights) -> I3DModel:
    torch.manual_seed(0)
    return randomize_statistics(randomize_weights(I3DModel(config))).eval()


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.rand(3, 16, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def original_weights(num_classes: int = 5, is_counting: bool = False) -> dict[str, torch.Tensor]:
    """
    Random weights in the layout of pytorch-i3d, whose classifier comes first. Newer versions of torch also count the
    batches.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {
        "logits.conv3d.weight": torch.randn(num_classes, sum(BLOCKS["Mixed_5c"]), 1, 1, 1, generator=generator),
        "logits.conv3d.bias": torch.randn(num_classes, generator=generator),
    }

    def add(name: str, in_channels: int, out_channels: int, kernel: int) -> None:
        scale = math.sqrt(2 / (in_channels * kernel**3))
        shape = (out_channels, in_channels, kernel, kernel, kernel)
        weights[f"{name}.conv3d.weight"] = scale * torch.randn(shape, generator=generator)
        weights[f"{name}.bn.weight"] = 0.8 + 0.4 * torch.rand(out_channels, generator=generator)
        weights[f"{name}.bn.bias"] = 0.1 * torch.randn(out_channels, generator=generator)
        weights[f"{name}.bn.running_mean"] = 0.1 * torch.randn(out_channels, generator=generator)
        weights[f"{name}.bn.running_var"] = 0.5 + torch.rand(out_channels, generator=generator)
        if is_counting:
            weights[f"{name}.bn.num_batches_tracked"] = torch.tensor(123)

    add("Conv3d_1a_7x7", 3, 8, 7)
    add("Conv3d_2b_1x1", 8, 8, 1)
    add("Conv3d_2c_3x3", 8, 24, 3)
    channels = 24
    for block, (b0, b1a, b1b, b2a, b2b, b3b) in BLOCKS.items():
        add(f"{block}.b0", channels, b0, 1)
        add(f"{block}.b1a", channels, b1a, 1)
        add(f"{block}.b1b", b1a, b1b, 3)
        add(f"{block}.b2a", channels, b2a, 1)
        add(f"{block}.b2b", b2a, b2b, 3)
        add(f"{block}.b3b", channels, b3b, 1)
        channels = b0 + b1b + b2b + b3b
    return weights


def same(features: torch.Tensor, kernels: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    """Zeros around, as TensorFlow's "SAME" defines it: less of them before than after."""
    pads = []
    for size, kernel, stride in zip(features.shape[2:], kernels, strides, strict=True):
        missing = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads = [missing // 2, math.ceil(missing / 2), *pads]
    return nn.functional.pad(features, pads)


def reference(weights: dict[str, torch.Tensor], clips: torch.Tensor) -> list[torch.Tensor]:
    """What pytorch-i3d computes up to the end points of the five stages, from `(B, 3, T, H, W)` clips."""

    def unit(features, name, stride=1):
        weight = weights[f"{name}.conv3d.weight"]
        features = nn.functional.conv3d(same(features, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        statistics = [weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return nn.functional.batch_norm(features, *statistics, eps=0.001).relu()

    def pool(features, kernels, strides):
        return nn.functional.max_pool3d(same(features, kernels, strides), kernels, strides)

    def mixed(features, name):
        b0 = unit(features, f"{name}.b0")
        b1 = unit(unit(features, f"{name}.b1a"), f"{name}.b1b")
        b2 = unit(unit(features, f"{name}.b2a"), f"{name}.b2b")
        b3 = unit(pool(features, (3, 3, 3), (1, 1, 1)), f"{name}.b3b")
        return torch.cat([b0, b1, b2, b3], dim=1)

    outputs = [unit(clips, "Conv3d_1a_7x7", stride=2)]
    features = unit(pool(outputs[-1], (1, 3, 3), (1, 2, 2)), "Conv3d_2b_1x1")
    outputs.append(unit(features, "Conv3d_2c_3x3"))
    for kernels, strides, blocks in (
        ((1, 3, 3), (1, 2, 2), ("3b", "3c")),
        ((3, 3, 3), (2, 2, 2), ("4b", "4c", "4d", "4e", "4f")),
        ((2, 2, 2), (2, 2, 2), ("5b", "5c")),
    ):
        features = pool(outputs[-1], kernels, strides)
        for block in blocks:
            features = mixed(features, f"Mixed_{block}")
        outputs.append(features)
    return outputs


def test_the_full_size_has_the_known_number_of_parameters():
    with torch.device("meta"):
        model = I3DModel(I3DConfig())
        outputs = model(torch.zeros(1, 64, 3, 224, 224))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 12_287_264
    # Table 1 of the paper: 25 M for two streams, with the classes of Kinetics.
    assert round(2 * (count + (1024 + 1) * 400) / 1e6) == 25
    shapes = [tuple(feature_map.shape[1:]) for feature_map in outputs.feature_maps]
    assert shapes == [(32, 112, 112, 64), (32, 56, 56, 192), (32, 28, 28, 480), (16, 14, 14, 832), (8, 7, 7, 1024)]


@pytest.fixture
def convert(tmp_path):
    """`convert(weights)`: saves the weights as old versions of torch did, runs the script, returns the folder."""

    def run(weights):
        torch.save(weights, tmp_path / "rgb.pt", _use_new_zipfile_serialization=False)
        script.main(["i3d", str(tmp_path / "rgb.pt"), str(tmp_path / "converted")])
        return tmp_path / "converted"

    return run


@pytest.mark.parametrize("size", [(16, 64, 64), (11, 37, 50)])
@pytest.mark.parametrize("num_classes, is_counting", [(400, False), (157, True)], ids=["imagenet", "charades"])
def test_converted_weights_compute_what_the_original_does(convert, capsys, num_classes, is_counting, size):
    weights = original_weights(num_classes, is_counting)
    folder = convert(weights)
    printed = capsys.readouterr().out
    assert "Dropped logits: logits.conv3d.bias, logits.conv3d.weight\n" in printed
    assert printed.count("num_batches_tracked") == (58 if is_counting else 0)  # the 57 norms', and the group's name
    frames = torch.randint(0, 256, (2, *size, 3), generator=torch.Generator().manual_seed(3)).float()
    expected = reference(weights, (frames / 255 * 2 - 1).movedim(-1, 1))

    preprocessing = json.loads((folder / "preprocessor_config.json").read_text())
    assert preprocessing["size"] == {"shortest_edge": 256}
    assert preprocessing["crop_size"] == {"height": 224, "width": 224}
    mean, std = torch.tensor(preprocessing["image_mean"]), torch.tensor(preprocessing["image_std"])
    pixels = ((frames * preprocessing["rescale_factor"] - mean) / std).movedim(-1, 2)
    model, info = I3DModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        outputs = model(pixels)
    for feature_map, features in zip(outputs.feature_maps, expected, strict=True):
        assert features.std() > 0.1
        torch.testing.assert_close(feature_map, features.movedim(1, -1), rtol=1e-4, atol=1e-4 * features.max().item())


def test_every_key_of_a_checkpoint_is_accounted_for(convert, tmp_path):
    weights = original_weights(is_counting=True)
    weights["Mixed_5d.b0.bn.num_batches_tracked"] = torch.tensor(1)
    weights["Mixed_3b.b0.conv3d.bias"] = torch.zeros(8)
    del weights["Mixed_4c.b2b.bn.running_var"]
    with pytest.raises(ValueError) as error:
        convert(weights)
    for problem in (
        "missing: Mixed_4c.b2b.bn.running_var",
        "left over: Mixed_5d.b0.bn.num_batches_tracked ()",
        "left over: Mixed_3b.b0.conv3d.bias (8,)",
    ):
        assert problem in str(error.value)
    assert str(error.value).count("\n") == 3
    assert not (tmp_path / "converted").exists()


def test_another_checkpoint_is_refused(convert):
    with pytest.raises(ValueError, match="is no I3D of pytorch-i3d: expected `Conv3d_1a_7x7.conv3d.weight`"):
        convert({"conv3d_1a_7x7.conv3d.weight": torch.zeros(4, 3, 7, 7, 7)})


@pytest.mark.parametrize("size", [(16, 32, 32), (16, 64, 32), (11, 37, 50), (1, 5, 3)])
def test_feature_maps_are_the_outputs_of_the_stages(model, size):
    frames, height, width = size
    clips = torch.randn(2, frames, 3, height, width)
    outputs = model(clips)
    states = clips.transpose(1, 2)
    assert len(model.stages) == len(outputs.feature_maps) == model.config.num_hidden_layers
    for stage, feature_map, strides, width in zip(
        model.stages, outputs.feature_maps, model.config.stage_strides, model.config.hidden_sizes, strict=True
    ):
        states = stage(states)
        torch.testing.assert_close(feature_map, states.movedim(1, -1))
        expected = [math.ceil(length / stride) for length, stride in zip(size, strides, strict=True)]
        assert feature_map.shape == (2, *expected, width)
    assert torch.equal(outputs.last_hidden_state, outputs.feature_maps[-1])
    assert outputs.last_hidden_state.shape[-1] == model.config.hidden_size


def test_feature_maps_are_returned_on_demand(model, clips):
    outputs = model(clips, output_feature_maps=False)
    assert outputs.feature_maps is None
    assert torch.equal(outputs.last_hidden_state, model(clips).last_hidden_state)
    assert len(model(clips, return_dict=False)) == 2


@pytest.mark.parametrize("is_training", [False, True])
def test_a_clip_alone_equals_the_clip_in_a_batch(model, clips, is_training):
    model.train(is_training)
    together = model(clips)
    for index in range(len(clips)):
        alone = model(clips[index : index + 1])
        for one, many in zip(alone.feature_maps, together.feature_maps, strict=True):
            torch.testing.assert_close(one[0], many[index], rtol=1e-4, atol=1e-4)


def test_a_snippet_reacts_to_the_frames_of_its_clip_alone(model, clips):
    before = model(clips).last_hidden_state
    clips = clips.clone()
    clips[1, 7] += 10
    changed = (model(clips).last_hidden_state != before).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, False]


def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none(model, clips):
    model.train()
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            assert all(stage.gradient_checkpointing for stage in model.stages)
        model.zero_grad()
        outputs = model(clips)
        sum(feature_map.square().mean() for feature_map in outputs.feature_maps).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_frozen_batch_norms_keep_their_statistics(model, clips):
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    expected = model(clips).last_hidden_state
    model.train()
    torch.testing.assert_close(model(clips).last_hidden_state, expected)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_a_fresh_model_has_frozen_batch_norms_before_anybody_calls_train(config, clips):
    model = I3DModel(config)
    model(clips)
    assert model.training
    assert all((buffer == 0).all() for name, buffer in model.named_buffers() if name.endswith("running_mean"))


def test_batch_norms_learn_if_they_are_not_frozen(clips):
    model = I3DModel(I3DConfig(base_channels=4, freeze_batch_norm=False, batch_norm_momentum=1.0)).train()
    trained = model(clips).last_hidden_state
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert buffer == 1, name
    statistics = model.stages[0].Conv3d_1a_7x7.bn.running_mean.clone()
    assert statistics.abs().max() > 0
    evaluated = model.eval()(clips).last_hidden_state
    assert torch.equal(model.stages[0].Conv3d_1a_7x7.bn.running_mean, statistics)
    assert not torch.equal(evaluated, trained)


def test_pooling_leaves_out_what_is_outside():
    """Adapters make negative features, and a zero beside them would win."""
    features = -torch.ones(1, 2, 3, 5, 4)
    for kernel_size, stride in (((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))):
        pooled = I3DMaxPool(kernel_size, stride)(features)
        assert torch.equal(pooled, -torch.ones_like(pooled))


def test_a_fresh_model_keeps_the_scale(clips):
    torch.manual_seed(0)
    model = I3DModel(I3DConfig(base_channels=16))
    for feature_map in model(clips).feature_maps:
        assert 0.1 < feature_map.std() < 3


def test_save_and_load(model, clips, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = I3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.base_channels == BASE_CHANNELS and loaded.config.image_size == 32
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded(clips).last_hidden_state, model(clips).last_hidden_state)


def test_bfloat16(model, clips):
    expected = model(clips).last_hidden_state
    outputs = model.bfloat16()(clips.bfloat16()).last_hidden_state
    assert outputs.dtype == torch.bfloat16
    assert (outputs.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (1, 3, 16, 32, 32)])
def test_pixels_of_another_layout_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"expected \(clips, frames, 3, height, width\)"):
        model(torch.zeros(shape))


@pytest.mark.parametrize("arguments", [{"base_channels": 0}, {"num_frames": 0}, {"image_size": [0, 32]}])
def test_sizes_that_make_no_sense_are_refused(arguments):
    with pytest.raises(StrictDataclassClassValidationError):
        I3DConfig(**arguments)
