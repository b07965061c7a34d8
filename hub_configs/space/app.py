"""A Space that finds the moments of a video that sentences describe; `MODEL` is a Hub id or a folder."""

import os
from pathlib import Path

from modeling_scada.app import launch, make_app
from modeling_scada.inference.grounding import load_pipeline


model = os.environ.get("MODEL") or str(Path(__file__).with_name("model"))
launch(make_app(load_pipeline(model), Path(model).name))
