"""Space for temporal grounding: find the segments of a video that match sentences. `MODEL` is a Hub id or a folder."""

import os
from pathlib import Path

from modeling_scada.app import launch, make_app
from modeling_scada.inference.loading import load_pipeline


model = os.environ.get("MODEL") or str(Path(__file__).with_name("model"))
launch(make_app(load_pipeline(model), Path(model).name))
