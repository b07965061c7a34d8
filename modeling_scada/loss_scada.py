"""
Losses for temporal grounding as pure tensor functions (docs/design.md section 8; terms [S], weights and thresholds
[D]).

The functions process `Q` sentences at once and return one value per sentence; [`temporal_grounding_loss`] averages
these values. Times are grid coordinates in `0..S`.

Two ranking terms extend the losses of the paper, both [D]. In the balanced classification, a hard negative, such as
the event of another sentence, has the same weight as each of hundreds of easy negatives. The ranking terms emphasize
hard negatives:

- [`_listwise_loss`] contrasts the proposals of a sentence.
- [`_matching_loss`] contrasts the sentences and segments of a video.

[`retrieval_loss`] trains the retrieval branch, which searches many videos.
"""

import torch
from torch.nn import functional as F


IOU_CLASSIFICATION_WEIGHT = 1.0
IOU_REGRESSION_WEIGHT = 5.0
OFFSET_WEIGHT = 10.0
# Proposals above this IoU are positives of the classification.
POSITIVE_IOU = 0.9
# Proposals above this IoU contribute to the offset loss.
OFFSET_IOU = 0.5
# Proposals above this IoU are positives of the listwise term.
LISTWISE_IOU = 0.7
# Temperature of the cosine similarities of the retrieval branch.
RETRIEVAL_TEMPERATURE = 0.1
# A segment of another sentence above this IoU is not a negative, because it also matches the sentence.
SAME_SEGMENT_IOU = 0.5
# Start and end in the labels of a sentence that is absent from its video.
ABSENT_LABEL = -1
# Maximum distance of boundary positives from the boundary, as a fraction of the segment's length; at least one step.
BOUNDARY_RADIUS = 0.1


