"""The guard before the server refuses other names, other sites, and what is no request."""

from __future__ import annotations

import http.client
import socket

import pytest
from talking import is_alive, refused, send, user

from jaxmm.chat import guard
from jaxmm.chat.guard import Guard


def test_a_bad_request_stops_no_later_one(chat_url, monkeypatch):
    monkeypatch.setattr(guard, "MOST_BYTES", 100_000)
    for body in (b"", b"{", b"[" * 90_000, b"\xff\xfe", b"[]", b"3"):
        assert refused(f"{chat_url}/ask", body)[0] == 400
    assert refused(f"{chat_url}/ask", b" " * 100_001)[0] == 413

    def chunks():
        yield from (b" " * 1000 for _ in range(200))

    connection = http.client.HTTPConnection(chat_url.removeprefix("http://"), timeout=30)
    headers = {"content-type": "application/json", "transfer-encoding": "chunked"}
    try:
        connection.request("POST", "/ask", chunks(), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server hung up before all was sent
    finally:
        connection.close()
    assert is_alive(chat_url)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"}, {"host": "evil.example:80"}, {"host": "127.0.0.1.evil.example"}, {"host": ""},
        {"host": "[::1"}, {"host": "192.168.0.5"}, {"origin": "http://evil.example"}, {"origin": "null"},
        {"origin": "http://127.0.0.1:1"}, {"origin": "http://[x"}, {"origin": "http://[::1]:x"},
        {"host": "localhost:x"}, {"origin": "ftp://{}"}, {"sec_fetch_site": "cross-site"},
    ],
)  # fmt: skip
def test_other_names_and_other_sites_are_refused(chat_url, headers):
    headers = {name: value.format(chat_url.removeprefix("http://")) for name, value in headers.items()}
    assert refused(f"{chat_url}/ask", {"model": "tiny", "messages": [user("hm?")]}, **headers)[0] == 403
    if "host" in headers:
        assert refused(chat_url, **headers)[0] == 403


def test_only_json_is_taken_and_nothing_is_allowed_to_other_sites(chat_url):
    body = {"model": "tiny", "messages": [user("hm?")]}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert refused(f"{chat_url}/ask", body, content_type=kind)[0] == 415
    connection = http.client.HTTPConnection(chat_url.removeprefix("http://"), timeout=30)
    connection.request("OPTIONS", "/ask", headers={"origin": "http://evil.example"})
    got = connection.getresponse()
    assert got.status == 403
    assert not any(name.startswith("access-control") for name, _ in got.getheaders())
    connection.close()
    with send(f"{chat_url}/ask", body, origin=chat_url, sec_fetch_site="same-origin") as own:
        assert own.status == 200


def test_nothing_lies_behind_a_path(chat_url):
    for path in (
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.js",
        "/static/",
        "//etc/passwd",
        "/docs",
        "/ask",
    ):
        connection = http.client.HTTPConnection(chat_url.removeprefix("http://"), timeout=30)
        connection.request("GET", path)
        got = connection.getresponse()
        assert got.status in (404, 405), path
        assert b"root:" not in got.read()
        connection.close()


@pytest.mark.parametrize(
    ("bound", "named", "is_ours"),
    [
        ("127.0.0.1", "localhost:8642", True), ("127.0.0.1", "[::1]:8642", True), ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "10.0.0.2", False), ("box.local", "box.local:8642", True), ("box.local", "other.local", False),
        ("0.0.0.0", "10.0.0.2:8642", True), ("0.0.0.0", socket.gethostname(), True), ("0.0.0.0", "evil.example", False),
        ("::", "[fe80::1]:8642", True), ("0.0.0.0", "", False), ("0.0.0.0", "0.0.0.0.evil.example", False),
    ],
)  # fmt: skip
def test_a_server_knows_its_names(bound, named, is_ours):
    assert Guard(None, bound)._is_ours(named) is is_ours
