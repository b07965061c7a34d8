"""Every type of encoder that the video backbone supports: layout, clips, gradients, adapters, files, errors."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoModel, DistilBertConfig, DistilBertModel, PreTrainedModel

from modeling_scada import ScadaAdapterConfig, ScadaConfig, ScadaForTemporalGrounding, TuningArguments
from modeling_scada.backbone_scada import ENCODER_TYPES, VideoBackbone
from modeling_scada.training.tuning import peft_config


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_MLP = {**TINY, "intermediate_size": 64}


@dataclass(frozen=True)
class Case:
    """
    A tiny encoder, and what its paper and transformers say about it, written out.

    The numbers of snippets, rows and columns differ where the type allows it, so that exchanged axes show.
    """

    config: dict
    layers: str  # where transformers keeps them
    clip_length: int = 1
    tubelet: int = 1
    grid: tuple[int, int] = (3, 2)  # rows and columns of patches of 16 pixels
    num_class_tokens: int = 0
    is_patch_major: bool = False
    arguments: dict = field(default_factory=dict)
    unused: tuple[str, ...] = ()  # weights that no snippet depends on
    has_fixed_size: bool = False

    @property
    def snippets(self) -> int:
        """Of a clip."""
        return self.clip_length // self.tubelet

    def pixels(self, *, videos: int = 2, clips: int = 2, seed: int = 0) -> torch.Tensor:
        """Random videos `(B, T, 3, H, W)`; an image encoder's have five frames."""
        frames = self.clip_length * clips if self.clip_length > 1 else 5
        rows, columns = self.grid
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(videos, frames, 3, 16 * rows, 16 * columns, generator=generator)

    def clips_of(self, video: torch.Tensor) -> list[torch.Tensor]:
        """What the encoder is to be called with, one after the other."""
        if self.clip_length == 1:
            return [frame[None] for frame in video]
        return [video[start : start + self.clip_length][None] for start in range(0, len(video), self.clip_length)]

    def lay_out(self, clips: list[torch.Tensor]) -> torch.Tensor:
        """Tokens `(1, tokens, C)` of each clip -> `(N, h, w, C)`, token by token."""
        rows, columns = self.grid
        result = torch.full((len(clips) * self.snippets, rows, columns, clips[0].shape[-1]), torch.nan)
        for index, tokens in enumerate(clips):
            assert tokens.shape[:2] == (1, self.num_class_tokens + self.snippets * rows * columns)
            for t in range(self.snippets):
                for h in range(rows):
                    for w in range(columns):
                        time_major = (t * rows + h) * columns + w
                        patch_major = (h * columns + w) * self.snippets + t
                        place = self.num_class_tokens + (patch_major if self.is_patch_major else time_major)
                        result[index * self.snippets + t, h, w] = tokens[0, place]
        return result