def temporal_iou(proposals_grid: torch.Tensor, targets_grid: torch.Tensor) -> torch.Tensor:
    """
    Compute the temporal IoU of each proposal with each target.

    Args:
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Start and end of each proposal.
        targets_grid (`torch.Tensor` of shape `(Q, K, 2)`): Start and end of each target.

    Returns:
        `torch.Tensor` of shape `(Q, P, K)`: Intersection over union, 0 if both lengths are zero.
    """
    proposals = proposals_grid[None, :, None]
    targets = targets_grid[:, None]
    start = torch.maximum(proposals[..., 0], targets[..., 0])
    end = torch.minimum(proposals[..., 1], targets[..., 1])
    intersection = (end - start).clamp_min(0)
    lengths = (proposals[..., 1] - proposals[..., 0]) + (targets[..., 1] - targets[..., 0])
    return intersection / (lengths - intersection).clamp_min(torch.finfo(intersection.dtype).tiny)


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of `values` over the last dimension where `mask` is `True`, or 0 for an empty mask."""
    mask = mask.to(values.dtype)
    return (values * mask).sum(-1) / mask.sum(-1).clamp_min(1)


def above_or_best(iou: torch.Tensor, threshold: float) -> torch.Tensor:
    """
    Select the proposals above a threshold.

    In rows without such a proposal, the function selects the best one if its IoU is positive.

    Args:
        iou (`torch.Tensor` of shape `(Q, P)`): IoU of each proposal.
        threshold (`float`): IoU threshold.

    Returns:
        `torch.BoolTensor` of shape `(Q, P)`: Mask of the selected proposals.
    """
    best = iou.max(-1, keepdim=True).values
    return (iou > threshold) | ((best <= threshold) & (iou == best) & (best > 0))


def _balanced_bce(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """
    Compute binary cross-entropy with equal weight for the positives and the negatives of each row.

    Args:
        logits (`torch.Tensor` of shape `(..., n)`): Logits.
        positive (`torch.BoolTensor` of shape `(..., n)`): Mask of the positives.

    Returns:
        `torch.Tensor` of shape `(...)`: Half the mean over the positives plus half the mean over the negatives.
    """
    loss = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return (_masked_mean(loss, positive) + _masked_mean(loss, ~positive)) / 2


def boundary_loss(
    boundary_logits: torch.Tensor, targets_grid: torch.Tensor, target_mask: torch.Tensor
) -> torch.Tensor:
    """
    Compute the balanced classification loss of start and end per step.

    Args:
        boundary_logits (`torch.Tensor` of shape `(Q, S, 2)`): Logits of start and end per step.
        targets_grid (`torch.Tensor` of shape `(Q, K, 2)`): Target segments.
        target_mask (`torch.BoolTensor` of shape `(Q, K)`): Mask of the targets, `False` for padding.

    Returns:
        `torch.Tensor` of shape `(Q,)`: Loss per sentence.
    """
    centers_grid = torch.arange(boundary_logits.shape[1], device=targets_grid.device) + 0.5
    lengths_grid = targets_grid[..., 1] - targets_grid[..., 0]
    radius_grid = (BOUNDARY_RADIUS * lengths_grid).clamp_min(1)[..., None, None]
    near = (centers_grid[:, None] - targets_grid[:, :, None]).abs() <= radius_grid  # (Q, K, S, 2)
    positive = (near & target_mask[..., None, None]).any(1)
    return _balanced_bce(boundary_logits.transpose(1, 2), positive.transpose(1, 2)).mean(-1)


def iou_classification_loss(logits: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
    """
    Compute the balanced classification loss of the proposals.

    Proposals above IoU 0.9 are positives. For a sentence without such a proposal, the best one is positive.

    Args:
        logits (`torch.Tensor` of shape `(Q, P)`): Classification logits.
        iou (`torch.Tensor` of shape `(Q, P)`): IoU with the best target.

    Returns:
        `torch.Tensor` of shape `(Q,)`: Loss per sentence.
    """
    return _balanced_bce(logits, above_or_best(iou, POSITIVE_IOU))


def iou_regression_loss(logits: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
    """
    Compute the squared error of the predicted IoU, with equal weight for the IoU bins > 0.7, 0.3 to 0.7 and < 0.3.

    Args:
        logits (`torch.Tensor` of shape `(Q, P)`): Predicted IoU before the sigmoid.
        iou (`torch.Tensor` of shape `(Q, P)`): IoU with the best target.

    Returns:
        `torch.Tensor` of shape `(Q,)`: Loss per sentence.
    """
    error = (logits.sigmoid() - iou) ** 2
    high, low = iou > 0.7, iou < 0.3
    bins = [high, ~high & ~low, low]
    present = torch.stack([rows.any(-1) for rows in bins]).sum(0)
    return torch.stack([_masked_mean(error, rows) for rows in bins]).sum(0) / present


def offset_loss(
    offsets: torch.Tensor, proposals_grid: torch.Tensor, targets_grid: torch.Tensor, iou: torch.Tensor
) -> torch.Tensor:
    """
    Compute the Smooth-L1 loss of the offsets of start, end, center and width.

    The loss includes proposals above IoU 0.5 with their target. For a sentence without such a proposal, it includes
    the best one.

    Args:
        offsets (`torch.Tensor` of shape `(Q, P, 4)`): Predicted offsets, in units of the proposal's length.
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges in `0..S`.
        targets_grid (`torch.Tensor` of shape `(Q, P, 2)`): Target of each proposal.
        iou (`torch.Tensor` of shape `(Q, P)`): IoU of each proposal with its target.

    Returns:
        `torch.Tensor` of shape `(Q,)`: Loss per sentence.
    """
    length = (proposals_grid[:, 1] - proposals_grid[:, 0])[:, None]
    expected = torch.cat(
        [
            targets_grid - proposals_grid,
            targets_grid.mean(-1, keepdim=True) - proposals_grid.mean(-1, keepdim=True),
            (targets_grid[..., 1:] - targets_grid[..., :1]) - length,
        ],
        dim=-1,
    )
    error = F.smooth_l1_loss(offsets, expected / length, reduction="none").mean(-1)
    return _masked_mean(error, above_or_best(iou, OFFSET_IOU))


def _multi_positive_cross_entropy(
    logits: torch.Tensor, positive: torch.Tensor, candidates: torch.Tensor
) -> torch.Tensor:
    """
    Compute softmax cross-entropy with multiple positives.

    Args:
        logits (`torch.Tensor` of shape `(..., n)`): Logits.
        positive (`torch.BoolTensor` of shape `(..., n)`): Mask of the positives.
        candidates (`torch.BoolTensor` of shape `(..., n)`): Mask of the positives and negatives.

    Returns:
        `torch.Tensor` of shape `(...)`: Negative log of the total probability of the positives, or 0 without
        positives.
    """
    lowest = torch.finfo(logits.dtype).min
    positive_logit = logits.masked_fill(~positive, lowest).logsumexp(-1)
    loss = logits.masked_fill(~candidates, lowest).logsumexp(-1) - positive_logit
    return torch.where(positive.any(-1), loss, 0)


def _listwise_loss(logits: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
    """
    Compute softmax cross-entropy over the proposals of each sentence. [D]

    Proposals above IoU 0.7 are positives. For a sentence without such a proposal, the best one is positive.

    Args:
        logits (`torch.Tensor` of shape `(Q, P)`): Classification logits.
        iou (`torch.Tensor` of shape `(Q, P)`): IoU with the best target.

    Returns:
        `torch.Tensor` of shape `(Q,)`: Loss per sentence.
    """
    return _multi_positive_cross_entropy(
        logits, above_or_best(iou, LISTWISE_IOU), torch.ones_like(iou, dtype=torch.bool)
    )


def _competing_segments(
    targets_grid: torch.Tensor, target_mask: torch.Tensor, video_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Find the positive and negative segments of each sentence among the segments of all sentences.

    A sentence's own segments are positives. Segments of the same video above IoU 0.5 with one of these are neither
    positives nor negatives.

    Args:
        targets_grid (`torch.Tensor` of shape `(Q, K, 2)`): Target segments.
        target_mask (`torch.BoolTensor` of shape `(Q, K)`): Mask of the targets, `False` for padding.
        video_index (`torch.LongTensor` of shape `(Q,)`): Index of each sentence's video.

    Returns:
        `tuple` of three `torch.BoolTensor` of shape `(Q, Q * K)`: Masks of the positives, of the negatives, and of the
        segments from the sentence's video.
    """
    num_sentences, num_targets = target_mask.shape
    sentences = torch.arange(num_sentences, device=target_mask.device)
    owner = sentences.repeat_interleave(num_targets)
    is_own = owner == sentences[:, None]
    same_video = video_index[owner] == video_index[:, None]
    overlap = temporal_iou(targets_grid.flatten(0, 1), targets_grid)  # (Q, Q * K, K)
    is_same = same_video & ((overlap * target_mask[:, None]).amax(-1) > SAME_SEGMENT_IOU)
    is_target = target_mask.flatten()
    return is_own & is_target, target_mask.any(-1)[:, None] & is_target & ~(is_own | is_same), same_video


