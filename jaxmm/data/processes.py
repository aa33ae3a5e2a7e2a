"""A worker process and the pipe to it: a fresh interpreter that ends with its parent, and says how it died.

Not a fork and no copy of the main program: a worker imports what its function needs, which is never JAX. A Ctrl-C or a
scheduler's SIGTERM that the run catches to save does not end it; a run that is killed leaves none behind. What
libraries print there goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from jaxmm.errors import UserError
from jaxmm.machine import cores

_PER_CORE, _ANYWHERE = 4, 32  # workers that a machine may have: each has its own memory, and more of them only wait
_GONE = (EOFError, OSError)  # what a pipe raises whose other end is closed


class Ended(Exception):
    """A worker has ended without an answer; the text says how."""


class Failed(NamedTuple):
    """An answer: what the function raised, and the traceback."""

    error: Exception
    trace: str


class Channel:
    """A worker's end of the pipe. It is read in a thread: with the parent the worker ends, whatever it is doing."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                self._received.put(self._connection.recv_bytes())
        finally:
            os._exit(1)

    def receive(self) -> Any:
        return pickle.loads(self._received.get())

    def send(self, answer: Any) -> None:
        try:
            self._connection.send(answer)
        except OSError:
            os._exit(1)


Serve = Callable[[Channel, Callable[..., Any], Any], None]  # calls the function with what came, and sends its answer


class Worker:
    """One process with a function of its own. One thread at a time may talk to it."""

    def __init__(self, function: bytes, serve: Serve, fds: Sequence[int] = ()):
        """
        Args:
          function: pickled; a worker unpickles it for its first call.
          serve: of a module, runs there once a call; what it raises is the answer, as ``Failed``.
          fds: open files that the worker has under the same numbers.
        """
        ours, theirs = socket.socketpair()
        with theirs:  # closed here, so that the pipe ends with the worker
            program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main({theirs.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                pass_fds=(theirs.fileno(), *fds),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the run to deal with
                # Processes are the parallelism: threads of the tokenizers library on top of them only fight.
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
            )
        self._connection = Connection(ours.detach())
        self._end = weakref.finalize(self, _end, self._process)
        self._first: tuple[Serve, bytes] | None = (serve, function)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, value: Any) -> None:
        """Raises Ended if the process has."""
        try:
            if self._first is not None:
                self._connection.send(self._first)
                self._first = None
            self._connection.send(value)
        except _GONE as error:
            raise Ended(self._how_it_ended()) from error

    def receive(self) -> Any:
        """Returns its next answer. Raises Ended if the process has."""
        try:
            return self._connection.recv()
        except _GONE as error:
            raise Ended(self._how_it_ended()) from error

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its pipe and hangs"
        if status == -signal.SIGKILL:
            return "was killed by SIGKILL, most likely because memory ran out"
        if status == -signal.SIGBUS:
            return "was ended by SIGBUS: a file that it had mapped was cut short, most likely one of the prepared data"
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return f"{how}: what it printed is above"

    def close(self) -> None:
        """Ends the process at once: it holds nothing that could be left half done."""
        self._end()


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()  # a thread that waits for it now finds its pipe closed; ours closes when that thread has let go


def main(fd: int) -> None:
    """A worker's life: it ends with its pipe."""
    # A scheduler may send it to every process of a job, when only the run knows what to do.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)
    channel = Channel(Connection(fd))
    serve, pickled = channel.receive()
    function = None
    while True:
        value = channel.receive()
        try:
            if function is None:
                function = pickle.loads(pickled)
            serve(channel, function, value)
        except Exception as error:
            channel.send(Failed(_sendable(error), traceback.format_exc()))


def _sendable(error: Exception) -> Exception:
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def check_workers(count: int, name: str) -> None:
    """Raises UserError, by the setting's name, for more worker processes than this machine can use."""
    most = max(_PER_CORE * cores(), _ANYWHERE)
    if count > most:
        raise UserError(f"{name} is {count}: at most {most} processes are started on this machine's {cores()} cores")
