"""The retrieval branch: embeddings of proposals and sentences for search over many videos."""

import json

import pytest
import test_adapter_scada
import test_video_features_scada
import torch
from peft import PeftModel
from test_adapter_scada import base_of, run, run_code, without_labels
from test_video_features_scada import each_mode, encode

from modeling_scada import ScadaConfig, ScadaForTemporalGrounding
from modeling_scada.head_scada import all_proposals, sample_points


# fixtures
make_model = test_adapter_scada.make_model
randomize_trainable = test_adapter_scada.randomize_trainable
make_tuned = test_video_features_scada.make_tuned


@pytest.fixture
def tiny_config(tiny_config):
    tiny_config.retrieval_dim = 8
    return tiny_config


def sentences_of(batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask of the sentences that there are."""
    keep = batch["sentence_mask"].bool()
    return batch["input_ids"][keep], batch["attention_mask"][keep]


@each_mode
def test_no_sentence_changes_the_features_that_proposals_are_embedded_from(make_tuned, tiny_batch, mode, monkeypatch):
    """They are what the direct call gives for a sentence vector of zeros, and so is the branch's loss in training."""
    model = make_tuned(mode)
    features = base_of(model).model.sentence_free_features(encode(model, tiny_batch))
    zeros = torch.zeros(3, 32)
    monkeypatch.setattr(base_of(model).model, "encode_sentences", lambda *arguments: zeros)
    expected = run(base_of(model).model, without_labels(tiny_batch)).last_hidden_state
    torch.testing.assert_close(features, expected[[0, 2]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features[:1], expected[1:2], rtol=1e-5, atol=1e-5)


def test_embeddings_are_those_of_a_plain_computation(tiny_model, tiny_batch):
    branch, features = tiny_model.head.retrieval, torch.randn(1, 16, 32)
    proposals = torch.tensor([[0, 3], [5, 16], [7, 8]])
    with torch.no_grad():
        actual = branch.embed_proposals(features, proposals)
        sequence = branch.projection(branch.norm(features))
        sequence = branch.neck_out(torch.cat([sequence, branch.lstm(sequence)], dim=-1)).relu()[0]
        steps, weights = sample_points(proposals, 16, 16)
        points = (sequence[steps] * weights[..., None]).sum(2)  # (P, points, D)
        layer = branch.proposal_features.linear
        rows = torch.einsum("pkd,odk->po", points, layer.weight.view(16, 16, 16).mT) + layer.bias
        expected = branch.proposal_out(rows.relu())
        sentence = torch.randn(2, 32)
        embedded = branch.sentence_out(sentence)
        torch.testing.assert_close(
            branch.embed_sentences(sentence), embedded / embedded.square().sum(-1, keepdim=True).sqrt()
        )
    torch.testing.assert_close(actual[0], expected / expected.square().sum(-1, keepdim=True).sqrt())


@each_mode
def test_a_sentence_is_multiplied_with_the_proposals_of_all_videos(make_tuned, tiny_batch, mode):
    model = make_tuned(mode)
    features = encode(model, tiny_batch)
    with torch.no_grad():
        proposals, sentences = model.embed_proposals(features), model.embed_sentences(*sentences_of(tiny_batch))
        some = model.embed_proposals(features.rows(slice(1, 2)), all_proposals(16)[10:13])
    assert proposals.shape == (2, 136, 8) and sentences.shape == (3, 8)
    torch.testing.assert_close(proposals.square().sum(-1), torch.ones(2, 136))
    torch.testing.assert_close(some, proposals[1:, 10:13])


@each_mode
def test_the_answers_are_the_same_with_the_branch_trained_beside(make_tuned, tiny_batch, mode):
    """With labels, the backbone runs before the sentences come in; without them, they are there from the start."""
    model = make_tuned(mode)
    with_labels, without = run(model, tiny_batch), run(model, without_labels(tiny_batch))
    torch.testing.assert_close(with_labels.logits, without.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(with_labels.pred_segments, without.pred_segments, rtol=0, atol=1e-5)
    assert "loss_retrieval" in with_labels.loss_dict
    torch.testing.assert_close(with_labels.loss, sum(with_labels.loss_dict.values()))


@each_mode
def test_what_trains_has_a_gradient_of_it(make_tuned, tiny_batch, mode):
    model = make_tuned(mode).train()
    model(**tiny_batch).loss_dict["loss_retrieval"].backward()
    named = {name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is not None}
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad and ".retrieval." in name]
    assert len(trained) == 20 and set(trained) <= named
    others = {"tia": "scada_inner", "outer": "scada_outer", "both": "scada_outer", "lora": "lora_B"}
    if mode in others:
        assert any(others[mode] in name for name in named)


def test_training_tells_videos_apart(tiny_model, tiny_batch):
    """The loss of one batch goes down, and each sentence finds its video and segment among all."""
    optimizer = torch.optim.Adam(tiny_model.head.retrieval.parameters(), lr=3e-3)
    batch = tiny_batch | {"labels": tiny_batch["labels"][:, :, :1]}
    for _ in range(80):
        loss = tiny_model(**batch).loss_dict["loss_retrieval"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    with torch.no_grad():
        proposals = tiny_model.embed_proposals(tiny_model.encode_video(batch["pixel_values_videos"]))
        products = tiny_model.embed_sentences(*sentences_of(batch)) @ proposals.flatten(0, 1).T
    best = products.argmax(1)
    assert (best // 136).tolist() == [0, 0, 1]
    starts, ends = (all_proposals(16)[best % 136] / 16).unbind(1)
    for start, end, target in zip(starts, ends, [(0.1, 0.4), (0.2, 0.8), (0.0, 0.3)], strict=True):
        intersection = min(end, target[1]) - max(start, target[0])
        assert intersection / (max(end, target[1]) - min(start, target[0])) > 0.5


SAVED = """
import sys, torch
from peft import PeftModel
from modeling_scada import ScadaForTemporalGrounding
folder = sys.argv[1]
base = ScadaForTemporalGrounding.from_pretrained(folder + "/base")
model = PeftModel.from_pretrained(base, folder + "/adapter").eval()
batch, proposals, sentences = torch.load(folder + "/expected.pt")
with torch.no_grad():
    features = model.encode_video(batch["pixel_values_videos"])
    torch.testing.assert_close(model.embed_proposals(features), proposals)
    torch.testing.assert_close(model.embed_sentences(batch["input_ids"][0], batch["attention_mask"][0]), sentences)
"""


def test_saved_with_an_adapter(make_tuned, tiny_batch, tmp_path):
    """The trained copy of the branch comes back, in a process that knows nothing but the folder."""
    model = make_tuned("outer")
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        proposals = model.embed_proposals(encode(model, tiny_batch))
        sentences = model.embed_sentences(tiny_batch["input_ids"][0], tiny_batch["attention_mask"][0])
    model.save_pretrained(tmp_path / "adapter")
    base_of(model).save_base_model(tmp_path / "base")
    torch.save((without_labels(tiny_batch), proposals, sentences), tmp_path / "expected.pt")
    run_code(SAVED, tmp_path, cwd=tmp_path)


def test_a_model_without_the_branch(tiny_batch, tmp_path):
    """A configuration saved before has none of it; asking for it says what to do."""
    config = ScadaConfig(
        video_config={"model_type": "videomae", "image_size": 32, "num_hidden_layers": 1, "hidden_size": 32}
        | {"num_attention_heads": 2, "intermediate_size": 64},
        text_config={"model_type": "distilbert", "n_layers": 1, "dim": 32, "n_heads": 2, "hidden_dim": 64},
        hidden_size=16,
        grid_size=16,
    )
    model = ScadaForTemporalGrounding(config).eval()
    assert model.head.retrieval is None and not [name for name in model.state_dict() if "retrieval" in name]
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved.pop("retrieval_dim") == 0
    (tmp_path / "config.json").write_text(json.dumps(saved))
    model = ScadaForTemporalGrounding.from_pretrained(tmp_path)
    assert "loss_retrieval" not in run(model, tiny_batch).loss_dict
    features = encode(model, tiny_batch)
    for call in (lambda: model.embed_proposals(features), lambda: model.embed_sentences(*sentences_of(tiny_batch))):
        with pytest.raises(ValueError, match="without a retrieval branch.*retrieval_dim"):
            call()