def _matching_loss(
    logits: torch.Tensor,
    iou: torch.Tensor,
    targets_grid: torch.Tensor,
    target_mask: torch.Tensor,
    video_index: torch.Tensor,
) -> torch.Tensor:
    """
    Compute the cross-entropy of matching sentences and segments within each video. [D]

    `A[m, n]` denotes the logit of sentence `m` at the proposal nearest to segment `n`. The rows contrast the segments
    of the video for each sentence. The columns contrast the sentences for each segment. The loss of a sentence is the
    mean of its row term and the average column term of its own segments. Segments above IoU 0.5 with one of the
    sentence's own are not negatives. The loss is 0 if a video has a single sentence.

    Args:
        logits (`torch.Tensor` of shape `(Q, P)`): Classification logits.
        iou (`torch.Tensor` of shape `(Q, P, K)`): IoU of each proposal with each target.
        targets_grid (`torch.Tensor` of shape `(Q, K, 2)`): Target segments.
        target_mask (`torch.BoolTensor` of shape `(Q, K)`): Mask of the targets, `False` for padding.
        video_index (`torch.LongTensor` of shape `(Q,)`): Index of each sentence's video.

    Returns:
        `torch.Tensor` of shape `(Q,)`: Loss per sentence.
    """
    segment_logits = logits[:, iou.argmax(1).flatten()]  # (Q, Q * K)
    positive, negative, same_video = _competing_segments(targets_grid, target_mask, video_index)
    candidates = positive | (negative & same_video)
    rows = _multi_positive_cross_entropy(segment_logits, positive, candidates)
    columns = _multi_positive_cross_entropy(segment_logits.T, positive.T, candidates.T).view(target_mask.shape)
    return (rows + _masked_mean(columns, target_mask)) / 2


