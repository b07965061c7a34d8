"""
A small Hugging Face Hub on loopback for tests of uploads and downloads over HTTP. Tests use the client of
huggingface_hub in child processes.

- The server keeps repositories in memory, with all files of every commit, so tests can inspect any revision.
- The client reads `HF_ENDPOINT` once during its import, so it runs in child processes: `hub.run(code, home)`.
- An unknown request returns status 501 with the request's name. An error inside the server fails the test.
- Not implemented: Xet, organisations and their permissions (the single token has write access to every namespace),
  pagination, `.gitignore`, discussions, search, the dataset viewer, the inference of `pipeline_tag` from the
  configuration, and most checks of model cards.

Usage in a test module (or as a fixture in `conftest.py`):

```python
import hub_server

hub = hub_server.hub  # assigned, because ruff reports a redefinition for an import

def test_push(hub, tmp_path):
    hub.run("from huggingface_hub import create_repo; create_repo('user/name')", tmp_path / "home")
    assert list(hub.files("user/name")) == [".gitattributes"]
```
"""

import base64
import hashlib
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from fresh_process import run_python


# Relevant suffixes in the `.gitattributes` of a new repository on the real Hub.
LFS_SUFFIXES = (
    *(".arrow", ".bin", ".ckpt", ".gz", ".h5", ".model", ".msgpack", ".npy", ".npz", ".onnx", ".parquet", ".pickle"),
    *(".pkl", ".pt", ".pth", ".safetensors", ".tar", ".tgz", ".wasm", ".zip", ".zst"),
    *(".avi", ".gif", ".jpeg", ".jpg", ".mkv", ".mov", ".mp4", ".png", ".webm", ".webp"),
)
MAX_REGULAR_BYTES = 10_000_000
# Revision in a URL. Some clients do not quote the slashes of pull request references.
REVISION = r"(?:refs/(?:pr|convert)/[^/]+|[^/]+)"
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


class HubError(Exception):
    """Error response. The client selects its exception by `code`, the header `X-Error-Code` of the response."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.body = body or {"error": message}


class Request(NamedTuple):
    """Completed request, with its decoded path and without the query."""

    method: str
    path: str
    status: int
    byte_range: str | None


@dataclass(frozen=True)
class File:
    """Version of a file."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """Git LFS pointer of the file."""
        version, size = "https://git-lfs.github.com/spec/v1", len(self.content)
        return f"version {version}\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @cached_property
    def blob_id(self) -> str:
        """Git object id of the file, or of its pointer for a file in LFS."""
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        """Cache key of the client, which identifies unchanged files."""
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    """Commit with all files of its revision, by path."""

    oid: str
    parent: "Commit | None" = field(repr=False)
    title: str
    message: str
    date: str
    files: dict[str, File] = field(repr=False)

    def summary(self) -> dict:
        return {"id": self.oid, "title": self.title, "date": self.date}

    def history(self) -> Iterator["Commit"]:
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def last_change(self, path: str) -> "Commit":
        """Return the last commit with a change to a file, or to any file in a folder."""

        def version(commit: Commit | None) -> dict[str, str]:
            files = {} if commit is None else commit.files
            return {name: files[name].blob_id for name in files if name == path or name.startswith(f"{path}/")}

        return next(commit for commit in self.history() if version(commit) != version(commit.parent))

    def entry(self, path: str, expand: bool) -> dict | None:
        """Return the Hub's description of a file or folder, or `None` if the path does not exist."""
        if path in self.files:
            file = self.files[path]
            entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob_id}
            if file.lfs:
                entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
        else:
            inside = [f"{name} {file.blob_id}" for name, file in self.files.items() if name.startswith(f"{path}/")]
            if not inside:
                return None
            oid = hashlib.sha1("\n".join(sorted(inside)).encode()).hexdigest()
            entry = {"type": "directory", "path": path, "size": 0, "oid": oid}
        if expand:
            entry["lastCommit"] = self.last_change(path).summary()
        return entry


