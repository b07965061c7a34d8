"""One model for many threads: answers, gradients, copies and errors while other threads call it too."""

import copy
import itertools
import pickle
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import test_adapter_scada
import torch
from peft import LoraConfig, get_peft_model
from test_adapter_scada import (
    BOTH,
    INNER,
    OUTER,
    POOLING,
    RUNS,
    another,
    assert_equal_gradients,
    assert_equal_outputs,
    base_of,
    enable_checkpointing,
    layers_of,
    many_sentences,
    plain_layers_of,
    run,
    run_ranks,
    sentences_of,
    train_in_some_way,
    without_labels,
)
from torch import nn
from transformers import pipeline

from modeling_scada import ScadaAdapterConfig


# fixtures
make_model = test_adapter_scada.make_model
randomize_trainable = test_adapter_scada.randomize_trainable
adapt = test_adapter_scada.adapt

ADAPTERS = {
    "inner": ScadaAdapterConfig(**INNER),
    "outer": ScadaAdapterConfig(**OUTER),
    "both": ScadaAdapterConfig(**BOTH),
    "pooling": ScadaAdapterConfig(**POOLING),
    "tia": ScadaAdapterConfig(**INNER, conditioning=False),
    "lora": LoraConfig(target_modules=["query", "value"], modules_to_save=["head"]),
}
each_adapter = pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)


@pytest.fixture(autouse=True)
def switching_all_the_time():
    """Threads take turns after 10 microseconds rather than 5 milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def make_adapted(make_model, randomize_trainable):
    """`make_adapted(config, dtype=torch.float32)`: a tiny model with a peft adapter of random weights."""

    def make(config, dtype: torch.dtype = torch.float32) -> nn.Module:
        model = get_peft_model(make_model(dtype=dtype), copy.deepcopy(config))
        return randomize_trainable(model, seed=3).eval()

    return make


@pytest.fixture
def batches(tiny_batch) -> list[dict]:
    """Five batches of one or two videos and one to five sentences."""
    batches = [tiny_batch, another(tiny_batch), many_sentences(1), many_sentences(5), many_sentences(2, seed=8)]
    return [without_labels(batch) for batch in batches]


def in_threads(function: Callable, number_of_calls: int = 200, number_of_threads: int = 8) -> list:
    """What `function(k)` gives for k from 0 on, called by many threads."""
    with ThreadPoolExecutor(number_of_threads) as pool:
        return list(pool.map(function, range(number_of_calls)))


@contextmanager
def beside(*functions: Callable[[], None]):
    """Other threads do this over and over again; what fails in them fails here."""
    stop, rounds = threading.Event(), [0] * len(functions)

    def repeat(index: int) -> None:
        while not stop.is_set():
            functions[index]()
            rounds[index] += 1

    with ThreadPoolExecutor(len(functions)) as pool:
        futures = [pool.submit(repeat, index) for index in range(len(functions))]
        try:
            yield
        finally:
            stop.set()
        for future in futures:
            future.result()
    assert all(rounds), rounds  # they did run


def features_of(model: nn.Module, batch: dict, **kwargs):
    """Outputs of the `ScadaModel` inside, which draws no proposals, so that training is the same each time."""
    return base_of(model).model(**without_labels(batch), **kwargs)


def calls(model: nn.Module, batches: list[dict]) -> Callable[[], None]:
    """A function that asks for one batch after the other, and checks nothing."""
    order = itertools.cycle(batches)

    def call() -> None:
        with torch.no_grad():
            features_of(model, next(order))

    return call


def training(model: nn.Module, batch: dict) -> Callable[[], None]:
    optimizer = torch.optim.SGD((weight for weight in model.parameters() if weight.requires_grad), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


# Answers


@each_adapter
@pytest.mark.parametrize(
    "beside_training", [pytest.param(False, marks=pytest.mark.slow), True], ids=["alone", "beside_training"]
)
def test_two_hundred_calls_of_eight_threads_give_the_answers_of_one(
    make_adapted, batches, tiny_batch, config, beside_training
):
    model = make_adapted(config)
    expected = [run(model, batch) for batch in batches]

    def call(index: int):
        return run(model, batches[index % 5])

    if beside_training:
        copied = copy.deepcopy(model).train()
        before = {name: weight.clone() for name, weight in copied.named_parameters() if weight.requires_grad}
        with beside(training(copied, tiny_batch)):
            outputs = in_threads(call)
        assert any(not torch.equal(copied.get_parameter(name), weight) for name, weight in before.items())
    else:
        outputs = in_threads(call)
    for index, actual in enumerate(outputs):
        assert_equal_outputs(actual, expected[index % 5])


@each_adapter
def test_a_pipeline_serves_a_pool_of_threads(make_adapted, tiny_processor, make_clip, config):
    """Twenty threads, five videos, as a server does; arguments of a call are that call's too."""
    pipe = pipeline("temporal-grounding", model=make_adapted(config), processor=tiny_processor)
    videos = [make_clip(f"{k}.mp4", num_frames=20 + 10 * k, first_code=30 * k) for k in range(5)]
    sentences = ["a cat", "the dog runs away.", "it is 7", ["a", "the door opens"], "somebody sits down on the floor"]

    def ask(index: int):
        return pipe(videos[index % 5], sentences[index % 5], top_k=1 + index % 3, nms=None if index % 2 else 0.5)

    expected = [ask(index) for index in range(30)]
    assert in_threads(ask, number_of_calls=60, number_of_threads=20) == expected * 2
    # The comparison means something: five videos, asked in six ways of which some may have the same answer.
    assert len({str(answer) for answer in expected}) > 10


