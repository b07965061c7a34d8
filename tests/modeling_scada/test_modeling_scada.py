"""The whole model: batches, sentences, padding, saving and loading, precision, checkpointing, configuration."""

import copy
import json
import math
import os
from pathlib import Path

import pytest
import torch
from fresh_process import run_python
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModel, DistilBertModel, VideoMAEForVideoClassification, VideoMAEModel

from modeling_scada import AutoModelForTemporalGrounding, ScadaConfig, ScadaForTemporalGrounding
from modeling_scada.head_scada import score_logits


ROOT = Path(__file__).resolve().parents[2]


def run(model, batch: dict, **kwargs):
    with torch.no_grad():
        return model(**batch, **kwargs)


def without_labels(batch: dict) -> dict:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=atol)


def count_calls(module: torch.nn.Module) -> list[tuple]:
    """The shapes of the first input of each call of `module` from now on."""
    shapes = []
    module.register_forward_hook(lambda _, args, output: shapes.append(tuple(args[0].shape) if args else ()))
    return shapes


def gradients(model, batch: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)  # of the proposals that are drawn, and of dropout
    model(**batch).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


# Batches


def test_shapes(tiny_model, tiny_batch):
    outputs = run(tiny_model, tiny_batch)
    assert outputs.logits.shape == (2, 2, 136)
    assert outputs.pred_segments.shape == (2, 2, 136, 2)
    assert outputs.loss.shape == () and outputs.hidden_states is None
    assert outputs.pred_segments.min() >= 0 and outputs.pred_segments.max() <= 1
    assert (outputs.pred_segments[..., 0] <= outputs.pred_segments[..., 1]).all()


def test_two_videos_with_different_numbers_of_sentences_equal_the_two_alone(tiny_model, tiny_batch):
    tiny_model.double()  # so that the tolerance is one of the code, not of the order of sums
    together = run(tiny_model, tiny_batch)
    losses = []
    for video, num_sentences in ((0, 2), (1, 1)):
        alone = {
            name: tensor[video : video + 1] if name == "pixel_values_videos" else tensor[video, :num_sentences][None]
            for name, tensor in tiny_batch.items()
        }
        outputs = run(tiny_model, alone)
        assert_close(together.logits[video, :num_sentences], outputs.logits[0])
        assert_close(together.pred_segments[video, :num_sentences], outputs.pred_segments[0])
        losses.append(num_sentences * outputs.loss)
    assert_close(together.loss, sum(losses) / 3, atol=1e-4)
    # The comparison means something: the sentences differ, and so do the videos.
    assert (together.logits[0, 0] - together.logits[0, 1]).abs().max() > 1e-2


def test_another_video_or_another_sentence_gives_other_scores(tiny_model, tiny_batch):
    before = run(tiny_model, tiny_batch).logits
    pixels = tiny_batch["pixel_values_videos"].flip(0)
    tokens = tiny_batch["input_ids"].clone()
    tokens[0, 0, 2] = (tokens[0, 0, 2] + 1) % 95 + 5
    with_videos = run(tiny_model, {**tiny_batch, "pixel_values_videos": pixels}).logits
    with_tokens = run(tiny_model, {**tiny_batch, "input_ids": tokens}).logits
    assert (with_videos - before)[0].abs().amax(-1).min() > 1e-2
    assert (with_tokens - before)[0, 0].abs().max() > 1e-3
    assert_close(with_tokens[0, 1], before[0, 1])
    assert_close(with_tokens[1, 0], before[1, 0])


def test_eight_sentences_equal_eight_runs_and_the_video_is_encoded_once(tiny_model, tiny_batch):
    tiny_model.double()
    pixels = tiny_batch["pixel_values_videos"][:1]
    input_ids = torch.randint(5, 100, (1, 8, 6))
    calls = count_calls(tiny_model.model.video_backbone.encoder)
    layer_calls = count_calls(tiny_model.model.video_backbone.encoder.encoder.layer[0])
    together = run(tiny_model, {"pixel_values_videos": pixels, "input_ids": input_ids})
    assert calls == [(2, 16, 3, 32, 32)]  # two clips of one video
    assert layer_calls == [(2, 32, 32)]
    for sentence in range(8):
        alone = run(tiny_model, {"pixel_values_videos": pixels, "input_ids": input_ids[:, sentence : sentence + 1]})
        assert_close(together.logits[:, sentence], alone.logits[:, 0])
        assert_close(together.pred_segments[:, sentence], alone.pred_segments[:, 0])
    assert len(calls) == 9


# Padding


