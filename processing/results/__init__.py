"""Show segments as a table, a picture, a page or clips, and record how results were made."""
