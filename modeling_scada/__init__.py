"""
Temporal sentence grounding in videos with SCADA, following the conventions of transformers.

Import all public names from this package. The import registers the classes with transformers' Auto classes, the task
"temporal-grounding" with its pipelines, and SCADA with peft. Other modules load on first access.
"""

from importlib import import_module
from typing import Any

from transformers import AutoConfig, AutoModel, AutoProcessor

from processing.encoded_video import EncodedVideo
from processing.metrics import multi_segment_metrics, temporal_grounding_metrics
from processing.pipeline_temporal_grounding import TemporalGroundingPipeline
from processing.processing_scada import ScadaProcessor
from processing.timeline import Timeline
from processing.video_io import ReadLimits, VideoReadError, probe, read_frames
from processing.video_processing_scada import ScadaVideoProcessor

from .adapter_scada import ScadaAdapterConfig, register_peft_method
from .configuration_c3d import C3DConfig
from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .configuration_i3d import I3DConfig
from .configuration_scada import ScadaConfig
from .modeling_c3d import C3DModel
from .modeling_efficientnet_lite import EfficientNetLiteModel
from .modeling_i3d import I3DModel
from .modeling_scada import (
    AutoModelForTemporalGrounding,
    ScadaForTemporalGrounding,
    ScadaModel,
    ScadaPreTrainedModel,
)
from .video_features_scada import ScadaVideoFeatures


# Training, data and library modules, loaded lazily because they import `Trainer`, `datasets` and Arrow.
_LAZY = {
    "Library": "modeling_scada.library.search",
    "RowSampler": "processing.data.row_sampler",
    "TemporalGroundingCollator": "processing.data.collator",
    "TemporalGroundingTrainer": "modeling_scada.training.trainer",
    "TemporalGroundingTrainingArguments": "modeling_scada.training.trainer",
    "TuningArguments": "processing.recipe_arguments",
    "compute_metrics": "modeling_scada.training.trainer",
    "index_videos": "modeling_scada.library.index",
    "index_videos_on_ray": "modeling_scada.library.on_ray",
    "library_metrics": "modeling_scada.library.metrics",
    "load_annotations": "processing.data.annotations",
    "prepare_dataset": "processing.data.preparation",
    "prepare_tuning": "modeling_scada.training.tuning",
    "ranked_ious": "modeling_scada.training.trainer",
    "search": "modeling_scada.library.search",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def _register() -> None:
    """Register the classes with transformers and peft. Repeated calls change nothing."""
    from transformers.pipelines import PIPELINE_REGISTRY
    from transformers.utils import is_torchvision_available

    AutoConfig.register("scada", ScadaConfig, exist_ok=True)
    # As in the code of a Hub repository, whose models `pipeline` can load only with `AutoModel`.
    AutoModel.register(ScadaConfig, ScadaForTemporalGrounding, exist_ok=True)
    AutoModelForTemporalGrounding.register(ScadaConfig, ScadaForTemporalGrounding, exist_ok=True)
    if is_torchvision_available():  # without torchvision, this class of transformers raises an error on use
        from transformers import AutoVideoProcessor

        AutoVideoProcessor.register(ScadaConfig, ScadaVideoProcessor, exist_ok=True)
    AutoProcessor.register(ScadaConfig, ScadaProcessor, exist_ok=True)
    if "temporal-grounding" not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            "temporal-grounding",
            pipeline_class=TemporalGroundingPipeline,
            pt_model=AutoModelForTemporalGrounding,
            type="multimodal",
        )
    register_peft_method()
    # Save the code with models and processors, so that users can load them without this package.
    ScadaConfig.register_for_auto_class()
    ScadaForTemporalGrounding.register_for_auto_class("AutoModel")
    ScadaProcessor.register_for_auto_class()


_register()

__all__ = [
    "AutoModelForTemporalGrounding",
    "C3DConfig",
    "C3DModel",
    "EfficientNetLiteConfig",
    "EfficientNetLiteModel",
    "EncodedVideo",
    "I3DConfig",
    "I3DModel",
    "Library",
    "ReadLimits",
    "RowSampler",
    "ScadaAdapterConfig",
    "ScadaConfig",
    "ScadaForTemporalGrounding",
    "ScadaModel",
    "ScadaPreTrainedModel",
    "ScadaProcessor",
    "ScadaVideoFeatures",
    "ScadaVideoProcessor",
    "TemporalGroundingCollator",
    "TemporalGroundingPipeline",
    "TemporalGroundingTrainer",
    "TemporalGroundingTrainingArguments",
    "Timeline",
    "TuningArguments",
    "VideoReadError",
    "compute_metrics",
    "index_videos",
    "index_videos_on_ray",
    "library_metrics",
    "load_annotations",
    "multi_segment_metrics",
    "prepare_dataset",
    "prepare_tuning",
    "probe",
    "ranked_ious",
    "read_frames",
    "search",
    "temporal_grounding_metrics",
]
