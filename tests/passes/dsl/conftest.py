"""Facts with real moments for networks whose channels or kernels share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.array_samples import ArraySamples
from onnxcompress.calibrate.collectors import with_collectors
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.runtime import Execution


@pytest.fixture
def seen() -> Callable[[onnx.ModelProto], Facts]:
    """Facts about a model, with 48 samples of correlated noise to look at."""

    def facts_of(model: onnx.ModelProto) -> Facts:
        specs = input_specs(model)
        shape = tuple(specs[0].fixed(axis) or 1 for axis in range(1, len(specs[0].shape)))
        noise = np.random.default_rng(3).standard_normal((48, *shape))
        x = (noise + noise.mean(axis=-1, keepdims=True)).astype(np.float32)
        name = specs[0].name
        data = Dataset.over(ArraySamples(arrays={name: x}, inputs=specs), specs, source="here")
        return with_collectors(
            analyse(model, {name: (1, *shape)}), data, Execution(threads=1), seed=0
        )

    return facts_of