def test_padding_tokens_and_padding_sentences_change_nothing(tiny_model, tiny_batch):
    tiny_model.double()
    before = run(tiny_model, tiny_batch)
    keep = tiny_batch["sentence_mask"].bool()
    input_ids = torch.randint(5, 100, (2, 4, 9))  # what stands in the padding must not matter
    input_ids[:, :2, :6] = torch.where(tiny_batch["attention_mask"] == 1, tiny_batch["input_ids"], 7)
    attention_mask = torch.zeros(2, 4, 9, dtype=torch.long)
    attention_mask[:, :2, :6] = tiny_batch["attention_mask"]
    labels = torch.rand(2, 4, 2, 2).sort(-1).values
    labels[:, :2][keep] = tiny_batch["labels"][keep]
    sentence_mask = torch.zeros(2, 4, dtype=torch.long)
    sentence_mask[:, :2] = tiny_batch["sentence_mask"]
    after = run(
        tiny_model,
        {
            "pixel_values_videos": tiny_batch["pixel_values_videos"],
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "sentence_mask": sentence_mask,
            "labels": labels,
        },
    )
    assert_close(after.logits[:, :2][keep], before.logits[keep])
    assert_close(after.pred_segments[:, :2][keep], before.pred_segments[keep])
    assert_close(after.loss, before.loss, atol=1e-4)
    assert after.logits.shape == (2, 4, 136)
    assert (after.logits[sentence_mask == 0].sigmoid() == 0).all()
    assert torch.isfinite(after.logits).all()


def test_sentence_mask_with_gaps_keeps_the_order(tiny_model, tiny_batch):
    """A sentence may be padding before one that is not."""
    tiny_model.double()
    batch = without_labels(tiny_batch)
    before = run(tiny_model, batch).logits
    flipped = {name: tensor.flip(1) for name, tensor in batch.items() if name != "pixel_values_videos"}
    after = run(tiny_model, {**flipped, "pixel_values_videos": batch["pixel_values_videos"]}).logits
    assert_close(after.flip(1)[batch["sentence_mask"] == 1], before[batch["sentence_mask"] == 1])


def test_masks_default_to_all_tokens_and_all_sentences(tiny_model, tiny_batch):
    tiny_model.double()
    batch = {name: tiny_batch[name] for name in ("pixel_values_videos", "input_ids")}
    ones = {"attention_mask": torch.ones(2, 2, 6).long(), "sentence_mask": torch.ones(2, 2).long()}
    assert_close(run(tiny_model, batch).logits, run(tiny_model, {**batch, **ones}).logits)


def test_a_video_without_any_sentence(tiny_model, tiny_batch):
    tiny_model.double()
    mask = torch.tensor([[1, 1], [0, 0]])
    outputs = run(tiny_model, {**tiny_batch, "sentence_mask": mask})
    assert_close(outputs.logits[0], run(tiny_model, tiny_batch).logits[0])
    assert (outputs.logits[1].sigmoid() == 0).all() and torch.isfinite(outputs.loss)


def test_sentence_vectors_are_the_normalised_mean_of_the_unmasked_states(tiny_model, tiny_batch):
    tiny_model.double()
    outputs = run(tiny_model.model, without_labels(tiny_batch))
    assert outputs.video_index.tolist() == [0, 0, 1]
    rows = []
    for video, sentence, length in ((0, 0, 6), (0, 1, 4), (1, 0, 5)):
        with torch.no_grad():  # the tokens alone, without padding
            states = tiny_model.model.text_encoder(tiny_batch["input_ids"][video, sentence, :length][None])
        mean = states.last_hidden_state[0].mean(0)
        rows.append((mean - mean.mean()) / (mean.var(correction=0) + 1e-5).sqrt())
    assert_close(outputs.sentence_embeds, torch.stack(rows))


# Saving and loading


@pytest.fixture
def saved(tiny_model, tmp_path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("auto_class", [ScadaForTemporalGrounding, AutoModelForTemporalGrounding])
def test_a_saved_model_gives_equal_outputs(tiny_model, tiny_batch, saved, auto_class):
    loaded, info = auto_class.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values()), info
    assert type(loaded) is ScadaForTemporalGrounding and not loaded.training
    expected, outputs = run(tiny_model, tiny_batch), run(loaded, tiny_batch)
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.pred_segments, expected.pred_segments)
    assert torch.equal(outputs.loss, expected.loss)


def test_a_saved_model_gives_equal_outputs_at_another_image_size(tiny_model, tiny_batch, saved):
    """The position embeddings are not in the file: they have to come back as they were."""
    batch = {**tiny_batch, "pixel_values_videos": torch.randn(2, 16, 3, 48, 48)}
    loaded = ScadaForTemporalGrounding.from_pretrained(saved)
    assert torch.equal(run(loaded, batch).logits, run(tiny_model, batch).logits)


