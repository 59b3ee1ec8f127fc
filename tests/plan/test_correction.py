"""Sums of savings become savings of the network: by a factor first, then by what lies beside."""

from __future__ import annotations

import pytest

from onnxcompress.plan.correction import Correction


def test_before_anything_is_measured() -> None:
    """The sum is believed, less what exact rewrites cost; or multiplied by what is known."""
    assert Correction().saved(7.0) == 7.0
    assert Correction().sum_for(7.0) == 7.0
    assert Correction(2.0).saved(7.0) == 5.0
    assert Correction(2.0).sum_for(5.0) == 7.0
    assert Correction(-1.0, slope=2.0).saved(3.0) == 7.0
    assert Correction(-1.0, slope=2.0).sum_for(7.0) == 3.0
    assert Correction(-1.0).sum_for(0.5) == 0.0


@pytest.mark.parametrize("start", [0.0, 3.0, -3.0])
def test_one_measurement_is_a_factor(start: float) -> None:
    known = Correction(start)
    known.add(10.0, 5.0)
    slope = (5.0 + start) / 10.0
    assert known.slope == pytest.approx(slope)
    for total in (2.0, 10.0, 16.0):
        assert known.saved(total) == pytest.approx(slope * total - start)
        assert known.sum_for(slope * total - start) == pytest.approx(total)


def test_between_two_measurements_is_a_line() -> None:
    known = Correction()
    known.add(10.0, 5.0)
    known.add(20.0, 7.0)
    assert known.saved(15.0) == pytest.approx(6.0)
    assert known.sum_for(6.0) == pytest.approx(15.0)
    assert known.saved(40.0) == pytest.approx(14.0)


def test_a_step_is_found_by_halving() -> None:
    """All but nothing saves 7 at once, where 5 are wanted: 0.3 in sum after five measurements."""
    known = Correction()
    total = 10.0
    for expected in (5.0, 2.5, 1.25, 0.625, 0.3125):
        known.add(total, 7.0)
        total = known.sum_for(5.0)
        assert total == pytest.approx(expected)


def test_a_line_is_as_good_where_hardly_more_is_saved_than_wanted() -> None:
    """Once: what saves as much again with less in sum is no slope."""
    known = Correction()
    known.add(10.0, 7.0)
    total = known.sum_for(6.0)
    assert total == pytest.approx(6.0 / 7.0 * 10.0)
    known.add(total, 6.9)
    assert known.sum_for(6.0) == pytest.approx(total / 2)
    # Something below is known: between the two it is a line again.
    known.add(total / 2, 5.0)
    assert known.sum_for(6.0) == pytest.approx(total / 2 + total / 2 * 1.0 / 1.9)


def test_nothing_saved() -> None:
    """What saves nothing asks for more, not for all there is."""
    known = Correction()
    known.add(10.0, -1.0)
    assert 10.0 < known.sum_for(1.0) <= 40.0
    known = Correction()
    known.add(10.0, 0.0)
    assert 10.0 < known.sum_for(1.0) <= 20.0


def test_findings_that_contradict() -> None:
    """More in sum that saved less: what lies between is tried, and nothing is divided by zero."""
    known = Correction()
    known.add(10.0, 6.0)
    known.add(12.0, 4.0)
    assert 10.0 <= known.sum_for(5.0) <= 12.0
