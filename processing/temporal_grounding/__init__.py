"""Metric of `evaluate` built on `processing.metrics`: `evaluate.load("processing/temporal_grounding")`."""
