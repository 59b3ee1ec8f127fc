"""Fixtures that several stages share: the shared data folder, and a kit for small models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of shared models and data; the test is skipped where there is none."""
    folder = Path(os.environ.get("ONNXCOMPRESS_DATA", "../shared"))
    folder = folder if folder.is_absolute() else ROOT / folder
    if not (folder / "models").is_dir():
        pytest.skip(f"no shared data at {folder}: set ONNXCOMPRESS_DATA")
    return folder


class Kit:
    """Builds small models, and runs them in ONNX Runtime without any of its graph rewrites."""

    @staticmethod
    def value(
        name: str, shape: Sequence[int | str | None], kind: int = TensorProto.FLOAT
    ) -> onnx.ValueInfoProto:
        """An input or output."""
        return helper.make_tensor_value_info(name, kind, shape)

    @staticmethod
    def model(
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        constants: Mapping[str, np.ndarray] | None = None,
        *,
        opset: int = 17,
        domains: Mapping[str, int] | None = None,
        ir_version: int = 8,
    ) -> onnx.ModelProto:
        """A model whose constants are initializers."""
        tensors = [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
        graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
        opsets = [helper.make_opsetid("", opset)]
        opsets += [helper.make_opsetid(k, v) for k, v in (domains or {}).items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)

    @staticmethod
    def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Every output, computed by ONNX Runtime node by node as the graph says."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, dict(feeds))

    def assert_same(
        self,
        original: onnx.ModelProto,
        result: onnx.ModelProto,
        feeds: Mapping[str, np.ndarray],
    ) -> None:
        """Both compute the same, bit for bit: meant for feeds and weights that are whole numbers.

        Sums of products of small whole numbers are exact in float32 in any order, so that a
        correct rewrite leaves no rounding error at all.
        """
        expected, found = self.run(original, feeds), self.run(result, feeds)
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(other, one)

    @staticmethod
    def whole(
        shape: Sequence[int], *, seed: int, limit: int = 3, dtype: Any = np.float32
    ) -> np.ndarray:
        """Whole numbers from -limit to limit."""
        generator = np.random.default_rng(seed)
        return generator.integers(-limit, limit + 1, tuple(shape)).astype(dtype)

    @staticmethod
    def norm_constants(
        prefix: str, channels: int, *, seed: int, dtype: Any = np.float32
    ) -> dict[str, np.ndarray]:
        """BatchNormalization's constants, exact with epsilon 0.25: its factors are k/2 and k.

        No two neighbouring channels share factor and shift, so that mixed-up channels show.
        """
        generator = np.random.default_rng(seed)
        channel = np.arange(channels)
        return {
            f"{prefix}_scale": (1 + channel % 3).astype(dtype),
            f"{prefix}_bias": (generator.integers(1, 3, channels) + channel % 5).astype(dtype),
            f"{prefix}_mean": (generator.integers(-2, 3, channels)).astype(dtype),
            f"{prefix}_var": np.where(channel % 2, 0.75, 3.75).astype(dtype),
        }

    @staticmethod
    def norm(prefix: str, source: str, target: str, **attributes: Any) -> onnx.NodeProto:
        """A BatchNormalization node that reads `norm_constants(prefix)`."""
        names = [f"{prefix}_{part}" for part in ("scale", "bias", "mean", "var")]
        return helper.make_node(
            "BatchNormalization",
            [source, *names],
            [target],
            name=prefix,
            **{"epsilon": 0.25, **attributes},
        )

    @staticmethod
    def operators(model: onnx.ModelProto) -> list[str]:
        """The operators of the main graph in order."""
        return [node.op_type for node in model.graph.node]


@pytest.fixture(scope="session")
def kit() -> Kit:
    """A kit for small models."""
    return Kit()
