"""A web shop with every bad habit, and an S3 server, both real and on this machine."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image


def jpeg(seed: int = 0, side: int = 64) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Shop(ThreadingHTTPServer):
    """A web shop with every bad habit; ``hits`` counts requests by path, ``busiest`` the most at once."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ShopPage)
        self.hits: Counter[str] = Counter()
        self.robots: tuple[int, bytes] = (404, b"")
        self.refused = True
        self.active = 0
        self.busiest = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what these tests are about."""


class _ShopPage(BaseHTTPRequestHandler):
    server: Shop
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes, *, kind: str = "image/jpeg", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.hits[self.path] += 1
            hits = server.hits[self.path]
            server.active += 1
            server.busiest = max(server.busiest, server.active)
        try:
            name, _, rest = self.path.lstrip("/").partition("/")
            getattr(self, f"page_{name.partition('.')[0]}", self.page_unknown)(rest, hits)
        finally:
            with server.lock:
                server.active -= 1

    def page_unknown(self, rest: str, hits: int) -> None:
        self.answer(404, b"no such page", kind="text/html")

    def page_robots(self, rest: str, hits: int) -> None:
        status, body = self.server.robots
        self.answer(status, body, kind="text/plain")

    def page_image(self, rest: str, hits: int) -> None:
        self.answer(200, jpeg(int(rest or 0)))

    def page_refused(self, rest: str, hits: int) -> None:
        if self.server.refused:
            self.answer(403, b"not with these credentials", kind="text/plain")
        else:
            self.page_image(rest, hits)

    def page_odd(self, rest: str, hits: int) -> None:
        self.answer(200, jpeg(), kind="text/plain")

    def page_html(self, rest: str, hits: int) -> None:
        self.answer(200, b"<!DOCTYPE html><p>Sold out", kind="image/jpeg")

    def page_empty(self, rest: str, hits: int) -> None:
        self.answer(200, b"")

    def page_slow(self, rest: str, hits: int) -> None:
        time.sleep(0.05)
        self.page_image(rest, hits)

    def page_hang(self, rest: str, hits: int) -> None:
        self.server.closing.wait(30)

    def page_drip(self, rest: str, hits: int) -> None:
        """A header that never ends, each byte well within the read timeout."""
        self.close_connection = True
        with suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self.server.closing.wait(0.1):
                self.wfile.write(b"a")

    def page_endless(self, rest: str, hits: int) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        with suppress(OSError):
            while not self.server.closing.is_set():
                self.wfile.write(b"\xff\xd8\xff\xe0" * 4096)

    def page_half(self, rest: str, hits: int) -> None:
        """Promises a whole picture and hangs up in the middle."""
        self.close_connection = True
        body = jpeg()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])

    def page_flaky(self, rest: str, hits: int) -> None:
        if hits == 1:
            self.answer(500, b"oops")
        else:
            self.page_image(rest, hits)

    def page_broken(self, rest: str, hits: int) -> None:
        self.answer(503, b"")

    def page_busy(self, rest: str, hits: int) -> None:
        if hits == 1:
            self.answer(429, b"", Retry_After=rest)
        else:
            self.page_image("0", hits)

    def page_loop(self, rest: str, hits: int) -> None:
        self.answer(302, b"", Location="/loop")

    def page_moved(self, rest: str, hits: int) -> None:
        self.answer(301, b"", Location=f"/{rest}")

    def page_escape(self, rest: str, hits: int) -> None:
        self.answer(302, b"", Location="file:///etc/hostname")


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server = Shop()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A boto3 client of the server; the environment leads everybody else's there too."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return boto3.client("s3", region_name="us-east-1")


@pytest.fixture
def make_jpeg() -> Callable[..., bytes]:
    """make_jpeg(seed=0, side=64) -> the bytes of a noisy picture."""
    return jpeg
