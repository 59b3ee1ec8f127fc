"""Facts of networks in ONNX's textual form, with weights made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.graph.infer import with_value_info

HEAD = '<ir_version: 8, opset_import: ["" : {opset}]>'


@pytest.fixture(scope="session")
def facts_of() -> Callable[..., Facts]:
    """`facts_of(text, size, w=(4, 3, 1, 1))`: x has that size; extents mean Gaussian values."""

    def make(text: str, size: tuple[int, ...], *, opset: int = 17, **constants: Any) -> Facts:
        model = onnx.parser.parse_model(HEAD.format(opset=opset) + text)
        generator = np.random.default_rng(1)
        for name, given in constants.items():
            values = given
            if isinstance(given, tuple):
                values = generator.standard_normal(given).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
        return analyse(with_value_info(model), {"x": size})

    return make
