"""Benchmarks through lm-eval's task definitions on local data, and the report built on them."""
