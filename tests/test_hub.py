"""What is pushed comes back: every way to push and to load, over HTTP, in processes with and without this package."""

import io
import json
import pickle
import pickletools
import shutil
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fresh_process import run_python
from hub_server import Hub, card_metadata, check_card
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, pipeline

from modeling_scada import ScadaAdapterConfig, ScadaForTemporalGrounding


SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SENTENCES = ["a cat", "the dog runs away."]
# What a repository has, by its name: the repositories of a kind answer alike, however they came to be.
REPOSITORIES = {
    "model-and-processor": "full",
    "pipeline": "full",
    "script": "full",
    "embedded-script": "scada",
    "embedded-pipeline": "scada",
    "embedded-add-adapter": "scada",
    "embedded-peft-model": "scada",
    "embedded-lora": "lora",
    "adapter": "scada",
    "adapter-script": "scada",
    "lora": "lora",
}
ADAPTERS_ALONE = ("adapter", "adapter-script", "lora")
WITHOUT = ["modeling_scada", "processing"]
LORA = LoraConfig(r=4, target_modules=r".*video_backbone\..*\.(query|value)", modules_to_save=["head"])
each_repository = pytest.mark.parametrize("name", REPOSITORIES)
each_world = pytest.mark.parametrize("world", ["installed", "remote"])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A Hub and a folder for all tests of this module; what is `published` and `read` is so once, and kept here."""
    with Hub() as hub:
        yield SimpleNamespace(hub=hub, folder=tmp_path_factory.mktemp("shelf"), published=None, read={})
    assert not hub.errors, "\n".join(hub.errors)


@pytest.fixture
def tiny_model(tiny_config, randomize_weights):
    """In place of the common one: with small weights, so that scores do not all end up at 1."""
    torch.manual_seed(0)
    return randomize_weights(ScadaForTemporalGrounding(tiny_config), std=0.05).eval()


def randomize_adapter(model: nn.Module, randomize_weights) -> nn.Module:
    """Random weights for what is saved with the adapter, which is what trains."""
    randomize_weights(nn.ParameterList(weight for weight in model.parameters() if weight.requires_grad), std=0.05)
    return model.eval()


def answers(model: nn.Module, batch: dict, processor, clip: Path) -> tuple[torch.Tensor, torch.Tensor, list]:
    with torch.no_grad():
        outputs = model(**batch)
    pipe = pipeline("temporal-grounding", model=model, processor=processor)
    return outputs.logits, outputs.pred_segments, pipe(str(clip), SENTENCES)


PUBLISH = """
import sys, traceback
from pathlib import Path
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import pipeline
from modeling_scada import ScadaAdapterConfig, ScadaForTemporalGrounding, ScadaProcessor

folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
import push_to_hub

processor = ScadaProcessor.from_pretrained(folder / "full")


def script(*arguments):
    sys.argv[1:] = [str(argument) for argument in arguments]
    push_to_hub.main()


def push_pipeline(model, repo_id):
    pipeline("temporal-grounding", model=model, processor=processor).push_to_hub(repo_id)


def adapter_weights(name):
    return load_file(folder / name / "adapter_model.safetensors")


def model_and_processor():
    ScadaForTemporalGrounding.from_pretrained(folder / "full").push_to_hub("user/model-and-processor")
    processor.push_to_hub("user/model-and-processor")


def with_adapter_added():
    model = ScadaForTemporalGrounding.from_pretrained(folder / "full")
    model.add_adapter(ScadaAdapterConfig())
    weights = {name.removeprefix("base_model.model."): value for name, value in adapter_weights("scada").items()}
    assert not set_peft_model_state_dict(model, weights).unexpected_keys
    push_pipeline(model, "user/embedded-add-adapter")


def of_peft(name, repo_id):
    base = ScadaForTemporalGrounding.from_pretrained(folder / "full")
    push_pipeline(PeftModel.from_pretrained(base, folder / name), repo_id)


def adapter_alone(name, config, repo_id):
    model = get_peft_model(ScadaForTemporalGrounding.from_pretrained("user/model-and-processor"), config)
    assert not set_peft_model_state_dict(model, adapter_weights(name)).unexpected_keys
    model.push_to_hub(repo_id)


from_folder = ScadaForTemporalGrounding.from_pretrained
lora = LoraConfig(r=4, target_modules=r".*video_backbone\\..*\\.(query|value)", modules_to_save=["head"])
on_the_hub = ["--base_model", "user/model-and-processor"]
for call in (
    model_and_processor,
    lambda: pipeline("temporal-grounding", model=str(folder / "full")).push_to_hub("user/pipeline"),
    lambda: script(folder / "full", "user/script"),
    lambda: script(folder / "scada", "user/embedded-script"),
    lambda: push_pipeline(from_folder(folder / "scada"), "user/embedded-pipeline"),
    with_adapter_added,
    lambda: of_peft("scada", "user/embedded-peft-model"),
    lambda: of_peft("lora", "user/embedded-lora"),
    lambda: adapter_alone("scada", ScadaAdapterConfig(), "user/adapter"),
    lambda: script(folder / "adapter", "user/adapter-script", *on_the_hub),
    lambda: adapter_alone("lora", lora, "user/lora"),
):
    try:
        call()
    except BaseException:  # what is missing is found where it is read
        print(traceback.format_exc())
