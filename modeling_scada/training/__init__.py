"""Training: the `Trainer`, the tuning modes, running a recipe, and publishing with a model card."""
