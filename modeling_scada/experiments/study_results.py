"""Summarize the results of a study over the seeds, as a table and as figures."""

import math
import statistics
from itertools import cycle, product
from pathlib import Path
from typing import Any

from processing.results.picture import import_pyplot

from .study import BUDGETS, METRICS, MODES, select_runs
from .tables import to_markdown


MARKERS = "osD^vP*X<>"


def _ordered_modes(rows: list[dict]) -> list[str]:
    """Return the modes of the rows, in the order of `MODES`."""
    return sorted({row["mode"] for row in rows}, key=lambda mode: (list(MODES).index(mode.split("/")[0]), mode))


def list_backbones(rows: list[dict]) -> list[str]:
    """Return the backbones, in the order of the rows."""
    return list(dict.fromkeys(row["backbone"] for row in rows))


def difference_to_frozen(group: list[dict], frozen: list[dict]) -> float | None:
    """Return the mean difference in R@1, IoU=0.5 over shared seeds and folds, or `None` without shared runs."""
    differences = paired_differences(group, frozen)
    return statistics.mean(differences) if differences else None


def paired_differences(group: list[dict], others: list[dict]) -> list[float]:
    """Return the differences in R@1, IoU=0.5 between runs with the same seed and, if any, the same fold."""
    score_by_pair = {(row.get("fold"), row["seed"]): row["R1@0.5"] for row in others}
    keys = [(row.get("fold"), row["seed"]) for row in group]
    return [row["R1@0.5"] - score_by_pair[key] for row, key in zip(group, keys, strict=True) if key in score_by_pair]


def summarise(rows: list[dict]) -> list[dict]:
    """Return the mean and standard deviation over the seeds, as one row per budget, backbone and mode."""
    summary = []
    for budget, backbone, mode in product(BUDGETS, list_backbones(rows), _ordered_modes(rows)):
        group = select_runs(rows, backbone, mode, budget)
        if not group:
            continue
        cells: dict = {"backbone": backbone, "mode": mode, "budget": budget, "seeds": len(group)}
        cells |= {name: group[0][name] for name in ("trainable_backbone", "bytes_kept")}
        cells |= {name: statistics.mean(row[name] for row in group) for name in ("steps", "train_seconds", *METRICS)}
        for name in METRICS:
            cells[f"{name}_sd"] = statistics.stdev(row[name] for row in group) if len(group) > 1 else 0.0
        frozen = [] if mode == "frozen" else select_runs(rows, backbone, "frozen", budget)
        cells["over_frozen"] = difference_to_frozen(group, frozen)
        summary.append(cells)
    return summary


def as_table(summary: list[dict]) -> str:
    """Format the summary as a markdown table, with metrics in percent as mean ± standard deviation."""
    titles = ["backbone", "mode", "budget", "seeds", "trainable in the backbone", "saved activations, MiB"]
    titles += ["steps", "training, s", *METRICS, "R1@0.5, difference to frozen"]
    lines = []
    for row in summary:
        lines.append(
            [
                *(row["backbone"], row["mode"], row["budget"].replace("_", " "), str(row["seeds"])),
                *(f"{row['trainable_backbone'] / 1e6:.3f} M", f"{row['bytes_kept'] / 2**20:.1f}"),
                *(f"{row['steps']:.0f}", f"{row['train_seconds']:.0f}"),
                *(f"{row[name]:.1f}" + f" ± {row[f'{name}_sd']:.1f}" * (row["seeds"] > 1) for name in METRICS),
                "" if row["over_frozen"] is None else f"{row['over_frozen']:+.1f}",
            ]
        )
    return to_markdown([dict(zip(titles, cells, strict=True)) for cells in lines])


