"""
Localization head (docs/design.md section 7, details [D] after ETAD).

The head maps snippet features and the sentence vector to scores and refined segments of all proposals between `S + 1`
grid edges. It samples 16 points per proposal. The linear layer over these points equals 16 linear maps of the
sequence, followed by a sparse weighted sum over two steps per point. The head therefore never builds the
`(proposals, 16, D)` tensor.
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
        boundary_logits (`torch.Tensor` of shape `(Q, S, 2)`): Logits of start and end per step.
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges `i < j` of each proposal, in `0..S`. The shape is
            `(Q, P, 2)` if the proposals differ between sentences.
        iou_logits (`torch.Tensor` of shape `(Q, P, 2)`): Logits of the IoU classification and IoU regression.
        offsets (`torch.Tensor` of shape `(Q, P, 4)`): Offsets of start, end, center and width, in units of the
            proposal's length.
        proposal_embeds (`torch.Tensor` of shape `(B, P, E)`, *optional*): Proposal embeddings of the retrieval branch,
            for `B` videos.
        sentence_embeds (`torch.Tensor` of shape `(Q, E)`, *optional*): Sentence embeddings of the retrieval branch.
    """

    boundary_logits: torch.Tensor
    proposals_grid: torch.Tensor
    iou_logits: torch.Tensor
    offsets: torch.Tensor
    proposal_embeds: torch.Tensor | None = None
    sentence_embeds: torch.Tensor | None = None


def all_proposals(grid_size: int, device: torch.device | None = None) -> torch.Tensor:
    """
    Return all proposals, the pairs of edges `0 <= i < j <= S`.

    Returns:
        `torch.Tensor` of shape `(S (S + 1) / 2, 2)`: Integer edges.
    """
    return torch.triu_indices(grid_size, grid_size + 1, offset=1, device=device).T


def sparse_proposals(grid_size: int, device: torch.device | None = None) -> torch.Tensor:
    """
    Return a few hundred proposals for storage ([D], after the sparse sampling of 2D-TAN, Zhang et al., AAAI 2020).

    The lengths are 1, 2, 3, 4, 6, 8, 12, ... up to the whole grid. The stride is half the length.

    Returns:
        `torch.Tensor` of shape `(P, 2)`: Integer edges.
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
    Compute the steps and interpolation weights of each proposal's sample points.

    The proposal is extended by half its length on both sides. The `num_points` points are evenly spaced over this
    range, including both ends. Each point interpolates linearly between the centers of the two nearest steps. The
    sequence is zero outside the video.

    Args:
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges in `0..S`.
        num_points (`int`): Number of points per proposal.
        grid_size (`int`): Number of steps `S`, at least 2.

    Returns:
        `tuple`: Steps (`torch.LongTensor` of shape `(P, num_points, 2)`) and interpolation weights
        (`torch.FloatTensor` of the same shape).
    """
    start_grid, end_grid = proposals_grid.float().unbind(-1)
    half_length = (end_grid - start_grid) / 2
    fraction = torch.linspace(0, 1, num_points, device=proposals_grid.device)
    points_grid = (start_grid - half_length)[:, None] + 4 * half_length[:, None] * fraction  # (P, points)
    position = points_grid - 0.5  # the center of step i is at grid coordinate i + 0.5
    first_step = position.floor().clamp(0, grid_size - 2)
    steps = torch.stack([first_step, first_step + 1], dim=-1)
    weights = (1 - (position[..., None] - steps).abs()).clamp_min(0)
    return steps.long(), weights


