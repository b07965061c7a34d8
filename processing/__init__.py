"""Everything between a user's files and the model's tensors; users import from `modeling_scada` alone."""

from .moved import register_moved_modules


register_moved_modules()
