"""The small Hub of `hub_server.py`, through the real clients, each in a process of its own."""

import json
from pathlib import Path

import pytest
from hub_server import Hub, check_card


# More than one read of a socket, and no two bytes of a kilobyte in the same place.
WEIGHTS = b"".join(number.to_bytes(4, "big") for number in range(100_000))
FILES = {
    "config.json": b'{"name": "\xc3\xbc"}\n',
    "empty.txt": b"",
    "model.safetensors": WEIGHTS,
    "nested/deeper/notes, 100% b&w #1.txt": b"a name to be quoted",
    "nested/deeper/größe 動画.txt": "größe".encode(),
    "nested/sniffed.dat": b"\0\1\2 no suffix says so, but this is no text",
}


def write_files(folder: Path) -> Path:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


UPLOAD = """
import json, sys
from huggingface_hub import CommitOperationAdd, HfApi, create_repo
from huggingface_hub.errors import HfHubHTTPError

api = HfApi()
assert api.whoami()["name"] == "user"
for repo_type in ("model", "dataset", "space"):
    sdk = "gradio" if repo_type == "space" else None
    url = create_repo("files", repo_type=repo_type, space_sdk=sdk)
    assert (url.repo_id, url.repo_type) == ("user/files", repo_type)
    assert create_repo("user/files", repo_type=repo_type, space_sdk=sdk, exist_ok=True) == url
    api.upload_folder(repo_id="user/files", repo_type=repo_type, folder_path=sys.argv[1])

# Two more commits, from bytes: one changes files of both kinds and adds one, the other deletes.
change = {"config.json": b"{}", "model.safetensors": b"other weights", "new/file.txt": b"new"}
operations = [CommitOperationAdd(path, content) for path, content in change.items()]
changed = api.create_commit("user/files", operations, commit_message="change", commit_description="why")
api.delete_folder("nested/deeper", "user/files")
deleted = api.delete_file("empty.txt", "user/files")
# Not on top of a commit that is no longer the last one, and what is there already makes no commit.
try:
    operations = [CommitOperationAdd("late.txt", b"late")]
    api.create_commit("user/files", operations, commit_message="late", parent_commit=changed.oid)
    raise SystemExit("there was no error")
except HfHubHTTPError as error:
    assert error.response.status_code == 412
same = api.upload_file(repo_id="user/files", path_or_fileobj=b"other weights", path_in_repo="model.safetensors")
assert same.oid == deleted.oid

api.create_tag("user/files", tag="v1", revision=changed.oid)
api.create_branch("user/files", branch="side/branch")
api.upload_file(repo_id="user/files", path_or_fileobj=b"s", path_in_repo="side.txt", revision="side/branch")
asked = api.upload_file(repo_id="user/files", path_or_fileobj=b"p", path_in_repo="pr.txt", create_pr=True)
assert asked.pr_revision == "refs/pr/1"
print(changed.oid)
"""

