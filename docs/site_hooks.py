"""
Hooks of the documentation's site: the reference pages, made from the docstrings of all public names and from the
command's parsers, and Hugging Face's docstring format as Markdown.
"""

import argparse
import re
from typing import Any

import griffe
from mkdocs.structure.files import File

import modeling_scada
from processing.commands.main import make_parser


# Title of each reference page, and the package whose public names it has.
PAGES = {
    "models": ("Models and adapter", "modeling_scada"),
    "processing": ("Processing and pipeline", "processing"),
    "training": ("Training and evaluation", "modeling_scada.training"),
    "library": ("Library", "modeling_scada.library"),
}
SECTION = re.compile(r"^(Args|Returns|Yields|Raises):$")
REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?![\[(])")
HEADINGS = {"Args": "Parameters"}


def public_objects() -> dict[str, Any]:
    return {name: getattr(modeling_scada, name) for name in modeling_scada.__all__}


def object_path(value: Any) -> str:
    """The dotted path of the module where the object is defined, and its name."""
    return f"{value.__module__}.{value.__qualname__}"


def link_references(text: str, paths: dict[str, str]) -> str:
    """Turn Hugging Face's references to public names into links, and all others into code."""

    def replace(match: re.Match) -> str:
        tilde, name = match.groups()
        shown = name.rpartition(".")[2] if tilde else name
        first, dot, rest = name.partition(".")
        return f"[`{shown}`][{paths[first]}{dot}{rest}]" if first in paths else f"`{shown}`"

    return REFERENCE.sub(replace, text)


def sections_to_markdown(text: str) -> str:
    """Turn the sections of a docstring in Hugging Face's format into headings and lists."""
    lines, section, in_entry = [], None, False
    for line in text.splitlines():
        if match := SECTION.match(line):
            section, in_entry = match[1], False
            lines += ["", f"**{HEADINGS.get(section, section)}**", ""]
        elif section is None or (line and not line.startswith("    ")):
            section = None
            lines.append(line)
        elif not line.strip():
            lines.append("")
        elif line.startswith("        "):
            lines.append("    " + line[8:] if in_entry else line[4:])
        elif section == "Args" and (match := re.match(r"    ([*\w, `]+?) (\(.*?\)):(.*)$", line)):
            lines += [f"- **{match[1]}** {match[2]}:{match[3]}"]
            in_entry = True
        elif section in ("Args", "Raises") and ":" in line:
            lines.append(f"- {line.strip()}")
            in_entry = True
        else:
            lines.append(line[4:])
            in_entry = False
    return "\n".join(lines)


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = {name: object_path(value) for name, value in public_objects().items()}

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = sections_to_markdown(link_references(obj.docstring.value, self.paths))


def reference_pages() -> dict[str, str]:
    """The source of the API's pages, by their names. What belongs to no other page is about training."""
    names: dict[str, list[str]] = {page: [] for page in PAGES}
    for _, value in sorted(public_objects().items()):
        package = value.__module__.rpartition(".")[0]
        page = next((page for page, (_, prefix) in PAGES.items() if package == prefix), "training")
        names[page].append(object_path(value))
    return {
        page: f"# {PAGES[page][0]}\n\n" + "\n".join(f"::: {path}\n" for path in paths) for page, paths in names.items()
    }


def parser_to_markdown(name: str, parser: argparse.ArgumentParser) -> str:
    """The section of a command: what it does, and a table of its arguments."""
    lines = [f"## `{name}`", "", str(parser.description), ""]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        if group.title not in ("positional arguments", "options"):
            lines += ["", f"### {group.title}", ""]
        if group.title != "options" or lines[-1] == "":
            lines += ["| argument | meaning |", "|---|---|"]
        for action in actions:
            shown = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            if action.option_strings and action.nargs != 0:
                choices = "|".join(map(str, action.choices)) if action.choices else None
                metavar = action.metavar if isinstance(action.metavar, str) else None
                shown += f" {choices or metavar or action.dest.upper()}"
            default = (
                "" if action.default in (None, False, argparse.SUPPRESS, []) else f" Default: `{action.default}`."
            )
            shown, meaning = (text.replace("|", "\\|") for text in (shown, str(action.help) + default))
            lines.append(f"| `{shown}` | {meaning} |")
    lines.append("")
    if parser.epilog:
        lines += [parser.epilog, ""]
    return "\n".join(lines)


def commands_page() -> str:
    """The source of the page about the command line, from its parsers."""
    parser = make_parser()
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    sections = [parser_to_markdown(f"scada {name}", subparser) for name, subparser in commands.choices.items()]
    return "# Commands\n\n" + "\n".join(sections)


def on_files(files: Any, config: Any) -> Any:
    for page, text in {**reference_pages(), "commands": commands_page()}.items():
        files.append(File.generated(config, f"reference/{page}.md", content=text))
    return files