@pytest.mark.parametrize("config", [None, *ADAPTERS.values()], ids=["none", *ADAPTERS])
def test_hidden_states_are_those_of_the_call(make_model, make_adapted, batches, config):
    model = make_model(dtype=torch.float32) if config is None else make_adapted(config)
    expected = [run(model, batch, output_hidden_states=True).hidden_states for batch in batches]

    def call(index: int):
        return run(model, batches[index % 5], output_hidden_states=index % 3 > 0).hidden_states

    for index, states in enumerate(in_threads(call)):
        if index % 3 == 0:
            assert states is None
        else:
            assert len(states) == 4
            assert all(torch.equal(*pair) for pair in zip(states, expected[index % 5], strict=True))


@pytest.mark.slow
def test_a_compiled_model_gives_the_answers_of_one_thread(make_adapted, batches):
    model = make_adapted(ADAPTERS["both"])
    expected = [run(model, batch) for batch in batches]
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    for index, actual in enumerate(in_threads(lambda index: run(compiled, batches[index % 5]), 50)):
        torch.testing.assert_close(actual.logits, expected[index % 5].logits, rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


# Calls inside calls, and calls that fail


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("hidden_states", [False, True])
@each_adapter
def test_a_call_inside_a_call_changes_neither(make_adapted, batches, config, layer, hidden_states):
    """A hook on a layer asks the model about another video, with hidden states and without."""
    model = make_adapted(config, dtype=torch.float64)
    outer, inner = (run(model, batch, output_hidden_states=True) for batch in (batches[0], batches[3]))
    nested = []

    def ask(*_) -> None:
        if not nested:
            nested.append(None)
            nested[0] = run(model, batches[3], output_hidden_states=not hidden_states)

    for side in (plain_layers_of(model)[layer].register_forward_hook, layers_of(model)[layer].register_forward_hook):
        nested.clear()
        handle = side(ask)
        actual = run(model, batches[0], output_hidden_states=hidden_states)
        handle.remove()
        assert_equal_outputs(actual, outer)
        assert_equal_outputs(nested[0], inner)
        for result, expected in ((actual, outer), (nested[0], inner)):
            if result.hidden_states is not None:
                assert all(
                    torch.equal(*pair) for pair in zip(result.hidden_states, expected.hidden_states, strict=True)
                )
    assert actual.hidden_states is None or nested[0].hidden_states is None


@pytest.mark.parametrize("layer", [0, 1, 2])
@each_adapter
def test_a_call_that_fails_in_the_middle_leaves_nothing_behind(make_adapted, batches, config, layer):
    model = make_adapted(config)
    expected = [run(model, batch, output_hidden_states=True) for batch in batches]

    def fail(*_):
        raise KeyError("in the middle")

    handle = plain_layers_of(model)[layer].register_forward_hook(fail)
    for batch in batches[:2]:
        with pytest.raises(KeyError, match="in the middle"):
            run(model, batch, output_hidden_states=True)
    handle.remove()
    if config is not ADAPTERS["lora"]:
        with pytest.raises(RuntimeError, match="Received features without sentences"):
            base_of(model).model.video_backbone(batches[1]["pixel_values_videos"])
    for batch, outputs in zip(batches, expected, strict=True):
        actual = run(model, batch, output_hidden_states=True)
        assert_equal_outputs(actual, outputs)
        assert all(torch.equal(*pair) for pair in zip(actual.hidden_states, outputs.hidden_states, strict=True))


def test_calls_that_fail_do_not_disturb_those_of_other_threads(make_adapted, batches):
    model = make_adapted(ADAPTERS["both"])
    expected = [run(model, batch) for batch in batches]
    failing = set()

    def fail_in_some_threads(*_):
        if threading.get_ident() in failing:
            raise KeyError("in the middle")

    handle = plain_layers_of(model)[1].register_forward_hook(fail_in_some_threads)

    def failing_call() -> None:
        failing.add(threading.get_ident())
        with pytest.raises(KeyError, match="in the middle"):
            run(model, batches[0])

    with beside(failing_call, failing_call):
        outputs = in_threads(lambda index: run(model, batches[index % 5]), 100)
    handle.remove()
    for index, actual in enumerate(outputs):
        assert_equal_outputs(actual, expected[index % 5])


def test_a_model_holds_nothing_of_a_call_that_is_over(make_adapted, tiny_batch):
    """Not the graph either, where the sentence encoder trains."""
    model = make_adapted(ADAPTERS["both"]).train()
    base_of(model).model.text_encoder.requires_grad_(True)
    outputs = features_of(model, tiny_batch, output_hidden_states=True)
    alive = [weakref.ref(tensor) for tensor in (outputs.sentence_embeds, outputs.hidden_states[1])]
    del outputs
    assert [reference() for reference in alive] == [None, None]


# Copies


def test_copies_taken_while_other_threads_call(make_adapted, batches):
    """By deepcopy and pickle, also from inside a call."""
    model = make_adapted(ADAPTERS["both"])
    expected = run(model, batches[0])
    copies = [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]

    def call_with_states() -> None:
        run(model, batches[1], output_hidden_states=True)

    def call_with_graph() -> None:
        features_of(model, batches[3])

    with beside(calls(model, batches), call_with_states, call_with_graph):
        copied = [copies[index % 2](model) for index in range(20)]

    taken_inside: list[nn.Module] = []

    def take(layer, args, output) -> None:
        if not taken_inside:
            taken_inside.extend(make(model) for make in copies)

    # A hook of a module's own is copied with it, so it has to be one that pickle finds.
    with hooked_globally(plain_layers_of(model)[1], take):
        features_of(model, batches[3], output_hidden_states=True)
    for each in [*copied, *taken_inside]:
        with pytest.raises(RuntimeError, match="Received features without sentences"):
            base_of(each).model.video_backbone(batches[0]["pixel_values_videos"])
        assert_equal_outputs(run(each, batches[0]), expected)


@contextmanager
def hooked_globally(module: nn.Module, hook: Callable):
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda called, args, output: hook(called, args, output) if called is module else None
    )
    try:
        yield
    finally:
        handle.remove()