"""


@pytest.fixture
def published(shelf, tiny_model, tiny_processor, tiny_batch, make_clip, randomize_weights) -> SimpleNamespace:
    """
    The shelf with all `REPOSITORIES` on its Hub, and `expected`: for each kind the logits, the segments and the
    pipeline's results of the model in memory, before anything was saved.
    """
    if shelf.published is not None:
        return shelf
    folder = shelf.folder
    shelf.clip = Path(shutil.copy(make_clip(num_frames=50), folder / "clip.mp4"))
    batch = {name: tensor for name, tensor in tiny_batch.items() if name != "labels"}
    save_file({name: tensor.contiguous() for name, tensor in batch.items()}, folder / "batch.safetensors")
    tiny_model.save_pretrained(folder / "full")
    tiny_processor.save_pretrained(folder / "full")
    shelf.expected = {"full": answers(tiny_model, batch, tiny_processor, shelf.clip)}
    for name, config in (("scada", ScadaAdapterConfig()), ("lora", LORA)):
        # As a training run leaves it: an adapter beside its model, and the name of the folder in the adapter.
        shutil.copytree(folder / "full", folder / name)
        base = ScadaForTemporalGrounding.from_pretrained(folder / name)
        model = randomize_adapter(get_peft_model(base, config), randomize_weights)
        model.save_pretrained(folder / name)
        shelf.expected[name] = answers(model, batch, tiny_processor, shelf.clip)
    logits = {kind: answer[0] for kind, answer in shelf.expected.items()}
    save_file(logits, folder / "expected.safetensors")
    (folder / "adapter").mkdir()
    for file in (folder / "scada").glob("adapter_*"):
        shutil.copy(file, folder / "adapter")
    # Stays at home (see test_push_to_hub.py for all that does).
    torch.save({"learning_rate": 1.0}, folder / "scada" / "training_args.bin")
    shelf.published = shelf.hub.run(PUBLISH, folder / "publisher", str(folder), str(SCRIPTS))
    return shelf


READ = """
import json, sys, time, traceback
from pathlib import Path
import torch
from peft import AutoPeftModel, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

folder, world, names, alone, sentences = Path(sys.argv[1]), sys.argv[2], *map(json.loads, sys.argv[3:])
remote = {"trust_remote_code": True} if world == "remote" else {}
loaders = {"AutoModel": lambda repo_id: AutoModel.from_pretrained(repo_id, **remote)}
if world == "installed":
    from modeling_scada import AutoModelForTemporalGrounding, ScadaForTemporalGrounding

    loaders["own class"] = ScadaForTemporalGrounding.from_pretrained
    loaders["AutoModelForTemporalGrounding"] = AutoModelForTemporalGrounding.from_pretrained
batch = load_file(folder / "batch.safetensors")
reports, tensors = {}, {}
for name in names:
    repo_id, report = f"user/{name}", {"modules": {}, "error": None}
    try:
        of_this = dict(loaders)
        if name in alone:
            base = "user/model-and-processor"
            of_this["PeftModel"] = lambda repo_id: PeftModel.from_pretrained(
                AutoModel.from_pretrained(base, **remote), repo_id
            )
            if world == "installed":
                of_this["AutoPeftModel"] = lambda repo_id: AutoPeftModel.from_pretrained(
                    repo_id, import_allowlist=["modeling_scada.modeling_scada"]
                )
        else:
            report["modules"]["config"] = type(AutoConfig.from_pretrained(repo_id, **remote)).__module__
            processor = AutoProcessor.from_pretrained(repo_id, **remote)
            report["modules"]["processor"] = type(processor).__module__
            report["modules"]["video_processor"] = type(processor.video_processor).__module__
        for loader, load in of_this.items():
            model = load(repo_id).eval()
            assert not any(weight.is_meta for weight in model.parameters())
            with torch.no_grad():
                outputs = model(**batch)
            inner = model.get_base_model() if isinstance(model, PeftModel) else model
            report["modules"][loader] = type(inner).__module__
            tensors[f"{name} {loader} logits"] = outputs.logits
            tensors[f"{name} {loader} segments"] = outputs.pred_segments
        pipe = pipeline("temporal-grounding", model=repo_id, **remote)
        report["modules"]["pipeline"] = type(pipe).__module__
        report["modules"]["pipeline's model"] = type(pipe.model).__module__
        report["results"] = pipe(str(folder / "clip.mp4"), sentences)
    except Exception:
        report["error"] = traceback.format_exc()
    reports[name] = report
