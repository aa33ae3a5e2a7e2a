"""Tiny random models of ``transformers``, a file for each line of families; ``parities/models.py`` has them all."""
