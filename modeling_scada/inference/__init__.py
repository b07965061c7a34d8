"""Use a saved model: ground the sentences of a video, and evaluate on a data set."""
