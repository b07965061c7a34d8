"""The video backbone against transformers' VideoMAE and slow references: position embeddings, clips, snippets."""

import copy
import math

import pytest
import torch
from transformers import AutoModel, DistilBertConfig, VideoMAEConfig, VideoMAEModel

from modeling_scada.backbone_scada import ResizableVideoMAEEmbeddings, VideoBackbone


# transformers embeds the patches with a convolution, we with a matrix product: another order of the same sums.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def encoder(tiny_config, randomize_weights) -> VideoMAEModel:
    torch.manual_seed(0)
    return randomize_weights(VideoMAEModel(tiny_config.video_config)).eval()


@pytest.fixture
def plain(encoder) -> VideoMAEModel:
    """transformers' VideoMAE with the same weights, that `VideoBackbone` has not touched."""
    return copy.deepcopy(encoder)


@pytest.fixture
def backbone(encoder, plain) -> VideoBackbone:
    return VideoBackbone(encoder)


def interpolate_axis(length_in: int, length_out: int) -> list[list[tuple[int, float]]]:
    """For each output position the input positions and weights: linear, half-pixel centres, held at the ends."""
    rows = []
    for index in range(length_out):
        position = min(max((index + 0.5) * length_in / length_out - 0.5, 0.0), length_in - 1.0)
        low = min(math.floor(position), length_in - 1)
        high = min(low + 1, length_in - 1)
        rows.append([(low, 1 - (position - low)), (high, position - low)])
    return rows


def slow_interpolation(table: torch.Tensor, grid_out: tuple[int, int, int]) -> torch.Tensor:
    """A `(t, h, w, C)` table at another grid, one token at a time."""
    axes = [interpolate_axis(size_in, size_out) for size_in, size_out in zip(table.shape[:3], grid_out, strict=True)]
    result = torch.zeros(*grid_out, table.shape[-1])
    for t, of_t in enumerate(axes[0]):
        for h, of_h in enumerate(axes[1]):
            for w, of_w in enumerate(axes[2]):
                for t_in, t_weight in of_t:
                    for h_in, h_weight in of_h:
                        for w_in, w_weight in of_w:
                            result[t, h, w] += t_weight * h_weight * w_weight * table[t_in, h_in, w_in]
    return result


@pytest.mark.parametrize(
    "grid",
    [(8, 4, 4), (8, 1, 1), (8, 3, 5), (4, 2, 2), (5, 3, 1)],
    ids=["larger", "smaller", "not_square", "fewer_frames", "all_axes"],
)
def test_position_embeddings_are_interpolated_over_time_height_and_width(tiny_config, grid):
    # Three rows and two columns in pretraining, so that exchanged axes do not go unnoticed.
    config = VideoMAEConfig(**{**tiny_config.video_config.to_dict(), "image_size": [48, 32]})
    embeddings = ResizableVideoMAEEmbeddings(VideoMAEModel(config).embeddings)
    assert embeddings.pretrained_grid == (8, 3, 2)
    embeddings.position_embeddings = torch.randn(1, 48, 32, generator=torch.Generator().manual_seed(0))
    table = embeddings.position_embeddings.reshape(8, 3, 2, 32)
    result = embeddings.interpolated_position_embeddings(grid)
    torch.testing.assert_close(result, slow_interpolation(table, grid).reshape(1, -1, 32), rtol=1e-5, atol=1e-5)


def test_position_embeddings_at_the_pretrained_size_are_the_pretrained_ones(backbone, plain):
    embeddings = backbone.encoder.embeddings
    assert torch.equal(embeddings.interpolated_position_embeddings((8, 2, 2)), plain.embeddings.position_embeddings)


def test_outputs_at_the_pretrained_size_equal_those_of_transformers(backbone, plain):
    clips = torch.randn(3, 16, 3, 32, 32)
    with torch.no_grad():
        features, _ = backbone(clips)
        expected = plain(clips).last_hidden_state
    assert features.shape == (3, 8, 2, 2, 32)
    torch.testing.assert_close(features.reshape(3, 32, 32), expected, **ROUNDING)


