"""The processes of ``tools/faults.py``: commands of the project with a limit of time, which are killed whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from faulting.trial import Ended

ROOT = Path(__file__).resolve().parents[2]
TICK = 0.005  # seconds between two looks


def environment(folder: Path) -> dict[str, str]:
    """Of all processes of a bench: one small CPU device, caches of its own, output that is not held back."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
    }  # fmt: skip


def working_folder(folder: Path) -> Path:
    """Where the processes of a bench stand: so deep in its folder that a relative path with a few .. stays inside."""
    inside = folder / "a/b/c/d"
    inside.mkdir(parents=True, exist_ok=True)
    return inside


class Process:
    """A command that runs, with its children; a context manager that leaves none of them."""

    def __init__(self, argv: Sequence[str], output: Path, environment: Mapping[str, str], folder: Path) -> None:
        self._output, self._began = output, time.monotonic()
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *argv], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=environment, cwd=folder, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kills it and its children."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def ended(self, limit: float) -> Ended:
        """Waits for the end; kills at ``limit`` seconds from now."""
        is_over = False
        try:
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            is_over = True
        self.kill()
        return Ended(self._process.returncode, self.said(), time.monotonic() - self._began, is_over)
