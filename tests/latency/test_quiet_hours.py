"""Measurements that a busy machine spoils are taken again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from onnxcompress.latency.interleave import QuietHours, Timing


class Machine:
    """Answers with one time of the reference after the other."""

    def __init__(self, times: Sequence[float]) -> None:
        self.times = list(times)
        self.taken = 0

    def __call__(self) -> list[Timing]:
        ms = self.times[self.taken]
        self.taken += 1
        return [Timing(((ms,), (ms,), (ms,))), Timing(((float(self.taken),),) * 3)]


@pytest.mark.parametrize(
    ("best", "times", "taken", "counts"),
    [
        # Nothing is known yet: the first measurement sets the standard.
        (float("inf"), [5.0, 1.0], 1, 1),
        (4.0, [4.3], 1, 1),
        (4.0, [6.0, 4.2], 2, 2),
        # Never quiet: the quietest counts, and sets the standard from now on.
        (4.0, [6.0, 5.0, 7.0, 8.0], 4, 2),
        # Quieter than ever: that is the new standard.
        (4.0, [6.0, 3.0], 2, 2),
    ],
)
def test_taken_again(best: float, times: list[float], taken: int, counts: int) -> None:
    hours, machine = QuietHours(), Machine(times)
    hours.best = best
    found = hours.measure(machine)
    assert machine.taken == taken
    assert found[1].p50 == counts
    assert hours.best == (5.0 if taken == 4 else min(best, *times[:taken]))


@pytest.mark.parametrize(("doubts", "taken", "counts"), [(0, 1, 1), (1, 2, 1), (9, 3, 3)])
def test_what_is_doubted_is_taken_again(doubts: int, taken: int, counts: int) -> None:
    """Three times at most; the quietest counts, whatever it says of the other model."""
    machine = Machine([4.0, 4.1, 3.9, 4.0])
    found = QuietHours().measure(machine, lambda _: machine.taken <= doubts)
    assert machine.taken == taken
    assert found[1].p50 == counts


def test_less_patience() -> None:
    """Two at most; one that was quiet enough does not move the standard up."""
    hours, machine = QuietHours(), Machine([6.0, 5.0, 4.0])
    hours.best = 4.0
    assert hours.measure(machine, patience=2)[0].p50 == 5.0
    assert hours.best == 5.0
    hours.best = 4.0
    hours.measure(Machine([6.0, 4.3]), patience=2)
    assert hours.best == 4.0


def test_a_machine_that_became_slower_is_believed() -> None:
    """After one fruitless wait; and as soon as it is fast again, so is the standard."""
    hours = QuietHours()
    hours.measure(Machine([2.0]))
    late = Machine([3.0, 3.1, 2.9, 3.2])
    assert hours.measure(late)[0].p50 == 2.9
    assert late.taken == 4
    later = Machine([3.1, 2.0])
    assert hours.measure(later)[0].p50 == 3.1
    assert later.taken == 1
    assert hours.measure(Machine([2.1]))[0].p50 == 2.1
    assert hours.measure(Machine([2.9, 2.2]))[0].p50 == 2.2
