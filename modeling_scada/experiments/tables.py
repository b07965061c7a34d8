"""Markdown tables of benchmarks and studies."""

from collections.abc import Iterable


def to_markdown(lines: list[dict[str, str]]) -> str:
    """Format lines, keyed by column title, as a markdown table. Columns with only `-` are left out."""
    titles = [title for title in lines[0] if any(line[title] != "-" for line in lines)]
    cells = [titles, ["---"] * len(titles), *([line[title] for title in titles] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def format_numbers(values: Iterable[float | None]) -> str:
    """Format the numbers of a table cell."""
    return " / ".join("out of memory" if value is None else f"{value:.3f}" for value in values) or "-"
