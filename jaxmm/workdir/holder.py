"""Who holds a workdir: what a ``train`` notes of itself, and whether the process that a note is of still runs."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from jaxmm.json_text import parse_json


def note() -> dict[str, Any]:
    """Of this process; its ``token`` is of this note alone."""
    return {
        "host": socket.gethostname(), "pid": os.getpid(), "machine": machine(), "token": secrets.token_hex(8),
        "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
    }  # fmt: skip


def read(data: bytes) -> dict[str, Any]:
    """A note; {} for one that is being written, or whose writer was killed."""
    try:
        record = parse_json(data)
    except ValueError:
        record = {}
    return record if isinstance(record, dict) else {}


def machine() -> str:
    """Of one running kernel: containers on it share its locks."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def runs(holder: dict[str, Any]) -> bool:
    """Whether the process is there, as far as can be told: another container numbers its own."""
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except (OSError, LookupError, ValueError):
        pass
    return True


def who(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that has left no name"
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"
