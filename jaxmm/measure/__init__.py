"""How speeds are measured: in turns, on cases of any size."""
