"""An address to listen at, as a key of the config has it: ``PORT`` or ``HOST:PORT``."""

from __future__ import annotations

from jaxmm.errors import UserError


def parse_address(text: str, key: str) -> tuple[str, int]:
    """Host and port; the host is '' where only a port is given.

    Raises:
      UserError: where the port is no number from 1 to 65535.
    """
    host, _, port = text.strip().rpartition(":")
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"{key} is '{text}': write PORT or HOST:PORT, the port from 1 to 65535, as 9400")
    return host.removeprefix("[").removesuffix("]"), int(port)
