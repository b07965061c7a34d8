"""The messages that docs/troubleshooting.md quotes occur in the sources, so that a reader can find them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
FIRST_CELLS = [cell for cell in re.findall(r"^\| (.+?) \|", PAGE, flags=re.MULTILINE) if cell != "Message"]
QUOTES = [cell.strip("`") for cell in FIRST_CELLS if cell.startswith("`")]
# Messages of other libraries.
NOT_OURS = ["CUDA out of memory"]
VALUE = "\N{OBJECT REPLACEMENT CHARACTER}"


def messages(source: str) -> Iterator[str]:
    """Yield the string constants of a module except docstrings, and its f-strings with `VALUE` for each value."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            skipped.update(map(id, node.values))
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def occurs(quote: str, message: str) -> bool:
    """Return whether a message contains a quote, in which `...` stands for any text."""
    return re.search(".*".join(map(re.escape, quote.split("..."))), message, flags=re.DOTALL) is not None


@pytest.fixture(scope="module")
def all_messages() -> list[str]:
    paths = [path for package in ("modeling_scada", "processing") for path in (REPOSITORY / package).rglob("*.py")]
    return [message for path in sorted(paths) for message in messages(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_occurs_in_the_sources(quote, all_messages):
    assert any(occurs(quote, message) for message in all_messages)


def test_every_message_is_quoted_or_of_another_library():
    assert [cell for cell in FIRST_CELLS if not cell.startswith("`")] == NOT_OURS
    assert len(QUOTES) == len(set(QUOTES)) >= 20


def test_what_counts_as_a_message():
    source = '"""Docs."""\nraise ValueError(f"Received {n} frames; " "expected 16.")\nx = "in a" " file"\n'
    found = list(messages(source))
    assert sorted(found) == [f"Received {VALUE} frames; expected 16.", "in a file"]
    assert any(occurs("Received ... frames; expected", message) for message in found)
    assert not any(occurs(quote, message) for message in found for quote in ("Docs", "expected ... frames"))