def _point_rows(
    steps: torch.Tensor, weights: torch.Tensor, num_sentences: int, grid_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Convert sample points to rows of a table with row order (point, sentence, step), for all sentences.

    Args:
        steps (`torch.LongTensor` of shape `(P, points, 2)`): Steps from [`sample_points`].
        weights (`torch.FloatTensor` of shape `(P, points, 2)`): Interpolation weights from [`sample_points`].
        num_sentences (`int`): Number of sentences `Q`.
        grid_size (`int`): Number of steps `S`.

    Returns:
        `tuple`: Rows and weights, each of shape `(Q P, 2 points)`.
    """
    first_rows = grid_size * torch.arange(steps.shape[1] * num_sentences, device=steps.device)
    rows = steps + first_rows.view(-1, num_sentences).T[:, None, :, None]  # (Q, P, points, 2)
    return rows.flatten(2).flatten(0, 1), weights.expand_as(rows).flatten(2).flatten(0, 1)


def sample_proposals(proposals_grid: torch.Tensor, targets_grid: torch.Tensor, num_samples: int) -> torch.Tensor:
    """
    Sample random proposals for training, with positives for targets of any length. [D]

    The sample contains about equal shares of proposals with an IoU above 0.7, from 0.3 to 0.7, and below 0.3. In the
    first two shares, all targets have equal weight, regardless of their length. The sample always contains the
    proposal nearest to each target. A uniform sample of 512 from 8,256 proposals would contain the proposal
    nearest to a short target in only 6 % of cases.

    Args:
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): All proposals.
        targets_grid (`torch.Tensor` of shape `(N, 2)`): Target segments of all sentences. Negative starts mark
            padding. Without targets, all proposals are equally likely.
        num_samples (`int`): Number of proposals to sample.

    Returns:
        `torch.LongTensor` of shape `(num_samples,)`: Sorted indices of the proposals.
    """
    iou = temporal_iou(proposals_grid.float(), targets_grid[None].float())[0].T  # (N, P)
    high, low = iou > 0.7, (iou < 0.3).all(0, keepdim=True)
    is_target = targets_grid[:, 0] >= 0
    num_targets = is_target.sum().clamp_min(1)
    shares = [rows / rows.sum(1, keepdim=True).clamp_min(1) for rows in (high, ~high & (iou >= 0.3))]
    weights = torch.stack(shares).sum((0, 1)) / num_targets + low[0] / low.sum().clamp_min(1)
    # The top values of `log(weight) + Gumbel noise` are a sample without replacement. `weight / exponential noise` has
    # the same order.
    noise = torch.empty_like(weights).exponential_()
    keys = weights / noise
    nearest = torch.zeros_like(keys).index_add(0, iou.argmax(1), is_target.to(keys))
    keys = keys.masked_fill(nearest > 0, torch.inf)
    return keys.topk(num_samples).indices.sort().values


def decode_offsets(proposals_grid: torch.Tensor, offsets: torch.Tensor, grid_size: int) -> torch.Tensor:
    """
    Refine proposals with predicted offsets.

    The result is the mean of two decodings, one from (start, end) and one from (center, width).

    Args:
        proposals_grid (`torch.Tensor` of shape `(P, 2)` or `(..., P, 2)`): Edges in `0..S`.
        offsets (`torch.Tensor` of shape `(..., P, 4)`): Offsets of start, end, center and width, in units of the
            proposal's length.
        grid_size (`int`): Number of steps `S`.

    Returns:
        `torch.Tensor` of shape `(..., P, 2)`: Start and end in `[0, 1]` of the window, with start <= end.
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
    Return the log-odds of the scores, the products of classification and regression (docs/design.md section 9).

    Args:
        iou_logits (`torch.Tensor` of shape `(Q, P, 2)`): Logits of the IoU classification and IoU regression.

    Returns:
        `torch.Tensor` of shape `(Q, P)`: Log-odds.
    """
    # 1 / (sigmoid(a) sigmoid(b)) - 1 = exp(-a) + exp(-b) + exp(-a - b)
    return -torch.cat([-iou_logits, -iou_logits.sum(-1, keepdim=True)], dim=-1).logsumexp(-1)


def best_proposals(scores: torch.Tensor, num_kept: int) -> torch.Tensor:
    """
    Return the proposals with the highest scores.

    Args:
        scores (`torch.Tensor` of shape `(Q, P)`): Scores, or values with the same ranking.
        num_kept (`int`): Maximum number of proposals to keep per sentence.

    Returns:
        `torch.LongTensor` of shape `(Q, num_kept)`: Sorted indices. This order ranks equal scores as in the full list.
    """
    return scores.topk(min(num_kept, scores.shape[-1]), sorted=False).indices.sort(-1).values


def gather_proposals(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Select `(Q, K, C)` from values `(Q, P, C)` with indices `(Q, K)`."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


def resample_to_grid(features: torch.Tensor, grid_size: int) -> torch.Tensor:
    """Resample `(Q, N, C)` to `(Q, S, C)`, by averaging if `N > S` and by linear interpolation if `N < S`."""
    if features.shape[1] == grid_size:
        return features
    features = features.transpose(1, 2)
    if features.shape[2] > grid_size:
        features = F.interpolate(features, size=grid_size, mode="area")
    else:
        features = F.interpolate(features, size=grid_size, mode="linear", align_corners=False)
    return features.transpose(1, 2)


class SentenceScale(nn.Module):
    """Channel-wise scale of the features by the sentence, `f * (1 + W q)`."""

    def __init__(self, text_dim: int, dim: int):
        super().__init__()
        self.projection = nn.Linear(text_dim, dim)
        self.projection.initial_std = text_dim**-0.5  # read by `_init_weights`

    def forward(self, features: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        # features: (Q, S, D), sentence: (Q, C_text)
        return features * (1 + self.projection(sentence))[:, None]


class BiLSTM(nn.RNNBase):
    """Equivalent of `nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)` that supports `torch.compile`."""

    def __init__(self, dim: int):
        super().__init__("LSTM", dim, dim // 2, batch_first=True, bidirectional=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # (Q, S, D) -> (Q, S, D)
        state = features.new_zeros(2, len(features), self.hidden_size)
        weights = [getattr(self, name) for name in self._flat_weights_names]
        return torch.lstm(features, (state, state), weights, True, 1, 0.0, self.training, True, True)[0]


class PointLinear(nn.Linear):
    """
    Linear layer over the 16 sample points of each proposal. It never builds the features of the sample points.

    `W [f(p_1); ...; f(p_16)]` equals `sum_k sum_s a_k(p, s) W_k f(s)`. The layer applies 16 linear maps to the
    sequence, and `embedding_bag` sums two weighted rows per point in one pass.

    This module reads its weights only in its own `forward`, because weights offloaded to disk are loaded only while
    `forward` runs.
    """

    def __init__(self, dim: int, num_points: int):
        super().__init__(num_points * dim, dim)
        self.num_points = num_points

    def forward(self, features: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """
        Compute the features of proposals.

        Args:
            features (`torch.Tensor` of shape `(Q, S, D)`): Sequence per sentence.
            rows (`torch.LongTensor` of shape `(Q P, 2 points)`): Rows from [`_point_rows`].
            weights (`torch.FloatTensor` of shape `(Q P, 2 points)`): Interpolation weights from [`_point_rows`].

        Returns:
            `torch.Tensor` of shape `(Q, P, D)`: Proposal features.
        """
        num_sentences, _, dim = features.shape
        # (points, Q S, D). The reshaped weights are a view, not a copy.
        table = features.flatten(0, 1) @ self.weight.view(-1, self.num_points, dim).permute(1, 2, 0)
        sums = F.embedding_bag(rows, table.flatten(0, 1), per_sample_weights=weights.to(table), mode="sum")
        return sums.add_(self.bias).view(num_sentences, -1, dim)


class ProposalFeatures(nn.Module):
    """Features of proposals, `(Q, P, D)`; see [`PointLinear`]."""

    def __init__(self, dim: int, num_points: int):
        super().__init__()
        self.linear = PointLinear(dim, num_points)

    def forward(self, features: torch.Tensor, proposals_grid: torch.Tensor) -> torch.Tensor:
        num_sentences, grid_size, _ = features.shape
        points = sample_points(proposals_grid, self.linear.num_points, grid_size)
        return self.linear(features, *_point_rows(*points, num_sentences, grid_size))


class RetrievalBranch(nn.Module):
    """
    Branch for retrieval of segments from many videos ([D], after MMN, Wang et al., AAAI 2022).

    The branch embeds proposals independently of the sentences. The product of a proposal embedding and a sentence
    embedding is their similarity. A library therefore embeds its proposals once, and each sentence costs one matrix
    product.

    Args:
        config ([`ScadaConfig`]): Configuration with the embedding size `retrieval_dim`, `E`.
        video_dim (`int`): Width of the snippet features, `spatial_pool_size² C`.
        text_dim (`int`): Width of the sentence vector, `C_text`.
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
        Embed proposals.

        Args:
            features (`torch.Tensor` of shape `(B, N, C)`): Sentence-independent snippet features.
            proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges `i < j` in `0..S`.

        Returns:
            `torch.Tensor` of shape `(B, P, E)`: Embeddings with norm 1.
        """
        features = features.to(self.norm.weight.dtype)
        if self.subtract_video_mean:
            features = features - features.mean(1, keepdim=True)
        features = self.projection(resample_to_grid(self.norm(features), self.grid_size))
        recurrent = self.lstm(features)
        features = F.relu(self.neck_out(torch.cat([features, recurrent], dim=-1)))
        return F.normalize(self.proposal_out(F.relu(self.proposal_features(features, proposals_grid))), dim=-1)

    def embed_sentences(self, sentence: torch.Tensor) -> torch.Tensor:
        """
        Embed sentences.

        Args:
            sentence (`torch.Tensor` of shape `(Q, C_text)`): Sentence vectors.

        Returns:
            `torch.Tensor` of shape `(Q, E)`: Embeddings with norm 1.
        """
        return F.normalize(self.sentence_out(sentence.to(self.sentence_out.weight.dtype)), dim=-1)


class LocalizationHead(nn.Module):
    """
    Localization head with a neck of a BiLSTM and a parallel convolution, a boundary branch and a proposal branch. The
    sentence scales the features at three places. With `config.retrieval_dim`, the head also has a
    [`RetrievalBranch`].

    Args:
        config ([`ScadaConfig`]): Configuration of the head.
        video_dim (`int`): Width of the snippet features, `spatial_pool_size² C`.
        text_dim (`int`): Width of the sentence vector, `C_text`.
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
        # Small initial weights keep probabilities near 0.5 and segments near the unrefined proposals.
        for output_layer in self.output_layers():
            output_layer.initial_std = config.initializer_range  # type: ignore[assignment]

    def output_layers(self) -> list[nn.Module]:
        """Return the last layer of each branch."""
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
        Predict scores and offsets of proposals.

        During training, the head samples at most `num_train_proposals` proposals around the targets (see
        [`sample_proposals`]). At inference with targets, it returns all proposals for the loss. Without targets, it
        returns the `num_kept_proposals` proposals with the highest scores per sentence, in the order of
        [`all_proposals`].

        Args:
            features (`torch.Tensor` of shape `(Q, N, C)`): Snippet features of each sentence's video.
            sentence (`torch.Tensor` of shape `(Q, C_text)`): Sentence vectors.
            targets_grid (`torch.Tensor` of shape `(N, 2)`, *optional*): Target segments of all sentences, in `0..S`.
            sentence_free_features (`torch.Tensor` of shape `(B, N, C)`, *optional*): Sentence-independent snippet
                features for the retrieval branch.

        Returns:
            [`HeadOutput`]: Raw outputs.
        """
        # The precision of the encoders can differ, for example with a checkpoint in bfloat16 and a new head.
        features, sentence = features.to(self.norm.weight.dtype), sentence.to(self.norm.weight.dtype)
        if self.config.subtract_video_mean:
            features = features - features.mean(1, keepdim=True)
        features = self.norm(F.dropout1d(features.mT, self.config.feature_dropout, self.training).mT)
        # Projection and resampling commute, because both are linear and interpolation weights sum to one. Project the
        # shorter sequence.
        if features.shape[1] < self.config.grid_size:
            features = resample_to_grid(self.projection(features), self.config.grid_size)
        else:
            features = self.projection(resample_to_grid(features, self.config.grid_size))
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
            sampled = sample_proposals(proposals_grid, targets_grid, self.config.num_train_proposals)
            proposals_grid = proposals_grid[sampled]
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
        Return the `K` proposals with the highest scores per sentence, and compute offsets only for these proposals.

        Args:
            sequence (`torch.Tensor` of shape `(Q, S, D)`): Input sequence of the proposal branch.
            proposals_grid (`torch.Tensor` of shape `(P, 2)`): All proposals.

        Returns:
            `tuple`: Edges `(Q, K, 2)`, IoU logits `(Q, K, 2)` and offsets `(Q, K, 4)`.
        """
        # The data-dependent loop of `_best_for_sentence` would synchronize a GPU or break a compiled graph. On a GPU,
        # the full computation costs almost no extra time.
        if sequence.device.type != "cpu" or torch.compiler.is_compiling():
            features = F.relu_(self.proposal_features(sequence, proposals_grid))
            iou_logits = torch.cat([self.iou_classifier(features), self.iou_regressor(features)], dim=-1)
            kept = best_proposals(score_logits(iou_logits.float()), self.config.num_kept_proposals)
            offsets = self.offset_regressor(gather_proposals(features, kept))
            return proposals_grid[kept], gather_proposals(iou_logits, kept), offsets
        # On a CPU, process sentences one by one, because the data of a single sentence fits into the caches.
        points = sample_points(proposals_grid, self.config.num_sample_points, self.config.grid_size)
        points = _point_rows(*points, 1, self.config.grid_size)
        best_by_sentence = [
            self._best_for_sentence(self.proposal_features.linear(row, *points)[0], proposals_grid)
            for row in sequence.split(1)
        ]
        edges, iou_logits, offsets = (torch.stack(parts) for parts in zip(*best_by_sentence, strict=True))
        return edges, iou_logits, offsets

    def _best_for_sentence(
        self, features: torch.Tensor, proposals_grid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the result of `_best` for proposal features `(P, D)`; skip regressions that cannot change it."""
        num_kept, features = self.config.num_kept_proposals, F.relu_(features)
        classification = torch.cat([self.iou_classifier(part) for part in features.split(1024)])
        # A score never exceeds its classification. The regression therefore matters only for proposals whose
        # classification reaches the lowest kept score. With a trained head, these rarely exceed `2 * num_kept`.
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
