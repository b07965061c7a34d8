"""Parsers and handlers of the console command `scada`. Only handlers import heavy packages."""