DOWNLOAD = """
import hashlib, io, json, sys
from pathlib import Path
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import http_get, hf_hub_url

api = HfApi()
source = Path(sys.argv[1])
expected = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
commits = api.list_repo_commits("user/files")
assert [commit.title for commit in commits][-3:] == ["change", "Upload folder using huggingface_hub", "initial commit"]
first, changed = commits[-2].commit_id, commits[-3].commit_id
assert commits[-3].message == "why" and changed == sys.argv[2]


def snapshot(**arguments):
    folder = Path(snapshot_download("user/files", **arguments))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files.pop(".gitattributes")
    return {path: content for path, content in files.items() if not path.startswith(".cache/")}


def git_hash(content):
    return hashlib.sha1(b"blob %d\\0" % len(content) + content).hexdigest()


# All types, and the old revision; then the states after it, by each kind of name.
assert snapshot(revision=first) == snapshot(repo_type="dataset") == snapshot(repo_type="space") == expected
then = {**expected, "config.json": b"{}", "model.safetensors": b"other weights", "new/file.txt": b"new"}
assert snapshot(revision="v1") == snapshot(revision=changed) == then
now = {path: then[path] for path in ("config.json", "model.safetensors", "nested/sniffed.dat", "new/file.txt")}
assert snapshot() == snapshot(local_dir="here") == now
assert snapshot(revision="side/branch") == {**now, "side.txt": b"s"}
assert snapshot(revision="refs/pr/1") == {**now, "pr.txt": b"p"}

# What is said about them
infos = {info.path: info for info in api.list_repo_tree("user/files", recursive=True, revision=first, expand=True)}
assert {path for path, info in infos.items() if hasattr(info, "tree_id")} == {"nested", "nested/deeper"}
assert {path for path in expected if infos[path].lfs} == {"model.safetensors", "nested/sniffed.dat"}
for path, content in expected.items():
    assert infos[path].size == len(content) and infos[path].last_commit.oid == first
    assert not infos[path].lfs or infos[path].lfs.sha256 == hashlib.sha256(content).hexdigest()
refs = api.list_repo_refs("user/files", include_pull_requests=True)
assert {ref.name for ref in refs.branches} == {"main", "side/branch"} and refs.tags[0].target_commit == changed
assert refs.pull_requests[0].ref == "refs/pr/1"
[known] = api.get_paths_info("user/files", ["config.json", "nope"])
assert (known.path, known.size, known.blob_id) == ("config.json", 2, git_hash(b"{}"))
info = api.model_info("user/files", files_metadata=True)
sizes = {one.rfilename: one.size for one in info.siblings if one.rfilename != ".gitattributes"}
assert sizes == {path: len(content) for path, content in now.items()}

# Parts of a file: a download goes on where it stopped, and a stream seeks.
url = hf_hub_url("user/files", "model.safetensors", revision=first)
weights = expected["model.safetensors"]
for got in (1, 250_001, len(weights)):
    file = io.BytesIO()
    file.write(weights[:got])
    http_get(url, file, resume_size=got, expected_size=len(weights))
    assert file.getvalue() == weights
with HfFileSystem().open(f"user/files@{first}/model.safetensors", block_size=1000) as file:
    file.seek(300_000)
    assert file.read(10) == weights[300_000:300_010]
    file.seek(-7, 2)
    assert file.read() == weights[-7:]

# What is not there, each with the error that callers wait for
assert api.file_exists("user/files", "config.json") and not api.file_exists("user/files", "empty.txt")
assert not api.repo_exists("user/nope") and not api.repo_exists("nope") and not api.revision_exists("user/files", "v2")
for arguments, error in (
    (("user/files", "nope.json"), EntryNotFoundError),
    (("user/nope", "config.json"), RepositoryNotFoundError),
    (("nope", "config.json"), RepositoryNotFoundError),
):
    try:
        hf_hub_download(*arguments)
        raise SystemExit(f"{arguments} is there")
    except error:
        pass
for call, error in (
    (lambda: hf_hub_download("user/files", "config.json", revision="v2"), RevisionNotFoundError),
    (lambda: api.delete_file("nope.json", "user/files"), EntryNotFoundError),
    (lambda: api.upload_file(path_or_fileobj=b"---\\na: [\\n---\\n", path_in_repo="README.md", repo_id="user/files"),
     ValueError),
):
    try:
        call()
        raise SystemExit("there was no error")
    except error:
        pass
"""


def test_files_come_back_as_they_were_sent(hub, tmp_path):
    source = write_files(tmp_path / "source")
    changed = hub.run(UPLOAD, tmp_path / "writer", str(source)).strip()

    assert {path: content for path, content in hub.files("user/files", "space").items() if path in FILES} == FILES
    assert set(hub.files("user/files", "space")) == {*FILES, ".gitattributes"}
    assert hub.files("user/files", revision=changed)["model.safetensors"] == b"other weights"
    assert set(hub.files("user/files")) == {
        *(".gitattributes", "config.json", "model.safetensors", "nested/sniffed.dat", "new/file.txt")
    }
    titles = [commit.title for commit in hub.commits("user/files", revision=changed)]
    assert titles == ["change", "Upload folder using huggingface_hub", "initial commit"]
    # The same content is put once, whichever repository it is for.
    puts = [request.path for request in hub.requests if request.method == "PUT"]
    assert len(puts) == len(set(puts)) == 3

    hub.requests.clear()
    hub.run(DOWNLOAD, tmp_path / "reader", str(source), changed)
    ranges = [request.byte_range for request in hub.requests if request.status == 206]
    assert ranges[:2] == ["bytes=1-", "bytes=250001-"]
    assert "nested/deeper/größe 動画.txt" in hub.downloads("user/files", "dataset")


