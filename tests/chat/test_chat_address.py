"""A free port is found, and what others can reach is known."""

from __future__ import annotations

import pytest

from jaxmm.chat.address import PORT, TRIED, is_local, listen
from jaxmm.errors import UserError


def test_only_this_machine_is_local():
    assert [is_local(host) for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9")] == [True] * 4
    assert [is_local(host) for host in ("0.0.0.0", "::", "10.0.0.2", "box")] == [False] * 4


def test_a_free_port_is_found_and_a_taken_one_is_told():
    first = listen("127.0.0.1", 0)
    second = listen("127.0.0.1", 0)
    try:
        ports = [one.getsockname()[1] for one in (first, second)]
        assert PORT <= ports[0] < ports[1] < PORT + TRIED
        with pytest.raises(UserError, match=f"--port {ports[0]}: Address already in use"):
            listen("127.0.0.1", ports[0])
    finally:
        first.close()
        second.close()
