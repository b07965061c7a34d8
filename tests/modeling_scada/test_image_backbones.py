"""Convolutional image encoders as backbones, frame by frame: layout, batch norms, gradients, adapters, files."""

import copy

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel

from modeling_scada import (
    EfficientNetLiteConfig,
    ScadaAdapterConfig,
    ScadaConfig,
    ScadaForTemporalGrounding,
    TuningArguments,
)
from modeling_scada.backbone_scada import ENCODER_TYPES, VideoBackbone
from modeling_scada.training.tuning import prepare_tuning


STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 2, 1, 1]}
CONFIGS = {
    "resnet": CONFIG_MAPPING["resnet"](embedding_size=8, layer_type="basic", **STAGES),
    "regnet": CONFIG_MAPPING["regnet"](embedding_size=8, groups_width=4, **STAGES),
    "convnext": CONFIG_MAPPING["convnext"](layer_scale_init_value=0.5, **STAGES),
    "convnextv2": CONFIG_MAPPING["convnextv2"](**STAGES),
    "efficientnet_lite": EfficientNetLiteConfig(
        embedding_size=8, hidden_sizes=[8, 8, 12, 12, 12, 16, 16, 20], depths=[1, 2, 1, 1, 1, 1, 1]
    ),
}
# Where the stages are, and how many rows of the input stand behind a row of each stage, by the papers.
PLACES = {name: "stages" if name == "efficientnet_lite" else "encoder.stages" for name in CONFIGS}
STRIDES = dict.fromkeys(CONFIGS, [4, 8, 16, 32]) | {
    "regnet": [4, 8, 16, 32],
    "efficientnet_lite": [2, 4, 8, 16, 16, 32, 32, 32],
}
WITH_BATCH_NORM = ("resnet", "regnet", "efficientnet_lite")
PLACEMENTS = {
    "inner": {"inner_layers": [-2], "outer_layers": []},
    "outer": {"inner_layers": [], "outer_layers": "all"},
    "both": {"inner_layers": "last 3", "outer_layers": "even 4"},
}
each = pytest.mark.parametrize("name", CONFIGS)


def test_every_such_type_is_tested():
    kinds = {name for name, kind in ENCODER_TYPES.items() if kind.is_convolutional and not kind.clip_length}
    assert set(CONFIGS) == kinds


@pytest.fixture
def make_encoder(randomize_weights):
    """With random weights and statistics everywhere, in evaluation mode."""

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        encoder = randomize_weights(AutoModel.from_config(copy.deepcopy(CONFIGS[name])))
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
        return encoder.eval()

    return make


@pytest.fixture
def make_model(tiny_config, make_encoder, randomize_weights):
    def make(name: str) -> ScadaForTemporalGrounding:
        torch.manual_seed(0)
        text_encoder = AutoModel.from_config(tiny_config.text_config)
        model = ScadaForTemporalGrounding.from_backbones(
            make_encoder(name), text_encoder, hidden_size=16, grid_size=16, num_train_proposals=136
        )
        return randomize_weights(model, std=0.05).eval()

    return make


@pytest.fixture
def batch():
    """Two videos of five frames of 64 x 96 pixels, three sentences each."""
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values_videos": torch.randn(2, 5, 3, 64, 96, generator=generator),
        "input_ids": torch.randint(5, 100, (2, 3, 6), generator=generator),
        "labels": torch.rand(2, 3, 1, 2, generator=generator).sort(-1).values,
    }