save_file(tensors, folder / f"{world}.safetensors")
Path(folder / f"{world}.json").write_text(json.dumps(reports))
"""


def read(shelf: SimpleNamespace, world: str) -> tuple[dict, dict[str, torch.Tensor], dict[str, list[str]]]:
    """What a new process on a new machine finds in each repository, and what it downloaded from each."""
    if world not in shelf.read:
        shelf.hub.requests.clear()
        hidden = WITHOUT if world == "remote" else []
        arguments = [json.dumps(value) for value in (list(REPOSITORIES), ADAPTERS_ALONE, SENTENCES)]
        shelf.hub.run(READ, shelf.folder / world, str(shelf.folder), world, *arguments, hidden=hidden)
        downloads = {name: shelf.hub.downloads(f"user/{name}") for name in REPOSITORIES}
        reports = json.loads((shelf.folder / f"{world}.json").read_text())
        shelf.read[world] = reports, load_file(shelf.folder / f"{world}.safetensors"), downloads
    return shelf.read[world]


@pytest.mark.smoke
@each_world
@each_repository
def test_what_was_pushed_comes_back(published, name, world):
    repositories = {repo_id for kind, repo_id in published.hub.repositories if kind == "model"}
    assert f"user/{name}" in repositories, published.published
    reports, tensors, _ = read(published, world)
    report = reports[name]
    assert report["error"] is None, report["error"]
    logits, segments, results = published.expected[REPOSITORIES[name]]
    loaders = ["AutoModel"] + (["PeftModel"] if name in ADAPTERS_ALONE else [])
    if world == "installed":
        loaders += ["own class", "AutoModelForTemporalGrounding"]
        loaders += ["AutoPeftModel"] if name in ADAPTERS_ALONE else []
    assert {key for key in tensors if key.startswith(f"{name} ") and key.endswith("logits")} == {
        f"{name} {loader} logits" for loader in loaders
    }
    for loader in loaders:
        torch.testing.assert_close(tensors[f"{name} {loader} logits"], logits, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(tensors[f"{name} {loader} segments"], segments, rtol=1e-6, atol=1e-6)
    for found, expected in zip(report["results"], results, strict=True):
        assert [segment["sentence"] for segment in found] == [segment["sentence"] for segment in expected]
        for key in ("score", "start", "end"):
            assert [s[key] for s in found] == pytest.approx([s[key] for s in expected], abs=1e-6)


def test_the_kinds_differ(published):
    """Or the tests above would pass with any weights."""
    full, scada, lora = (published.expected[kind] for kind in ("full", "scada", "lora"))
    for one, other in ((full, scada), (full, lora), (scada, lora)):
        assert (one[0] - other[0]).abs().max() > 1e-2
        assert one[2] != other[2]


@pytest.mark.smoke
@each_world
@each_repository
def test_whose_code_runs(published, name, world):
    """The installed code where there is one, without `trust_remote_code`; else the repository's."""
    modules = read(published, world)[0][name]["modules"]
    assert {"AutoModel", "pipeline", "pipeline's model"} <= set(modules)
    home = "model-and-processor" if name in ADAPTERS_ALONE else name
    home = f"transformers_modules.user.{home.replace('-', '_hyphen_')}."
    for what, module in modules.items():
        if world == "installed":
            package = "modeling_scada" if "odel" in what or what in ("own class", "config") else "processing"
            assert module.startswith(f"{package}."), what
        else:
            assert module.startswith(home), what


def test_what_is_downloaded(published):
    """With the package: no code, and only what is loaded."""
    needed = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    needed |= {"adapter_config.json", "adapter_model.safetensors", "video_preprocessor_config.json"}
    _, _, downloads = read(published, "installed")
    for name, files in downloads.items():
        assert set(files) <= needed, name
        assert len(files) == len(set(files)), name  # the cache has the rest
        if name in ADAPTERS_ALONE:
            assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    # Without it: the code too, of the repository itself or of the adapter's base.
    _, _, downloads = read(published, "remote")
    for name, files in downloads.items():
        assert any(file.endswith(".py") for file in files) == (name not in ADAPTERS_ALONE), name
        assert all(file in needed or file.endswith(".py") for file in files), name


PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".dill", ".h5", ".msgpack")


def is_pickled(path: str, content: bytes) -> bool:
    """By its name, or because it is one of the archives that `torch.save` made in its time, or a pickle to its end."""
    if path.endswith(PICKLES) or zipfile.is_zipfile(io.BytesIO(content)):
        return True
    try:
        tarfile.open(fileobj=io.BytesIO(content)).close()
        return True
    except tarfile.TarError:
        pass
    try:
        return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(content))
    except ValueError:
        return False


