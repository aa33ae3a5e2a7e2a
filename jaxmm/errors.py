"""The one exception that means "the user can mend this": commands print it as one line and exit with status 1."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NoReturn

STRANDED = 75  # as sysexits.h has EX_TEMPFAIL: try again


class UserError(Exception):
    """A mistake in what the user asked for. The message says what, where and what to do, in one line."""


class StrandedError(UserError):
    """Other processes of the job are missing: on the way out nothing may wait for them, or for a device.

    The exit status is ``STRANDED``, not 1: nobody made a mistake, and the same command goes on.
    """


# What the system refuses: no mistake of the program's.
_REFUSED = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG", "ENOTDIR", "EISDIR", "ENAMETOOLONG",
                 "ELOOP", "ESTALE", "EMFILE", "ENFILE")
    if hasattr(errno, name)
}  # fmt: skip
# What a terminal follows in place of showing it: controls but tab and newline, marks that turn the direction of text.
_FOLLOWED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with escapes for what a terminal would follow: names and records may hold anything."""
    return _FOLLOWED.sub(lambda match: ascii(match[0])[1:-1], text)


def error_line(error: BaseException | str) -> str:
    """What a command prints of a UserError."""
    return f"error: {printable(' '.join(str(error).split()))}"


def refusal(error: OSError) -> UserError | None:
    """A full disk, a missing permission and the like as what the user can mend; None for any other error."""
    if error.errno not in _REFUSED:
        return None
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return UserError(f"{where}{error.strerror}; what was written whole before stays")


def end_at_once(line: str, status: int = 1) -> NoReturn:
    """Ends the process with the line and the exit status, from any thread: nothing is waited for."""
    with contextlib.suppress(OSError):  # who would read it has gone
        print(error_line(line), file=sys.stderr, flush=True)
    os._exit(status)


def extra(name: str) -> str:
    """How to install an extra of ``pyproject.toml``, for the end of a line that says what lacks it."""
    return f"pip install 'jaxmm[{name}]' (in a clone: pip install -e '.[{name}]')"


def nearest(
    word: str, choices: Iterable[str], told: Mapping[str, str] = MappingProxyType({}), least: float = 0.5
) -> str:
    """Returns ``"; did you mean 'x'?"`` for the closest of ``choices``, or '' where none is close.

    Args:
      told: what the line has in place of a choice.
      least: how alike they must be, from 0 to 1.
    """
    if not (close := difflib.get_close_matches(word, list(choices), n=1, cutoff=least)):
        return ""
    return f"; did you mean '{told.get(close[0], close[0])}'?"
