"""A video encoded once: each answer is that of the direct call, in each mode, with each backbone, and from a file."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import test_adapter_scada
import test_backbones
import test_convolutional_backbones
import torch
from peft import LoraConfig, get_peft_model
from test_adapter_scada import run, run_code, without_labels

from modeling_scada import ScadaAdapterConfig, ScadaConfig, ScadaForTemporalGrounding, ScadaVideoFeatures
from modeling_scada.adapter_scada import LAYER_LISTS


# fixtures
make_convolutional_model = test_convolutional_backbones.make_model
convolutional_batch = test_convolutional_backbones.batch
make_model = test_adapter_scada.make_model
randomize_trainable = test_adapter_scada.randomize_trainable

CONFIGS = {
    "frozen": None,  # and partial, and full, once they are trained
    "lora": LoraConfig(target_modules=["query", "value"], modules_to_save=["head"]),
    "tia": ScadaAdapterConfig(inner_layers=[0, 1], outer_layers=[], conditioning=False),
    "inner": ScadaAdapterConfig(inner_layers=[1], outer_layers=[]),
    "inner_last": ScadaAdapterConfig(inner_layers=[2], outer_layers=[]),
    "outer": ScadaAdapterConfig(inner_layers=[], outer_layers=[0, 2]),
    "both": ScadaAdapterConfig(inner_layers=[1, 2], outer_layers="all"),
    "pooling": ScadaAdapterConfig(inner_layers=[], outer_layers=[], pooling_layers=[2]),
    "all kinds": ScadaAdapterConfig(inner_layers=[2], outer_layers=[0, 1], pooling_layers=[1, 2]),
}
KEPT = {
    "frozen": {"snippet_features"},
    "lora": {"snippet_features"},
    "tia": {"snippet_features"},
    "inner": {"states", "frame_size"},
    "inner_last": {"states", "frame_size"},
    "outer": {"snippet_features", "outer_sequences.0", "outer_sequences.1"},
    "both": {"states", "frame_size", "outer_sequences.0"},
    "pooling": {"snippet_features", "outer_sequences.0"},
    "all kinds": {"states", "frame_size", "outer_sequences.0", "outer_sequences.1"},
}
each_mode = pytest.mark.parametrize("mode", CONFIGS)


@pytest.fixture
def make_tuned(make_model, randomize_trainable):
    """`make_tuned(mode, dtype=torch.float32)`: a model of three layers, with the mode's adapter of random weights."""

    def make(mode: str, dtype: torch.dtype = torch.float32):
        model = make_model(dtype=dtype)
        if CONFIGS[mode] is None:
            return model
        return randomize_trainable(get_peft_model(model, copy.deepcopy(CONFIGS[mode])), seed=3).eval()

    return make


@torch.no_grad()
def encode(model, batch: dict) -> ScadaVideoFeatures:
    return model.encode_video(batch["pixel_values_videos"])


def ask(model, features: ScadaVideoFeatures, batch: dict):
    sentences = {name: tensor for name, tensor in batch.items() if name not in ("pixel_values_videos", "labels")}
    return run(model, {"video_features": features, **sentences})


def assert_equal(actual, expected, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=atol)
    torch.testing.assert_close(actual.pred_segments, expected.pred_segments, rtol=0, atol=atol)


def other_sentences(batch: dict) -> dict:
    return batch | {"input_ids": batch["input_ids"].flip(-1)}


@each_mode
def test_answers_are_those_of_the_direct_call(make_tuned, tiny_batch, mode):
    """Two videos with two sentences and one, then with others; and one of the two alone."""
    model, batch = make_tuned(mode), without_labels(tiny_batch)
    features = encode(model, batch)
    assert set(features.tensors()) == KEPT[mode] and features.num_videos == 2
    expected = [run(model, asked) for asked in (batch, other_sentences(batch))]
    assert not torch.allclose(expected[0].logits, expected[1].logits, atol=1e-3)
    for asked, outputs in zip((batch, other_sentences(batch)), expected, strict=True):
        assert_equal(ask(model, features, asked), outputs)
    alone = {name: tensor[1:] for name, tensor in batch.items()}
    answer = ask(model, features.rows(slice(1, 2)), alone)
    assert_equal(answer, run(model, alone))
    joined = ScadaVideoFeatures.join([features.rows(slice(1, 2)), features.rows(slice(0, 1))])
    assert_equal(
        ask(model, joined, {name: tensor.flip(0) for name, tensor in batch.items()}),
        run(model, {name: tensor.flip(0) for name, tensor in batch.items()}),
    )