def pickled_files(hub: Hub) -> list[str]:
    """All pickles that a commit of any repository has."""
    return [
        f"{repository.repo_id}@{commit.oid[:7]}: {path}"
        for repository in hub.repositories.values()
        for commit in repository.commits.values()
        for path, file in commit.files.items()
        if is_pickled(path, file.content)
    ]


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_told_from_other_files(protocol, zipped):
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert is_pickled("model.safetensors", file.getvalue())
    assert is_pickled("notes.txt", pickle.dumps({"a": [1, 2]}, protocol=protocol))
    assert not is_pickled("test_hub.py", Path(__file__).read_bytes())


def test_no_repository_has_a_pickle(published):
    assert pickled_files(published.hub) == []
    for name in REPOSITORIES:
        assert any(path.endswith(".safetensors") for path in published.hub.files(f"user/{name}"))


def test_repositories_have_all_their_code_and_no_path_of_this_machine(published):
    here = str(published.folder).encode()
    code = {
        path.name for package in ("modeling_scada", "processing") for path in SCRIPTS.parent.glob(f"{package}/*.py")
    }
    for name in REPOSITORIES:
        files = published.hub.files(f"user/{name}")
        if name not in ADAPTERS_ALONE:
            auto_map = json.loads(files["config.json"])["auto_map"]
            assert {f"{value.split('.')[0]}.py" for value in auto_map.values()} <= set(files)
            assert {path for path in files if path.endswith(".py")} <= code
        adapter = json.loads(files.get("adapter_config.json", b"{}"))
        own = "user/model-and-processor" if name in ADAPTERS_ALONE else f"user/{name}"
        assert adapter.get("base_model_name_or_path", own) == own
        assert [path for path, content in files.items() if here in content] == []


def test_cards(published):
    for name in REPOSITORIES:
        card = published.hub.files(f"user/{name}").get("README.md", b"").decode()
        assert check_card(card, "model") == [], name
        if "script" in name:  # `model.push_to_hub` of transformers and peft write one that says nothing
            metadata = card_metadata(card)
            assert metadata["library_name"] == ("peft" if name in ADAPTERS_ALONE else "transformers")
            bases = ["user/model-and-processor"] if name in ADAPTERS_ALONE else None
            assert metadata.get("base_model") == bases


UNTRUSTED = """
import json, sys
from peft import PeftModel
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

errors = {}
for name in json.loads(sys.argv[1]):
    repo_id = f"user/{name}"
    for what, call in {
        "AutoConfig": lambda: AutoConfig.from_pretrained(repo_id),
        "AutoModel": lambda: AutoModel.from_pretrained(repo_id),
        "AutoProcessor": lambda: AutoProcessor.from_pretrained(repo_id),
        "pipeline": lambda: pipeline("temporal-grounding", model=repo_id),
        "pipeline without a task": lambda: pipeline(model=repo_id),
        "no": lambda: AutoModel.from_pretrained(repo_id, trust_remote_code=False),
    }.items():
        try:
            call()
            errors[f"{name} {what}"] = None
        except Exception as error:
            errors[f"{name} {what}"] = f"{type(error).__name__}: {error}"
modules = [name for name in sys.modules if name.startswith("transformers_modules.")]
print("\\n" + json.dumps([errors, modules]))
"""


def test_without_trust_nothing_runs(published, tmp_path):
    """Neither the package nor `trust_remote_code`, and nobody at the terminal to ask."""
    published.hub.requests.clear()
    names = ["model-and-processor", "embedded-script", "adapter"]
    started_seconds = time.monotonic()
    output = published.hub.run(UNTRUSTED, tmp_path / "home", json.dumps(names), hidden=WITHOUT)
    assert time.monotonic() - started_seconds < 60
    errors, modules = json.loads(output.splitlines()[-1])
    assert len(errors) == 18 and not modules
    for what, error in errors.items():
        if what in ("adapter AutoConfig", "adapter AutoProcessor"):
            assert error is not None  # an adapter has neither
        else:
            assert error is not None and "trust_remote_code" in error, (what, error)
    assert not [path for name in names for path in published.hub.downloads(f"user/{name}") if path.endswith(".py")]
    assert not list((tmp_path / "home").rglob("modeling_scada.py"))


WITHOUT_PEFT = """
import json, sys

sys.modules["peft"] = None  # as if it were not installed
import torch
from safetensors.torch import load_file
from transformers import AutoModel, pipeline
from transformers.utils import is_peft_available

assert not is_peft_available()
folder, sentences = sys.argv[1], json.loads(sys.argv[2])
with torch.no_grad():
    model = AutoModel.from_pretrained("user/script", trust_remote_code=True)
    logits = model(**load_file(folder + "/batch.safetensors")).logits
assert torch.equal(logits, load_file(folder + "/expected.safetensors")["full"])
pipe = pipeline("temporal-grounding", model="user/script", trust_remote_code=True)
print(json.dumps(pipe(folder + "/clip.mp4", sentences)))
"""


def test_a_model_without_adapter_needs_no_peft(published, tmp_path):
    arguments = str(published.folder), json.dumps(SENTENCES)
    output = published.hub.run(WITHOUT_PEFT, tmp_path / "home", *arguments, hidden=WITHOUT)
    assert json.loads(output.splitlines()[-1]) == published.expected["full"][2]


