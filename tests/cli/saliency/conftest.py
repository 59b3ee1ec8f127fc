"""Networks and data to score, and how the answers are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

CRITERIA = (
    "weight", "activation-mean", "activation-std", "apoz", "mutual-information", "obd", "taylor",
    "taylor-gate", "oracle-abs", "oracle-loss", "random",
)  # fmt: skip
GRADIENTS = ("obd", "taylor", "taylor-gate")
FEW = ("--samples", "12", "--oracle-samples", "6")


@dataclass(frozen=True)
class Said:
    """What the command says, read by a person or by a program."""

    criteria: tuple[str, ...] = CRITERIA
    gradients: tuple[str, ...] = GRADIENTS
    few: tuple[str, ...] = FEW

    @staticmethod
    def strict(text: str) -> Any:
        """JSON without NaN and Infinity, which are no JSON."""

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} in JSON")

        return json.loads(text, parse_constant=refuse)

    @staticmethod
    def rows(text: str) -> dict[str, list[str]]:
        """The table: figures by criterion."""
        lines = [line.split() for line in text.splitlines()]
        return {words[0]: words[1:] for words in lines if words and words[0] in CRITERIA}


@pytest.fixture(scope="session")
def said() -> Said:
    """`said.rows(outcome.out)`, `said.strict(outcome.out)`."""
    return Said()


@pytest.fixture
def labelled(samples: Path) -> Path:
    """The same inputs with labels."""
    path = samples.with_name("labelled.npz")
    with np.load(samples) as arrays:
        labels = np.random.default_rng(1).integers(0, 5, len(arrays["x"]))
        np.savez(path, x=arrays["x"], y=labels)
    return path


@pytest.fixture
def opaque(damaged: Callable[..., Path]) -> Path:
    """The tiny model with an operator without adjoint behind all its layers."""

    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name == "mean")
        node.output[0] = "kept"
        at = list(model.graph.node).index(node) + 1
        odd = onnx.helper.make_node("Hardmax", ["kept"], ["f"], name="odd", axis=1)
        model.graph.node.insert(at, odd)

    return damaged(change, "opaque.onnx")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A network that answers with a picture."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 3, 6, 7] x) => (float[N, 2, 6, 7] y) {
            [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
            [r1] b = Relu (a)
            [last] y = Conv <kernel_shape = [1, 1]> (b, w2) }"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(9)
    for name, shape in {"w1": (8, 3, 1, 1), "w2": (2, 8, 1, 1)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    path = tmp_path / "picture.onnx"
    onnx.save(model, path)
    return path