def test_outputs_at_another_size_equal_those_of_transformers_with_interpolated_embeddings(backbone, plain):
    """transformers at 64 x 48 pixels, its own position embeddings replaced by the slow reference's."""
    config = copy.deepcopy(plain.config)
    config.image_size = [64, 48]
    larger = VideoMAEModel(config).eval()
    larger.load_state_dict(plain.state_dict())
    table = plain.embeddings.position_embeddings.reshape(8, 2, 2, 32)
    flat_sinusoid = larger.embeddings.position_embeddings
    larger.embeddings.position_embeddings = slow_interpolation(table, (8, 4, 3)).reshape(1, -1, 32)
    assert (flat_sinusoid - larger.embeddings.position_embeddings).abs().max() > 0.1
    clips = torch.randn(2, 16, 3, 64, 48)
    with torch.no_grad():
        features, _ = backbone(clips)
        expected = larger(clips).last_hidden_state
    assert features.shape == (2, 8, 4, 3, 32)
    torch.testing.assert_close(features.reshape(2, 96, 32), expected, rtol=1e-5, atol=1e-5)


def test_parameter_names_stay_those_of_transformers(backbone, plain):
    assert set(backbone.encoder.state_dict()) == set(plain.state_dict())


def test_masked_positions_still_work(backbone, plain):
    """The replaced embeddings keep the whole interface of transformers' ones."""
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[0, 3:9] = mask[1, 10:16] = True
    clips = torch.randn(2, 16, 3, 32, 32)
    with torch.no_grad():
        result = backbone.encoder(clips, bool_masked_pos=mask).last_hidden_state
        expected = plain(clips, bool_masked_pos=mask).last_hidden_state
    torch.testing.assert_close(result, expected, **ROUNDING)


