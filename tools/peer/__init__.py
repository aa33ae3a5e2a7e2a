"""The two sides of ``tools/benchmark.py --part=peer``, each in a process."""
