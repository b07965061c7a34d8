"""C3D and I3D as backbones: clips joined in time, SCADA's branches after any stage, files."""

import json
import os
from pathlib import Path

import pytest
import torch
from fresh_process import run_python
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel

from modeling_scada import (
    C3DConfig,
    C3DModel,
    I3DConfig,
    I3DModel,
    ScadaAdapterConfig,
    ScadaConfig,
    ScadaForTemporalGrounding,
)
from modeling_scada.backbone_scada import VideoBackbone


CONFIGS = {
    "c3d": C3DConfig(hidden_sizes=[4, 4, 8, 8, 16], num_frames=16),
    "i3d": I3DConfig(base_channels=4, num_frames=16),
}
MODELS = {"c3d": C3DModel, "i3d": I3DModel}
# Steps of time of each stage for 16 frames, by the strides of the papers.
STEPS = {"c3d": [16, 8, 4, 2, 1], "i3d": [8, 8, 8, 4, 2]}
each = pytest.mark.parametrize("name", list(CONFIGS))


@pytest.fixture
def make_model(tiny_config, randomize_weights):
    def make(name: str) -> ScadaForTemporalGrounding:
        torch.manual_seed(0)
        config = ScadaConfig(
            video_config=CONFIGS[name].to_dict(),
            text_config=tiny_config.text_config,
            hidden_size=16,
            grid_size=16,
            num_train_proposals=136,
        )
        return randomize_weights(ScadaForTemporalGrounding(config), std=0.05).eval()

    return make


@pytest.fixture
def batch():
    """Two videos of two clips, three sentences each."""
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values_videos": torch.randn(2, 32, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(5, 100, (2, 3, 6), generator=generator),
        "labels": torch.rand(2, 3, 1, 2, generator=generator).sort(-1).values,
    }


@torch.no_grad()
def logits(model: nn.Module, batch: dict) -> torch.Tensor:
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def adapted(model: nn.Module, randomize_weights, **config) -> nn.Module:
    """With an adapter of random weights."""
    model = get_peft_model(model, ScadaAdapterConfig(reduction=2, **config)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scada_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@each
def test_clips_join_in_time(name):
    """Against the model on each clip by hand; each state is that of its stage."""
    torch.manual_seed(0)
    backbone = VideoBackbone(MODELS[name](CONFIGS[name])).eval()
    videos = torch.randn(2, 48, 3, 32, 32)
    with torch.no_grad():
        features, states = backbone(videos, output_hidden_states=True)
        by_hand = [[backbone.encoder(video[start : start + 16][None]) for start in (0, 16, 32)] for video in videos]
    expected = torch.stack([torch.cat([clip.last_hidden_state[0] for clip in video]) for video in by_hand])
    assert features.shape[:2] == (2, 3 * STEPS[name][-1]) and features.std() > 0
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert [state.shape[1] for state in states[1:]] == [3 * steps for steps in STEPS[name]]
    assert [state.shape[-1] for state in states[1:]] == backbone.layer_dims
    for stage, state in enumerate(states[1:]):
        expected = torch.stack([torch.cat([clip.feature_maps[stage][0] for clip in video]) for video in by_hand])
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)


@each
def test_a_frame_touches_its_own_clip_alone(name):
    torch.manual_seed(0)
    backbone = VideoBackbone(MODELS[name](CONFIGS[name])).eval()
    videos = torch.randn(1, 48, 3, 32, 32)
    changed = videos.clone()
    changed[:, 20] += 1.0
    with torch.no_grad():
        difference = (backbone(changed)[0] - backbone(videos)[0]).abs().amax((0, 2, 3, 4))
    touched = difference.view(3, STEPS[name][-1]).amax(1) > 0
    assert touched.tolist() == [False, True, False]


@each
@pytest.mark.parametrize(
    "layers", [{"inner_layers": "all", "outer_layers": []}, {"inner_layers": [], "outer_layers": "all"}, {}]
)
def test_a_fresh_adapter_changes_nothing_and_sentences_do_not_meet(make_model, batch, randomize_weights, name, layers):
    model = make_model(name)
    expected = logits(model, batch)
    fresh = get_peft_model(make_model(name), ScadaAdapterConfig(reduction=2, **layers)).eval()
    assert torch.equal(logits(fresh, batch), expected)
    trained = adapted(model, randomize_weights, **layers)
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
@pytest.mark.parametrize("tuning", ["full", "scada", "lora"])
def test_every_trainable_weight_gets_a_gradient_with_and_without_checkpointing(make_model, batch, name, tuning):
    gradients = []
    for checkpointing in (False, True):
        model = make_model(name).double()
        if tuning == "scada":
            torch.manual_seed(3)
            model = get_peft_model(model, ScadaAdapterConfig(reduction=2, inner_layers="all", outer_layers="all"))
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if "scada_" in key:
                        parameter.add_(0.1 * torch.randn_like(parameter))
        elif tuning == "lora":
            torch.manual_seed(3)
            model = get_peft_model(model, LoraConfig(target_modules=r".*(conv\d\w?|conv3d)", modules_to_save=["head"]))
        else:
            model.model.text_encoder.requires_grad_(False)
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.train()
        inputs = batch | {"pixel_values_videos": batch["pixel_values_videos"].double()}
        model(**inputs).loss.backward()
        missing = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
        assert not missing
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-6, atol=1e-8)


