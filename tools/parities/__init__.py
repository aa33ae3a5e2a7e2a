"""Parts of ``tools/parity.py``: models, batches and patches of transformers."""