TWO_COPIES = """
import sys
from pathlib import Path
import peft, torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

folder, first = Path(sys.argv[1]), sys.argv[2]
registries = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING)
before = [dict(registry) for registry in registries]
batch = load_file(folder / "batch.safetensors")


def run(model):
    with torch.no_grad():
        return model.eval()(**batch).logits


def origin(thing):
    return type(thing).__module__.split(".")[0]


def load_remote():
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module("modeling_scada.ScadaForTemporalGrounding", "user/embedded-script")


if first == "remote":
    # Not yet imported here, although it could be: a repository's code is all that transformers knows.
    early = AutoModel.from_pretrained("user/embedded-script", trust_remote_code=True)
    assert "modeling_scada" not in sys.modules and origin(early) == "transformers_modules"
    early_pipe = pipeline("temporal-grounding", model="user/embedded-pipeline", trust_remote_code=True)
import modeling_scada
from modeling_scada import ScadaAdapterConfig, ScadaForTemporalGrounding
from modeling_scada import adapter_scada

Remote = load_remote()
assert Remote is not ScadaForTemporalGrounding and Remote.__module__.startswith("transformers_modules.")
remote, installed = (model.from_pretrained("user/embedded-script") for model in (Remote, ScadaForTemporalGrounding))
assert (origin(remote), origin(installed)) == ("transformers_modules", "modeling_scada")
expected = load_file(folder / "expected.safetensors")
for model in (remote, installed, *([early, early_pipe.model] if first == "remote" else [])):
    assert torch.equal(run(model), expected["scada"])

# From here on the installed code is what transformers' own classes give, whichever was first.
for load, name in ((AutoConfig, "AutoConfig"), (AutoModel, "AutoModel"), (AutoProcessor, "AutoProcessor")):
    package = "processing" if name == "AutoProcessor" else "modeling_scada"
    assert origin(load.from_pretrained("user/model-and-processor")) == package, name
pipe = pipeline("temporal-grounding", model="user/embedded-pipeline")
assert (origin(pipe), origin(pipe.model), origin(pipe.processor)) == ("processing", "modeling_scada", "processing")
assert torch.equal(run(pipe.model), expected["scada"])

# peft knows one method of this name, and all its own ones as they were.
for registry, earlier in zip(registries, before, strict=True):
    assert {name: registry[name] for name in earlier} == earlier
    assert [str(name.value) for name in registry if name not in earlier] == ["SCADA"]
assert (PEFT_TYPE_TO_CONFIG_MAPPING["SCADA"] is ScadaAdapterConfig) == (first == "installed")

# A new adapter with either configuration on either model: trains, and what it learnt loads on both.
RemoteConfig = sys.modules[Remote.__module__.replace("modeling_scada", "adapter_scada")].ScadaAdapterConfig
assert RemoteConfig is not ScadaAdapterConfig
for number, (model_class, config) in enumerate(
    (model_class, config)
    for model_class in (Remote, ScadaForTemporalGrounding)
    for config in (RemoteConfig, ScadaAdapterConfig)
):
    base = model_class.from_pretrained("user/model-and-processor")
    model = get_peft_model(base, config(inner_layers=[0], outer_layers=[1])).train()
    start = run(model)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):  # the second step is the first with gradients behind the zeros of the first
        labels = torch.tensor([[[[0.1, 0.4]], [[0.6, 0.9]]], [[[0.2, 0.8]], [[-100.0, -100.0]]]])
        model.train()(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    learnt = run(model)
    assert not torch.allclose(learnt, start)
    assert any("scada_" in name and weight.abs().sum() > 0 for name, weight in model.named_parameters())
    saved = str(folder / f"{first}_{number}")
    model.save_pretrained(saved)
    for other in (Remote, ScadaForTemporalGrounding):
        again = PeftModel.from_pretrained(other.from_pretrained("user/model-and-processor"), saved)
        assert torch.equal(run(again), learnt)
        loaded = other.from_pretrained("user/model-and-processor")
        loaded.load_adapter(saved)
        assert torch.equal(run(loaded), learnt)
"""


@pytest.mark.parametrize("first", ["remote", pytest.param("installed", marks=pytest.mark.slow)])
def test_two_copies_of_the_code_do_not_confuse_each_other(published, tmp_path, first):
    published.hub.run(TWO_COPIES, tmp_path / "home", str(published.folder), first)


class Touch:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


