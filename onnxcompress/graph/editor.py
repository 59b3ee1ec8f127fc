"""The only code that changes a graph.

An Editor imports a model, hands out names that nobody else has, stamps where new nodes come from,
keeps a journal, and exports. Existing tensors and initializers are never overwritten: an edit adds
new ones and rewires, and whatever nobody reads any more is dropped at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxcompress.errors import ModelError
from onnxcompress.graph.constants import dense_constant
from onnxcompress.graph.editor_names import captured_tensors, tensor_names, unique_name
from onnxcompress.graph.memo import Memo
from onnxcompress.graph.surgeon import export_graph, import_graph
from onnxcompress.graph.view import captured_names

PROVENANCE_KEY = "onnxcompress.pass"
SOURCE_KEY = "onnxcompress.source"


@dataclass(frozen=True)
class JournalEntry:
    """One edit: what was done to which node, by whom."""

    action: str
    node: str
    author: str


class Editor:
    """Edits a private copy of a model's graph structure; the model given is never changed.

    Args:
        model: the model to edit, or a skeleton of it.
        weights: initializers taken out of a skeleton, referenced lazily.
        memo: results shared with other editors of the same job.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        weights: dict[str, onnx.TensorProto] | None = None,
        memo: Memo | None = None,
    ) -> None:
        self.memo = memo or Memo()
        self.model = model
        self._graph, self._keep = import_graph(model, weights=weights)
        self._captured = frozenset(captured_names(model.graph))
        self._tensor_names = set(tensor_names(model.graph)) | set(weights or {})
        self._node_names = {node.name for node in model.graph.node if node.name}
        self._author = ""
        self._claimed: set[str] = set()
        self.journal: list[JournalEntry] = []
        self.kept: dict[str, Mapping[int, NDArray[np.intp]]] = {}
        """Of layers that lost channels: what is left of the weight, by axis."""
        self._by_name: dict[str, gs.Node] = {}
        for node in self._graph.nodes:
            if not node.name or node.name in self._by_name:
                # Everything refers to nodes by name, so every node gets one of its own.
                hint = node.name or (node.outputs[0].name if node.outputs else "") or node.op
                node.name = unique_name(f"{hint}_{node.op}", self._node_names)
                self._log("name", node.name)
            self._by_name[node.name] = node

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators that the model uses."""
        return next((int(o.version) for o in self.model.opset_import if not o.domain), 1)

    @property
    def nodes(self) -> tuple[gs.Node, ...]:
        """The nodes in their present order."""
        return tuple(self._graph.nodes)

    @property
    def outputs(self) -> tuple[gs.Tensor, ...]:
        """The output tensors of the graph."""
        return tuple(self._graph.outputs)

    @property
    def inputs(self) -> tuple[gs.Tensor, ...]:
        """The true input tensors of the graph (constants are not inputs)."""
        return tuple(self._graph.inputs)

    @property
    def captured(self) -> frozenset[str]:
        """Names of tensors that a subgraph may read from the main graph."""
        return self._captured

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether `tensor` is an output of the graph."""
        return any(tensor is output for output in self._graph.outputs)

    def sign(self, author: str) -> None:
        """Name the author of the edits that follow (a pass); it is stamped into new nodes."""
        self._author = author

    def claim(self, whole: str) -> None:
        """Say that the whole graph is edited at once by `whole`, which can happen only once.

        Raises:
            ModelError: it has happened already, so the graph is not the original any more.
        """
        if whole in self._claimed:
            raise ModelError(f"the graph was edited by '{whole}' already: edit all of it together")
        self._claimed.add(whole)

    def node(self, name: str) -> gs.Node:
        """The node called `name`.

        Raises:
            ModelError: there is no such node any more.
        """
        if name not in self._by_name:
            raise ModelError(f"node '{name}' is not in the graph (was it already replaced?)")
        return self._by_name[name]

    def tensor_name(self, hint: str) -> str:
        """A tensor name starting with `hint` that no graph or subgraph uses."""
        return unique_name(hint, self._tensor_names)

    def constant(self, hint: str, values: NDArray[np.generic]) -> gs.Constant:
        """A new initializer holding `values`, named after `hint`."""
        return gs.Constant(self.tensor_name(hint), np.asarray(values, order="C"))

    def define(self, function: onnx.FunctionProto) -> None:
        """Add a local function that new nodes may call; it is written if one does."""
        self._keep.functions[function.domain, function.name] = function

    def variable(self, hint: str, like: gs.Tensor | None = None) -> gs.Variable:
        """A new intermediate tensor, of the dtype of `like`."""
        return gs.Variable(self.tensor_name(hint), dtype=like.dtype if like is not None else None)

    def replace(self, node: gs.Node, replacement: Sequence[gs.Node]) -> None:
        """Put the nodes of `replacement` where `node` stands.

        The last of them takes over the very output tensors of `node`, so that no consumer
        changes. Domain and provenance are filled in.

        Raises:
            ModelError: the replacement leaves the node's outputs without a producer.
        """
        at = self._position(node)
        last = replacement[-1]
        if last.outputs:
            raise ModelError(
                f"replacement of node '{node.name}' must leave the outputs of its last node empty"
            )
        outputs = list(node.outputs)
        node.outputs.clear()
        node.inputs.clear()
        last.outputs = outputs
        self._graph.nodes[at : at + 1] = list(replacement)
        del self._by_name[node.name]
        for new in replacement:
            self._adopt(new, source=node.name)
        self._log("replace", node.name)

    def insert_before(self, node: gs.Node, new: gs.Node) -> None:
        """Insert the node `new` in front of `node` in the order of execution."""
        at = self._position(node)
        self._graph.nodes[at:at] = [new]
        self._adopt(new, source=node.name)
        self._log("insert", new.name)

    def insert_behind(self, node: gs.Node, new: gs.Node, index: int = 0) -> None:
        """Let `new` read the first output of `node` as its input `index`, and write in its place.

        Whoever read that output reads the result of `new`, under the same name.
        """
        output = node.outputs[0]
        inner = self.variable(f"{output.name}_inner", output)
        node.outputs[0] = inner
        new.inputs.insert(index, inner)
        new.outputs.append(output)
        at = self._position(node)
        self._graph.nodes[at + 1 : at + 1] = [new]
        self._adopt(new, source=node.name)
        self._log("insert", new.name)

    def bypass(self, node: gs.Node, tensor: gs.Tensor) -> None:
        """Remove `node` and let every reader of its first output read `tensor` instead.

        Raises:
            ModelError: the output is an output of the graph, whose name must stay.
        """
        output = node.outputs[0]
        if self.is_output(output):
            raise ModelError(f"node '{node.name}' makes the graph output '{output.name}'")
        for reader in list(output.outputs):
            for index, read in enumerate(reader.inputs):
                if read is output:
                    reader.inputs[index] = tensor
        self._drop(node)
        self._log("bypass", node.name)

    def take_over_output(self, node: gs.Node, follower: gs.Node) -> None:
        """Remove `follower`, which reads `node`, and let `node` write its output instead."""
        outputs = list(follower.outputs)
        follower.outputs.clear()
        self._drop(follower)
        node.outputs = outputs
        self._log("absorb", follower.name)

    def set_input(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Let input `index` of `node` read `tensor`; omitted inputs before it stay omitted."""
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        node.inputs[index] = tensor
        self._log("rewire", node.name)

    def set_attributes(self, node: gs.Node, values: Mapping[str, object | None]) -> None:
        """Set attributes of `node`; None removes one."""
        for key, value in values.items():
            if value is None:
                node.attrs.pop(key, None)
            else:
                node.attrs[key] = value
        self._keep.written.setdefault(id(node), set()).update(values)
        self._log("attributes", node.name)

    def lift_constants(self) -> int:
        """Turn Constant nodes that hold a dense tensor into initializers; return how many."""
        count = 0
        for node in self.nodes:
            proto = self._keep.protos.get(id(node))
            tensor = dense_constant(proto) if proto is not None else None
            if tensor is None or self.is_output(node.outputs[0]):
                continue
            output = node.outputs[0]
            self._drop(node)
            output.to_constant(LazyValues(tensor))
            self._keep.outer[tensor.name] = tensor
            self._log("lift", node.name)
            count += 1
        return count

    def copy_constant(self, constant: gs.Constant) -> gs.Constant:
        """A second initializer with the same values, sharing the data until export."""
        return gs.Constant(self.tensor_name(f"{constant.name}_untied"), constant._values)

    def is_alive(self, node: gs.Node) -> bool:
        """Whether an output of the graph, or a subgraph, depends on what `node` makes."""
        return any(node is other for other in self._live())

    def _live(self) -> list[gs.Node]:
        """The nodes that outputs depend on, in order."""
        live: list[gs.Node] = []
        needed: set[int] = {id(t) for t in self._graph.outputs}
        for node in reversed(self._graph.nodes):
            if any(id(t) in needed for t in node.outputs):
                live.append(node)
                needed.update(id(t) for t in node.inputs)
                needed.update(id(t) for t in captured_tensors(node))
        return live[::-1]

    def finish(self) -> onnx.ModelProto:
        """Drop what nobody reads and export; shapes are not inferred here.

        Edits keep the order of execution valid, so no sorting is needed (graphsurgeon's sort is
        recursive and fails on deep networks).
        """
        self._graph.nodes = self._live()
        return export_graph(self._graph, self._keep)

    def _adopt(self, node: gs.Node, *, source: str) -> None:
        node.name = unique_name(node.name or f"{source}_{node.op}", self._node_names)
        self._by_name[node.name] = node
        if self._author:
            self._keep.alive.append(node)
            self._keep.metadata[id(node)] = {PROVENANCE_KEY: self._author, SOURCE_KEY: source}

    def _position(self, node: gs.Node) -> int:
        for index, candidate in enumerate(self._graph.nodes):
            if candidate is node:
                return index
        raise ModelError(f"node '{node.name}' is not in the graph")

    def _drop(self, node: gs.Node) -> None:
        at = self._position(node)
        node.outputs.clear()
        node.inputs.clear()
        del self._graph.nodes[at]
        self._by_name.pop(node.name, None)

    def _log(self, action: str, node: str) -> None:
        self.journal.append(JournalEntry(action, node, self._author))
