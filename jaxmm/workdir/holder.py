"""Who holds a workdir: what a ``train`` notes of itself, and whether the process that a note is of has ended."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from jaxmm.json_text import parse_json


def note() -> dict[str, Any]:
    """Of this process; its ``token`` is of this note alone."""
    return {
        "host": socket.gethostname(), "pid": os.getpid(), "pids": pid_space(), "machine": machine(),
        "token": secrets.token_hex(8),
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


def pid_space() -> str | None:
    """Names the space that numbers our processes: containers of one host name have their own. None where unknown."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None if sys.platform == "linux" else ""


def has_ended(holder: dict[str, Any]) -> bool:
    """Whether the process is known to have ended: its number is one of those that we see, and nobody's.

    A number that another process has since got only hides that it has ended.
    """
    ours = {"host": socket.gethostname(), "machine": machine(), "pids": pid_space()}
    if ours["pids"] is None or any(holder.get(key) != value for key, value in ours.items()):
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, LookupError, ValueError, TypeError):
        pass
    return False


def who(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that has left no name"
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"
