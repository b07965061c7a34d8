"""Inference with a saved model: temporal grounding in a video, and evaluation on a data set."""
