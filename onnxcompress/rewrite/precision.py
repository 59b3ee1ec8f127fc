"""Half precision and 8-bit integers after compression, by ONNX Runtime's own converters.

What they leave undone is made up for: nodes are put in order again, 8-bit models are raised to the
opset that has scales per channel, and inputs and outputs keep their types.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import onnx

from onnxcompress.analyse.facts import Facts
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.moments import drawn_feeds
from onnxcompress.errors import GradientError, ModelError, UsageError
from onnxcompress.gradients.opset import raised
from onnxcompress.graph.view import subgraphs
from onnxcompress.kernels.emission import DOMAIN, for_halves
from onnxcompress.plan.targets import NEEDS_INPUTS
from onnxcompress.runtime import Array

_RANGES = 256
_BRIEFLY = 8
"""Inputs that ranges of activations are taken from: for the result, and where only time counts."""

_PER_CHANNEL = 13
"""The first opset whose DequantizeLinear takes a scale per channel."""


@dataclass(frozen=True)
class Conversion:
    """What becomes of the compressed model's numbers.

    Attributes:
        precision: fp16 (weights and activations; inputs and outputs stay as they are) or int8
            (static; weights symmetric and per channel, ranges of activations by their least and
            greatest value; operators between QuantizeLinear and DequantizeLinear).
        facts: about the canonical model; its shapes say how many inputs fit into memory.
        data: calibration inputs; int8 takes ranges from them.
        seed: which of them.

    Raises:
        UsageError: int8 without inputs.
    """

    precision: str
    facts: Facts
    data: Dataset | None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision == "int8" and self.data is None:
            raise UsageError(NEEDS_INPUTS)

    def __call__(self, model: onnx.ModelProto, *, briefly: bool = False) -> onnx.ModelProto:
        """A converted copy.

        Args:
            model: what was compressed.
            briefly: only the time and size of the result matter, so few inputs are enough.

        Raises:
            ModelError: ONNX Runtime's converter fails on it.
        """
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if self.data is None or self.precision == "fp16":
            converted = _guarded("fp16", lambda: _half(copy))
        else:
            copy = _with_scales_per_channel(copy)
            count = _BRIEFLY if briefly else _RANGES
            facts = self.facts
            feeds = drawn_feeds(facts.model, facts.shapes(), self.data, self.seed, count)
            converted = _guarded("int8", lambda: _quantised(copy, iter(feeds)))
        _in_order(converted.graph)
        del converted.graph.value_info[:]
        del converted.metadata_props[:]
        converted.metadata_props.extend(model.metadata_props)
        converted.producer_name = model.producer_name
        converted.producer_version = model.producer_version
        return converted


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    # What calls of functions read is converted, what stands in them is not.
    functions = [for_halves(f) if f.domain == DOMAIN else f for f in converted.functions]
    del converted.functions[:]
    converted.functions.extend(functions)
    return converted


def _quantised(model: onnx.ModelProto, feeds: Iterator[dict[str, Array]]) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(model, path, Reader(), per_channel=True)
        return onnx.load(path)


def _guarded(precision: str, convert: Any) -> onnx.ModelProto:
    """Run a converter of ONNX Runtime.

    Raises:
        ModelError: it fails, for whatever reason.
    """
    try:
        with _without_logging():
            converted: onnx.ModelProto = convert()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"ONNX Runtime's converter to {precision} fails: {reason}") from error
    return converted


@contextlib.contextmanager
def _without_logging() -> Iterator[None]:
    """The converter writes advice through the root logger, which it installs a handler on."""
    root, before = logging.getLogger(), logging.root.manager.disable
    handlers = list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.handlers[:] = handlers


def _with_scales_per_channel(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at an opset that knows scales per channel, with one entry per domain.

    Raises:
        ModelError: onnx cannot raise it.
    """
    versions = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    if versions["ai.onnx"] < _PER_CHANNEL:
        try:
            model = raised(model)
        except GradientError as error:
            raise ModelError(f"8-bit scales per channel need opset 13: {error}") from error
        versions = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(
        onnx.helper.make_opsetid("" if domain == "ai.onnx" else domain, version)
        for domain, version in versions.items()
    )
    # From IR version 4 on, initializers need not be inputs as well.
    model.ir_version = max(model.ir_version, 4)
    return model


def _in_order(graph: onnx.GraphProto) -> None:
    """Nodes after those whose outputs they read."""
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    reads = {
        at: sorted({makers[name] for name in _read(node) if name in makers})
        for at, node in enumerate(graph.node)
    }
    ordered = [graph.node[at] for at in TopologicalSorter(reads).static_order()]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for inner in subgraphs(node):
        for one in inner.node:
            yield from _read(one)
