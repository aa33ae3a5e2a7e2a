"""A worker process and the pipe to it: a fresh interpreter that ends with its parent, and reports how it died.

It is neither a fork nor a copy of the main program: a worker imports only what its function needs, which is never JAX.
It ignores a Ctrl-C, and a scheduler's SIGTERM, which the run catches to save. A run that is killed leaves no worker
behind. What libraries print in a worker goes to stderr.
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

_PER_CORE, _ANYWHERE = 4, 32  # the larger limit counts: each worker has its own memory, and more of them only wait
_GONE = (EOFError, OSError)  # raised by a pipe whose other end is closed


class Ended(Exception):
    """A worker has ended without an answer.

    Attributes:
      how: it ended, as the rest of a sentence.
      cause: "memory" that ran out, a "file" that was cut, or "" where it is not known.
    """

    def __init__(self, how: str, cause: str = ""):
        super().__init__(how)
        self.how, self.cause = how, cause


class Failed(NamedTuple):
    """An answer: what the function raised, and the traceback."""

    error: Exception
    trace: str


class Channel:
    """The worker's end of the pipe. A thread reads it: when the parent ends, so does a worker that is busy."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                self._received.put(self._connection.recv_bytes())
        except _GONE:
            pass
        except BaseException:  # told, as the parent says that it was
            traceback.print_exc()
        finally:
            sys.stderr.flush()
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
          serve: module-level function that runs in the worker, once per call; an exception is answered as ``Failed``.
          fds: file descriptors that the worker inherits under the same numbers.
        """
        ours, theirs = socket.socketpair()
        with theirs:  # closed here, so that the pipe ends with the worker
            program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main({theirs.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                pass_fds=(theirs.fileno(), *fds),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # only the run handles a Ctrl-C in the terminal
                # Processes are the parallelism: threads of the tokenizers library would only compete with them.
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
            )
        self._connection = Connection(ours.detach())
        self._end = weakref.finalize(self, _end, self._process)
        self._first: tuple[Serve, bytes] | None = (serve, function)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, value: Any) -> None:
        """Sends a value. Raises Ended if the process has ended."""
        try:
            if self._first is not None:
                self._connection.send(self._first)
                self._first = None
            self._connection.send(value)
        except _GONE as error:
            raise self._ended() from error

    def receive(self) -> Any:
        """Returns the next answer. Raises Ended if the process has ended."""
        try:
            return self._connection.recv()
        except _GONE as error:
            raise self._ended() from error

    def _ended(self) -> Ended:
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return Ended("closed its pipe and hangs")
        if status == -signal.SIGKILL:
            return Ended("was killed by SIGKILL, most likely because memory ran out", "memory")
        if status == -signal.SIGBUS:
            return Ended("was ended by SIGBUS: a file that it had mapped was cut short while it was read", "file")
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return Ended(f"{how}: what it printed is above")

    def close(self) -> None:
        """Ends the process at once: it holds nothing that could be left half done."""
        self._end()


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()  # a thread that waits for an answer now finds the pipe closed; our end closes once it lets go


def main(fd: int) -> None:
    """Main loop of a worker: it ends when its pipe closes."""
    # A scheduler may send these to every process of a job, but only the run knows what to do.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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


class TooManyWorkers(UserError):
    """More worker processes are asked for than this machine can use."""


def check_workers(count: int, name: str) -> None:
    """Raises TooManyWorkers, by the setting's name, for more worker processes than this machine can use."""
    most = max(_PER_CORE * cores(), _ANYWHERE)
    if count > most:
        raise TooManyWorkers(
            f"{name} is {count}: at most {most} processes are started on this machine's {cores()} cores"
        )
