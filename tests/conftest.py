"""Fixtures that several stages share: the shared data folder, and small models to try things on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.collectors import with_collectors
from onnxcompress.graph.infer import with_value_info
from onnxcompress.latency import interleave
from onnxcompress.progress import Silent
from onnxcompress.runtime import Execution

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of shared models and data; the test is skipped where there is none."""
    folder = Path(os.environ.get("ONNXCOMPRESS_DATA", "../shared"))
    folder = folder if folder.is_absolute() else ROOT / folder
    if not (folder / "models").is_dir():
        pytest.skip(f"no shared data at {folder}: set ONNXCOMPRESS_DATA")
    return folder


class Log(Silent):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, words: str) -> None:
        self.notes.append(words)


@pytest.fixture
def log() -> Log:
    """A progress that remembers its notes."""
    return Log()


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


class Nets:
    """Makes networks from ONNX's textual form; constants that are not given are Gaussian."""

    @staticmethod
    def build(text: str, seed: int = 1, **constants: Any) -> onnx.ModelProto:
        """The network, with shapes inferred and otherwise as written.

        Args:
            text: the graph; its weights are declared by `constants`.
            seed: of the Gaussian ones.
            constants: a tuple of extents (Gaussian values of standard deviation 1/2), or an array.
        """
        model = onnx.parser.parse_model(f"{HEAD}\n{text}")
        generator = np.random.default_rng(seed)
        for name, given in constants.items():
            values = given
            if isinstance(given, tuple):
                values = (generator.standard_normal(given) / 2).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
        return with_value_info(model)

    @staticmethod
    def samples(model: onnx.ModelProto, count: int, *, seed: int = 5) -> dict[str, np.ndarray]:
        """Gaussian inputs [count, ...]; dynamic dimensions besides the batch are not supported."""
        generator = np.random.default_rng(seed)
        return {
            spec.name: generator.standard_normal((count, *spec.shape[1:])).astype(np.float32)
            for spec in input_specs(model)
        }

    def facts(
        self,
        model: onnx.ModelProto,
        samples: Mapping[str, np.ndarray] | None = None,
        *,
        excluded: Sequence[str] = (),
        sizes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Facts:
        """Facts at batch one (or the fixed batch); with `samples` (labels: y), on those."""
        specs = input_specs(model)
        ones = {
            spec.name: tuple(spec.fixed(a) or 1 for a in range(len(spec.shape))) for spec in specs
        }
        facts = analyse(model, sizes or ones, excluded=frozenset(excluded))
        if samples is None:
            return facts
        data = dataset_from_arrays(dict(samples), specs)
        return with_collectors(facts, data, Execution(threads=1), 0)


@pytest.fixture(scope="session")
def nets() -> Nets:
    """`nets.build(text, w=(4, 3, 1, 1))`, `nets.facts(model, nets.samples(model, 5))`."""
    return Nets()


@pytest.fixture(scope="session")
def tap(kit: Any) -> Callable[..., np.ndarray]:
    """A tensor's value, made by ONNX Runtime as an extra output of a copy of the model."""

    def call(model: onnx.ModelProto, tensor: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if tensor not in {output.name for output in copy.graph.output}:
            copy.graph.output.append(onnx.ValueInfoProto(name=tensor))
        names = [output.name for output in copy.graph.output]
        return np.asarray(kit.run(copy, feeds)[names.index(tensor)], dtype=np.float64)

    return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole jobs time hardly anything, and measure no memory."""
    brief = interleave.Budget(rounds=2, seconds=0.0, min_runs=1, warmup_runs=1)
    monkeypatch.setattr(interleave, "Budget", lambda **_options: brief)
    monkeypatch.setattr("onnxcompress.groundwork._WHOLE", brief)
    monkeypatch.setattr("onnxcompress.remainder._BRIEF", brief)
    monkeypatch.setattr("onnxcompress.verify.verdict.peak_memory_bytes", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


TWO_BLOCKS = """net (float[N, 3, 8, 8] x) => (float[N, 6] y) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    [r0] b = Relu (a)
    [c1] c = Conv <pads = [1, 1, 1, 1]> (b, w1, b1)
    [r1] d = Relu (c)
    [c2] e = Conv <pads = [1, 1, 1, 1]> (d, w2, b2)
    [sum] f = Add (b, e)
    [r2] g = Relu (f)
    [c3] h = Conv <pads = [1, 1, 1, 1]> (g, w3, b3)
    [r3] i = Relu (h)
    [c4] j = Conv <pads = [1, 1, 1, 1]> (i, w4, b4)
    [sum2] k = Add (g, j)
    [r4] l = Relu (k)
    [pool] m = GlobalAveragePool (l)
    [flat] n = Flatten (m)
    [fc] y = Gemm <transB = 1> (n, w5, b5) }"""


@pytest.fixture
def two_blocks(nets: Any) -> onnx.ModelProto:
    """A residual network of two blocks; wide enough to narrow, to factor, and to do without."""
    wide = {f"w{at}": (16, 16, 3, 3) for at in range(1, 5)}
    biases = {f"b{at}": (16,) for at in range(5)}
    made: onnx.ModelProto = nets.build(
        TWO_BLOCKS, w0=(16, 3, 3, 3), **wide, w5=(6, 16), **biases, b5=(6,)
    )
    return made