def retrieval_loss(
    proposal_embeds: torch.Tensor,
    sentence_embeds: torch.Tensor,
    proposals_grid: torch.Tensor,
    labels: torch.Tensor,
    video_index: torch.Tensor,
    same_text: torch.Tensor,
    grid_size: int,
) -> torch.Tensor:
    """
    Compute the cross-entropy of matching sentences and proposals across all videos of the batch. [D]

    The logits are cosine similarities divided by 0.1. For each sentence, the loss contrasts the proposals of all
    videos, with positives as in [`_listwise_loss`]. For each segment, it contrasts the sentences at the nearest
    proposal, as in [`_matching_loss`]. Videos queried with the same text are not negatives.

    Args:
        proposal_embeds (`torch.Tensor` of shape `(B, P, E)`): Proposal embeddings with norm 1.
        sentence_embeds (`torch.Tensor` of shape `(Q, E)`): Sentence embeddings with norm 1.
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges in `0..S`.
        labels (`torch.Tensor` of shape `(Q, K, 2)`): Target segments in `[0, 1]` of the window, padded with -100.
        video_index (`torch.LongTensor` of shape `(Q,)`): Index of each sentence's video.
        same_text (`torch.BoolTensor` of shape `(Q, Q)`): Mask of the pairs of sentences with the same words.
        grid_size (`int`): Number of steps `S`.

    Returns:
        `torch.Tensor` of shape `()`: Mean over the sentences with a target, or 0 without targets.
    """
    targets_grid, target_mask, all_ious = _targets(labels, proposals_grid.float(), grid_size)
    num_videos = len(proposal_embeds)
    logits = torch.einsum("qe,bpe->qbp", sentence_embeds.float(), proposal_embeds.float()) / RETRIEVAL_TEMPERATURE
    is_own_video = video_index[:, None] == torch.arange(num_videos, device=video_index.device)  # (Q, B)
    has_same_text = (same_text.to(logits) @ is_own_video.to(logits)) > 0  # (Q, B)
    positive = is_own_video[..., None] & above_or_best(all_ious.amax(-1), LISTWISE_IOU)[:, None]
    candidates = (is_own_video | ~has_same_text)[..., None].expand_as(positive)
    rows = _multi_positive_cross_entropy(logits.flatten(1), positive.flatten(1), candidates.flatten(1))

    segment_video = video_index.repeat_interleave(target_mask.shape[1])
    segment_logits = logits[:, segment_video, all_ious.argmax(1).flatten()]  # (Q, Q * K)
    positive, negative, _ = _competing_segments(targets_grid, target_mask, video_index)
    candidates = positive | (negative & ~same_text.repeat_interleave(target_mask.shape[1], dim=1))
    columns = _multi_positive_cross_entropy(segment_logits.T, positive.T, candidates.T).view(target_mask.shape)
    return _masked_mean((rows + _masked_mean(columns, target_mask)) / 2, target_mask.any(-1))


