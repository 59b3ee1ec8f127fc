"""When a candidate counts as faster, from round medians taken side by side."""

from __future__ import annotations

import pytest

from onnxcompress.latency.table import LayerTiming, together

ORIGINAL = (10.0, 12.0, 11.0, 10.0, 13.0, 10.0, 11.0)


def _timing(*factors):
    return LayerTiming(ORIGINAL, tuple(o * f for o, f in zip(ORIGINAL, factors, strict=True)))


@pytest.mark.parametrize(
    ("factors", "faster"),
    [
        ((0.9,) * 7, True),
        ((0.9,) * 6 + (1.5,), True),
        ((1.5,) + (0.9,) * 6, True),
        # Two lost rounds are one too many, however fast the others were.
        ((0.1,) * 5 + (1.01, 1.01), False),
        ((1.0,) * 7, False),
        # A tie is no win.
        ((0.9,) * 5 + (1.0, 1.0), False),
        ((0.9,) * 6 + (1.0,), True),
        ((1.1,) * 7, False),
        ((0.99,) * 7, True),
    ],
)
def test_faster(factors, faster):
    assert _timing(*factors).faster is faster


def test_more_rounds_may_lose_more():
    """Three of 21 are as many as one of seven."""
    rounds = (10.0,) * 21
    assert LayerTiming(rounds, (9.0,) * 18 + (11.0,) * 3).faster
    assert not LayerTiming(rounds, (9.0,) * 17 + (11.0,) * 4).faster


def test_settled():
    """Half of the rounds within a tenth of the median; what the others did does not matter."""
    assert _timing(*(0.8,) * 7).settled
    assert _timing(0.2, 0.79, 0.8, 0.8, 0.8, 0.81, 5.0).settled
    assert not _timing(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1).settled


def test_two_rounds_need_the_median_as_well():
    """One win of two is all rounds but one; the median ratio decides."""
    assert LayerTiming((10.0, 10.0), (5.0, 11.0)).faster
    assert not LayerTiming((10.0, 10.0), (9.0, 12.0)).faster


def test_ratio_is_the_median_of_ratios_side_by_side():
    """Not the ratio of medians: a machine that slows down for a round slows both."""
    timing = LayerTiming((10.0, 100.0, 10.0), (5.0, 50.0, 20.0))
    assert timing.ratio == 0.5
    # Ten times slower in one round, for both: nothing changes.
    assert _timing(*(0.8,) * 7).ratio == pytest.approx(0.8, rel=1e-12)


def test_saved_time_is_the_median_of_differences():
    timing = LayerTiming((10.0, 100.0, 10.0), (5.0, 50.0, 20.0))
    assert timing.saved_ms == 5.0
    assert LayerTiming((1.0,), (3.0,)).saved_ms == -2.0


def test_several_layers_as_one():
    one = LayerTiming((10.0, 20.0), (5.0, 6.0))
    other = LayerTiming((1.0, 2.0), (3.0, 4.0))
    assert together([one, other]) == LayerTiming((11.0, 22.0), (8.0, 10.0))
    assert together([one]) == one


def test_several_layers_of_unequal_rounds():
    """Three rounds in a row count as one, by their median: one that was disturbed does not."""
    long = LayerTiming((1.0, 2.0, 90.0, 4.0, 4.0, 4.0), (1.0, 1.0, 50.0, 2.0, 3.0, 2.0))
    assert together([LayerTiming((10.0, 20.0), (5.0, 6.0)), long]) == LayerTiming(
        (12.0, 24.0), (6.0, 8.0)
    )
