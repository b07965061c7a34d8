"""scripts/push_to_hub.py: what is uploaded, and a model card with nothing but what the records of a run say."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import card_metadata, check_card
from huggingface_hub import ModelCard


ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "scripts"))

import push_to_hub  # noqa: E402

from modeling_scada.training import publishing as script  # noqa: E402


# What the Hub has, as far as these tests know.
MODELS = ("MCG-NJU/videomae-base", "distilbert-base-uncased", "someone/model", "me/model")
DATASETS = ("lmms-lab/charades_sta", "lmms-lab/tacos")
# Each number is here once, so that one in a card tells where it is from; the shape is that of the scripts' records,
# which `test_records_are_those_of_the_scripts` holds it to.
ARGUMENTS = {
    "model_name_or_path": None,
    "video_model": "MCG-NJU/videomae-base",
    "text_model": "distilbert-base-uncased",
    "tuning": "scada",
    "scada_branches": "both",
    "inner_layers": "last 3",
    "outer_layers": "even 4",
    "reduction": 8,
    "train_text": False,
    "num_frames": 384,
    "image_size": 144,
    "dataset": "lmms-lab/charades_sta",
    "train_split": "training_part",
    "eval_split": "held_out",
    "video_root": None,
    "learning_rate": 2e-4,
    "seed": 17,
    "max_steps": -1,
}
TRAINING = {
    "epoch": 9.0,
    "train_loss": 1.4321,
    "train_runtime": 86.5,
    "trainable_head": 7654321,
    "trainable_backbone": 456789,
    "trainable_text": 23456,
    "train_processor_seconds": 555.5,
    "steps": 4242,
    "hardware": "3 x NVIDIA B99",
    "date": "2031-05-06",
    "commit": "c0ffee1c0ffee1",
}
RECORD = {
    "model": "outputs/run",
    "dataset": "lmms-lab/charades_sta",
    "split": "held_out",
    "metrics": {"R1@0.5": 51.2345, "R5@0.7": 78.9012, "mIoU": 43.2198},
    "videos": 1334,
    "sentences": 3720,
    "broken_videos": [],
    "how": {
        "num_frames": 352,
        "size": {"height": 144, "width": 144},
        "top_k": 10,
        "thresholds_reached_by": ">=",
        "dtype": "bfloat16",
        "device": "NVIDIA B98",
        "seconds": 101.5,
        "date": "2031-07-08",
        "commit": "decade2decade2",
        "versions": {"torch": "2.9"},
    },
}
RECORDS = {"run_arguments.json": ARGUMENTS, "train_results.json": TRAINING, "metrics.json": RECORD}
ADAPTER = {"base_model_name_or_path": "someone/model", "peft_type": "SCADA"}
PEFT_CARD = """---
base_model: /home/me/outputs/run
library_name: peft
---

# Model Card for Model ID

<!-- Provide a quick summary of what the model is/does. -->

- **Developed by:** [More Information Needed]
### Framework versions

- PEFT 0.21.2
"""
TRAINER_CARD = """---
library_name: transformers
tags:
- generated_from_trainer
---

<!-- This model card has been generated automatically according to the information the Trainer had access to. You
should probably proofread and complete it, then remove this comment. -->

# run

