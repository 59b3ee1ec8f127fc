"""Where a channel is looked at: behind its layer's normalisation and activation function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.plan.saliency.taps import activation_of

# Activations are read behind normalisation and activation function. `tensor` is where.
TAPS: dict[str, tuple[str, str]] = {
    "nothing behind": ("", "a"),
    "ReLU": ("[n] c = Relu (a)", "c"),
    "BatchNormalization and ReLU": (
        "[n] b = BatchNormalization (a, s, t, m, q)  [r] c = Relu (b)", "c"),
    "Clip": ("[n] c = Clip (a, low, high)", "c"),
    "bias and ReLU": ("[n] b = Add (a, line)  [r] c = Relu (b)", "c"),
    "bias in front": ("[n] b = Add (line, a)  [r] c = Relu (b)", "c"),
    "scaled": ("[n] b = Mul (a, line)  [r] c = LeakyRelu <alpha = 0.1> (b)", "c"),
    "PRelu": ("[n] c = PRelu (a, line)", "c"),
    "pooled": ("[n] b = Relu (a)  [p] c = MaxPool <kernel_shape = [2, 2]> (b)", "b"),
    "Add of two": ("[other] o = Conv <kernel_shape = [1, 1]> (x, z)  [n] b = Add (a, o)"
                   "  [r] c = Relu (b)", "a"),
    "read twice": (
        "[n] b = Relu (a)  [r] c = Tanh (b)  [side] side = Conv <kernel_shape = [1, 1]> (b, v)",
        "b"),
    "x * sigmoid(x)": ("[n] b = Sigmoid (a)  [r] c = Mul (a, b)", "c"),
    "sigmoid(x) * x": ("[n] b = HardSigmoid (a)  [r] c = Mul (b, a)", "c"),
    "x * sigmoid(x), more behind": (
        "[n] b = Sigmoid (a)  [r] d = Mul (a, b)  [t] c = LeakyRelu (d)", "c"),
    "x * sigmoid(x) behind a bias": (
        "[p] d = Add (a, line)  [n] b = Sigmoid (d)  [r] c = Mul (d, b)", "c"),
    "x * tanh(x)": ("[n] b = Tanh (a)  [r] c = Mul (a, b)", "a"),
    "x + sigmoid(x)": ("[n] b = Sigmoid (a)  [r] c = Add (a, b)", "a"),
    "x * sigmoid(x), the gate read again": (
        "[n] b = Sigmoid (a)  [r] c = Mul (a, b)"
        "  [side] side = Conv <kernel_shape = [1, 1]> (b, v)", "a"),
    "x * sigmoid(x), x read again": (
        "[n] b = Sigmoid (a)  [r] c = Mul (a, b)"
        "  [side] side = Conv <kernel_shape = [1, 1]> (a, v)", "a"),
    "x * relu(sigmoid(x))": ("[n] d = Sigmoid (a)  [m] b = Relu (d)  [r] c = Mul (a, b)", "a"),
    "shifted and divided": ("[n] b = Sub (a, line)  [r] c = Div (b, line)", "c"),
    "taken from a constant": ("[n] c = Sub (line, a)", "a"),
    "dropout": ("[n] b = Relu (a)  [r] c = Dropout (b)", "c"),
    "softmax over channels": ("[n] b = Relu (a)  [r] c = Softmax <axis = 1> (b)", "a"),
}  # fmt: skip


def tapped(nets: Any, chain: str) -> onnx.ModelProto:
    last = "c" if " c = " in chain else "a"
    side = ", float[N, 4, 6, 7] side" if "side" in chain else ""
    text = f"""net (float[N, 3, 6, 7] x) => (float[N, 4, H, W] y{side}) {{
        [layer] a = Conv <kernel_shape = [1, 1]> (x, w, b0)
        {chain}
        [last] y = Conv <kernel_shape = [1, 1]> ({last}, v) }}"""
    positive = np.float32([0.5, 1.5, 0.25, 2.0, 1.0])
    return nets.build(
        text,
        w=(5, 3, 1, 1),
        z=(5, 3, 1, 1),
        v=(4, 5, 1, 1),
        b0=np.float32([0.3, -0.4, 0.1, 1.0, -1.0]),
        s=positive,
        t=np.float32([0.1, -0.2, 0.3, 0.0, -0.5]),
        m=np.float32([0.2, 0.0, -0.1, 0.4, 0.1]),
        q=positive[::-1].copy(),
        line=np.float32([0.4, -0.6, 0.2, 1.2, -0.1]).reshape(1, 5, 1, 1),
        low=np.float32(0.0),
        high=np.float32(0.7),
    )


@pytest.mark.parametrize(("chain", "tensor"), TAPS.values(), ids=TAPS.keys())
def test_where_activations_are_read(nets: Any, chain: str, tensor: str) -> None:
    facts = nets.facts(tapped(nets, chain))
    assert activation_of(facts.view, facts.coupling(), "layer") == tensor
