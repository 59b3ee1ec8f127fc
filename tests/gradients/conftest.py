"""The oracle of all gradients: central differences of the forward network itself.

Operators that are piecewise linear are stepped through in ONNX Runtime, at whole numbers and by
steps that are powers of two: differences are then exact in float32, and so is every gradient that
is made of whole numbers. All others are stepped through in onnx's reference evaluator in float64,
which must agree with ONNX Runtime's own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcompress.gradients.backward import backward
from onnxcompress.gradients.emitter import Emitter
from onnxcompress.gradients.known import know
from onnxcompress.gradients.opset import raised
from onnxcompress.runtime import Execution, open_session

Feeds = dict[str, np.ndarray]
Run = Callable[[Feeds], list[np.ndarray]]
# Where the backward graph rounds once per operator and sums a few dozen float32 numbers.
ROUNDED = 1e-5


@dataclass(frozen=True)
class Case:
    """A model, what it is fed, and the gradients of its outputs."""

    model: onnx.ModelProto
    feeds: Feeds
    cotangents: Feeds

    @property
    def wanted(self) -> list[str]:
        """Inputs of real numbers."""
        return [name for name, values in self.feeds.items() if values.dtype.kind == "f"]


class Oracle:
    """Compares emitted gradients with differences, element by element."""

    @staticmethod
    def operator(
        kind: str,
        operands: Sequence[Any],
        attributes: Mapping[str, Any] | None = None,
        *,
        opset: int = 21,
        outputs: Sequence[str] = ("y",),
        draw: str = "whole",
        dtype: Any = np.float32,
    ) -> Case:
        """One operator.

        Args:
            kind: the operator.
            operands: for every input a tuple (the shape of data), a list (the shape of a constant
                of small whole numbers), an array (a constant) or None (left out).
            attributes: of the node; `opset` among them takes the place of the argument.
            opset: version of the default domain.
            outputs: names of the outputs; the loss depends on those that start with "y".
            draw: `whole` numbers from -3 to 3, `distinct` odd halves, `smooth` random numbers, or
                `positive` ones.
            dtype: of data and constants.
        """
        given = dict(attributes or {})
        opset = given.pop("opset", opset)
        names: list[str] = []
        feeds: Feeds = {}
        constants: list[onnx.TensorProto] = []
        for index, operand in enumerate(operands):
            generator = np.random.default_rng(100 + index)
            name = "" if operand is None else f"x{index}"
            names.append(name)
            if isinstance(operand, tuple):
                feeds[name] = drawn(draw, operand, generator).astype(dtype)
            elif operand is not None:
                if isinstance(operand, list):
                    kept = draw if draw in {"smooth", "positive"} else "whole"
                    operand = drawn(kept, operand, generator)
                values = np.asarray(operand)
                # The scales of Resize are float32 whatever is resized.
                if values.dtype.kind == "f" and kind != "Resize":
                    values = values.astype(dtype)
                constants.append(numpy_helper.from_array(values, name))
        node = helper.make_node(kind, names, outputs, name="node", **given)
        read = [name for name in outputs if name.startswith("y")]
        model = network([node], feeds, read, constants, opset=opset)
        return Oracle.seeded(model, feeds)

    @staticmethod
    def graph(
        nodes: Sequence[onnx.NodeProto],
        feeds: Feeds,
        outputs: Sequence[str],
        constants: Mapping[str, Any] | None = None,
        *,
        opset: int = 21,
    ) -> Case:
        """Several operators; gradients are wanted in every input of real numbers."""
        tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
        return Oracle.seeded(network(nodes, feeds, outputs, tensors, opset=opset), feeds)

    @staticmethod
    def draw(kind: str, shape: Sequence[int], *, seed: int = 0) -> np.ndarray:
        """Numbers in float32: `whole`, `distinct`, `smooth` or `positive`."""
        return drawn(kind, shape, np.random.default_rng(seed)).astype(np.float32)

    @staticmethod
    def run(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
        """What ONNX Runtime computes."""
        return ort_run(model)(feeds)

    @staticmethod
    def reference(model: onnx.ModelProto) -> Run:
        """The reference evaluator in float64, to be run more than once."""
        return reference_run(model)

    @staticmethod
    def seeded(model: onnx.ModelProto, feeds: Feeds) -> Case:
        """A case with whole-number cotangents, no two neighbours of which are alike."""
        generator = np.random.default_rng(7)
        found = zip(model.graph.output, ort_run(model)(feeds), strict=True)
        draws = {o.name: drawn("whole", y.shape, generator).astype(y.dtype) for o, y in found}
        return Case(model, feeds, draws)

    @staticmethod
    def gradients(case: Case, execution: Execution | None = None) -> Feeds:
        """What the emitted backward graph finds; in plain ONNX Runtime, or where it is told to."""
        copy = raised(case.model)
        known = know(copy, {name: values.shape for name, values in case.feeds.items()})
        emit = Emitter(copy.graph)
        cotangents: dict[str, str] = {}
        feeds = dict(case.feeds)
        for name, values in case.cotangents.items():
            cotangents[name] = emit.input("v", known.types[name], values.shape)
            feeds[cotangents[name]] = values
        found = backward(known, emit, cotangents, case.wanted)
        names = list(dict.fromkeys(found.values()))
        del copy.graph.output[:], copy.graph.value_info[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        if not names:
            return {}
        if execution is None:
            made = ort_run(copy)(feeds)
        else:
            with open_session(copy, execution) as session:
                made = session.run(feeds)
        values = dict(zip(names, made, strict=True))
        return {tensor: values[name] for tensor, name in found.items()}

    def exact(self, case: Case, *, step: float = 1.0, tolerance: float = 0.0) -> Feeds:
        """Compare with differences of ONNX Runtime's forward pass, exact without a tolerance."""
        return self._compare(case, differences(ort_run(case.model), case, step), tolerance)

    def smooth(
        self, case: Case, *, tolerance: float = ROUNDED, forward: Run | None = None
    ) -> Feeds:
        """Compare with differences of the reference evaluator's forward pass in float64.

        Args:
            case: in float32.
            tolerance: relative to the largest element of a gradient.
            forward: a definition in float64 where the evaluator has none.
        """
        run = forward or reference_run(case.model)
        feeds = {
            k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in case.feeds.items()
        }
        for one, other in zip(run(feeds), ort_run(case.model)(case.feeds), strict=True):
            assert one.shape == other.shape
            scale = np.abs(one).max()
            np.testing.assert_allclose(other, one, rtol=0, atol=ROUNDED * scale)
        # The error of central differences is of order step^2, that of float64 2^-53 / step.
        expected = differences(run, Case(case.model, feeds, case.cotangents), 1e-6)
        return self._compare(case, expected, tolerance)

    def _compare(self, case: Case, expected: Feeds, tolerance: float) -> Feeds:
        found = self.gradients(case)
        assert set(found) == set(expected)
        assert any(values.any() for values in expected.values()), "zeros alone show nothing"
        for name, values in expected.items():
            assert found[name].shape == values.shape
            assert found[name].dtype == case.feeds[name].dtype
            scale = float(np.abs(values).max())
            np.testing.assert_allclose(
                found[name].astype(np.float64), values, rtol=0, atol=tolerance * scale, err_msg=name
            )
        return found


