"""Batches side by side: in order, few at a time, and with what one after the other comes to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")

from onnxcompress.finetune.job import distil  # noqa: E402
from onnxcompress.finetune.lanes import lanes  # noqa: E402
from onnxcompress.finetune.network import Network  # noqa: E402
from onnxcompress.finetune.settings import Effort, Settings  # noqa: E402
from onnxcompress.progress import Silent  # noqa: E402


def test_at_the_same_time_and_in_order() -> None:
    """The first of a pair waits for the second; one after the other they would wait for ever."""
    later = threading.Event()

    def seen(number: int) -> tuple[int, int]:
        if number % 2:
            later.set()
        else:
            assert later.wait(30)
            later.clear()
        return number, torch.get_num_threads()

    before = torch.get_num_threads()
    with lanes(2, 7) as side:
        assert list(side.map(seen, range(6))) == [(number, 3) for number in range(6)]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_are_taken_than_are_computed(count: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    with lanes(count, count) as side:
        made = side.map(lambda number: -number, items())
        assert next(made) == 0
        assert len(taken) == count


def test_what_fails_is_told() -> None:
    def fails(number: int) -> int:
        raise ValueError(f"no {number}")

    with lanes(2, 2) as side, pytest.raises(ValueError, match="no 0"):
        list(side.map(fails, range(4)))


@pytest.mark.parametrize(("fixed", "alone"), [(1, False), (16, True), ("N", True)])
def test_networks_of_a_small_fixed_batch(
    teacher: Any,
    forgetful: Any,
    images: Any,
    monkeypatch: pytest.MonkeyPatch,
    fixed: int | str,
    alone: bool,
) -> None:
    """They are trained by several threads, to the same bytes as by one; others share threads."""
    for value in (*teacher.graph.input, *teacher.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        dimension.Clear()
        setattr(dimension, "dim_value" if fixed != "N" else "dim_param", fixed)
    inner, threads = Network.forward, set()

    def watched(self: Network, *given: Any, **options: Any) -> Any:
        threads.add(threading.current_thread())
        return inner(self, *given, **options)

    monkeypatch.setattr(Network, "forward", watched)
    made = []
    for count in (1, 3):
        threads.clear()
        settings = Settings(effort=Effort(epochs=2), batch=16, rate=0.01, threads=count)
        found = distil(forgetful(teacher), teacher, images(teacher, 160), settings, Silent())
        assert found.improved
        assert (threads == {threading.main_thread()}) == (count == 1 or alone)
        made.append(found.model.SerializeToString())
    if not alone:
        assert made[0] == made[1]
