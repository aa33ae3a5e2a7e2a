"""What must be proven before a run begins: that an attention backend which no run takes by itself is right here."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from jaxmm.checks import attention, proof
from jaxmm.checks.row import NOT_HERE, RIGHT, Row, one_line
from jaxmm.errors import UserError, end_at_once
from jaxmm.models.kernels.device import PACKAGES

BACKENDS = tuple(PACKAGES)
LIMIT, EVERY = 540.0, 60.0  # seconds: less than others wait by default, and after which a line says how far it is


def require_attention(backend: str, dtype: str, say: Callable[[str], None] = print) -> str:
    """Holds a backend of BACKENDS against float64, forward and backward, unless that was done on this machine before.

    A kernel that hangs cannot be stopped: after LIMIT seconds the process ends with a line.

    Args:
      say: takes the lines that tell how far it is.
    Returns:
      A line that says so; '' for other backends.
    Raises:
      UserError: if it is wrong, or fails.
    """
    if backend not in BACKENDS:
        return ""
    if proof.is_kept(backend, dtype):
        return f"attention by '{backend}' was right on this machine before: {proof.place(backend, dtype)}"
    rows: list[Row] = []
    with limited(f"attention by '{backend}'", lambda: f"{len(rows)} of {len(attention.CASES)} cases", say):
        for row in attention.rows(backend, dtype):
            rows.append(row)
    tried = [row for row in rows if row.verdict != NOT_HERE] or rows
    if bad := [row for row in tried if row.verdict != RIGHT]:
        told = one_line(f"{bad[0].what}: {bad[0].verdict}, {bad[0].told}")
        raise UserError(
            f"config.compute.attention={backend} is not right on this machine, in {len(bad)} of {len(tried)} cases "
            f"beside float64 ({told}): take 'fused' or 'blocks', and see `jaxmm check --part=attention-{backend}`"
        )
    return f"attention by '{backend}' is right on this machine: {len(tried)} cases beside float64, forward and backward"


@contextlib.contextmanager
def limited(what: str, done: Callable[[], str], say: Callable[[str], None]) -> Iterator[None]:
    """Says every EVERY seconds how far the body is, and ends the process where it takes more than LIMIT."""
    over = threading.Event()

    def watch() -> None:
        waited = 0.0
        while not over.wait(EVERY):
            waited += EVERY
            if waited >= LIMIT:
                end_at_once(
                    f"{what} was held against float64 for {waited:g} s, and {done()} were done: it hangs, or compiles "
                    f"for too long; take 'fused' or 'blocks', or let `jaxmm check --part=attention --limit=100` prove "
                    f"it first"
                )
            say(f"{what}: {done()} beside float64 after {waited:g} s, of {LIMIT:g} at most")

    watcher = threading.Thread(target=watch, daemon=True, name="proof")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
