"""Executing a graph piece by piece over all samples, with weights that may change ahead.

A walk keeps, for every sample, the tensors that pieces not yet executed still read: the whole
network is run once, however often somebody stops to look. Where they exceed the memory bound they
lie in temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from onnxcompress.errors import ModelError
from onnxcompress.graph.view import GraphView, captured_by
from onnxcompress.runtime import Array, Execution, open_session

SHELF_BYTES = 2**32
"""Of activations that a walk holds in memory; more lie in temporary files."""


class Shelf:
    """Holds arrays: in memory up to a bound, beyond it in temporary files.

    Args:
        limit_bytes: of memory.
    """

    def __init__(self, limit_bytes: int = SHELF_BYTES) -> None:
        self._limit, self._held = limit_bytes, 0

    def put(self, values: Array) -> Array:
        """Take in an array; what is given back reads the same."""
        if self._held + values.nbytes <= self._limit or not values.nbytes:
            self._held += values.nbytes
            return values
        # An unnamed file: it is gone when the last reference to the array is.
        with tempfile.TemporaryFile() as file:
            stored = np.memmap(file, dtype=values.dtype, mode="w+", shape=values.shape or (1,))
        stored[...] = values
        return stored.reshape(values.shape)

    def drop(self, values: Array) -> None:
        """Forget an array."""
        if not isinstance(values, np.memmap):
            self._held -= values.nbytes


class Walk:
    """One graph on one set of samples.

    Args:
        model: the graph.
        feeds: the samples, batch by batch.
        execution: provider and threads.
        shelf: where activations are kept; walks may share one.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        feeds: Sequence[Mapping[str, Array]],
        execution: Execution,
        shelf: Shelf,
    ) -> None:
        self._model, self._shelf = model, shelf
        # Between pieces the cores are for what looks at the values.
        self._execution = replace(execution, spinning=False)
        self._view = GraphView(model)
        self._feeds = feeds
        self._done: set[str] = set()
        self._held: dict[str, list[Array]] = {}
        self._constants: dict[tuple[str, int], onnx.TensorProto] = {}
        self._reads = {node.name: _reads(node, self._view) for node in model.graph.node}

    def set_constant(self, node: str, index: int, values: Array) -> None:
        """Let input `index` of a node read other values.

        A node that was executed already will be executed again; what was executed behind it stays.
        """
        name = f"{node}/{index}/repaired"
        self._constants[node, index] = onnx.numpy_helper.from_array(
            np.ascontiguousarray(values), name
        )
        if node in self._done:
            self._done.discard(node)
            self._release(t for t in self._view.nodes[node].output if t in self._held)

    def batches(self, tensors: Iterable[str]) -> Iterator[dict[str, Array]]:
        """The values of tensors, batch by batch, in the order of the samples.

        Raises:
            ModelError: ONNX Runtime fails.
        """
        names = tuple(dict.fromkeys(tensors))
        self._advance(names)
        for at, feeds in enumerate(self._feeds):
            yield {name: feeds[name] if name in feeds else self._held[name][at] for name in names}

    def _advance(self, names: Sequence[str]) -> None:
        wanted = [n for n in names if n not in self._held and n not in self._feeds[0]]
        kept = {*names, *self._read_by_layers(names)}
        if wanted:
            piece = self._piece(wanted)
            inside = {node.name for node in piece}
            self._done |= inside
            made = [t for node in piece for t in node.output if t]
            outputs = [t for t in made if t in kept or self._pending(t)]
            found = self._run(piece, outputs)
            self._release(t for t in found if t in self._held)
            self._held |= found
        self._release(n for n in self._held if n not in kept and not self._pending(n))

    def _release(self, tensors: Iterable[str]) -> None:
        for name in list(tensors):
            for past in self._held.pop(name):
                self._shelf.drop(past)

    def _read_by_layers(self, tensors: Iterable[str]) -> Iterator[str]:
        """What those read who make these tensors and may get other constants, to do it again."""
        for tensor in tensors:
            node = self._view.producers.get(tensor)
            reads = self._reads[node.name] if node is not None else []
            if any(self._view.is_constant(name) for name in reads):
                yield from reads

    def _pending(self, tensor: str) -> bool:
        """Whether a node that was not executed yet reads a tensor."""
        if tensor in self._view.captured:
            return True
        return any(use.node.name not in self._done for use in self._view.uses(tensor))

    def _piece(self, tensors: Sequence[str]) -> list[onnx.NodeProto]:
        """The nodes between what is held and these tensors, in order of execution."""
        found: set[str] = set()
        ends = list(tensors)
        while ends:
            tensor = ends.pop()
            if tensor in self._held or tensor in self._feeds[0] or self._view.is_constant(tensor):
                continue
            node = self._view.producers.get(tensor)
            if node is None:
                raise ModelError(f"tensor '{tensor}' is not in the graph")
            if node.name not in found:
                found.add(node.name)
                ends += self._reads[node.name]
        return [node for node in self._model.graph.node if node.name in found]

    def _run(
        self, piece: Sequence[onnx.NodeProto], outputs: Sequence[str]
    ) -> dict[str, list[Array]]:
        """The outputs of a piece of the graph, by name and batch."""
        made = {t for node in piece for t in node.output}
        read = dict.fromkeys(t for node in piece for t in self._reads[node.name] if t not in made)
        entering = [t for t in read if not self._view.is_constant(t)]
        nodes, constants = self._with_constants(piece)
        constants += [self._view.initializers[t] for t in read if self._view.is_constant(t)]
        samples = [self._entering(at, entering) for at in range(len(self._feeds))]
        inputs = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), None
            )
            for name, value in samples[0].items()
        ]
        graph = onnx.helper.make_graph(
            nodes, "piece", inputs, [onnx.ValueInfoProto(name=t) for t in outputs], constants
        )
        model = onnx.helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=max(self._model.ir_version, 4),
            functions=self._model.functions,
        )
        found: dict[str, list[Array]] = {name: [] for name in outputs}
        with open_session(model, self._execution) as session:
            for feeds in samples:
                for name, value in zip(session.output_names, session.run(feeds), strict=True):
                    found[name].append(self._shelf.put(value))
        return found

    def _entering(self, at: int, names: Sequence[str]) -> dict[str, Array]:
        feeds = self._feeds[at]
        return {n: feeds[n] if n in feeds else self._held[n][at] for n in names}

    def _with_constants(
        self, piece: Sequence[onnx.NodeProto]
    ) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The nodes, reading what was set; and what was set."""
        nodes, constants = [], []
        for node in piece:
            own = {i: t for (name, i), t in self._constants.items() if name == node.name}
            if own:
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                for index, tensor in own.items():
                    while len(copy.input) <= index:
                        copy.input.append("")
                    copy.input[index] = tensor.name
                    constants.append(tensor)
                node = copy
            nodes.append(node)
        return nodes, constants


def _reads(node: onnx.NodeProto, view: GraphView) -> list[str]:
    # What subgraphs name includes tensors of their own.
    outside = {*view.inputs, *view.producers, *view.initializers}
    return [*(name for name in node.input if name), *sorted(captured_by(node) & outside)]
