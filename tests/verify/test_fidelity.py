from __future__ import annotations

import json
from fractions import Fraction
from math import inf, log10, nan, sqrt

import numpy as np
import pytest

from onnxcompress.errors import DataError, ModelError
from onnxcompress.verify.fidelity import FidelityAccumulator, is_floating, sample_count

DISTINCT = (5, 3, 2, 4)
EQUAL = (3, 3, 3, 3)


def exact_energy(values):
    """Sum of squares in rational arithmetic."""
    return sum((Fraction(float(v)) ** 2 for v in values.ravel()), Fraction(0))


def compare(reference, candidate):
    accumulator = FidelityAccumulator(["y"])
    accumulator.add([reference], [candidate])
    return accumulator.result()[0]


@pytest.mark.parametrize("shape", [DISTINCT, EQUAL, (7,), ()])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_distances_match_rational_arithmetic(shape, dtype):
    rng = np.random.default_rng(1)
    a = np.asarray(rng.normal(size=shape), dtype=dtype)
    b = np.asarray(a + rng.normal(size=shape) * 0.01, dtype=dtype)
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    signal, noise = exact_energy(a), exact_energy(difference)
    found = compare(a, b)
    assert found.max_abs == float(np.abs(difference).max())
    # 120 float64 additions and a few roots: some tens of units in the last place
    assert found.relative_l2 == pytest.approx(sqrt(noise / signal), rel=1e-14)
    assert found.snr_db == pytest.approx(10 * log10(signal / noise), rel=1e-14)
    assert (found.elements, found.non_finite, found.mismatches) == (a.size, 0, None)
    assert found.is_finite


def test_result_does_not_depend_on_the_batches():
    rng = np.random.default_rng(2)
    a = rng.normal(size=(11, 3, 5)).astype(np.float32)
    b = a + rng.normal(size=a.shape).astype(np.float32) * np.float32(1e-3)
    whole = compare(a, b)
    accumulator = FidelityAccumulator(["y"])
    for start, stop in ((0, 1), (1, 4), (4, 11)):
        accumulator.add([a[start:stop]], [b[start:stop]])
    assert accumulator.result() == (whole,)
    (energies,) = accumulator.energies()
    difference = a.astype(np.float64) - b.astype(np.float64)
    for i in range(11):  # one entry per sample, in order
        assert energies.signal[i] == pytest.approx(float(exact_energy(a[i])), rel=1e-14)
        assert energies.noise[i] == pytest.approx(float(exact_energy(difference[i])), rel=1e-14)


def test_small_differences_are_not_lost_in_float32():
    a = np.full((1, 1 << 16), 3.0, np.float32)
    b = a.copy()
    b[0, ::2] += np.float32(2.0**-21)  # one unit in the last place of 3.0 is 2**-22
    found = compare(a, b)
    # ‖a‖² = 9·2^16, ‖a - b‖² = 2^15·2^-42: float32 sums would stop growing at 2^24
    assert found.relative_l2 == pytest.approx(sqrt(2.0**-27 / (9 * 2.0**16)), rel=1e-14)


def test_denominator_is_floored_for_silent_outputs():
    a, b = np.zeros((4, 25), np.float32), np.zeros((4, 25), np.float32)
    b[1, 2] = 0.5
    found = compare(a, b)
    assert found.relative_l2 == pytest.approx(0.5 / (1e-2 * 10.0), rel=1e-14)
    assert found.snr_db == -inf
    a[:] = 1e-3  # still below the floor of 1e-2 per element
    b[:] = 3e-3
    assert compare(a, b).relative_l2 == pytest.approx(0.2, rel=1e-6)  # float32 inputs


def test_equal_outputs():
    a = np.arange(6.0).reshape(2, 3)
    found = compare(a, a.copy())
    assert (found.max_abs, found.relative_l2, found.snr_db) == (0.0, 0.0, inf)
    assert found.to_dict()["snr_db"] == "inf"


@pytest.mark.parametrize(
    ("reference", "candidate", "count"),
    [
        (1.0, nan, 1),
        (nan, 1.0, 1),
        (nan, nan, 1),
        (inf, 1.0, 1),
        (1.0, -inf, 1),
        (inf, -inf, 1),
        (inf, nan, 1),
        (-inf, -inf, 0),
        (inf, inf, 0),
    ],
)
def test_non_finite_values(reference, candidate, count):
    a, b = np.ones((2, 3)), np.ones((2, 3))
    a[1, 2], b[1, 2] = reference, candidate
    b[0, 0] = 1.5
    found = compare(a, b)
    assert found.non_finite == count
    assert found.is_finite is (count == 0)
    if count:
        assert (found.max_abs, found.relative_l2, found.snr_db) == (inf, inf, -inf)
    else:  # a shared mask takes no part: five ones remain
        assert found.max_abs == 0.5
        assert found.relative_l2 == pytest.approx(0.5 / sqrt(5), rel=1e-14)


def test_non_finite_values_in_any_batch_count():
    accumulator = FidelityAccumulator(["y"])
    for bad in (2, 0, 1):
        b = np.ones((4, 2))
        b[:bad, 1] = nan
        accumulator.add([np.ones((4, 2))], [b])
    assert accumulator.result()[0].non_finite == 3


