"""Repair: every layer behind a lossy rewrite is fitted again, from the top down, without labels.

The rewritten network and the original walk side by side over the calibration inputs. Each layer
that reads something changed, or was changed itself, gets the weights that bring its answer closest
to the original's in least squares, given what the layers in front of it now deliver. Errors along a
skip path are carried into the aim (`aims`), so that they do not add up. The bias comes out of
centred moments. How far the new weights may move away from those that are there is decided by
samples that were not fitted on (`mending`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.linear import linear_layer
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.graph.branch_removal import restore_thresholds
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.correspondence import Kept, correspondence
from onnxcompress.rewrite.aims import Aim, Aims
from onnxcompress.rewrite.changes import changed_nodes, reached
from onnxcompress.rewrite.mended import FEW, THOROUGH, Constants, Effort, Mended
from onnxcompress.rewrite.mending import refitted
from onnxcompress.rewrite.pairs import Walks
from onnxcompress.rewrite.rescaling import rescaled
from onnxcompress.rewrite.units import Unit, factored_layers, single
from onnxcompress.rewrite.weighting import root_of
from onnxcompress.runtime import Array, Execution

Array64 = NDArray[np.float64]
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Repaired:
    """The repaired model.

    Attributes:
        model: with its shapes.
        mended: what was done, layer by layer.
        left: layers that could not be fitted, and why.
    """

    model: onnx.ModelProto
    mended: tuple[Mended, ...]
    left: Mapping[str, str]

    def findings(self) -> dict[str, Any]:
        """All but the model, as plain values."""
        return {"mended": [astuple(one) for one in self.mended], "left": dict(self.left)}

    @classmethod
    def found(cls, model: onnx.ModelProto, findings: Mapping[str, Any]) -> Repaired:
        """Put together again from the model and its findings."""
        return cls(model, tuple(Mended(*one) for one in findings["mended"]), findings["left"])

    def shortages(self) -> list[str]:
        """What too few inputs mean for the result, in words."""
        few = [one.node for one in self.mended if one.poorly_determined]
        if not few:
            return []
        return [
            f"repair: {len(few)} layers ('{few[0]}' first) have fewer than {FEW} positions per "
            "unknown and stay close to their old weights: more calibration inputs help"
        ]


@dataclass(frozen=True)
class Repair:
    """Repairs rewritten models of one original.

    Attributes:
        original: the canonical model.
        feeds: calibration inputs, batch by batch.
        execution: provider and threads.
        seed: which positions are looked at, and which samples are held out.
        method: "refit" fits weights, "scale" only a scale and a bias per channel.
        effort: how closely layers are looked at.
        fisher: information in the answers of the original's layers, by tensor: what low-rank layers
            are fitted by. None counts all answers alike.
        progress: told how far it is.
    """

    original: onnx.ModelProto
    feeds: Sequence[Mapping[str, Array]]
    execution: Execution
    seed: int = 0
    method: str = "refit"
    effort: Effort = THOROUGH
    fisher: Mapping[str, Array64] | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.method not in {"refit", "scale"}:
            raise UsageError(f"repair method '{self.method}' is neither refit nor scale")

    def __call__(self, result: onnx.ModelProto, kept: Kept) -> Repaired:
        """Fit the layers of a rewritten model again.

        Args:
            result: the rewritten model; not changed.
            kept: of tensors that lost channels, the axis and the original's indices that stay.

        Raises:
            ModelError: one of the models fails on the data.
        """
        before = GraphView(self.original)
        editor = Editor(result)
        restore_thresholds(editor, before)
        result = editor.finish()
        after = GraphView(result)
        aims = Aims(before, after, correspondence(before, after, kept))
        touched = reached(after, changed_nodes(before, after))
        layers = [
            node
            for node in result.graph.node
            if node.name in touched and node.op_type in _LAYERS and node.domain in {"", "ai.onnx"}
        ]
        rows = factored_layers(before, after) if self.method == "refit" else {}
        inside = {name for first, row in rows.items() for name in row.nodes if name != first}
        heads = [node for node in layers if node.name not in inside]
        walks = Walks(before, after, self.feeds, self.execution)
        unsettled = {node.name for node in layers}
        mended: list[Mended] = []
        left: dict[str, str] = {}
        edits: Constants = {}
        for number, node in enumerate(heads):
            row = rows.get(node.name)
            unsettled -= {node.name, *(row.nodes if row is not None else ())}
            aim = aims.of(row.last.output if row is not None else node.output[0], unsettled)
            try:
                if aim is None:
                    raise ModelError("nothing in the original says what it should answer")
                found, constants = self._mend(node, row, aim, after, walks)
            except ModelError as error:
                left[node.name] = str(error)
            else:
                mended.append(found)
                edits |= constants
                for name, operands in constants.items():
                    for index, values in operands.items():
                        walks.set_constant(name, index, values)
            if self.progress is not None:
                self.progress(number + 1, len(heads))
        return Repaired(_written(result, edits), tuple(mended), left)

    def _mend(
        self, node: onnx.NodeProto, row: Unit | None, aim: Aim, view: GraphView, walks: Walks
    ) -> tuple[Mended, Constants]:
        if self.method == "refit" and node.op_type != "ConvTranspose":
            unit = row or single(linear_layer(node, view))
            root = None
            if self.fisher is not None and len(unit.parts) > 1:
                root = root_of(self.fisher, unit.last, aim.kept[1] if aim.kept else None)
            return refitted(unit, aim, view, walks, self.seed, self.effort, root)
        if not all(view.is_constant(name) for name in node.input[1:] if name):
            raise ModelError("its weight or bias is computed or fed at run time")
        return rescaled(node, aim, view, walks, self.seed)


def _written(result: onnx.ModelProto, edits: Constants) -> onnx.ModelProto:
    editor = Editor(result)
    for name, constants in edits.items():
        for index, values in constants.items():
            role = "weight" if index == 1 else "bias"
            editor.set_input(editor.node(name), index, editor.constant(f"{name}_{role}", values))
    return with_value_info(editor.finish())
