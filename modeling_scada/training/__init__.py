"""Train: the Trainer, the tuning modes, the run of a recipe, and publishing with a model card."""
