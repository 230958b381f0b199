"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from pipeline import progress
from pipeline.progress import track


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with track(3, "extract", "images") as done:
        done.advance()
        done.advance(2)
    out, err = capsys.readouterr()
    assert not out
    assert [line.split(",")[0] for line in err.splitlines()] == [
        "extract: 1/3 images",
        "extract: 3/3 images",
        "extract: 3/3 images",
    ]


def test_few_lines_however_many_steps(capsys: pytest.CaptureFixture[str]):
    with track(None, "crawl") as done:
        for _ in range(10_000):
            done.advance()
    assert capsys.readouterr().err.startswith("crawl: 10000, ")


def test_a_bar_on_a_terminal():
    code = "from pipeline.progress import track\nwith track(2, 'extract', 'images') as p: p.advance(2)"
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code], stderr=theirs, check=True, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    assert b"2/2" in os.read(ours, 10_000)
    os.close(ours)