REFUSED = """
import json, sys
from pathlib import Path
from peft import PeftModel
from transformers import AutoModel, pipeline

folder, world = Path(sys.argv[1]), sys.argv[2]
remote = {"trust_remote_code": True} if world == "remote" else {}
if world == "installed":
    import modeling_scada  # noqa: F401
good = AutoModel.from_pretrained("user/model-and-processor", **remote)
cls = type(good)
errors = {}
for repo_id in ("user/pickled", str(folder / "pickled")):
    for what, call in {
        "from_pretrained": lambda: cls.from_pretrained(repo_id),
        "AutoModel": lambda: AutoModel.from_pretrained(repo_id, **remote),
        "pipeline": lambda: pipeline("temporal-grounding", model=repo_id, **remote),
        "asked for": lambda: cls.from_pretrained(repo_id, use_safetensors=False),
        "AutoModel, asked for": lambda: AutoModel.from_pretrained(repo_id, use_safetensors=False, **remote),
        "None": lambda: cls.from_pretrained(repo_id, use_safetensors=None),
    }.items():
        try:
            call()
            errors[f"{repo_id} {what}"] = None
        except Exception as error:
            errors[f"{repo_id} {what}"] = f"{type(error).__name__}: {error}"
for repo_id in ("user/pickled-adapter", "user/pickled-embedded", str(folder / "pickled-adapter")):
    fresh = lambda: AutoModel.from_pretrained("user/model-and-processor", **remote)
    for what, call in {
        "from_pretrained": lambda: cls.from_pretrained(repo_id),
        "AutoModel": lambda: AutoModel.from_pretrained(repo_id, **remote),
        "load_adapter": lambda: fresh().load_adapter(repo_id),
        "load_adapter, asked for": lambda: fresh().load_adapter(repo_id, use_safetensors=False),
        "load_adapter, by name": lambda: fresh().load_adapter(peft_model_id=repo_id, adapter_name="other"),
    }.items():
        try:
            call()
            errors[f"{repo_id} {what}"] = None
        except Exception as error:
            errors[f"{repo_id} {what}"] = f"{type(error).__name__}: {error}"
# The main branch has safetensors, and so does the folder above; what is asked for is elsewhere.
old, inner = {"revision": "pickled"}, {"subfolder": "inner"}
for what, call in {
    "old from_pretrained": lambda: cls.from_pretrained("user/both-embedded", **old),
    "old AutoModel": lambda: AutoModel.from_pretrained("user/both-embedded", **old, **remote),
    "old load_adapter": lambda: fresh().load_adapter("user/both-embedded", adapter_kwargs=old),
    "inner load_adapter": lambda: fresh().load_adapter("user/both-embedded", adapter_kwargs=inner),
    "both, asked for": lambda: fresh().load_adapter("user/both-embedded", use_safetensors=False),
    "both, asked for without care": lambda: fresh().load_adapter(
        "user/both-embedded", use_safetensors=False, weights_only=False
    ),
}.items():
    try:
        call()
        errors[what] = None
    except Exception as error:
        errors[what] = f"{type(error).__name__}: {error}"
# And the other way round: what is asked for is good.
for kwargs in ({"revision": "main"}, {"subfolder": "good", "revision": "pickled"}):
    fresh().load_adapter("user/both-embedded", adapter_kwargs=kwargs)
# Beside safetensors a pickle is left alone.
both = AutoModel.from_pretrained("user/both", **remote)
assert all(bool((mine == theirs).all()) for mine, theirs in zip(both.parameters(), good.parameters(), strict=True))
print(json.dumps(errors))
"""

UPLOAD = """
import sys
from pathlib import Path
from huggingface_hub import HfApi

for name in ("pickled", "pickled-adapter", "pickled-embedded", "both"):
    HfApi().create_repo(f"user/{name}")
    HfApi().upload_folder(repo_id=f"user/{name}", folder_path=Path(sys.argv[1]) / name)
# First with a pickle alone, under a tag, and beside a folder with a good one; then with both, and with a bad folder.
both, bad = {"repo_id": "user/both-embedded"}, Path(sys.argv[1]) / "pickled-adapter"
HfApi().create_repo(**both)
HfApi().upload_folder(**both, folder_path=Path(sys.argv[1]) / "both-embedded")
HfApi().upload_folder(**both, folder_path=Path(sys.argv[1]) / "good-adapter", path_in_repo="good")
HfApi().create_tag(**both, tag="pickled")
weights = (Path(sys.argv[1]) / "good-adapter" / "adapter_model.safetensors").read_bytes()
HfApi().upload_file(**both, path_or_fileobj=weights, path_in_repo="adapter_model.safetensors")
HfApi().upload_folder(**both, folder_path=bad, path_in_repo="inner")
"""