def test_a_saved_model_gives_equal_outputs_in_another_process(tiny_model, tiny_batch, saved, tmp_path):
    torch.save(tiny_batch, tmp_path / "batch.pt")
    code = (
        "import sys, torch; torch.set_num_threads(1); import modeling_scada\n"
        "folder, batch, result = sys.argv[1:]\n"
        "model = modeling_scada.AutoModelForTemporalGrounding.from_pretrained(folder)\n"
        "with torch.no_grad():\n"
        "    outputs = model(**torch.load(batch))\n"
        "torch.save({'logits': outputs.logits, 'pred_segments': outputs.pred_segments}, result)\n"
    )
    arguments = [str(saved), str(tmp_path / "batch.pt"), str(tmp_path / "result.pt")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_python(["-c", code, *arguments], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    result, expected = torch.load(tmp_path / "result.pt"), run(tiny_model, tiny_batch)
    assert_close(result["logits"], expected.logits)
    assert_close(result["pred_segments"], expected.pred_segments)


def test_auto_model_and_auto_config_know_the_model(tiny_model, tiny_batch, saved):
    """The whole one, as in a repository's own code, where `pipeline` has nothing but `AutoModel` to load it with."""
    assert type(AutoConfig.from_pretrained(saved)) is ScadaConfig
    for auto_class in (AutoModel, AutoModelForTemporalGrounding):
        model = auto_class.from_pretrained(saved)
        assert type(model) is ScadaForTemporalGrounding
        assert torch.equal(run(model, tiny_batch).logits, run(tiny_model, tiny_batch).logits)


def test_a_base_model_loads_into_the_whole_one_with_a_new_head(tiny_model, tiny_batch, tmp_path):
    tiny_model.model.save_pretrained(tmp_path)
    loaded, info = ScadaForTemporalGrounding.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and all(key.startswith("head.") for key in info["missing_keys"])
    expected = run(tiny_model.model, without_labels(tiny_batch))
    assert torch.equal(run(loaded.model, without_labels(tiny_batch)).last_hidden_state, expected.last_hidden_state)
    assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())
    assert torch.isfinite(run(loaded, tiny_batch).loss)


# Precision, attention and checkpointing


@pytest.mark.parametrize("way", ["weights", "autocast", "loaded"])
def test_bfloat16_runs_forward_and_backward_and_is_near_float32(tiny_model, tiny_batch, saved, way):
    expected = run(tiny_model, tiny_batch)
    if way == "loaded":
        model = ScadaForTemporalGrounding.from_pretrained(saved, dtype=torch.bfloat16)
    else:
        model = copy.deepcopy(tiny_model).to(torch.bfloat16 if way == "weights" else torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
        outputs = model(**tiny_batch)
    assert outputs.logits.dtype == outputs.loss.dtype == torch.float32
    outputs.loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)
    keep = tiny_batch["sentence_mask"] == 1
    difference = (outputs.logits[keep] - expected.logits[keep]).abs().mean()
    assert 0 < difference < 0.1 * expected.logits[keep].std()
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.1)


def test_encoders_may_have_another_precision_than_the_head(tiny_model, tiny_batch):
    """A published checkpoint in bfloat16 under a new head in float32."""
    expected = run(tiny_model, tiny_batch)
    tiny_model.model.to(torch.bfloat16)
    outputs = run(tiny_model, tiny_batch)
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.1)


def test_sdpa_equals_eager_attention(tiny_batch, saved):
    outputs = {}
    for attention in ("sdpa", "eager"):
        model = ScadaForTemporalGrounding.from_pretrained(saved, attn_implementation=attention).double()
        used = [model.model.video_backbone.encoder.config, model.model.text_encoder.config]
        assert [config._attn_implementation for config in used] == [attention, attention]
        outputs[attention] = run(model, tiny_batch)
    assert_close(outputs["sdpa"].logits, outputs["eager"].logits)
    assert_close(outputs["sdpa"].loss, outputs["eager"].loss, atol=1e-4)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_gives_equal_gradients(tiny_model, tiny_batch, use_reentrant):
    tiny_model.train()
    calls = count_calls(tiny_model.model.video_backbone.encoder.encoder.layer[0].attention)
    expected = gradients(tiny_model, tiny_batch)
    assert len(calls) == 1
    enable = getattr(tiny_model, "activation_checkpointing_enable", None) or tiny_model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    actual = gradients(tiny_model, tiny_batch)
    assert len(calls) == 3  # forward, and again in backward
    assert set(actual) == set(expected) == {name for name, _ in tiny_model.named_parameters()}
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-6)


def test_every_parameter_gets_a_gradient(tiny_model, tiny_batch):
    without = [name for name, gradient in gradients(tiny_model, tiny_batch).items() if not gradient.abs().sum() > 0]
    assert not without


# Training


def test_training_scores_a_sample_of_proposals(tiny_model, tiny_batch):
    outputs = run(tiny_model.train(), tiny_batch)
    assert outputs.logits.shape == (2, 2, 32) and outputs.pred_segments.shape == (2, 2, 32, 2)


