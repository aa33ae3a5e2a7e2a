"""Runs commands of the project in forks of one process, which has imported them: a trial pays for no imports.

Each fork is a process of its own that may crash, hang or take what it likes: it has limits of time, of memory and of
the size of a file, and goes with its children.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faulting.process import TICK, working_folder
from faulting.trial import Ended

COMMANDS = ("jaxmm.train", "jaxmm.generate", "jaxmm.evaluate", "jaxmm.export", "jaxmm.prepare")
MEMORY = 8 << 30  # bytes of a fork: one that wants more ends in a MemoryError, and not the machine
START = 300.0  # seconds for the imports
_PR_SET_PDEATHSIG = 1


class Worker:
    """The process that forks; a context manager. ``folder``: for what the forks say."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._output = folder / "said-by-forks.txt"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faulting.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=dict(environment), cwd=working_folder(folder), text=True,
        )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, module: str, argv: Sequence[str], limit: float, file_bytes: int = 0) -> Ended:
        """What became of ``module.main(argv)``, as a command.

        Args:
          module: one of COMMANDS.
          limit: seconds until it is killed.
          file_bytes: no file may become longer, as on a full disk; 0 is no limit.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        call = {"module": module, "argv": list(argv), "limit": limit, "file_bytes": file_bytes}
        print(json.dumps(call | {"output": str(self._output)}), file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the process that forks has ended with status {self._process.wait()}")
        answer = json.loads(line)
        return Ended(answer["status"], self._output.read_text(errors="replace"), answer["seconds"], answer["is_over"])


def serve() -> None:
    """Answers calls, a line each, until there are no more."""
    for name in COMMANDS:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        call = json.loads(line)
        began = time.monotonic()
        if (child := os.fork()) == 0:
            _become(call)
            return
        status, is_over = _end_of(child, began + call["limit"])
        answer = {"status": status, "seconds": time.monotonic() - began, "is_over": is_over}
        print(json.dumps(answer), flush=True)


def _end_of(child: int, until: float) -> tuple[int, bool]:
    """The status of a fork, as Popen gives it, and whether it was killed at its limit."""
    is_over = False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if not is_over and time.monotonic() > until:
            is_over = True
            _kill(child)
        time.sleep(TICK)
    _kill(child)  # its children
    return os.waitstatus_to_exitcode(status), is_over


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _become(call: Mapping[str, Any]) -> None:
    """Turns this fork into the command, and ends it."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nothing stays when the one that forks is killed
    output = os.open(call["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(file, number)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    if size := call["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sys.argv = [call["module"], *call["argv"]]
    from jaxmm import command

    command.run(sys.modules[call["module"]].main)


if __name__ == "__main__":
    serve()