@pytest.fixture
def with_pickles(published, tiny_model, tmp_path):
    """
    The shelf's repositories on a Hub beside it, and some with pickled weights; returns that Hub, their folder and the
    file that loading a pickle of theirs makes.
    """
    marker = tmp_path / "a_pickle_was_loaded"
    files = published.hub.files("user/script")
    adapter = published.hub.files("user/adapter")
    weights, adapter_weights = files.pop("model.safetensors"), adapter.pop("adapter_model.safetensors")
    bad = pickle.dumps(Touch(marker))
    embedded = files | {"model.safetensors": weights, "adapter_model.bin": bad}

    def adapter_of(repo_id: str) -> dict[str, bytes]:
        config = json.loads(adapter["adapter_config.json"]) | {"base_model_name_or_path": repo_id}
        return adapter | {"adapter_config.json": json.dumps(config).encode()}

    repositories = {
        "pickled": files | {"pytorch_model.bin": bad},
        "pickled-adapter": adapter | {"adapter_model.bin": bad},
        **{name: embedded | adapter_of(f"user/{name}") for name in ("pickled-embedded", "both-embedded")},
        "both": files | {"model.safetensors": weights, "pytorch_model.bin": bad},
        "good-adapter": adapter | {"adapter_model.safetensors": adapter_weights},
    }
    for name, contents in repositories.items():
        (tmp_path / name).mkdir()
        for path, content in contents.items():
            (tmp_path / name / path).write_bytes(content)
    with Hub() as hub:
        hub.repositories |= published.hub.repositories
        hub.run(UPLOAD, tmp_path / "uploader", str(tmp_path))
        yield SimpleNamespace(hub=hub, folder=tmp_path, marker=marker)
    assert not hub.errors, "\n".join(hub.errors)


@each_world
def test_pickled_weights_are_refused(with_pickles, world):
    hub, folder = with_pickles.hub, with_pickles.folder
    hidden = WITHOUT if world == "remote" else []
    output = hub.run(REFUSED, folder / "home", str(folder), world, hidden=hidden)
    errors = json.loads(output.splitlines()[-1])
    assert len(errors) == 12 + 15 + 6
    for what, error in errors.items():
        assert error is not None, what
        assert "safetensors" in error, (what, error)
    assert not with_pickles.marker.exists()


def test_the_marker_of_pickles_works(with_pickles):
    """Or the test above could not see that one was loaded."""
    pickle.loads((with_pickles.folder / "pickled" / "pytorch_model.bin").read_bytes()).close()
    assert with_pickles.marker.exists()


REFUSED_BASES = """
import sys

folder, scripts = sys.argv[1:]
sys.path.insert(0, scripts)
import push_to_hub

for base in ([], ["--base_model", folder + "/full"], ["--base_model", "outputs/elsewhere"]):
    sys.argv[1:] = [folder + "/adapter", "user/homeless", *base]
    try:
        push_to_hub.main()
    except ValueError as error:
        assert "--base_model" in str(error) and (base[1:] or [folder + "/scada"])[0] in str(error)
    else:
        raise SystemExit(f"{base} was accepted")
"""


def test_adapter_whose_base_nobody_has_is_refused(published, tmp_path):
    """A folder of this machine, and a name under which the Hub has no model; no repository is made."""
    published.hub.run(REFUSED_BASES, tmp_path / "home", str(published.folder), str(SCRIPTS))
    assert ("model", "user/homeless") not in published.hub.repositories


# Training and data: scripts as their users call them


TRAIN = """
import json, runpy, sys
from pathlib import Path

scripts = Path(sys.argv[1])
sys.path.append(str(scripts))
import push_to_hub
import run_temporal_grounding

recipes = json.loads(Path(sys.argv[2]).read_text())
for recipe in recipes.values():
    Path("recipe.json").write_text(json.dumps(recipe))
    run_temporal_grounding.main(["recipe.json"])
# And once more with what evaluation measured.
folder = recipes["trained-scada"]["output_dir"]
sys.argv[1:] = [folder, recipe["dataset"], "--split", "train", "--num_workers", "0", "--output_dir", "measured"]
runpy.run_path(str(scripts / "evaluate.py"), run_name="__main__")
sys.argv[1:] = [folder, "user/trained-scada", "--metrics", "measured/metrics.json"]
push_to_hub.main()
"""

LOAD_TRAINED = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, pipeline

folder, names, sentences = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
batch, outputs = load_file(folder / "batch.safetensors"), {}
for name in names:
    model = AutoModel.from_pretrained(f"user/{name}", trust_remote_code=True).eval()
    with torch.no_grad():
        outputs[name] = model(**batch).logits
    pipe = pipeline("temporal-grounding", model=f"user/{name}", trust_remote_code=True)
    assert len(pipe(str(folder / "clip.mp4"), sentences[0])) == 5