# Gradients


@pytest.fixture
def targets() -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {rows: torch.randn(rows, 16, 32, dtype=torch.float64, generator=generator) for rows in (1, 2, 3, 4, 5)}


@dataclass
class Work:
    """Sums of features of a model in training, and their gradients, which no random draw is part of."""

    model: nn.Module
    targets: dict[int, torch.Tensor]

    def loss(self, batch: dict, replica: nn.Module | None = None) -> torch.Tensor:
        features = features_of(replica or self.model, batch).last_hidden_state
        return (features * self.targets[len(features)]).sum()

    def gradients(self, *batches: dict) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        for batch in batches:
            self.loss(batch).backward()
        return self.found()

    def found(self) -> dict[str, torch.Tensor]:
        return {name: weight.grad.clone() for name, weight in self.model.named_parameters() if weight.grad is not None}


@pytest.fixture
def make_work(tiny_config, make_model, randomize_trainable, targets):
    """`make_work(way, use_reentrant)`: a model that trains in this way, checkpointed unless `use_reentrant=None`."""

    def make(way: str, use_reentrant: bool | None = None) -> Work:
        tiny_config.text_config.dropout = tiny_config.text_config.attention_dropout = 0.0
        model = train_in_some_way(way, make_model(), randomize_trainable)
        if use_reentrant is not None:
            enable_checkpointing(model, use_reentrant)
        return Work(model, targets)

    return make


