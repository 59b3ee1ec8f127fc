"""Samples that sensitivities are taken of: kept or read again, and all of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxcompress.calibrate.sample_batches as batches_module
import onnxcompress.calibrate.sensitivity as module
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.errors import DataError
from onnxcompress.runtime import Execution

TAPS = {"a": 1, "b": 1, "f": 1, "i": 1}


def test_samples_that_do_not_fit_into_memory_are_read_again(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "_BATCH", 3)
    model = truth.classifier(nets)
    x, found, rows = nets.samples(model, 7), [], []
    # Seven samples of 90 float32 numbers fit exactly, or miss by a byte.
    for limit in (7 * 360, 7 * 360 - 1):
        monkeypatch.setattr(batches_module, "_KEPT_BYTES", limit)
        measured = truth.measured(model, x, np.arange(7))
        sensitivity = measured.sensitivity
        results = [f(TAPS) for f in (sensitivity.gate_gradients, sensitivity.curvature)]
        results += [sensitivity.fisher(TAPS), sensitivity.responses(TAPS).means]
        found.append(results)
        rows.append(len(measured.samples.seen))
        # Never more than one batch, whatever else is asked for.
        assert max(measured.samples.reads) == 3
    assert rows[0] < 3 * 7 < rows[1]
    for one, other in zip(*found, strict=True):
        assert all(np.array_equal(one[tap], other[tap]) for tap in TAPS)


class Growing:
    """Samples each of which is larger than the one before."""

    labels = None

    def __len__(self) -> int:
        return 3

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        row = int(rows[0])
        return {"x": np.random.default_rng(row).standard_normal((1, 3, 4 + row, 5)).astype("f4")}


@pytest.mark.parametrize("what", ["gate_gradients", "curvature", "fisher"])
def test_samples_of_several_sizes_are_refused(truth: Any, nets: Any, what: str) -> None:
    text = """net (float[1, 3, H, 5] x) => (float[1, 6] y) {
        [first] a = Conv (x, w0)
        [pool] p = GlobalAveragePool (a)
        [flat] q = Flatten (p)
        [dense] y = MatMul (q, w2) }"""
    model = nets.build(text, w0=(4, 3, 1, 1), w2=(4, 6))
    data = Dataset.over(Growing(), input_specs(model), source="here")
    shapes = shapes_for(model, {"x": (1, 3, 4, 5)})
    sensitivity = module.CollectedSensitivity(model, shapes, data, Execution(threads=1), 0)
    words = r"input 'x' is of size \[1, 3, \d, 5\] after \[1, 3, \d, 5\]: .* samples of one size"
    with pytest.raises(DataError, match=words) as caught:
        getattr(sensitivity, what)({"a": 1})
    assert caught.value.exit_code == 4