save_file(outputs, folder / "trained.safetensors")
"""


@pytest.fixture
def recipes(tmp_path, make_clip, tiny_config, tiny_tokenizer, randomize_weights) -> dict[str, dict]:
    """Arguments for tiny runs that push, by the name of the repository."""
    for name, config in (("video", tiny_config.video_config), ("text", tiny_config.text_config)):
        randomize_weights(AutoModel.from_config(config), std=0.02).save_pretrained(tmp_path / name)
    tiny_tokenizer.save_pretrained(tmp_path / "text")
    make_clip("0.mp4", num_frames=20)
    row = {"video": "0.mp4", "sentences": ["it begins", "it ends"], "segments": [[0.0, 0.5], [1.5, 2.0]]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    common = {
        "video_model": str(tmp_path / "video"),
        "text_model": str(tmp_path / "text"),
        "dataset": str(tmp_path / "rows.jsonl"),
        "eval_split": "train",
        "num_frames": 16,
        "image_size": 32,
        "head_hidden_size": 16,
        "grid_size": 16,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "adapter_learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "push_to_hub": True,
    }
    return {
        name: common | {"tuning": tuning, "output_dir": str(tmp_path / name), "hub_model_id": f"user/{name}"}
        for name, tuning in (("trained-full", "full"), ("trained-scada", "scada"))
    }


def test_training_pushes_what_others_can_load(hub, tmp_path, recipes, tiny_batch, make_clip):
    (tmp_path / "recipes.json").write_text(json.dumps(recipes))
    hub.run(TRAIN, tmp_path / "trainer", str(SCRIPTS), str(tmp_path / "recipes.json"))
    assert pickled_files(hub) == []
    assert {repo_id for _, repo_id in hub.repositories} == {f"user/{name}" for name in recipes}

    batch = {name: tensor for name, tensor in tiny_batch.items() if name != "labels"}
    save_file({name: tensor.contiguous() for name, tensor in batch.items()}, tmp_path / "batch.safetensors")
    make_clip("clip.mp4", num_frames=50)
    arguments = json.dumps(list(recipes)), json.dumps(SENTENCES)
    hub.run(LOAD_TRAINED, tmp_path / "reader", str(tmp_path), *arguments, hidden=WITHOUT)
    found = load_file(tmp_path / "trained.safetensors")
    for name, recipe in recipes.items():
        local = Path(recipe["output_dir"])
        assert (local / "training_args.bin").exists() and list(local.glob("checkpoint-*"))
        with torch.no_grad():
            expected = ScadaForTemporalGrounding.from_pretrained(local).eval()(**batch).logits
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-6)
        for commit in hub.commits(f"user/{name}"):
            assert not [path for path in commit.files if "/" in path], "checkpoints stay at home"
        card = hub.files(f"user/{name}")["README.md"].decode()
        assert check_card(card, "model") == []
        # No number of `Trainer`'s own card, and of ours only what was measured.
        assert "Trainer" not in card and str(tmp_path) not in card
        measured = name == "trained-scada"
        assert ("model-index" in card_metadata(card)) == measured == ("mIoU" in card)
    metrics = json.loads((tmp_path / "trainer" / "work" / "measured" / "metrics.json").read_text())["metrics"]
    card = card_metadata(hub.files("user/trained-scada")["README.md"].decode())
    [results] = card["model-index"][0]["results"]
    assert {metric["name"]: metric["value"] for metric in results["metrics"]} == {
        name: pytest.approx(value, abs=0.005) for name, value in metrics.items()
    }


LOAD_ROWS = """
import json
from processing.data.annotations import load_annotations

found = [
    [{key: row[key] for key in ("video", "sentences", "segments")} for row in rows]
    for split in ("train", "test")
    for rows in (load_annotations("user/rows", split, streaming) for streaming in (False, True))
]
print(json.dumps(found))
"""


def test_data_set(hub, tmp_path):
    (tmp_path / "charades_sta_train.txt").write_text("AAA 1.0 2.5##One.\nBBB 0.0 3.0##Two.\nAAA 4.0 6.0##Three.\n")
    (tmp_path / "charades_sta_test.txt").write_text("CCC 1.0 2.0##Four.\n")
    files = [str(tmp_path / f"charades_sta_{split}.txt") for split in ("train", "test")]
    command = [SCRIPTS / "prepare_dataset.py", "--format", "charades-sta"]
    command += ["--annotations", *files, "--output", tmp_path / "data", "--push_to_hub", "user/rows"]
    done = run_python(command, tmp_path, hub.environment(tmp_path / "writer"))
    assert done.returncode == 0, done.stderr
    output = hub.run(LOAD_ROWS, tmp_path / "reader")
    train, streamed, test, streamed_test = json.loads(output.splitlines()[-1])
    assert train == streamed and test == streamed_test
    by_video = {row["video"]: (row["sentences"], row["segments"]) for row in train}
    by_video = {Path(video).stem: value for video, value in by_video.items()}
    flat = {video: [pair for pair in torch.tensor(value[1]).view(-1, 2).tolist()] for video, value in by_video.items()}
    assert {video: value[0] for video, value in by_video.items()} == {"AAA": ["One.", "Three."], "BBB": ["Two."]}
    assert flat == {"AAA": [[1.0, 2.5], [4.0, 6.0]], "BBB": [[0.0, 3.0]]}
    assert [row["sentences"] for row in test] == [["Four."]]
    assert pickled_files(hub) == []
    assert str(tmp_path).encode() not in b"".join(hub.files("user/rows", "dataset").values())
