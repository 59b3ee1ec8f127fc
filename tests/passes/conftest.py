"""Small networks with Gaussian weights, what passes may know about them, and slow definitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.activations import CollectedActivations
from onnxcompress.calibrate.array_samples import ArraySamples
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.graph.infer import with_value_info
from onnxcompress.runtime import Execution

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


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
        """Facts at batch one (or the fixed batch), with statistics of `samples` if given."""
        specs = input_specs(model)
        ones = {
            spec.name: tuple(spec.fixed(a) or 1 for a in range(len(spec.shape))) for spec in specs
        }
        facts = analyse(model, sizes or ones, excluded=frozenset(excluded))
        if samples is None:
            return facts
        data = Dataset.over(ArraySamples(arrays=samples, inputs=specs), specs, source="here")
        execution = Execution(threads=1)
        return facts.with_activations(
            CollectedActivations(model, facts.shapes(), data, execution, 0)
        )


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