@torch.no_grad()
def logits(model: nn.Module, batch: dict) -> torch.Tensor:
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def adapted(model: nn.Module, **config) -> nn.Module:
    """With an adapter of random weights."""
    model = get_peft_model(model, ScadaAdapterConfig(reduction=2, **config)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scada_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@each
def test_features_and_states_are_those_of_the_encoder_on_each_frame(make_encoder, batch, name):
    encoder = make_encoder(name)
    plain, videos = copy.deepcopy(encoder), batch["pixel_values_videos"]
    seen: list[list[torch.Tensor]] = []
    for stage in plain.get_submodule(PLACES[name]):
        of_stage: list[torch.Tensor] = []
        stage.register_forward_hook(lambda module, args, output, of_stage=of_stage: of_stage.append(output))
        seen.append(of_stage)
    backbone = VideoBackbone(encoder)
    with torch.no_grad():
        frames = [[plain(frame[None]).last_hidden_state[0] for frame in video] for video in videos]
        features, states = backbone(videos, output_hidden_states=True)
        assert torch.equal(features, backbone(videos)[0])
    expected = torch.stack([torch.stack(video) for video in frames]).permute(0, 1, 3, 4, 2)
    assert features.shape == (2, 5, 2, 3, 20) and features.std() > 0.01
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert [state.shape[-1] for state in states[1:]] == backbone.layer_dims == list(CONFIGS[name].hidden_sizes)
    for state, of_stage, stride in zip(states[1:], seen, STRIDES[name], strict=True):
        assert state.shape[:4] == (2, 5, 64 // stride, 96 // stride)
        for video in range(2):
            for frame in range(5):
                alone = of_stage[5 * video + frame][0].permute(1, 2, 0)
                torch.testing.assert_close(state[video, frame], alone, rtol=1e-4, atol=1e-4)


@each
def test_a_frame_touches_its_own_snippet_alone(make_encoder, batch, name):
    backbone = VideoBackbone(make_encoder(name))
    changed = batch["pixel_values_videos"].clone()
    changed[1, 3] += 1.0
    with torch.no_grad():
        difference = (backbone(changed)[0] - backbone(batch["pixel_values_videos"])[0]).abs().amax((2, 3, 4))
    assert (difference > 1e-6).nonzero().tolist() == [[1, 3]]


@each
def test_no_weight_is_there_for_other_tasks_alone(make_encoder, batch, name):
    backbone = VideoBackbone(make_encoder(name))
    backbone(batch["pixel_values_videos"])[0].square().mean().backward()
    assert [key for key, value in backbone.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
@pytest.mark.parametrize("tuning", ["full", "partial", "scada"])
def test_batch_norms_stay_as_they_are(make_model, batch, name, tuning):
    """Training mode gives the logits of evaluation mode, whatever else is in the batch, and leaves the statistics."""
    model = prepare_tuning(make_model(name), TuningArguments(tuning, reduction=2))
    encoder = model.get_submodule(
        "model.video_backbone" if tuning != "scada" else "base_model.model.model.video_backbone"
    )
    statistics = {key: value.clone() for key, value in encoder.named_buffers()}
    assert any("running_mean" in key for key in statistics)
    with torch.no_grad():
        expected = encoder.eval()(batch["pixel_values_videos"])[0] if tuning != "scada" else None
    model.train()
    model(**batch).loss.backward()
    assert all(torch.equal(value, statistics[key]) for key, value in encoder.named_buffers())
    if expected is not None:
        with torch.no_grad():
            assert torch.equal(encoder(batch["pixel_values_videos"])[0], expected)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_batch_norms_train_where_the_configuration_says_so(make_encoder, batch, name, tmp_path):
    encoder = make_encoder(name)
    encoder.config.freeze_batch_norm = False
    encoder.save_pretrained(tmp_path)
    backbone = VideoBackbone(AutoModel.from_pretrained(tmp_path)).train()
    before = {key: value.clone() for key, value in backbone.named_buffers() if "running_mean" in key}
    backbone(batch["pixel_values_videos"])
    assert all(not torch.equal(value, before[key]) for key, value in backbone.named_buffers() if key in before)
    backbone.eval()
    assert not any(module.training for module in backbone.modules())


@each
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_fresh_adapter_changes_nothing_and_sentences_do_not_meet(make_model, batch, name, placement):
    layers = PLACEMENTS[placement]
    model = make_model(name)
    expected = logits(model, batch)
    fresh = logits(get_peft_model(model, ScadaAdapterConfig(reduction=2, **layers)).eval(), batch)
    # RegNet's convolutions in groups round otherwise where their input lies otherwise in memory, as after a branch.
    torch.testing.assert_close(fresh, expected, rtol=0, atol=1e-5 if name == "regnet" else 0)
    trained = adapted(make_model(name), **layers)
    together = logits(trained, batch)
    assert (together - expected).abs().max() > 1e-3
    for video in range(2):
        for sentence in range(3):
            alone = {
                "pixel_values_videos": batch["pixel_values_videos"][video : video + 1],
                "input_ids": batch["input_ids"][video : video + 1, sentence : sentence + 1],
            }
            torch.testing.assert_close(logits(trained, alone)[0, 0], together[video, sentence], rtol=1e-4, atol=1e-4)


@each
@pytest.mark.parametrize("tuning", ["full", "partial", "lora", "tia", "scada"])
def test_every_trainable_weight_gets_a_gradient(make_model, batch, name, tuning):
    torch.manual_seed(3)
    model = prepare_tuning(make_model(name), TuningArguments(tuning, reduction=2, outer_layers="all"))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "scada_" in key or "lora_" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.train()
    model(**batch).loss.backward()
    assert not [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    trained = [key for key, value in model.named_parameters() if value.grad is not None and "video_backbone" in key]
    assert trained
    if tuning == "lora":
        stages = {key.split("stages.")[1].split(".")[0] for key in trained}
        assert len(stages) == len(CONFIGS[name].hidden_sizes) - (name == "efficientnet_lite")


def test_gradients_with_checkpointing_are_those_without(make_model, batch):
    gradients = []
    for checkpointing in (False, True):
        model = adapted(make_model("efficientnet_lite").double(), inner_layers="last 3", outer_layers="even 4")
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.train()
        torch.manual_seed(0)  # of the proposals that are drawn
        model(**batch | {"pixel_values_videos": batch["pixel_values_videos"].double()}).loss.backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "efficientnet_lite"])
def test_checkpointing_that_transformers_does_not_have_is_refused(make_model, name):
    with pytest.raises(ValueError, match=f"Received a {name} to train with gradient checkpointing"):
        model = make_model(name)
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


@each
def test_model_and_adapter_come_back_from_files(make_model, batch, tmp_path, name):
    model = make_model(name)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path / "model")
    loaded, info = ScadaForTemporalGrounding.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(loaded, batch), expected, rtol=0, atol=1e-5)
    trained = adapted(loaded, inner_layers="last 2", outer_layers="all")
    with_adapter = logits(trained, batch)
    assert (with_adapter - expected).abs().max() > 1e-3
    trained.save_pretrained(tmp_path / "adapter")
    again = logits(ScadaForTemporalGrounding.from_pretrained(tmp_path / "adapter"), batch)
    torch.testing.assert_close(again, with_adapter, rtol=0, atol=1e-5)


