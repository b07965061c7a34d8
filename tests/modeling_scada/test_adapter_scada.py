"""SCADA as a method of peft: formulas, sharing between sentences, gradients, memory, and the calls of peft."""

import copy
import dataclasses
import json
import math
import os
import pickle
import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fresh_process import run_python
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from modeling_scada import ScadaAdapterConfig, ScadaConfig, ScadaForTemporalGrounding
from modeling_scada.adapter_scada import (
    Condition,
    InnerBranch,
    OuterBranch,
    PoolingBranch,
    ScadaLayer,
    resolve_layers,
)


ROOT = Path(__file__).resolve().parents[2]
INNER = {"inner_layers": [1], "outer_layers": []}
OUTER = {"inner_layers": [], "outer_layers": [0, 2]}
BOTH = {"inner_layers": [1], "outer_layers": [0, 2]}
POOLING = {"inner_layers": [], "outer_layers": [], "pooling_layers": [0, 2]}
PLACEMENTS = {"inner": INNER, "outer": OUTER, "both": BOTH, "pooling": POOLING}
each_placement = pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)


@pytest.fixture
def make_model(tiny_config, randomize_weights):
    """`make_model(num_layers=3, dtype=torch.float64)`: a tiny model with random weights everywhere, nothing frozen."""

    def make(num_layers: int = 3, dtype: torch.dtype = torch.float64) -> ScadaForTemporalGrounding:
        tiny_config.video_config.num_hidden_layers = num_layers
        torch.manual_seed(0)
        return randomize_weights(ScadaForTemporalGrounding(tiny_config)).eval().to(dtype)

    return make


@pytest.fixture
def randomize_trainable(randomize_weights):
    """`randomize_trainable(model, seed=0)`: `randomize_weights` for what trains, the active adapter and its head."""

    def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
        randomize_weights(nn.ParameterList(weight for weight in model.parameters() if weight.requires_grad), seed)
        return model

    return randomize


@pytest.fixture
def adapt(randomize_trainable):
    """`adapt(model, seed=0, adapter_name="default", **config)`: with an adapter of random weights, in evaluation."""

    def adapt(model: nn.Module, seed: int = 0, adapter_name: str = "default", **config) -> PeftModel:
        model = get_peft_model(model, ScadaAdapterConfig(**config), adapter_name=adapter_name)
        return randomize_trainable(model, seed=seed).eval()

    return adapt


def base_of(model: nn.Module) -> ScadaForTemporalGrounding:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of the backbone, wrapped or not."""
    return base_of(model).model.video_backbone.layers


def plain_layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of the backbone without their wrappers."""
    return [getattr(layer, "base_layer", layer) for layer in layers_of(model)]


def run(model: nn.Module, batch: dict, **kwargs):
    with torch.no_grad():
        return model(**batch, **kwargs)


def run_base(model: nn.Module, batch: dict):
    """Outputs of the `ScadaModel` inside, with hidden states."""
    return run(base_of(model).model, without_labels(batch), output_hidden_states=True)


def without_labels(batch: dict) -> dict:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def sentences_of(batch: dict, video: int, sentences: slice) -> dict:
    """The batch with one video and some of its sentences."""
    return {
        name: tensor[video : video + 1] if name == "pixel_values_videos" else tensor[video : video + 1, sentences]
        for name, tensor in batch.items()
    }


def many_sentences(num_sentences: int, seed: int = 3) -> dict:
    """One video of two clips with many sentences."""
    generator = torch.Generator().manual_seed(seed)
    starts_and_ends = torch.rand(1, num_sentences, 2, generator=generator).sort(-1).values
    return {
        "pixel_values_videos": torch.randn(1, 32, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(5, 100, (1, num_sentences, 6), generator=generator),
        "labels": starts_and_ends,
    }


def another(batch: dict) -> dict:
    """A batch of the same shapes with other videos, sentences and targets."""
    generator = torch.Generator().manual_seed(9)
    return {
        **batch,
        "pixel_values_videos": torch.randn(batch["pixel_values_videos"].shape, generator=generator),
        "input_ids": torch.randint(5, 100, batch["input_ids"].shape, generator=generator),
        "labels": torch.where(batch["labels"] < 0, -100, (batch["labels"] + 0.1).clamp(max=1)),
    }


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-6, rtol: float = 0.0):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def assert_equal_outputs(actual, expected):
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.pred_segments, expected.pred_segments)
    if expected.loss is not None:
        assert torch.equal(actual.loss, expected.loss)


def differ(actual, expected) -> float:
    return (actual.logits - expected.logits).abs().max().item()


def count_calls(modules) -> list[list[tuple]]:
    """For each module, the shapes of the first input of each of its calls from now on."""
    shapes: list[list[tuple]] = []
    for module in modules:
        shapes.append([])
        module.register_forward_hook(lambda _, args, output, calls=shapes[-1]: calls.append(tuple(args[0].shape)))
    return shapes


def enable_checkpointing(model: nn.Module, use_reentrant: bool) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


def gradients(model: nn.Module, batch: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)  # of the proposals that are drawn, and of dropout
    model(**batch).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_equal_gradients(actual: dict, expected: dict, atol: float = 1e-6):
    assert actual.keys() == expected.keys() and expected
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-6, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def run_code(code: str, *arguments, cwd: Path, status: int = 0, **environment: str) -> str:
    """
    Run code in a fresh process with as many threads as this one, so that sums are taken in the same order.

    Check the exit status, and return stdout.
    """
    threads = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = run_python(["-c", code, *map(str, arguments)], cwd, os.environ | threads | environment, timeout_seconds=120)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def run_ranks(code: str, folder: Path) -> None:
    """Run code with the rank and the folder as arguments, in two fresh processes at a time."""
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run_code, code, rank, folder, cwd=folder, **environment) for rank in range(2)]
    for done in runs:
        done.result()


# Configuration


@pytest.mark.parametrize(
    ("rule", "num_layers", "expected"),
    [
        ("all", 3, [0, 1, 2]),
        ("last 3", 12, [9, 10, 11]),
        ("last 1", 5, [4]),
        ("last 1/3", 12, [8, 9, 10, 11]),
        ("last 1/4", 2, [1]),  # a share is never nothing
        ("last 2/2", 4, [0, 1, 2, 3]),
        ("even 4", 12, [2, 5, 8, 11]),
        ("even 4", 40, [9, 19, 29, 39]),
        ("even 1", 7, [6]),
        ("even 1/2", 12, [1, 3, 5, 7, 9, 11]),
        ("even 1/4", 24, [3, 7, 11, 15, 19, 23]),
        ("last 30", 4, [0, 1, 2, 3]),
        ("even 30", 4, [0, 1, 2, 3]),
        ([-1, 0], 3, [0, 2]),
        ([2, -3], 3, [0, 2]),
        ((1,), 3, [1]),
        ([], 3, []),
    ],
)
def test_resolve_layers(rule, num_layers, expected):
    assert resolve_layers(rule, num_layers) == expected


@pytest.mark.parametrize("num_layers", [1, 2, 3, 12, 24, 40])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 40])
def test_evenly_spaced_layers_are_distinct_end_at_the_last_and_have_even_gaps(num_layers, count):
    indices = resolve_layers(f"even {count}", num_layers)
    assert len(indices) == min(count, num_layers) and indices[-1] == num_layers - 1
    gaps = [after - before for before, after in zip([-1, *indices], indices, strict=False)]
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    "rule",
    ["first 3", "last", "last 0", "last -1", "last 1/0", "last 3 ", " all", "ALL", "even 1.5", "", "3", "last 3\n"],
)
@pytest.mark.parametrize("name", ["inner_layers", "outer_layers", "pooling_layers"])
def test_rules_that_are_not_understood_are_refused(name, rule):
    with pytest.raises(ValueError, match=re.escape(f"Received the rule {rule!r} for layers; expected a list")):
        ScadaAdapterConfig(**{name: rule})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_size": 2}, "Received kernel_size=2; expected an odd number of snippets"),
        ({"kernel_size": 0}, "Received kernel_size=0; expected a positive integer"),
        ({"kernel_size": -3}, "Received kernel_size=-3; expected a positive integer"),
        ({"kernel_size": 3.0}, "Received kernel_size=3.0; expected a positive integer"),
        ({"reduction": 0}, "Received reduction=0; expected a positive integer"),
        ({"reduction": -8}, "Received reduction=-8; expected a positive integer"),
        ({"reduction": "8"}, "Received reduction='8'; expected a positive integer"),
        ({"reduction": True}, "Received reduction=True; expected a positive integer"),
        ({"conditioning": "no"}, "Received conditioning='no'; expected True or False"),
        ({"pooling_layers": []}, "Received no layers; name some in `inner_layers`, `outer"),
        ({"inner_layers": (), "pooling_layers": ()}, "in `inner_layers`, `outer_layers` or `pooling_layers`"),
    ],
)
def test_values_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ScadaAdapterConfig(**values)


@pytest.mark.parametrize(
    ("arguments", "pooling_layers"),
    [
        ({}, "last 1"),
        ({"inner_layers": [], "outer_layers": []}, "last 1"),
        ({"outer_layers": "all"}, []),
        # An adapter saved by version 0.1.0, without the argument.
        ({"inner_layers": "last 3", "outer_layers": "even 4"}, []),
        ({"inner_layers": [1], "pooling_layers": [0]}, [0]),
    ],
)
def test_a_pooling_branch_is_the_default_without_other_branches(arguments, pooling_layers):
    assert ScadaAdapterConfig(**arguments).pooling_layers == pooling_layers


@pytest.mark.parametrize(
    ("name", "value"), [("inner_layers", 3), ("inner_layers", None), ("outer_layers", None), ("pooling_layers", 3)]
)
def test_layers_that_are_neither_a_list_nor_a_rule_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{value}.*expected"):
        ScadaAdapterConfig(**{name: value})


