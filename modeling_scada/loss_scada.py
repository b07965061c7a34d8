"""
Losses of temporal grounding as pure tensor functions (docs/design.md section 8; terms [S], weights and thresholds
[D]).

All work on `Q` sentences at once and return a value for each; [`temporal_grounding_loss`] takes their mean. Times are
grid coordinates in `0..S`.

Beside the paper's terms stand two that rank, both [D]. The balanced classification weighs the few proposals that are
hard to tell from a sentence's own, the events of other sentences, like the hundreds of easy ones; these two do not:
- [`listwise_loss`]: a sentence's proposals compete with each other;
- [`matching_loss`]: the sentences and the segments of a video compete for each other.

[`retrieval_loss`] is that of the branch that searches many videos.
"""

import torch
from torch.nn import functional as F


IOU_CLASSIFICATION_WEIGHT = 1.0
IOU_REGRESSION_WEIGHT = 5.0
OFFSET_WEIGHT = 10.0
# A proposal is a positive of the classification above this IoU, and takes part in the offset loss above the other.
POSITIVE_IOU = 0.9
OFFSET_IOU = 0.5
# Proposals above this IoU share the listwise term's probability.
LISTWISE_IOU = 0.7
# Cosines of the retrieval branch are divided by it.
RETRIEVAL_TEMPERATURE = 0.1
# A sentence is no negative of another one's segment that it overlaps by more than this: both would be right.
SAME_SEGMENT_IOU = 0.5
# Start and end of the only segment of a sentence that is not in its video, in labels.
ABSENT_LABEL = -1
# Boundary positives lie within this share of the segment's length of the boundary, but at least one step.
BOUNDARY_RADIUS = 0.1


