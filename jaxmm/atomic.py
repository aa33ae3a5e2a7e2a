"""Atomic file writes: a reader finds the old file or the new one, whole, even after a kill. JSON too."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxmm.json_text import parse_json


def plain(value: Any) -> Any:
    """``value`` as strict JSON holds it: NaN and infinities are None, tuples lists, NumPy and JAX scalars numbers.

    -0.0 is 0.0, as people read it.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else None
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON so that a reader finds the old file or the new one, whole."""
    text = json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
    with published(path) as whole:
        whole.write_text(text)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file that may be missing or damaged; {} then."""
    with contextlib.suppress(OSError, ValueError):
        value = parse_json(path.read_bytes())
        return value if isinstance(value, dict) else {}
    return {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file that a kill may have cut in a line; [] where there is no file."""
    objects = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            objects.append(parse_json(line))
    return [item for item in objects if isinstance(item, dict)]


def write_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Writes a .jsonl file so that a reader finds the old one or the new one, whole."""
    with published(path) as whole:
        whole.write_text("".join(f"{json.dumps(item)}\n" for item in objects))


@contextlib.contextmanager
def published(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to; on leaving, the file is on the disk and takes its own name at once.

    Several processes may write one file: each has a temporary name of its own, and the last to leave counts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last through a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
