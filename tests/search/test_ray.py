"""A Ray cluster of two nodes on this machine: the same models, whatever dies on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxcompress.config import Config
from onnxcompress.errors import UsageError
from onnxcompress.latency.interleave import Budget
from onnxcompress.runtime import Execution
from onnxcompress.search.driver import Request, search
from onnxcompress.search.executors import Local
from onnxcompress.search.workshop import Found, Shared, Task, Workshop

ray = pytest.importorskip("ray", reason="Ray is not installed")

from onnxcompress.search.ray_executor import RayCluster  # noqa: E402

VECTORS = tuple(product(range(3), repeat=2))[1:]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one processor each; the driver is connected to the first."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@dataclass
class Both(Local):
    """Serial, and keeps what was shared and found."""

    shared: list[Shared] = field(default_factory=list)
    found: dict[str, Found] = field(default_factory=dict)

    def run(self, shared: Shared, tasks: Sequence[Task]) -> Iterator[Found]:
        self.shared.append(shared)
        workshop = Workshop(shared)
        for task in tasks:
            self.found[task.key] = workshop(task)
            yield self.found[task.key]


@pytest.fixture(scope="module")
def serial(
    network: onnx.ModelProto,
    config_for: Callable[..., Config],
    tmp_path_factory: pytest.TempPathFactory,
) -> Both:
    """Every combination, built in this process."""
    executor = Both()
    ratios = (1.0, 0.75, 0.5)
    also = tuple((ratios[a], ratios[b]) for a, b in VECTORS)
    request = Request(
        folder=tmp_path_factory.mktemp("serial"), count=1, also=also, executor=executor
    )
    brief = Budget(rounds=2, seconds=0.0, min_runs=2, warmup_runs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxcompress.search.driver.LONG", brief)
        patch.setattr("onnxcompress.search.driver.BRIEF", brief)
        search(network, config_for(), request)
    return executor


def same(found: Found, expected: Found) -> bool:
    return (
        (found.model, found.plan, found.error) == (expected.model, expected.plan, expected.error)
        and found.figures == expected.figures
        and bool(found.model)
    )


def test_the_same_models_as_in_process(cluster: Any, serial: Both) -> None:
    tasks = [Task(vector, briefly=False) for vector in VECTORS]
    found = {one.task.key: one for one in RayCluster().run(serial.shared[0], tasks)}
    assert set(found) == {task.key for task in tasks}
    assert all(same(one, serial.found[key]) for key, one in found.items())


@dataclass(frozen=True)
class Mortal(Task):
    """A task whose first worker dies of it."""

    path: str = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        marker = Path(self.path)
        if not marker.exists() and os.getpid() != int(marker.with_suffix(".driver").read_text()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed(cluster: Any, serial: Both, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    marker.with_suffix(".driver").write_text(str(os.getpid()))
    tasks = [
        Task((1, 0), briefly=False),
        Mortal((0, 1), briefly=False, path=str(marker)),
        Task((1, 1), briefly=False),
    ]
    found = list(RayCluster().run(serial.shared[0], tasks))
    assert marker.exists()
    assert sorted(one.task.vector for one in found) == [(0, 1), (1, 0), (1, 1)]
    assert all(same(one, serial.found[one.task.key]) for one in found)


def test_one_kind_of_node_is_timed_once(cluster: Any) -> None:
    found = RayCluster().alone(os.getpid, Execution(threads=1))
    assert len(found) == 1
    ((kind, pid),) = found.items()
    assert kind.endswith("1 processors")
    assert pid != os.getpid()


def test_a_node_that_is_killed(cluster: Any, serial: Both) -> None:
    """Half of the tasks are in when one of the two nodes is gone."""
    tasks = [Task(vector, briefly=False) for vector in VECTORS]
    found: list[Found] = []
    for one in RayCluster().run(serial.shared[0], tasks):
        found.append(one)
        if len(found) == len(tasks) // 2:
            cluster.remove_node(cluster.second, allow_graceful=False)
    assert sorted(one.task.vector for one in found) == sorted(VECTORS)
    assert all(same(one, serial.found[one.task.key]) for one in found)


def test_nobody_at_the_address() -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(UsageError, match="nothing answers"):
        RayCluster("127.0.0.1:1")