INTERPOLATED = {"interpolate_pos_encoding": True}
CASES = {
    "videomae": Case(
        {"image_size": [48, 32], "num_frames": 8, **TINY_MLP, "use_mean_pooling": False},
        "encoder.layer",
        clip_length=8,
        tubelet=2,
    ),
    "vjepa2": Case(
        # The predictor has as many layers as the encoder.
        {"crop_size": 32, "frames_per_clip": 6, **TINY, "hidden_size": 48, "mlp_ratio": 2, "pred_hidden_size": 48}
        | {"pred_num_attention_heads": 2, "pred_num_hidden_layers": 2},
        "encoder.layer",
        clip_length=6,
        tubelet=2,
        grid=(2, 2),
        arguments={"skip_predictor": True},
        unused=("predictor.",),
        has_fixed_size=True,
    ),
    "vivit": Case(
        {"image_size": [48, 32], "num_frames": 8, "tubelet_size": [2, 16, 16], **TINY_MLP},
        "layers",
        clip_length=8,
        tubelet=2,
        num_class_tokens=1,
        unused=("pooler.",),
        has_fixed_size=True,
    ),
    "timesformer": Case(
        {"image_size": 32, "num_frames": 3, **TINY_MLP},
        "encoder.layer",
        clip_length=3,
        grid=(2, 2),
        num_class_tokens=1,
        is_patch_major=True,
        has_fixed_size=True,
    ),
    # These were pretrained on squares, here of 48 pixels, and read frames of 48 x 32.
    "clip_vision_model": Case(
        {"image_size": 48, **TINY_MLP},
        "encoder.layers",
        num_class_tokens=1,
        arguments=INTERPOLATED,
        unused=("post_layernorm.",),
    ),
    "siglip_vision_model": Case(
        {"image_size": 48, **TINY_MLP}, "encoder.layers", arguments=INTERPOLATED, unused=("head.",)
    ),
    "dinov2": Case(
        {"image_size": 48, **TINY, "mlp_ratio": 2},
        "encoder.layer",
        num_class_tokens=1,
        unused=("embeddings.mask_token",),
    ),
    "dinov2_with_registers": Case(
        {"image_size": 48, **TINY, "mlp_ratio": 2, "num_register_tokens": 3},
        "encoder.layer",
        num_class_tokens=4,
        unused=("embeddings.mask_token",),
    ),
    "dinov3_vit": Case(
        {"image_size": 48, **TINY_MLP, "num_register_tokens": 2},
        "model.layer",
        num_class_tokens=3,
        unused=("embeddings.mask_token",),
    ),
}
TEXT = {"vocab_size": 100, "max_position_embeddings": 64, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
PLACEMENTS = {
    "inner": {"inner_layers": [0], "outer_layers": []},
    "outer": {"inner_layers": [], "outer_layers": "all"},
    "both": {"inner_layers": "all", "outer_layers": "all"},
}


class ConvolutionCounter(TorchDispatchMode):
    """Counts convolutions."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "convolution" in str(func)
        return func(*args, **(kwargs or {}))


each_type = pytest.mark.parametrize("name", CASES)


def test_every_type_with_tokens_is_tested():
    assert set(CASES) == {name for name, kind in ENCODER_TYPES.items() if not kind.is_convolutional}


def video_config(name: str, **changes):
    return CONFIG_MAPPING[name](**CASES[name].config | {"patch_size": 16} | changes)


@pytest.fixture
def make_encoder(randomize_weights) -> Callable[..., PreTrainedModel]:
    """`make_encoder(name, **config)`: transformers' encoder, with random weights everywhere, in evaluation mode."""

    def make(name: str, **changes) -> PreTrainedModel:
        torch.manual_seed(0)
        return randomize_weights(AutoModel.from_config(video_config(name, **changes))).eval()

    return make


@pytest.fixture
def make_model(randomize_weights) -> Callable[..., ScadaForTemporalGrounding]:
    """`make_model(name, dtype=torch.float32)`: a tiny model with random weights everywhere, in evaluation mode."""

    def make(name: str, dtype: torch.dtype = torch.float32) -> ScadaForTemporalGrounding:
        torch.manual_seed(0)
        config = ScadaConfig(
            video_config=video_config(name),
            text_config=DistilBertConfig(**TEXT),
            hidden_size=16,
            grid_size=8,
            num_train_proposals=16,
        )
        return randomize_weights(ScadaForTemporalGrounding(config)).eval().to(dtype)

    return make


@pytest.fixture
def adapt(randomize_weights) -> Callable[..., PeftModel]:
    """`adapt(model, placement="both")`: with an adapter of random weights, in evaluation mode."""

    def adapt(model: nn.Module, placement: str = "both") -> PeftModel:
        model = get_peft_model(model, ScadaAdapterConfig(reduction=4, **PLACEMENTS[placement]))
        randomize_weights(nn.ParameterList(weight for weight in model.parameters() if weight.requires_grad), seed=3)
        return model.eval()

    return adapt


def batch_for(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Three videos that have two, one and three sentences."""
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values_videos": CASES[name].pixels(videos=3).to(dtype),
        "input_ids": torch.randint(5, 100, (3, 3, 6), generator=generator),
        "sentence_mask": torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]),
        "labels": torch.rand(3, 3, 2, generator=generator).sort(-1).values,
    }


def run(model: nn.Module, batch: dict[str, torch.Tensor]):
    with torch.no_grad():
        return model(**{key: tensor for key, tensor in batch.items() if key != "labels"})


@torch.no_grad()
def by_hand(encoder: PreTrainedModel, case: Case, videos: torch.Tensor) -> torch.Tensor:
    """Features `(B, N, h, w, C)` of transformers' encoder, called clip by clip."""
    features = []
    for video in videos:
        outputs = [encoder(clip, **case.arguments).last_hidden_state for clip in case.clips_of(video)]
        features.append(case.lay_out(outputs))
    return torch.stack(features)


def differing(before: torch.Tensor, after: torch.Tensor, num_axes: int) -> list[list[int]]:
    """Where features `(B, N, h, w, C)` differ, in the first `num_axes` axes."""
    different = (before - after).abs().flatten(num_axes).amax(-1) > 1e-6
    return different.nonzero().tolist()


# Layout


@each_type
def test_features_are_those_of_the_encoder_on_each_clip(make_encoder, name):
    case, encoder = CASES[name], make_encoder(name)
    plain, backbone = copy.deepcopy(encoder), VideoBackbone(encoder)
    videos = case.pixels()
    with torch.no_grad():
        features, states = backbone(videos)
    expected = by_hand(plain, case, videos)
    assert (
        features.shape == expected.shape == (2, videos.shape[1] // case.tubelet, *case.grid, plain.config.hidden_size)
    )
    assert states is None and features.std() > 0.1
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@each_type
def test_features_of_squares_of_the_pretrained_size(make_encoder, name):
    case = CASES[name]
    side = 32 if case.has_fixed_size or name == "videomae" else 48
    changes = {"image_size": side} if name in ("videomae", "vivit") else {}
    case = replace(case, grid=(side // 16, side // 16))
    encoder = make_encoder(name, **changes)
    plain, backbone = copy.deepcopy(encoder), VideoBackbone(encoder)
    videos = case.pixels()
    with torch.no_grad():
        features = backbone(videos)[0]
    if case.arguments == INTERPOLATED:
        case = replace(case, arguments={})  # as transformers runs them when nothing is asked for
    torch.testing.assert_close(features, by_hand(plain, case, videos), rtol=1e-4, atol=1e-5)


@each_type
def test_hidden_states(make_encoder, name):
    """One before the first layer and one after each of transformers' own list of layers, laid out like features."""
    case, encoder = CASES[name], make_encoder(name)
    plain, backbone = copy.deepcopy(encoder), VideoBackbone(encoder)
    layers = plain.get_submodule(case.layers)
    seen: list[list[torch.Tensor]] = [[] for _ in range(len(layers) + 1)]
    layers[0].register_forward_pre_hook(lambda layer, args: seen[0].append(args[0]))
    for index, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda layer, args, output, states=seen[index + 1]: states.append(
                output if isinstance(output, torch.Tensor) else output[0]
            )
        )
    videos = case.pixels()
    with torch.no_grad():
        features, states = backbone(videos, output_hidden_states=True)
        assert torch.equal(features, backbone(videos)[0])
    expected = by_hand(plain, case, videos)
    assert len(states) == len(seen) == 3
    for state, clips in zip(states, seen, strict=True):
        per_video = len(clips) // 2
        reference = torch.stack([case.lay_out(clips[:per_video]), case.lay_out(clips[per_video:])])
        assert state.shape == features.shape
        torch.testing.assert_close(state, reference, rtol=1e-4, atol=1e-5)
    # Where there is a norm at the end, the features are those after it.
    assert torch.equal(states[-1], features) == (name == "clip_vision_model")
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    # The hooks that record stay, since other threads may be recording; another call adds none.
    with torch.no_grad():
        again = backbone(videos, output_hidden_states=True)[1]
    assert all(torch.equal(*pair) for pair in zip(states, again, strict=True))
    assert all(len(layer._forward_hooks) == 1 and not layer._forward_pre_hooks for layer in backbone.layers)


@each_type
def test_a_clip_alone_equals_the_clip_in_a_longer_video(make_encoder, name):
    case, backbone = CASES[name], VideoBackbone(make_encoder(name))
    videos = case.pixels(clips=3)
    with torch.no_grad():
        together = backbone(videos)[0]
        for video in range(2):
            for index, frames in enumerate(case.clips_of(videos[video])):
                alone = backbone(frames[:, None] if case.clip_length == 1 else frames)[0]
                place = slice(index * case.snippets, (index + 1) * case.snippets)
                torch.testing.assert_close(together[video, place], alone[0], rtol=1e-4, atol=1e-5)


# Impulses


@each_type
@pytest.mark.parametrize("frame", [0, 4])
def test_a_frame_changes_its_snippet_and_through_attention_its_clip(make_encoder, name, frame):
    case, backbone = CASES[name], VideoBackbone(make_encoder(name))
    videos = case.pixels()
    changed = videos.clone()
    changed[1, frame] += 1.0
    with torch.no_grad():
        before, states_before = backbone(videos, output_hidden_states=True)
        after, states_after = backbone(changed, output_hidden_states=True)
    assert differing(states_before[0], states_after[0], 2) == [[1, frame // case.tubelet]]
    first = frame // case.clip_length * case.snippets
    assert differing(before, after, 2) == [[1, snippet] for snippet in range(first, first + case.snippets)]


def switch_attention_off(layers: nn.ModuleList) -> int:
    """Every attention gives zeros from now on; returns how many there are."""
    attentions = [child for layer in layers for name, child in layer.named_children() if "att" in name]
    for attention in attentions:
        attention.register_forward_hook(
            lambda module, args, output: (
                torch.zeros_like(output)
                if isinstance(output, torch.Tensor)
                else (torch.zeros_like(output[0]), *output[1:])
            )
        )
    return len(attentions)


@each_type
def test_a_patch_changes_its_own_place(make_encoder, name):
    """Without attention a token depends on its own pixels, so a patch of a frame is one place in the features."""
    case, backbone = CASES[name], VideoBackbone(make_encoder(name))
    assert switch_attention_off(backbone.layers) == (4 if name == "timesformer" else 2)
    videos = case.pixels()
    num_frames = videos.shape[1]
    with torch.no_grad():
        before = backbone(videos)[0]
        for index in range(case.grid[0] * case.grid[1]):
            row, column = divmod(index, case.grid[1])
            video, frame = index % 2, (3 * index + 1) % num_frames
            changed = videos.clone()
            changed[video, frame, :, 16 * row + 5, 16 * column + 9] += 3.0
            after = backbone(changed)[0]
            assert differing(before, after, 4) == [[video, frame // case.tubelet, row, column]]


# Weights and gradients


@each_type
def test_patches_are_embedded_by_a_matrix_product(make_encoder, name):
    """Equal to the convolution, with its weights; copies too."""
    backbone = VideoBackbone(make_encoder(name)).double()
    conv, *others = [module for module in backbone.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    assert not others
    inputs = []
    hook = conv.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad(), ConvolutionCounter() as counter:
        backbone(CASES[name].pixels().double())
        hook.remove()
        for module in (conv, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
            found = module(inputs[0])
            assert counter.count == 0
            plain = nn.Conv3d if isinstance(conv, nn.Conv3d) else nn.Conv2d
            expected = plain.forward(conv, inputs[0])
            assert counter.count == 1
            counter.count = 0
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@each_type
def test_weights_keep_their_names_and_unused_ones_are_dropped(make_encoder, name):
    encoder = make_encoder(name)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    after = VideoBackbone(encoder).encoder.state_dict()
    dropped = {key for key in before if key.startswith(CASES[name].unused)} if CASES[name].unused else set()
    assert bool(dropped) == bool(CASES[name].unused)
    assert set(after) == set(before) - dropped
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


@each_type
def test_full_tuning_reaches_every_weight(make_model, name):
    """DistributedDataParallel refuses weights that trained and got no gradient."""
    model = make_model(name)
    model.model.text_encoder.requires_grad_(False)
    model.train()
    model(**batch_for(name)).loss.backward()
    trained = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    assert [key for key, weight in trained.items() if weight.grad is None] == []
    assert all(weight.grad.isfinite().all() for weight in trained.values())
    # Up to the first weights, and not by way of the head alone.
    assert all(weight.grad.abs().max() > 0 for weight in model.get_input_embeddings().parameters())


@each_type
def test_an_adapter_trains_and_the_backbone_does_not(make_model, adapt, name):
    model = adapt(make_model(name)).train()
    model(**batch_for(name)).loss.backward()
    found = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    assert found.keys() == {key for key, weight in model.named_parameters() if weight.requires_grad}
    assert not any("video_backbone" in key and ".scada_" not in key for key in found)
    branches = {key: gradient for key, gradient in found.items() if ".scada_" in key}
    assert len(branches) == 2 * 15 and all(gradient.abs().max() > 0 for gradient in branches.values())


def gradients(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Of a training step, and how often each layer ran in it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = [getattr(layer, "base_layer", layer) for layer in base.model.video_backbone.layers]
    counts = [0] * len(layers)
    handles = []

    def count(index: int) -> Callable:
        def hook(*_) -> None:
            counts[index] += 1

        return hook

    for index, layer in enumerate(layers):
        # Inside the layer, which a checkpoint runs again.
        handles.append(
            next(m for m in layer.modules() if isinstance(m, nn.Linear)).register_forward_hook(count(index))
        )
    model.zero_grad()
    torch.manual_seed(0)  # of the proposals that are drawn, and of DINOv3's positions in training
    model(**batch).loss.backward()
    for handle in handles:
        handle.remove()
    return {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}, counts


@each_type
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("tuning", ["full", "scada"])
def test_gradients_with_checkpointing_are_those_without(make_model, adapt, name, tuning, use_reentrant):
    model = make_model(name, torch.float64)
    if tuning == "scada":
        model = adapt(model)
    else:
        model.model.text_encoder.requires_grad_(False)
    model.train()
    batch = batch_for(name, torch.float64)
    expected, once = gradients(model, batch)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    found, counts = gradients(model, batch)
    assert once == [1, 1] and counts[1] == 2
    assert found.keys() == expected.keys()
    assert max(gradient.abs().max() for key, gradient in expected.items() if "video_backbone" in key) > 1e-4
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-7, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


# Adapters


@each_type
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_fresh_adapter_changes_nothing(make_model, name, placement):
    model, batch = make_model(name), batch_for(name)
    expected = run(model, batch)
    adapted = get_peft_model(model, ScadaAdapterConfig(reduction=4, **PLACEMENTS[placement])).eval()
    outputs = run(adapted, batch)
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.pred_segments, expected.pred_segments)


@each_type
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_sentences_together_equal_each_alone(make_model, adapt, name, placement):
    """
    From videos to sentences: class tokens too have to be those of the sentence's own video. With one video and one
    sentence there is nothing to mix up.
    """
    batch = batch_for(name, torch.float64)
    plain = run(make_model(name, torch.float64), batch)
    model = adapt(make_model(name, torch.float64), placement)
    outputs = run(model, batch)
    assert (outputs.logits - plain.logits)[batch["sentence_mask"] == 1].abs().amin(-1).max() > 1e-3
    for video, sentence in batch["sentence_mask"].nonzero().tolist():
        alone = run(
            model,
            {
                "pixel_values_videos": batch["pixel_values_videos"][video : video + 1],
                "input_ids": batch["input_ids"][video : video + 1, sentence : sentence + 1],
            },
        )
        torch.testing.assert_close(outputs.logits[video, sentence], alone.logits[0, 0], rtol=1e-7, atol=1e-8)
        together = outputs.pred_segments[video, sentence]
        torch.testing.assert_close(together, alone.pred_segments[0, 0], rtol=1e-7, atol=1e-8)
    # Another video in another place changes nothing, and the own one does.
    changed = {**batch, "pixel_values_videos": batch["pixel_values_videos"].clone()}
    changed["pixel_values_videos"][0] += torch.randn_like(changed["pixel_values_videos"][0])
    others = run(model, changed)
    torch.testing.assert_close(others.logits[1:], outputs.logits[1:], rtol=1e-7, atol=1e-8)
    assert ((others.logits - outputs.logits)[0, :2].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.num_class_tokens])
def test_class_tokens_pass_the_inner_branch_unchanged(make_model, adapt, name):
    """And grow from videos to sentences, in the order of the sentences: the second layer's input is written out."""
    case, batch = CASES[name], batch_for(name)
    model = adapt(make_model(name), "inner")
    layers = model.get_base_model().model.video_backbone.layers
    first: list[torch.Tensor] = []
    second: list[torch.Tensor] = []
    layers[0].base_layer.register_forward_hook(
        lambda layer, args, output: first.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    layers[1].register_forward_pre_hook(lambda layer, args: second.append(args[0]))
    run(model, batch)
    num_clips = batch["pixel_values_videos"].shape[1] // case.clip_length
    of_videos = first[0][:, : case.num_class_tokens].unflatten(0, (3, num_clips))
    of_sentences = second[0][:, : case.num_class_tokens].unflatten(0, (6, num_clips))
    assert (of_videos[0] - of_videos[1]).abs().max() > 1e-4  # they tell videos apart
    for sentence, video in enumerate([0, 0, 1, 2, 2, 2]):
        assert torch.equal(of_sentences[sentence], of_videos[video])


# Files


@each_type
def test_save_and_load(make_model, adapt, tmp_path, name):
    model, batch = make_model(name), batch_for(name)
    expected = run(model, batch)
    model.save_pretrained(tmp_path / "model")
    loaded, info = ScadaForTemporalGrounding.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ignored = {"dtype": None}
    assert loaded.config.video_config.to_dict() | ignored == model.config.video_config.to_dict() | ignored
    assert torch.equal(run(loaded, batch).logits, expected.logits)

    adapted = adapt(model)
    with_adapter = run(adapted, batch)
    assert (with_adapter.logits - expected.logits).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    outputs = run(reloaded, batch)
    assert torch.equal(outputs.logits, with_adapter.logits)
    assert torch.equal(outputs.pred_segments, with_adapter.pred_segments)

    adapted.get_base_model().save_base_model(tmp_path / "base")
    base = ScadaForTemporalGrounding.from_pretrained(tmp_path / "base")
    assert torch.equal(run(base, batch).logits, expected.logits)


def check_from_backbones(source: str | PreTrainedModel, plain: PreTrainedModel, name: str, folder: Path) -> None:
    """A model from `source` has features of `plain`, and still has them when it was saved and loaded."""
    case, text = CASES[name], DistilBertModel(DistilBertConfig(**TEXT))
    model = ScadaForTemporalGrounding.from_backbones(source, text, hidden_size=16, grid_size=8).eval()
    videos = case.pixels()
    expected = by_hand(plain, case, videos)
    with torch.no_grad():
        features = model.model.video_backbone(videos)[0]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert model.config.video_config.model_type == name
    model.save_pretrained(folder / "saved")
    loaded, info = ScadaForTemporalGrounding.from_pretrained(folder / "saved", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(loaded.model.video_backbone(videos)[0], features)


@each_type
@pytest.mark.parametrize("from_folder", [True, False])
def test_from_backbones(make_encoder, tmp_path, name, from_folder):
    encoder = make_encoder(name)
    plain = copy.deepcopy(encoder)
    encoder.save_pretrained(tmp_path / "encoder")
    check_from_backbones(str(tmp_path / "encoder") if from_folder else encoder, plain, name, tmp_path)


def two_towers(vision: str, whole: str, text: dict) -> Callable:
    def config():
        return CONFIG_MAPPING[whole](vision_config=video_config(vision).to_dict(), text_config=text)

    return config


CLIP_TEXT = {**TINY_MLP, "vocab_size": 100, "max_position_embeddings": 16}
clip_config = two_towers("clip_vision_model", "clip", {**CLIP_TEXT, "eos_token_id": 1})
siglip_config = two_towers("siglip_vision_model", "siglip", CLIP_TEXT)
# Class of the checkpoint, its configuration, type and place of the encoder in it.
CHECKPOINTS: list[tuple[str, Callable, str, str]] = [
    ("CLIPModel", clip_config, "clip_vision_model", "vision_model"),
    ("CLIPForImageClassification", clip_config, "clip_vision_model", "vision_model"),
    (
        "CLIPVisionModelWithProjection",
        lambda: video_config("clip_vision_model", projection_dim=8),
        "clip_vision_model",
        "vision_model",
    ),
    ("SiglipModel", siglip_config, "siglip_vision_model", "vision_model"),
    ("VideoMAEForVideoClassification", lambda: video_config("videomae"), "videomae", "videomae"),
    ("VJEPA2ForVideoClassification", lambda: video_config("vjepa2"), "vjepa2", "vjepa2"),
    ("VivitForVideoClassification", lambda: video_config("vivit"), "vivit", "vivit"),
    ("TimesformerForVideoClassification", lambda: video_config("timesformer"), "timesformer", "timesformer"),
    ("Dinov2ForImageClassification", lambda: video_config("dinov2"), "dinov2", "dinov2"),
]


@pytest.mark.parametrize(
    ("class_name", "make_config", "name", "place"), CHECKPOINTS, ids=[checkpoint[0] for checkpoint in CHECKPOINTS]
)
@pytest.mark.parametrize("from_folder", [True, False])
def test_from_backbones_of_a_larger_checkpoint(
    randomize_weights, tmp_path, class_name, make_config, name, place, from_folder
):
    torch.manual_seed(0)
    checkpoint = randomize_weights(getattr(transformers, class_name)(make_config())).eval()
    plain = copy.deepcopy(checkpoint.get_submodule(place))
    checkpoint.save_pretrained(tmp_path / "checkpoint")
    source = str(tmp_path / "checkpoint") if from_folder else checkpoint
    check_from_backbones(source, plain, name, tmp_path)


# What does not fit


@each_type
def test_input_that_does_not_fit_is_refused(make_encoder, name):
    case, backbone = CASES[name], VideoBackbone(make_encoder(name))
    height, width = 16 * case.grid[0], 16 * case.grid[1]

    def refused(shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            backbone(torch.zeros(shape))

    fits = (1, case.clip_length)
    refused((*fits, 3, height + 8, width), f"Received frames of {height + 8} x {width} pixels; .* 16 x 16")
    refused((*fits, 3, height, width + 8), f"Received frames of {height} x {width + 8} pixels; .* 16 x 16")
    refused((*fits, 3, 0, width), f"Received frames of 0 x {width} pixels")
    refused((1, 0, 3, height, width), "Received 0 frames per video")
    refused((*fits, 1, height, width), r"expected \(videos, frames, 3, height, width\)")
    refused((case.clip_length, 3, height, width), r"expected \(videos, frames, 3, height, width\)")
    if case.clip_length > 1:
        wrong = case.clip_length + 1
        message = f"Received {wrong} frames per video; the backbone reads clips of {case.clip_length}"
        refused((1, wrong, 3, height, width), message)
    larger = torch.zeros(*fits, 3, height + 16, width + 16)
    if case.has_fixed_size:
        refused(
            tuple(larger.shape),
            rf"frames of {height + 16} x {width + 16} pixels; {name} supports only the size .*(32|48)",
        )
        if height != width:
            refused(
                (*fits, 3, width, height),
                f"Received frames of {width} x {height} pixels; {name} supports only the size",
            )
    else:
        assert backbone(larger)[0].shape[1:4] == (case.snippets, case.grid[0] + 1, case.grid[1] + 1)


def test_vjepa2_at_another_size(make_encoder, tmp_path):
    """Its positions are computed from the configuration, so the error's advice to change that is good."""
    encoder = make_encoder("vjepa2")
    encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another `crop_size`"):
        VideoBackbone(encoder)(torch.zeros(1, 6, 3, 48, 48))
    larger, info = AutoModel.from_pretrained(tmp_path, crop_size=48, frames_per_clip=4, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    case = replace(CASES["vjepa2"], grid=(3, 3), clip_length=4)
    plain, videos = copy.deepcopy(larger), case.pixels()
    with torch.no_grad():
        features = VideoBackbone(larger)(videos)[0]
    torch.testing.assert_close(features, by_hand(plain, case, videos), rtol=1e-4, atol=1e-5)


def test_an_encoder_that_is_not_supported_is_refused():
    encoder = AutoModel.from_config(CONFIG_MAPPING["vit"](image_size=32, **TINY_MLP))
    with pytest.raises(ValueError, match="model_type 'vit'; expected one of") as error:
        VideoBackbone(encoder)
    assert all(f"'{name}'" in str(error.value) for name in CASES)


@pytest.mark.parametrize("attention_type", ["joint_space_time", "space_only"])
def test_other_attention_of_timesformer(make_encoder, attention_type):
    """Joint attention has the same tokens. Without attention over time the frames are not even joined: refused."""
    case, encoder = CASES["timesformer"], make_encoder("timesformer", attention_type=attention_type)
    plain, videos = copy.deepcopy(encoder), case.pixels()
    if attention_type == "space_only":
        with pytest.raises(ValueError, match="space_only"):
            VideoBackbone(encoder)(videos)
    else:
        with torch.no_grad():
            features = VideoBackbone(encoder)(videos)[0]
        torch.testing.assert_close(features, by_hand(plain, case, videos), rtol=1e-4, atol=1e-5)


# Precision, LoRA


@each_type
@pytest.mark.parametrize("with_adapter", [False, True])
def test_bfloat16(make_model, adapt, name, with_adapter):
    batch = batch_for(name)
    keep = batch["sentence_mask"] == 1
    features, logits = [], []
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(name, dtype)
        base = model.model
        model = adapt(model) if with_adapter else model
        outputs = run(base, batch)
        assert outputs.last_hidden_state.dtype == dtype
        features.append(outputs.last_hidden_state.float())
        logits.append(run(model, batch).logits[keep].float())
    for single, half in (features, logits):
        assert 0 < (half - single).abs().mean() < 0.1 * single.std()


@each_type
def test_lora_of_the_training_script(make_model, name):
    """Queries and values of every layer, whatever the encoder calls them, and nothing of the sentence encoder."""
    model = get_peft_model(make_model(name), peft_config(TuningArguments(tuning="lora")))
    adapted = {key for key, module in model.named_modules() if hasattr(module, "lora_A") and ".lora_" not in key}
    layers = f"video_backbone.encoder.{CASES[name].layers}."
    assert adapted and all(layers in key for key in adapted)
    for index in range(2):
        in_layer = [key for key in adapted if f"{layers}{index}." in key]
        assert len(in_layer) == 2  # TimeSformer has one matrix for all three, in each of two attentions
    model.train()
    model(**batch_for(name)).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