def test_an_encoder_may_be_wrapped_twice(backbone):
    clips = torch.randn(1, 16, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(VideoBackbone(backbone.encoder)(clips)[0], backbone(clips)[0])


@pytest.mark.parametrize("size", [32, 48])
def test_a_video_of_several_clips_equals_each_clip_alone(backbone, size):
    videos = torch.randn(2, 48, 3, size, size)
    with torch.no_grad():
        features, _ = backbone(videos)
        assert features.shape == (2, 24, size // 16, size // 16, 32)
        for video in range(2):
            for clip in range(3):
                alone, _ = backbone(videos[video : video + 1, 16 * clip : 16 * clip + 16])
                together = features[video, 8 * clip : 8 * clip + 8]
                torch.testing.assert_close(together, alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frame", [0, 1, 15, 16, 37])
def test_a_frame_changes_its_own_clip_and_before_the_first_layer_its_own_snippet(backbone, frame):
    videos = torch.randn(2, 48, 3, 32, 32)
    changed = videos.clone()
    changed[1, frame] += 1.0
    with torch.no_grad():
        before, states_before = backbone(videos, output_hidden_states=True)
        after, states_after = backbone(changed, output_hidden_states=True)

    def differing(a: torch.Tensor, b: torch.Tensor) -> tuple[list[int], list[int]]:
        different = (a - b).abs().amax(dim=(2, 3, 4)) > 1e-6
        return different.any(1).nonzero()[:, 0].tolist(), different[1].nonzero()[:, 0].tolist()

    first_snippet = frame // 16 * 8
    assert differing(states_before[0], states_after[0]) == ([1], [frame // 2])
    assert differing(before, after) == ([1], list(range(first_snippet, first_snippet + 8)))


def test_a_patch_changes_its_own_place(backbone):
    """Rows before columns: a change of the pixels at the upper right is a change at `[0, 1]` of the spatial grid."""
    videos = torch.randn(1, 16, 3, 32, 48)
    changed = videos.clone()
    changed[0, 4, :, 2, 40] += 1.0
    with torch.no_grad():
        before = backbone(videos, output_hidden_states=True)[1][0]
        after = backbone(changed, output_hidden_states=True)[1][0]
    assert ((before - after).abs().amax(-1) > 1e-6).nonzero().tolist() == [[0, 2, 0, 2]]


@pytest.mark.parametrize("use_mean_pooling", [False, True])
def test_hidden_states(tiny_config, randomize_weights, use_mean_pooling):
    """One state before the first layer and one after each; the last equals the features before the final norm."""
    tiny_config.video_config.use_mean_pooling = use_mean_pooling  # VideoMAE then has no final norm
    encoder = randomize_weights(VideoMAEModel(tiny_config.video_config)).eval()
    plain, backbone = copy.deepcopy(encoder), VideoBackbone(encoder)
    videos = torch.randn(2, 32, 3, 32, 32)
    with torch.no_grad():
        features, states = backbone(videos, output_hidden_states=True)
        expected = plain(videos.view(4, 16, 3, 32, 32), output_hidden_states=True).hidden_states
        normalized = states[-1] if use_mean_pooling else plain.layernorm(states[-1])
    assert len(states) == len(expected) == 3
    for state, reference in zip(states, expected, strict=True):
        assert state.shape == (2, 16, 2, 2, 32)
        torch.testing.assert_close(state.reshape(4, 32, 32), reference, **ROUNDING)
    torch.testing.assert_close(features, normalized)
    assert backbone(videos)[1] is None


def test_rectangular_patches_and_images(tiny_config):
    config = VideoMAEConfig(**{**tiny_config.video_config.to_dict(), "patch_size": [8, 16], "image_size": [32, 48]})
    encoder = VideoMAEModel(config).eval()
    plain, backbone = copy.deepcopy(encoder), VideoBackbone(encoder)
    clips = torch.randn(1, 16, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(backbone(clips)[0].reshape(1, 96, 32), plain(clips).last_hidden_state, **ROUNDING)
        assert backbone(torch.randn(1, 16, 3, 16, 32))[0].shape == (1, 8, 2, 2, 32)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 24, 3, 32, 32), "Received 24 frames per video; the backbone reads clips of 16"),
        ((1, 8, 3, 32, 32), "Received 8 frames per video"),
        ((1, 0, 3, 32, 32), "Received 0 frames per video"),
        ((1, 16, 3, 40, 32), "Received frames of 40 x 32 pixels; the backbone's patches are 16 x 16"),
        ((1, 16, 3, 32, 40), "Received frames of 32 x 40 pixels"),
        ((1, 16, 3, 0, 32), "Received frames of 0 x 32 pixels"),
        ((1, 16, 1, 32, 32), r"of shape \(1, 16, 1, 32, 32\); expected \(videos, frames, 3, height, width\)"),
        ((1, 3, 16, 32, 32), r"of shape \(1, 3, 16, 32, 32\); expected"),
        ((16, 3, 32, 32), r"of shape \(16, 3, 32, 32\); expected"),
        ((1, 16, 3, 32), r"of shape \(1, 16, 3, 32\); expected"),
    ],
)
def test_input_that_does_not_fit_is_refused(backbone, shape, message):
    with pytest.raises(ValueError, match=message):
        backbone(torch.zeros(shape))


def test_an_encoder_of_another_type_is_refused():
    encoder = AutoModel.from_config(DistilBertConfig(vocab_size=10, dim=8, n_layers=1, n_heads=1, hidden_dim=8))
    with pytest.raises(ValueError, match="model_type 'distilbert'; expected one of .*'videomae'"):
        VideoBackbone(encoder)


def test_pixels_are_cast_to_the_weights(backbone):
    features, _ = backbone.to(torch.bfloat16)(torch.randn(1, 16, 3, 48, 48))
    assert features.dtype == torch.bfloat16