PRIVATE = """
import sys
from huggingface_hub import HfApi, create_repo, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

api = HfApi()
if sys.argv[1] == "owner":
    for name in ("open", "closed", "gone"):
        create_repo(f"user/{name}", private=name != "open")
    api.upload_file(repo_id="user/closed", path_or_fileobj=b"secret", path_in_repo="a.txt")
    assert api.model_info("user/closed").private and not api.model_info("user/open").private
    api.delete_repo("user/gone")
    assert not api.repo_exists("user/gone")
else:
    assert api.list_repo_files("user/open") == [".gitattributes"]
    for call, error in (
        (lambda: hf_hub_download("user/closed", "a.txt"), RepositoryNotFoundError),
        (lambda: api.upload_file(repo_id="user/open", path_or_fileobj=b"", path_in_repo="a"), HfHubHTTPError),
        (lambda: create_repo("user/other"), HfHubHTTPError),
    ):
        try:
            call()
            raise SystemExit("there was no error")
        except error as caught:
            assert caught.response.status_code == 401
"""


def test_who_may_do_what(hub, tmp_path):
    hub.run(PRIVATE, tmp_path / "owner", "owner")
    hub.run(PRIVATE, tmp_path / "visitor", "visitor", HF_TOKEN=None)
    with pytest.raises(AssertionError, match="Invalid user token"):
        hub.run("import huggingface_hub; huggingface_hub.whoami()", tmp_path / "thief", HF_TOKEN="hf_stolen")


ENVIRONMENT = """
import os, sys
import httpx2
from huggingface_hub import constants

assert not constants.HF_HUB_OFFLINE
assert str(constants.HF_HUB_CACHE) == os.path.join(os.environ["HF_HOME"], "hub")
try:
    import wave.anything
    raise SystemExit("a hidden module was imported")
except ModuleNotFoundError as error:
    assert error.name == "wave"
try:
    httpx2.get("https://huggingface.co/api/models")
    raise SystemExit("the internet was reached")
except httpx2.ConnectError:
    pass
response = httpx2.get(os.environ["HF_ENDPOINT"] + "/api/unheard-of")
assert response.status_code == 501 and "/api/unheard-of" in response.json()["error"]
"""


def test_environment(hub, tmp_path):
    hub.run(ENVIRONMENT, tmp_path / "home", hidden=["wave"])
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        hub.run("1 / 0", tmp_path / "home")


def test_two_hubs_know_nothing_of_each_other(hub, tmp_path):
    with Hub() as other:
        hub.run("from huggingface_hub import create_repo; create_repo('user/name')", tmp_path / "home")
        assert list(hub.files("user/name")) == [".gitattributes"]
        assert not other.requests and not other.repositories


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\nlibrary_name: transformers\nbase_model: user/name\ndatasets: [squad]\n---\n# Title", None),
        ("# no metadata", None),
        ("---\n- a\n---\n", "must be a mapping"),
        ("---\na: [\n---\n", "Invalid YAML"),
        ("---\nbase_model: /tmp/checkpoint\n---\n", '"base_model" with value "/tmp/checkpoint"'),
        ("---\nmetrics:\n- {}\n---\n", '"metrics" must be a string'),
        ("---\nlibrary_name: 3\n---\n", '"library_name" must be a string'),
        ("---\nmodel-index:\n- name: a\n  results:\n  - task: {type: b}\n---\n", '"model-index" is not valid'),
    ],
)
def test_check_card(card, message):
    errors = check_card(card, "model")
    assert len(errors) == (message is not None)
    assert message is None or message in errors[0]


