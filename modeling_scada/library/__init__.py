"""Index the videos of a folder and search them, optionally with Ray, and evaluate the search."""
