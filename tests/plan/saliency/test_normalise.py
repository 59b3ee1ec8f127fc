"""Scores of a layer made comparable, number by number."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.plan.saliency.normalise import NORMALISATIONS, normalised


@pytest.mark.parametrize("values", [[3.0, -1.0, 2.0, 0.5], [2.0, 2.0], [0.0, 0.0, 0.0], [5.0]])
def test_normalised(values: list[float]) -> None:
    line = np.array(values)
    low, high = min(values), max(values)
    span = high - low
    absolute, euclid = sum(abs(v) for v in values), sum(v * v for v in values) ** 0.5
    expected = {
        "none": values,
        "minmax": [(v - low) / span if span else 0.0 for v in values],
        "l1": [v / absolute if absolute else 0.0 for v in values],
        "l2": [v / euclid if euclid else 0.0 for v in values],
    }
    assert set(expected) == set(NORMALISATIONS)
    for how, line_expected in expected.items():
        np.testing.assert_allclose(normalised(line, how), line_expected, rtol=1e-14, atol=0)
    assert line.tolist() == values
