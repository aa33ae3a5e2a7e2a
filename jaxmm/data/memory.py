"""How much memory there is, and what one batch takes of it: said at the start, not when the machine is out of it."""

from __future__ import annotations

from jaxmm.errors import UserError
from jaxmm.machine import host_memory

PIECE_BYTES = 250  # of a piece of an example, as an object of Python
PART = 2  # a batch may take this part of the memory: while one is in use, the next one is made


def check_rows(rows: int, row_bytes: float, what: str) -> None:
    """Raises UserError if what a batch of so many rows takes, ``what`` by name, does not fit the memory."""
    taken, room = rows * row_bytes, host_memory()
    if taken > room / PART:
        raise UserError(
            f"config.batch_size: {what} of {rows:,} row{'s' * (rows > 1)} are {taken / 1e9:,.1f} GB, and this machine "
            f"has {room / 1e9:,.1f} GB of memory, half of it for one batch: lower it, or seq_len and patch_budget"
        )
