"""Output of segments as a table, a picture, a page or clips, and records of measurements."""
