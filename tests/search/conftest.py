"""A small network with two superblocks, data for it, and everything a search shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.config import Config
from onnxcompress.plan.registry import make_pass
from onnxcompress.runtime import Execution

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    [a] a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba) [ra] a1 = Relu (a)
    [b] b = Conv <pads = [1, 1, 1, 1]> (a1, wb, bb) [rb] b1 = Relu (b)
    [p] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b1)
    [c] c = Conv <pads = [1, 1, 1, 1]> (p, wc, bc) [rc] c1 = Relu (c)
    [g] g = GlobalAveragePool (c1) [f] f = Flatten (g) [y] y = Gemm <transB = 1> (f, wy, by) }"""
SHAPES = {"wa": (8, 3, 3, 3), "wb": (8, 8, 3, 3), "wc": (12, 8, 3, 3), "wy": (4, 12)}


@pytest.fixture(scope="session")
def network() -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    generator = np.random.default_rng(3)
    for name, shape in SHAPES.items():
        scale = np.sqrt(2.0 / np.prod(shape[1:]))
        weight = (scale * generator.standard_normal(shape)).astype(np.float32)
        bias = (0.1 * generator.standard_normal(shape[0])).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(bias, f"b{name[1:]}"))
    return model


@pytest.fixture(scope="session")
def config_for() -> Callable[..., Config]:
    """`config_for(ratios="0.5")`: a job on made-up images, two parts of which never meet."""
    generator = np.random.default_rng(5)
    images = generator.standard_normal((160, 3, 8, 8)).astype(np.float32)

    def make(**options: Any) -> Config:
        given = {"round_to": 1, "ratios": "0.75+0.5", **options}
        return Config(
            passes=(make_pass("exact"), make_pass("scbp", **given)),
            data={"x": images[:120]},
            eval_data={"x": images[120:]},
            execution=Execution(threads=1),
            gate=False,
        )

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "family"
