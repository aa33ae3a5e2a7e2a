"""Whom a record may have asked for a picture, and how long that may take."""

from __future__ import annotations

import http.server
import threading
import time

import pytest

from jaxmm.data import urls
from jaxmm.data.documents import Image
from jaxmm.data.media import opening
from jaxmm.data.media import picture as media
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError


def opened(tmp_path, url: str, **reading) -> Image:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "A cat.", "image": "%s"}\n' % url)  # noqa: UP031
    (source,) = read_sources(str(path), [], Reading(**reading))
    (document,) = source.documents()
    return document.turns[0].parts[0]


def test_no_url_is_asked_for_unless_allowed(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl, record 0: 'image': .*is a URL.*config\.data\.allow_urls=True"):
        opened(tmp_path, "https://192.0.2.1/a.png")
    assert opened(tmp_path, "s3://bucket/a.png", allow_urls=True) == Image(path="s3://bucket/a.png")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:8000/a.png", "127.0.0.1"),
        ("http://localhost/a.png", "localhost"),
        ("https://10.1.2.3/a.png", "10.1.2.3"),
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254"),
        ("http://0x7f000001/a.png", "0x7f000001"),
    ],
)
def test_private_addresses_must_be_named(tmp_path, url, host):
    with pytest.raises(UserError, match=r"of this machine or a private network: name it in config\.data\.url_hosts"):
        opened(tmp_path, url, allow_urls=True)
    assert opened(tmp_path, url, allow_urls=True, url_hosts=f"other, {host}") == Image(path=url)


def test_other_schemes_are_refused(tmp_path):
    for url in ("ftp://example.org/a.png", "ssh://h/a.png", "github://a/b.png", "zip://a.png"):
        with pytest.raises(UserError, match="are fetched from http, https"):
            opened(tmp_path, url, allow_urls=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        if self.path == "/none":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        for _ in range(20):
            self.wfile.write(b"x" * 1000)
            self.wfile.flush()
            if self.path == "/slow":
                time.sleep(0.05)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_a_picture_is_read_within_limits_of_size_and_time(server, monkeypatch):
    assert len(urls.fetch(f"{server}/a.png")) == 20000
    with pytest.raises(FileNotFoundError):
        urls.fetch(f"{server}/none")
    with pytest.raises(OSError, match=r"not followed|not allowed"):
        urls.fetch(f"{server}/moved")
    monkeypatch.setattr(urls, "MAX_BYTES", 5000)
    with pytest.raises(OSError, match="has more than"):
        urls.fetch(f"{server}/a.png")
    monkeypatch.setattr(urls, "MAX_BYTES", 1 << 20)
    passed = iter(range(0, 10_000, 40))
    with pytest.raises(OSError, match="took longer than 60 s"):
        urls.fetch(f"{server}/slow", clock=lambda: next(passed))


def test_a_picture_that_cannot_be_had_is_missing(server, monkeypatch):
    monkeypatch.setattr(opening, "RETRY_SECONDS", ())
    with pytest.raises(media.BadMedia, match="missing"):
        media.image_size(Image(path=f"{server}/none"))
