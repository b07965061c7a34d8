"""
Localization head (docs/design.md section 7, details [D] after ETAD).

Snippet features and the sentence vector go in; scores and refined segments of all proposals between `S + 1` grid edges
come out. A proposal is read at 16 points. The linear layer over these points equals 16 linear maps of the sequence
followed by a sparse weighted sum over two steps a point, so the `(proposals, 16, D)` tensor is never built.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_scada import ScadaConfig
from .loss_scada import temporal_iou


@dataclass
class HeadOutput:
    """
    Raw outputs of [`LocalizationHead`] for `Q` sentences and `P` proposals.

    Attributes:
        boundary_logits (`torch.Tensor` of shape `(Q, S, 2)`): Start and end, per step.
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges `i < j` of each proposal, in `0..S`; of shape
            `(Q, P, 2)` where each sentence has its own.
        iou_logits (`torch.Tensor` of shape `(Q, P, 2)`): IoU as classification and as regression.
        offsets (`torch.Tensor` of shape `(Q, P, 4)`): Offsets of start, end, centre and width, in units of the
            proposal's length.
        proposal_embeds (`torch.Tensor` of shape `(B, P, E)`, *optional*): Of the retrieval branch, for `B` videos.
        sentence_embeds (`torch.Tensor` of shape `(Q, E)`, *optional*): Of the retrieval branch.
    """

    boundary_logits: torch.Tensor
    proposals_grid: torch.Tensor
    iou_logits: torch.Tensor
    offsets: torch.Tensor
    proposal_embeds: torch.Tensor | None = None
    sentence_embeds: torch.Tensor | None = None


def all_proposals(grid_size: int, device: torch.device | None = None) -> torch.Tensor:
    """
    All pairs of edges `0 <= i < j <= S`.

    Returns:
        `torch.Tensor` of shape `(S (S + 1) / 2, 2)`: Edges, as integers.
    """
    return torch.triu_indices(grid_size, grid_size + 1, offset=1, device=device).T


def sparse_proposals(grid_size: int, device: torch.device | None = None) -> torch.Tensor:
    """
    Some hundred proposals to store: lengths 1, 2, 3, 4, 6, 8, 12, ... up to the whole grid, each shifted by half of
    itself ([D], after the sparse sampling of 2D-TAN, Zhang et al., AAAI 2020).

    Returns:
        `torch.Tensor` of shape `(P, 2)`: Edges, as integers.
    """
    octaves = [2**power for power in range(grid_size.bit_length())]
    lengths = sorted({length for octave in octaves for length in (octave, octave * 3 // 2)} | {grid_size})
    edges = [
        (start, start + length)
        for length in lengths
        if length <= grid_size
        for start in range(0, grid_size - length + 1, max(1, length // 2))
    ]
    return torch.tensor(edges, device=device)


def sample_points(proposals_grid: torch.Tensor, num_points: int, grid_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where each proposal reads the sequence, and how much of each step it takes.

    The proposal is widened by half its length on both sides; `num_points` points lie evenly on it, ends included. A
    point at grid coordinate `g` reads the sequence linearly between the centres of its two neighbouring steps, and
    zero outside the video.

    Args:
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges in `0..S`.
        num_points (`int`): Points a proposal.
        grid_size (`int`): Number of steps `S`, at least 2.

    Returns:
        `tuple`: steps (`torch.LongTensor` of shape `(P, num_points, 2)`) and their weights (`torch.FloatTensor` of the
        same shape).
    """
    start_grid, end_grid = proposals_grid.float().unbind(-1)
    half_length = (end_grid - start_grid) / 2
    fraction = torch.linspace(0, 1, num_points, device=proposals_grid.device)
    points_grid = (start_grid - half_length)[:, None] + 4 * half_length[:, None] * fraction  # (P, points)
    position = points_grid - 0.5  # step i has its centre at grid coordinate i + 0.5
    first_step = position.floor().clamp(0, grid_size - 2)
    steps = torch.stack([first_step, first_step + 1], dim=-1)
    weights = (1 - (position[..., None] - steps).abs()).clamp_min(0)
    return steps.long(), weights


