"""Pictures by URL: which URLs may be fetched, and fetching one within limits of time and size.

A dataset from elsewhere must not decide which hosts this machine contacts. It contacts none unless the user allows it,
and then no address of a private network unless the user names it.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.client import HTTPMessage
from typing import IO, Any

SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "r2", "oss", "memory")
WEB = ("http", "https")
TIMEOUT = 10.0  # seconds without a byte received
MAX_SECONDS, MAX_BYTES = 60.0, 256 << 20  # for one picture
BLOCK = 1 << 18


class Refused(ValueError):
    """A URL that may not be fetched; the message says why and what to do."""


def check(url: str, allowed: bool, hosts: Sequence[str]) -> None:
    """Raises Refused for a URL that a record may not name.

    Args:
      allowed: whether records may name URLs at all.
      hosts: private hosts that they may name.
    """
    if not allowed:
        raise Refused(
            f"{url[:80]} is a URL, and URLs are not fetched by default: allow them with config.data.allow_urls=True, "
            f"or, if the column of raw data is no picture, say so with config.data.columns=image= (video=, audio=)"
        )
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise Refused(f"{url[:80]}: media are fetched from {', '.join(SCHEMES)} alone")
    if scheme in WEB:
        host = _host(url)
        if host not in hosts and is_private(host):
            raise Refused(f"{url[:80]}: {host} is an address of this machine or a private network: name it in "
                          f"config.data.url_hosts if you want it")  # fmt: skip


def _host(url: str) -> str:
    try:
        return (urllib.parse.urlsplit(url).hostname or "").lower()
    except ValueError as error:
        raise Refused(f"{url[:80]} is no URL: {error}") from error


@functools.lru_cache(maxsize=1 << 12)
def is_private(host: str) -> bool:
    """Whether a host is, or resolves to, any address that is not public; False for a name that does not resolve."""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)} if host else {"0.0.0.0"}
    except (OSError, UnicodeError):
        return False
    return any(not ipaddress.ip_address(address.partition("%")[0]).is_global for address in addresses)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, except from a public host to a private one, or to anything but the web."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        is_web = newurl.partition("://")[0].lower() in WEB
        if not is_web or (is_private(_host(newurl)) and not is_private(_host(req.full_url))):
            raise OSError(f"{req.full_url[:80]} leads to {newurl[:80]}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def is_web(url: str) -> bool:
    """Whether ``fetch`` can read a URL: http or https."""
    return url.partition("://")[0].lower() in WEB


def fetch(url: str, clock: Any = time.monotonic) -> bytes:
    """Reads a picture from the web.

    Raises:
      FileNotFoundError: if the host answers 401, 403, 404 or 410.
      OSError: if it cannot be fetched within TIMEOUT, MAX_SECONDS and MAX_BYTES.
    """
    until = clock() + MAX_SECONDS
    asked = urllib.request.Request(url, headers={"User-Agent": "jaxmm"})
    try:
        with _OPENER.open(asked, timeout=TIMEOUT) as answer:
            blocks: list[bytes] = []
            size = 0
            while block := answer.read1(BLOCK):
                blocks.append(block)
                size += len(block)
                if size > MAX_BYTES:
                    raise OSError(f"{url[:80]} has more than {MAX_BYTES >> 20} MiB")
                if clock() > until:
                    raise OSError(f"{url[:80]} took longer than {MAX_SECONDS:.0f} s")
            return b"".join(blocks)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404, 410):
            raise FileNotFoundError(url) from error
        raise
