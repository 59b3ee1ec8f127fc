"""The slow definition of sensitivities: differences of losses, in float64, network run by network.

Losses are read off what the whole network answers, gates are nodes that the test puts behind a
tensor itself, and all of it is evaluated by onnx's reference evaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.sensitivity import CollectedSensitivity
from onnxcompress.calibrate.targets import Targets
from onnxcompress.runtime import Execution

Values = dict[str, np.ndarray]
Measure = Callable[[Values], np.ndarray]
REAL = (TensorProto.FLOAT, TensorProto.FLOAT16)
# How a classifier ends, behind a pooled tensor p [N, C, 1, 1]; what it answers with stands second.
ENDINGS = {
    "logits": ("[fl] q = Flatten (p) [fc] y = Gemm <transB=1> (q, w4, b4)", "scores"),
    "softmax": (
        "[fl] q = Flatten (p) [fc] z = Gemm <transB=1> (q, w4, b4) [sm] y = Softmax (z)",
        "probabilities",
    ),
    "log": (
        "[fl] q = Flatten (p) [fc] z = Gemm <transB=1> (q, w4, b4) [sm] y = LogSoftmax (z)",
        "scores",
    ),
    "made": (
        "[fl] q = Flatten (p) [fc] z = Gemm <transB=1> (q, w4, b4) [ex] u = Exp (z)"
        "[su] s = ReduceSum <keepdims=1> (u, ones) [di] y = Div (u, s)",
        "probabilities",
    ),
    "pixels": ("[fc] y = Conv (p, w5, b4)", "scores"),
    "pixels softmax": ("[fc] z = Conv (p, w5, b4) [sm] y = Softmax <axis=1> (z)", "probabilities"),
}


class Watched:
    """Samples in arrays that remember which rows were read, and how many at a time."""

    def __init__(self, arrays: Values, labels: np.ndarray | None) -> None:
        self.arrays, self.labels = arrays, labels
        self.seen: list[int] = []
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, rows: np.ndarray) -> Values:
        self.seen.extend(rows.tolist())
        self.reads.append(len(rows))
        return {name: values[rows] for name, values in self.arrays.items()}

    def content(self) -> Iterator[bytes]:
        yield from (values.tobytes() for values in self.arrays.values())


@dataclass(frozen=True)
class Measured:
    """Sensitivities of a network on some samples."""

    sensitivity: CollectedSensitivity
    samples: Watched

    @property
    def order(self) -> np.ndarray:
        """Which samples were taken, in the order of the rows of results."""
        return np.array(list(dict.fromkeys(self.samples.seen)))

    @property
    def feeds(self) -> Values:
        """The samples in that order."""
        return {name: values[self.order] for name, values in self.samples.arrays.items()}

    @property
    def targets(self) -> Targets:
        """What the answers are held to."""
        return self.sensitivity._targets


class Truth:
    """Networks, and what is true of them by definition."""

    endings = tuple(ENDINGS)

    @staticmethod
    def measured(
        model: onnx.ModelProto,
        arrays: Values,
        labels: np.ndarray | None = None,
        *,
        seed: int = 0,
        threads: int = 1,
        **options: Any,
    ) -> Measured:
        """The engine's sensitivities; `options` are those of CollectedSensitivity."""
        specs = input_specs(model)
        samples = Watched(arrays, labels)
        data = Dataset.over(samples, specs, source="here")
        samples.seen.clear()
        samples.reads.clear()
        sizes = {s.name: (s.fixed(0) or 1, *arrays[s.name].shape[1:]) for s in specs}
        execution = Execution(threads=threads)
        shapes = shapes_for(model, sizes)
        found = CollectedSensitivity(model, shapes, data, execution, seed, **options)
        return Measured(found, samples)

    @staticmethod
    def classifier(
        nets: Any, ending: str = "logits", *, batch: Any = "N", equal: bool = False
    ) -> onnx.ModelProto:
        """x -> a, b -> c, d -> e = d + b -> f, g -> h = [f, g] -> i -> p -> y; taps a to i.

        Channels: a to e have 4, f has 2, g has 7, h and i have 9; there are 8 classes. With equal
        extents all of them are 3, but for h and i, which have 6.
        """
        s, t, h, w, f, g, k = (3,) * 7 if equal else (3, 4, 5, 6, 2, 7, 8)
        axes = {"ones": np.array([1])} if ending == "made" else {}
        # Large enough for samples to differ in class; the pooled sigmoids vary about one half.
        wide = 12.0 * np.random.default_rng(2).standard_normal((k, f + g)).astype(np.float32)
        head = {"w5": wide[:, :, np.newaxis, np.newaxis]} if "pixels" in ending else {"w4": wide}
        last = ", 1, 1" if "pixels" in ending else ""
        text = f"""net (float[{batch}, {s}, {h}, {w}] x) => (float[{batch}, {k}{last}] y) {{
            [first] a = Conv <pads=[1, 1, 1, 1]> (x, w0, b0)
            [relu] b = Relu (a)
            [second] c = Conv <pads=[1, 1, 1, 1]> (b, w1)
            [tanh] d = Tanh (c)
            [sum] e = Add (d, b)
            [left] f = Conv (e, w2)
            [right] g = Conv <pads=[1, 1, 1, 1]> (e, w3, b3)
            [join] h = Concat <axis=1> (f, g)
            [gate] i = Sigmoid (h)
            [pool] p = GlobalAveragePool (i)
            {ENDINGS[ending][0]} }}"""
        convs = {"w0": (t, s, 3, 3), "b0": (t,), "w1": (t, t, 3, 3), "w2": (f, t, 1, 1)}
        convs |= {"w3": (g, t, 3, 3), "b3": (g,)}
        model: onnx.ModelProto = nets.build(text, **convs, **head, **axes, b4=-wide.sum(axis=1) / 2)
        return model

    @staticmethod
    def several(nets: Any, *, batch: Any = "N", equal: bool = False) -> onnx.ModelProto:
        """x -> a, b -> u [N, C, H, W]; b -> t (channels last), v [N, H, W, D]; b -> r [N, C]."""
        s, t, h, w, d = (3,) * 5 if equal else (3, 4, 5, 6, 2)
        text = f"""net (float[{batch}, {s}, {h}, {w}] x) =>
            (float[{batch}, {t}, {h}, {w}] u, float[{batch}, {h}, {w}, {d}] v,
             float[{batch}, {t}] r, float[{batch}] o) {{
            [first] a = Conv <pads=[1, 1, 1, 1]> (x, w0, b0)
            [tanh] b = Tanh (a)
            [second] u = Conv <pads=[1, 1, 1, 1]> (b, w1)
            [turn] t = Transpose <perm=[0, 2, 3, 1]> (b)
            [dense] v = MatMul (t, w2)
            [mean] r = ReduceMean <axes=[2, 3], keepdims=0> (b)
            [all] o = ReduceMax <axes=[1, 2, 3], keepdims=0> (v) }}"""
        shapes = {"w0": (t, s, 3, 3), "b0": (t,), "w1": (t, t, 3, 3), "w2": (t, d)}
        model: onnx.ModelProto = nets.build(text, **shapes)
        return model

    @staticmethod
    def changed(model: onnx.ModelProto, seed: int = 9, size: float = 0.3) -> onnx.ModelProto:
        """A variant with the same tensors and other weights."""
        copy, generator = onnx.ModelProto(), np.random.default_rng(seed)
        copy.CopyFrom(model)
        for tensor in copy.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32:
                noise = size * generator.standard_normal(values.shape)
                tensor.CopyFrom(
                    numpy_helper.from_array((values + noise).astype(np.float32), tensor.name)
                )
        return copy

    @staticmethod
    def stepped(
        model: onnx.ModelProto, tensors: Collection[str], kind: str = "Mul", real: int = 1
    ) -> onnx.ModelProto:
        """The model with a further input `by_T` that everybody's T is multiplied by (or added)."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.node[:], copy.graph.value_info[:]
        for node in model.graph.node:
            copy.graph.node.append(node)
            made = copy.graph.node[-1]
            for index, name in enumerate(node.output):
                if name in tensors:
                    made.output[index] = f"{name}_before"
                    copy.graph.node.append(
                        helper.make_node(kind, [f"{name}_before", f"by_{name}"], [name])
                    )
        copy.graph.input.extend(
            helper.make_tensor_value_info(f"by_{name}", real, None) for name in tensors
        )
        return copy

    def forward(
        self,
        model: onnx.ModelProto,
        feeds: Values,
        tensors: Collection[str] = (),
        kind: str = "Mul",
        also: Collection[str] = (),
    ) -> Callable[[Mapping[str, Any]], Values]:
        """What the network answers in float64, by what its tensors are multiplied by."""
        copy = self.stepped(model, tensors, kind, TensorProto.DOUBLE)
        for tensor in copy.graph.initializer:
            if tensor.data_type in REAL:
                wide = numpy_helper.to_array(tensor).astype(np.float64)
                tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in also)
        for value in (*copy.graph.input, *copy.graph.output):
            if value.type.tensor_type.elem_type in REAL:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        evaluator = ReferenceEvaluator(copy)
        names = [output.name for output in copy.graph.output]
        real = {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in feeds.items()}
        rest = {f"by_{name}": np.array(1.0 if kind == "Mul" else 0.0) for name in tensors}

        def call(steps: Mapping[str, Any]) -> Values:
            given = {f"by_{name}": values for name, values in steps.items()}
            found = evaluator.run(None, {**real, **rest, **given})
            return {name: np.asarray(v) for name, v in zip(names, found, strict=True)}

        return call

    @staticmethod
    def log_probabilities(ending: str, answer: np.ndarray) -> np.ndarray:
        """[samples, classes], from what the network answers."""
        rows = answer.astype(np.float64).reshape(len(answer), -1)
        if ENDINGS[ending][1] == "probabilities":
            return np.log(rows)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    def losses(self, ending: str, classes: np.ndarray) -> Measure:
        """The cross-entropy of every sample, from what the network answers."""
        each = np.arange(len(classes))
        return lambda outputs: -self.log_probabilities(ending, outputs["y"])[each, classes]

    def slopes(
        self, model: onnx.ModelProto, taps: Mapping[str, int], feeds: Values, measure: Measure
    ) -> Values:
        """By tap [samples, channels, ...]: differences of what is measured of every sample."""
        shapes = self.forward(model, feeds, also=tuple(taps))({})
        run, found = self.forward(model, feeds, tuple(taps)), {}
        for tap, axis in taps.items():
            rows = []
            for channel in range(shapes[tap].shape[axis]):
                line = [-1 if a == axis else 1 for a in range(shapes[tap].ndim)]
                one = 1e-6 * (np.arange(shapes[tap].shape[axis]) == channel).reshape(line)
                # Their error is of order (1e-6)^2 and 2^-53 / 1e-6, far below that of float32.
                rows.append(
                    (measure(run({tap: 1.0 + one})) - measure(run({tap: 1.0 - one}))) / 2e-6
                )
            found[tap] = np.stack(rows, axis=1)
        return found

    @staticmethod
    def assert_close(found: np.ndarray, expected: np.ndarray, what: str = "") -> None:
        """Element by element: sums of a few hundred float32 numbers against float64."""
        assert found.dtype == np.float64
        assert found.shape == expected.shape
        scale = float(np.abs(expected).max())
        assert scale > 0, what
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale, err_msg=what)


@pytest.fixture(scope="session")
def truth() -> Truth:
    """`truth.measured(model, samples)` is the engine; the rest is what it must agree with."""
    return Truth()
