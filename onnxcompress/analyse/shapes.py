"""Shapes at the representative sizes: inferred, and where inference stops, observed in a real run.

Exporters compute sizes at run time (Shape, Gather, Concat, Reshape chains), which ONNX shape
inference often cannot follow. What it leaves open is read off a run in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from onnxcompress.analyse.sizes import random_feeds
from onnxcompress.errors import ModelError
from onnxcompress.graph.cost import COUNTED_OPERATORS
from onnxcompress.graph.infer import Shapes, shapes_at
from onnxcompress.runtime import Array, Execution, open_session


def shapes_for(model: onnx.ModelProto, sizes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """The shape of every tensor that layers read or write, and of all others that are known.

    Raises:
        ModelError: the sizes contradict the graph, or the model does not run.
    """
    shapes = shapes_at(model, sizes)
    constants = {tensor.name for tensor in model.graph.initializer}
    open_names = [
        name
        for node in model.graph.node
        if node.op_type in COUNTED_OPERATORS
        for name in (*node.input, *node.output)
        if name and name not in shapes and name not in constants
    ]
    if open_names:
        values = observe(model, sizes, list(dict.fromkeys(open_names)))
        shapes |= {name: tuple(int(d) for d in value.shape) for name, value in values.items()}
    return shapes


def observe(
    model: onnx.ModelProto, sizes: Mapping[str, tuple[int, ...]], names: list[str]
) -> dict[str, Array]:
    """Run once with `names` as extra outputs and return their values.

    Raises:
        ModelError: the model does not run, or does not make one of these tensors.
    """
    outputs = {output.name for output in model.graph.output}
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    for name in names:
        if name not in outputs:
            tapped.graph.output.append(onnx.ValueInfoProto(name=name))
    # Unfused and on the CPU: every tensor exists there, and sizes do not depend on the provider.
    with open_session(tapped, Execution(optimise=False)) as session:
        found = session.run(random_feeds(model, sizes))
        values = dict(zip(session.output_names, found, strict=True))
    missing = [name for name in names if name not in values]
    if missing:
        raise ModelError(f"the size of tensor '{missing[0]}' cannot be found")
    return values
