"""Half precision and 8 bits: the same network within what the numbers can hold, and valid.

The oracle for fp16 is the original in float32: with 11 bits of mantissa and sums in float32 the
outputs agree to 1e-2. For int8 it is what the scales say: every activation and weight is off by
half a step at most, which on these networks stays below 15 % of the largest output.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.rewrite.precision import Conversion
from onnxcompress.verify.interface import interface_differences

NETWORK = """net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    [r1] b = Relu (a)
    [c2] c = Conv <group = 8> (b, w2)
    [s] d = Add (a, c)
    [p] e = GlobalAveragePool (d)
    [f] f = Flatten (e)
    [fc] y = Gemm <transB = 1> (f, w3, b3) }"""


@pytest.fixture
def network(nets: Any) -> onnx.ModelProto:
    model: onnx.ModelProto = nets.build(
        NETWORK, w1=(8, 3, 3, 3), b1=(8,), w2=(8, 1, 1, 1), w3=(5, 8), b3=(5,)
    )
    model.metadata_props.add(key="author", value="somebody")
    return model


@pytest.fixture
def data(network: onnx.ModelProto, nets: Any) -> Any:
    return inputs(network, nets.samples(network, 40))


def inputs(model: onnx.ModelProto, rows: dict[str, Any]) -> Dataset:
    return dataset_from_arrays(rows, input_specs(model), preprocess=None, source="here")


def furthest(kit: Any, one: onnx.ModelProto, other: onnx.ModelProto, feeds: Any) -> float:
    (found,), (expected,) = kit.run(one, feeds), kit.run(other, feeds)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def kinds(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer}


def test_half_precision(network: onnx.ModelProto, kit: Any, nets: Any) -> None:
    found = Conversion("fp16", nets.facts(network), None)(network)
    onnx.checker.check_model(found, full_check=True)
    assert interface_differences(network, found) == []
    assert kinds(found) == {onnx.TensorProto.FLOAT16}
    assert 0.0 < furthest(kit, found, network, nets.samples(network, 8)) <= 1e-2
    assert kinds(network) == {onnx.TensorProto.FLOAT}


def test_eight_bits(network: onnx.ModelProto, data: Any, kit: Any, nets: Any) -> None:
    found = Conversion("int8", nets.facts(network), data)(network)
    onnx.checker.check_model(found, full_check=True)
    assert interface_differences(network, found) == []
    assert onnx.TensorProto.INT8 in kinds(found)
    weights = {t.name: t for t in found.graph.initializer if len(t.dims) > 1}
    assert {t.data_type for t in weights.values()} == {onnx.TensorProto.INT8}
    # One scale per output channel.
    assert any(t.name.startswith("w1") and list(t.dims) == [8] for t in found.graph.initializer)
    assert 0.0 < furthest(kit, found, network, nets.samples(network, 8)) <= 0.15


def test_ranges_come_from_the_data(network: onnx.ModelProto, kit: Any, nets: Any) -> None:
    """With inputs a hundred times as large every step is coarse, and the answers are."""
    feeds, facts = nets.samples(network, 8), nets.facts(network)
    narrow, wide = (
        Conversion("int8", facts, inputs(network, {"x": scale * nets.samples(network, 40)["x"]}))
        for scale in (1.0, 100.0)
    )
    fine, coarse = (furthest(kit, c(network), network, feeds) for c in (narrow, wide))
    assert coarse > 5.0 * fine


def test_twice_is_the_same(network: onnx.ModelProto, data: Any, nets: Any) -> None:
    for precision in ("fp16", "int8"):
        one, other = (Conversion(precision, nets.facts(network), data)(network) for _ in range(2))
        assert one.SerializeToString() == other.SerializeToString()


def test_an_old_opset_is_raised(network: onnx.ModelProto, nets: Any, kit: Any) -> None:
    """Scales per channel came with opset 13; the interface may name a newer one, and says so."""
    old = network
    old.opset_import[0].version = 9
    feeds = nets.samples(old, 8)
    found = Conversion("int8", nets.facts(old), inputs(old, feeds))(old)
    onnx.checker.check_model(found, full_check=True)
    assert max(o.version for o in found.opset_import if not o.domain) >= 13
    assert interface_differences(old, found) != []
    assert interface_differences(old, found, converted=True) == []
    assert furthest(kit, found, old, feeds) <= 0.15


def test_a_folder_sorted_by_class(network: onnx.ModelProto, kit: Any, nets: Any) -> None:
    """The first 300 inputs are dark: ranges come from all of them, and do not cut the rest off."""
    rows = nets.samples(network, 600)
    rows["x"][:300] *= 0.01
    found = Conversion("int8", nets.facts(network), inputs(network, rows))(network)
    bright = {"x": rows["x"][300:308]}
    assert furthest(kit, found, network, bright) <= 0.15


def test_int8_needs_inputs(network: onnx.ModelProto, nets: Any) -> None:
    with pytest.raises(UsageError, match="--data"):
        Conversion("int8", nets.facts(network), None)


def test_a_converter_that_fails(
    network: onnx.ModelProto, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_options: Any) -> None:
        raise IndexError("list index\nout of range")

    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", broken)
    with pytest.raises(ModelError, match="converter to fp16 fails: list index out of range"):
        Conversion("fp16", nets.facts(network), None)(network)


def test_it_leaves_logging_alone(
    network: onnx.ModelProto, data: Any, nets: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """The converter gives advice through the root logger, and hangs a handler on it."""
    handlers, disabled = list(logging.getLogger().handlers), logging.root.manager.disable
    Conversion("int8", nets.facts(network), data)(network)
    assert logging.getLogger().handlers == handlers
    assert logging.root.manager.disable == disabled
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