def drawn(kind: str, shape: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Numbers to feed, in float64."""
    count = int(np.prod(shape))
    if kind == "whole":
        values = generator.integers(-3, 4, count).astype(np.float64)
        # A constant of nothing but one number, or of zeros, would hide mixed-up elements.
        values[: min(count, 2)] = [2.0, -1.0][: min(count, 2)]
    elif kind == "distinct":
        values = generator.permutation(count) - count // 2 + 0.5
    elif kind == "smooth":
        values = generator.uniform(-2.0, 2.0, count)
    else:
        values = generator.uniform(0.5, 2.0, count)
    return values.reshape(shape)


def network(
    nodes: Sequence[onnx.NodeProto],
    feeds: Feeds,
    outputs: Sequence[str],
    constants: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 21,
) -> onnx.ModelProto:
    """A model with the inputs that are fed and outputs of undeclared shape."""
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in feeds.items()
    ]
    graph = helper.make_graph(
        nodes, "graph", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], constants
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    return model


def ort_run(model: onnx.ModelProto) -> Run:
    """ONNX Runtime, node by node as the graph says."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    known = {value.name for value in session.get_inputs()}
    return lambda feeds: session.run(None, {k: v for k, v in feeds.items() if k in known})


def reference_run(model: onnx.ModelProto) -> Run:
    """onnx's reference evaluator in float64."""
    evaluator = ReferenceEvaluator(doubled(model))
    return lambda feeds: [np.asarray(y) for y in evaluator.run(None, feeds)]


def differences(run: Run, case: Case, step: float) -> Feeds:
    """Central differences of the sum of outputs times cotangents, in every element."""
    names = [output.name for output in case.model.graph.output]
    cotangents = [case.cotangents[name].astype(np.float64) for name in names]
    result: Feeds = {}
    for name in case.wanted:
        slopes = np.zeros(case.feeds[name].shape)
        for index in np.ndindex(slopes.shape):
            sides = []
            for way in (step, -step):
                moved = case.feeds[name].copy()
                moved[index] += way
                sides.append(run({**case.feeds, name: moved}))
            slopes[index] = sum(
                float(((up.astype(np.float64) - down.astype(np.float64)) * v).sum())
                for up, down, v in zip(*sides, cotangents, strict=True)
            ) / (2 * step)
        result[name] = slopes
    return result


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float64."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            wide = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for node in copy.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del copy.graph.value_info[:]
    return copy


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """`oracle.exact(oracle.operator(...))` and `oracle.smooth(...)`."""
    return Oracle()
