"""How long a process waits for others, as the environment says it."""

from __future__ import annotations

import os

from jaxmm.errors import UserError

MOST = 1_000_000  # seconds: JAX takes milliseconds, of 32 bits in places


def seconds_of(variable: str, default: int) -> int:
    """The whole seconds that an environment variable has; the default where it is not set, or empty.

    Raises:
      UserError: where it is no such number.
    """
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MOST)) and 1 <= int(text) <= MOST):
        raise UserError(f"{variable}={text}: give whole seconds, from 1 to {MOST}")
    return int(text)