def draw_modes(rows: list[dict], path: Path) -> None:
    """Plot R@1, IoU=0.5 of every run as a point above its mode, with equal steps next to equal time."""
    plt = import_pyplot(path.name)
    modes = _ordered_modes(rows)
    figure, axes = plt.subplots(figsize=(1.2 + 0.9 * len(modes), 3.6), layout="constrained")
    for shift, (budget, colour) in enumerate(zip(BUDGETS, ("#2f6690", "#d1495b"), strict=True)):
        for position, mode in enumerate(modes):
            values = [row["R1@0.5"] for row in rows if row["mode"] == mode and row["budget"] == budget]
            if values:
                x = position - 0.15 + 0.3 * shift
                axes.scatter([x] * len(values), values, color=colour, s=18)
                axes.hlines(statistics.mean(values), x - 0.12, x + 0.12, color=colour)
        axes.scatter([], [], color=colour, s=18, label=budget.replace("_", " "))
    axes.set(xticks=range(len(modes)), xticklabels=modes, ylabel="R@1, IoU=0.5 (%)")
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_front(rows: list[dict], prices: list[dict], path: Path) -> None:
    """
    Plot R@1, IoU=0.5 of each mode over the time of a further sentence, with the size of a window in half precision.

    Args:
        rows (`list[dict]`): Runs at equal steps. The bars are standard deviations over the seeds.
        prices (`list[dict]`): Rows of `benchmark_library.py --parts asking`, in float32.
        path (`Path`): Picture to write.

    Raises:
        ValueError: If the price of a mode is missing.
    """
    plt = import_pyplot(path.name)
    by_mode = {price["mode"].removeprefix("scada_"): price for price in prices}
    if missing := sorted(set(_ordered_modes(rows)) - set(by_mode)):
        raise ValueError(f"Received prices of {sorted(by_mode)}; expected also those of {missing}.")
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for mode in _ordered_modes(rows):
        values = [row["R1@0.5"] for row in rows if row["mode"] == mode and row["budget"] == "equal_steps"]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        price = by_mode[mode]
        point = (price["ask_over_direct"], statistics.mean(values))
        axes.errorbar(*point, yerr=deviation, fmt="o", capsize=3)
        label = f"{mode}, {price['bytes'] / 2e6:.2g} MB"
        axes.annotate(label, point, textcoords="offset points", xytext=(7, -12), fontsize=9)
    axes.set(
        xlabel="time of a further sentence, relative to the first call", ylabel="R@1, IoU=0.5 (%)", xlim=(0, None)
    )
    axes.spines[["right", "top"]].set_visible(False)
    axes.margins(x=0.2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curves(rows: list[dict], path: Path) -> None:
    """Plot the learning curves at equal steps: mean R@1 (lines) and R@5 (dashed), IoU=0.5, over the seeds."""
    plt = import_pyplot(path.name)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for index, mode in enumerate(_ordered_modes(rows)):
        curves = [row["curve"] for row in rows if row["mode"] == mode and row["budget"] == "equal_steps"]
        steps = [point["step"] for point in curves[0]] if curves else []
        for metric, style in (("R1@0.5", "-o"), ("R5@0.5", "--")):
            means = [statistics.mean(point[metric] for point in points) for points in zip(*curves, strict=True)]
            label = mode if metric == "R1@0.5" else None
            axes.plot(steps, means, style, color=f"C{index}", label=label, markersize=3.5, linewidth=1.3)
    axes.set(xlabel="steps", ylabel="R@1 (lines), R@5 (dashed), IoU=0.5 (%)", ylim=(0, 101))
    axes.spines[["right", "top"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_backbones(summary: list[dict], path: Path) -> None:
    """
    Plot R@1, IoU=0.5 of every summary row over the trainable backbone parameters and over the saved activations.

    Points at equal time are hollow.
    """
    plt = import_pyplot(path.name)
    modes = {mode: f"C{index}" for index, mode in enumerate(_ordered_modes(summary))}
    markers = dict(zip(list_backbones(summary), cycle(MARKERS), strict=False))
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for row in summary:
        colour = modes[row["mode"]]
        style = {"color": colour, "marker": markers[row["backbone"]], "markersize": 8, "alpha": 0.85, "capsize": 3}
        style["markerfacecolor"] = colour if row["budget"] == "equal_steps" else "white"
        for axes, x in zip(panels, (row["trainable_backbone"], row["bytes_kept"] / 2**20), strict=True):
            axes.errorbar(x, row["R1@0.5"], yerr=row["R1@0.5_sd"] or None, **style)
    # Logarithmic, except for the 0 of the frozen backbone.
    trained = [row["trainable_backbone"] for row in summary if row["trainable_backbone"]]
    decades = [math.floor(math.log10(count)) for count in trained or [1]]
    powers = [10.0**decade for decade in range(min(decades), max(decades) + 1)]
    panels[0].set_xscale("symlog", linthresh=powers[0])
    panels[0].set_xticks([0, *powers])
    panels[1].set_xscale("log")
    panels[0].set(xlabel="trainable parameters of the backbone", ylabel="R@1, IoU=0.5 (%)")
    panels[1].set(xlabel="saved activations (MiB)")
    for axes in panels:
        axes.spines[["right", "top"]].set_visible(False)

    def legend_entry(label: str, marker: str = "s", colour: str = "#555555", face: str | None = None) -> Any:
        return plt.Line2D([], [], ls="", marker=marker, color=colour, markerfacecolor=face or colour, label=label)

    mode_handles = [legend_entry(mode, colour=colour) for mode, colour in modes.items()]
    if any(row["budget"] == "equal_time" for row in summary):
        mode_handles.append(legend_entry("equal time: hollow", face="white"))
    backbone_handles = [legend_entry(name, marker) for name, marker in markers.items()]
    legend_style: dict[str, Any] = {"frameon": False, "fontsize": 9, "alignment": "left"}
    figure.legend(handles=mode_handles, title="mode", loc="outside right upper", **legend_style)
    figure.legend(handles=backbone_handles, title="backbone", loc="outside right lower", **legend_style)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def compare_to_frozen(rows: list[dict]) -> list[str]:
    """
    Compare each mode with the frozen backbone in R@1, IoU=0.5.

    Returns:
        `list[str]`: One line per mode, with the mean difference, its standard deviation and Student's paired t.
    """
    rows = [row for row in rows if row["mode"] != "constant"]
    lines = []
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        frozen = select_runs(rows, backbone, "frozen", "equal_steps")
        for mode in dict.fromkeys(row["mode"] for row in rows if row["mode"] != "frozen"):
            differences = paired_differences(select_runs(rows, backbone, mode, "equal_steps"), frozen)
            if len(differences) < 2:
                continue
            mean, deviation = statistics.mean(differences), statistics.stdev(differences)
            t = mean / (deviation / math.sqrt(len(differences))) if deviation else math.inf
            lines.append(f"{mode} - frozen: {mean:+.1f} ± {deviation:.1f} over {len(differences)} pairs, t = {t:.2f}")
    return lines
