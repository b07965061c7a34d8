"""
C3D, and the conversion of its original weights.

The originals are random weights under the names of DavideA/c3d-pytorch. What they should compute is written here from
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

from modeling_scada.configuration_c3d import C3DConfig
from modeling_scada.modeling_c3d import C3DModel


SPEC = importlib.util.spec_from_file_location(
    "convert_checkpoint_script", Path(__file__).resolve().parents[2] / "scripts" / "convert_checkpoint.py"
)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

WIDTHS = [4, 4, 6, 8, 10]
# (name, input, output) of the convolutions, as places in [3, *WIDTHS]
CONVOLUTIONS = [
    ("conv1", 0, 1),
    ("conv2", 1, 2),
    ("conv3a", 2, 3),
    ("conv3b", 3, 3),
    ("conv4a", 3, 4),
    ("conv4b", 4, 4),
    ("conv5a", 4, 5),
    ("conv5b", 5, 5),
]
FULLY_CONNECTED = [("fc6", 12, 16 * WIDTHS[-1]), ("fc7", 12, 12), ("fc8", 7, 12)]
MEAN_BGR = (90.25, 97.66, 101.41)


@pytest.fixture
def config() -> C3DConfig:
    return C3DConfig(hidden_sizes=WIDTHS, image_size=32)


@pytest.fixture
def model(config, randomize_weights) -> C3DModel:
    torch.manual_seed(0)
    return randomize_weights(C3DModel(config)).eval()


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randn(3, 16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def original_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights in the layout of the Sports-1M checkpoints for PyTorch."""
    generator = torch.Generator().manual_seed(seed)
    widths = [3, *WIDTHS]
    weights = {}
    for name, source, target in CONVOLUTIONS:
        fan_in = 27 * widths[source]
        shape = (widths[target], widths[source], 3, 3, 3)
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * math.sqrt(2 / fan_in)
        weights[f"{name}.bias"] = 0.1 * torch.randn(widths[target], generator=generator)
    for name, rows, columns in FULLY_CONNECTED:
        weights[f"{name}.weight"] = torch.randn(rows, columns, generator=generator)
        weights[f"{name}.bias"] = torch.randn(rows, generator=generator)
    return weights


def caffe_max_pool(features: torch.Tensor, kernel_size: tuple[int, int, int]) -> torch.Tensor:
    """Windows side by side from the first position on; the last ones may hang over, and see what is inside."""
    pads = []
    for size, kernel in zip(features.shape[2:], kernel_size, strict=True):
        pads = [0, -size % kernel, *pads]
    return nn.functional.max_pool3d(nn.functional.pad(features, pads, value=-math.inf), kernel_size)


def reference(weights: dict[str, torch.Tensor], bgr: torch.Tensor) -> list[torch.Tensor]:
    """pool1 to pool5 of `(B, 3, T, H, W)` clips in BGR."""
    features, outputs = bgr, []
    for stage, names in enumerate((["1"], ["2"], ["3a", "3b"], ["4a", "4b"], ["5a", "5b"])):
        for name in names:
            weight, bias = weights[f"conv{name}.weight"], weights[f"conv{name}.bias"]
            features = nn.functional.conv3d(features, weight, bias, padding=1).relu()
        features = caffe_max_pool(features, (2, 2, 2) if stage else (1, 2, 2))
        outputs.append(features)
    return outputs


def test_the_full_size_has_the_known_number_of_parameters():
    with torch.device("meta"):
        model = C3DModel(C3DConfig())
        outputs = model(torch.zeros(1, 16, 3, 112, 112))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 27_655_936
    # With fc6, fc7 and the classes of UCF101 it is 78.4 M, as mmaction2 says, and 80.0 M with those of Sports-1M.
    count += (8192 + 1) * 4096 + (4096 + 1) * 4096
    assert round((count + (4096 + 1) * 101) / 1e6, 1) == 78.4
    assert round((count + (4096 + 1) * 487) / 1e6, 1) == 80.0
    shapes = [tuple(feature_map.shape[1:]) for feature_map in outputs.feature_maps]
    # Table of the paper's section 3.3; 1 x 4 x 4 x 512 is what fc6 reads as 8192 numbers.
    assert shapes == [(16, 56, 56, 64), (8, 28, 28, 128), (4, 14, 14, 256), (2, 7, 7, 512), (1, 4, 4, 512)]


