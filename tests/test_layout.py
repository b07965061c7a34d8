"""What the layout promises: scripts are thin and on their own, and file names are unique where code is copied flat."""

import ast
import re
import shlex
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml


REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))


def imported(path: Path) -> set[str]:
    """The first parts of the names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_imports_no_other_and_is_short(path):
    assert not imported(path) & ({other.stem for other in SCRIPTS} | {"scripts"})
    assert len(path.read_text().splitlines()) <= 500


def test_file_names_are_unique():
    paths = [path for package in ("modeling_scada", "processing") for path in (REPOSITORY / package).glob("*.py")]
    counts = Counter(path.name for path in paths)
    assert [name for name, count in counts.items() if count > 1] == ["__init__.py"]


def test_text_files_are_utf_8_on_every_system():
    """Python's default is the system's encoding, which on Windows is another."""
    without = []
    for path in [
        file for folder in ("modeling_scada", "processing", "scripts") for file in (REPOSITORY / folder).rglob("*.py")
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            of_library = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in (
                "av",
                "os",
                "webbrowser",
            )
            is_binary = any(isinstance(value, ast.Constant) and "b" in str(value.value) for value in node.args[-1:])
            named = {keyword.arg for keyword in node.keywords}
            if name in ("read_text", "write_text") and "encoding" not in named:
                without.append(f"{path.name}:{node.lineno}")
            if name == "open" and not (of_library or is_binary or "encoding" in named):
                without.append(f"{path.name}:{node.lineno}")
    assert not without


def test_the_forge_runs_what_there_is():
    """Each file of the forge parses; its `make` targets are in the Makefile, and its hooks call what is installed."""
    made = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for path in (REPOSITORY / ".github" / "workflows").glob("*.yml"):
        # YAML 1.1, which PyYAML reads, takes `on` for true.
        workflow = yaml.safe_load(path.read_text())
        assert workflow[True] and workflow["permissions"] == {"contents": "read"}, path.name
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 60
            commands = [step.get("run", "") for step in job["steps"]]
            for combination in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
                for name, value in combination.items():
                    commands += [command.replace(f"${{{{ matrix.{name} }}}}", value) for command in commands]
            for command in commands:
                words = shlex.split(command)
                if words[:1] == ["make"] and "${{" not in command:
                    assert {word for word in words[1:] if "=" not in word} <= made, command
    for form in (REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*_re*.yml"):
        fields = yaml.safe_load(form.read_text())["body"]
        assert len({field["id"] for field in fields}) == len(fields) and all(
            "label" in f["attributes"] for f in fields
        )
    (repository,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    quality = re.search(r"^quality:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[1]
    tools = [line.split()[0].removeprefix("$(BIN)/") for line in quality.splitlines()]
    assert [hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repository["hooks"]] == tools


def test_the_oldest_releases_are_those_that_pyproject_allows():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["plot"]
    floors = dict(re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups() for requirement in requirements)
    lines = (REPOSITORY / ".ci" / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert oldest.pop("torch") == re.search(r"^torch==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.M)[1]
    del floors["torch"]
    assert oldest.keys() == floors.keys()
    for name, floor in floors.items():
        assert re.fullmatch(rf"{re.escape(floor)}(\.0)*", oldest[name]), name


PACKAGES = ("modeling_scada", "processing")
# Each folder is copied flat, and a file follows from another by its relative imports.
ENTRIES = ("modeling_scada/modeling_scada.py", "processing/processing_scada.py")
RELATIVE = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)


def copied_to_the_hub() -> set[str]:
    found, todo = set(), [*ENTRIES]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            text = (REPOSITORY / path).read_text(encoding="utf-8")
            todo += [str(Path(path).with_name(f"{name}.py")) for name in RELATIVE.findall(text)]
    return found


def test_what_the_hub_gets_is_flat_and_no_more_than_needed():
    found = copied_to_the_hub()
    own = {f"modeling_scada/{path.name}" for path in (REPOSITORY / "modeling_scada").glob("*.py")}
    assert {path for path in found if path.startswith("modeling_scada")} == own - {
        "modeling_scada/__init__.py",
        "modeling_scada/app.py",
    }
    assert {Path(path).stem for path in found if path.startswith("processing")} == {
        "encoded_video",
        "fingerprint",
        "pipeline_temporal_grounding",
        "post_processing",
        "processing_scada",
        "reading_ahead",
        "timeline",
        "video_io",
        "video_opening",
        "video_processing_scada",
        "video_reading",
        "video_url",
        "whole_files",
    }
    for path in found:
        assert not re.search(r"^\s*from \.\.", (REPOSITORY / path).read_text(encoding="utf-8"), re.MULTILINE), path


def test_arrows_between_the_packages_go_one_way():
    """`processing` never imports `modeling_scada`, but for the commands: inside their handlers, after all checks."""
    for path in (REPOSITORY / "processing").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "modeling_scada":
                assert path.parent.name == "commands" and id(node) not in top, f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert not [alias for alias in node.names if alias.name.split(".")[0] == "modeling_scada"], path.name


def test_each_folder_says_what_it_holds():
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("__init__.py"):
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