@pytest.mark.parametrize("class_name", ["ResNet", "RegNet", "ConvNext", "ConvNextV2"])
def test_from_a_classifier(batch, tmp_path, tiny_config, class_name):
    name = class_name.lower()
    torch.manual_seed(0)
    checkpoint = getattr(transformers, f"{class_name}ForImageClassification")(copy.deepcopy(CONFIGS[name])).eval()
    plain = copy.deepcopy(checkpoint.base_model)
    checkpoint.save_pretrained(tmp_path)
    text_encoder = AutoModel.from_config(tiny_config.text_config)
    for source in (checkpoint, str(tmp_path)):
        model = ScadaForTemporalGrounding.from_backbones(source, text_encoder, hidden_size=16, grid_size=16).eval()
        with torch.no_grad():
            features = model.model.video_backbone(batch["pixel_values_videos"])[0]
            expected = plain(batch["pixel_values_videos"][1, 2:3]).last_hidden_state[0].permute(1, 2, 0)
        torch.testing.assert_close(features[1, 2], expected, rtol=1e-4, atol=1e-5)


def test_a_configuration_with_such_a_backbone_needs_no_width(tiny_config, batch):
    config = ScadaConfig(
        video_config=CONFIGS["resnet"], text_config=tiny_config.text_config, hidden_size=16, grid_size=16
    )
    assert logits(ScadaForTemporalGrounding(config).eval(), batch).shape == (2, 3, 136)


@pytest.mark.parametrize("num_stages", [1, 5, 7])
def test_efficientnet_lite_may_end_after_a_stage(num_stages, make_encoder, tmp_path, caplog):
    """Weights of the whole model in a folder whose configuration names the first stages alone."""
    whole = make_encoder("efficientnet_lite")
    whole.save_pretrained(tmp_path)
    config = copy.deepcopy(CONFIGS["efficientnet_lite"])
    config.update({name: getattr(config, name)[:num_stages] for name in ("hidden_sizes", "depths")})
    config.save_pretrained(tmp_path)
    cut = AutoModel.from_pretrained(tmp_path).eval()
    assert "LOAD REPORT" not in caplog.text
    frames = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        expected = whole.stem(frames)
        for stage in list(whole.stages)[:num_stages]:
            expected = stage(expected)
        assert torch.equal(cut(frames).last_hidden_state, expected)
    assert VideoBackbone(cut).layer_dims == [8, 8, 12, 12, 12, 16, 16][:num_stages]


def test_weights_that_a_cut_efficientnet_lite_lacks_are_reported(make_encoder, tmp_path, caplog):
    whole = make_encoder("efficientnet_lite")
    weights = whole.state_dict()
    del weights["stages.1.0.project.conv.weight"]
    whole.save_pretrained(tmp_path, state_dict=weights | {"stages.0.further": torch.zeros(1)})
    config = copy.deepcopy(CONFIGS["efficientnet_lite"])
    config.update({name: getattr(config, name)[:5] for name in ("hidden_sizes", "depths")})
    config.save_pretrained(tmp_path)
    _, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == (
        {"stages.1.0.project.conv.weight"},
        {"stages.0.further"},
    )
    assert "LOAD REPORT" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [({"depths": [1] * 6}, "seven"), ({"hidden_sizes": [4] * 6}, "eight"), ({"depths": [0] * 7}, "positive")],
)
def test_sizes_of_efficientnet_lite_that_do_not_fit(change, message):
    with pytest.raises(Exception, match=message):
        EfficientNetLiteConfig(**change)
