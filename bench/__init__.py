"""Benchmarks and the demo: `make bench-engine`, `make demo`."""