def test_every_batch_counts():
    accumulator = FidelityAccumulator(["y", "index"])
    for error, wrong in ((0.25, 1), (3.0, 2), (1.0, 0)):  # the largest error is in the middle
        a, index = np.ones((4, 2)), np.arange(4)
        b, changed = a.copy(), index.copy()
        b[2, 1] -= error
        changed[:wrong] += 5
        accumulator.add([a, index], [b, changed])
    y, exact = accumulator.result()
    assert (y.max_abs, y.elements) == (3.0, 24)
    assert y.snr_db == pytest.approx(10 * log10(24 / (0.0625 + 9 + 1)), rel=1e-14)
    assert (exact.mismatches, exact.elements) == (3, 12)


def test_energies_beyond_float64_are_infinitely_bad():
    a = np.full((1, 2), 1e200)
    for b in (a * 2, a / 2, np.ones((1, 2))):
        found = compare(a, b)
        assert (found.relative_l2, found.snr_db) == (inf, -inf)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (np.array([[1, 2, 3], [4, 5, 6]], np.int64), np.array([[1, 2, 4], [9, 5, 6]], np.int64)),
        (np.array([[1, 0, 1], [0, 0, 0]], bool), np.array([[0, 0, 1], [0, 1, 0]], bool)),
        (
            np.array([["a", "b", "c"], ["d", "e", "f"]], object),
            np.array([["a", "b", "cc"], ["x", "e", "f"]], object),
        ),
        (
            np.array([["a", "b", "c"], ["d", "e", "f"]]),
            np.array([["a", "b", "long"], ["x", "e", "f"]]),
        ),
    ],
)
def test_other_types_are_compared_exactly(reference, candidate):
    found = compare(reference, candidate)
    assert (found.mismatches, found.elements, found.non_finite) == (2, 6, 0)
    assert found.max_abs == 1.0
    assert found.relative_l2 == pytest.approx(sqrt(2 / 6), rel=1e-14)
    assert found.snr_db == pytest.approx(10 * log10(6 / 2), rel=1e-14)
    same = compare(reference, reference.copy())
    assert (same.mismatches, same.max_abs, same.snr_db) == (0, 0.0, inf)


def test_large_integers_are_not_rounded():
    a = np.array([2**53], np.int64)
    assert compare(a, a + 1).mismatches == 1


def test_several_outputs_stay_apart():
    accumulator = FidelityAccumulator(["p", "q"])
    a, b = np.ones((2, 3), np.float32), np.ones((2, 5), np.float32)
    accumulator.add([a, b], [a, b * 2])
    p, q = accumulator.result()
    assert (p.name, p.snr_db, p.elements) == ("p", inf, 6)
    assert (q.name, q.snr_db, q.elements) == ("q", 0.0, 10)


def test_outputs_without_a_shared_extent_count_as_one_sample():
    accumulator = FidelityAccumulator(["boxes", "count"])
    boxes = np.arange(12.0).reshape(3, 4)
    accumulator.add([boxes, np.array(3.0)], [boxes + 1.0, np.array(3.0)])
    first, second = accumulator.energies()
    np.testing.assert_array_equal(first.signal, [506.0])  # 0² + ... + 11²
    np.testing.assert_array_equal(first.noise, [12.0])
    np.testing.assert_array_equal(second.signal, [9.0])


def test_empty_outputs_are_equal():
    found = compare(np.zeros((0, 4)), np.zeros((0, 4)))
    assert (found.elements, found.relative_l2, found.snr_db) == (0, 0.0, inf)


def test_sample_count():
    assert sample_count([np.zeros((4, 2)), np.zeros(4)]) == 4
    assert sample_count([np.zeros((4, 2)), np.zeros(3)]) is None
    assert sample_count([np.zeros(()), np.zeros(())]) is None
    assert sample_count([np.zeros((0, 3))]) == 0


def test_is_floating():
    assert is_floating(np.zeros(1, np.float16))
    assert not is_floating(np.zeros(1, np.int32))
    assert not is_floating(np.zeros(1, bool))


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ([np.zeros((2, 3), np.float32), np.zeros((2, 5), np.float32)], "'second' has shape"),
        ([np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float64)], "'second' has type"),
        ([np.zeros((2, 3), np.float32), np.zeros((2, 4), np.int32)], "'second' has type"),
        ([np.zeros((2, 3), np.float32)], "candidate network gave 1 outputs instead of 2"),
    ],
)
def test_changed_interfaces_are_refused(candidate, message):
    accumulator = FidelityAccumulator(["first", "second"])
    reference = [np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)]
    with pytest.raises(ModelError, match=message):
        accumulator.add(reference, candidate)
    with pytest.raises(DataError):  # and nothing of the batch was taken into account
        accumulator.result()


def test_nothing_compared_is_an_error():
    with pytest.raises(DataError, match="'y' was never compared"):
        FidelityAccumulator(["y"]).result()


def test_to_dict_is_strict_json():
    b = np.ones((1, 2), np.float32)
    b[0, 0] = nan
    text = json.dumps(compare(np.ones((1, 2), np.float32), b).to_dict(), allow_nan=False)
    assert json.loads(text) == {
        "name": "y",
        "max_abs": "inf",
        "relative_l2": "inf",
        "snr_db": "-inf",
        "elements": 2,
        "non_finite": 1,
        "mismatches": None,
    }
