"""The `evaluate` module over `processing.metrics`: `evaluate.load("processing/temporal_grounding")`."""