- Loss: 1.2345
"""


class FakeApi:
    """Stands for `HfApi`; keeps what would be uploaded."""

    uploads: list[SimpleNamespace] = []
    created: list[tuple[str, bool | None]] = []

    def create_repo(self, repo_id, private=None, exist_ok=False, **kwargs):
        assert exist_ok
        self.created.append((repo_id, private))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def repo_exists(self, repo_id, repo_type=None, **kwargs):
        return repo_id in (DATASETS if repo_type == "dataset" else MODELS)

    def upload_folder(self, repo_id, folder_path, **kwargs):
        files = {str(path.relative_to(folder_path)): path.read_bytes() for path in Path(folder_path).rglob("*")}
        self.uploads.append(SimpleNamespace(repo_id=repo_id, files=files))
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture(autouse=True)
def api(monkeypatch):
    monkeypatch.setattr(script, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "uploads", [])
    monkeypatch.setattr(FakeApi, "created", [])
    return FakeApi


@pytest.fixture
def make_folder(tmp_path):
    """`make_folder(model=True, adapter=False, records=RECORDS, **files)`: what a run leaves, as far as a card asks."""

    def make(model: bool = True, adapter: bool | dict = False, records: dict = RECORDS, **files: str) -> Path:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if model:
            (folder / "model.safetensors").write_bytes(b"weights")
            (folder / "config.json").write_text("{}")
        if adapter:
            (folder / "adapter_model.safetensors").write_bytes(b"adapter")
            (folder / "adapter_config.json").write_text(json.dumps(ADAPTER if adapter is True else adapter))
        for name, content in (records or {}).items():
            (folder / name).write_text(json.dumps(content))
        for name, content in files.items():
            (folder / name).write_text(content)
        return folder

    return make


def push(folder: Path, repo_id: str = "me/model", **arguments) -> dict[str, bytes]:
    """The files that would be uploaded."""
    script.push_folder(folder, repo_id, **arguments)
    return FakeApi.uploads[-1].files


def card_of(folder: Path, **arguments) -> str:
    card = push(folder, **arguments)["README.md"].decode()
    assert check_card(card, "model") == []
    return card


def changed(records: dict, path: tuple, value) -> dict:
    """A copy of the records with another value at the path."""
    records = json.loads(json.dumps(records))
    inner = records
    for key in path[:-1]:
        inner = inner[key]
    assert inner[path[-1]] != value
    inner[path[-1]] = value
    return records


METRICS = "metrics.json"
TRAIN = "train_results.json"


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ((METRICS, "metrics", "R1@0.5"), 61.987, ["| 61.99 |", "value: 61.99"]),
        ((METRICS, "metrics", "mIoU"), 3.0, ["| 3.00 |", "value: 3.0"]),
        ((METRICS, "videos"), 99, ["of 99 videos"]),
        ((METRICS, "sentences"), 98, ["98 sentences"]),
        ((METRICS, "split"), "val_2", ["`val_2`", "split: val_2"]),
        ((METRICS, "dataset"), "lmms-lab/tacos", ["`lmms-lab/tacos`"]),
        (
            (METRICS, "broken_videos"),
            [{"video": "a"}, {"video": "b"}, {"video": "c"}],
            ["3 unreadable videos are excluded"],
        ),
        ((METRICS, "how", "num_frames"), 96, ["96 frames"]),
        ((METRICS, "how", "thresholds_reached_by"), ">", ["thresholds with `>`"]),
        ((METRICS, "how", "dtype"), "float32", ["float32"]),
        ((METRICS, "how", "device"), "NVIDIA X", ["NVIDIA X"]),
        ((METRICS, "how", "date"), "2032-01-01", ["2032-01-01"]),
        ((METRICS, "how", "commit"), "abad1dea", ["abad1dea"]),
        ((TRAIN, "trainable_head"), 1111, ["head: 1,111"]),
        ((TRAIN, "trainable_backbone"), 2222, ["(with adapter): 2,222"]),
        ((TRAIN, "trainable_text"), 3333, ["encoder: 3,333"]),
        ((TRAIN, "steps"), 77, ["77 steps"]),
        ((TRAIN, "hardware"), "5 x x86_64", ["5 x x86_64"]),
        ((TRAIN, "date"), "2032-02-02", ["2032-02-02"]),
        ((TRAIN, "commit"), "facade", ["facade"]),
        (("run_arguments.json", "tuning"), "full", ["--tuning full"]),
        (("run_arguments.json", "scada_branches"), "inner", ["inner"]),
        (("run_arguments.json", "train_split"), "train_b", ["`train_b`"]),
        (("run_arguments.json", "num_frames"), 40, ["40 frames"]),
        (("run_arguments.json", "video_model"), "someone/model", ["- someone/model", "`someone/model`"]),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_the_card_follows_the_records(make_folder, path, value, shown):
    before = card_of(make_folder())
    after = card_of(make_folder(records=changed(RECORDS, path, value)))
    for text in shown:
        assert text in after and text not in before
    assert len(set(before.splitlines()) ^ set(after.splitlines())) <= 10  # and nothing else


def numbers_of(card: str) -> set[str]:
    """The numbers in a card, without those of the text that every card has."""
    for constant in ("arXiv 2604.02860", "arxiv.org/abs/2604.02860"):
        assert constant in card
        card = card.replace(constant, "")
    return set(re.findall(r"(?<![\w.@])\d[\d,.]*(?<![,.])", card))


def test_no_number_that_is_not_in_the_records(make_folder):
    known = set(re.findall(r"(?<![\w.@])[\d.]+", json.dumps(RECORDS)))
    known |= {f"{int(number):,}" for number in known if number.isdigit()}
    for value in RECORD["metrics"].values():
        known |= {f"{value:.2f}", str(round(value, 2))}
    for adapter in (False, True):
        numbers = numbers_of(card_of(make_folder(adapter=adapter)))
        assert len(numbers) > 15
        assert numbers <= known


def test_without_records_no_number(make_folder):
    card = card_of(make_folder(records={}))
    assert numbers_of(card) == set()
    assert "|" not in card and "## Results" not in card and "## Training" not in card
    assert {"model-index", "metrics", "datasets", "base_model"}.isdisjoint(card_metadata(card))
    assert "None" not in card and "{{" not in card and "{%" not in card


@pytest.mark.parametrize("name", RECORDS)
def test_each_record_may_be_missing(make_folder, name):
    card = card_of(make_folder(records={other: value for other, value in RECORDS.items() if other != name}))
    assert ("## Results" in card) == (name != METRICS)
    assert ("## Training" in card) == (name != TRAIN)
    assert "None" not in card and "{{" not in card and "\n\n\n" not in card


def test_records_may_lack_what_was_not_known(make_folder):
    """No git, no hardware's name."""
    records = changed(changed(RECORDS, (TRAIN, "commit"), None), (METRICS, "how", "commit"), None)
    assert "None" not in card_of(make_folder(records=records))


