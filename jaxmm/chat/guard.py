"""What a server on somebody's machine must refuse: requests of other sites, under other names, or too large.

A page of another site may send requests to 127.0.0.1 from the user's own browser, and by DNS rebinding even read the
answers. So the name in ``Host`` must be ours; a request with an ``Origin`` must come from our own page; and what is
posted must be declared as JSON, which a browser sends to another site only after asking, and it is never allowed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.responses import JSONResponse

from jaxmm.chat import openai_api
from jaxmm.chat.address import EVERYWHERE, LOCAL

MOST_BYTES = 64 << 20  # of a request
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "frame-ancestors 'none'",  # what a page cannot say of itself; the rest it does
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class TooLargeError(Exception):
    """A request's body has more than MOST_BYTES."""


class Guard:
    """Refuses in front of an ASGI application, and puts HEADERS on each answer."""

    def __init__(self, app: Any, host: str):
        """``host``: that the server is bound to."""
        self._app, self._host = app, host.lower()
        self._names = {*LOCAL, self._host} - set(EVERYWHERE)
        if host in EVERYWHERE:
            self._names.add(socket.gethostname().lower())

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, why = self._refusal(scope["method"], headers)

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                more = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in there]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        if why:
            await JSONResponse(openai_api.error(why), status)(scope, receive, send_with_headers)
            return
        await self._app(scope, _measured(receive), send_with_headers)

    def _refusal(self, method: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and reason; the reason is '' for what may pass."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 403, f"this server is not {host[:80]!r}: open the address that it printed"
        site = headers.get("sec-fetch-site", "none")
        if not _is_from(host, headers.get("origin")) or (method != "GET" and site not in ("none", "same-origin")):
            return 403, "requests of other sites are refused"
        if method == "POST":
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return 415, "what is posted must be JSON: content-type application/json"
            size = headers.get("content-length", "0")
            if not size.isdecimal() or int(size[:20]) > MOST_BYTES:
                return 413, too_large()
        return 0, ""

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server; of all addresses, each may be named by its number."""
        parts = _split(f"//{host}")
        name = parts.hostname or "" if parts else ""
        if name in self._names:
            return True
        if self._host not in EVERYWHERE:
            return False
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return False


def _split(address: str) -> SplitResult | None:
    """The parts of an address that a client names; None where it is none."""
    try:
        parts = urlsplit(address)
        _ = parts.hostname, parts.port  # these are read late, and may raise too
    except ValueError:
        return None
    return parts


def _is_from(host: str, origin: str | None) -> bool:
    """Whether an Origin header is of the page of this host; a request without one comes from no page."""
    if origin is None:
        return True
    parts = _split(origin)
    return parts is not None and parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def too_large() -> str:
    return f"the request is larger than {MOST_BYTES >> 20} MiB: send a smaller picture, video or recording"


def _measured(receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """``receive`` that ends a body without an honest length."""
    seen = 0

    async def next_part() -> Any:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MOST_BYTES:
            raise TooLargeError
        return message

    return next_part
