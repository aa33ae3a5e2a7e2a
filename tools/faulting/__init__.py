"""Parts of ``tools/faults.py``: faults by kind, and the bench they are tried on."""