@pytest.mark.parametrize("mode", ["frozen", "tia", "outer", "both", "pooling"])
def test_several_places(make_tuned, tiny_config, tiny_batch, mode):
    """Four places of a picture: their mean is what a model of one place has, and they are not alike."""
    tiny_config.spatial_pool_size = 2
    model, batch = make_tuned(mode), without_labels(tiny_batch)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert_equal(ask(model, encode(model, batch), batch), run(model, batch))
    places = run(base.model, batch).last_hidden_state.unflatten(-1, (4, 32))
    assert places.std(2).min() > 1e-4
    base.config.spatial_pool_size = 1
    torch.testing.assert_close(places.mean(2), run(base.model, batch).last_hidden_state, rtol=1e-5, atol=1e-5)


@each_mode
def test_bfloat16(make_tuned, tiny_batch, mode):
    model, batch = make_tuned(mode, torch.bfloat16), without_labels(tiny_batch)
    assert_equal(ask(model, encode(model, batch), batch), run(model, batch), atol=1e-5)


@pytest.mark.parametrize("mode", ["frozen", "outer", "both"])
def test_loss_and_gradients_of_the_head(make_tuned, tiny_batch, mode):
    """What was encoded can also be trained on: the head's gradients are the same."""
    gradients = []
    for from_features in (False, True):
        model = make_tuned(mode)
        batch = dict(tiny_batch)
        if from_features:
            batch["video_features"] = encode(model, tiny_batch)
            del batch["pixel_values_videos"]
        loss = model(**batch).loss
        loss.backward()
        head = [weight for name, weight in model.named_parameters() if "head" in name and weight.requires_grad]
        gradients.append([loss.detach(), *(weight.grad for weight in head)])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("placement", ["outer", "last", "both", "pooling"])
@test_backbones.each_type
def test_each_type_of_encoder(make_encoder_model, name, placement):
    model = make_encoder_model(name, placement)
    batch = without_labels(test_backbones.batch_for(name))
    assert_equal(ask(model, encode(model, batch), batch), run(model, batch))


@pytest.fixture
def make_encoder_model(randomize_weights):
    """`make_encoder_model(name, placement)`: three layers of a type, with an adapter of random weights."""

    def make(name: str, placement: str):
        torch.manual_seed(0)
        layers = {"num_hidden_layers": 3}
        config = ScadaConfig(
            video_config=test_backbones.video_config(name, **layers),
            text_config=test_backbones.DistilBertConfig(**test_backbones.TEXT),
            hidden_size=16,
            grid_size=8,
        )
        model = randomize_weights(ScadaForTemporalGrounding(config))
        placements = {"outer": ([], "all", []), "last": ("last 1", [], []), "both": ([1, 2], "all", [])}
        layers = zip(LAYER_LISTS, placements.get(placement, ([], [], "all")), strict=True)
        model = get_peft_model(model, ScadaAdapterConfig(reduction=4, **dict(layers)))
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        randomize_weights(torch.nn.ParameterList(trainable), seed=3)
        return model.eval()

    return make


@pytest.mark.parametrize(
    "placement", [([], "all", []), ([2], [], []), ([1, 3], "all", []), ([4], [0, 2], []), ([], [], "all")]
)
@test_convolutional_backbones.each
def test_convolutional_backbones_too(
    make_convolutional_model, convolutional_batch, randomize_weights, name, placement
):
    layers = dict(zip(LAYER_LISTS, placement, strict=True))
    model = test_convolutional_backbones.adapted(make_convolutional_model(name), randomize_weights, **layers)
    batch = without_labels(convolutional_batch)
    assert_equal(ask(model, encode(model, batch), batch), run(model, batch))


# What is run, and when


