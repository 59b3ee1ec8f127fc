"""Whole jobs with `prune` on unusual but valid networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress.graph.branch_removal import remove_branch
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info


def model_of(text: str, **constants: Any) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for name, values in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return with_value_info(model)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_an_input_without_samples(kit: Any) -> None:
    """A scalar comes first among the inputs; it has no first dimension to count samples by."""
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float s, float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) {
        [c1] a = Conv (x, w1) [r] b = Relu (a) [m] c = Mul (b, s) [c2] y = Conv (c, w2) }""",
        w1=noise(16, 3, 1, 1),
        w2=noise(5, 16, 1, 1),
    )
    result = oc.compress(model, passes=["prune:channels=0.5"], gate=False)
    (check,) = result.report["self_check"]
    assert check["relative_error"] <= 1e-6
    feeds = {"s": np.array(2.0, dtype=np.float32), "x": noise(3, 3, 8, 8)}
    assert kit.run(result.model, feeds)[0].shape == (3, 5, 8, 8)


def test_weights_behind_dequantisation_are_timed() -> None:
    """The gate times the layer with the weight as it is computed, instead of not at all."""
    generator = np.random.default_rng(0)
    constants: dict[str, Any] = {}
    for at, (rows, columns) in enumerate(((64, 16), (64, 64), (16, 64)), start=1):
        constants[f"w{at}"] = generator.integers(-9, 9, (rows, columns, 3, 3)).astype(np.int8)
        constants[f"s{at}"] = generator.uniform(0.01, 0.02, rows).astype(np.float32)
    body = (
        "".join(
            f"""[d{at}] f{at} = DequantizeLinear <axis = 0> (w{at}, s{at})
        [c{at}] {after} = Conv <pads = [1, 1, 1, 1]> ({before}, f{at}) """
            for at, (before, after) in enumerate((("x", "a"), ("b", "c"), ("d", "y")), start=1)
        )
        .replace("[d2]", "[r1] b = Relu (a) [d2]")
        .replace("[d3]", "[r2] d = Relu (c) [d3]")
    )
    model = model_of(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[1, 16, 24, 24] x) => (float[1, 16, 24, 24] y) {{ {body} }}""",
        **constants,
    )
    result = oc.compress(model, passes=["prune"], target={"macs": 0.7}, gate=True)
    ratios = [row.get("latency_ratio") for row in result.report["layers"] if row["pass"]]
    assert ratios
    assert all(ratio is not None and np.isfinite(ratio) for ratio in ratios)
    assert result.report["remaining"]["macs"] <= 0.7


def test_a_fixed_batch_larger_than_what_is_collected() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[300, 3, 4, 4] x) => (float[300, 5, 4, 4] y) {
        [c1] a = Conv (x, w1) [r] b = Relu (a) [c2] y = Conv (b, w2) }""",
        w1=noise(16, 3, 1, 1),
        w2=noise(5, 16, 1, 1),
    )
    result = oc.compress(
        model,
        data=noise(900, 3, 4, 4),
        passes=["prune:criterion=activation-std,channels=0.5"],
        min_snr=-20,
        gate=False,
    )
    assert result.report["remaining"]["params"] < 1.0


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (5,), (1, 1, 1, 1)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_maximum_of_the_network_s_own(kit: Any, shape: tuple[int, ...], *, shared: bool) -> None:
    """The branch may only go through a Max whose constant is one number per channel, read once."""
    other = "[e] z = Conv (s, w)" if shared else "[e] z = Relu (x)"
    model = model_of(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 4, 4, 5] x) => (float[N, 4, 4, 5] y, float[N, 4, 4, 5] z) {{
        [stem] s = Conv (x, w) [top] t = Max (s, k) [c1] a = Conv (t, w) [r] b = Relu (a)
        [c2] c = Conv (b, w) [add] d = Add (c, t) [end] o = Relu (d) [last] y = Conv (o, w)
        {other} }}""",
        w=kit.whole((4, 4, 1, 1), seed=1),
        k=kit.whole(shape, seed=2),
    )
    mean = np.array([2.0, -3.0, 1.0, 0.0])
    editor = Editor(model)
    remove_branch(editor, "add", 0, mean)
    reference = onnx.ModelProto()
    reference.CopyFrom(model)
    constant = mean.reshape(1, 4, 1, 1).astype(np.float32)
    reference.graph.initializer.append(onnx.numpy_helper.from_array(constant, "mean"))
    next(node for node in reference.graph.node if node.name == "add").input[0] = "mean"
    kit.assert_same(reference, editor.finish(), {"x": kit.whole((2, 4, 4, 5), seed=3)})


def test_rows_of_a_removed_branch_cost_nothing() -> None:
    """Layers that went with a branch are not counted as if something of them were left."""
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y) {
        [c0] s = Conv (x, w0) [r0] t = Relu (s) [c1] a = Conv <pads = [1, 1, 1, 1]> (t, w1)
        [r1] b = Relu (a) [c2] c = Conv <pads = [1, 1, 1, 1]> (b, w2) [add] d = Add (c, t)
        [r2] o = Relu (d) [c3] y = Conv (o, w3) }""",
        w0=noise(16, 3, 1, 1),
        w1=noise(16, 16, 3, 3, seed=1),
        w2=noise(16, 16, 3, 3, seed=2) * 1e-3,
        w3=noise(5, 16, 1, 1, seed=3),
    )
    result = oc.compress(
        model,
        data=noise(64, 3, 6, 6),
        passes=["prune"],
        target={"macs": 0.05},
        min_snr=-20,
        repair="off",
    )
    rows = {row["node"]: row for row in result.report["layers"]}
    left = {node.name for node in result.model.graph.node}
    assert not {"c1", "c2"} & left
    assert rows["c1"]["macs_after"] == rows["c2"]["macs_after"] == 0
    total = sum(row["macs_after"] for row in rows.values() if row["pass"])
    kept = sum(row["macs"] for row in rows.values() if not row["pass"])
    assert total + kept == result.report["after"]["macs"]