def test_metadata(make_folder):
    card = ModelCard(card_of(make_folder(adapter=True)))
    data = card.data
    assert data.library_name == "transformers" and data.model_name == "model"
    assert data.base_model == ["MCG-NJU/videomae-base", "distilbert-base-uncased"]
    assert data.datasets == ["lmms-lab/charades_sta"]
    assert data.metrics == ["R1@0.5", "R5@0.7", "mIoU"]
    assert {"temporal-grounding", "scada", "custom_code"} <= set(data.tags)
    assert {result.metric_name: result.metric_value for result in data.eval_results} == {
        name: round(value, 2) for name, value in RECORD["metrics"].items()
    }
    for result in data.eval_results:
        assert (result.task_type, result.dataset_split) == ("temporal-grounding", "held_out")
        # The id, by which the Hub finds the data set.
        assert result.dataset_type == "lmms-lab/charades_sta"
    assert 'model="me/model"' in card.text and "# me/model" in card.text


def test_what_the_card_says_of_an_adapter_alone(make_folder):
    card = card_of(make_folder(model=False, adapter=True))
    metadata = card_metadata(card)
    assert metadata["library_name"] == "peft" and metadata["base_model"] == ["someone/model"]
    assert "custom_code" not in metadata["tags"]
    assert "`someone/model`" in card  # its readers have to know


def test_a_model_that_was_trained_further_names_that_model(make_folder):
    records = changed(RECORDS, ("run_arguments.json", "model_name_or_path"), "someone/model")
    card = card_of(make_folder(records=records))
    assert card_metadata(card)["base_model"] == ["someone/model"]
    assert "`someone/model`" in card and "videomae" not in card


@pytest.mark.parametrize("where", ["absolute", "here", "elsewhere", "home"])
def test_no_path_of_this_machine_in_a_card(make_folder, tmp_path, monkeypatch, where):
    """Nor a folder's name that looks like a repository's: it need not lie where the script runs."""
    folders = {name: f"private/{name}_folder" for name in ("video", "text", "data")}
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    if where in ("absolute", "here"):
        for path in folders.values():
            (tmp_path / "work" / path).mkdir(parents=True)
    root = {"absolute": f"{tmp_path}/work/", "here": "", "elsewhere": "", "home": "~/"}[where]
    arguments = {"video_model": "video", "text_model": "text", "dataset": "data"}
    changes = {name: root + folders[folder] for name, folder in arguments.items()}
    records = RECORDS | {
        "run_arguments.json": ARGUMENTS | changes,
        METRICS: RECORD | {"dataset": changes["dataset"], "model": str(tmp_path / "run")},
    }
    for adapter in (False, True):
        card = card_of(make_folder(adapter=adapter, records=records))
        assert str(tmp_path) not in card and "private" not in card
        assert {"base_model", "datasets"}.isdisjoint(card_metadata(card))
        # The data set's own name is no secret: it says what was measured.
        [result] = card_metadata(card)["model-index"][0]["results"]
        assert result["dataset"]["name"] == "data_folder"
        assert "`data_folder`" in card


OWN_CARDS = {
    "plain": "# My model\n",
    "adapter": "---\nlibrary_name: peft\nbase_model: someone/model\n---\n# My adapter\n\nTrained with care.\n",
    "full": "---\nlibrary_name: transformers\ntags:\n- temporal-grounding\n---\n# My model\n",
}


@pytest.mark.parametrize("name", OWN_CARDS)
def test_a_card_that_somebody_wrote_is_kept(make_folder, name):
    folder = make_folder(adapter=True, **{"README.md": OWN_CARDS[name]})
    assert push(folder)["README.md"].decode() == OWN_CARDS[name]


