"""Encode the videos of a folder once and search them: index, search, Ray, and metrics."""
