"""Run the studies and benchmarks that produced the figures in docs/."""
