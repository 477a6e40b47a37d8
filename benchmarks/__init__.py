"""Reproducible measurements, beside other systems. Results stand in docs/benchmarks.md."""
