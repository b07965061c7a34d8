"""The localization head against slow references: loops over proposals and points, from docs/design.md section 7."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_scada import ScadaConfig
from modeling_scada.backbone_scada import spatial_mean_pool
from modeling_scada.head_scada import (
    LocalizationHead,
    ProposalFeatures,
    all_proposals,
    decode_offsets,
    resample_to_grid,
    sample_proposals,
)
from modeling_scada.modeling_scada import add_outer_features


TEXT_DIM = 12
VIDEO_DIM = 20


def read_point(sequence: torch.Tensor, point_grid: float) -> torch.Tensor:
    """The `(S, D)` sequence at a grid coordinate: linear between step centres, zeros beyond the first and the last."""
    value = torch.zeros_like(sequence[0])
    position = point_grid - 0.5
    left = math.floor(position)
    for step, weight in ((left, left + 1 - position), (left + 1, position - left)):
        if 0 <= step < len(sequence):
            value = value + weight * sequence[step]
    return value


def slow_proposal_features(
    layer: torch.nn.Linear, features: torch.Tensor, proposals: list[tuple[int, int]], num_points: int
) -> torch.Tensor:
    """One linear layer over the concatenated points of each proposal, one proposal and one point at a time."""
    rows = []
    for sequence in features:
        for start, end in proposals:
            margin = (end - start) / 2
            low, high = start - margin, end + margin
            points = [low + (high - low) * k / (num_points - 1) for k in range(num_points)]
            sampled = torch.cat([read_point(sequence, point) for point in points])
            rows.append(torch.nn.functional.linear(sampled, layer.weight, layer.bias))
    return torch.stack(rows).view(len(features), len(proposals), -1)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operator returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def make_head(randomize_weights, **sizes) -> LocalizationHead:
    config = ScadaConfig(**{"hidden_size": 8, "grid_size": 12, "num_train_proposals": 20, **sizes})
    torch.manual_seed(0)
    return randomize_weights(LocalizationHead(config, VIDEO_DIM, TEXT_DIM)).eval()


@pytest.fixture
def head(randomize_weights) -> LocalizationHead:
    return make_head(randomize_weights)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(3, 12, VIDEO_DIM), torch.randn(3, TEXT_DIM)


@pytest.mark.parametrize(
    ("grid_size", "num_points"), [(9, 16), (2, 16), (12, 5), (6, 2)], ids=["usual", "two_steps", "few", "ends_only"]
)
def test_proposal_features_equal_the_linear_layer_over_the_sampled_points(grid_size, num_points):
    torch.manual_seed(0)
    module = ProposalFeatures(dim=5, num_points=num_points).double()
    features = torch.randn(2, grid_size, 5, dtype=torch.float64, requires_grad=True)
    proposals = [(i, j) for i in range(grid_size) for j in range(i + 1, grid_size + 1)]
    weights = torch.randn(2, len(proposals), 5, dtype=torch.float64)
    leaves = [features, module.linear.weight, module.linear.bias]

    fast = module(features, torch.tensor(proposals))
    slow = slow_proposal_features(module.linear, features, proposals, num_points)

    assert fast.shape == slow.shape
    # The points are computed in float32, whatever the features' dtype.
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    gradients = torch.autograd.grad((fast * weights).sum(), leaves)
    expected = torch.autograd.grad((slow * weights).sum(), leaves)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-5)


def test_proposal_features_in_float32_with_a_subset_of_proposals():
    torch.manual_seed(0)
    module = ProposalFeatures(dim=6, num_points=16)
    features = torch.randn(3, 20, 6)
    proposals = [(0, 20), (0, 1), (19, 20), (7, 8), (3, 15), (11, 12)]
    with torch.no_grad():
        fast = module(features, torch.tensor(proposals))
        slow = slow_proposal_features(module.linear, features, proposals, 16)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)


def test_points_beyond_the_ends_of_the_video_read_zero():
    """The whole video widened by half its length: the first and the last quarter of the points lie outside."""
    module = ProposalFeatures(dim=1, num_points=9)
    with torch.no_grad():
        module.linear.weight.copy_(10.0 ** -torch.arange(9.0)[None])  # one decimal per point
        module.linear.bias.zero_()
        value = module(torch.ones(1, 8, 1), torch.tensor([[0, 8]]))
    # Points lie at -4, -2, 0, 2, 4, 6, 8, 10, 12: three inside, and those at the edges 0 and 8 are half a step away
    # from the centre of the outermost step.
    assert value.item() == pytest.approx(0.005 + 0.001 + 0.0001 + 0.00001 + 0.0000005, abs=1e-8)


def test_the_tensor_of_sampled_points_is_never_built():
    grid_size, dim, num_points = 64, 8, 16
    module = ProposalFeatures(dim, num_points)
    proposals = all_proposals(grid_size)
    features = torch.randn(1, grid_size, dim, requires_grad=True)
    with LargestTensor() as forward:
        result = module(features, proposals)
    with LargestTensor() as backward:
        result.sum().backward()
    # The result itself, and the gradient of the 16 maps of the sequence: the records are at work.
    assert forward.numel >= len(proposals) * dim
    assert backward.numel >= grid_size * num_points * dim
    assert max(forward.numel, backward.numel) < len(proposals) * num_points * dim / 3


@pytest.mark.parametrize("grid_size", [2, 3, 17])
def test_all_proposals_are_all_pairs_of_edges(grid_size):
    expected = {(i, j) for i in range(grid_size + 1) for j in range(grid_size + 1) if i < j}
    proposals = [tuple(pair) for pair in all_proposals(grid_size).tolist()]
    assert len(proposals) == len(set(proposals)) == grid_size * (grid_size + 1) // 2
    assert set(proposals) == expected


def test_number_of_proposals_at_the_default_grid():
    assert all_proposals(ScadaConfig().grid_size).shape == (8256, 2)


def slow_decode(start: float, end: float, offsets: list[float], grid_size: int) -> tuple[float, float]:
    length, center = end - start, (start + end) / 2
    by_edges = (start + offsets[0] * length, end + offsets[1] * length)
    new_center, new_width = center + offsets[2] * length, length + offsets[3] * length
    by_center = (new_center - new_width / 2, new_center + new_width / 2)
    edges = sorted((a + b) / 2 / grid_size for a, b in zip(by_edges, by_center, strict=True))
    return tuple(min(max(edge, 0.0), 1.0) for edge in edges)


@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_decode_offsets(scale):
    grid_size = 10
    proposals = all_proposals(grid_size)
    torch.manual_seed(0)
    offsets = scale * torch.randn(2, len(proposals), 4)
    segments = decode_offsets(proposals, offsets, grid_size)
    expected = [
        [slow_decode(*pair, row, grid_size) for pair, row in zip(proposals.tolist(), of_sentence, strict=True)]
        for of_sentence in offsets.tolist()
    ]
    torch.testing.assert_close(segments, torch.tensor(expected), rtol=0, atol=1e-5)
    assert segments.min() >= 0 and segments.max() <= 1
    assert (segments[..., 0] <= segments[..., 1]).all()


def test_no_offsets_give_the_proposals_and_perfect_ones_the_target():
    grid_size, (target_start, target_end) = 10, (0.237, 0.731)
    proposals = all_proposals(grid_size)
    unrefined = decode_offsets(proposals, torch.zeros(len(proposals), 4), grid_size)
    torch.testing.assert_close(unrefined, proposals / grid_size)

    perfect = []
    for start, end in proposals.tolist():
        length = end - start
        start_grid, end_grid = target_start * grid_size, target_end * grid_size
        center_shift = (start_grid + end_grid) / 2 - (start + end) / 2
        moves = [start_grid - start, end_grid - end, center_shift, (end_grid - start_grid) - length]
        perfect.append([move / length for move in moves])
    segments = decode_offsets(proposals, torch.tensor(perfect), grid_size)
    torch.testing.assert_close(segments, torch.tensor([target_start, target_end]).expand_as(segments))


def test_extreme_offsets_stay_in_the_window():
    offsets = torch.tensor([[1e30, -1e30, 1e30, -1e30], [-1e30, 1e30, -1e30, 1e30]])
    segments = decode_offsets(torch.tensor([[0, 4], [2, 3]]), offsets, 4)
    assert torch.isfinite(segments).all()
    assert ((segments >= 0) & (segments <= 1)).all() and (segments[:, 0] <= segments[:, 1]).all()


def test_resample_averages_over_areas_where_there_are_more_snippets_than_steps():
    features = torch.randn(2, 384, VIDEO_DIM)
    means = torch.stack([features[:, 3 * step : 3 * step + 3].mean(1) for step in range(128)], dim=1)
    torch.testing.assert_close(resample_to_grid(features, 128), means)


def test_resample_is_linear_where_there_are_fewer_snippets_than_steps():
    features = torch.randn(2, 5, VIDEO_DIM)
    positions = (np.arange(12) + 0.5) * 5 / 12 - 0.5  # np.interp holds the outermost values beyond the centres
    expected = np.empty((2, 12, VIDEO_DIM), dtype=np.float32)
    for row in range(2):
        for channel in range(VIDEO_DIM):
            expected[row, :, channel] = np.interp(positions, np.arange(5), features[row, :, channel])
    torch.testing.assert_close(resample_to_grid(features, 12), torch.from_numpy(expected))


def test_resample_changes_nothing_where_there_are_as_many_snippets_as_steps():
    features = torch.randn(2, 12, VIDEO_DIM)
    assert torch.equal(resample_to_grid(features, 12), features)


def test_places_are_means_of_areas_row_by_row():
    features = torch.randn(2, 3, 4, 6, 5)
    actual = spatial_mean_pool(features, 2)
    areas = [features[:, :, y : y + 2, x : x + 3].mean((2, 3)) for y in (0, 2) for x in (0, 3)]
    torch.testing.assert_close(actual, torch.cat(areas, dim=-1))
    torch.testing.assert_close(spatial_mean_pool(features, 1), features.sum((2, 3)) / 24)


def test_outer_features_are_added_at_each_place():
    features, coarse, fine = torch.randn(2, 3, 8), torch.randn(2, 3, 2), torch.randn(2, 6, 2)
    actual = add_outer_features(features, [coarse, None, fine])
    for snippet in range(3):
        added = coarse[:, snippet] + (fine[:, 2 * snippet] + fine[:, 2 * snippet + 1]) / 2
        for place in range(4):
            expected = features[:, snippet, 2 * place : 2 * place + 2] + added
            torch.testing.assert_close(actual[:, snippet, 2 * place : 2 * place + 2], expected)


def test_without_the_videos_mean_the_scene_does_not_matter(randomize_weights, inputs):
    features, sentence = inputs
    scene = 3 * torch.randn(3, 1, VIDEO_DIM)
    for subtract in (True, False):
        head = make_head(randomize_weights, subtract_video_mean=subtract, retrieval_dim=4)
        with torch.no_grad():
            plain, moved = (head(features + shift, sentence).iou_logits for shift in (0, scene))
            embeds = [head.retrieval.embed_proposals(features + shift, all_proposals(12)) for shift in (0, scene)]
        if subtract:
            torch.testing.assert_close(moved, plain, rtol=0, atol=1e-5)
            torch.testing.assert_close(*embeds, rtol=0, atol=1e-5)
        else:
            assert (moved - plain).abs().max() > 1e-3 and (embeds[0] - embeds[1]).abs().max() > 1e-3


def test_hidden_channels_are_hidden_for_the_whole_video_and_in_training_only(randomize_weights):
    head = make_head(randomize_weights, feature_dropout=0.25)
    features, sentence = 1 + torch.rand(50, 12, VIDEO_DIM), torch.randn(50, TEXT_DIM)
    seen = []
    head.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    head(features, sentence)
    assert torch.equal(seen[-1], features)
    head.train()(features, sentence)
    hidden = seen[-1] == 0
    assert torch.equal(hidden.any(1), hidden.all(1))
    assert 0.2 < hidden.float().mean() < 0.3  # of 1,000 channels
    torch.testing.assert_close(seen[-1][~hidden], features[~hidden] / 0.75)


def test_training_draws_distinct_proposals_and_evaluation_takes_all(head, inputs):
    draws = []
    head.train()
    for seed in range(3):
        torch.manual_seed(seed)
        output = head(*inputs)
        pairs = [tuple(pair) for pair in output.proposals_grid.tolist()]
        assert len(pairs) == len(set(pairs)) == 20
        assert all(0 <= start < end <= 12 for start, end in pairs)
        assert output.iou_logits.shape == (3, 20, 2) and output.offsets.shape == (3, 20, 4)
        draws.append(frozenset(pairs))
    assert len(set(draws)) == 3
    output = head.eval()(*inputs)
    assert torch.equal(output.proposals_grid, all_proposals(12))
    assert output.iou_logits.shape == (3, 78, 2) and output.boundary_logits.shape == (3, 12, 2)


@pytest.mark.parametrize("way", ["on the CPU", "in a graph"])
@pytest.mark.parametrize("scale", [1.0, 10.0], ids=str)
def test_the_best_proposals_are_those_of_the_full_computation(randomize_weights, monkeypatch, scale, way):
    """For 1,000 sentences, with scores that need some of the regressions and all of them."""
    head = make_head(randomize_weights, grid_size=24, num_sample_points=4, num_kept_proposals=20).double()
    head.iou_classifier[-1].weight.data *= 10 * scale
    head.iou_regressor[-1].weight.data *= scale
    asked = []
    head.iou_regressor.register_forward_hook(lambda _, args, output: asked.append(output.numel()))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: way == "in a graph")
    torch.manual_seed(0)
    features, sentences = torch.randn(1000, 24, VIDEO_DIM).double(), torch.randn(1000, TEXT_DIM).double()
    with torch.no_grad():
        found = head(features, sentences)
        if way == "on the CPU":
            assert min(asked) == 40 and max(asked) > 40  # of 300
        everything = head(features, sentences, targets_grid=torch.zeros(0, 2))
    scores = everything.iou_logits.sigmoid().prod(-1).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    ranking = np.argsort(-found.iou_logits.sigmoid().prod(-1).numpy(), axis=1, kind="stable")
    assert found.iou_logits.shape == (1000, 20, 2) and found.offsets.shape == (1000, 20, 4)
    for row, (best, own) in enumerate(zip(order, ranking, strict=True)):
        assert torch.equal(found.proposals_grid[row, own], everything.proposals_grid[best])
        torch.testing.assert_close(found.iou_logits[row, own], everything.iou_logits[row, best], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.offsets[row, own], everything.offsets[row, best], rtol=0, atol=1e-12)
    edges = found.proposals_grid.numpy()
    assert (np.diff(25 * edges[..., 0] + edges[..., 1], axis=1) > 0).all()  # in the order of all


@pytest.mark.parametrize("num_kept", [1, 40, 77, 78, 1000])
def test_any_number_of_proposals_is_kept(randomize_weights, inputs, num_kept):
    """Of 78; twice as many may be more than there are."""
    head = make_head(randomize_weights, num_kept_proposals=num_kept)
    found, everything = head(*inputs), make_head(randomize_weights)(*inputs)
    best = everything.iou_logits.sigmoid().prod(-1).sort(descending=True).values[:, :num_kept]
    torch.testing.assert_close(found.iou_logits.sigmoid().prod(-1).sort(descending=True).values, best)


def test_what_is_not_a_number_stays_so(head, inputs):
    """Post-processing says what to do about it."""
    head.config.num_kept_proposals = 10
    head.iou_classifier[0].bias.data[:] = float("nan")
    assert head(*inputs).iou_logits.isnan().any()


def test_training_takes_all_proposals_where_there_are_fewer_than_asked_for(randomize_weights, inputs):
    head = make_head(randomize_weights, num_train_proposals=79).train()
    assert torch.equal(head(*inputs).proposals_grid, all_proposals(12))


def test_without_targets_every_proposal_is_drawn_equally_often(randomize_weights):
    head = make_head(randomize_weights, grid_size=3, num_train_proposals=2).train()
    torch.manual_seed(0)
    counts = dict.fromkeys(map(tuple, all_proposals(3).tolist()), 0)
    features, sentence = torch.randn(1, 3, VIDEO_DIM), torch.randn(1, TEXT_DIM)
    for _ in range(600):
        for pair in head(features, sentence).proposals_grid.tolist():
            counts[tuple(pair)] += 1
    assert min(counts.values()) > 150 and max(counts.values()) < 250  # 200 expected of each of the six


def iou_of(a: tuple[float, float], b: tuple[float, float]) -> float:
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return intersection / ((a[1] - a[0]) + (b[1] - b[0]) - intersection)


@pytest.mark.parametrize("length", [4, 8, 16, 32])
def test_no_target_starves_in_a_draw(length):
    """On the grid of 128 with 512 of 8,256 proposals: the nearest is drawn, and others that overlap by 0.7 to 0.9."""
    proposals = all_proposals(128)
    torch.manual_seed(length)
    with_neighbours = 0
    for _ in range(20):
        starts = torch.rand(8) * (128 - length)
        # One of the target's length beside seven long ones, which have many more proposals near them.
        targets = [(float(starts[0]), float(starts[0]) + length)]
        targets += [(float(start) / 2, float(start) / 2 + 64) for start in starts[1:]]
        drawn = sample_proposals(proposals, torch.tensor(targets), 512)
        pairs = [tuple(pair) for pair in proposals[drawn].tolist()]
        assert len(set(pairs)) == len(pairs) == 512 and pairs == sorted(pairs)
        best = max(iou_of(pair, targets[0]) for pair in map(tuple, proposals.tolist()))
        ious = [iou_of(pair, targets[0]) for pair in pairs]
        assert max(ious) == pytest.approx(best, abs=1e-5)
        all_middle = sum(0.3 <= iou_of(pair, targets[0]) <= 0.7 for pair in map(tuple, proposals.tolist()))
        with_neighbours += sum(0.3 <= iou <= 0.7 for iou in ious) >= min(all_middle / 2, 10)
    assert with_neighbours == 20


def test_a_draw_keeps_easy_negatives():
    """A third, about, overlaps no target by 0.3; a uniform draw would have taken 90 % from there."""
    proposals = all_proposals(128)
    targets = torch.tensor([[10.3, 14.1], [40.2, 71.9]])
    torch.manual_seed(0)
    drawn = proposals[sample_proposals(proposals, targets, 512)].tolist()
    far = sum(all(iou_of(pair, target) < 0.3 for target in targets.tolist()) for pair in drawn)
    assert 100 < far < 350


def test_a_drawn_proposal_gets_what_it_gets_among_all(head, inputs):
    everything = head(*inputs)
    index = {tuple(pair): row for row, pair in enumerate(everything.proposals_grid.tolist())}
    drawn = head.train()(*inputs)
    rows = [index[tuple(pair)] for pair in drawn.proposals_grid.tolist()]
    torch.testing.assert_close(drawn.iou_logits, everything.iou_logits[:, rows])
    torch.testing.assert_close(drawn.offsets, everything.offsets[:, rows])
    torch.testing.assert_close(drawn.boundary_logits, everything.boundary_logits)


def fields(output) -> dict[str, torch.Tensor]:
    return {"boundary": output.boundary_logits, "iou": output.iou_logits, "offsets": output.offsets}


@pytest.mark.parametrize(
    ("name", "reaches"),
    [
        ("projection_scale", {"boundary", "iou", "offsets"}),
        ("neck_scale", {"boundary", "iou", "offsets"}),
        ("proposal_scale", {"iou", "offsets"}),
    ],
)
def test_each_multiplication_by_the_sentence_matters(head, inputs, name, reaches):
    """With one of the three alone, another sentence changes what comes after it; with none, it changes nothing."""
    features, sentence = inputs
    other = sentence.roll(1, 0)
    scales = ["projection_scale", "neck_scale", "proposal_scale"]
    for off in scales:
        if off != name:
            for parameter in getattr(head, off).parameters():
                parameter.data.zero_()
    with torch.no_grad():
        before, after = fields(head(features, sentence)), fields(head(features, other))
        changed = {key for key in before if not torch.allclose(before[key], after[key], atol=1e-6)}
        assert changed == reaches
        for parameter in getattr(head, name).parameters():
            parameter.zero_()
        before, after = fields(head(features, sentence)), fields(head(features, other))
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_multiplication_scales_the_channels_by_one_plus_a_linear_map(head, inputs):
    _, sentence = inputs
    features = torch.randn(3, 4, 8)
    scale = head.neck_scale
    weight, bias = (parameter.detach().numpy() for parameter in (scale.projection.weight, scale.projection.bias))
    expected = features.numpy() * (1 + sentence.numpy() @ weight.T + bias)[:, None, :]
    torch.testing.assert_close(scale(features, sentence).detach(), torch.from_numpy(expected))


def test_the_neck_reads_in_both_directions(head, inputs):
    """The convolutions reach few steps, the two LSTMs all: a change at one end is felt at the other."""
    features, sentence = inputs
    with torch.no_grad():
        before = head(features, sentence).boundary_logits
        for changed_step, felt_step in ((0, -1), (-1, 0)):
            other = features.clone()
            other[:, changed_step] = torch.randn(3, VIDEO_DIM)
            difference = (head(other, sentence).boundary_logits - before).abs()[:, felt_step]
            assert difference.max() > 1e-7


def test_every_parameter_of_the_head_gets_a_gradient(head, inputs):
    output = head(*inputs)
    sum(value.square().sum() for value in fields(output).values()).backward()
    without = [name for name, parameter in head.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert not without
