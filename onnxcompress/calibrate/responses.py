"""The mean of every channel over positions, sample by sample, computed inside the graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from onnxcompress.gradients.emitter import Emitter
from onnxcompress.gradients.opset import raised


def with_means(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], taps: Mapping[str, int]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy of the model that answers with the mean of every channel.

    Args:
        model: the network; not changed.
        shapes: shape of every tensor, for its rank.
        taps: the tensors, with their channel axis.

    Returns:
        The model, and by tap the output [samples, channels].
    """
    copy = raised(model)
    emit = Emitter(copy.graph)
    names = {}
    for tap, axis in taps.items():
        others = [a for a in range(1, len(shapes[tap])) if a != axis]
        mean = emit.op("ReduceMean", tap, emit.sizes(others), keepdims=0) if others else tap
        names[tap] = emit.op("Identity", mean)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names.values())
    return copy, names