@pytest.fixture
def convert(tmp_path):
    """`convert(weights)`: saves the weights as old versions of torch did, runs the script, returns the folder."""

    def run(weights):
        torch.save(weights, tmp_path / "c3d.pickle", _use_new_zipfile_serialization=False)
        script.main(["c3d", str(tmp_path / "c3d.pickle"), str(tmp_path / "converted")])
        return tmp_path / "converted"

    return run


@pytest.mark.parametrize("size", [(16, 112, 112), (16, 37, 50)])
def test_converted_weights_compute_what_the_original_does(convert, capsys, size):
    weights = original_weights()
    folder = convert(weights)
    printed = capsys.readouterr().out
    assert "Dropped fc6: fc6.bias, fc6.weight\n" in printed and "Dropped fc8: fc8.bias, fc8.weight\n" in printed
    frames = torch.randint(0, 256, (2, *size, 3), generator=torch.Generator().manual_seed(3)).float()  # RGB
    bgr = frames.flip(-1) - torch.tensor(MEAN_BGR)
    expected = reference(weights, bgr.movedim(-1, 1))

    preprocessing = json.loads((folder / "preprocessor_config.json").read_text())
    assert preprocessing["size"] == {"height": 128, "width": 171}
    assert preprocessing["crop_size"] == {"height": 112, "width": 112}
    mean, std = torch.tensor(preprocessing["image_mean"]), torch.tensor(preprocessing["image_std"])
    pixels = ((frames * preprocessing["rescale_factor"] - mean) / std).movedim(-1, 2)
    with torch.no_grad():
        outputs = C3DModel.from_pretrained(folder)(pixels)
    for feature_map, features in zip(outputs.feature_maps, expected, strict=True):
        assert features.std() > 0.1
        torch.testing.assert_close(feature_map, features.movedim(1, -1), rtol=1e-4, atol=1e-4 * features.max().item())


def test_every_key_of_a_checkpoint_is_accounted_for(convert, tmp_path):
    weights = original_weights()
    weights["conv6.weight"] = torch.zeros(1)
    weights["fc9.bias"] = torch.zeros(2)
    del weights["conv4a.bias"]
    with pytest.raises(ValueError) as error:
        convert(weights)
    for problem in ("missing: conv4a.bias", "left over: conv6.weight (1,)", "left over: fc9.bias (2,)"):
        assert problem in str(error.value)
    assert str(error.value).count("\n") == 3
    assert not (tmp_path / "converted").exists()


def test_another_checkpoint_is_refused(convert):
    with pytest.raises(ValueError, match="is no C3D: expected conv1.weight, conv2.weight"):
        convert({"features.0.weight": torch.zeros(4, 3, 3, 3, 3)})


@pytest.mark.parametrize("size", [(16, 32, 32), (32, 48, 32), (11, 37, 50), (1, 5, 3)])
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


def test_a_clip_alone_equals_the_clip_in_a_batch(model, clips):
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


def test_a_fresh_model_keeps_the_scale(config, clips):
    torch.manual_seed(0)
    model = C3DModel(C3DConfig(hidden_sizes=[16] * 5))
    for feature_map in model(clips).feature_maps:
        assert 0.1 < feature_map.std() < 10
    assert all((parameter == 0).all() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_save_and_load(model, clips, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = C3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.hidden_sizes == model.config.hidden_sizes and loaded.config.image_size == 32
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


@pytest.mark.parametrize("arguments", [{"hidden_sizes": [4, 4]}, {"num_channels": 0}, {"image_size": [0, 32]}])
def test_sizes_that_make_no_sense_are_refused(arguments):
    with pytest.raises(StrictDataclassClassValidationError):
        C3DConfig(**arguments)
