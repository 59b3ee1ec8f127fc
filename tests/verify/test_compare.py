"""A network's answers, kept, stand for it in comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress import trial
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.runtime import Execution
from onnxcompress.verify import compare as module
from onnxcompress.verify.compare import answers_of, compare
from onnxcompress.verify.metrics import parse_metric

NETWORK = """net (float[N, 20] x) => (float[N, 4] y) {
    [one] a = Gemm <transB = 1> (x, w1, b1) [r] c = Relu (a)
    [two] d = MatMul (c, w2) [s] e = Relu (d) [three] y = MatMul (e, w3) }"""
WEIGHTS = {"w1": (16, 20), "b1": (16,), "w2": (16, 12), "w3": (12, 4)}


@pytest.fixture
def model(nets: Any) -> onnx.ModelProto:
    made: onnx.ModelProto = nets.build(NETWORK, **WEIGHTS)
    return made


@pytest.fixture
def data(nets: Any, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """150 samples, in batches of 64: the last one is short."""
    monkeypatch.setattr(module, "_MAX_BATCH", 64)
    return dataset_from_arrays(nets.samples(model, 150), input_specs(model))


@pytest.mark.parametrize("metric", ["agreement", "top1"])
def test_kept_answers_stand_for_the_network(
    nets: Any, model: onnx.ModelProto, data: Dataset, metric: str
) -> None:
    if metric == "top1":
        labels = np.random.default_rng(2).integers(0, 4, 150)
        feeds = {**nets.samples(model, 150), "y": labels}
        data = dataset_from_arrays(feeds, input_specs(model))
    other = nets.build(NETWORK, seed=7, **WEIGHTS)
    execution = Execution(threads=1)
    kept = answers_of(model, data, execution, most_bytes=2**20)
    assert kept is not None
    assert kept.names == ("y",)
    assert [len(batch[0]) for batch in kept.batches] == [64, 64, 22]
    one, two = (
        compare(original, other, data, parse_metric(metric), execution, seed=1)
        for original in (model, kept)
    )
    assert one.fidelity == two.fidelity
    assert one.fidelity[0].snr_db < 10
    assert one.passes(5.0, min_snr=3.0) == two.passes(5.0, min_snr=3.0)


def test_too_much_is_not_kept(model: onnx.ModelProto, data: Dataset) -> None:
    size = 150 * 4 * 4
    assert answers_of(model, data, Execution(threads=1), most_bytes=size) is not None
    assert answers_of(model, data, Execution(threads=1), most_bytes=size - 1) is None


@pytest.mark.usefixtures("quick")
def test_jobs_choose_the_same_with_and_without(
    nets: Any, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> Any:
        return oc.compress(
            model,
            data=nets.samples(model, 200),
            passes=["svd:round_to=1"],
            target={"macs": 0.7},
            min_snr=-100.0,
            max_drop=100.0,
            threads=1,
        )

    kept = made()
    monkeypatch.setattr(trial, "_MOST_KEPT", 0)
    again = made()
    assert kept.plan.to_json() == again.plan.to_json()
    assert kept.model.SerializeToString() == again.model.SerializeToString()
