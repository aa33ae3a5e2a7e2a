"""A TCP rendezvous of a job's processes before JAX joins them: it names those that do not come.

JAX aborts a process whose job is not whole in time, and names nobody. So they meet first, by plain TCP, at the address
where JAX's coordinator will be: each says its number to process 0, and all go on together, or end with the same line.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from jaxmm.errors import UserError, end_at_once

SILENCE = 10  # seconds beyond its own limit that process 0 is given to answer
_POLL = 0.2  # seconds between two tries to reach it
_SHOWN = 20  # numbers of missing processes in a line
_GO, _END = "go", "end: "  # what process 0 answers; the second with the reason


def meet(address: str, count: int, number: int, seconds: int, bind: str = "") -> None:
    """Returns once all processes of the job have come.

    Args:
      address: ``host:port`` of process 0, as the others reach it.
      count: processes of the job; ``number`` is this one's, from 0.
      seconds: that the others are waited for.
      bind: ``host:port`` that process 0 listens at; '' is every address of its machine, at the port of ``address``.

    Raises:
      UserError: naming the processes that did not come, or the address where process 0 is not.
    """
    _, port = _split(address)
    if count == 1:
        return
    if number == 0:
        _call(*(_split(bind) if bind else ("", port)), count, seconds)
    else:
        _answer(address, count, number, seconds)


@contextmanager
def limit(seconds: float, line: str) -> Iterator[None]:
    """Ends the process with the line and exit status 1 if the block is not done in time: for what cannot be stopped."""
    timer = threading.Timer(seconds, end_at_once, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _call(host: str, port: int, count: int, seconds: int) -> None:
    """Process 0: takes the others' numbers until all are there, and tells them how it ended."""
    end = time.monotonic() + seconds
    there: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        with _listener(host, port) as listener:
            selector.register(listener, selectors.EVENT_READ)
            while len(there) < count - 1 and (left := end - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fileobj is listener:
                        peer = listener.accept()[0]
                        peer.settimeout(1)  # for its line, which is there
                        selector.register(peer, selectors.EVENT_READ, peer)
                        continue
                    known = next((n for n, one in there.items() if one is key.data), None)
                    if known is None and (new := _hello(key.data, count, there)) is not None:
                        there[new] = key.data
                        continue
                    there.pop(known or 0, None)  # it has ended since, or was none of ours
                    selector.unregister(key.data)
                    key.data.close()
        # The port is free again before anybody goes on: JAX's coordinator is next at it.
        missing = [n for n in range(1, count) if n not in there]
        line = _missing(missing, count, seconds)
        for peer in there.values():
            _tell(peer, f"{_END}{line}" if missing else _GO)
            peer.close()
    if missing:
        raise UserError(line)


def _hello(peer: socket.socket, count: int, there: dict[int, socket.socket]) -> int | None:
    """The number that a process says, or None, after telling it why it cannot be taken."""
    try:
        with peer.makefile("r", errors="replace") as lines:
            words = lines.readline(64).split()
    except OSError:
        return None
    if len(words) != 3 or words[0] != "jaxmm" or not (words[1].isdigit() and words[2].isdigit()):
        return None
    if int(words[1]) != count:
        _tell(peer, f"{_END}process 0 is of a job of {count} processes, this one of a job of {words[1]}")
        return None
    if int(words[2]) in there:
        _tell(peer, f"{_END}there is a process {words[2]} of {count} already: give each process a number of its own")
        return None
    return int(words[2])


def _answer(address: str, count: int, number: int, seconds: int) -> None:
    """Another process: says its number to process 0, and waits for its word."""
    end, why = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        try:
            peer = socket.create_connection(_split(address), timeout=max(_POLL, min(5.0, end - time.monotonic())))
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(_POLL)
            continue
        with peer, peer.makefile("r", errors="replace") as lines:
            peer.settimeout(seconds + SILENCE)
            try:
                peer.sendall(f"jaxmm {count} {number}\n".encode())
                line = lines.readline(4096)
            except TimeoutError:
                why = "it does not answer"
                break
            except OSError:
                line = ""
        if line == f"{_GO}\n":
            return
        if line.startswith(_END) and line.endswith("\n"):
            raise UserError(line.removeprefix(_END))
        why = "what answers there is no process of this job" if line else "it ended the connection"
        time.sleep(_POLL)
    raise UserError(
        f"process {number} of {count} did not find process 0 at {address} within {seconds} s ({why}): the log of "
        f"process 0 says whether it runs; see that this address is its machine's, and that the port is open to this "
        f"one; JAXMM_JOIN_SECONDS waits longer"
    )


def _listener(host: str, port: int) -> socket.socket:
    try:
        if not host and socket.has_dualstack_ipv6():
            try:
                return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
            except OSError:  # a machine without IPv6
                return socket.create_server(("", port), backlog=1024)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port} ({error.strerror or error}): another job may be at it; give "
            f"another in JAX_COORDINATOR_ADDRESS, or under SLURM in JAX_COORDINATOR_PORT"
        ) from error


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"the job's coordinator '{address}' is no address: give host:port, such as node0:1234")
    return host.strip("[]"), int(port)


def _tell(peer: socket.socket, line: str) -> None:
    with suppress(OSError):  # it has ended, and says so itself
        peer.sendall(f"{line}\n".encode())


def _missing(numbers: list[int], count: int, seconds: int) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return (
        f"process{'es' if len(numbers) > 1 else ''} {shown}{more} of {count} did not come within {seconds} s: "
        f"the log of each says where it is; JAXMM_JOIN_SECONDS waits longer"
    )
