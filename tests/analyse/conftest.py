"""Fixtures to draw small graphs with: a sketch pad, extents, distinct or equal, and a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@dataclass(frozen=True)
class Extents:
    """Sizes of a small graph: batch, channels of input, middle and output, height and width."""

    batch: int
    source: int
    inner: int
    outer: int
    height: int
    width: int

    @property
    def image(self) -> list[int]:
        """The shape of the input."""
        return [self.batch, self.source, self.height, self.width]

    def shape(self, letters: str) -> list[int]:
        """Extents by their letters: n for the batch, c for `inner`, h, w, and 1; "1c11"."""
        real = {"n": self.batch, "c": self.inner, "h": self.height, "w": self.width, "1": 1}
        return [real[letter] for letter in letters]


class Sketch:
    """A small graph under construction; every method returns names of tensors.

    Weights are small whole numbers, so that sums of products are exact in float32 in any order.
    """

    def __init__(self, opset: int = 17, **domains: int) -> None:
        self._opsets = {"": opset, **{k.replace("_", "."): v for k, v in domains.items()}}
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._seed = 0

    @property
    def opset(self) -> int:
        """The version of the default domain."""
        return self._opsets[""]

    def input(
        self, shape: Sequence[int | str], name: str = "x", kind: int = TensorProto.FLOAT
    ) -> str:
        """A graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, values: Any, name: str = "", dtype: Any = np.float32) -> str:
        """An initializer of these values."""
        name = name or f"constant{len(self._constants)}"
        self._constants[name] = np.asarray(values, dtype=dtype)
        return name

    def whole(
        self,
        shape: Sequence[int],
        name: str = "",
        *,
        low: int = -2,
        high: int = 2,
        dtype: Any = np.float32,
    ) -> str:
        """An initializer of whole numbers from low to high, other ones at every call."""
        self._seed += 1
        generator = np.random.default_rng(self._seed)
        values = generator.integers(low, high + 1, tuple(shape))
        # A constant with nothing but one number would hide mixed-up channels.
        if values.size > 1 and (values == values.flat[0]).all():
            values.flat[0] = low if values.flat[0] != low else high
        return self.constant(values, name, dtype)

    def scales(self, shape: Sequence[int]) -> str:
        """An initializer of 1/2, 1, 2, 1/2, ... along a line, or of 1/2 alone for shape []."""
        return self.constant(2.0 ** (np.arange(shape[0]) % 3 - 1.0) if shape else 0.5)

    def dequantised(
        self, shape: Sequence[int], axis: int | None, *, zero_point: bool = True
    ) -> str:
        """Whole numbers behind a DequantizeLinear.

        Args:
            shape: of the numbers.
            axis: the axis along which scale and zero point vary; None for one of each.
            zero_point: whether there is one.
        """
        count = [] if axis is None else [shape[axis]]
        operands = [self.whole(shape, low=-3, high=3, dtype=np.int8), self.scales(count)]
        if zero_point and count:
            operands.append(self.whole(count, low=-2, high=2, dtype=np.int8))
        elif zero_point:
            operands.append(self.constant(1, dtype=np.int8))
        more = {} if axis is None or self.opset < 13 else {"axis": axis}
        return str(self.add("DequantizeLinear", *operands, **more))

    def add(
        self, operator: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        """A node; the name of its output, or a list of names if it has several."""
        name = name or f"{operator.lower()}{len(self._nodes)}"
        made = [f"{name}_out{i or ''}" for i in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, made, name=name, **attributes))
        return made[0] if outputs == 1 else made

    def append(self, node: onnx.NodeProto) -> str:
        """A node as it is; the name of its first output."""
        self._nodes.append(node)
        return str(node.output[0])

    def conv(
        self,
        source: str,
        inputs: int,
        outputs: int,
        kernel: int | Sequence[int] = 1,
        *,
        name: str = "",
        bias: bool = True,
        group: int = 1,
        rank: int = 2,
        **attributes: Any,
    ) -> str:
        """A Conv node with whole weights [outputs, inputs / group, *kernel]."""
        window = [kernel] * rank if isinstance(kernel, int) else list(kernel)
        weights = [self.whole([outputs, inputs // group, *window])]
        if bias:
            weights.append(self.whole([outputs], low=-3, high=3))
        if group > 1:
            attributes["group"] = group
        return str(self.add("Conv", source, *weights, name=name, **attributes))

    def model(self, *outputs: str, **shapes: Sequence[int | str]) -> onnx.ModelProto:
        """The model with these outputs; their shapes are inferred where they are not given."""
        nowhere = [onnx.ValueInfoProto(name=name) for name in outputs]
        tensors = [numpy_helper.from_array(v, k) for k, v in self._constants.items()]
        graph = helper.make_graph(self._nodes, "graph", self._inputs, nowhere, tensors)
        opsets = [helper.make_opsetid(k, v) for k, v in self._opsets.items()]
        # ONNX Runtime wants the IR version of the time for the oldest opsets, and takes 8 for all.
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        for name, shape in shapes.items():
            value = next(v for v in model.graph.output if v.name == name)
            value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        # Only with type checks does the inference look inside GroupNormalization, a function.
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=not shapes)
        if not all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
            # ONNX Runtime infers more.
            found = {one.name: one.shape for one in _session(model).get_outputs()}
            for value in model.graph.output:
                kind = value.type.tensor_type.elem_type
                value.CopyFrom(helper.make_tensor_value_info(value.name, kind, found[value.name]))
        return model

    def sandwich(
        self,
        extents: Extents,
        middle: Callable[[str], str],
        *,
        kernel: int = 1,
        bias: bool = True,
        **attributes: Any,
    ) -> onnx.ModelProto:
        """Conv 'first', what is under test, Conv 'second'.

        Args:
            extents: 'first' makes `inner` channels, and 'second' has to find as many.
            middle: from the tensor that 'first' makes to the tensor that 'second' reads.
            kernel: kernel size of 'second'.
            bias: whether 'second' has a bias.
            attributes: attributes of 'second'.
        """
        made = self.conv(self.input(extents.image), extents.source, extents.inner, name="first")
        last = self.conv(
            middle(made),
            extents.inner,
            extents.outer,
            kernel,
            name="second",
            bias=bias,
            **attributes,
        )
        return self.model(last)


@pytest.fixture(scope="session")
def unoptimised() -> Callable[[onnx.ModelProto], ort.InferenceSession]:
    """Opens a model as it stands: one thread, no graph rewrites."""
    return _session


@pytest.fixture(scope="session")
def sketch() -> type[Sketch]:
    """`sketch(opset)` starts a small graph."""
    return Sketch


@pytest.fixture(params=["distinct", "equal"])
def extents(request: Any) -> Extents:
    """Extents that are all distinct, and extents that are all equal."""
    return Extents(2, 3, 6, 8, 5, 7) if request.param == "distinct" else Extents(4, 4, 4, 4, 4, 4)
