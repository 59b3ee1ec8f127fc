"""x * sigmoid(x) as one step, where nobody else reads the sigmoid; the same answers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")

from onnxcompress.finetune.network import Network


@pytest.mark.parametrize(
    ("nodes", "outputs", "kinds"),
    [
        ("g = Sigmoid (x) y = Mul (x, g)", "y", ["Swish"]),
        ("g = Sigmoid (x) y = Mul (g, x)", "y", ["Swish"]),
        ("a = Relu (x) g = Sigmoid (a) b = Neg (a) y = Mul (g, a)", "y", ["Relu", "Neg", "Swish"]),
        ("a = Neg (x) g = Sigmoid (a) y = Mul (x, g)", "y", ["Neg", "Sigmoid", "Mul"]),
        ("g = Sigmoid (x) b = Mul (x, g) y = Add (b, g)", "y", ["Sigmoid", "Mul", "Add"]),
        ("g = Sigmoid (x) y = Mul (g, g)", "y", ["Sigmoid", "Mul"]),
        ("g = Sigmoid (x) y = Mul (x, g)", "yg", ["Sigmoid", "Mul"]),
    ],
)
def test_swish(nodes: str, outputs: str, kinds: list[str]) -> None:
    made_of = ", ".join(f"float[N, 3] {name}" for name in outputs)
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3] x) => ({made_of}) {{ {nodes} }}'
    )
    network = Network(model)
    assert [step.node.op_type for step in network.steps] == kinds
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made = network.answers({"x": x})
    for name, value in zip(network.outputs, session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(made[name], value, rtol=1e-6, atol=1e-7)