each_way = pytest.mark.parametrize("way", RUNS)
checkpointed_or_not = pytest.mark.parametrize(
    "use_reentrant", [None, True, False], ids=["plain", "reentrant", "non_reentrant"]
)


@checkpointed_or_not
@each_way
def test_gradients_beside_calls_of_other_threads(make_work, batches, way, use_reentrant):
    """Of one batch, of two forward passes before one backward pass, and of a backward pass in another thread."""
    plain, work = make_work(way), make_work(way, use_reentrant)
    one, two = batches[0], batches[3]
    expected, expected_of_both = plain.gradients(one), plain.gradients(one, two)
    assert any((expected[name] - expected_of_both[name]).abs().max() > 1e-3 for name in expected)
    with beside(*[calls(work.model, batches)] * 3):
        for _ in range(3):
            assert_equal_gradients(work.gradients(one), expected, atol=1e-9)
            work.model.zero_grad()
            losses = [work.loss(one), work.loss(two)]
            sum(losses).backward()
            assert_equal_gradients(work.found(), expected_of_both, atol=1e-9)
            work.model.zero_grad()
            loss = work.loss(one)
            # As autograd does for another device.
            thread = threading.Thread(target=loss.backward)
            thread.start()
            thread.join()
            assert_equal_gradients(work.found(), expected, atol=1e-9)


@checkpointed_or_not
@each_way
def test_threads_that_train_one_model_add_up_their_gradients(make_work, batches, way, use_reentrant):
    work = make_work(way, use_reentrant)
    expected = make_work(way).gradients(*(batches[index % 5] for index in range(20)))
    work.model.zero_grad()
    in_threads(lambda index: work.loss(batches[index % 5]).backward(), number_of_calls=20)
    assert_equal_gradients(work.found(), expected, atol=1e-6)


def replicas_of(network: nn.Module, number: int) -> list[nn.Module]:
    """What `torch.nn.parallel.replicate` makes for several GPUs, without these: copies of all weights lead to them."""
    modules = list(network.modules())
    places = {module: index for index, module in enumerate(modules)}
    replicas = []
    for _ in range(number):
        copies = [module._replicate_for_data_parallel() for module in modules]
        for module, copied in zip(modules, copies, strict=True):
            copied._former_parameters = OrderedDict()
            for name, child in module._modules.items():
                copied._modules[name] = None if child is None else copies[places[child]]
            for name, weight in module._parameters.items():
                copied._parameters[name] = None
                if weight is not None:
                    del copied._parameters[name]
                    setattr(copied, name, weight.clone())
                    copied._former_parameters[name] = getattr(copied, name)
        replicas.append(copies[0])
    return replicas


@checkpointed_or_not
@each_way
def test_replicas_in_threads_train_as_data_parallel_has_them(make_work, batches, way, use_reentrant):
    work = make_work(way, use_reentrant)
    expected = make_work(way).gradients(batches[0], batches[3], batches[4])
    work.model.zero_grad()
    replicas = replicas_of(work.model, 3)
    assert not list(replicas[0].parameters())
    parts = [batches[0], batches[3], batches[4]]
    sum(in_threads(lambda index: work.loss(parts[index], replicas[index]), 3, 3)).backward()
    assert_equal_gradients(work.found(), expected, atol=1e-9)