def point_rows(
    steps: torch.Tensor, weights: torch.Tensor, num_sentences: int, grid_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where the points of all sentences' proposals are in a table whose rows are ordered (point, sentence, step).

    Args:
        steps, weights (`torch.Tensor` of shape `(P, points, 2)`): Of [`sample_points`].
        num_sentences (`int`): Number of sentences `Q`.
        grid_size (`int`): Number of steps `S`.

    Returns:
        `tuple`: rows and weights, each of shape `(Q P, 2 points)`.
    """
    first_rows = grid_size * torch.arange(steps.shape[1] * num_sentences, device=steps.device)
    rows = steps + first_rows.view(-1, num_sentences).T[:, None, :, None]  # (Q, P, points, 2)
    return rows.flatten(2).flatten(0, 1), weights.expand_as(rows).flatten(2).flatten(0, 1)


def sample_proposals(proposals_grid: torch.Tensor, targets_grid: torch.Tensor, num_drawn: int) -> torch.Tensor:
    """
    A random sample of proposals for training in which no target starves, however short it is. [D]

    A third of the draw, about, goes to proposals that overlap a target by more than 0.7, a third to those from 0.3 on
    and a third to all others; in the first two each target has an equal share, whatever its length. The nearest
    proposal of each target is always drawn. A uniform draw of 512 of 8,256 would have the nearest one of a short
    target in 6 % of the cases.

    Args:
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): All proposals.
        targets_grid (`torch.Tensor` of shape `(N, 2)`): Target segments of all sentences; those that begin before 0
            are padding. With none, all proposals are equally likely.
        num_drawn (`int`): How many to draw.

    Returns:
        `torch.LongTensor` of shape `(num_drawn,)`: Their indices, in order.
    """
    iou = temporal_iou(proposals_grid.float(), targets_grid[None].float())[0].T  # (N, P)
    high, low = iou > 0.7, (iou < 0.3).all(0, keepdim=True)
    is_target = targets_grid[:, 0] >= 0
    num_targets = is_target.sum().clamp_min(1)
    shares = [rows / rows.sum(1, keepdim=True).clamp_min(1) for rows in (high, ~high & (iou >= 0.3))]
    weights = torch.stack(shares).sum((0, 1)) / num_targets + low[0] / low.sum().clamp_min(1)
    # The largest of `log(weight) + Gumbel noise` are a draw without replacement; the exponential's logarithm is it.
    noise = torch.empty_like(weights).exponential_()
    keys = weights / noise
    nearest = torch.zeros_like(keys).index_add(0, iou.argmax(1), is_target.to(keys))
    keys = keys.masked_fill(nearest > 0, torch.inf)
    return keys.topk(num_drawn).indices.sort().values


def decode_offsets(proposals_grid: torch.Tensor, offsets: torch.Tensor, grid_size: int) -> torch.Tensor:
    """
    Refined segments: the mean of the two decodings, (start, end) and (centre, width).

    Args:
        proposals_grid (`torch.Tensor` of shape `(P, 2)` or `(..., P, 2)`): Edges in `0..S`.
        offsets (`torch.Tensor` of shape `(..., P, 4)`): Of start, end, centre, width, in units of the length.
        grid_size (`int`): Number of steps `S`.

    Returns:
        `torch.Tensor` of shape `(..., P, 2)`: Start and end in `[0, 1]` of the window, start <= end.
    """
    proposals = proposals_grid.float()
    length = proposals[..., 1] - proposals[..., 0]
    offset_start, offset_end, offset_center, offset_width = (offsets.float() * length[..., None]).unbind(-1)
    center = proposals.mean(-1) + offset_center
    half_width = (length + offset_width) / 2
    start = (proposals[..., 0] + offset_start + center - half_width) / 2
    end = (proposals[..., 1] + offset_end + center + half_width) / 2
    segments = torch.stack([torch.minimum(start, end), torch.maximum(start, end)], dim=-1)
    return (segments / grid_size).clamp(0, 1)


def score_logits(iou_logits: torch.Tensor) -> torch.Tensor:
    """
    Log-odds of the score, which is classification x regression (docs/design.md section 9).

    Args:
        iou_logits (`torch.Tensor` of shape `(Q, P, 2)`): IoU as classification and as regression.

    Returns:
        `torch.Tensor` of shape `(Q, P)`.
    """
    # 1 / (sigmoid(a) sigmoid(b)) - 1 = exp(-a) + exp(-b) + exp(-a - b)
    return -torch.cat([-iou_logits, -iou_logits.sum(-1, keepdim=True)], dim=-1).logsumexp(-1)


def best_proposals(scores: torch.Tensor, num_kept: int) -> torch.Tensor:
    """
    Args:
        scores (`torch.Tensor` of shape `(Q, P)`): Or any that rank as they do.
        num_kept (`int`): How many to keep of each sentence, or all, if there are fewer.

    Returns:
        `torch.LongTensor` of shape `(Q, num_kept)`: Indices of the best, in order of the indices, so that equal scores
        are ranked as they would be among all.
    """
    return scores.topk(min(num_kept, scores.shape[-1]), sorted=False).indices.sort(-1).values


def gather_proposals(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """`(Q, P, C)` and indices `(Q, K)` -> `(Q, K, C)`."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