@pytest.mark.parametrize("name", ["ours", "peft", "trainer"])
def test_a_card_that_was_generated_is_replaced(make_folder, name):
    first = card_of(make_folder(adapter=True))
    generated = {"ours": first, "peft": PEFT_CARD, "trainer": TRAINER_CARD}[name]
    records = changed(RECORDS, (METRICS, "metrics", "mIoU"), 12.3456)
    card = card_of(make_folder(adapter=True, records=records, **{"README.md": generated}))
    assert "12.35" in card and "43.22" not in card
    assert "More Information Needed" not in card and "generated_from_trainer" not in card


def test_peft_and_trainer_still_write_such_cards(tiny_model, tmp_path):
    """What tells a generated card is in those that the installed versions write."""
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    from modeling_scada import ScadaAdapterConfig

    args = TrainingArguments(output_dir=str(tmp_path / "trainer"), use_cpu=True)
    (tmp_path / "trainer").mkdir()
    Trainer(model=tiny_model, args=args).create_model_card()
    get_peft_model(tiny_model, ScadaAdapterConfig()).save_pretrained(tmp_path / "peft")
    for name in ("trainer", "peft"):
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "config.json").write_text("{}")
        assert (tmp_path / name / "README.md").exists()
        assert "[More Information Needed]" not in card_of(tmp_path / name)
        assert script.GENERATED in FakeApi.uploads[-1].files["README.md"].decode()


ALLOWED = [
    *("config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors", "modeling_scada.py"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
    *("merges.txt", "run_arguments.json", "train_results.json", "metrics.json", "README.md"),
]
KEPT_AT_HOME = [
    *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "adapter_model.bin"),
    *("trainer_state.json", "predictions.jsonl", "broken_videos.jsonl", "events.out.tfevents.1", "notes.txt", ".env"),
    *("checkpoint-2/model.safetensors", "checkpoint-2/training_args.bin", "runs/a/events.out.tfevents.1", "a.mp4"),
    *("checkpoint-2/config.json", ".git/config", "wandb/token.txt", "id_rsa", "model.safetensors.tmp"),
]


def test_what_is_uploaded(make_folder):
    folder = make_folder(adapter=True)
    for name in [*ALLOWED, *KEPT_AT_HOME]:
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"content of " + name.encode())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    uploaded = push(folder)
    assert set(uploaded) == set(ALLOWED)
    assert uploaded["README.md"] == b"content of README.md"  # somebody's own
    for name in set(ALLOWED) - {"adapter_config.json"}:
        assert uploaded[name] == before[folder / name]
    # The folder is as it was: what is changed is changed in a copy.
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert json.loads(before[folder / "adapter_config.json"]) == ADAPTER
    assert json.loads(uploaded["adapter_config.json"]) == ADAPTER | {"base_model_name_or_path": "me/model"}


def test_shards_are_uploaded(make_folder):
    folder = make_folder(model=False)
    names = ["config.json", "model.safetensors.index.json", *(f"model-0000{k}-of-00002.safetensors" for k in (1, 2))]
    for name in names:
        (folder / name).write_bytes(b"shard")
    assert set(names) <= set(push(folder))


def test_what_a_processor_saves_is_uploaded(make_folder, tiny_processor, tiny_model):
    folder = make_folder()
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    expected = {path.name for path in folder.iterdir()} | {"README.md"}
    assert set(push(folder)) == expected


def test_the_owner_of_a_single_name_is_found(make_folder):
    files = push(make_folder(adapter=True), "model")
    assert FakeApi.uploads[-1].repo_id == "me/model"
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/model"
    assert 'model="me/model"' in files["README.md"].decode()


def test_metrics_from_another_folder(make_folder, tmp_path):
    (tmp_path / "test").mkdir()
    record = RECORD | {"model": str(tmp_path / "run"), "metrics": {"mIoU": 12.3456}}
    (tmp_path / "test" / "metrics.json").write_text(json.dumps(record))
    files = push(make_folder(), metrics=tmp_path / "test" / "metrics.json")
    assert json.loads(files["metrics.json"])["metrics"] == {"mIoU": 12.3456}
    assert "12.35" in files["README.md"].decode() and "51.23" not in files["README.md"].decode()