PARALLEL = """
import os, sys, threading, torch, modeling_scada
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
rank, folder = int(sys.argv[1]), sys.argv[2]
sys.setswitchinterval(1e-5)
torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
batch, others = torch.load(f"{folder}/batch{rank}.pt"), torch.load(f"{folder}/batches.pt")
failed = []
# FSDP2 frees gathered weights after the forward pass; only checkpoints that are not reentrant gather them again.
for kind, ways in {"ddp": (None, True, False), "fsdp2": (None, False)}.items():
    for way in ways:
        model = torch.load(f"{folder}/model.pt", weights_only=False)
        beside = torch.load(f"{folder}/model.pt", weights_only=False).eval()
        with torch.no_grad():
            expected = [beside(**other).logits for other in others]
        if way is not None:
            model.activation_checkpointing_enable({"use_reentrant": way})
        if kind == "ddp":
            # Other threads call the very model.
            parallel = DistributedDataParallel(model)
            target, expected = model.get_base_model().model, None
        else:
            # A sharded model gathers its weights from all processes in each call, so others have another one.
            mesh = init_device_mesh("cpu", (2,))
            # FSDP2 takes no scalars.
            scalars = {weight for weight in model.parameters() if weight.dim() == 0}
            # The encoder's own layers, as accelerate does; a wrapper's outer branch has results that do not pass
            # through its output, so FSDP2 would not gather its weights for the backward pass.
            for layer in model.get_base_model().model.video_backbone.layers:
                fully_shard(getattr(layer, "base_layer", layer), mesh=mesh, ignored_params=scalars)
            parallel = fully_shard(model, mesh=mesh, ignored_params=scalars)
        stop = threading.Event()

        def repeat():
            while not stop.is_set():
                for index, other in enumerate(others):
                    with torch.no_grad():
                        if expected is None:
                            target(**other)
                        elif not torch.equal(beside(**other).logits, expected[index]):
                            failed.append(kind)

        threads = [threading.Thread(target=repeat, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        torch.manual_seed(rank)
        parallel(**batch).loss.backward()
        stop.set()
        for thread in threads:
            thread.join()
        gradients = {
            name: weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad
            for name, weight in model.named_parameters()
            if weight.grad is not None
        }
        if kind == "fsdp2":
            for weight in scalars:
                if weight.grad is not None:
                    torch.distributed.all_reduce(weight.grad)
                    weight.grad /= 2
        torch.save(gradients, f"{folder}/gradients_{kind}_{way}_{rank}.pt")
assert not failed, failed
torch.distributed.barrier()
torch.distributed.destroy_process_group()
# All is saved. Without this, gloo's threads now and then abort the interpreter while it shuts down.
os._exit(0)
"""


def test_two_processes_average_their_gradients_beside_threads(make_model, adapt, tiny_batch, batches, tmp_path):
    """DistributedDataParallel and FSDP2, checkpointed or not."""
    model = adapt(make_model(), **BOTH).train()
    halves = [sentences_of(tiny_batch, 0, slice(2)), sentences_of(tiny_batch, 1, slice(1))]
    torch.save(model, tmp_path / "model.pt")
    torch.save(batches, tmp_path / "batches.pt")
    for rank, half in enumerate(halves):
        torch.save({name: tensor.clone() for name, tensor in half.items()}, tmp_path / f"batch{rank}.pt")
    run_ranks(PARALLEL, tmp_path)
    separate = [test_adapter_scada.gradients(model, half, seed) for seed, half in enumerate(halves)]
    expected = {name: (separate[0][name] + separate[1][name]) / 2 for name in separate[0]}
    found = sorted(tmp_path.glob("gradients_*.pt"))
    assert len(found) == 2 * (3 + 2)
    for path in found:
        assert_equal_gradients(torch.load(path), expected)
