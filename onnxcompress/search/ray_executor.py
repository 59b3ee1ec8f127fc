"""Tasks on a Ray cluster, with retries; latency on one worker that has a node for itself."""

from __future__ import annotations

import logging
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from onnxcompress.errors import OnnxCompressError, UsageError
from onnxcompress.runtime import Execution
from onnxcompress.search.executors import kind_of_node, needs_extra, token_of, workshop_for
from onnxcompress.search.workshop import Found, Shared, Task

T = TypeVar("T")
_RETRIES = 5
"""How often a task is done again after its worker or node died."""

_PATIENCE = 10.0
"""Seconds that a cluster has to answer."""


class RayCluster:
    """A Ray cluster: one that runs, or one of this machine's processors.

    Args:
        address: of a running cluster (`auto`, `HOST:PORT`); None starts one on this machine, unless
            this process is connected to one already.
        workers: tasks at a time, at most; None for one per processor of the cluster.

    Raises:
        UsageError: Ray is not installed, or nothing answers at the address.
    """

    elsewhere = True

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError(needs_extra("--executor ray", "Ray")) from error
        self._ray = ray
        if not ray.is_initialized():
            _demand_answer(address)
            given: dict[str, Any] = {"address": address} if address else {"num_cpus": workers}
            try:
                ray.init(**given, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as error:
                raise UsageError(f"--address '{address}': no Ray cluster: {error}") from error
        self._workers = workers
        self._placed: tuple[Shared, Any, str] | None = None

    def run(self, shared: Shared, tasks: Sequence[Task]) -> Iterator[Found]:
        """Yield what every task found, in any order.

        Raises:
            OnnxCompressError: a task failed, or its workers die of it again and again.
        """
        ray = self._ray
        place, token = self._place(shared)
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)(_do)
        waiting, running = list(reversed(tasks)), dict[Any, Task]()
        most = self._workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting or running:
            while waiting and len(running) < most:
                task = waiting.pop()
                running[remote.remote(place, token, task)] = task
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                task = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _cause(error) from error
                except ray.exceptions.RayError as error:
                    raise OnnxCompressError(
                        f"{task.key}: workers died {_RETRIES} times of it: {error}"
                    ) from error

    def alone(self, call: Callable[[], T], execution: Execution) -> dict[str, T]:
        """What a call says on every kind of node, while it has a node for itself.

        Args:
            call: is sent to one node of every kind; what it takes along is sent with it.
            execution: provider that it is about.

        Returns:
            By kind of node: its processor, and how many of them it has.
        """
        ray = self._ray
        kinds: dict[str, T] = {}
        for node in ray.nodes():
            processors = node["Resources"].get("CPU", 0)
            if not node["Alive"] or not processors:
                continue
            near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                node["NodeID"], soft=False
            )
            asked = ray.remote(kind_of_node).options(scheduling_strategy=near)
            name = ray.get(asked.remote(execution, processors))
            if name not in kinds:
                whole = ray.remote(_called).options(
                    num_cpus=processors, scheduling_strategy=near, max_retries=_RETRIES
                )
                kinds[name] = ray.get(whole.remote(call))
        return kinds

    def _place(self, shared: Shared) -> tuple[Any, str]:
        """What is shared, in the cluster's object store: sent to every node once."""
        if self._placed is None or self._placed[0] is not shared:
            octets = pickle.dumps(shared)
            self._placed = shared, self._ray.put(octets), token_of(octets)
        return self._placed[1], self._placed[2]


def _demand_answer(address: str | None) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes.

    Raises:
        UsageError: nothing does.
    """
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise UsageError(f"--address '{address}': nothing answers there: {error}") from error


def _do(octets: bytes, token: str, task: Task) -> Found:
    return workshop_for(token, lambda: octets)(task)


def _called(call: Callable[[], T]) -> T:
    return call()


def _cause(error: Any) -> OnnxCompressError:
    """The error of a task as the task raised it."""
    cause = error.cause
    return cause if isinstance(cause, OnnxCompressError) else OnnxCompressError(repr(cause))
