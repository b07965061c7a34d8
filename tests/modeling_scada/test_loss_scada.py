"""The loss against plain Python, one sentence and one proposal at a time, written from docs/design.md section 8."""

import math

import pytest
import torch

from modeling_scada import loss_scada
from modeling_scada.head_scada import all_proposals, decode_offsets
from modeling_scada.loss_scada import ranking_loss, retrieval_loss, temporal_grounding_loss, temporal_iou


GRID_SIZE = 20
TERMS = ["loss_boundary", "loss_iou_classification", "loss_iou_regression", "loss_offset"]

# Targets in [0, 1], per sentence. The odd numbers keep IoUs off the thresholds, where rounding would decide.
TARGETS = {
    "long": [(0.213, 0.871)],
    "short": [(0.512, 0.533)],
    "whole_video": [(0.0, 1.0)],
    "at_the_end": [(0.93, 1.0)],
    "two": [(0.0517, 0.3129), (0.6213, 0.7728)],
    "three": [(0.0113, 0.1217), (0.4031, 0.8123), (0.4611, 0.5237)],
}
# A sample of proposals, in which no two have the same IoU with a target's segment by accident of symmetry.
SAMPLE = [(0, 3), (1, 6), (4, 17), (4, 18), (12, 16), (9, 12), (0, 20), (10, 11), (18, 20), (8, 15), (5, 19)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def iou_of(a: tuple[float, float], b: tuple[float, float]) -> float:
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - intersection
    return intersection / union if union > 0 else 0.0


def balanced(logits: list[float], positive: list[bool]) -> float:
    of_positives = [-math.log(sigmoid(x)) for x, is_positive in zip(logits, positive, strict=True) if is_positive]
    of_negatives = [-math.log(sigmoid(-x)) for x, is_positive in zip(logits, positive, strict=True) if not is_positive]
    return (mean(of_positives) + mean(of_negatives)) / 2


def above_or_best(ious: list[float], threshold: float) -> list[bool]:
    if any(iou > threshold for iou in ious):
        return [iou > threshold for iou in ious]
    best = max(ious)
    return [best > 0 and iou == best for iou in ious]


def slow_boundary(logits: list[list[float]], targets: list[tuple[float, float]]) -> float:
    """Steps whose centre lies within a tenth of the segment's length of its boundary, but at least one step."""
    sides = []
    for side in (0, 1):
        positive = [
            any(abs(step + 0.5 - target[side]) <= max(1.0, 0.1 * (target[1] - target[0])) for target in targets)
            for step in range(len(logits))
        ]
        sides.append(balanced([row[side] for row in logits], positive))
    return mean(sides)


def slow_regression(logits: list[float], ious: list[float]) -> float:
    bins = {"high": [], "middle": [], "low": []}
    for logit, iou in zip(logits, ious, strict=True):
        name = "high" if iou > 0.7 else "low" if iou < 0.3 else "middle"
        bins[name].append((sigmoid(logit) - iou) ** 2)
    return mean([mean(errors) for errors in bins.values() if errors])


def smooth_l1(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def slow_offset(offsets, proposals, own_targets, ious) -> float:
    """Only proposals that overlap their target by more than half, or the best one."""
    errors = []
    for row, (start, end), target, used in zip(offsets, proposals, own_targets, above_or_best(ious, 0.5), strict=True):
        if not used:
            continue
        length = end - start
        center_shift = (target[0] + target[1]) / 2 - (start + end) / 2
        moves = (target[0] - start, target[1] - end, center_shift, (target[1] - target[0]) - length)
        errors.append(mean([smooth_l1(x - move / length) for x, move in zip(row, moves, strict=True)]))
    return mean(errors)


def slow_loss(boundary_logits, iou_logits, offsets, proposals, targets) -> dict[str, float]:
    """
    `targets`: for each sentence a list of (start, end) in [0, 1], without padding; those without any are left out.
    Weights of docs/design.md section 8.
    """
    rows = {name: [] for name in TERMS}
    for sentence, in_unit in enumerate(targets):
        if not in_unit:
            continue
        segments = [(start * GRID_SIZE, end * GRID_SIZE) for start, end in in_unit]
        all_ious = [[iou_of(proposal, segment) for segment in segments] for proposal in proposals]
        ious = [max(of_proposal, default=0.0) for of_proposal in all_ious]
        own = [segments[of_proposal.index(max(of_proposal))] if segments else (0.0, 0.0) for of_proposal in all_ious]
        classification, regression = ([row[k] for row in iou_logits[sentence]] for k in (0, 1))
        rows["loss_boundary"].append(slow_boundary(boundary_logits[sentence], segments))
        rows["loss_iou_classification"].append(balanced(classification, above_or_best(ious, 0.9)))
        rows["loss_iou_regression"].append(5 * slow_regression(regression, ious))
        rows["loss_offset"].append(10 * slow_offset(offsets[sentence], proposals, own, ious))
    return {name: mean(values) for name, values in rows.items()}


def padded(targets: list[list[tuple[float, float]]], num_segments: int | None = None) -> torch.Tensor:
    num_segments = num_segments or max(map(len, targets))
    rows = [[*segments, *[(-100.0, -100.0)] * (num_segments - len(segments))] for segments in targets]
    return torch.tensor(rows, dtype=torch.float32)


def random_outputs(num_sentences: int, num_proposals: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(GRID_SIZE, 2), (num_proposals, 2), (num_proposals, 4)]
    return [2 * torch.randn(num_sentences, *shape, generator=generator) for shape in shapes]


def assert_equal_to_reference(targets, proposals, labels, seed: int = 0):
    outputs = random_outputs(len(targets), len(proposals), seed)
    fast = temporal_grounding_loss(*outputs, torch.tensor(proposals), labels)
    slow = slow_loss(*(output.tolist() for output in outputs), proposals, targets)
    assert list(fast) == TERMS
    for name in TERMS:
        assert fast[name].item() == pytest.approx(slow[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("proposals", [SAMPLE, all_proposals(GRID_SIZE).tolist()], ids=["sample", "all"])
def test_each_term_of_one_sentence(name, proposals):
    assert_equal_to_reference([TARGETS[name]], [tuple(pair) for pair in proposals], padded([TARGETS[name]]))


@pytest.mark.parametrize("num_segments", [3, 5])
def test_each_term_of_several_sentences_with_padding(num_segments):
    targets = list(TARGETS.values())
    assert_equal_to_reference(targets, SAMPLE, padded(targets, num_segments), seed=1)


def test_padding_may_stand_anywhere():
    labels = torch.tensor([[[-100.0, -100.0], [0.0517, 0.3129], [-100.0, -100.0], [0.6213, 0.7728]]])
    assert_equal_to_reference([TARGETS["two"]], SAMPLE, labels)


def test_a_target_that_no_proposal_overlaps():
    """Neither classification nor offsets find a positive; the boundaries still do."""
    proposals = [(0, 3), (1, 4), (5, 8)]
    targets = [[(0.71, 0.93)], [(0.02, 0.13)]]
    assert_equal_to_reference(targets, proposals, padded(targets))
    alone = temporal_grounding_loss(*random_outputs(1, 3), torch.tensor(proposals), padded(targets[:1]))
    assert alone["loss_offset"].item() == 0
    assert all(torch.isfinite(term) for term in alone.values())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_sentence_without_any_target_is_left_out(place):
    """Padding, or a video that could not be read: neither in the sum nor in the number that divides it."""
    targets = [TARGETS["long"], TARGETS["two"]]
    targets.insert(place, [])
    assert_equal_to_reference(targets, SAMPLE, padded(targets))
    outputs = [output.requires_grad_() for output in random_outputs(3, len(SAMPLE))]
    loss = temporal_grounding_loss(*outputs, torch.tensor(SAMPLE), padded(targets))
    for gradient in torch.autograd.grad(sum(loss.values()), outputs):
        assert [bool(row.abs().sum() > 0) for row in gradient] == [sentence != place for sentence in range(3)]


def test_a_sentence_that_is_not_there_asks_for_nothing():
    """Nothing of it is positive: half the mean of -log(1 - p), and squared IoUs; the others' offsets are as before."""
    targets = [TARGETS["long"], [(-1.0, -1.0)], []]
    outputs = random_outputs(3, len(SAMPLE))
    boundary, ious, _ = (output[1] for output in outputs)
    absent = {
        "loss_boundary": mean([math.log1p(math.exp(x)) / 2 for x in boundary.flatten().tolist()]),
        "loss_iou_classification": mean([math.log1p(math.exp(x)) / 2 for x in ious[:, 0].tolist()]),
        "loss_iou_regression": 5 * mean([1 / (1 + math.exp(-x)) ** 2 for x in ious[:, 1].tolist()]),
    }
    alone = slow_loss(*(output[:1].tolist() for output in outputs), SAMPLE, targets[:1])
    loss = temporal_grounding_loss(*outputs, torch.tensor(SAMPLE), padded(targets))
    for name, value in absent.items():
        assert loss[name].item() == pytest.approx((alone[name] + value) / 2, rel=1e-4), name
    assert loss["loss_offset"].item() == pytest.approx(alone["loss_offset"], rel=1e-4)
    ranking = [
        ranking_loss(outputs[1][..., 0], torch.tensor(SAMPLE), padded(some), torch.tensor([0, 0, 0]), GRID_SIZE)
        for some in (targets, [targets[0], [], []])
    ]
    assert ranking[0] == ranking[1]


@pytest.mark.parametrize("num_sentences", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_no_sentence_has_a_target(num_sentences, scale):
    """0 and gradients of 0, not NaN: such a batch must not stop a training run, nor change the model."""
    outputs = [(scale * output).requires_grad_() for output in random_outputs(num_sentences, len(SAMPLE))]
    labels = torch.full((num_sentences, 2, 2), -100.0)
    loss = temporal_grounding_loss(*outputs, torch.tensor(SAMPLE), labels)
    assert [loss[name].item() for name in TERMS] == [0, 0, 0, 0]
    for gradient in torch.autograd.grad(sum(loss.values()), outputs):
        assert (gradient == 0).all()


def test_each_function_gives_a_value_for_each_sentence():
    """That of the sentence alone, whatever else is in the batch."""
    targets = list(TARGETS.values())
    labels = padded(targets)
    target_mask = labels[..., 0] >= 0
    targets_grid = labels.clamp_min(0) * GRID_SIZE
    proposals = torch.tensor(SAMPLE, dtype=torch.float32)
    iou, best = (temporal_iou(proposals, targets_grid) * target_mask[:, None]).max(-1)
    own = targets_grid.gather(1, best[..., None].expand(-1, -1, 2))
    boundary_logits, iou_logits, offsets = random_outputs(len(targets), len(SAMPLE))
    values = {
        "loss_boundary": loss_scada.boundary_loss(boundary_logits, targets_grid, target_mask),
        "loss_iou_classification": loss_scada.iou_classification_loss(iou_logits[..., 0], iou),
        "loss_iou_regression": 5 * loss_scada.iou_regression_loss(iou_logits[..., 1], iou),
        "loss_offset": 10 * loss_scada.offset_loss(offsets, proposals, own, iou),
    }
    alone = [
        slow_loss([row.tolist()], [pairs.tolist()], [moves.tolist()], SAMPLE, [of_sentence])
        for row, pairs, moves, of_sentence in zip(boundary_logits, iou_logits, offsets, targets, strict=True)
    ]
    for name in TERMS:
        assert values[name].shape == (len(targets),)
        assert values[name].tolist() == pytest.approx([terms[name] for terms in alone], rel=1e-4, abs=1e-6), name


def test_a_target_without_length_is_finite():
    outputs = random_outputs(1, len(SAMPLE))
    loss = temporal_grounding_loss(*outputs, torch.tensor(SAMPLE), torch.tensor([[[0.5, 0.5]]]))
    assert all(torch.isfinite(term) for term in loss.values())


def test_thresholds_and_weights_are_those_of_the_method():
    constants = (
        loss_scada.IOU_CLASSIFICATION_WEIGHT,
        loss_scada.IOU_REGRESSION_WEIGHT,
        loss_scada.OFFSET_WEIGHT,
        loss_scada.POSITIVE_IOU,
        loss_scada.BOUNDARY_RADIUS,
    )
    assert constants == (1, 5, 10, 0.9, 0.1)


def test_temporal_iou():
    generator = torch.Generator().manual_seed(0)
    proposals = torch.rand(30, 2, generator=generator).sort(-1).values * 10
    targets = torch.rand(4, 3, 2, generator=generator).sort(-1).values * 10
    proposals[0] = targets[0, 0]  # equal
    proposals[1] = torch.tensor([4.0, 4.0])  # without length
    targets[1, 1] = torch.tensor([4.0, 4.0])
    iou = temporal_iou(proposals, targets)
    expected = [
        [[iou_of(proposal, target) for target in of_sentence] for proposal in proposals.tolist()]
        for of_sentence in targets.tolist()
    ]
    torch.testing.assert_close(iou, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert iou[0, 0, 0] == 1 and iou[1, 1, 1] == 0


def test_temporal_iou_by_hand():
    iou = temporal_iou(torch.tensor([[0.0, 4.0], [2.0, 3.0], [6.0, 8.0]]), torch.tensor([[[2.0, 6.0]]]))
    torch.testing.assert_close(iou[0, :, 0], torch.tensor([2 / 6, 1 / 4, 0.0]))


def test_boundary_of_a_short_segment_reaches_one_step():
    """A segment within step 10: the centres 9.5 to 11.5 are within one step of 10.2 and 10.8, but not all of them."""
    logits = torch.zeros(1, GRID_SIZE, 2)
    near = []
    for step in range(GRID_SIZE):
        for side in (0, 1):
            shifted = logits.clone()
            shifted[0, step, side] = 1.0
            if loss_scada.boundary_loss(
                shifted, torch.tensor([[[10.2, 10.8]]]), torch.ones(1, 1, dtype=torch.bool)
            ) < (loss_scada.boundary_loss(logits, torch.tensor([[[10.2, 10.8]]]), torch.ones(1, 1, dtype=torch.bool))):
                near.append((step, side))
    assert near == [(9, 0), (10, 0), (10, 1), (11, 1)]


def test_perfect_outputs_are_best():
    """What the loss asks for is what decoding turns into the target."""
    proposals = all_proposals(GRID_SIZE)
    target = TARGETS["long"][0]
    ious = [iou_of(pair, (target[0] * GRID_SIZE, target[1] * GRID_SIZE)) for pair in proposals.tolist()]
    perfect_offsets = []
    for start, end in proposals.tolist():
        length, wanted = end - start, (target[0] * GRID_SIZE, target[1] * GRID_SIZE)
        moves = (
            wanted[0] - start,
            wanted[1] - end,
            sum(wanted) / 2 - (start + end) / 2,
            wanted[1] - wanted[0] - length,
        )
        perfect_offsets.append([move / length for move in moves])
    regression = torch.tensor(ious).logit(eps=1e-7)
    classification = 40.0 * (2 * (torch.tensor(ious) > 0.9).float() - 1)
    loss = temporal_grounding_loss(
        random_outputs(1, 1)[0],
        torch.stack([classification, regression], dim=-1)[None],
        torch.tensor([perfect_offsets]),
        proposals,
        torch.tensor([[target]]),
    )
    assert loss["loss_offset"].item() < 1e-8
    assert loss["loss_iou_regression"].item() < 1e-8
    assert loss["loss_iou_classification"].item() < 1e-8
    segments = decode_offsets(proposals, torch.tensor(perfect_offsets), GRID_SIZE)
    torch.testing.assert_close(segments, torch.tensor(target).expand_as(segments))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradients_are_finite(scale):
    targets = [*TARGETS.values(), []]
    outputs = [(scale * output).requires_grad_() for output in random_outputs(len(targets), len(SAMPLE))]
    loss = temporal_grounding_loss(*outputs, torch.tensor(SAMPLE), padded(targets))
    gradients = torch.autograd.grad(sum(loss.values()), outputs)
    for gradient in gradients:
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


def test_low_precision_outputs_are_computed_in_float32():
    targets = list(TARGETS.values())
    outputs = [output.bfloat16() for output in random_outputs(len(targets), len(SAMPLE))]
    low = temporal_grounding_loss(*outputs, torch.tensor(SAMPLE), padded(targets))
    high = temporal_grounding_loss(*(output.float() for output in outputs), torch.tensor(SAMPLE), padded(targets))
    for name in TERMS:
        assert low[name].dtype == torch.float32
        torch.testing.assert_close(low[name], high[name])


def log_sum_exp(values: list[float]) -> float:
    return max(values) + math.log(sum(math.exp(value - max(values)) for value in values))


def slow_ranking(logits, proposals, targets, video_index) -> dict[str, float]:
    """The two ranking terms, one pair at a time, as docs/design.md writes them; `targets` as in `slow_loss`."""
    segments = [[(start * GRID_SIZE, end * GRID_SIZE) for start, end in of_sentence] for of_sentence in targets]
    listwise, matching = [], []

    def score(sentence: int, segment: tuple[float, float]) -> float:
        """At the proposal nearest to the segment."""
        ious = [iou_of(proposal, segment) for proposal in proposals]
        return logits[sentence][ious.index(max(ious))]

    def competes(sentence: int, owner: int, segment: tuple[float, float]) -> bool:
        """Of one video, both with targets; own segments always, others only if they are not (nearly) the own ones."""
        if video_index[sentence] != video_index[owner] or not segments[sentence]:
            return False
        return sentence == owner or all(iou_of(own, segment) <= 0.5 for own in segments[sentence])

    for sentence, own_segments in enumerate(segments):
        if not own_segments:
            continue
        ious = [max(iou_of(proposal, segment) for segment in own_segments) for proposal in proposals]
        right = [logit for logit, used in zip(logits[sentence], above_or_best(ious, 0.7), strict=True) if used]
        listwise.append(log_sum_exp(logits[sentence]) - log_sum_exp(right) if right else 0.0)
        row = [
            score(sentence, segment)
            for owner, of_owner in enumerate(segments)
            for segment in of_owner
            if competes(sentence, owner, segment)
        ]
        of_row = log_sum_exp(row) - log_sum_exp([score(sentence, segment) for segment in own_segments])
        of_columns = [
            log_sum_exp([score(m, segment) for m in range(len(segments)) if competes(m, sentence, segment)])
            - score(sentence, segment)
            for segment in own_segments
        ]
        matching.append((of_row + mean(of_columns)) / 2)
    return {"loss_listwise": mean(listwise), "loss_matching": mean(matching)}


def assert_ranking_equals_reference(targets, video_index, proposals=None, num_segments=None) -> dict[str, float]:
    proposals = proposals or [tuple(pair) for pair in all_proposals(GRID_SIZE).tolist()]
    logits = random_outputs(len(targets), len(proposals))[1][..., 0]
    fast = ranking_loss(
        logits, torch.tensor(proposals), padded(targets, num_segments), torch.tensor(video_index), GRID_SIZE
    )
    slow = slow_ranking(logits.tolist(), proposals, targets, video_index)
    assert list(fast) == list(slow)
    for name in slow:
        assert fast[name].item() == pytest.approx(slow[name], rel=1e-4, abs=1e-6), name
    return slow


@pytest.mark.parametrize("video_index", [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 5]])
def test_ranking_of_several_sentences(video_index):
    slow = assert_ranking_equals_reference(list(TARGETS.values()), video_index, num_segments=4)
    assert (slow["loss_matching"] == 0) == (len(set(video_index)) == len(video_index))


def test_ranking_on_a_sample_of_proposals():
    assert_ranking_equals_reference(list(TARGETS.values()), [0, 0, 1, 1, 1, 1], SAMPLE)


def test_sentences_about_the_same_segment_do_not_compete():
    """Equal and overlapping by more than half: 0 for the two alone, and a third competes with each of them."""
    same = [[(0.213, 0.871)], [(0.213, 0.871)], [(0.251, 0.833)]]
    assert assert_ranking_equals_reference(same, [0, 0, 0])["loss_matching"] == pytest.approx(0, abs=1e-9)
    assert assert_ranking_equals_reference([*same, [(0.0113, 0.1217)]], [0, 0, 0, 0])["loss_matching"] > 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_ranking_leaves_out_a_sentence_without_any_target(place):
    targets = [TARGETS["long"], TARGETS["at_the_end"]]
    targets.insert(place, [])
    assert_ranking_equals_reference(targets, [0, 0, 0])
    logits = random_outputs(3, len(SAMPLE))[1][..., 0].requires_grad_()
    loss = ranking_loss(logits, torch.tensor(SAMPLE), padded(targets), torch.zeros(3, dtype=torch.long), GRID_SIZE)
    (gradient,) = torch.autograd.grad(sum(loss.values()), logits)
    assert [bool(row.abs().sum() > 0) for row in gradient] == [sentence != place for sentence in range(3)]


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("targets", [[[], []], [*TARGETS.values(), []]], ids=["none", "some"])
def test_gradients_of_the_ranking_are_finite(scale, targets):
    logits = (scale * random_outputs(len(targets), len(SAMPLE))[1][..., 0]).requires_grad_()
    labels = padded(targets, 3)
    loss = ranking_loss(logits, torch.tensor(SAMPLE), labels, torch.arange(len(targets)) // 2, GRID_SIZE)
    (gradient,) = torch.autograd.grad(sum(loss.values()), logits)
    assert torch.isfinite(gradient).all()
    assert bool(gradient.abs().sum() > 0) == any(targets)


def test_what_the_ranking_asks_for():
    """Listwise: the right proposals above the others, by how much and not how high. Matching: each its own."""
    targets, proposals = [[(0.2, 0.4)], [(0.6, 0.9)]], [(4, 8), (12, 18), (0, 20)]
    right = torch.tensor([[9.0, -9.0, -9.0], [-9.0, 9.0, -9.0]])
    arguments = (torch.tensor(proposals), padded(targets), torch.tensor([0, 0]), GRID_SIZE)
    assert all(value.item() < 1e-3 for value in ranking_loss(right, *arguments).values())
    assert all(value.item() > 8 for value in ranking_loss(right.flip(0), *arguments).values())


def slow_retrieval(cosines, proposals, targets, video_index, texts) -> float:
    """`cosines[sentence][video][proposal]`; one pair at a time, as docs/design.md writes it."""
    segments = [[(start * GRID_SIZE, end * GRID_SIZE) for start, end in of_sentence] for of_sentence in targets]
    num_videos = len(cosines[0])
    losses = []

    def nearest(segment: tuple[float, float]) -> int:
        ious = [iou_of(proposal, segment) for proposal in proposals]
        return ious.index(max(ious))

    def asked_in(text: str, video: int) -> bool:
        return any(text == other and video == of for other, of in zip(texts, video_index, strict=True))

    for sentence, own_segments in enumerate(segments):
        if not own_segments:
            continue
        own_video = video_index[sentence]
        row = [
            cosines[sentence][video][index] / 0.1
            for video in range(num_videos)
            for index in range(len(proposals))
            if video == own_video or not asked_in(texts[sentence], video)
        ]
        ious = [max(iou_of(proposal, segment) for segment in own_segments) for proposal in proposals]
        right = [
            cosines[sentence][own_video][index] / 0.1 for index, used in enumerate(above_or_best(ious, 0.7)) if used
        ]
        of_row = log_sum_exp(row) - log_sum_exp(right) if right else 0.0
        of_columns = []
        for segment in own_segments:
            column = []
            for m, of_m in enumerate(segments):
                is_own = m == sentence
                overlaps = video_index[m] == own_video and any(iou_of(own, segment) > 0.5 for own in of_m)
                if of_m and (is_own or (not overlaps and texts[m] != texts[sentence])):
                    column.append(cosines[m][own_video][nearest(segment)] / 0.1)
            of_columns.append(log_sum_exp(column) - cosines[sentence][own_video][nearest(segment)] / 0.1)
        losses.append((of_row + mean(of_columns)) / 2)
    return mean(losses)


@pytest.mark.parametrize("texts", ["abcdef", "abcabc", "aabbcc"])
@pytest.mark.parametrize("video_index", [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("left_out", [None, 1])
def test_retrieval_against_one_pair_at_a_time(texts, video_index, left_out):
    targets = [[] if index == left_out else target for index, target in enumerate(TARGETS.values())]
    generator = torch.Generator().manual_seed(0)
    embeds = [torch.randn(*shape, 5, generator=generator) for shape in ((max(video_index) + 1, len(SAMPLE)), (6,))]
    proposal_embeds, sentence_embeds = (torch.nn.functional.normalize(tensor, dim=-1) for tensor in embeds)
    same_text = torch.tensor([[a == b for b in texts] for a in texts])
    fast = retrieval_loss(
        proposal_embeds,
        sentence_embeds,
        torch.tensor(SAMPLE),
        padded(targets, 4),
        torch.tensor(video_index),
        same_text,
        GRID_SIZE,
    )
    cosines = (proposal_embeds @ sentence_embeds.T).permute(2, 0, 1).tolist()
    assert fast.item() == pytest.approx(slow_retrieval(cosines, SAMPLE, targets, video_index, texts), rel=1e-4)


def test_retrieval_without_any_target_is_0():
    embeds = torch.nn.functional.normalize(torch.ones(2, len(SAMPLE), 5), dim=-1).requires_grad_()
    loss = retrieval_loss(
        embeds,
        embeds[:, 0],
        torch.tensor(SAMPLE),
        padded([[], []], 1),
        torch.arange(2),
        torch.eye(2, dtype=torch.bool),
        GRID_SIZE,
    )
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, embeds)
    assert (gradient == 0).all()