@pytest.mark.parametrize("base", ["folder", "relative", "elsewhere", None])
def test_adapter_alone_needs_a_base_on_the_hub(make_folder, tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "base").mkdir(parents=True)
    named = {"folder": str(tmp_path / "outputs" / "base"), "relative": "outputs/base", "elsewhere": "outputs/other"}
    adapter = ADAPTER | {"base_model_name_or_path": named.get(base)}
    folder = make_folder(model=False, adapter=adapter)
    with pytest.raises(ValueError, match=re.escape(repr(named.get(base)))) as error:
        push(folder)
    assert "--base_model" in str(error.value)
    assert not FakeApi.created and not FakeApi.uploads
    files = push(folder, base_model="someone/model")
    assert json.loads(files["adapter_config.json"]) == adapter | {"base_model_name_or_path": "someone/model"}
    assert card_metadata(files["README.md"].decode())["base_model"] == ["someone/model"]
    assert json.loads((folder / "adapter_config.json").read_text()) == adapter


def test_errors(make_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor adapter_model.safetensors"):
        push(make_folder(model=False))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        push(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no_metrics.json"):
        push(make_folder(), metrics=tmp_path / "no_metrics.json")
    # A pickle beside nothing else is no model.
    folder = make_folder(model=False)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        push(folder)
    assert not FakeApi.created and not FakeApi.uploads


def test_command_line(make_folder, monkeypatch, capsys, tmp_path):
    (tmp_path / "measured.json").write_text(json.dumps(RECORD | {"metrics": {"mIoU": 1.25}}))
    folder = make_folder(model=False, adapter=True)
    command = [str(folder), "me/other", "--base_model", "me/model", "--metrics", str(tmp_path / "measured.json")]
    monkeypatch.setattr(sys, "argv", ["push_to_hub.py", *command, "--private"])
    push_to_hub.main()
    assert capsys.readouterr().out.strip() == "https://hub/me/other/commit/1"
    assert FakeApi.created == [("me/other", True)]
    files = FakeApi.uploads[-1].files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/model"
    assert "1.25" in files["README.md"].decode()


def test_recipes_name_a_repository_each():
    recipes = sorted((ROOT / "hub_configs" / "recipes").glob("*_videomae_*.json"))
    assert len(recipes) >= 10
    names = {}
    for path in recipes:
        owner, name = json.loads(path.read_text())["hub_model_id"].split("/")
        assert name == path.stem.replace("_", "-")
        names[path.stem] = f"{owner}/{name}"
    assert len(set(names.values())) == len(recipes)


def test_records_are_those_of_the_scripts(tmp_path, make_clip, tiny_config, tiny_tokenizer):
    """What the tests above take for records has the keys that training and evaluation write, and their types."""
    import run_temporal_grounding as training
    from transformers import AutoModel

    # By its path: `import evaluate` is the library.
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "scripts" / "evaluate.py")
    evaluation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluation)
    for name, config in (("video", tiny_config.video_config), ("text", tiny_config.text_config)):
        AutoModel.from_config(config).save_pretrained(tmp_path / name)
    tiny_tokenizer.save_pretrained(tmp_path / "text")
    make_clip("0.mp4", num_frames=20)
    row = {"video": "0.mp4", "sentences": ["it begins", "it ends"], "segments": [[0.0, 0.5], [1.5, 2.0]]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    recipe = {
        "video_model": str(tmp_path / "video"),
        "text_model": str(tmp_path / "text"),
        "dataset": str(tmp_path / "rows.jsonl"),
        "eval_split": "train",
        "num_frames": 16,
        "image_size": 32,
        "head_hidden_size": 16,
        "grid_size": 16,
        "max_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    training.main([str(tmp_path / "recipe.json")])
    arguments = [str(tmp_path / "run"), recipe["dataset"], "--split", "train", "--num_workers", "0"]
    evaluation.main([*arguments, "--output_dir", str(tmp_path / "measured")])
    shutil.copy(tmp_path / "measured" / "metrics.json", tmp_path / "run")

    def shape(value):
        return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value)

    for name, assumed in RECORDS.items():
        real = json.loads((tmp_path / "run" / name).read_text())
        for key, value in assumed.items():
            assert key in real, (name, key)
            if value is not None and key not in ("metrics", "how", "max_steps", "dataset", "commit"):
                assert shape(real[key]) == shape(value), (name, key)
    assert set(RECORD["how"]) <= set(real["how"]) and set(RECORD["metrics"]) <= set(real["metrics"])

    card = card_of(tmp_path / "run")
    assert str(tmp_path) not in card and "More Information" not in card
    for name, value in real["metrics"].items():
        assert f" {name} " in card and f"| {value:.2f} |" in card
    results = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert f"{results['trainable_head']:,}" in card and f"{results['trainable_backbone']:,}" in card