def test_a_question_runs_no_layer_that_the_sentence_does_not_change(make_tuned, tiny_batch):
    batch = without_labels(tiny_batch)
    for mode, encoding, asking in (("outer", [2, 2, 2], [0, 0, 0]), ("both", [2, 0, 0], [0, 2, 3])):
        model = make_tuned(mode)
        calls = test_adapter_scada.count_calls(test_adapter_scada.plain_layers_of(model))
        # Two clips each of two videos, or of three sentences.
        features = encode(model, batch)
        assert [sum(shape[0] for shape in of_layer) // 2 for of_layer in calls] == encoding
        for of_layer in calls:
            of_layer.clear()
        ask(model, features, batch)
        assert [sum(shape[0] for shape in of_layer) // 2 for of_layer in calls] == asking


@each_mode
def test_many_threads_encode_and_ask(make_tuned, tiny_batch, mode):
    model = make_tuned(mode)
    batches = [without_labels(tiny_batch), without_labels(test_adapter_scada.another(tiny_batch))]
    expected = [run(model, batch) for batch in batches]

    def call(index: int):
        batch = batches[index % 2]
        return run(model, batch) if index % 3 == 0 else ask(model, encode(model, batch), batch)

    with ThreadPoolExecutor(8) as pool:
        for index, actual in enumerate(pool.map(call, range(60))):
            assert_equal(actual, expected[index % 2])


def test_with_the_adapter_disabled_the_model_has_no_branches(make_tuned, tiny_batch):
    model, batch = make_tuned("both"), without_labels(tiny_batch)
    features = encode(model, batch)
    with model.disable_adapter():
        plain = encode(model, batch)
        assert set(plain.tensors()) == KEPT["frozen"]
        assert_equal(ask(model, plain, batch), run(model, batch))
        with pytest.raises(ValueError, match="do not fit this model with its active adapter"):
            ask(model, features, batch)
    with pytest.raises(ValueError, match="do not fit this model with its active adapter"):
        ask(model, plain, batch)


# Files


IN_ANOTHER_PROCESS = """
import sys
import torch
from modeling_scada import ScadaForTemporalGrounding, ScadaVideoFeatures

folder, model = sys.argv[1:]
model = ScadaForTemporalGrounding.from_pretrained(model).eval()
batch = torch.load(folder + "/batch.pt")
features = ScadaVideoFeatures.load(folder + "/features.safetensors")
with torch.no_grad():
    outputs = model(video_features=features, **batch)
torch.save({"logits": outputs.logits, "pred_segments": outputs.pred_segments}, folder + "/outputs.pt")
"""


@pytest.mark.parametrize("mode", ["frozen", "outer", "both"])
def test_from_a_file_in_a_fresh_process(make_model, make_tuned, tiny_batch, tmp_path, mode):
    model, batch = make_tuned(mode), without_labels(tiny_batch)
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "base")
    if CONFIGS[mode] is not None:
        model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        model.save_pretrained(tmp_path / "adapter")
    encode(model, batch).save(tmp_path / "features.safetensors")
    torch.save({name: tensor for name, tensor in batch.items() if "pixel" not in name}, tmp_path / "batch.pt")
    folder = tmp_path / ("base" if CONFIGS[mode] is None else "adapter")
    run_code(IN_ANOTHER_PROCESS, tmp_path, folder, cwd=tmp_path)
    found = torch.load(tmp_path / "outputs.pt")
    expected = run(model, batch)
    for name, actual in found.items():
        torch.testing.assert_close(actual, expected[name], rtol=0, atol=1e-5)


def test_tensors_and_devices(make_tuned, tiny_batch):
    features = encode(make_tuned("both"), tiny_batch)
    again = ScadaVideoFeatures.from_tensors(features.tensors())
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in features.tensors().items())
    on_meta = features.to("meta")
    assert isinstance(on_meta, ScadaVideoFeatures)
    assert {tensor.device.type for tensor in on_meta.tensors().values()} == {"meta"}


def test_another_file_is_refused(tmp_path):
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match="Received tensors named .'weight'.; expected the tensors of an encoded video"
    ):
        ScadaVideoFeatures.load(tmp_path / "other.safetensors")


# What makes no sense


def test_a_first_layer_that_depends_on_the_sentence_is_refused(make_model, tiny_batch):
    model = get_peft_model(make_model(dtype=torch.float32), ScadaAdapterConfig(inner_layers="all"))
    with pytest.raises(ValueError, match="nothing to keep but the pixels. Call the model with the pixels"):
        encode(model, tiny_batch)


def test_both_and_neither_are_refused(make_tuned, tiny_batch):
    model, batch = make_tuned("frozen"), without_labels(tiny_batch)
    features = encode(model, batch)
    with pytest.raises(ValueError, match="Received both of `pixel_values_videos` and `video_features`"):
        run(model, batch | {"video_features": features})
    with pytest.raises(ValueError, match="Received neither of"):
        run(model, {"input_ids": batch["input_ids"]})
    with pytest.raises(ValueError, match="Received no `input_ids`"):
        run(model, {"video_features": features})
    with pytest.raises(ValueError, match="for 1 videos"):
        ask(model, features.rows(slice(1)), batch)
    with pytest.raises(ValueError, match="output_hidden_states=True with `video_features`"):
        ask(model, features, batch | {"output_hidden_states": True})
