"""A real Prefect server on a free port, with a home and a database of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ["DO_NOT_TRACK"] = "1"  # before Prefect is imported, which is when it decides

import httpx
import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

REPOSITORY = Path(__file__).parents[2]


@dataclass
class PrefectServer:
    url: str
    home: Path
    environment: dict[str, str] = field(repr=False)

    def prefect(self, *arguments: str, cwd: Path = REPOSITORY) -> str:
        """Run the `prefect` command against this server; its standard output."""
        return subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            env=self.environment,
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout

    @contextlib.contextmanager
    def background(self, *arguments: str, cwd: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A long-running `prefect` command, ended with the block, its children too."""
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                env=self.environment,
                cwd=cwd,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            # Nothing of it outlives the test session, so there is nothing to shut down in order.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    server = PrefectServer(
        url=f"http://127.0.0.1:{port}/api",
        home=home,
        environment=inherited
        | {
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            # The worker's processes import this checkout, wherever they start.
            "PYTHONPATH": str(REPOSITORY),
        },
    )
    log = home / "server.log"
    arguments = ("server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
    with server.background(*arguments, cwd=home, log=log) as process:
        deadline = time.monotonic() + 120
        while not _healthy(server.url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the Prefect server did not start:\n{log.read_text()}")
            time.sleep(0.2)
        # Logs stay here: the thread that sends them would wait for the dead server when Python exits.
        here = {PREFECT_API_URL: server.url, PREFECT_HOME: home, PREFECT_LOGGING_TO_API_ENABLED: False}
        with temporary_settings(here):
            yield server


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