def spatial_mean_pool(features: torch.Tensor, spatial_pool_size: int) -> torch.Tensor:
    """`(X, N, h, w, C)` -> `(X, N, num_places² C)`: means of so many areas a side, row by row, side by side."""
    if spatial_pool_size == 1:
        return features.mean(dim=(2, 3))
    areas = F.adaptive_avg_pool2d(features.flatten(0, 1).permute(0, 3, 1, 2), spatial_pool_size)
    return areas.permute(0, 2, 3, 1).flatten(1).unflatten(0, features.shape[:2])


def add_outer_features(features: torch.Tensor, from_outer_branches: list[torch.Tensor | None]) -> torch.Tensor:
    """
    `(Q, N, num_places² C)` and those of the outer branches, `(Q, N_i, C)`, which are the same at each place and may
    have finer steps of time (convolutional stages).
    """
    for outer_features in from_outer_branches:
        if outer_features is not None:
            if outer_features.shape[1] != features.shape[1]:
                outer_features = F.adaptive_avg_pool1d(outer_features.mT, features.shape[1]).mT
            spatial_pool_size = features.shape[2] // outer_features.shape[2]
            features = features + outer_features.to(features.dtype).repeat(1, 1, spatial_pool_size)
    return features


def resample(features: torch.Tensor, grid_size: int) -> torch.Tensor:
    """(Q, N, C) -> (Q, S, C): averages over areas where `N > S`, linear where `N < S`."""
    if features.shape[1] == grid_size:
        return features
    features = features.transpose(1, 2)
    if features.shape[2] > grid_size:
        features = F.interpolate(features, size=grid_size, mode="area")
    else:
        features = F.interpolate(features, size=grid_size, mode="linear", align_corners=False)
    return features.transpose(1, 2)