@pytest.mark.parametrize("with_labels", [False, True])
def test_inference_keeps_the_best_proposals(tiny_model, tiny_batch, with_labels):
    batch = tiny_batch if with_labels else without_labels(tiny_batch)
    everything = run(tiny_model, batch)
    tiny_model.config.num_kept_proposals = 10
    outputs = run(tiny_model, batch)
    assert outputs.logits.shape == (2, 2, 10) and outputs.pred_segments.shape == (2, 2, 10, 2)
    for row in tiny_batch["sentence_mask"].nonzero().tolist():
        best = everything.logits[*row].topk(10).indices.sort().values
        assert_close(outputs.logits[*row], everything.logits[*row][best])
        assert_close(outputs.pred_segments[*row], everything.pred_segments[*row][best])
    assert not with_labels or outputs.loss == everything.loss


def test_a_few_steps_lower_the_loss(tiny_model, tiny_batch):
    before = run(tiny_model, tiny_batch).loss
    optimizer = torch.optim.AdamW(tiny_model.parameters(), lr=3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        tiny_model(**tiny_batch).loss.backward()
        optimizer.step()
    assert run(tiny_model, tiny_batch).loss < 0.5 * before


def test_a_frozen_encoder_stays_in_evaluation_mode(tiny_model, tiny_batch):
    batch = without_labels(tiny_batch)
    base, text_encoder = tiny_model.model, tiny_model.model.text_encoder
    expected = run(base, batch).sentence_embeds

    tiny_model.train()
    assert text_encoder.training and base.video_backbone.training
    assert not torch.allclose(run(base, batch).sentence_embeds, expected, atol=1e-3)  # dropout of DistilBERT

    text_encoder.requires_grad_(False)
    tiny_model.train()
    assert not any(module.training for module in text_encoder.modules())
    assert tiny_model.training and tiny_model.head.training and base.video_backbone.encoder.training
    assert torch.equal(run(base, batch).sentence_embeds, expected)

    base.video_backbone.requires_grad_(False)
    tiny_model.train()
    assert not any(module.training for module in base.video_backbone.modules())
    tiny_model.eval()
    assert not any(module.training for module in tiny_model.modules())


def test_partly_frozen_encoders_train(tiny_model):
    tiny_model.model.text_encoder.requires_grad_(False)
    tiny_model.model.text_encoder.transformer.layer[1].requires_grad_(True)
    assert tiny_model.train().model.text_encoder.training


# Outputs


def test_hidden_states_by_argument_and_by_configuration(tiny_model, tiny_batch):
    states = run(tiny_model, tiny_batch, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(2, 16, 2, 2, 32)] * 3
    norm = tiny_model.model.video_backbone.encoder.layernorm
    base = run(tiny_model.model, without_labels(tiny_batch), output_hidden_states=True)
    with torch.no_grad():
        expected = norm(base.hidden_states[-1]).mean(dim=(2, 3))[[0, 0, 1]]
    assert_close(base.last_hidden_state, expected)

    tiny_model.config.output_hidden_states = True
    by_config = run(tiny_model, tiny_batch).hidden_states
    assert len(by_config) == 3 and all(torch.equal(a, b) for a, b in zip(by_config, states, strict=True))
    assert run(tiny_model, tiny_batch, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("by_config", [False, True])
def test_return_dict_false(tiny_model, tiny_batch, by_config):
    expected = run(tiny_model, tiny_batch)
    tiny_model.config.return_dict = not by_config
    outputs = run(tiny_model, tiny_batch, **({} if by_config else {"return_dict": False}))
    assert isinstance(outputs, tuple) and len(outputs) == 4
    loss, logits, pred_segments, loss_dict = outputs
    assert torch.equal(loss, expected.loss) and torch.equal(logits, expected.logits)
    assert torch.equal(pred_segments, expected.pred_segments) and loss_dict.keys() == expected.loss_dict.keys()


def test_input_embeddings_are_the_video_backbones(tiny_model):
    patch_embeddings = tiny_model.model.video_backbone.encoder.embeddings.patch_embeddings
    assert tiny_model.get_input_embeddings() is tiny_model.model.get_input_embeddings() is patch_embeddings


def test_loss_is_the_sum_of_its_terms(tiny_model, tiny_batch):
    outputs = run(tiny_model, tiny_batch)
    assert len(outputs.loss_dict) == 6
    assert outputs.loss.item() == pytest.approx(sum(term.item() for term in outputs.loss_dict.values()), rel=1e-6)
    outputs = run(tiny_model, without_labels(tiny_batch))
    assert outputs.loss is None and outputs.loss_dict is None


def test_scores_are_the_product_of_the_two_sigmoids(tiny_model, tiny_batch):
    captured = []
    tiny_model.head.register_forward_hook(lambda _, args, output: captured.append(output.iou_logits))
    logits = run(tiny_model, tiny_batch).logits
    expected = captured[0].double().sigmoid().prod(-1)
    assert_close(logits[tiny_batch["sentence_mask"] == 1].double().sigmoid(), expected, atol=1e-6)


def test_scores_of_extreme_logits_are_finite_and_in_order():
    values = [-1e30, -1e5, -200.0, -30.0, -5.0, 0.0, 3.0, 12.0, 30.0, 200.0, 1e5, 1e30]
    pairs = torch.tensor([[a, b] for a in values for b in values])
    logits = score_logits(pairs[None])[0]
    assert torch.isfinite(logits).all()
    expected = pairs.double().sigmoid().prod(-1)
    torch.testing.assert_close(logits.double().sigmoid(), expected, rtol=0, atol=1e-6)
    both = score_logits(torch.tensor([[[x, x] for x in values]]))[0]
    assert (both.diff() >= 0).all()  # the order stays, also where the probabilities are all 0 or 1
    assert (both[:7].diff() > 0).all()


@pytest.mark.parametrize("logit", [-40.0, -3.0, 0.0, 4.0, 14.0])
def test_score_logit_by_hand(logit):
    """`log(p / (1 - p))` with `p = 1 / (1 + e^-x)^2` is `-log((1 + e^-x)^2 - 1)`."""
    expected = -math.log(math.expm1(2 * math.log1p(math.exp(-logit))))
    assert score_logits(torch.tensor([[[logit, logit]]])).item() == pytest.approx(expected, rel=1e-4)


# Gradient accumulation


@pytest.fixture
def double_loss(monkeypatch):
    """The loss and what goes into it are computed in float32; in float64, a tolerance is one of the code alone."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor.double())


@pytest.fixture
def accumulation_batch():
    """Four videos of a clip with three, one, two and no sentences with a target; one of them is padding."""
    generator = torch.Generator().manual_seed(3)
    sentence_mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0]])
    labels = torch.rand(4, 3, 1, 2, generator=generator, dtype=torch.float64).sort(-1).values
    labels[sentence_mask == 0] = -100
    labels[3] = -100  # could not be read
    return {
        "pixel_values_videos": torch.randn(4, 16, 3, 32, 32, generator=generator, dtype=torch.float64),
        "input_ids": torch.randint(5, 100, (4, 3, 6), generator=generator),
        "sentence_mask": sentence_mask,
        "labels": labels,
    }


def all_proposals_without_dropout(config, model):
    """In training mode, and yet nothing is drawn."""
    config.num_train_proposals = 10_000
    for module in model.double().train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


@pytest.mark.parametrize("num_items_as", [int, torch.tensor])
@pytest.mark.parametrize("parts", [[[0], [1], [2], [3]], [[0, 3], [1, 2]], [[3], [0, 1, 2]], [[0, 1, 2, 3]]], ids=str)
def test_accumulated_gradients_are_those_of_the_whole_batch(
    tiny_config, tiny_model, accumulation_batch, double_loss, num_items_as, parts
):
    """Each sentence weighs the same, however many others are in its part."""
    model = all_proposals_without_dropout(tiny_config, tiny_model)
    expected = model(**accumulation_batch)
    assert expected.loss.dtype == torch.float64 and expected.logits.shape[-1] == 136
    expected.loss.backward()
    expected_gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    assert sum(gradient.abs().sum() for gradient in expected_gradients.values()) > 1
    model.zero_grad()

    num_items = num_items_as(2 * (3 + 1 + 2))  # as Trainer counts: a start and an end of each sentence
    losses = []
    for part in parts:
        batch = {name: tensor[part] for name, tensor in accumulation_batch.items()}
        losses.append(model(**batch, num_items_in_batch=num_items).loss)
        losses[-1].backward()
    torch.testing.assert_close(sum(losses), expected.loss, rtol=1e-10, atol=0)
    for name, weight in model.named_parameters():
        scale = expected_gradients[name].abs().max().item()
        torch.testing.assert_close(weight.grad, expected_gradients[name], rtol=0, atol=1e-10 * max(scale, 1.0))


def test_the_mean_of_the_parts_would_be_another_loss(tiny_config, tiny_model, accumulation_batch, double_loss):
    """So the test above can fail: without the count, a sentence weighs more where there are fewer beside it."""
    model = all_proposals_without_dropout(tiny_config, tiny_model)
    parts = [{name: tensor[[k]] for name, tensor in accumulation_batch.items()} for k in range(3)]
    mean = sum(run(model, part).loss for part in parts) / 3
    assert abs(mean - run(model, accumulation_batch).loss) > 1e-2


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)])
def test_a_batch_without_targets_has_no_loss(tiny_model, tiny_batch, num_items):
    labels = torch.full_like(tiny_batch["labels"], -100)
    outputs = tiny_model.train()(**{**tiny_batch, "labels": labels}, num_items_in_batch=num_items)
    assert outputs.loss.item() == 0
    outputs.loss.backward()
    assert all((weight.grad == 0).all() for weight in tiny_model.parameters())


def test_trainer_counts_what_the_model_divides_by(tiny_model, accumulation_batch, tmp_path):
    """And it leaves the division by the number of steps to the model."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(tmp_path, use_cpu=True)
    trainer = Trainer(tiny_model, arguments)
    assert trainer.model_accepts_loss_kwargs
    parts = [{name: tensor[k : k + 2] for name, tensor in accumulation_batch.items()} for k in (0, 2)]
    _, counted = trainer.get_batch_samples(iter(parts), 2, torch.device("cpu"))
    assert int(counted) == 2 * (3 + 1 + 2)


# Labels


def test_labels_with_and_without_a_dimension_for_segments(tiny_model, tiny_batch):
    one = tiny_batch["labels"][:, :, 0]
    outputs = [
        run(tiny_model, {**tiny_batch, "labels": labels})
        for labels in (one, one[:, :, None], torch.stack([one, torch.full_like(one, -100)], dim=2))
    ]
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert_close(outputs[0].loss, outputs[2].loss)
    assert abs(outputs[0].loss - run(tiny_model, tiny_batch).loss) > 1e-3  # the second segment counts


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 3), (2, 3, 2), (1, 2, 2), (2, 2, 1, 3), (2, 2, 1, 1, 2)])
def test_labels_of_another_shape_are_refused(tiny_model, tiny_batch, shape):
    with pytest.raises(ValueError, match="Received `labels` of shape .*expected .*2 videos and 2 sentences"):
        run(tiny_model, {**tiny_batch, "labels": torch.zeros(shape)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": (2, 6)}, r"Received `input_ids` of shape \(2, 6\) for 2 videos"),
        ({"input_ids": (3, 2, 6)}, r"Received `input_ids` of shape \(3, 2, 6\) for 2 videos"),
        ({"attention_mask": (2, 2, 5)}, r"Received `attention_mask` of shape \(2, 2, 5\)"),
        ({"sentence_mask": (2, 3)}, r"`sentence_mask` of shape \(2, 3\); expected .*\(2, 2\)"),
        ({"pixel_values_videos": (2, 20, 3, 32, 32)}, "Received 20 frames per video"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tiny_model, tiny_batch, changes, message):
    changed = {name: torch.ones(shape, dtype=tiny_batch[name].dtype) for name, shape in changes.items()}
    with pytest.raises(ValueError, match=message):
        run(tiny_model, {**tiny_batch, **changed})


# From pretrained encoders


@pytest.fixture
def encoders(tiny_config, randomize_weights):
    video = randomize_weights(VideoMAEModel(tiny_config.video_config), seed=5).eval()
    return video, randomize_weights(DistilBertModel(tiny_config.text_config), seed=6).eval()


@pytest.mark.parametrize("from_folders", [False, True])
def test_from_backbones_takes_the_weights_over(encoders, tiny_batch, tmp_path, from_folders):
    expected = [{name: tensor.clone() for name, tensor in encoder.state_dict().items()} for encoder in encoders]
    arguments = list(encoders)
    if from_folders:
        for encoder, name in zip(encoders, ("video", "text"), strict=True):
            encoder.save_pretrained(tmp_path / name)
        arguments = [str(tmp_path / "video"), str(tmp_path / "text")]
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(ScadaForTemporalGrounding.from_backbones(*arguments, hidden_size=8, grid_size=10))
    for model in models:
        assert model.config.grid_size == 10 and model.head.projection.out_features == 8
        own = [model.model.video_backbone.encoder.state_dict(), model.model.text_encoder.state_dict()]
        for state, reference in zip(own, expected, strict=True):
            assert state.keys() == reference.keys()
            assert all(torch.equal(state[name], reference[name]) for name in reference)
    # The head is new in each, and initialised.
    assert not torch.equal(models[0].head.projection.weight, models[1].head.projection.weight)
    assert torch.equal(models[0].head.norm.weight, torch.ones(32))

    batch = {**without_labels(tiny_batch), "pixel_values_videos": torch.randn(2, 16, 3, 48, 48)}
    outputs = run(models[0].eval(), batch)
    assert outputs.logits.shape == (2, 2, 55)
    models[0].save_pretrained(tmp_path / "whole")
    loaded = ScadaForTemporalGrounding.from_pretrained(tmp_path / "whole")
    assert torch.equal(run(loaded, batch).logits, outputs.logits)


def test_from_backbones_takes_the_encoder_out_of_a_model_with_a_head(tiny_config, encoders, randomize_weights):
    classifier = randomize_weights(VideoMAEForVideoClassification(tiny_config.video_config), seed=7)
    model = ScadaForTemporalGrounding.from_backbones(classifier, encoders[1], hidden_size=8)
    assert type(model.model.video_backbone.encoder) is VideoMAEModel
    assert model.model.video_backbone.encoder is classifier.videomae


def test_from_backbones_refuses_unknown_arguments(encoders):
    with pytest.raises(TypeError, match=r"unknown arguments \['grid_sizes', 'hiden_size'\]; ScadaConfig's are .*grid"):
        ScadaForTemporalGrounding.from_backbones(*encoders, hiden_size=8, grid_sizes=3)
    with pytest.raises(TypeError, match="video_config"):
        ScadaForTemporalGrounding.from_backbones(*encoders, video_config={})


def test_from_backbones_refuses_a_video_encoder_of_another_type(encoders):
    with pytest.raises(ValueError, match="model_type 'distilbert'; expected one of .*'videomae'"):
        ScadaForTemporalGrounding.from_backbones(encoders[1], encoders[1])


# Configuration


def test_configuration_survives_json(tiny_config, tmp_path):
    tiny_config.video_config.layer_norm_eps = 1e-7
    tiny_config.save_pretrained(tmp_path)
    for loaded in (ScadaConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert {**loaded.to_dict(), "_name_or_path": ""} == tiny_config.to_dict()
        assert type(loaded.video_config) is type(tiny_config.video_config)
        assert (loaded.video_config.layer_norm_eps, loaded.text_config.dim) == (1e-7, 32)
        assert (loaded.hidden_size, loaded.grid_size, loaded.num_train_proposals) == (16, 16, 32)
    in_file = json.loads((tmp_path / "config.json").read_text())
    assert in_file["model_type"] == "scada" and in_file["video_config"]["model_type"] == "videomae"
    # The configuration knows no frame rate and no seconds.
    assert not [name for name in in_file if "fps" in name or "seconds" in name]


def test_own_fields_are_the_documented_ones():
    documented = {"video_config", "text_config", "hidden_size", "grid_size", "num_sample_points"}
    assert documented | {"num_train_proposals", "initializer_range"} <= ScadaConfig.own_fields()
    assert all(f"    {name} (" in ScadaConfig.__doc__ for name in ScadaConfig.own_fields())


def test_an_old_file_without_newer_fields_loads(tiny_config, tmp_path):
    """A file has to keep loading when fields are added: only the encoders and the sizes changed from the defaults."""
    sub_configs = {name: getattr(tiny_config, name).to_dict() for name in ("video_config", "text_config")}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "scada", **sub_configs, "grid_size": 24}))
    config = ScadaConfig.from_pretrained(tmp_path)
    assert (config.grid_size, config.hidden_size, config.num_sample_points) == (24, 256, 16)
    assert config.num_train_proposals == 512 and config.video_config.image_size == 32


