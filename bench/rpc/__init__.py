"""Figures of the daemon and its clients, each against a peer in the same run. See docs/benchmarks.md."""
