"""Studies and benchmarks: what the figures in docs/ were made with."""