def test_sub_configurations_as_dicts_as_objects_and_by_default(tiny_config):
    as_dict = {"model_type": "videomae", "image_size": 48}
    config = ScadaConfig(video_config=as_dict, text_config=tiny_config.text_config)
    assert config.video_config.model_type == "videomae" and config.video_config.image_size == 48
    assert config.text_config is tiny_config.text_config
    assert as_dict == {"model_type": "videomae", "image_size": 48}  # the caller's dict stays
    default = ScadaConfig()
    assert (default.video_config.model_type, default.text_config.model_type) == ("videomae", "distilbert")


@pytest.mark.parametrize("name", ["video_config", "text_config"])
@pytest.mark.parametrize("sub_config", [{"model_type": "videomea"}, {"hidden_size": 8}])
def test_a_model_type_that_transformers_does_not_know_is_refused(name, sub_config):
    with pytest.raises(ValueError, match=f"Received `{name}` with model_type ('videomea'|None), which transformers"):
        ScadaConfig(**{name: sub_config})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size=0; expected at least 2"),
        ({"hidden_size": 15}, "hidden_size=15; expected an even number"),
        ({"grid_size": 1}, "grid_size=1; expected at least 2"),
        ({"num_sample_points": 1}, "num_sample_points=1; expected at least 2"),
        ({"num_train_proposals": 0}, "num_train_proposals=0; expected at least 1"),
        ({"num_kept_proposals": 0}, "num_kept_proposals=0; expected at least 1"),
        ({"spatial_pool_size": 0}, "spatial_pool_size=0; expected at least 1"),
        ({"feature_dropout": 1.0}, "feature_dropout=1.0; expected at least 0 and less than 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        ScadaConfig(**sizes)


def test_the_smallest_sizes_work(tiny_config, tiny_batch):
    smallest = {"hidden_size": 2, "grid_size": 2, "num_sample_points": 2, "num_train_proposals": 1}
    config = ScadaConfig(video_config=tiny_config.video_config, text_config=tiny_config.text_config, **smallest)
    model = ScadaForTemporalGrounding(config)
    assert run(model.eval(), tiny_batch).logits.shape == (2, 2, 3)
    assert run(model.train(), tiny_batch).logits.shape == (2, 2, 1)


@pytest.mark.parametrize("field", ["hidden_size", "grid_size", "num_sample_points", "num_train_proposals"])
def test_each_size_is_read(tiny_config, tiny_batch, field):
    """Another value gives another shape of a weight or an output."""

    def shapes(config) -> list:
        model = ScadaForTemporalGrounding(config).train()
        return [tuple(weight.shape) for weight in model.head.parameters()], tuple(
            run(model, {**tiny_batch, "sentence_mask": None}).logits.shape
        )

    before = shapes(tiny_config)
    setattr(tiny_config, field, getattr(tiny_config, field) // 2)
    if field == "grid_size":
        tiny_config.num_train_proposals = 1000
        assert shapes(tiny_config)[1] == (2, 2, 36)
    else:
        assert shapes(tiny_config) != before


def test_initialisation_of_a_new_head(tiny_config):
    """transformers skips `_init_weights` for modules without weights of their own: their rules must not get lost."""
    tiny_config.hidden_size, tiny_config.initializer_range = 128, 0.003
    torch.manual_seed(0)
    head = ScadaForTemporalGrounding(tiny_config).head
    for scale in (head.projection_scale, head.neck_scale, head.proposal_scale):
        assert scale.projection.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)
    for branch in (head.boundary, head.iou_classifier, head.iou_regressor, head.offset_regressor):
        assert branch[-1].weight.std().item() == pytest.approx(0.003, rel=0.25)
    assert head.projection.weight.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.1)
    assert head.neck_conv.weight.std().item() == pytest.approx((2 / (3 * 128)) ** 0.5, rel=0.1)
    assert torch.equal(head.norm.weight, torch.ones(32))
    biases = [parameter for name, parameter in head.named_parameters() if "bias" in name]
    assert len(biases) > 10 and all((bias == 0).all() for bias in biases)


