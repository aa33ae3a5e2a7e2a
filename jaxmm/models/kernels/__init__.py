"""Backends of attention over intervals."""