class SentenceScale(nn.Module):
    """`f <- f * (1 + W q)`: the sentence multiplies the channels."""

    def __init__(self, text_dim: int, dim: int):
        super().__init__()
        self.projection = nn.Linear(text_dim, dim)
        self.projection.initial_std = text_dim**-0.5  # read by `_init_weights`

    def forward(self, features: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        # features: (Q, S, D), sentence: (Q, C_text)
        return features * (1 + self.projection(sentence))[:, None]


class BiLSTM(nn.RNNBase):
    """`nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)`, which `torch.compile` does not take."""

    def __init__(self, dim: int):
        super().__init__("LSTM", dim, dim // 2, batch_first=True, bidirectional=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # (Q, S, D) -> (Q, S, D)
        state = features.new_zeros(2, len(features), self.hidden_size)
        weights = [getattr(self, name) for name in self._flat_weights_names]
        return torch.lstm(features, (state, state), weights, True, 1, 0.0, self.training, True, True)[0]


class PointLinear(nn.Linear):
    """
    One linear layer over the 16 sampled points of each proposal, without building the sampled points.

    It uses its weights itself, in its own forward: where weights are kept on disk, they are there while it runs.

    `W [f(p_1); ...; f(p_16)] = sum_k sum_s a_k(p, s) W_k f(s)`: 16 linear maps of the sequence, then a weighted sum of
    two rows a point, which `embedding_bag` does in one pass.
    """

    def __init__(self, dim: int, num_points: int):
        super().__init__(num_points * dim, dim)
        self.num_points = num_points

    def forward(self, features: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """
        Args:
            features (`torch.Tensor` of shape `(Q, S, D)`): The sequence, per sentence.
            rows (`torch.LongTensor` of shape `(Q P, 2 points)`): See [`point_rows`].
            weights (`torch.FloatTensor` of shape `(Q P, 2 points)`): Likewise.

        Returns:
            `torch.Tensor` of shape `(Q, P, D)`.
        """
        num_sentences, _, dim = features.shape
        # (points, Q S, D). The weights are read where they are, and nothing is copied.
        table = features.flatten(0, 1) @ self.weight.view(-1, self.num_points, dim).permute(1, 2, 0)
        sums = F.embedding_bag(rows, table.flatten(0, 1), per_sample_weights=weights.to(table), mode="sum")
        return sums.add_(self.bias).view(num_sentences, -1, dim)


class ProposalFeatures(nn.Module):
    """The features of proposals, `(Q, P, D)`; see [`PointLinear`]."""

    def __init__(self, dim: int, num_points: int):
        super().__init__()
        self.linear = PointLinear(dim, num_points)

    def forward(self, features: torch.Tensor, proposals_grid: torch.Tensor) -> torch.Tensor:
        num_sentences, grid_size, _ = features.shape
        points = sample_points(proposals_grid, self.linear.num_points, grid_size)
        return self.linear(features, *point_rows(*points, num_sentences, grid_size))


class RetrievalBranch(nn.Module):
    """
    Finds moments in many videos: an embedding of each proposal that no sentence changes, and one of each sentence.
    Their product says how well they fit, so the proposals of a library are embedded once, and a sentence costs one
    matrix product ([D], after MMN, Wang et al., AAAI 2022).

    Args:
        config ([`ScadaConfig`]): With `retrieval_dim`, the size `E` of the embeddings.
        video_dim (`int`): Width of the snippet features, `num_places² C`.
        text_dim (`int`): Width `C_text` of the sentence vector.
    """

    def __init__(self, config: ScadaConfig, video_dim: int, text_dim: int):
        super().__init__()
        dim = config.hidden_size
        self.grid_size = config.grid_size
        self.subtract_video_mean = config.subtract_video_mean
        self.norm = nn.LayerNorm(video_dim)
        self.projection = nn.Linear(video_dim, dim)
        self.lstm = BiLSTM(dim)
        self.neck_out = nn.Linear(2 * dim, dim)
        self.proposal_features = ProposalFeatures(dim, config.num_sample_points)
        self.proposal_out = nn.Linear(dim, config.retrieval_dim)
        self.sentence_out = nn.Linear(text_dim, config.retrieval_dim)

    def embed_proposals(self, features: torch.Tensor, proposals_grid: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(B, N, C)`): Snippet features that no sentence changed.
            proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges `i < j` in `0..S`.

        Returns:
            `torch.Tensor` of shape `(B, P, E)`: Of length 1.
        """
        features = features.to(self.norm.weight.dtype)
        if self.subtract_video_mean:
            features = features - features.mean(1, keepdim=True)
        features = self.projection(resample(self.norm(features), self.grid_size))
        recurrent = self.lstm(features)
        features = F.relu(self.neck_out(torch.cat([features, recurrent], dim=-1)))
        return F.normalize(self.proposal_out(F.relu(self.proposal_features(features, proposals_grid))), dim=-1)

    def embed_sentences(self, sentence: torch.Tensor) -> torch.Tensor:
        """
        Args:
            sentence (`torch.Tensor` of shape `(Q, C_text)`): Sentence vectors.

        Returns:
            `torch.Tensor` of shape `(Q, E)`: Of length 1.
        """
        return F.normalize(self.sentence_out(sentence.to(self.sentence_out.weight.dtype)), dim=-1)


class LocalizationHead(nn.Module):
    """
    BiLSTM neck with a convolution beside it, multiplied by the sentence three times, a boundary branch and a proposal
    branch; with `config.retrieval_dim` a [`RetrievalBranch`] beside all that.

    Args:
        config ([`ScadaConfig`]): Sizes of the head.
        video_dim (`int`): Width of the snippet features, `num_places² C`.
        text_dim (`int`): Width `C_text` of the sentence vector.
    """

    def __init__(self, config: ScadaConfig, video_dim: int, text_dim: int):
        super().__init__()
        dim = config.hidden_size
        self.config = config
        self.norm = nn.LayerNorm(video_dim)
        self.projection = nn.Linear(video_dim, dim)
        self.projection_scale = SentenceScale(text_dim, dim)
        self.lstm = BiLSTM(dim)
        self.neck_conv = nn.Conv1d(dim, dim, kernel_size=3, padding=1)
        self.neck_out = nn.Linear(2 * dim, dim)
        self.neck_scale = SentenceScale(text_dim, dim)
        self.boundary = nn.Sequential(
            nn.Conv1d(dim, dim, kernel_size=3, padding=1), nn.ReLU(), nn.Conv1d(dim, 2, kernel_size=3, padding=1)
        )
        self.proposal_projection = nn.Conv1d(dim, dim, kernel_size=3, padding=1)
        self.proposal_scale = SentenceScale(text_dim, dim)
        self.proposal_features = ProposalFeatures(dim, config.num_sample_points)
        self.iou_classifier = _mlp(dim, 1)
        self.iou_regressor = _mlp(dim, 1)
        self.offset_regressor = _mlp(dim, 4)
        self.retrieval = RetrievalBranch(config, video_dim, text_dim) if config.retrieval_dim else None
        # Scores start near one half and segments near the unrefined proposals.
        for output_layer in self.output_layers():
            output_layer.initial_std = config.initializer_range  # type: ignore[assignment]

    def output_layers(self) -> list[nn.Module]:
        """The last layer of each branch."""
        branches = (self.boundary, self.iou_classifier, self.iou_regressor, self.offset_regressor)
        return [branch[-1] for branch in branches]

    def forward(
        self,
        features: torch.Tensor,
        sentence: torch.Tensor,
        targets_grid: torch.Tensor | None = None,
        sentence_free_features: torch.Tensor | None = None,
    ) -> HeadOutput:
        """
        In training the proposals are at most `num_train_proposals`, drawn around the targets (see
        [`sample_proposals`]). At inference they are all, if there are targets (for the loss), else the
        `num_kept_proposals` of each sentence with the best scores, in the order of [`all_proposals`].

        Args:
            features (`torch.Tensor` of shape `(Q, N, C)`): Snippet features of each sentence's video.
            sentence (`torch.Tensor` of shape `(Q, C_text)`): Sentence vectors.
            targets_grid (`torch.Tensor` of shape `(N, 2)`, *optional*): All sentences' target segments, in `0..S`.
            sentence_free_features (`torch.Tensor` of shape `(B, N, C)`, *optional*): Snippet features that no sentence
                changed, for the retrieval branch.

        Returns:
            [`HeadOutput`].
        """
        # The encoders may be of another precision, such as a checkpoint in bfloat16 under a new head.
        features, sentence = features.to(self.norm.weight.dtype), sentence.to(self.norm.weight.dtype)
        if self.config.subtract_video_mean:
            features = features - features.mean(1, keepdim=True)
        features = self.norm(F.dropout1d(features.mT, self.config.feature_dropout, self.training).mT)
        # Both are linear, and interpolation weights sum to one: the order is free, and the shorter one is projected.
        if features.shape[1] < self.config.grid_size:
            features = resample(self.projection(features), self.config.grid_size)
        else:
            features = self.projection(resample(features, self.config.grid_size))
        features = self.projection_scale(features, sentence)
        recurrent = self.lstm(features)
        direct = self.neck_conv(features.transpose(1, 2)).transpose(1, 2)
        features = F.relu(self.neck_out(torch.cat([recurrent, direct], dim=-1)))
        features = self.neck_scale(features, sentence)

        boundary_logits = self.boundary(features.transpose(1, 2)).transpose(1, 2)

        sequence = F.relu(self.proposal_projection(features.transpose(1, 2))).transpose(1, 2)
        sequence = self.proposal_scale(sequence, sentence)
        proposals_grid = all_proposals(self.config.grid_size, features.device)
        if not self.training and targets_grid is None and self.config.num_kept_proposals < len(proposals_grid):
            return HeadOutput(boundary_logits, *self._best(sequence, proposals_grid))
        if self.training and self.config.num_train_proposals < len(proposals_grid):
            if targets_grid is None:
                targets_grid = proposals_grid[:0]
            drawn = sample_proposals(proposals_grid, targets_grid, self.config.num_train_proposals)
            proposals_grid = proposals_grid[drawn]
        proposal_features = F.relu_(self.proposal_features(sequence, proposals_grid))
        iou_logits = torch.cat([self.iou_classifier(proposal_features), self.iou_regressor(proposal_features)], dim=-1)
        offsets = self.offset_regressor(proposal_features)
        if sentence_free_features is None:
            return HeadOutput(boundary_logits, proposals_grid, iou_logits, offsets)
        retrieval: Any = self.retrieval
        proposal_embeds = retrieval.embed_proposals(sentence_free_features, proposals_grid)
        sentence_embeds = retrieval.embed_sentences(sentence)
        return HeadOutput(boundary_logits, proposals_grid, iou_logits, offsets, proposal_embeds, sentence_embeds)

    def _best(
        self, sequence: torch.Tensor, proposals_grid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The proposals with the best scores, without the rest of what only others would need.

        Args:
            sequence (`torch.Tensor` of shape `(Q, S, D)`): What the proposals read.
            proposals_grid (`torch.Tensor` of shape `(P, 2)`): All of them.

        Returns:
            `tuple`: of the `K` best of each sentence the edges `(Q, K, 2)`, the IoUs `(Q, K, 2)` and the offsets
            `(Q, K, 4)`.
        """
        # What cannot be decided without waiting for a GPU, or in a graph, costs next to nothing on a GPU.
        if sequence.device.type != "cpu" or torch.compiler.is_compiling():
            features = F.relu_(self.proposal_features(sequence, proposals_grid))
            iou_logits = torch.cat([self.iou_classifier(features), self.iou_regressor(features)], dim=-1)
            kept = best_proposals(score_logits(iou_logits.float()), self.config.num_kept_proposals)
            offsets = self.offset_regressor(gather_proposals(features, kept))
            return proposals_grid[kept], gather_proposals(iou_logits, kept), offsets
        # On a CPU one by one, as what belongs to a sentence fits into the caches.
        points = sample_points(proposals_grid, self.config.num_sample_points, self.config.grid_size)
        points = point_rows(*points, 1, self.config.grid_size)
        best_by_sentence = [
            self._best_for_sentence(self.proposal_features.linear(row, *points)[0], proposals_grid)
            for row in sequence.split(1)
        ]
        edges, iou_logits, offsets = (torch.stack(parts) for parts in zip(*best_by_sentence, strict=True))
        return edges, iou_logits, offsets

    def _best_for_sentence(
        self, features: torch.Tensor, proposals_grid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[`_best`] of the features `(P, D)`, which asks for the regression only where it can matter."""
        num_kept, features = self.config.num_kept_proposals, F.relu_(features)
        classification = torch.cat([self.iou_classifier(part) for part in features.split(1024)])
        # No score is above its classification, so only those matter whose classification is as high as the worst score
        # that is kept. With a trained head these are seldom more than twice as many.
        count, needed = 0, 2 * num_kept
        while needed > count:
            count = needed
            scored = best_proposals(classification.T, count)[0]
            iou_logits = torch.cat([classification[scored], self.iou_regressor(features[scored])], dim=-1)
            worst_kept = score_logits(iou_logits.float()).topk(num_kept).values[-1]
            needed = int((classification.float() >= worst_kept).sum())
        kept = best_proposals(score_logits(iou_logits.float())[None], num_kept)[0]
        scored, iou_logits = scored[kept], iou_logits[kept]
        return proposals_grid[scored], iou_logits, self.offset_regressor(features[scored])


def _mlp(dim: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, num_outputs))
