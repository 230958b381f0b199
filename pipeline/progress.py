"""Progress of long work, on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

PLAIN_SECONDS = 15.0
"""A line at most this often where there is no terminal: a night's log stays readable."""


class Progress(Protocol):
    """What ``track`` gives."""

    def advance(self, n: int = 1) -> None:
        """``n`` more are done."""


@contextlib.contextmanager
def track(total: int | None, label: str, unit: str = "") -> Iterator[Progress]:
    """Show how far a step is: ``with track(9, "crawl", "images") as progress: progress.advance()``.

    Args:
        total: how many there are, None when unknown.
        label: what is being done.
        unit: what is counted.
    """
    if sys.stderr.isatty():
        with _bar(total, label, unit) as progress:
            yield progress
    else:
        lines = _Lines(total, label, unit)
        yield lines
        lines.finish()


@contextlib.contextmanager
def _bar(total: int | None, label: str, unit: str) -> Iterator[Progress]:
    import rich.progress
    from rich.console import Console

    columns = (
        rich.progress.TextColumn("{task.description:<12}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn(unit),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield _Bar(bar, task)


class _Bar:
    def __init__(self, bar: object, task: int) -> None:
        self._bar, self._task = bar, task

    def advance(self, n: int = 1) -> None:
        self._bar.advance(self._task, n)  # type: ignore[attr-defined]


class _Lines:
    def __init__(self, total: int | None, label: str, unit: str) -> None:
        self._total, self._label, self._unit = total, label, unit
        self._done = 0
        self._started = self._printed = time.monotonic()

    def advance(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            self._print(now)

    def finish(self) -> None:
        self._print(time.monotonic())

    def _print(self, now: float) -> None:
        seconds = now - self._started
        of = "" if self._total is None else f"/{self._total}"
        unit = f" {self._unit}" if self._unit else ""
        speed = f", {self._done / seconds:,.1f}/s" if seconds >= 1 else ""
        print(f"{self._label}: {self._done}{of}{unit}, {seconds:.0f} s{speed}", file=sys.stderr, flush=True)