def temporal_grounding_loss(
    boundary_logits: torch.Tensor,
    iou_logits: torch.Tensor,
    offsets: torch.Tensor,
    proposals_grid: torch.Tensor,
    labels: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """
    Compute the terms of `L = L_boundary + L_iou + L_offset`, averaged over sentences.

    The average includes sentences with a target and sentences absent from their video, labeled `[-1, -1]`. For absent
    sentences, all proposals and steps are negatives, and each IoU is 0 [D]. The offset loss excludes them. Each term
    is 0 without such sentences.

    Args:
        boundary_logits (`torch.Tensor` of shape `(Q, S, 2)`): Logits of start and end per step.
        iou_logits (`torch.Tensor` of shape `(Q, P, 2)`): Logits of the IoU classification and IoU regression.
        offsets (`torch.Tensor` of shape `(Q, P, 4)`): Predicted offsets, in units of the proposal's length.
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges in `0..S`.
        labels (`torch.Tensor` of shape `(Q, K, 2)`): Target segments in `[0, 1]` of the window, padded with -100.

    Returns:
        `dict[str, torch.Tensor]`: Weighted terms `loss_boundary`, `loss_iou_classification`, `loss_iou_regression` and
        `loss_offset`. Their sum is the loss.
    """
    proposals = proposals_grid.float()
    targets_grid, target_mask, all_ious = _targets(labels, proposals, boundary_logits.shape[1])
    iou, target_index = all_ious.max(-1)  # (Q, P)
    own_target = targets_grid.gather(1, target_index[..., None].expand(-1, -1, 2))  # (Q, P, 2)
    classification, regression = iou_logits.float().unbind(-1)
    terms = {
        "loss_boundary": boundary_loss(boundary_logits.float(), targets_grid, target_mask),
        "loss_iou_classification": IOU_CLASSIFICATION_WEIGHT * iou_classification_loss(classification, iou),
        "loss_iou_regression": IOU_REGRESSION_WEIGHT * iou_regression_loss(regression, iou),
        "loss_offset": OFFSET_WEIGHT * offset_loss(offsets.float(), proposals, own_target, iou),
    }
    has_target = target_mask.any(-1)
    has_label = has_target | (labels[..., 0] == ABSENT_LABEL).any(-1)
    return {
        name: _masked_mean(values, has_target if name == "loss_offset" else has_label)
        for name, values in terms.items()
    }


def ranking_loss(
    logits: torch.Tensor,
    proposals_grid: torch.Tensor,
    labels: torch.Tensor,
    video_index: torch.Tensor,
    grid_size: int,
) -> dict[str, torch.Tensor]:
    """
    Compute the two ranking terms, averaged over the sentences with a target, or 0 without targets. [D]

    Args:
        logits (`torch.Tensor` of shape `(Q, P)`): Classification logits. The `P` proposals must include those nearest
            to the targets. With the full score, which includes the regression, the matching term learned more slowly.
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges in `0..S`.
        labels (`torch.Tensor` of shape `(Q, K, 2)`): Target segments in `[0, 1]` of the window, padded with -100.
        video_index (`torch.LongTensor` of shape `(Q,)`): Index of each sentence's video.
        grid_size (`int`): Number of steps `S`.

    Returns:
        `dict[str, torch.Tensor]`: Terms `loss_listwise` and `loss_matching`.
    """
    targets_grid, target_mask, all_ious = _targets(labels, proposals_grid.float(), grid_size)
    logits = logits.float()
    terms = {
        "loss_listwise": _listwise_loss(logits, all_ious.amax(-1)),
        "loss_matching": _matching_loss(logits, all_ious, targets_grid, target_mask, video_index),
    }
    has_target = target_mask.any(-1)
    return {name: _masked_mean(values, has_target) for name, values in terms.items()}


def _targets(
    labels: torch.Tensor, proposals: torch.Tensor, grid_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the targets `(Q, K, 2)` in `0..S`, their mask `(Q, K)`, and their IoU with each proposal `(Q, P, K)`."""
    target_mask = labels[..., 0] >= 0
    targets_grid = labels.float().clamp_min(0) * grid_size
    return targets_grid, target_mask, temporal_iou(proposals, targets_grid) * target_mask[:, None]
