"""Where the server listens, and who reaches it there."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket

from jaxmm.errors import UserError

PORT, TRIED = 8642, 20
LOCAL = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to ``host``."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at a port; 0 is PORT or one of those behind it.

    Raises:
      UserError: if there is none.
    """
    try:
        where = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"--host '{host}': {error.strerror}") from error
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port is {port}: it must be 0 to 65535")
    for tried in [port] if port else range(PORT, PORT + TRIED):
        opened = socket.socket(where[0], socket.SOCK_STREAM)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((where[4][0], tried))
            opened.listen(64)
            return opened
        except OSError as error:
            opened.close()
            if port or error.errno != errno.EADDRINUSE:
                raise UserError(f"--host {host} --port {tried}: {error.strerror}") from error
    raise UserError(f"the ports {PORT} to {PORT + TRIED - 1} are all in use: give --port")
