"""The sides of ``tools/benchmark.py --part=peer`` and ``--part=tuning``, each in a process."""