class Repository:
    """Repository with branches, tags and commits."""

    def __init__(self, repo_type: str, repo_id: str, private: bool):
        self.repo_type, self.repo_id, self.private = repo_type, repo_id, private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, Commit] = {}
        self.tags: dict[str, Commit] = {}
        lines = (f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.commit("main", "initial commit", "", {".gitattributes": File("".join(lines).encode(), lfs=False)})

    @property
    def url_path(self) -> str:
        return self.repo_id if self.repo_type == "model" else f"{self.repo_type}s/{self.repo_id}"

    def commit(self, branch: str, title: str, message: str, files: dict[str, File]) -> Commit:
        parent = self.branches.get(branch)
        # The number of commits distinguishes otherwise equal commits, such as initial commits of two branches.
        seed = json.dumps([self.url_path, len(self.commits), title, {path: files[path].blob_id for path in files}])
        oid = hashlib.sha1(seed.encode()).hexdigest()
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self.commits[oid] = self.branches[branch] = Commit(oid, parent, title, message, date, files)
        return self.commits[oid]

    def find(self, revision: str) -> Commit:
        """Return the commit of a branch, a tag or a full hash."""
        for names in (self.branches, self.tags, self.commits):
            if revision in names:
                return names[revision]
        raise HubError(404, f"Invalid rev id: {ascii(revision)}", "RevisionNotFound")


def card_metadata(content: str) -> dict:
    """Return the metadata of a card, or an empty dict for a card without metadata."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.DOTALL)
    metadata = yaml.safe_load(match[1]) if match else None
    if metadata is not None and not isinstance(metadata, dict):
        raise ValueError("the metadata of a card must be a mapping")
    return metadata or {}


def check_card(content: str, repo_type: str) -> list[str]:
    """Return validation errors of a card, based on known rules of the real Hub."""
    try:
        metadata = card_metadata(content)
    except (yaml.YAMLError, ValueError) as error:
        return [f"Invalid YAML: {error}"]
    if repo_type != "model":
        return []
    errors = []
    for key in ("library_name", "pipeline_tag"):
        if key in metadata and not isinstance(metadata[key], str):
            errors.append(f'"{key}" must be a string')
    for key, kind in (("base_model", "model"), ("datasets", "dataset"), ("metrics", None), ("tags", None)):
        values = metadata.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str):
                errors.append(f'"{key}" must be a string or a list of strings')
            # The most frequent invalid value is a local path.
            elif kind and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
                errors.append(f'"{key}" with value "{value}" is not valid. Use the id of a {kind} on the Hub.')
    if "model-index" in metadata:
        try:
            for model in metadata["model-index"]:
                model["name"]
                for result in model["results"]:
                    result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]
                    for metric in result["metrics"]:
                        metric["type"], metric["value"]
        except (KeyError, TypeError) as error:
            errors.append(f'"model-index" is not valid: {error!r}')
    return errors


class Hub:
    """
    Server of a Hub. As a context manager, it runs during the block.

    Attributes:
        url (`str`): Endpoint, `http://127.0.0.1:PORT`.
        user (`str`): Name of the single user.
        token (`str`): Token of the user.
        requests (`list[Request]`): Completed requests in order. Tests may clear the list.
        errors (`list[str]`): Tracebacks of errors inside the server. The fixture requires an empty list.
    """

    user = "user"
    token = "hf_loopback"

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.errors: list[str] = []
        self.lock = threading.Lock()
        self._server = Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        if (repo_type, repo_id) not in self.repositories:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.repositories[repo_type, repo_id]

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Return the files at a branch, tag or commit by path, including `.gitattributes`."""
        commit = self.repository(repo_id, repo_type).find(revision)
        return {path: file.content for path, file in sorted(commit.files.items())}

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[Commit]:
        """Return the commits of a branch, newest first."""
        return list(self.repository(repo_id, repo_type).find(revision).history())

    def downloads(self, repo_id: str, repo_type: str = "model") -> list[str]:
        """Return the paths of downloaded files in order, with one entry per download."""
        pattern = re.compile(rf"/{re.escape(self.repository(repo_id, repo_type).url_path)}/resolve/{REVISION}/(.+)")
        matches = ((request, pattern.fullmatch(request.path)) for request in self.requests)
        return [match[1] for request, match in matches if match and request.method == "GET" and request.status < 300]

    def environment(self, home: Path, hidden: Sequence[str] = (), **variables: str | None) -> dict[str, str]:
        """
        Return the environment variables for a client process of this server.

        Args:
            home (`Path`): `HF_HOME` of the process, with the cache and remote code. A new folder acts as a new host.
            hidden (`Sequence[str]`): Installed top-level modules that the process cannot import.
            variables: Further variables. `None` removes a variable, such as `HF_TOKEN=None` for a visitor.
        """
        home.mkdir(parents=True, exist_ok=True)
        prefixes = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
        environment |= {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # Otherwise the client requests the conversion of a pickled checkpoint from an internet service.
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "NO_PROXY": "127.0.0.1",
        }
        # Requests to other hosts fail at once, because no service listens on the discard port.
        environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
        # Lower-case names take precedence in some clients.
        environment |= {name.lower(): environment[name] for name in ("NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY")}
        for name, value in variables.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        if hidden:
            # Python imports `sitecustomize` first, and queries the finders in order.
            folder = home / "hidden_modules"
            folder.mkdir(exist_ok=True)
            (folder / "sitecustomize.py").write_text(HIDE_MODULES.format(names=set(hidden)))
            paths = [str(folder), *filter(None, [environment.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        return environment

    def run(self, code: str, home: Path, *arguments: str, timeout_seconds: float = 300, **environment) -> str:
        """
        Run Python code in a new process with `environment(home, **environment)`, in the folder `home / "work"`.

        The process receives `arguments` as `sys.argv[1:]`. Return its stdout, or raise an error with its stderr.
        """
        # Not in `home`, because the cache contains folders named `datasets` and `modules`. A file instead of `-c`, for
        # tracebacks and for worker processes that import the code.
        work = home / "work"
        work.mkdir(parents=True, exist_ok=True)
        (work / "child.py").write_text(code, encoding="utf-8")
        result = run_python(
            [work / "child.py", *arguments], work, self.environment(home, **environment), timeout_seconds
        )
        if result.returncode:
            tail = "\n".join(f"{request.status} {request.method} {request.path}" for request in self.requests[-8:])
            raise AssertionError(f"{result.stdout}\n{result.stderr}\nThe last requests were:\n{tail}")
        return result.stdout


HIDE_MODULES = """
import sys


class HideModules:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (hidden by tests/hub_server.py)", name=name)


sys.meta_path.insert(0, HideModules())
"""


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # clients connect with many threads at once

    def __init__(self, hub: Hub):
        self.hub = hub
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request, client_address):
        # A client may disconnect during a response.
        if not isinstance(sys.exception(), ConnectionError):
            self.hub.errors.append(traceback.format_exc())


class Handler(BaseHTTPRequestHandler):
    """Handler of one connection. The methods in `ROUTES` return JSON data or raise `HubError`."""

    protocol_version = "HTTP/1.1"  # keeps connections open, as on the real Hub
    wbufsize = -1  # sends headers and body together, to save one acknowledgement per response

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def answer(self):
        self.body = self.read_body()
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.commit_hash = None
        try:
            self.check_token()
            for method, pattern, name in ROUTES:
                match = pattern.fullmatch(url.path)
                if match and self.command == method:
                    groups = {group: value and unquote(value) for group, value in match.groupdict().items()}
                    answer = getattr(self, name)(**groups)
                    break
            else:
                raise HubError(501, f"tests/hub_server.py knows no {self.command} {ascii(unquote(url.path))}")
            if answer is not None:
                self.send(200, json.dumps(answer).encode())
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            self.send(error.status, json.dumps(error.body).encode(), headers)
        except ConnectionError:
            raise  # the client has disconnected
        except Exception as error:
            self.hub.errors.append(traceback.format_exc())
            self.send(500, json.dumps({"error": ascii(error)}).encode())

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # skip trailers up to the empty line
            pass
        return b"".join(chunks)

    def send(self, status: int, body: bytes, headers: dict | None = None):
        self.send_response(status)
        headers = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
        if self.commit_hash:
            headers["X-Repo-Commit"] = self.commit_hash
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_request(self, code="-", size="-"):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, path, int(code), self.headers.get("Range")))

    def log_message(self, *arguments):
        """Print no log, because `hub.requests` contains all requests."""

    # Users and revisions

    def check_token(self):
        """Raise an error for an invalid token. A client without a token may read only public repositories."""
        header = self.headers.get("Authorization")
        self.is_visitor = header is None
        if header not in (None, f"Bearer {self.hub.token}"):
            raise HubError(401, "Invalid credentials in Authorization header")

    def require_user(self):
        if self.is_visitor:
            raise HubError(401, "Invalid username or password.")

    def find_repository(self, kind: str | None, repo_id: str) -> Repository:
        repository = self.hub.repositories.get((KINDS[kind or "models"], repo_id))
        if repository is None or (repository.private and self.is_visitor):
            # As on the real Hub, the response hides private repositories from visitors.
            raise HubError(401 if self.is_visitor else 404, "Repository not found", "RepoNotFound")
        return repository

    def find_commit(self, kind: str | None, repo_id: str, revision: str | None) -> tuple[Repository, Commit]:
        repository = self.find_repository(kind, repo_id)
        commit = repository.find(revision or "main")
        self.commit_hash = commit.oid
        return repository, commit

    # The user and the repositories

    def whoami(self) -> dict:
        self.require_user()
        token = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        return {"type": "user", "id": "0", "name": self.hub.user, "fullname": self.hub.user, "orgs": [], "auth": token}

    def validate_yaml(self) -> dict:
        request = json.loads(self.body)
        errors = [{"message": message} for message in check_card(request["content"], request["repoType"] or "model")]
        if errors:
            raise HubError(400, "Invalid metadata in README.md", errors=errors, warnings=[])
        message = "empty or missing yaml metadata in repo card"
        return {"errors": [], "warnings": [] if card_metadata(request["content"]) else [{"message": message}]}

    def requested_name(self) -> tuple[str, str]:
        request = json.loads(self.body)
        return request.get("type") or "model", f"{request.get('organization') or self.hub.user}/{request['name']}"

    def create_repository(self) -> dict:
        self.require_user()
        repo_type, repo_id = name = self.requested_name()
        request = json.loads(self.body)
        with self.hub.lock:
            exists = name in self.hub.repositories
            if not exists:
                private = request.get("visibility") == "private" or bool(request.get("private"))
                self.hub.repositories[name] = Repository(repo_type, repo_id, private)
        url = f"{self.hub.url}/{self.hub.repositories[name].url_path}"
        if exists:
            # With `exist_ok=True`, the client reads the URL from this response.
            raise HubError(409, "You already created this repo", error="You already created this repo", url=url)
        return {"url": url, "name": repo_id, "id": repo_id}

    def delete_repository(self) -> dict:
        self.require_user()
        with self.hub.lock:
            if self.hub.repositories.pop(self.requested_name(), None) is None:
                raise HubError(404, "Repository not found", "RepoNotFound")
        return {}

    def repository_info(self, kind: str, repo_id: str, revision: str | None = None) -> dict:
        repository, commit = self.find_commit(kind, repo_id, revision)
        siblings = []
        for path, file in sorted(commit.files.items()):
            sibling = {"rfilename": path}
            if "blobs" in self.query:
                sibling |= {"size": len(file.content), "blobId": file.blob_id}
                if file.lfs:
                    pointer_size = len(file.pointer)
                    sibling["lfs"] = {"sha256": file.sha256, "size": sibling["size"], "pointerSize": pointer_size}
            siblings.append(sibling)
        *_, first = commit.history()
        info = {
            "id": repo_id,
            "author": repo_id.split("/")[0],
            "sha": commit.oid,
            "createdAt": first.date,
            "lastModified": commit.date,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
        if "README.md" in commit.files:
            metadata = card_metadata(commit.files["README.md"].content.decode())
            info |= {"cardData": metadata, "tags": metadata.get("tags", [])}
            if repository.repo_type == "model":
                names = ("pipeline_tag", "library_name", "model-index")
                info |= {name: metadata[name] for name in names if name in metadata}
        if repository.repo_type == "model" and "config.json" in commit.files:
            info.setdefault("library_name", "transformers")
        return info

    def list_references(self, kind: str, repo_id: str) -> dict:
        repository = self.find_repository(kind, repo_id)
        answer: dict[str, list] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for name, commit in repository.branches.items():
            is_request = name.startswith("refs/pr/")
            reference = {"name": name.removeprefix("refs/pr/"), "ref": name, "targetCommit": commit.oid}
            if not is_request:
                reference["ref"] = f"refs/heads/{name}"
            answer["pullRequests" if is_request else "branches"].append(reference)
        for name, commit in repository.tags.items():
            answer["tags"].append({"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit.oid})
        return answer

    def create_reference(self, kind: str, repo_id: str, what: str, name: str) -> dict:
        self.require_user()
        repository = self.find_repository(kind, repo_id)
        request = json.loads(self.body or b"{}")
        # For a branch, the URL contains its name and the body its start. For a tag, the reverse.
        if what == "branch":
            names, start = repository.branches, request.get("startingPoint") or "main"
        else:
            names, start, name = repository.tags, name, request["tag"]
        with self.hub.lock:
            if name in names:
                raise HubError(409, f"Reference already exists: {ascii(name)}")
            names[name] = repository.find(start)
        return {}

    def delete_reference(self, kind: str, repo_id: str, what: str, name: str) -> dict:
        self.require_user()
        repository = self.find_repository(kind, repo_id)
        names = repository.branches if what == "branch" else repository.tags
        if names is repository.branches and name == "main":
            raise HubError(403, "The branch main cannot be deleted")
        if names.pop(name, None) is None:
            raise HubError(404, f"Invalid rev id: {ascii(name)}", "RevisionNotFound")
        return {}

    def list_commits(self, kind: str, repo_id: str, revision: str) -> list:
        _, commit = self.find_commit(kind, repo_id, revision)
        authors = [{"user": self.hub.user}]
        return [{**one.summary(), "message": one.message, "authors": authors} for one in commit.history()]

    # Repository contents

    def list_tree(self, kind: str, repo_id: str, revision: str, path: str | None = None) -> list:
        _, commit = self.find_commit(kind, repo_id, revision)
        path = (path or "").strip("/")
        prefix = f"{path}/" if path else ""
        is_recursive, expand = (self.query.get(name, [""])[0].lower() == "true" for name in ("recursive", "expand"))
        paths = set()
        for name in commit.files:
            if name.startswith(prefix):
                parts = name.removeprefix(prefix).split("/")
                depths = range(1, len(parts) + 1 if is_recursive else 2)
                paths |= {prefix + "/".join(parts[:depth]) for depth in depths}
        if path and not paths:
            raise HubError(404, f"{ascii(path)} is no folder at this revision", "EntryNotFound")
        return [commit.entry(name, expand) for name in sorted(paths)]

    def list_paths(self, kind: str, repo_id: str, revision: str) -> list:
        _, commit = self.find_commit(kind, repo_id, revision)
        request = parse_qs(self.body.decode())
        expand = request.get("expand", [""])[0].lower() == "true"
        entries = (commit.entry(path.strip("/"), expand) for path in request.get("paths", []))
        return [entry for entry in entries if entry is not None]

    def send_file(self, kind: str | None, repo_id: str, revision: str, path: str):
        """Send a file, or a part for `Range: bytes=FIRST-[LAST]` or `bytes=-COUNT`."""
        _, commit = self.find_commit(kind, repo_id, revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        file = commit.files[path]
        size = len(file.content)
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(size)}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or not any(match.groups()):
            return self.send(200, file.content, headers)
        if match[1]:
            first, last = int(match[1]), min(int(match[2] or size), size - 1)
        else:
            first, last = max(size - int(match[2]), 0), size - 1
        if first > last:
            return self.send(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.send(206, file.content[first : last + 1], headers)

    # Commits: request the upload mode of each file, upload large files, then send the remaining ones

    def plan_upload(self, kind: str, repo_id: str, revision: str) -> dict:
        self.require_user()
        _, commit = self.find_commit(kind, repo_id, revision)
        files = []
        for file in json.loads(self.body)["files"]:
            path, sample = file["path"], base64.b64decode(file.get("sample", ""))
            is_large = file["size"] > MAX_REGULAR_BYTES or b"\0" in sample
            mode = "lfs" if is_large or path.endswith(LFS_SUFFIXES) else "regular"
            known = {"oid": commit.files[path].etag} if path in commit.files else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return {"files": files}

    def plan_lfs_upload(self, kind: str | None, repo_id: str) -> dict:
        self.require_user()
        self.find_repository(kind, repo_id)
        objects = []
        for request in json.loads(self.body)["objects"]:
            answer = {"oid": request["oid"], "size": request["size"]}
            if request["oid"] not in self.hub.lfs_objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs-objects/{request['oid']}"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def put_lfs_object(self, oid: str):
        # Without a token, because the real Hub uses signed URLs of another host.
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "The content does not match the announced hash")
        self.hub.lfs_objects[oid] = self.body
        self.send(200, b"")

    def make_commit(self, kind: str, repo_id: str, revision: str) -> dict:
        self.require_user()
        repository = self.find_repository(kind, repo_id)
        operations = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = operations.pop(0)["value"]
        with self.hub.lock:
            if revision not in repository.branches:
                raise HubError(404, f"Invalid rev id: {ascii(revision)}", "RevisionNotFound")
            parent = repository.branches[revision]
            if header.get("parentCommit") not in (None, parent.oid):
                # On this status, `datasets` reloads the repository and retries.
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(parent.files)
            for operation in operations:
                self.apply(operation["key"], operation["value"], files)
            answer = {"success": True}
            if "create_pr" in self.query:
                number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
                revision = f"refs/pr/{number}"
                repository.branches[revision] = parent
                answer["pullRequestUrl"] = f"{self.hub.url}/{repository.url_path}/discussions/{number}"
            commit = repository.commit(revision, header["summary"], header.get("description", ""), files)
        url = f"{self.hub.url}/{repository.url_path}/commit/{commit.oid}"
        return {**answer, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""}

    def apply(self, key: str, value: dict, files: dict[str, File]):
        """Apply one operation of a commit to the files of its parent."""
        path = value["path"].rstrip("/")
        if key == "file":
            is_coded = value.get("encoding") == "base64"
            content = base64.b64decode(value["content"]) if is_coded else value["content"].encode()
            files[path] = File(content, lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in self.hub.lfs_objects:
                raise HubError(400, f"The LFS object {value['oid']} was not uploaded")
            files[path] = File(self.hub.lfs_objects[value["oid"]], lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            is_folder = key == "deletedFolder"
            names = [name for name in files if name == path or (is_folder and name.startswith(f"{path}/"))]
            if not names:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in names:
                del files[name]
        else:
            raise HubError(501, f"tests/hub_server.py knows no {ascii(key)} in a commit")


def routes() -> list[tuple[str, re.Pattern, str]]:
    repo_id = r"(?P<repo_id>[^/]+(?:/[^/]+)?)"
    api = rf"/api/(?P<kind>models|datasets|spaces)/{repo_id}"
    web = rf"/(?:(?P<kind>datasets|spaces)/)?{repo_id}"
    revision = f"(?P<revision>{REVISION})"
    table = [
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/validate-yaml", "validate_yaml"),
        ("POST", "/api/repos/create", "create_repository"),
        ("DELETE", "/api/repos/delete", "delete_repository"),
        ("GET", rf"{api}/revision/{revision}", "repository_info"),
        ("GET", rf"{api}/refs", "list_references"),
        ("GET", rf"{api}/commits/{revision}", "list_commits"),
        ("GET", rf"{api}/tree/{revision}(?:/(?P<path>.*))?", "list_tree"),
        ("GET", api, "repository_info"),
        ("POST", rf"{api}/paths-info/{revision}", "list_paths"),
        ("POST", rf"{api}/preupload/{revision}", "plan_upload"),
        ("POST", rf"{api}/commit/{revision}", "make_commit"),
        ("POST", rf"{api}/(?P<what>branch|tag)/(?P<name>.+)", "create_reference"),
        ("DELETE", rf"{api}/(?P<what>branch|tag)/(?P<name>.+)", "delete_reference"),
        ("POST", rf"{web}\.git/info/lfs/objects/batch", "plan_lfs_upload"),
        ("PUT", "/lfs-objects/(?P<oid>[0-9a-f]{64})", "put_lfs_object"),
        ("GET", rf"{web}/resolve/{revision}/(?P<path>.+)", "send_file"),
        ("HEAD", rf"{web}/resolve/{revision}/(?P<path>.+)", "send_file"),
    ]
    return [(method, re.compile(pattern), name) for method, pattern, name in table]


ROUTES = routes()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Yield an empty Hub for a single test."""
    with Hub() as server:
        yield server
    assert not server.errors, "\n".join(server.errors)
