"""Fetching the bytes of one image: from a local path, S3 or the web.

Whatever goes wrong with one location becomes a status, never an exception; only a machine that cannot go on
(a full disk) raises.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.robotparser import RobotFileParser

import anyio
import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    NoCredentialsError,
    ReadTimeoutError,
)

from pipeline import s3
from pipeline.errors import RunError, is_disk_full
from pipeline.settings import CrawlSettings
from psnet.image import ImageError, check_header

# Answers after which the same request may succeed a little later (RFC 9110, RFC 6585).
_BUSY = (408, 425, 429, 500, 502, 503, 504)

# Answers that say something of who asks: not worth a second try at once, but another night's credentials may
# be in order (S3 answers 400 to an expired token).
_REFUSED = (400, 401, 403)

# RFC 9309, 2.5: a crawler reads at least the first 500 KiB of robots.txt.
_ROBOTS_BYTES = 512 * 1024

_S3_BLOCK = 64 * 1024

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fetched:
    """What came of one location: a row of FETCH_SCHEMA."""

    location: str
    status: str
    error: str = ""
    image_path: str = ""
    image_sha256: str = ""
    image_bytes: int = 0
    image_mtime_ns: int = 0


class FetchError(Exception):
    """A location that gave no picture. ``retry_after``: seconds the server asks to wait, if it does."""

    def __init__(
        self, status: str, message: str, *, retryable: bool = False, retry_after: float = 0.0
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after


def is_retryable(status: str) -> bool:
    """Whether a later run may have more luck with an item that ended with this status."""
    passing = ("timeout", "fetch_failed", "robots_disallowed")
    return status in passing or status in {f"http_{number}" for number in (*_BUSY, *_REFUSED)}


def is_unreachable(status: str) -> bool:
    """Whether this status speaks against the whole host, not the one image."""
    return status in ("timeout", "fetch_failed")


def local_path(location: str) -> str | None:
    """The path a location names on this machine (plain or file://), or None for any other URL.

    Raises:
        FetchError: a file:// URL of another machine.
    """
    if location.lower().startswith("file://"):
        parts = urlsplit(location)
        if parts.netloc not in ("", "localhost"):
            raise FetchError("bad_location", f"file:// on another host ({parts.netloc})")
        return unquote(parts.path)
    return None if "://" in location else location


def host_of(location: str) -> str:
    """The key under which requests are limited: scheme and host of a web address, "" for everything else."""
    parts = urlsplit(location) if location.lower().startswith(("http://", "https://")) else None
    return f"{parts.scheme}://{parts.netloc}".lower() if parts else ""


def stored_path(images_dir: Path, sha: str) -> Path:
    """Where the remote content of this SHA-256 is kept."""
    return images_dir.absolute() / sha[:2] / sha


class Fetcher:
    """Fetches locations, from any number of threads at once. A context manager.

    Remote bytes are stored as ``images_dir/<first two of sha>/<sha>``; local files stay where they are.
    Memory is O(threads x max_bytes).
    """

    def __init__(self, images_dir: Path, settings: CrawlSettings) -> None:
        self._images_dir = images_dir
        self._settings = settings
        self._web = _WebClient(settings)
        self._s3: Any = None
        self._s3_lock = threading.Lock()
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._web.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._web.__exit__(kind, error, trace)

    def fetch(self, location: str) -> Fetched:
        """Fetch one location.

        Raises:
            RunError: the bytes cannot be stored (disk full, no permission).
        """
        try:
            path = local_path(location)
            if path is not None:
                return self._fetch_local(location, path)
            scheme = urlsplit(location).scheme.lower()
            if scheme in ("http", "https"):
                data = self._with_retries(lambda deadline: self._web.get(location, deadline))
            elif scheme == "s3":
                data = self._with_retries(lambda deadline: self._get_s3(location, deadline))
            else:
                raise FetchError(
                    "bad_location", f"{scheme}:// is not supported; use a path, s3:// or http(s)://"
                )
            return self._keep(location, data)
        except FetchError as error:
            return Fetched(location, error.status, _one_line(error.message))
        except ImageError as error:
            return Fetched(location, error.code, _one_line(error.message))
        except ValueError as error:  # urlsplit and open on impossible addresses
            return Fetched(location, "bad_location", _one_line(error))

    def _fetch_local(self, location: str, path: str) -> Fetched:
        if not path:
            raise FetchError("bad_location", "the catalogue names no image")
        try:
            # Asked before opening: to open a pipe would wait for its writer.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise FetchError("missing_file", f"{path} is not a file")
            with open(path, "rb") as file:
                mtime_ns = os.fstat(file.fileno()).st_mtime_ns
                data = file.read(self._settings.max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise FetchError("missing_file", f"there is no file {path}") from None
        except OSError as error:
            raise FetchError(
                "fetch_failed", f"{path} cannot be read ({error.strerror})", retryable=True
            ) from error
        if len(data) > self._settings.max_bytes:
            raise _too_many_bytes(self._settings.max_bytes)
        check_header(data, max_pixels=self._settings.max_pixels)
        return Fetched(location, "ok", "", path, hashlib.sha256(data).hexdigest(), len(data), mtime_ns)

    def _keep(self, location: str, data: bytes) -> Fetched:
        check_header(data, max_pixels=self._settings.max_pixels)
        sha = hashlib.sha256(data).hexdigest()
        path = stored_path(self._images_dir, sha)
        # A copy of the wrong size is what a power cut leaves of a file that was not flushed; to flush every
        # image would cost more than to fetch those few again.
        if not (path.exists() and path.stat().st_size == len(data)):
            temporary = path.with_name(f".{sha}.{os.getpid()}.{threading.get_ident()}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(data)
                os.replace(temporary, path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                hint = "free some space" if is_disk_full(error) else "mend that"
                raise RunError(
                    f"{path.parent}: an image cannot be stored ({error.strerror}); {hint} and run again, "
                    "what is fetched stays"
                ) from error
        return Fetched(location, "ok", "", str(path), sha, len(data))

    def _with_retries(self, attempt: Callable[[float], _T]) -> _T:
        """Call ``attempt(deadline)``, again after transient failures: exponential back-off with jitter,
        Retry-After honoured up to ``backoff_max_s``, everything together within ``total_timeout_s``."""
        settings = self._settings
        deadline = time.monotonic() + settings.total_timeout_s
        for number in range(settings.retries + 1):
            try:
                return attempt(deadline)
            except FetchError as error:
                if not error.retryable or number == settings.retries:
                    raise
                if error.retry_after > settings.backoff_max_s:
                    error.message += f"; it asks to wait {error.retry_after:.0f} s"
                    raise
                # Jitter keeps the threads of one host from coming back at the same moment.
                pause = min(settings.backoff_s * 2**number, settings.backoff_max_s) * random.uniform(0.5, 1.0)
                pause = max(pause, error.retry_after)
                if time.monotonic() + pause >= deadline or self._stop.wait(pause):
                    raise
        raise AssertionError("unreachable")

    def _get_s3(self, url: str, deadline: float) -> bytes:
        bucket, key = s3.split_url(url)
        try:
            body = self._s3_client().get_object(Bucket=bucket, Key=key)["Body"]
            with contextlib.closing(body):
                return _read_within(body.iter_chunks(_S3_BLOCK), self._settings, deadline)
        except ClientError as error:
            code = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code == 404:
                raise FetchError("missing_file", f"there is no {url}") from None
            raise FetchError(f"http_{code}", str(error), retryable=code in _BUSY) from error
        except (ConnectTimeoutError, ReadTimeoutError) as error:
            raise FetchError("timeout", str(error), retryable=True) from error
        except NoCredentialsError as error:
            raise FetchError("fetch_failed", f"{error}; set AWS_ACCESS_KEY_ID or AWS_PROFILE") from error
        except BotoCoreError as error:
            raise FetchError("fetch_failed", str(error), retryable=True) from error

    def _s3_client(self) -> Any:
        with self._s3_lock:
            if self._s3 is None:
                self._s3 = s3.client(
                    endpoint_url=self._settings.s3_endpoint_url,
                    connections=self._settings.workers,
                    connect_timeout_s=self._settings.connect_timeout_s,
                    read_timeout_s=self._settings.read_timeout_s,
                    retries=0,  # retried here, within the one deadline
                )
            return self._s3


class _WebClient:
    """HTTP for many threads over one event loop in a thread of its own.

    The loop is there for the deadline: cancelling is the only way to bound a whole exchange, where socket
    timeouts start anew with every byte of a slow header.
    """

    def __init__(self, settings: CrawlSettings) -> None:
        self._settings = settings
        self._robots: dict[str, RobotFileParser] = {}
        self._robots_locks: dict[str, anyio.Lock] = {}
        self._portal_context: contextlib.AbstractContextManager[BlockingPortal] = start_blocking_portal()
        self._portal: BlockingPortal
        self._client: httpx.AsyncClient

    def __enter__(self) -> Self:
        settings = self._settings
        self._client = httpx.AsyncClient(
            headers={"User-Agent": settings.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(settings.read_timeout_s, connect=settings.connect_timeout_s, pool=None),
            limits=httpx.Limits(max_connections=settings.workers, max_keepalive_connections=settings.workers),
            max_redirects=settings.max_redirects,
        )
        self._portal = self._portal_context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._portal.call(self._client.aclose)
        # On an error the portal cancels what is still under way, which closes its connections.
        self._portal_context.__exit__(kind, error, trace)

    def get(self, url: str, deadline: float) -> bytes:
        """The body of a successful answer, of at most ``max_bytes``, before the monotonic time ``deadline``.

        Raises:
            FetchError: anything else.
        """
        try:
            return self._portal.call(self._get, url, deadline)
        except (TimeoutError, httpx.TimeoutException) as error:
            what = type(error).__name__ if isinstance(error, httpx.TimeoutException) else "total time is up"
            raise FetchError("timeout", f"no complete answer in time ({what})", retryable=True) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
            raise FetchError("bad_location", str(error)) from error
        except httpx.HTTPError as error:
            raise FetchError("fetch_failed", f"{type(error).__name__}: {error}", retryable=True) from error

    async def _get(self, url: str, deadline: float) -> bytes:
        with anyio.fail_after(deadline - time.monotonic()):
            request = self._client.build_request("GET", url)
            for _ in range(self._settings.max_redirects + 1):
                await self._ask_robots(request.url)
                response = await self._client.send(request, stream=True)
                try:
                    if response.next_request is None:
                        _check_answer(response)
                        return await self._read(response, self._settings.max_bytes)
                    request = response.next_request
                finally:
                    await response.aclose()
            raise FetchError("fetch_failed", f"more than {self._settings.max_redirects} redirects")

    async def _read(self, response: httpx.Response, max_bytes: int) -> bytes:
        body = bytearray()
        async for block in response.aiter_bytes():
            body += block
            if len(body) > max_bytes:  # Content-Length is a claim, this is a count
                raise _too_many_bytes(max_bytes)
        return bytes(body)

    async def _ask_robots(self, url: httpx.URL) -> None:
        if not self._settings.respect_robots:
            return
        origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        async with self._robots_locks.setdefault(origin, anyio.Lock()):
            if origin not in self._robots:
                self._robots[origin] = await self._read_robots(origin)
        if not self._robots[origin].can_fetch(self._settings.user_agent, str(url)):
            raise FetchError("robots_disallowed", f"{origin}/robots.txt does not allow it")

    async def _read_robots(self, origin: str) -> RobotFileParser:
        """RFC 9309: no robots.txt (4xx) allows everything, one that cannot be had (5xx, no answer) nothing
        for now."""
        rules = RobotFileParser()
        async with self._client.stream("GET", f"{origin}/robots.txt", follow_redirects=True) as response:
            if response.status_code in _BUSY or response.is_server_error:
                raise FetchError(
                    f"http_{response.status_code}",
                    f"{origin}/robots.txt answered {response.status_code}",
                    retryable=True,
                    retry_after=_retry_after(response),
                )
            text = bytearray()
            if response.is_success:
                async for block in response.aiter_bytes():
                    text += block
                    if len(text) >= _ROBOTS_BYTES:
                        break
        rules.parse(text[:_ROBOTS_BYTES].decode("utf-8", errors="replace").splitlines())
        return rules


def _check_answer(response: httpx.Response) -> None:
    if not response.is_success:
        raise FetchError(
            f"http_{response.status_code}",
            f"the server answered {response.status_code} {response.reason_phrase}".rstrip(),
            retryable=response.status_code in _BUSY,
            retry_after=_retry_after(response),
        )


def _retry_after(response: httpx.Response) -> float:
    """Seconds the server asks to wait (RFC 9110, 10.2.3: seconds or a date); 0 where it does not say."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    except ValueError:
        return 0.0


def _read_within(blocks: Iterable[bytes], settings: CrawlSettings, deadline: float) -> bytes:
    body = bytearray()
    for block in blocks:
        body += block
        if len(body) > settings.max_bytes:
            raise _too_many_bytes(settings.max_bytes)
        if time.monotonic() > deadline:
            raise FetchError("timeout", f"not complete within {settings.total_timeout_s:g} s")
    return bytes(body)


def _too_many_bytes(max_bytes: int) -> FetchError:
    return FetchError("too_many_bytes", f"more than the {max_bytes:,} bytes allowed")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300]