def test_a_configuration_from_before_the_ranking_terms_trains_without_them(tiny_model, tiny_batch, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    assert saved.pop("listwise_loss_weight") == saved.pop("matching_loss_weight") == 1.0
    path.write_text(json.dumps(saved))
    for config in (AutoConfig.from_pretrained(tmp_path), ScadaConfig.from_pretrained(tmp_path)):
        assert config.listwise_loss_weight == config.matching_loss_weight == 0.0
    before = run(ScadaForTemporalGrounding.from_pretrained(tmp_path), tiny_batch)
    after = run(tiny_model, tiny_batch)
    assert list(before.loss_dict) == list(after.loss_dict)[:4]
    assert_close(before.logits, after.logits)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.5, 0.0), (0.0, 2.0)])
def test_ranking_terms_are_weighed_as_configured(tiny_model, tiny_batch, weights):
    full = run(tiny_model, tiny_batch).loss_dict
    tiny_model.config.listwise_loss_weight, tiny_model.config.matching_loss_weight = weights
    outputs = run(tiny_model, tiny_batch)
    others = sum(term for name, term in full.items() if name not in ("loss_listwise", "loss_matching"))
    expected = others + weights[0] * full["loss_listwise"] + weights[1] * full["loss_matching"]
    assert_close(outputs.loss, expected)


@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf")])
def test_a_loss_weight_that_is_no_weight_is_refused(weight):
    with pytest.raises(StrictDataclassClassValidationError, match="matching_loss_weight"):
        ScadaConfig(matching_loss_weight=weight)


def test_matching_is_within_a_video_only(tiny_model, tiny_batch):
    """Two sentences about one video compete for its segments; about two videos they do not."""
    two, one = run(tiny_model, tiny_batch), run(tiny_model, {name: value[1:] for name, value in tiny_batch.items()})
    assert two.loss_dict["loss_matching"] > 0
    assert one.loss_dict["loss_matching"] == 0


@pytest.mark.parametrize(
    "device_map", [{"model": "cpu", "head": "disk"}, {"model": "disk", "head": "cpu"}, {"": "disk"}], ids=str
)
def test_parts_of_the_model_on_disk(device_map, tiny_model, tiny_batch, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    model = ScadaForTemporalGrounding.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offloaded")
    )
    assert {name for name, weight in model.named_parameters() if weight.device.type == "meta"}
    with torch.no_grad():
        expected, found = tiny_model(**tiny_batch), model(**tiny_batch)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.pred_segments, expected.pred_segments)
