"""Checks at the start of a run that a batch fits the machine's memory, before the memory runs out."""

from __future__ import annotations

from jaxmm.errors import UserError
from jaxmm.machine import host_memory

PIECE_BYTES = 250  # of a piece of an example, as a Python object
PART = 2  # a batch may take 1 / PART of the memory: while one is in use, the next one is made


def check_rows(rows: int, row_bytes: float, what: str) -> None:
    """Raises UserError if a batch of ``rows`` rows of ``row_bytes`` bytes, called ``what``, does not fit the memory."""
    taken, room = rows * row_bytes, host_memory()
    if taken > room / PART:
        raise UserError(
            f"config.batch_size: {what} of {rows:,} row{'s' * (rows > 1)} are {taken / 1e9:,.1f} GB, and this machine "
            f"has {room / 1e9:,.1f} GB of memory, half of it for one batch: lower it, or seq_len and patch_budget"
        )
