"""The input side of runs that are too large to be had: real code, on synthetic columns."""