def temporal_iou(proposals_grid: torch.Tensor, targets_grid: torch.Tensor) -> torch.Tensor:
    """
    Args:
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Start and end.
        targets_grid (`torch.Tensor` of shape `(Q, K, 2)`): Start and end.

    Returns:
        `torch.Tensor` of shape `(Q, P, K)`: Intersection over union, 0 where both have no length.
    """
    proposals = proposals_grid[None, :, None]
    targets = targets_grid[:, None]
    start = torch.maximum(proposals[..., 0], targets[..., 0])
    end = torch.minimum(proposals[..., 1], targets[..., 1])
    intersection = (end - start).clamp_min(0)
    lengths = (proposals[..., 1] - proposals[..., 0]) + (targets[..., 1] - targets[..., 0])
    return intersection / (lengths - intersection).clamp_min(torch.finfo(intersection.dtype).tiny)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `values` over the last dimension where `mask` holds; 0 where it holds nowhere."""
    mask = mask.to(values.dtype)
    return (values * mask).sum(-1) / mask.sum(-1).clamp_min(1)


def above_or_best(iou: torch.Tensor, threshold: float) -> torch.Tensor:
    """
    The proposals above `threshold`; in rows without one the best, if it overlaps its target at all.

    Args:
        iou (`torch.Tensor` of shape `(Q, P)`): IoU of each proposal.
        threshold (`float`): Bound.

    Returns:
        `torch.BoolTensor` of shape `(Q, P)`.
    """
    best = iou.max(-1, keepdim=True).values
    return (iou > threshold) | ((best <= threshold) & (iou == best) & (best > 0))


def balanced_bce(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """
    Binary cross-entropy in which positives and negatives of a row weigh the same.

    Args:
        logits (`torch.Tensor` of shape `(..., n)`): Scores.
        positive (`torch.BoolTensor` of shape `(..., n)`): Targets.

    Returns:
        `torch.Tensor` of shape `(...)`: Half the mean over the positives plus half the mean over the negatives.
    """
    loss = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return (masked_mean(loss, positive) + masked_mean(loss, ~positive)) / 2


def boundary_loss(
    boundary_logits: torch.Tensor, targets_grid: torch.Tensor, target_mask: torch.Tensor
) -> torch.Tensor:
    """
    Start and end of the targets, per step.

    Args:
        boundary_logits (`torch.Tensor` of shape `(Q, S, 2)`): Start and end logits.
        targets_grid (`torch.Tensor` of shape `(Q, K, 2)`): Target segments.
        target_mask (`torch.BoolTensor` of shape `(Q, K)`): Which targets there are.

    Returns:
        `torch.Tensor` of shape `(Q,)`.
    """
    centers_grid = torch.arange(boundary_logits.shape[1], device=targets_grid.device) + 0.5
    lengths_grid = targets_grid[..., 1] - targets_grid[..., 0]
    radius_grid = (BOUNDARY_RADIUS * lengths_grid).clamp_min(1)[..., None, None]
    near = (centers_grid[:, None] - targets_grid[:, :, None]).abs() <= radius_grid  # (Q, K, S, 2)
    positive = (near & target_mask[..., None, None]).any(1)
    return balanced_bce(boundary_logits.transpose(1, 2), positive.transpose(1, 2)).mean(-1)


def iou_classification_loss(logits: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
    """
    Balanced classification of the proposals: positive above 0.9 IoU, falling to the best proposal where none is.

    Args:
        logits (`torch.Tensor` of shape `(Q, P)`): Scores.
        iou (`torch.Tensor` of shape `(Q, P)`): IoU with the best target.

    Returns:
        `torch.Tensor` of shape `(Q,)`.
    """
    return balanced_bce(logits, above_or_best(iou, POSITIVE_IOU))


def iou_regression_loss(logits: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
    """
    Squared error of the predicted IoU, in which the bins > 0.7, 0.3 to 0.7 and < 0.3 weigh the same.

    Args:
        logits (`torch.Tensor` of shape `(Q, P)`): IoU before the sigmoid.
        iou (`torch.Tensor` of shape `(Q, P)`): IoU with the best target.

    Returns:
        `torch.Tensor` of shape `(Q,)`.
    """
    error = (logits.sigmoid() - iou) ** 2
    high, low = iou > 0.7, iou < 0.3
    bins = [high, ~high & ~low, low]
    present = torch.stack([rows.any(-1) for rows in bins]).sum(0)
    return torch.stack([masked_mean(error, rows) for rows in bins]).sum(0) / present


def offset_loss(
    offsets: torch.Tensor, proposals_grid: torch.Tensor, targets_grid: torch.Tensor, iou: torch.Tensor
) -> torch.Tensor:
    """
    Smooth-L1 on the offsets of start, end, centre and width, for proposals that overlap their target by more than half
    (the best proposal where none does).

    Args:
        offsets (`torch.Tensor` of shape `(Q, P, 4)`): Predicted, in units of the proposal's length.
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges.
        targets_grid (`torch.Tensor` of shape `(Q, P, 2)`): The target of each proposal.
        iou (`torch.Tensor` of shape `(Q, P)`): IoU with it.

    Returns:
        `torch.Tensor` of shape `(Q,)`.
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
    return masked_mean(error, above_or_best(iou, OFFSET_IOU))


def multi_positive_cross_entropy(logits: torch.Tensor, positive: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy of a softmax with several right answers: `-log` of what they get together.

    Args:
        logits (`torch.Tensor` of shape `(..., n)`): Scores.
        positive (`torch.BoolTensor` of shape `(..., n)`): The right answers, all of them present.
        present (`torch.BoolTensor` of shape `(..., n)`): All answers that compete.

    Returns:
        `torch.Tensor` of shape `(...)`; 0 where there is no right answer.
    """
    lowest = torch.finfo(logits.dtype).min
    right = logits.masked_fill(~positive, lowest).logsumexp(-1)
    loss = logits.masked_fill(~present, lowest).logsumexp(-1) - right
    return torch.where(positive.any(-1), loss, 0)


def listwise_loss(logits: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
    """
    `-log` of the share of the softmax over a sentence's proposals that those above IoU 0.7 have (the best, where none
    is). [D]

    Args:
        logits (`torch.Tensor` of shape `(Q, P)`): Scores.
        iou (`torch.Tensor` of shape `(Q, P)`): IoU with the best target.

    Returns:
        `torch.Tensor` of shape `(Q,)`.
    """
    return multi_positive_cross_entropy(
        logits, above_or_best(iou, LISTWISE_IOU), torch.ones_like(iou, dtype=torch.bool)
    )


def competing_segments(
    targets_grid: torch.Tensor, target_mask: torch.Tensor, video_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Which of all sentences' segments are a sentence's own, and which are not its own.

    Neither is a segment of the same video that the sentence overlaps with one of its own by more than half.

    Args:
        targets_grid (`torch.Tensor` of shape `(Q, K, 2)`): Target segments.
        target_mask (`torch.BoolTensor` of shape `(Q, K)`): Which targets there are.
        video_index (`torch.LongTensor` of shape `(Q,)`): The video of each sentence.

    Returns:
        `tuple` of three `torch.BoolTensor` of shape `(Q, Q * K)`: own, not own, and which are of the sentence's video.
    """
    num_sentences, num_targets = target_mask.shape
    sentences = torch.arange(num_sentences, device=target_mask.device)
    owner = sentences.repeat_interleave(num_targets)
    is_own = owner == sentences[:, None]
    same_video = video_index[owner] == video_index[:, None]
    overlap = temporal_iou(targets_grid.flatten(0, 1), targets_grid)  # (Q, Q * K, K)
    is_same = same_video & ((overlap * target_mask[:, None]).amax(-1) > SAME_SEGMENT_IOU)
    present = target_mask.flatten()
    return is_own & present, target_mask.any(-1)[:, None] & present & ~(is_own | is_same), same_video


