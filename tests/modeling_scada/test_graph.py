"""The model as a graph: no wait for a device, `torch.compile` without a break, `torch.export` without the package."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from modeling_scada import ScadaForTemporalGrounding, TuningArguments
from modeling_scada.training.tuning import prepare_tuning


MODES = [
    ("frozen", "both"),
    ("full", "both"),
    ("tia", "both"),
    ("scada", "outer"),
    ("scada", "inner"),
    ("scada", "both"),
    ("scada", "pooling"),
]
each_mode = pytest.mark.parametrize(("tuning", "branches"), MODES)
# To compile takes ten seconds.
each_mode_most_slow = pytest.mark.parametrize(
    ("tuning", "branches"),
    [mode if mode == ("scada", "pooling") else pytest.param(*mode, marks=pytest.mark.slow) for mode in MODES],
)


@pytest.fixture
def make_model(tiny_config, randomize_weights):
    """With random weights everywhere, without dropout, and with more proposals than are kept."""

    def make(tuning: str, branches: str) -> torch.nn.Module:
        torch.manual_seed(0)
        tiny_config.text_config.dropout = tiny_config.text_config.attention_dropout = 0.0
        tiny_config.num_kept_proposals = 20
        model = ScadaForTemporalGrounding(tiny_config)
        return randomize_weights(prepare_tuning(model, TuningArguments(tuning=tuning, scada_branches=branches)))

    return make


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    torch._dynamo.reset()


@each_mode
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_forward_pass_waits_for_nothing(make_model, tiny_batch, tuning, branches, training):
    """There are no values on the device `meta`: whoever asks for one, or for a shape that depends on one, fails."""
    model = make_model(tuning, branches).train(training).to("meta")
    batch = {name: tensor.to("meta") for name, tensor in tiny_batch.items() if training or name != "labels"}
    on_cpu = {"sentence_mask": tiny_batch["sentence_mask"], "attention_mask": torch.ones(2, 2, 6, dtype=torch.long)}
    outputs = model(**batch | on_cpu)
    assert outputs.logits.shape == (2, 2, 32 if training else 20) and outputs.logits.device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # where it would have to wait
        model(**batch)


def test_masks_may_be_anywhere(make_model, tiny_batch):
    """Those not given are all ones."""
    model = make_model("frozen", "both").eval()
    ones = {name: torch.ones_like(tiny_batch[name]) for name in ("attention_mask", "sentence_mask")}
    with torch.no_grad():
        expected = model(**tiny_batch | ones).logits
        assert torch.equal(model(**tiny_batch | dict.fromkeys(ones)).logits, expected)


@each_mode_most_slow
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_compiled_in_one_graph(make_model, tiny_batch, tuning, branches, training):
    """`fullgraph` refuses any break. The second video's padding sentence is computed there, and must not matter."""
    model = make_model(tuning, branches).train(training)
    batch = {name: tensor for name, tensor in tiny_batch.items() if training or name != "labels"}
    torch.manual_seed(1)  # of the proposals that are drawn
    expected = model(**batch)
    torch.manual_seed(1)
    found = torch.compile(model, backend="eager", fullgraph=True)(**batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pred_segments, expected.pred_segments, rtol=0, atol=1e-5)
    if training:
        torch.testing.assert_close(found.loss, expected.loss)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        pairs = zip(torch.autograd.grad(found.loss, weights), torch.autograd.grad(expected.loss, weights), strict=True)
        for gradient, reference in pairs:
            torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tuning", [pytest.param("full", marks=pytest.mark.slow), "scada"])
def test_bytes_are_normalized_in_the_graph(make_model, tiny_batch, tuning):
    """Without a wait, a break or a graph of its own for mean and deviation; `torch.export` takes it too."""
    model = make_model(tuning, "both").eval()
    model.config.image_mean, model.config.image_deviation = [0.1, 0.5, 0.7], [0.2, 0.4, 0.9]
    pixels = torch.randint(0, 256, tiny_batch["pixel_values_videos"].shape, dtype=torch.uint8)
    batch = {name: tensor for name, tensor in tiny_batch.items() if name != "labels"} | {"pixel_values_videos": pixels}
    with torch.no_grad():
        expected = model(**batch).logits
        found = torch.compile(model, backend="eager", fullgraph=True)(**batch).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        model.config.return_dict = False
        program = torch.export.export(model, (), batch)
        torch.testing.assert_close(program.module()(**batch)[0], expected, rtol=1e-5, atol=1e-5)
        on_meta = {name: tensor.to("meta") for name, tensor in batch.items() if name not in ("sentence_mask",)}
        masks = {"sentence_mask": batch["sentence_mask"], "attention_mask": torch.ones(2, 2, 6, dtype=torch.long)}
        assert model.to("meta")(**on_meta | masks)[0].shape == expected.shape


@pytest.mark.parametrize(
    ("tuning", "branches"),
    [
        pytest.param("frozen", "both", marks=pytest.mark.slow),
        pytest.param("scada", "both", marks=pytest.mark.slow),
        ("scada", "pooling"),
    ],
)
def test_an_exported_model_runs_without_the_package(make_model, tiny_batch, tmp_path, tuning, branches):
    model = make_model(tuning, branches).eval()
    inputs = {name: tensor for name, tensor in tiny_batch.items() if name != "labels"}
    with torch.no_grad():
        expected = model(**inputs)
        model.config.return_dict = False  # the output's class would be the package's
        program = torch.export.export(model, (), inputs)
    torch.export.save(program, tmp_path / "model.pt2")
    torch.save(inputs, tmp_path / "inputs.pt")
    code = (
        "import sys, torch\n"
        "model = torch.export.load('model.pt2').module()\n"
        "logits, segments = model(**torch.load('inputs.pt'))\n"
        "assert not {'modeling_scada', 'processing', 'transformers'} & set(sys.modules)\n"
        "torch.save([logits, segments], 'outputs.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    logits, segments = torch.load(tmp_path / "outputs.pt")
    torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(segments, expected.pred_segments, rtol=0, atol=1e-5)


COMPILED_BRANCH = """
import sys, torch
from modeling_scada.adapter_scada import Condition, InnerBranch

num_sentences = int(sys.argv[1])
torch.manual_seed(0)
torch.set_num_threads(2)
branch = InnerBranch(32, 4, 8, 3)
for parameter in branch.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
features = torch.randn(1, 32, 2, 2, 32, requires_grad=True)
condition = Condition(torch.randn(num_sentences, 8), torch.zeros(num_sentences, dtype=torch.long), None, False)
weights = torch.randn(num_sentences, 32, 2, 2, 32)
expected, found = (
    torch.autograd.grad((run(features, condition) * weights).sum(), [features, *branch.parameters()])
    for run in (branch, torch.compile(branch))
)
for gradient, reference in zip(found, expected, strict=True):
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-4)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch.compile's kernels is not installed")
@pytest.mark.parametrize("num_sentences", [1, 3])
def test_gradients_of_a_compiled_branch(num_sentences, tmp_path):
    """By the default compiler, on two threads; in a process of its own, as wrong kernels end it."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILED_BRANCH, str(num_sentences)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.stdout == "equal\n", done.stderr
