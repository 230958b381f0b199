"""Functions as tasks on Ray: a few at a time, accidents told in one line."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pipeline.errors import RunError
from pipeline.runtime import init_ray
from pipeline.settings import Settings

# A task that loses its worker (killed, out of memory) is tried elsewhere this often.
_TASK_RETRIES = 5


@contextlib.contextmanager
def on_ray(settings: Settings, what: str) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    """Ray, and what makes a task of a function; what goes wrong there is told in one line, that ``what``
    stopped.

    Raises:
        OSError: as a task raised it.
        RunError: workers keep dying.
    """
    init_ray(settings)
    import ray

    try:
        yield ray, ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, OSError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{what} stopped: {reason}; what is finished is kept") from error


def in_turn(ray: Any, tasks: Iterable[tuple[Any, Callable[[], Any]]]) -> Iterator[Any]:
    """Start tasks, a few at a time, so that the later ones can be told what the earlier ones have found;
    names of those that are done, as they are done.

    Args:
        tasks: (name, what starts it and gives its reference).
    """
    waiting = iter(tasks)
    running: dict[Any, Any] = {}
    while True:
        # Workers may come and go: two tasks for each, so that none waits.
        places = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while len(running) < places and (task := next(waiting, None)) is not None:
            running[task[1]()] = task[0]
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        name = running.pop(done[0])
        ray.get(done[0])
        yield name


def in_tasks(
    settings: Settings, what: str, function: Any, shared: Any, tasks: Mapping[Any, tuple[Any, ...]]
) -> Iterator[Any]:
    """Call ``function(shared, *arguments)`` for each of ``tasks``, by name; names as they are done. On Ray,
    or in this process if there is only one: a start of Ray costs more.

    Raises:
        as ``on_ray``: ``what`` stopped.
    """
    if len(tasks) <= 1:
        for name, arguments in tasks.items():
            function(shared, *arguments)
            yield name
        return
    with on_ray(settings, what) as (ray, as_task):
        call, at = as_task(function), ray.put(shared)
        yield from in_turn(ray, ((n, functools.partial(call.remote, at, *a)) for n, a in tasks.items()))