@pytest.mark.parametrize("name", ["inner_layers", "outer_layers", "pooling_layers"])
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([3], r"Received the layers \[3\] for a backbone of 3 layers; expected each index once, from -3 to 2"),
        ([-4], r"Received the layers \[-4\] for a backbone of 3 layers"),
        ([0, 0], r"Received the layers \[0, 0\] for a backbone of 3 layers; expected each index once"),
        ([2, -1], r"Received the layers \[2, -1\] for a backbone of 3 layers; expected each index once"),
        ([1.0], r"Received \[1.0\] for layers; expected a list of integers or a rule"),
        ([True], r"Received \[True\] for layers; expected a list of integers or a rule"),
        (["last 3"], r"Received \['last 3'\] for layers; expected a list of integers or a rule"),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused(make_model, name, layers, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(make_model(), ScadaAdapterConfig(**{name: layers}))


def test_a_reduction_larger_than_the_width_is_refused_and_the_width_itself_is_not(make_model):
    with pytest.raises(ValueError, match="Received reduction=33 for a backbone of width 32; expected at most 32"):
        get_peft_model(make_model(), ScadaAdapterConfig(reduction=33))
    model = get_peft_model(make_model(), ScadaAdapterConfig(reduction=32, **BOTH))
    assert layers_of(model)[1].scada_inner["default"].down.out_features == 1


def test_other_models_are_refused(make_model):
    encoder = make_model().model.text_encoder
    config = ScadaAdapterConfig(modules_to_save=None)
    for model in (encoder, nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=f"Received a {type(model).__name__}; SCADA adapts ScadaForTemporalG"):
            get_peft_model(model, config)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"inner_layers": [-1, 0], "outer_layers": "even 1/2", "reduction": 4, "kernel_size": 5, "conditioning": False},
        {"inner_layers": [], "outer_layers": [], "pooling_layers": "last 2"},
        {"inner_layers": [], "outer_layers": "all", "modules_to_save": None, "inference_mode": True},
    ],
)
def test_configuration_survives_its_file(values, tmp_path):
    config = ScadaAdapterConfig(**values)
    config.save_pretrained(tmp_path)
    for loaded in (PeftConfig.from_pretrained(tmp_path), ScadaAdapterConfig.from_pretrained(tmp_path)):
        assert type(loaded) is ScadaAdapterConfig and loaded == config
        assert {name: getattr(loaded, name) for name in values} == values
        assert loaded.peft_type == config.peft_type == "SCADA"


def test_every_own_field_is_explained():
    own = {field.name for field in dataclasses.fields(ScadaAdapterConfig)} - {
        field.name for field in dataclasses.fields(PeftConfig)
    }
    assert own == {
        "reduction",
        "kernel_size",
        "inner_layers",
        "outer_layers",
        "pooling_layers",
        "conditioning",
        "modules_to_save",
        "num_layers",
    }
    for field in dataclasses.fields(ScadaAdapterConfig):
        if field.name in own:
            assert field.metadata["help"].strip()
            assert re.search(rf"^        {field.name} \(", ScadaAdapterConfig.__doc__, re.MULTILINE)


def test_rules_follow_the_depth_of_the_model(make_model):
    model = get_peft_model(make_model(4), ScadaAdapterConfig(inner_layers="last 1/4", outer_layers="even 2"))
    wrapped = [
        (index, bool(layer.scada_inner), bool(layer.scada_outer))
        for index, layer in enumerate(layers_of(model))
        if isinstance(layer, ScadaLayer)
    ]
    assert wrapped == [(1, False, True), (3, True, True)]


@pytest.mark.parametrize(
    ("width", "num_layers", "limit"),
    [(384, 12, 2e6), (768, 12, 6e6), (1408, 40, 15e6)],
    ids=["VideoMAE-S", "VideoMAE-B", "VideoMAE-g"],
)
def test_number_of_trained_weights(width, num_layers, limit):
    """The numbers in docs/adapter.md: a few million with the paper's branches, and those of a pooling branch."""
    video_config = {"model_type": "videomae", "hidden_size": width, "num_hidden_layers": num_layers}
    video_config |= {"num_attention_heads": 2, "intermediate_size": 2 * width}  # the adapter does not see these
    with torch.device("meta"):
        base = ScadaForTemporalGrounding(ScadaConfig(video_config=video_config))
        both = get_peft_model(copy.deepcopy(base), ScadaAdapterConfig(inner_layers="last 3", outer_layers="even 4"))
        pooling = get_peft_model(base, ScadaAdapterConfig())
    num_both, num_pooling = (
        sum(weight.numel() for weight in layers_of(model).parameters() if weight.requires_grad)
        for model in (both, pooling)
    )
    assert limit / 2 < num_both < limit
    dim, text_dim = width // 8, 768
    block = 2 * dim + text_dim * dim + (3 * dim + dim) + (dim + 1) * dim + (dim + 1) * 2 * dim + (2 * dim + 1) * dim
    ends = 2 * width + (width + 1) * dim + 2 * dim + (text_dim + 1) * dim + (dim + 1) * dim + (3 * dim + 1) * width
    assert num_pooling == 2 * block + ends


# A fresh adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conditioning", [True, False])
@pytest.mark.parametrize("num_sentences", [1, 5])
@each_placement
def test_a_fresh_adapter_changes_nothing(make_model, tiny_batch, placement, conditioning, num_sentences, dtype):
    model = make_model(dtype=dtype)
    batch = many_sentences(num_sentences) if num_sentences > 1 else sentences_of(tiny_batch, 0, slice(1))
    model.model.requires_grad_(False)  # without dropout in the sentence encoder, as it is with an adapter
    expected = run(model, batch)
    torch.manual_seed(5)
    expected_in_training = run(model.train(), batch)
    adapted = get_peft_model(model, ScadaAdapterConfig(**placement, conditioning=conditioning))
    assert_equal_outputs(run(adapted.eval(), batch), expected)
    torch.manual_seed(5)  # of the proposals that are drawn
    assert_equal_outputs(run(adapted.train(), batch), expected_in_training)
    assert expected_in_training.logits.shape[-1] == 32 < expected.logits.shape[-1]


def test_initialisation(randomize_weights):
    """docs/design.md section 6: zeros and ones exactly, and the spread of what is random, on large branches."""
    torch.manual_seed(0)
    inner, outer = InnerBranch(512, 256, 128, 3), OuterBranch(512, 64, 128, 3)
    zeros = [inner.up.weight, outer.up.weight, inner.gate.projection.weight, outer.gate.projection.weight]
    biases = [weight for branch in (inner, outer) for name, weight in branch.named_parameters() if "bias" in name]
    assert len(biases) == 6 and all(torch.equal(weight, torch.zeros_like(weight)) for weight in zeros + biases)
    assert torch.equal(inner.gamma, torch.ones(()))
    stds = [
        (inner.down.weight, 0.02),
        (outer.down.weight, 0.02),
        (inner.depthwise.weight, math.sqrt(2 / 3)),
        (inner.pointwise.weight, math.sqrt(2 / 256)),
    ]
    for weight, std in stds:
        standard_error = std / math.sqrt(2 * weight.numel())
        assert abs(weight.std().item() - std) < 5 * standard_error
        assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel())
        within = (weight.abs() < std).float().mean().item()  # 0.68 of a normal distribution, 0.58 of a uniform one
        assert abs(within - 0.683) < 5 * 0.47 / math.sqrt(weight.numel())
    # These and the ones above are all there are.
    assert sum(1 for _ in inner.parameters()) + sum(1 for _ in outer.parameters()) == 15
    depthwise = InnerBranch(512, 512, None, 5).depthwise.weight
    assert depthwise.std().item() == pytest.approx(math.sqrt(2 / 5), rel=0.1)
    pooling = PoolingBranch(512, 256, 128, 3, 512)
    biases = [weight for name, weight in pooling.named_parameters() if "bias" in name]
    assert len(biases) == 4 + 2 * 5 + 2 and not any(weight.any() for weight in [*biases, pooling.up.weight])
    gates = [block.gate.projection.weight for block in pooling.blocks]
    for weight, std in [
        (pooling.down.weight, 0.1),
        *((weight, 128**-0.5) for weight in (*gates, pooling.query.weight)),
    ]:
        assert abs(weight.std().item() - std) < 5 * std / math.sqrt(2 * weight.numel())


# Formulas


