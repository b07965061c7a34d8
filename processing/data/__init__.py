"""Annotations and videos for training: formats, preparation, collator, and data sets made here."""
