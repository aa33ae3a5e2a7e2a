"""The one exception that means "the user can mend this": commands print it as one line and exit with status 1."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from typing import NoReturn


class UserError(Exception):
    """A mistake in what the user asked for. The message says what, where and what to do, in one line."""


class StrandedError(UserError):
    """Other processes of the job are missing: on the way out nothing may wait for them, or for a device."""


def end_at_once(line: str) -> NoReturn:
    """Ends the process with the line and exit status 1, from any thread: nothing is waited for."""
    print("error:", " ".join(line.split()), file=sys.stderr, flush=True)
    os._exit(1)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the closest of ``choices``, or '' where none is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