PUSH_DATASETS = """
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi

rows = Dataset.from_dict({"video": ["a.mp4", "b.mp4", "c.mp4"], "start_seconds": [0.0, 1.5, 2.25]})
rows.push_to_hub("user/rows", split="train", num_shards=2)
rows.select([1]).push_to_hub("user/rows", split="test")  # a second commit, which has to read the first one's card
DatasetDict(train=rows.select([2])).push_to_hub("user/rows", revision="other")
api = HfApi()
api.create_repo("user/csv", repo_type="dataset", private=True)
for split, text in (("train", b"video,x\\na.mp4,1\\nb.mp4,2\\n"), ("test", b"video,x\\nc.mp4,3\\n")):
    api.upload_file(repo_id="user/csv", repo_type="dataset", path_or_fileobj=text, path_in_repo=f"data/{split}.csv")
"""

LOAD_DATASETS = """
from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError

expected = [("a.mp4", 0.0), ("b.mp4", 1.5), ("c.mp4", 2.25)]


def rows(dataset):
    return [tuple(row.values()) for row in dataset]


for streaming in (False, True):
    splits = load_dataset("user/rows", streaming=streaming)
    assert set(splits) == {"train", "test"}
    assert rows(splits["train"]) == expected and rows(splits["test"]) == expected[1:2]
    assert rows(load_dataset("user/rows", split="train", revision="other", streaming=streaming)) == expected[2:]
    # Without a card: the splits are told from the names of the files.
    assert rows(load_dataset("user/csv", split="test", streaming=streaming)) == [("c.mp4", 3)]
one = load_dataset("csv", data_files="hf://datasets/user/csv/data/train.csv", split="train")
assert rows(one) == [("a.mp4", 1), ("b.mp4", 2)]
try:
    load_dataset("user/nope")
    raise SystemExit("there was no error")
except DatasetNotFoundError:
    pass
"""


def test_datasets_push_and_load(hub, tmp_path):
    hub.run(PUSH_DATASETS, tmp_path / "writer")
    names = {path for path in hub.files("user/rows", "dataset") if path.startswith("data/")}
    shards = {f"data/train-0000{number}-of-00002.parquet" for number in range(2)}
    assert names == {*shards, "data/test-00000-of-00001.parquet"}
    assert hub.repository("user/rows", "dataset").find("main").files[shards.pop()].lfs
    hub.run(LOAD_DATASETS, tmp_path / "reader")


PUSH_MODEL = """
import json, torch
from transformers import BertConfig, BertModel

config = BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, name_or_path=""
)
model = BertModel(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    output = model(torch.tensor([[1, 2, 3]])).last_hidden_state
model.push_to_hub("user/bert", private=True)
with torch.no_grad():
    model.pooler.dense.bias.zero_()
model.push_to_hub("user/bert", commit_message="second", create_pr=True)
print(json.dumps(output.tolist()))
"""

LOAD_MODEL = """
import json, sys, torch
from transformers import AutoModel

for revision in ("main", "refs/pr/1"):
    model = AutoModel.from_pretrained("user/bert", revision=revision).eval()
    with torch.no_grad():
        output = model(torch.tensor([[1, 2, 3]])).last_hidden_state
    assert type(model).__name__ == "BertModel" and output.tolist() == json.loads(sys.argv[1])
    assert model.pooler.dense.bias.any() == (revision == "main")
try:
    AutoModel.from_pretrained("user/nope")
    raise SystemExit("there was no error")
except OSError as error:
    assert "not a valid model identifier" in str(error)
"""


def test_transformers_push_and_load(hub, tmp_path):
    output = hub.run(PUSH_MODEL, tmp_path / "writer").strip().splitlines()[-1]
    assert json.loads(hub.files("user/bert")["config.json"])["model_type"] == "bert"
    hub.requests.clear()
    hub.run(LOAD_MODEL, tmp_path / "reader", output)
    assert set(hub.downloads("user/bert")) == {"config.json", "model.safetensors"}
    # It asks for files that need not be there, and goes on.
    assert {request.status for request in hub.requests if request.path.endswith("adapter_config.json")} == {404}
