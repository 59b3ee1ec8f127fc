"""Executors: the same tasks in this process, in several on this machine, or on a Ray cluster.

An executor yields what tasks found as soon as it is there, in any order. A worker that dies takes
nothing along but the task that it was at, which is done again by another.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from onnxcompress.errors import OnnxCompressError, UsageError
from onnxcompress.runtime import Execution, default_threads, device_name
from onnxcompress.search.workshop import Found, Shared, Task, Workshop

T = TypeVar("T")
_RETRIES = 3
"""How often workers may die before the search gives up."""

_FEWEST = 2
"""Processes that joblib makes, at least: a single one it does without."""

_LOOK = 2.0
"""Seconds between a worker's looks at whether its driver is still there."""


class Executor(Protocol):
    """Runs tasks on what they share, and calls on one worker that has its machine for itself."""

    def run(self, shared: Shared, tasks: Sequence[Task]) -> Iterator[Found]:
        """Yield what every task found, in any order.

        Raises:
            OnnxCompressError: a task failed, or its workers die of it again and again.
        """

    def alone(self, call: Callable[[], T], execution: Execution) -> dict[str, T]:
        """What a call says on every kind of machine, by the kind's name, while no task runs.

        Args:
            call: what is to be said.
            execution: provider that it is about, which names the kind.
        """

    @property
    def elsewhere(self) -> bool:
        """Whether tasks may run where this machine's files are not."""


class Local:
    """What runs on this machine only."""

    elsewhere = False

    def alone(self, call: Callable[[], T], execution: Execution) -> dict[str, T]:
        """What a call says in this process, while no task runs."""
        return {kind_of_node(execution, default_threads()): call()}


def kind_of_node(execution: Execution, processors: float) -> str:
    """What latencies on a node depend on, in words."""
    return f"{device_name(execution)}, {processors:g} processors"


class Serial(Local):
    """One task after the other, in this process."""

    def __init__(self) -> None:
        self._made: tuple[Shared, Workshop] | None = None

    def run(self, shared: Shared, tasks: Sequence[Task]) -> Iterator[Found]:
        """Yield what every task found, in order."""
        if self._made is None or self._made[0] is not shared:
            self._made = shared, Workshop(shared)
        for task in tasks:
            yield self._made[1](task)


class Processes(Local):
    """Several processes on this machine (joblib); what they share is written to a file once.

    Args:
        workers: how many processes, two or more: joblib does not make a single one.

    Raises:
        UsageError: there would be fewer.
    """

    def __init__(self, workers: int) -> None:
        if workers < _FEWEST:
            raise UsageError("one worker is --executor serial: processes are two or more")
        self._workers = workers

    def run(self, shared: Shared, tasks: Sequence[Task]) -> Iterator[Found]:
        """Yield what every task found, in any order.

        Raises:
            UsageError: joblib is not installed.
            OnnxCompressError: a task failed, or its workers die of it again and again.
        """
        try:
            from joblib import Parallel, delayed
            from joblib.externals.loky.process_executor import TerminatedWorkerError
        except ImportError as error:
            raise UsageError(needs_extra("--executor processes", "joblib")) from error
        left = {task.key: task for task in tasks}
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
            path, token = _written(shared, Path(folder))
            for _ in range(_RETRIES):
                count = min(self._workers, max(_FEWEST, len(left)))
                pool = Parallel(
                    n_jobs=count,
                    return_as="generator_unordered",
                    batch_size=1,
                    initializer=end_with,
                    initargs=(os.getpid(),),
                )
                try:
                    jobs = [delayed(from_file)(path, token, task) for task in left.values()]
                    for found in pool(jobs):
                        del left[found.task.key]
                        yield found
                except TerminatedWorkerError:
                    # Killed, or out of memory: what was under way is done again.
                    continue
                if not left:
                    return
        raise given_up(left)


def needs_extra(what: str, package: str) -> str:
    """The message about a package that is not installed."""
    return f"{what} takes {package}: pip install 'onnxcompress[distributed]'"


def given_up(left: dict[str, Task]) -> OnnxCompressError:
    """The error about workers that die again and again."""
    names = ", ".join(list(left)[:3])
    return OnnxCompressError(
        f"workers died {_RETRIES} times and left {len(left)} tasks ({names}): less memory than "
        "they need? Try fewer --workers; what was found so far is kept"
    )


_WORKSHOPS: dict[str, Workshop] = {}
"""Of this process, by what they share; workers serve one search after the other."""


def workshop_for(token: str, octets: Callable[[], bytes]) -> Workshop:
    """This process's workshop for what is shared, which is unpacked once; only one is kept.

    Args:
        token: names what is shared.
        octets: what the driver of this very search packed.
    """
    if token not in _WORKSHOPS:
        _WORKSHOPS.clear()
        _WORKSHOPS[token] = Workshop(pickle.loads(octets()))  # noqa: S301
    return _WORKSHOPS[token]


def from_file(path: str, token: str, task: Task) -> Found:
    """Do a task in a worker process, which reads what is shared from a file the first time."""
    return workshop_for(token, Path(path).read_bytes)(task)


def end_with(driver: int) -> None:
    """Have this process end soon after its driver did; a killed one cannot tell its workers to.

    Args:
        driver: number of the process that started this one.
    """

    def look() -> None:
        while os.getppid() == driver:
            time.sleep(_LOOK)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _written(shared: Shared, folder: Path) -> tuple[str, str]:
    path = folder / "shared.pickle"
    octets = pickle.dumps(shared)
    path.write_bytes(octets)
    return str(path), token_of(octets)


def token_of(octets: bytes) -> str:
    """A name for what is shared, unlike that of any other search of this or another process."""
    return f"{hashlib.sha256(octets).hexdigest()}-{os.getpid()}"
