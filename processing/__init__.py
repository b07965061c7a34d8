"""Data processing between a user's files and the model's tensors. Users import from `modeling_scada` only."""

from .moved import register_moved_modules


register_moved_modules()