def matching_loss(
    logits: torch.Tensor,
    iou: torch.Tensor,
    targets_grid: torch.Tensor,
    target_mask: torch.Tensor,
    video_index: torch.Tensor,
) -> torch.Tensor:
    """
    Which segment of its video is a sentence's, and which sentence is a segment's. [D]

    `A[m, n]` is the score of sentence `m` at the proposal nearest to segment `n`. Along the rows the segments of the
    video compete for a sentence, along the columns the sentences for a segment: cross-entropy, half a row's and half
    the mean of its own segments' columns. A pair takes no part if the sentence overlaps the segment with one of its
    own by more than half, since then it is no negative. 0 for the only sentence of a video.

    Args:
        logits (`torch.Tensor` of shape `(Q, P)`): Scores.
        iou (`torch.Tensor` of shape `(Q, P, K)`): IoU of each proposal with each target.
        targets_grid (`torch.Tensor` of shape `(Q, K, 2)`): Target segments.
        target_mask (`torch.BoolTensor` of shape `(Q, K)`): Which targets there are.
        video_index (`torch.LongTensor` of shape `(Q,)`): The video of each sentence.

    Returns:
        `torch.Tensor` of shape `(Q,)`.
    """
    at_segments = logits[:, iou.argmax(1).flatten()]  # (Q, Q * K)
    own, others, same_video = competing_segments(targets_grid, target_mask, video_index)
    present = own | (others & same_video)
    rows = multi_positive_cross_entropy(at_segments, own, present)
    columns = multi_positive_cross_entropy(at_segments.T, own.T, present.T).view(target_mask.shape)
    return (rows + masked_mean(columns, target_mask)) / 2


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
    Which proposal of all videos is a sentence's, and which sentence of all is a segment's: cross-entropy over the
    cosines divided by 0.1. [D]

    As in [`listwise_loss`], the proposals above IoU 0.7 share the right answer; as in [`matching_loss`], each segment
    stands for itself by its nearest proposal. A video in which the same text is asked for is no negative.

    Args:
        proposal_embeds (`torch.Tensor` of shape `(B, P, E)`): Of length 1.
        sentence_embeds (`torch.Tensor` of shape `(Q, E)`): Of length 1.
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges in `0..S`.
        labels (`torch.Tensor` of shape `(Q, K, 2)`): Target segments in `[0, 1]` of the window, padded with -100.
        video_index (`torch.LongTensor` of shape `(Q,)`): The video of each sentence.
        same_text (`torch.BoolTensor` of shape `(Q, Q)`): Which sentences have the same words.
        grid_size (`int`): Number of steps `S`.

    Returns:
        `torch.Tensor` of shape `()`: The mean over the sentences that have a target (0 if none has).
    """
    targets_grid, target_mask, all_ious = _targets(labels, proposals_grid.float(), grid_size)
    num_videos = len(proposal_embeds)
    logits = torch.einsum("qe,bpe->qbp", sentence_embeds.float(), proposal_embeds.float()) / RETRIEVAL_TEMPERATURE
    is_own_video = video_index[:, None] == torch.arange(num_videos, device=video_index.device)  # (Q, B)
    asks_the_same = (same_text.to(logits) @ is_own_video.to(logits)) > 0  # (Q, B)
    positive = is_own_video[..., None] & above_or_best(all_ious.amax(-1), LISTWISE_IOU)[:, None]
    present = (is_own_video | ~asks_the_same)[..., None].expand_as(positive)
    rows = multi_positive_cross_entropy(logits.flatten(1), positive.flatten(1), present.flatten(1))

    owner_video = video_index.repeat_interleave(target_mask.shape[1])
    at_segments = logits[:, owner_video, all_ious.argmax(1).flatten()]  # (Q, Q * K)
    own, others, _ = competing_segments(targets_grid, target_mask, video_index)
    present = own | (others & ~same_text.repeat_interleave(target_mask.shape[1], dim=1))
    columns = multi_positive_cross_entropy(at_segments.T, own.T, present.T).view(target_mask.shape)
    return masked_mean((rows + masked_mean(columns, target_mask)) / 2, target_mask.any(-1))


def temporal_grounding_loss(
    boundary_logits: torch.Tensor,
    iou_logits: torch.Tensor,
    offsets: torch.Tensor,
    proposals_grid: torch.Tensor,
    labels: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """
    `L = L_boundary + L_iou + L_offset`, the mean over the sentences that have a target (0 if none has). Those that are
    not in their video, with `[-1, -1]` for a label, take part in all but the offsets: no proposal is theirs, no step a
    boundary, and the IoU of each is 0. [D]

    Args:
        boundary_logits (`torch.Tensor` of shape `(Q, S, 2)`): Start and end, per step.
        iou_logits (`torch.Tensor` of shape `(Q, P, 2)`): IoU as classification and as regression.
        offsets (`torch.Tensor` of shape `(Q, P, 4)`): Predicted offsets.
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges in `0..S`.
        labels (`torch.Tensor` of shape `(Q, K, 2)`): Target segments in `[0, 1]` of the window, padded with -100.

    Returns:
        `dict[str, torch.Tensor]`: `loss_boundary`, `loss_iou_classification`, `loss_iou_regression` and `loss_offset`,
        each times its weight; their sum is the loss.
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
    has_answer = has_target | (labels[..., 0] == ABSENT_LABEL).any(-1)
    return {
        name: masked_mean(values, has_target if name == "loss_offset" else has_answer)
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
    The two terms that rank, see above; the mean over the sentences that have a target (0 if none has). [D]

    Args:
        logits (`torch.Tensor` of shape `(Q, P)`): IoU as classification (with the score, which the regression is part
            of, the matching term learnt more slowly). The proposals nearest to the targets have to be among the `P`.
        proposals_grid (`torch.Tensor` of shape `(P, 2)`): Edges in `0..S`.
        labels (`torch.Tensor` of shape `(Q, K, 2)`): Target segments in `[0, 1]` of the window, padded with -100.
        video_index (`torch.LongTensor` of shape `(Q,)`): The video of each sentence.
        grid_size (`int`): Number of steps `S`.

    Returns:
        `dict[str, torch.Tensor]`: `loss_listwise` and `loss_matching`.
    """
    targets_grid, target_mask, all_ious = _targets(labels, proposals_grid.float(), grid_size)
    logits = logits.float()
    terms = {
        "loss_listwise": listwise_loss(logits, all_ious.amax(-1)),
        "loss_matching": matching_loss(logits, all_ious, targets_grid, target_mask, video_index),
    }
    has_target = target_mask.any(-1)
    return {name: masked_mean(values, has_target) for name, values in terms.items()}


def _targets(
    labels: torch.Tensor, proposals: torch.Tensor, grid_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets `(Q, K, 2)` in `0..S`, which there are `(Q, K)`, and each proposal's IoU with them `(Q, P, K)`."""
    target_mask = labels[..., 0] >= 0
    targets_grid = labels.float().clamp_min(0) * grid_size
    return targets_grid, target_mask, temporal_iou(proposals, targets_grid) * target_mask[:, None]
