"""Deprecated module names from before 0.1.0. Each one raises a warning; the next release removes them."""

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any


# Old module -> modules that define its names now.
MOVED: dict[str, tuple[str, ...]] = {
    "modeling_scada.recipe_scada": ("modeling_scada.training.recipe",),
    "modeling_scada.trainer_scada": ("modeling_scada.training.trainer",),
    "modeling_scada.tuning_scada": ("modeling_scada.training.tuning",),
    "processing.annotation_formats": ("processing.data.formats",),
    "processing.annotations": ("processing.data.annotations",),
    "processing.app": ("modeling_scada.app",),
    "processing.benchmarks": (
        "modeling_scada.experiments.model_benchmarks",
        "modeling_scada.experiments.input_benchmarks",
    ),
    "processing.clips": ("processing.results.clips",),
    "processing.collator": ("processing.data.collator",),
    "processing.command_line": (
        "processing.commands.main",
        "processing.commands.shared",
        "processing.commands.grounding",
        "processing.commands.library",
        "processing.commands.app",
        "processing.commands.data",
        "processing.commands.models",
    ),
    "processing.composing": ("processing.data.composition",),
    "processing.dataset_preparation": (
        "processing.data.preparation",
        "processing.data.inspection",
        "processing.data.cleaning",
    ),
    "processing.evaluation": ("modeling_scada.inference.evaluation",),
    "processing.grounding": ("modeling_scada.inference.grounding",),
    "processing.library": (
        "modeling_scada.library.index",
        "modeling_scada.library.search",
        "modeling_scada.library.storage",
    ),
    "processing.library_benchmarks": ("modeling_scada.experiments.library_benchmarks",),
    "processing.library_metrics": ("modeling_scada.library.metrics",),
    "processing.library_on_ray": ("modeling_scada.library.on_ray",),
    "processing.measuring": ("modeling_scada.experiments.measuring",),
    "processing.model_loading": ("modeling_scada.inference.loading",),
    "processing.moving_shapes": ("processing.data.moving_shapes",),
    "processing.provenance": ("processing.results.provenance",),
    "processing.publishing": ("modeling_scada.training.publishing",),
    "processing.arguments": ("processing.recipe_arguments",),
    "processing.result_folder": ("processing.results.folder",),
    "processing.result_page": ("processing.results.page",),
    "processing.result_picture": ("processing.results.picture",),
    "processing.result_selection": ("processing.results.selection",),
    "processing.result_table": ("processing.results.table",),
    "processing.row_sampler": ("processing.data.row_sampler",),
    "processing.several_processes": ("modeling_scada.library.processes",),
    "processing.study": ("modeling_scada.experiments.study",),
    "processing.study_clips": ("modeling_scada.experiments.clip_study",),
    "processing.study_results": ("modeling_scada.experiments.study_results",),
    "processing.synthetic_videos": ("processing.data.synthetic_videos",),
    "processing.video_cutting": ("processing.results.cutting",),
    "processing.video_encoding": ("processing.results.encoding",),
    "processing.video_files": ("processing.data.files",),
}


class MovedModule(ModuleType):
    """Placeholder of a moved module, which resolves each name on first access."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        modules = MOVED[self.__name__]
        for module in modules:
            value = getattr(importlib.import_module(module), name, missing := object())
            # Modules split from one old module import from each other; the defining module counts.
            if value is missing or getattr(value, "__module__", module) in set(modules) - {module}:
                continue
            warnings.warn(
                f"`{self.__name__}.{name}` has moved to `{module}`; import it from there. The next release removes "
                "the old name.",
                FutureWarning,
                stacklevel=2,
            )
            return value
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def register_moved_modules() -> None:
    """Make the old names importable, without importing any module."""
    for name in MOVED:
        sys.modules.setdefault(name, MovedModule(name))