def inner_formula(branch: InnerBranch, features: torch.Tensor, sentences: torch.Tensor | None) -> torch.Tensor:
    """docs/design.md section 6, one spatial position after the other: `(Q, N, h, w, C)` and `(Q, C_text)`."""
    weights = branch.state_dict()
    z = F.gelu(features @ weights["down.weight"].T + weights["down.bias"])
    if sentences is not None:
        z = z * (1 + sentences @ weights["gate.projection.weight"].T)[:, None, None, None]
    mixed = torch.empty_like(z)
    kernel_size, bottleneck_dim = weights["depthwise.weight"].shape[2], z.shape[-1]
    for row in range(z.shape[2]):
        for column in range(z.shape[3]):
            snippets = F.pad(z[:, :, row, column].transpose(1, 2), (kernel_size // 2, kernel_size // 2))  # (Q, r, N+)
            over_time = F.conv1d(
                snippets, weights["depthwise.weight"][..., 0], weights["depthwise.bias"], groups=bottleneck_dim
            )
            mixed[:, :, row, column] = F.conv1d(
                over_time, weights["pointwise.weight"][..., None], weights["pointwise.bias"]
            ).transpose(1, 2)
    z = z + mixed
    return features + weights["gamma"] * (z @ weights["up.weight"].T + weights["up.bias"])


def outer_formula(branch: OuterBranch, features: torch.Tensor, sentences: torch.Tensor | None) -> torch.Tensor:
    """docs/design.md section 6, with the mean over space last, as the paper has it. `(Q, N, h, w, C) -> (Q, N, C)`."""
    weights = branch.state_dict()
    volume = features.permute(0, 4, 1, 2, 3)  # (Q, C, N, h, w)
    u = F.conv3d(volume, weights["down.weight"][:, :, None], weights["down.bias"], stride=(1, 2, 2), padding=(0, 1, 1))
    u = F.gelu(u)
    if sentences is not None:
        u = u * (1 + sentences @ weights["gate.projection.weight"].T)[:, :, None, None, None]
    kernel_size = weights["up.weight"].shape[-1]
    o = F.conv3d(u, weights["up.weight"][..., None, None], weights["up.bias"], padding=(kernel_size // 2, 0, 0))
    return o.mean(dim=(3, 4)).transpose(1, 2)


def pooling_formula(branch: PoolingBranch, features: torch.Tensor, sentences: torch.Tensor) -> torch.Tensor:
    """docs/design.md section 6, one place and one head after the other. `(Q, N, h, w, C) -> (Q, N, C)`."""
    weights = branch.state_dict()

    def norm(z: torch.Tensor, name: str) -> torch.Tensor:
        deviations = z - z.mean(-1, keepdim=True)
        z = deviations / (deviations.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return z * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(z: torch.Tensor, name: str) -> torch.Tensor:
        return z @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def over_time(z: torch.Tensor, name: str) -> torch.Tensor:  # (Q, N, r)
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.conv1d(z.mT, weight.squeeze(-1), bias, padding="same", groups=z.shape[-1]).mT

    places = []
    for place in features.flatten(2, 3).unbind(2):
        z = F.gelu(linear(norm(place, "norm"), "down"))
        for block in ("blocks.0", "blocks.1"):
            gate = 1 + sentences @ weights[f"{block}.gate.projection.weight"].T
            update = norm(z, f"{block}.norm") * gate[:, None]
            update = update + linear(over_time(update, f"{block}.depthwise"), f"{block}.pointwise")
            z = z + linear(F.gelu(linear(update, f"{block}.mlp.0")), f"{block}.mlp.2")
        places.append(norm(z, "pooling_norm"))
    query, keys = linear(sentences, "query"), [linear(z, "key") for z in places]
    dim = query.shape[-1] // 4
    pooled = []
    for head in range(4):
        channels = slice(head * dim, (head + 1) * dim)
        scores = [torch.einsum("qnc,qc->qn", key[..., channels], query[:, channels]) / dim**0.5 for key in keys]
        shares = torch.stack(scores).exp() / torch.stack(scores).exp().sum(0)
        pooled.append(sum(share[..., None] * z[..., channels] for share, z in zip(shares, places, strict=True)))
    return F.conv1d(torch.cat(pooled, -1).mT, weights["up.weight"], weights["up.bias"], padding="same").mT


FORMULAS = {InnerBranch: inner_formula, OuterBranch: outer_formula}


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (4, 3), (1, 1)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("per_sentence", [True, False])
@pytest.mark.parametrize("branch_class", [InnerBranch, OuterBranch])
def test_a_branch_equals_the_formula(randomize_weights, branch_class, per_sentence, conditioned, kernel_size, size):
    generator = torch.Generator().manual_seed(1)
    video_index = torch.tensor([0, 0, 1, 1, 1])
    branch = randomize_weights(branch_class(12, 4, 6 if conditioned else None, kernel_size), std=0.5).double()
    sentences = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    videos = torch.randn(2, 7, *size, 12, generator=generator, dtype=torch.float64)
    features = torch.randn(5, 7, *size, 12, generator=generator, dtype=torch.float64) if per_sentence else videos
    condition = Condition(sentences, video_index, (2, 7, *size), per_sentence)
    rows = features if per_sentence else features[video_index]
    expected = FORMULAS[branch_class](branch, rows, sentences if conditioned else None)
    with torch.no_grad():
        actual = branch(features, condition)
    if branch_class is InnerBranch and not conditioned and not per_sentence:
        assert actual.shape == features.shape  # the batch did not grow
        actual = actual[video_index]
    assert_close(actual, expected, atol=1e-10)
    if kernel_size > 1:  # the convolution over time counts, so the comparison sees it
        weight = branch.depthwise.weight if branch_class is InnerBranch else branch.up.weight
        with torch.no_grad():
            weight[:, :, 0] = 0
            without = branch(features, condition)
        assert (without if len(without) == 5 else without[video_index]).sub(expected).abs().max() > 1e-3

    branch.float()
    condition = Condition(sentences.float(), video_index, (2, 7, *size), per_sentence)
    with torch.no_grad():
        single = branch(features.float(), condition)
    expected = FORMULAS[branch_class](branch, rows.float(), sentences.float() if conditioned else None)
    assert_close(single if len(single) == 5 else single[video_index], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (1, 1)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("per_sentence", [True, False])
def test_a_pooling_branch_equals_the_formula(randomize_weights, per_sentence, kernel_size, size):
    generator = torch.Generator().manual_seed(1)
    video_index = torch.tensor([0, 0, 1, 1, 1])
    branch = randomize_weights(PoolingBranch(12, 8, 6, kernel_size, 10), std=0.5).double()
    sentences = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    features = torch.randn(5 if per_sentence else 2, 7, *size, 12, generator=generator, dtype=torch.float64)
    expected = pooling_formula(branch, features if per_sentence else features[video_index], sentences)
    condition = Condition(sentences, video_index, None, per_sentence)
    with torch.no_grad():
        assert_close(branch(features, condition), expected, atol=1e-10)
        assert branch.encode(features).shape[-1] == size[0] * size[1] * 8
        for weights in (branch.query, branch.blocks[0].depthwise, branch.blocks[1].gate.projection):
            others = copy.deepcopy(branch)
            weights.weight.zero_()
            if size != (1, 1) or weights is not branch.query:  # with one place, attention selects nothing
                assert (branch(features, condition) - expected).abs().max() > 1e-3
            branch.load_state_dict(others.state_dict())


@pytest.mark.parametrize("width", [3, 6, 8])
def test_a_pooling_branch_selects_the_place_of_the_sentence(width):
    """With equal keys, attention is the mean over places. With the query of one place, its feature remains."""
    branch = PoolingBranch(16, width, 6, 1, 16)
    for block in branch.blocks:
        nn.init.zeros_(block.mlp[2].weight)
    nn.init.dirac_(branch.up.weight)
    features = torch.randn(1, 4, 2, 2, 16)
    condition = Condition(torch.randn(1, 6), torch.tensor([0]), None, False)
    places = branch.pooling_norm(branch.encode(features).unflatten(-1, (4, width)))
    nn.init.zeros_(branch.query.weight)
    assert_close(branch(features, condition)[..., :width], places.mean(2))
    nn.init.eye_(branch.key.weight)
    one = places[0, 0, 3]
    with torch.no_grad():
        branch.query.bias.copy_(1e4 * one)
    heads = (branch.num_heads, width // branch.num_heads)
    closest = (places[0, 0].unflatten(-1, heads) * one.unflatten(-1, heads)).sum(-1).argmax(0)  # a place for each head
    expected = torch.stack([places[0, 0, place].unflatten(-1, heads)[head] for head, place in enumerate(closest)])
    assert_close(branch(features, condition)[0, 0, :width], expected.flatten())


def test_an_outer_branch_equals_the_formula_in_float32(randomize_weights):
    """At the size of real weights, where a trial measured 3e-7."""
    torch.manual_seed(0)
    branch = randomize_weights(OuterBranch(64, 8, 16, 3), std=0.02)
    features, sentences = torch.randn(2, 8, 14, 14, 64), torch.randn(3, 16)
    video_index = torch.tensor([0, 1, 1])
    with torch.no_grad():
        actual = branch(features, Condition(sentences, video_index, (2, 8, 14, 14), False))
    expected = outer_formula(branch, features[video_index], sentences)
    assert expected.abs().max() > 1e-2
    assert_close(actual, expected, atol=1e-6)


def assert_equals_the_formulas(model: PeftModel, batch: dict, conditioned: dict[str, bool]) -> list[int]:
    """
    Compares hidden states, and what is fused: the mean of the last state plus the outer branches (docs/design.md
    section 6), with the formulas, for `tiny_batch`'s three sentences about two videos. `conditioned` has the active
    adapters in order. Returns the number of rows, videos or sentences, that each plain layer gave.
    """
    plain: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, args, output: plain.append(output)) for layer in plain_layers_of(model)
    ]
    outputs = run_base(model, batch)
    for handle in handles:
        handle.remove()
    video_index = torch.tensor([0, 0, 1])
    assert torch.equal(outputs.video_index, video_index)
    sentences = {name: outputs.sentence_embeds if is_so else None for name, is_so in conditioned.items()}

    def of_sentences(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.reshape(-1, 16, 2, 2, 32)
        return tensor if len(tensor) == 3 else tensor[video_index]

    fused = 0
    for layer, output, state in zip(layers_of(model), plain, outputs.hidden_states[1:], strict=True):
        inner, outer = getattr(layer, "scada_inner", {}), getattr(layer, "scada_outer", {})
        features = of_sentences(output)
        # An outer branch reads the layer's output before its inner branch.
        for name in conditioned:
            if name in outer:
                fused = fused + outer_formula(outer[name], features, sentences[name])
            if name in getattr(layer, "scada_pooling", {}):
                fused = fused + pooling_formula(layer.scada_pooling[name], features, outputs.sentence_embeds)
        for name in conditioned:
            if name in inner:
                features = inner_formula(inner[name], features, sentences[name])
        assert_close(of_sentences(state), features, atol=1e-9)
    norm = base_of(model).model.video_backbone.encoder.layernorm
    with torch.no_grad():
        mean = norm(of_sentences(outputs.hidden_states[-1])).mean(dim=(2, 3))
    assert_close(outputs.last_hidden_state, mean + fused, atol=1e-9)
    return [output.numel() // (16 * 2 * 2 * 32) for output in plain]


@pytest.mark.parametrize("conditioning", [True, False])
@pytest.mark.parametrize(
    ("inner", "outer"), [([], [0, 2]), ([1], []), ([1], [0, 1, 2]), ([0, 2], [0, 1]), ([0, 1, 2], [0, 1, 2])]
)
def test_the_model_equals_the_formulas_layer_by_layer(make_model, adapt, tiny_batch, inner, outer, conditioning):
    model = adapt(make_model(), inner_layers=inner, outer_layers=outer, conditioning=conditioning)
    for name, layers in (("scada_inner", inner), ("scada_outer", outer)):
        found = [index for index, layer in enumerate(layers_of(model)) if len(getattr(layer, name, ()))]
        assert found == layers
    assert_equals_the_formulas(model, tiny_batch, {"default": conditioning})


@pytest.mark.parametrize(
    ("inner", "outer", "rows"), [([], [], [2, 2, 2]), ([], [2], [2, 2, 2]), ([1], [0], [2, 2, 3])]
)
def test_pooling_branches_next_to_others_equal_the_formulas(make_model, adapt, tiny_batch, inner, outer, rows):
    model = adapt(make_model(), inner_layers=inner, outer_layers=outer, pooling_layers=[0, 2])
    assert assert_equals_the_formulas(model, tiny_batch, {"default": True}) == rows


def test_sizes_and_number_of_weights(make_model):
    """`C = 32`, `r = 32 // 4`, `C_text = 32`, kernels of 5, counted by hand."""
    config = ScadaAdapterConfig(reduction=4, kernel_size=5, modules_to_save=None, **BOTH)
    model = get_peft_model(make_model(), config)
    inner = 32 * 8 + 8 + 32 * 8 + (8 * 5 + 8) + (8 * 8 + 8) + (8 * 32 + 32) + 1
    outer = (32 * 8 * 9 + 8) + 32 * 8 + (8 * 32 * 5 + 32)
    assert model.get_nb_trainable_parameters()[0] == inner + 2 * outer
    block = 2 * 8 + 32 * 8 + (8 * 5 + 8) + (8 * 8 + 8) + (8 * 16 + 16) + (16 * 8 + 8)
    pooling = 2 * 32 + (32 * 8 + 8) + 2 * block + 2 * 8 + (32 * 8 + 8) + (8 * 8 + 8) + (8 * 32 * 5 + 32)
    only_pooling = dataclasses.replace(config, inner_layers=[], outer_layers=[], pooling_layers=[1])
    assert get_peft_model(make_model(), only_pooling).get_nb_trainable_parameters()[0] == pooling
    config = dataclasses.replace(config, conditioning=False)
    assert get_peft_model(make_model(), config).get_nb_trainable_parameters()[0] == inner + 2 * outer - 3 * 32 * 8


# What the sentences share


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_outer_branches_encode_a_video_once_for_sixteen_sentences(make_model, adapt, dtype, atol):
    model = adapt(make_model(dtype=dtype), **OUTER)
    batch = without_labels(many_sentences(16))
    calls = count_calls([*plain_layers_of(model), base_of(model).model.video_backbone.encoder])
    together = run(model, batch)
    assert calls == [[(2, 32, 32)]] * 3 + [[(2, 16, 3, 32, 32)]]  # two clips
    for sentence in range(16):
        alone = run(model, sentences_of(batch, 0, slice(sentence, sentence + 1)))
        assert_close(together.logits[:, sentence], alone.logits[:, 0], atol=atol)
        assert_close(together.pred_segments[:, sentence], alone.pred_segments[:, 0], atol=atol)
    # The comparison means something: the adapter tells the sentences apart.
    features = run_base(model, batch).last_hidden_state
    assert (features[1:] - features[0]).abs().amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("placement", [INNER, BOTH], ids=["inner", "both"])
def test_four_sentences_equal_four_runs(make_model, adapt, placement):
    model = adapt(make_model(), **placement)
    batch = without_labels(many_sentences(4))
    together, states = run(model, batch), run_base(model, batch).last_hidden_state
    for sentence in range(4):
        one = sentences_of(batch, 0, slice(sentence, sentence + 1))
        assert_close(together.logits[:, sentence], run(model, one).logits[:, 0], atol=1e-5)
        assert_close(states[sentence : sentence + 1], run_base(model, one).last_hidden_state, atol=1e-9)
    assert (states[1:] - states[0]).abs().amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_the_batch_grows_at_the_first_inner_branch_and_not_before(make_model, adapt, tiny_batch, first):
    model = adapt(make_model(4), inner_layers=sorted({first, 3}), outer_layers="all")
    calls = count_calls(plain_layers_of(model))
    states = run_base(model, tiny_batch).hidden_states
    rows = [4 if index <= first else 6 for index in range(4)]  # clips of two videos, or of three sentences
    assert calls == [[(number, 32, 32)] for number in rows]
    assert [len(state) for state in states] == [2 if index <= first else 3 for index in range(5)]


def test_without_conditioning_the_batch_never_grows(make_model, adapt, tiny_batch):
    model = adapt(make_model(), inner_layers="all", outer_layers="all", conditioning=False)
    calls = count_calls(plain_layers_of(model))
    outputs = run_base(model, tiny_batch)
    assert calls == [[(4, 32, 32)]] * 3
    assert [len(state) for state in outputs.hidden_states] == [2] * 4
    assert torch.equal(outputs.last_hidden_state[0], outputs.last_hidden_state[1])
    assert (outputs.last_hidden_state[0] - outputs.last_hidden_state[2]).abs().max() > 1e-2


@pytest.mark.parametrize("conditioning", [True, False])
@each_placement
def test_videos_with_different_numbers_of_sentences_equal_each_alone(
    make_model, adapt, tiny_batch, placement, conditioning
):
    model = adapt(make_model(), **placement, conditioning=conditioning)
    together = run(model, tiny_batch)
    hidden = run_base(model, tiny_batch).last_hidden_state
    first, second = sentences_of(tiny_batch, 0, slice(2)), sentences_of(tiny_batch, 1, slice(1))
    for batch, logits, segments, states in (
        (first, together.logits[:1], together.pred_segments[:1], hidden[:2]),
        (second, together.logits[1:, :1], together.pred_segments[1:, :1], hidden[2:]),
    ):
        alone = run(model, batch)
        assert_close(logits, alone.logits, atol=1e-5)
        assert_close(segments, alone.pred_segments, atol=1e-5)
        assert_close(states, run_base(model, batch).last_hidden_state, atol=1e-9)


@each_placement
def test_as_many_sentences_as_videos(make_model, adapt, tiny_batch, placement):
    """`B = Q` twice: one sentence each, and two sentences of the first video and none of the second."""
    model = adapt(make_model(), **placement)
    one_each = {**without_labels(tiny_batch), "sentence_mask": torch.tensor([[1, 0], [1, 0]])}
    outputs, states = run(model, one_each), run_base(model, one_each).last_hidden_state
    for video in (0, 1):
        alone = sentences_of(without_labels(tiny_batch), video, slice(1))
        assert_close(outputs.logits[video, :1], run(model, alone).logits[0], atol=1e-5)
        assert_close(states[video : video + 1], run_base(model, alone).last_hidden_state, atol=1e-9)

    both_of_the_first = {**without_labels(tiny_batch), "sentence_mask": torch.tensor([[1, 1], [0, 0]])}
    states = run_base(model, both_of_the_first).last_hidden_state
    alone = sentences_of(without_labels(tiny_batch), 0, slice(2))
    assert_close(states, run_base(model, alone).last_hidden_state, atol=1e-9)
    assert_close(run(model, both_of_the_first).logits[0], run(model, alone).logits[0], atol=1e-5)


# What the adapter sees


def test_another_sentence_changes_states_from_the_first_inner_branch_on(make_model, adapt, tiny_batch):
    model = adapt(make_model(4), inner_layers=[2], outer_layers=[0])
    batch = sentences_of(tiny_batch, 0, slice(1))
    before = run_base(model, batch).hidden_states
    tokens = batch["input_ids"].clone()
    tokens[0, 0, 2] = tokens[0, 0, 2] % 90 + 6
    after = run_base(model, {**batch, "input_ids": tokens}).hidden_states
    changes = [(a - b).abs().max().item() for a, b in zip(after, before, strict=True)]
    assert changes[:3] == [0, 0, 0]  # the embeddings and layers 0 and 1
    assert min(changes[3:]) > 1e-4


@pytest.mark.parametrize("placement", [OUTER, POOLING], ids=["outer", "pooling"])
def test_another_sentence_changes_outer_features_and_no_state(make_model, adapt, tiny_batch, placement):
    model = adapt(make_model(), **placement)
    batch = sentences_of(tiny_batch, 0, slice(1))
    before, after = run_base(model, batch), run_base(model, {**batch, "input_ids": batch["input_ids"].flip(-1)})
    assert all(torch.equal(a, b) for a, b in zip(after.hidden_states, before.hidden_states, strict=True))
    assert (after.last_hidden_state - before.last_hidden_state).abs().max() > 1e-4


@each_placement
def test_padding_changes_nothing(make_model, adapt, tiny_batch, placement):
    model = adapt(make_model(), **placement)
    longer = without_labels(tiny_batch)
    longer["input_ids"] = torch.cat([longer["input_ids"], torch.full((2, 2, 5), 7)], dim=-1)
    longer["attention_mask"] = F.pad(longer["attention_mask"], (0, 5))
    for name in ("input_ids", "attention_mask", "sentence_mask"):  # and two sentences that are none
        longer[name] = torch.cat(
            [longer[name], longer[name][:, :1].expand(-1, 2, *[-1] * (longer[name].dim() - 2))], 1
        )
    longer["sentence_mask"][:, 2:] = 0
    keep = tiny_batch["sentence_mask"] == 1
    before, after = run(model, without_labels(tiny_batch)), run(model, longer)
    assert_close(after.logits[:, :2][keep], before.logits[keep], atol=1e-6)
    assert_close(after.pred_segments[:, :2][keep], before.pred_segments[keep], atol=1e-6)
    assert (after.logits[:, 2:].sigmoid() == 0).all()
    states = run_base(model, longer).last_hidden_state
    assert_close(states, run_base(model, tiny_batch).last_hidden_state, atol=1e-9)


@pytest.mark.parametrize("conditioning", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("branch", ["inner_layers", "outer_layers", "pooling_layers"])
def test_convolutions_over_time_cross_clips_and_not_videos(
    make_model, adapt, tiny_batch, branch, kernel_size, conditioning
):
    """Other frames in the second clip of a video reach as far into the first clip as the kernel does."""
    layers = {"inner_layers": [], "outer_layers": [], branch: [2]}
    reach = (3 if branch == "pooling_layers" else 1) * (kernel_size // 2)  # two blocks and the last convolution
    model = adapt(make_model(), **layers, kernel_size=kernel_size, conditioning=conditioning)
    pixels = tiny_batch["pixel_values_videos"].clone()
    pixels[0, 16:] = pixels[0, 16:].flip(0)
    changed = {**tiny_batch, "pixel_values_videos": pixels}

    def changed_snippets(sentence: int) -> list[int]:
        change = run_base(model, changed).last_hidden_state - run_base(model, tiny_batch).last_hidden_state
        return (change[sentence].abs().amax(-1) > 1e-9).nonzero()[:, 0].tolist()

    for sentence in (0, 1):  # both about the first video
        assert changed_snippets(sentence) == list(range(8 - reach, 16))
    assert changed_snippets(2) == []  # about the second
    with model.disable_adapter():
        assert changed_snippets(0) == list(range(8, 16))


# Gradients


def train_in_some_way(way: str, model: nn.Module, randomize_trainable) -> nn.Module:
    if way in PLACEMENTS:
        model = get_peft_model(model, ScadaAdapterConfig(**PLACEMENTS[way]))
    elif way == "without conditioning":
        model = get_peft_model(model, ScadaAdapterConfig(**BOTH, conditioning=False))
    elif way == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=["query", "value"], modules_to_save=["head"]))
    elif way == "last layer":
        model.model.requires_grad_(False)
        layers_of(model)[-1].requires_grad_(True)
    return randomize_trainable(model).train()


# How often each layer runs when checkpointed: again in the backward pass, unless nothing before its end trains.
RUNS = {
    "inner": [1, 1, 2],
    "outer": [1, 1, 1],
    "both": [1, 1, 2],
    "pooling": [1, 1, 1],
    "without conditioning": [1, 1, 2],
    "lora": [2, 2, 2],
    "full": [2, 2, 2],
    "last layer": [1, 1, 2],
}


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non_reentrant"])
@pytest.mark.parametrize("way", RUNS)
def test_checkpointing_gives_equal_gradients(make_model, randomize_trainable, tiny_batch, way, use_reentrant, before):
    """Enabled before or after `get_peft_model`, and frozen layers before the first that trains do not run again."""
    expected = gradients(train_in_some_way(way, make_model(), randomize_trainable), tiny_batch)
    model = make_model()
    if before:
        enable_checkpointing(model, use_reentrant)
    model = train_in_some_way(way, model, randomize_trainable)
    if not before:
        enable_checkpointing(model, use_reentrant)
    calls = count_calls(layer.attention for layer in plain_layers_of(model))
    actual = gradients(model, tiny_batch)
    assert [len(shapes) for shapes in calls] == RUNS[way]
    assert expected.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert_equal_gradients(actual, expected)
    assert all(gradient.abs().max() > 0 for gradient in expected.values())


@pytest.mark.parametrize("use_reentrant", [None, True, False])
@each_placement
def test_two_forward_passes_before_one_backward_pass(make_model, adapt, tiny_batch, placement, use_reentrant):
    model = adapt(make_model(), **placement).train()
    batches = [tiny_batch, {**another(tiny_batch), "sentence_mask": torch.ones(2, 2)}]
    separate = [gradients(model, batch, seed) for seed, batch in enumerate(batches)]
    if use_reentrant is not None:
        enable_checkpointing(model, use_reentrant)
    model.zero_grad()
    losses = []
    for seed, batch in enumerate(batches):
        torch.manual_seed(seed)
        losses.append(model(**batch).loss)
    sum(losses).backward()
    actual = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert_equal_gradients(actual, {name: separate[0][name] + separate[1][name] for name in separate[0]})
    assert any((separate[0][name] - separate[1][name]).abs().max() > 1e-3 for name in separate[0])


DDP = """
import os, sys, torch, modeling_scada
from torch.nn.parallel import DistributedDataParallel
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
batch = torch.load(f"{folder}/batch{rank}.pt")
for way in (None, True, False):
    model = torch.load(f"{folder}/model.pt", weights_only=False)
    if way is not None:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": way})
    parallel = DistributedDataParallel(model)
    torch.manual_seed(rank)
    parallel(**batch).loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    torch.save(gradients, f"{folder}/gradients_{way}_{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
# All is saved. Without this, gloo's threads now and then abort the interpreter while it shuts down.
os._exit(0)
"""


def test_two_processes_average_the_gradients_of_two_halves(make_model, adapt, tiny_batch, tmp_path):
    model = adapt(make_model(), **BOTH).train()
    halves = [sentences_of(tiny_batch, 0, slice(2)), sentences_of(tiny_batch, 1, slice(1))]
    torch.save(model, tmp_path / "model.pt")
    for rank, half in enumerate(halves):
        torch.save({name: tensor.clone() for name, tensor in half.items()}, tmp_path / f"batch{rank}.pt")
    run_ranks(DDP, tmp_path)
    separate = [gradients(model, half, seed) for seed, half in enumerate(halves)]
    expected = {name: (separate[0][name] + separate[1][name]) / 2 for name in separate[0]}
    for way in (None, True, False):
        for rank in range(2):
            assert_equal_gradients(torch.load(tmp_path / f"gradients_{way}_{rank}.pt"), expected)


# What is kept for the backward pass


class Kept:
    """What autograd keeps of a tensor; gone when autograd lets it go."""

    def __init__(self, tensor: torch.Tensor, place: str):
        self.tensor, self.place = tensor, place


def kept_by_place(model: nn.Module, batch: dict) -> dict[str, int]:
    """
    Bytes of activations that are alive after the forward pass of backbone and sentence encoder, by where they were
    saved: before the first branch, inside branches, or outside branches after the first has run.
    """
    places = ["before"]
    alive: weakref.WeakSet = weakref.WeakSet()
    branches = [module for module in model.modules() if isinstance(module, (InnerBranch, OuterBranch))]
    handles = [branch.register_forward_pre_hook(lambda *_: places.append("inside")) for branch in branches]
    handles += [branch.register_forward_hook(lambda *_: places.append("after")) for branch in branches]
    weights = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}

    def pack(tensor: torch.Tensor) -> Kept:
        kept = Kept(tensor, places[-1])
        if tensor.untyped_storage().data_ptr() not in weights:
            alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        outputs = base_of(model).model(**without_labels(batch))
    for handle in handles:
        handle.remove()
    storages = {(kept.place, kept.tensor.untyped_storage().data_ptr()): kept.tensor.nbytes for kept in list(alive)}
    result = {place: 0 for place in ("before", "inside", "after")}
    for (place, _), size in storages.items():
        result[place] += size
    assert outputs.last_hidden_state.grad_fn is not None or not storages
    return result


@pytest.mark.parametrize("use_reentrant", [None, True, False])
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_frozen_layers_before_the_first_branch_keep_nothing(make_model, adapt, tiny_batch, use_reentrant, before):
    def kept(**placement) -> dict[str, int]:
        model = make_model(4)
        if before and use_reentrant is not None:
            enable_checkpointing(model, use_reentrant)
        model = adapt(model, **placement).train()
        if not before and use_reentrant is not None:
            enable_checkpointing(model, use_reentrant)
        return kept_by_place(model, tiny_batch)

    outer = kept(inner_layers=[], outer_layers=[1, 3])
    assert outer["before"] == 0 and outer["inside"] > 0
    # Layers between two outer branches see nothing that trains; only the indices of the videos are kept.
    assert outer["after"] <= 8 * 3
    last = kept(inner_layers=[3], outer_layers=[])
    assert last["before"] == 0 and last["inside"] > 0
    # The counter counts: layers after an inner branch have to keep something.
    first = kept(inner_layers=[0], outer_layers=[])
    state = 3 * 16 * 2 * 2 * 32 * 8
    assert first["before"] == 0
    if use_reentrant is None:
        assert first["after"] > last["after"] + 9 * state
    else:  # their inputs alone
        assert first["after"] == last["after"] + 3 * state


def test_the_counter_sees_what_full_fine_tuning_keeps(make_model, tiny_batch):
    model = make_model(4).train()
    assert kept_by_place(model, tiny_batch)["before"] > 4 * 2 * 16 * 2 * 2 * 32 * 8
    assert kept_by_place(model.requires_grad_(False), tiny_batch) == {"before": 0, "inside": 0, "after": 0}


def test_what_outer_branches_keep_hardly_grows_with_the_sentences(make_model, adapt):
    """One more sentence costs no more than a few sequences of `N` vectors of the branch's width."""
    model = adapt(make_model(4), inner_layers=[], outer_layers="all").train()
    one, nine = (sum(kept_by_place(model, many_sentences(number)).values()) for number in (1, 9))
    per_sentence_and_branch = (nine - one) / 8 / 4
    assert 0 < per_sentence_and_branch < 4 * 16 * 4 * 8 + 32 * 8  # 4 sequences (N = 16, r = 4), and the sentence


# peft's calls


def test_only_the_adapter_and_the_head_train(make_model, capsys):
    model = get_peft_model(make_model(), ScadaAdapterConfig(**BOTH))
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    branches = {name for name, _ in model.named_parameters() if ".scada_inner." in name or ".scada_outer." in name}
    head = {name for name, _ in model.named_parameters() if ".head.modules_to_save.default." in name}
    assert branches and head and trainable == branches | head
    number = sum(weight.numel() for name, weight in model.named_parameters() if name in trainable)
    model.print_trainable_parameters()
    assert f"trainable params: {number:,} ||" in capsys.readouterr().out


SAVED = """
import sys, torch, modeling_scada
from peft import PeftModel
folder = sys.argv[1]
batch = torch.load(f"{folder}/batch.pt")
Model = modeling_scada.ScadaForTemporalGrounding
base = lambda: Model.from_pretrained(f"{folder}/base")
models = {
    "default": PeftModel.from_pretrained(base(), f"{folder}/adapter"),
    "other name": PeftModel.from_pretrained(base(), f"{folder}/adapter", adapter_name="zebra"),
    "low memory": PeftModel.from_pretrained(base(), f"{folder}/adapter", adapter_name="z", low_cpu_mem_usage=True),
    "lora": PeftModel.from_pretrained(base(), f"{folder}/lora"),
    "transformers": Model.from_pretrained(f"{folder}/by_transformers"),
    "load_adapter": base(),
}
models["load_adapter"].load_adapter(f"{folder}/by_transformers", adapter_name="zebra")
with torch.no_grad():
    outputs = {name: model.eval()(**batch) for name, model in models.items()}
    with models["other name"].disable_adapter():
        outputs["disabled"] = models["other name"](**batch)
result = {name: (output.logits, output.pred_segments) for name, output in outputs.items()}
torch.save(result, f"{folder}/result.pt")
"""


def test_saved_adapters_give_equal_outputs_in_a_new_process(
    make_model, adapt, randomize_trainable, tiny_batch, tmp_path
):
    """Saved by peft and by transformers, under the same name and another one, and LoRA."""
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "base")

    def base():
        return ScadaForTemporalGrounding.from_pretrained(tmp_path / "base")

    expected = {"disabled": run(base(), tiny_batch)}
    model = adapt(base(), **BOTH)
    model.save_pretrained(tmp_path / "adapter")
    expected |= dict.fromkeys(("default", "other name", "low memory"), run(model, tiny_batch))
    lora = get_peft_model(base(), LoraConfig(target_modules=["query", "value"], modules_to_save=["head"]))
    randomize_trainable(lora, seed=3).eval().save_pretrained(tmp_path / "lora")
    expected["lora"] = run(lora, tiny_batch)
    added = base()
    added.add_adapter(ScadaAdapterConfig(**BOTH), adapter_name="giraffe")
    randomize_trainable(added, seed=4).eval().save_pretrained(tmp_path / "by_transformers")
    expected |= dict.fromkeys(("transformers", "load_adapter"), run(added, tiny_batch))
    for folder in ("adapter", "lora", "by_transformers"):
        names = {path.name for path in (tmp_path / folder).iterdir()} - {"README.md"}
        names = {name for name in names if not name.endswith(".py")}
        assert names == {"adapter_config.json", "adapter_model.safetensors"}

    torch.save(tiny_batch, tmp_path / "batch.pt")
    run_code(SAVED, tmp_path, cwd=tmp_path)
    result = torch.load(tmp_path / "result.pt")
    assert result.keys() == expected.keys()
    for name, (logits, pred_segments) in result.items():
        assert torch.equal(logits, expected[name].logits), name
        assert torch.equal(pred_segments, expected[name].pred_segments), name
    kinds = [expected[name] for name in ("disabled", "default", "lora", "transformers")]
    assert all(differ(a, b) > 1e-2 for k, a in enumerate(kinds) for b in kinds[:k])


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@each_placement
def test_an_adapter_loads_under_another_name(make_model, adapt, tiny_batch, tmp_path, placement, low_cpu_mem_usage):
    model = adapt(make_model(), adapter_name="giraffe", **placement, conditioning=placement is not INNER)
    model.save_pretrained(tmp_path)
    folder = tmp_path / "giraffe"
    loaded = PeftModel.from_pretrained(
        make_model(), folder, adapter_name="zebra", low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert_equal_outputs(run(loaded, tiny_batch), run(model, tiny_batch))
    saved = {name.replace(".giraffe", ".zebra"): weight for name, weight in model.state_dict().items()}
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(weight, saved[name]) for name, weight in loaded.state_dict().items())


@pytest.mark.parametrize("name", ["scada", "scada_inner", "up", "weight"])
@pytest.mark.parametrize("by_transformers", [False, True])
@pytest.mark.filterwarnings("ignore:Adapter name 'scada' should not be contained in the prefix")
def test_adapters_with_names_that_are_parts_of_weights_names(
    make_model, adapt, randomize_trainable, tiny_batch, tmp_path, name, by_transformers
):
    if by_transformers:
        model, loaded = make_model(), make_model()
        model.add_adapter(ScadaAdapterConfig(**BOTH), name)
        randomize_trainable(model).save_pretrained(tmp_path)
        loaded.load_adapter(tmp_path, adapter_name="zebra")
    else:
        model = adapt(make_model(), adapter_name=name, **BOTH)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(make_model(), tmp_path / name, adapter_name="zebra")
    assert_equal_outputs(run(loaded.eval(), tiny_batch), run(model, tiny_batch))


def test_training_goes_on_from_a_saved_adapter(make_model, adapt, tiny_batch, tmp_path):
    model = adapt(make_model(), **BOTH)
    model.save_pretrained(tmp_path)
    expected = gradients(model.train(), tiny_batch)
    frozen = PeftModel.from_pretrained(make_model(), tmp_path)
    assert not any(weight.requires_grad for weight in frozen.parameters())
    loaded = PeftModel.from_pretrained(make_model(), tmp_path, is_trainable=True)
    assert_equal_gradients(gradients(loaded.train(), tiny_batch), expected)


def test_the_sentence_encoder_can_be_saved_with_the_adapter(make_model, adapt, tiny_batch, tmp_path):
    model = adapt(make_model(), **BOTH, modules_to_save=["head", "text_encoder"])
    assert any("text_encoder" in name for name in gradients(model, tiny_batch))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path, adapter_name="other").eval()
    assert_equal_outputs(run(loaded, tiny_batch), run(model, tiny_batch))
    other = adapt(make_model(), **BOTH)  # with the sentence encoder as it was
    assert (
        run_base(other, tiny_batch).sentence_embeds - run_base(model, tiny_batch).sentence_embeds
    ).abs().max() > 0.01


def test_the_base_model_alone_can_be_adapted(make_model, adapt, tiny_batch, tmp_path):
    model = get_peft_model(make_model(), ScadaAdapterConfig(**BOTH))
    alone = adapt(make_model().model, **BOTH)
    branches = {name: weight for name, weight in alone.named_parameters() if ".scada_" in name}
    with torch.no_grad():
        for name, weight in branches.items():
            model.get_parameter(name.replace("base_model.model.", "base_model.model.model.")).copy_(weight)
    expected = run_base(model, tiny_batch).last_hidden_state
    assert torch.equal(run(alone, without_labels(tiny_batch)).last_hidden_state, expected)
    alone.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model().model, tmp_path, adapter_name="other").eval()
    assert torch.equal(run(loaded, without_labels(tiny_batch)).last_hidden_state, expected)


@pytest.mark.smoke
def test_two_adapters_of_different_placement_take_turns(make_model, adapt, randomize_trainable, tiny_batch):
    """The second is called "default", as layers without any adapter are by default."""
    base = run(make_model(), tiny_batch)
    model = adapt(make_model(), adapter_name="first", **BOTH)
    first = run(model, tiny_batch)
    second_config = ScadaAdapterConfig(inner_layers=[0, 2], outer_layers=[1], reduction=4, kernel_size=5)
    alone = make_model()
    torch.manual_seed(4)
    second_alone = run(randomize_trainable(get_peft_model(alone, second_config), seed=8).eval(), tiny_batch)

    torch.manual_seed(4)
    model.add_adapter("default", second_config)
    assert model.active_adapters == ["first"]
    assert_equal_outputs(run(model, tiny_batch), first)
    model.set_adapter("default")
    randomize_trainable(model, seed=8).eval()
    second = run(model, tiny_batch)
    assert_equal_outputs(second, second_alone)
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trainable and all(".default." in name for name in trainable)
    model.set_adapter("first")
    assert_equal_outputs(run(model, tiny_batch), first)
    model.set_adapter("default")
    assert_equal_outputs(run(model, tiny_batch), second)
    with model.disable_adapter():
        assert_equal_outputs(run(model, tiny_batch), base)
    assert_equal_outputs(run(model, tiny_batch), second)
    assert min(differ(first, base), differ(second, base), differ(first, second)) > 1e-2

    model.delete_adapter("default")
    assert not [name for name, _ in model.named_parameters() if ".default." in name]
    assert list(model.peft_config) == model.active_adapters == ["first"]
    assert_equal_outputs(run(model, tiny_batch), first)
    with pytest.raises(ValueError, match="default"):
        model.delete_adapter("default")


@pytest.mark.smoke
def test_deleting_the_only_adapter_gives_the_base_model(make_model, adapt, tiny_batch):
    model = adapt(make_model(), **BOTH)
    model.delete_adapter("default")
    base = model.base_model.model  # the peft model itself cannot run without any adapter, of whatever method
    assert not [name for name, _ in base.named_parameters() if "default" in name]
    assert_equal_outputs(run(base, tiny_batch), run(make_model(), tiny_batch))


@pytest.mark.parametrize("placement", [INNER, BOTH, BOTH | {"pooling_layers": [0]}], ids=["inner", "both", "pooling"])
def test_several_active_adapters_add_up(make_model, tiny_batch, randomize_trainable, placement):
    """Inner branches one after the other, outer ones as a sum; the second alone is without conditioning."""
    model = get_peft_model(make_model(), ScadaAdapterConfig(**placement, modules_to_save=None), adapter_name="one")
    second = {"inner_layers": [1, 2], "outer_layers": [0, 1], "conditioning": False, "modules_to_save": None}
    model.add_adapter("two", ScadaAdapterConfig(**second))
    for order in (["one", "two"], ["two", "one"]):
        model.base_model.set_adapter(order)
        randomize_trainable(model).eval()
        rows = assert_equals_the_formulas(model, tiny_batch, {name: name == "one" for name in order})
        assert rows == [2, 2, 3]


def test_unloading_gives_plain_layers_and_keeps_the_trained_head(make_model, adapt, tiny_batch):
    model = adapt(make_model(), **BOTH)
    head = copy.deepcopy(base_of(model).head.modules_to_save["default"])
    expected = make_model()
    expected.head = head
    unloaded = model.unload()
    assert type(unloaded) is ScadaForTemporalGrounding
    assert not [name for name, _ in unloaded.named_modules() if "scada" in name or "modules_to_save" in name]
    assert unloaded.state_dict().keys() == make_model().state_dict().keys()
    assert_equal_outputs(run(unloaded, tiny_batch), run(expected, tiny_batch))
    assert differ(run(unloaded, tiny_batch), run(make_model(), tiny_batch)) > 1e-2
    again = adapt(unloaded, **OUTER)  # and it can be adapted again
    assert run(again, tiny_batch).loss.isfinite()


@pytest.mark.parametrize("call", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_with_a_reason(make_model, adapt, tiny_batch, call):
    model = adapt(make_model(), **BOTH)
    before = run(model, tiny_batch)
    with pytest.raises(ValueError, match="cannot be merged: its update depends on the sentence .*unload()"):
        getattr(model, call)()
    assert_equal_outputs(run(model, tiny_batch), before)


# transformers' calls


@pytest.mark.smoke
def test_adapters_of_transformers(make_model, randomize_weights, randomize_trainable, tiny_batch, tmp_path):
    model = make_model()
    base = run(model, tiny_batch)
    model.add_adapter(ScadaAdapterConfig(**BOTH), adapter_name="first")
    assert_equal_outputs(run(model, tiny_batch), base)
    randomize_trainable(model, seed=1)
    first = run(model, tiny_batch)
    model.save_pretrained(tmp_path / "first")

    model.add_adapter(ScadaAdapterConfig(inner_layers="last 1", outer_layers="all", reduction=4), "second")
    assert model.active_adapters() == ["second"]
    # By name: peft leaves the first adapter's head trainable, though it no longer runs.
    randomize_weights(nn.ParameterList(weight for name, weight in model.named_parameters() if ".second." in name))
    second = run(model, tiny_batch)
    model.load_adapter(tmp_path / "first", adapter_name="third")
    outputs = {"first": first, "second": second, "third": first}
    for name in ("first", "third", "second", "third", "first"):
        model.set_adapter(name)
        assert model.active_adapters() == [name]
        assert_equal_outputs(run(model, tiny_batch), outputs[name])

    model.disable_adapters()
    assert_equal_outputs(run(model, tiny_batch), base)
    model.enable_adapters()
    assert_equal_outputs(run(model, tiny_batch), first)  # the trained head is back too
    # It means something: they differ, and so do the heads alone.
    assert min(differ(first, base), differ(second, base), differ(first, second)) > 1e-2
    heads = model.head.modules_to_save
    assert not torch.equal(heads["first"].projection.weight, model.head.original_module.projection.weight)

    model.delete_adapter("first")
    model.set_adapter("second")
    assert_equal_outputs(run(model, tiny_batch), second)
    model.delete_adapter(["second", "third"])
    assert_equal_outputs(run(model, tiny_batch), base)
    assert not [name for name, _ in model.named_parameters() if re.search("first|second|third", name)]


@pytest.fixture
def transformers_wants_another_peft(monkeypatch):
    """As of transformers 5.24.0, which asks for a peft that is not released."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0")


@pytest.mark.smoke
def test_adapters_do_not_depend_on_the_peft_that_transformers_asks_for(
    transformers_wants_another_peft, make_model, randomize_trainable, tiny_batch, tmp_path, recwarn, caplog
):
    model = make_model()
    model.save_pretrained(tmp_path / "base")
    base = run(model, tiny_batch)
    with pytest.raises(ValueError, match="peft|PEFT"):
        PreTrainedModel.add_adapter(model, ScadaAdapterConfig(**BOTH))  # so the version is looked at indeed
    model = ScadaForTemporalGrounding.from_pretrained(tmp_path / "base")
    model.add_adapter(ScadaAdapterConfig(**BOTH), "first")
    expected = run(randomize_trainable(model).eval(), tiny_batch)
    weights = model.get_adapter_state_dict()
    model.save_pretrained(tmp_path / "adapter")

    loaded, info = ScadaForTemporalGrounding.from_pretrained(tmp_path / "adapter", output_loading_info=True)
    assert not any(info.values())
    caplog.clear()
    loaded.load_adapter(tmp_path / "adapter", "second")
    assert not caplog.records and not [warning for warning in recwarn if "peft_config" in str(warning.message)]
    assert loaded.active_adapters() == ["second"] and list(loaded.peft_config) == ["default", "second"]
    assert not any(weight.requires_grad for weight in loaded.parameters()) and not loaded.training
    for name in ("second", "default"):
        loaded.set_adapter(name)
        assert loaded.active_adapters() == [name]
        assert_equal_outputs(run(loaded, tiny_batch), expected)
        assert loaded.get_adapter_state_dict().keys() == weights.keys()
    loaded.disable_adapters()
    assert_equal_outputs(run(loaded, tiny_batch), base)
    loaded.enable_adapters()
    loaded.delete_adapter("second")
    assert_equal_outputs(run(loaded, tiny_batch), expected)
    loaded.delete_adapter(["default"])
    assert_equal_outputs(run(loaded, tiny_batch), base)


@pytest.mark.smoke
def test_an_adapter_that_does_not_fit_is_refused_and_leaves_nothing(make_model, randomize_trainable, tiny_batch):
    model = make_model()
    model.add_adapter(ScadaAdapterConfig(**BOTH))
    weights = randomize_trainable(model).get_adapter_state_dict()
    config = model.peft_config["default"]
    head = next(name for name in weights if name.startswith("head."))
    branch = next(name for name in weights if name.endswith("scada_inner.gamma"))
    changed = {
        f"missing: 1, such as {head}": {name: value for name, value in weights.items() if name != head},
        r"missing: 1, such as .*scada_inner\.mine\.gamma": {
            name: value for name, value in weights.items() if name != branch
        },
        f"of another shape: 1, such as {branch}": weights | {branch: torch.zeros(1, 2, 3)},
        "unexpected: 1, such as head.further": weights | {"head.further": torch.zeros(1)},
    }
    other = make_model()
    base = run(other, tiny_batch)
    for message, state_dict in changed.items():
        with pytest.raises(ValueError, match=f"The adapter mine does not belong to this model.*{message}"):
            other.load_adapter(adapter_name="mine", peft_config=config, adapter_state_dict=state_dict)
        assert_equal_outputs(run(other, tiny_batch), base)
    other.load_adapter(adapter_name="mine", peft_config=config, adapter_state_dict=weights)
    assert_equal_outputs(run(other, tiny_batch), run(model.eval(), tiny_batch))


@pytest.mark.smoke
def test_calls_about_adapters_that_are_not_there_say_so(make_model, tmp_path):
    model = make_model()
    for call in (
        model.active_adapters,
        model.enable_adapters,
        model.disable_adapters,
        model.get_adapter_state_dict,
        lambda: model.set_adapter("mine"),
        lambda: model.delete_adapter("mine"),
    ):
        with pytest.raises(ValueError, match="has no adapter; load one"):
            call()
    model.add_adapter(ScadaAdapterConfig(**BOTH), "mine")
    for call in (model.set_adapter, model.delete_adapter, model.get_adapter_state_dict):
        with pytest.raises(ValueError, match=r"no adapters \['other'\]; it has \['mine'\]"):
            call("other")
    with pytest.raises(ValueError, match="'mine', which the model already has"):
        model.add_adapter(ScadaAdapterConfig(**BOTH), "mine")
    with pytest.raises(TypeError, match="Received a dict as `adapter_config`"):
        model.add_adapter({"peft_type": "SCADA"})
    with pytest.raises(ValueError, match="Pass `peft_model_id`"):
        model.load_adapter()
    with pytest.raises(TypeError, match="hotswap"):
        model.load_adapter(tmp_path, hotswap=True)


def test_an_adapter_loaded_beside_another_runs_with_its_own_head(
    make_model, randomize_trainable, tiny_batch, tmp_path
):
    model = make_model()
    model.add_adapter(ScadaAdapterConfig(**BOTH), adapter_name="first")
    expected = run(randomize_trainable(model), tiny_batch)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, adapter_name="second")
    assert model.active_adapters() == ["second"]
    assert_equal_outputs(run(model, tiny_batch), expected)


@pytest.mark.smoke
def test_an_adapter_of_transformers_trains(make_model, tiny_batch):
    """What trains after `add_adapter` is the adapter and the head, with the gradients that peft gives."""
    model, other = make_model(), make_model()
    model.add_adapter(ScadaAdapterConfig(**BOTH))
    other = get_peft_model(other, ScadaAdapterConfig(**BOTH))
    with torch.no_grad():
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            one.add_(0.05)
            two.copy_(one)
    expected = gradients(other.train(), tiny_batch)
    actual = gradients(model.train(), tiny_batch)
    assert_equal_gradients({f"base_model.model.{name}": gradient for name, gradient in actual.items()}, expected)


# Copies


@pytest.mark.parametrize("kind", ["deepcopy", "pickle", "torch.save"])
def test_a_model_can_be_copied_after_a_training_step(make_model, adapt, tiny_batch, tmp_path, kind):
    """Also where the sentence encoder trains, so that the sentences a layer was given are part of a graph."""
    model = adapt(make_model(), **BOTH)
    base_of(model).model.text_encoder.requires_grad_(True)
    loss = model.train()(**tiny_batch).loss
    loss.backward()
    model(**tiny_batch)  # a graph that is still there
    model.zero_grad()
    if kind == "deepcopy":
        copied = copy.deepcopy(model)
    elif kind == "pickle":
        copied = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, tmp_path / "model.pt")
        copied = torch.load(tmp_path / "model.pt", weights_only=False)
    assert_equal_gradients(gradients(copied, tiny_batch), gradients(model, tiny_batch))
    assert_equal_outputs(run(copied.eval(), tiny_batch), run(model.eval(), tiny_batch))
    # They share nothing.
    with torch.no_grad():
        layers_of(copied)[1].scada_inner["default"].gamma.zero_()
    assert differ(run(copied, tiny_batch), run(model, tiny_batch)) > 1e-3


# LoRA on the same model


@pytest.mark.smoke
def test_lora_trains_saves_and_loads(make_model, tiny_batch, tmp_path):
    lora = LoraConfig(target_modules=["query", "value"], modules_to_save=["head"])
    model = get_peft_model(make_model(dtype=torch.float32), lora)
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=5e-3)
    before = run(model.eval(), tiny_batch)
    for _ in range(8):
        optimizer.zero_grad()
        model(**tiny_batch).loss.backward()
        optimizer.step()
    after = run(model, tiny_batch)
    assert after.loss < 0.8 * before.loss
    lora_weights = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert lora_weights and all(weight.abs().max() > 0 for weight in lora_weights)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(dtype=torch.float32), tmp_path, adapter_name="other").eval()
    assert_equal_outputs(run(loaded, tiny_batch), after)


@each_placement
def test_a_few_steps_lower_the_loss(make_model, tiny_batch, placement):
    """From a fresh adapter, whose zeros have to be left, with the head as it is."""
    torch.manual_seed(0)
    config = ScadaAdapterConfig(**placement, reduction=4, modules_to_save=None)
    model = get_peft_model(make_model(dtype=torch.float32), config)
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    before = run(model.eval(), tiny_batch).loss
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=1e-2)
    for _ in range(12):
        optimizer.zero_grad()
        model(**tiny_batch).loss.backward()
        optimizer.step()
    assert run(model, tiny_batch).loss < 0.9 * before
    state = dict(model.named_parameters())
    assert all(torch.equal(state[name], weight) for name, weight in frozen.items())
    gates = [weight for name, weight in state.items() if "gate.projection" in name]
    assert gates and all(weight.abs().max() > 0 for weight in gates)


# Modes


def test_training_mode_with_an_adapter(make_model, adapt, tiny_batch):
    model = adapt(make_model(), **BOTH).train()
    base = base_of(model)
    requires_grad = {name: weight.requires_grad for name, weight in model.named_parameters()}
    assert not any(module.training for module in base.model.text_encoder.modules())  # frozen: without dropout
    assert base.head.modules_to_save["default"].training and base.model.video_backbone.training
    assert run(model, tiny_batch).logits.shape == (2, 2, 32)
    sentences = run_base(model, tiny_batch).sentence_embeds
    model.eval()
    assert not any(module.training for module in model.modules())
    assert run(model, tiny_batch).logits.shape == (2, 2, 136)
    assert torch.equal(run_base(model, tiny_batch).sentence_embeds, sentences)
    model.train()
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == requires_grad
    assert model.active_adapters == ["default"] and not layers_of(model)[1].disable_adapters

    base.model.text_encoder.requires_grad_(True)
    model.train()
    assert all(module.training for module in base.model.text_encoder.modules())


def test_a_trained_sentence_encoder_gets_its_gradient_through_the_adapter(make_model, adapt, tiny_batch):
    """By finite differences, with the head's own use of the sentence cut off."""
    model = adapt(make_model(), **BOTH)
    base = base_of(model).model
    base.text_encoder.requires_grad_(True)
    weight = base.text_encoder.transformer.layer[0].ffn.lin1.bias
    target = torch.randn(3, 16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = without_labels(tiny_batch)

    def value() -> torch.Tensor:
        return (base(**batch).last_hidden_state * target).sum()

    for use_reentrant in (None, True, False):
        model.zero_grad()
        if use_reentrant is not None:
            enable_checkpointing(model, use_reentrant)
        model.train()
        base.text_encoder.eval()  # without dropout
        value().backward()
        analytic = weight.grad[:4].clone()
        numeric = torch.zeros(4, dtype=torch.float64)
        with torch.no_grad():
            for index in range(4):
                for sign in (1, -1):
                    weight[index] += sign * 1e-5
                    numeric[index] += sign * value() / 2e-5
                    weight[index] -= sign * 1e-5
        assert analytic.abs().max() > 1e-4
        torch.testing.assert_close(analytic, numeric, rtol=1e-4, atol=1e-6)


def test_a_compiled_model_equals_the_model_on_two_batches_in_a_row(make_model, adapt, tiny_batch):
    model = adapt(make_model(2), inner_layers=[1], outer_layers=[0, 1])
    batches = [tiny_batch, another(tiny_batch)]
    expected = [(run(model, batch), gradients(model, batch)) for batch in batches]
    assert differ(expected[0][0], expected[1][0]) > 1e-2
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for batch, (outputs, expected_gradients) in zip(batches, expected, strict=True):
        model.zero_grad()
        actual = compiled(**batch)
        assert_close(actual.logits, outputs.logits, atol=1e-5)
        assert_close(actual.pred_segments, outputs.pred_segments, atol=1e-5)
        actual.loss.backward()
        found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        assert_equal_gradients(found, expected_gradients)
    torch.compiler.reset()


# The backbone alone


@each_placement
def test_the_backbone_alone_is_refused_while_an_adapter_is_active(make_model, adapt, tiny_batch, placement):
    model = adapt(make_model(), **placement)
    backbone = base_of(model).model.video_backbone
    pixels = tiny_batch["pixel_values_videos"]
    with pytest.raises(RuntimeError, match="Received features without sentences: .*Call the model, or disable"):
        backbone(pixels)
    expected = run(model, tiny_batch)
    with pytest.raises(RuntimeError, match="Received features without sentences: .*Call the model, or disable"):
        backbone(pixels[:1])
    # Inside a call of the model there are sentences, but of other videos.
    handle = layers_of(model)[-1].register_forward_hook(lambda *_: handle.remove() or backbone(pixels[:1]))
    with pytest.raises(RuntimeError, match=r"Received features of shape \(2, 32, 32\); expected 2 videos"):
        run(model, tiny_batch)
    assert_equal_outputs(run(model, tiny_batch), expected)  # and the model goes on
    with model.disable_adapter():
        features, _ = backbone(pixels[:1])
    plain, _ = make_model().model.video_backbone(pixels[:1])
    assert torch.equal(features, plain)


# Precision


@pytest.mark.parametrize("conditioning", [True, False])
@each_placement
def test_float32_branches_on_a_bfloat16_model(make_model, adapt, tiny_batch, placement, conditioning):
    model = adapt(make_model(dtype=torch.bfloat16), **placement, conditioning=conditioning).train()
    dtypes = {weight.dtype for name, weight in model.named_parameters() if "scada_" in name}
    assert dtypes == {torch.float32}
    outputs = run_base(model, tiny_batch)
    assert outputs.last_hidden_state.dtype == torch.bfloat16
    assert {state.dtype for state in outputs.hidden_states} == {torch.bfloat16}
    found = gradients(model, tiny_batch)
    assert found.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert all(gradient.abs().max() > 0 for name, gradient in found.items() if "scada_" in name)


def test_a_bfloat16_model_is_near_its_float32_one(make_model, adapt, tiny_batch):
    keep = tiny_batch["sentence_mask"] == 1
    single = run(adapt(make_model(dtype=torch.float32), **BOTH), tiny_batch).logits[keep]
    half = run(adapt(make_model(dtype=torch.bfloat16), **BOTH), tiny_batch).logits[keep]
    assert 0 < (half - single).abs().mean() < 0.1 * single.std()


@pytest.mark.parametrize("use_reentrant", [None, True, False])
def test_autocast_trains_a_step(make_model, adapt, tiny_batch, use_reentrant):
    model = adapt(make_model(dtype=torch.float32), **BOTH).train()
    expected = gradients(model, tiny_batch)
    if use_reentrant is not None:
        enable_checkpointing(model, use_reentrant)
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**tiny_batch).loss
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    assert all(gradient.isfinite().all() for gradient in found.values())
    a, b = (torch.cat([tensors[name].flatten() for name in expected]) for tensors in (found, expected))
    assert F.cosine_similarity(a, b, dim=0) > 0.95
    before = run(model.eval(), tiny_batch).loss
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 1e-5 * weight.grad
    assert run(model, tiny_batch).loss < before


# --- the depth of the backbone ---


@pytest.mark.parametrize("num_layers", [2, 4, 6])
def test_an_adapter_belongs_to_the_depth_it_was_trained_on(num_layers, tiny_config, randomize_weights, tmp_path):
    """All ways to load it say how many layers each has; a configuration that was never saved serves any depth."""

    def make(num_layers, seed=0):
        config = copy.deepcopy(tiny_config)
        config.video_config.num_hidden_layers = num_layers
        torch.manual_seed(seed)
        return ScadaForTemporalGrounding(config)

    config = ScadaAdapterConfig(reduction=4)
    get_peft_model(make(6), config)
    make(4).save_pretrained(tmp_path / "base")
    base = ScadaForTemporalGrounding.from_pretrained(tmp_path / "base")
    randomize_weights(get_peft_model(base, config)).save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["num_layers"] == 4

    make(num_layers).save_pretrained(tmp_path / "base")
    ways = [
        lambda: PeftModel.from_pretrained(make(num_layers), tmp_path / "adapter"),
        lambda: make(num_layers).load_adapter(str(tmp_path / "adapter")),
        lambda: ScadaForTemporalGrounding.from_pretrained(tmp_path / "adapter"),
    ]
    for load in ways:
        if num_layers == 4:
            load()
        else:
            message = f"backbone of 4 layers, but this backbone has {num_layers} layers.*base"
            with pytest.raises(ValueError, match=message):
                load()


def test_an_adapter_without_a_depth_in_its_configuration_loads(tiny_model, tmp_path):
    """As those that were saved before."""
    get_peft_model(tiny_model, ScadaAdapterConfig(reduction=4)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    del config["num_layers"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert ScadaAdapterConfig.from_pretrained(tmp_path).num_layers is None
