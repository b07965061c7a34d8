"""The console command `scada`: parsers and handlers; handlers import what is heavy."""
