"""Rows of ``tools/benchmark.py``."""