def test_an_outer_branch_of_a_finer_stage_is_averaged_to_the_last_ones_steps(make_model, batch, randomize_weights):
    """C3D's first stage has 16 steps for each of the last one."""
    model = adapted(make_model("c3d"), randomize_weights, inner_layers=[], outer_layers=[0])
    plain, seen = make_model("c3d"), {}
    layer = model.get_base_model().model.video_backbone.layers[0]
    take = layer.take_outer_features
    layer.take_outer_features = lambda: seen.setdefault("outer", take())
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        fused = model.get_base_model().model(**inputs).last_hidden_state
        expected = plain.model(**inputs).last_hidden_state
    assert seen["outer"].shape == (6, 32, 16)
    for step in range(2):
        mean = seen["outer"][:, 16 * step : 16 * (step + 1)].mean(1)
        torch.testing.assert_close(fused[:, step], expected[:, step] + mean, rtol=1e-4, atol=1e-5)


@each
def test_model_and_adapter_come_back_from_files(make_model, batch, randomize_weights, tmp_path, name):
    model = make_model(name)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(ScadaForTemporalGrounding.from_pretrained(tmp_path / "model"), batch), expected)
    assert (tmp_path / "model" / f"modeling_{name}.py").exists()  # for those without the package
    base = ScadaForTemporalGrounding.from_pretrained(tmp_path / "model")
    trained = adapted(base, randomize_weights, inner_layers="last 2", outer_layers="all")
    expected = logits(trained, batch)
    trained.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(ScadaForTemporalGrounding.from_pretrained(tmp_path / "adapter"), batch), expected)

    MODELS[name](CONFIGS[name]).save_pretrained(tmp_path / "encoder")
    model.model.text_encoder.save_pretrained(tmp_path / "text")
    built = ScadaForTemporalGrounding.from_backbones(
        tmp_path / "encoder", tmp_path / "text", hidden_size=16, grid_size=16
    )
    assert logits(built, batch).shape == (2, 3, 136)


def test_another_clip_length_is_refused(make_model, batch):
    batch["pixel_values_videos"] = batch["pixel_values_videos"][:, :24]
    with pytest.raises(ValueError, match="24 frames per video; the backbone reads clips of 16"):
        logits(make_model("i3d"), batch)


def test_a_branch_cannot_be_narrower_than_a_channel(make_model):
    with pytest.raises(ValueError, match="reduction=8 for a backbone of width 4"):
        get_peft_model(make_model("c3d"), ScadaAdapterConfig(reduction=8, inner_layers=[0]))


def test_a_pretrained_backbone_is_one_of_a_model(tmp_path, tiny_config):
    """The script on a few clips; the batch norms that it trained are frozen in what it saves."""
    root = Path(__file__).resolve().parents[2]
    config = json.dumps({"model_type": "i3d", "image_size": 32, "base_channels": 4, "freeze_batch_norm": False})
    command = [root / "scripts" / "pretrain_backbone.py", "--output_dir", tmp_path / "i3d"]
    command += ["--config", config, "--num_videos", "5", "--num_steps", "2", "--batch_size", "4"]
    done = run_python(command, env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    text_encoder = AutoModel.from_config(tiny_config.text_config)
    model = ScadaForTemporalGrounding.from_backbones(tmp_path / "i3d", text_encoder)
    assert model.config.video_config.freeze_batch_norm and model.config.video_config.base_channels == 4
    norm = model.model.video_backbone.encoder.stages[0].Conv3d_1a_7x7.bn
    assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


ELSEWHERE = """
import sys, torch
from transformers import AutoModel

batch = torch.load(sys.argv[1])
for folder in sys.argv[2:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules.")
    with torch.no_grad():
        torch.save(model(**batch).logits, f"{folder}/logits.pt")
"""


def test_a_folder_loads_where_the_package_is_not_installed(make_model, batch, hub, tmp_path):
    batch.pop("labels")
    torch.save(batch, tmp_path / "batch.pt")
    models = {name: make_model(name) for name in CONFIGS}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    arguments = [str(tmp_path / name) for name in ("batch.pt", *models)]
    hub.run(ELSEWHERE, tmp_path / "home", *arguments, hidden=["modeling_scada", "processing"])
    for name, model in models.items():
        assert torch.equal(torch.load(tmp_path / name / "logits.pt"), logits(model, batch))
