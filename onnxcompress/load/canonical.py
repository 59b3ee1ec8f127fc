"""The canonical form: what every pass may rely on, and nothing that changes the function.

Local functions inlined, constants folded (onnxslim, where safe), Constant nodes lifted into
initializers, Identity aliases removed, shared initializers untied, BatchNormalization folded,
pads explicit where sizes are static, node names unique, shapes inferred afresh. The interface,
the opset, metadata and doc strings stay.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import onnx
import onnx.inliner
import onnx_graphsurgeon as gs

from onnxcompress.errors import ModelError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.skeleton import skeleton
from onnxcompress.load.batchnorm import fold_batchnorm
from onnxcompress.load.checks import check_structure, check_values, one_line
from onnxcompress.load.padding import make_pads_explicit
from onnxcompress.load.slim import Slimmed, slim


@dataclass(frozen=True)
class Canonical:
    """A model in canonical form and what was done to bring it there, in words."""

    model: onnx.ModelProto
    notes: tuple[str, ...]
    slimmed: bool = False
    """Whether a third-party optimiser had a hand in it, so that the result must be compared."""


def canonicalise(model: onnx.ModelProto, *, fold_constants: bool = True) -> Canonical:
    """Bring a checked model into canonical form; the model given is not changed.

    Args:
        model: a model with all its data in memory.
        fold_constants: whether onnxslim may fold constants first.

    Raises:
        ModelError: the model is invalid, or an operation cannot be carried out on it.
    """
    try:
        return _canonicalise(model, fold_constants=fold_constants)
    except UnicodeDecodeError as error:
        # Protobuf decodes names when they are read, which may be anywhere.
        raise ModelError(f"the model contains a name that is not text: {error}") from error


def _canonicalise(model: onnx.ModelProto, *, fold_constants: bool) -> Canonical:
    notes: list[str] = []
    check_structure(model)
    check_values(model)
    if model.functions:
        notes.append(f"{len(model.functions)} local functions inlined")
        model = _inlined(model)
    slimmed = slim(model) if fold_constants else _unslimmed(model)
    if slimmed.note:
        notes.append(slimmed.note)
    declared = {value.name for value in model.graph.input}
    overridable = [t.name for t in model.graph.initializer if t.name in declared]
    if overridable:
        notes.append(
            f"{len(overridable)} initializers were also inputs with a default: now constants"
        )
    editor = Editor(slimmed.skeleton.model, weights=slimmed.skeleton.weights)
    lifted = editor.lift_constants()
    aliases = _drop_identities(editor)
    untied = _untie(editor)
    folded = fold_batchnorm(editor)
    padded = make_pads_explicit(editor, slimmed.skeleton.model)
    for count, words in (
        (lifted, "Constant nodes lifted into initializers"),
        (aliases, "Identity nodes removed"),
        (untied, "readers of shared initializers given their own copy"),
        (folded, "BatchNormalization nodes folded"),
        (padded, "nodes given explicit pads"),
    ):
        if count:
            notes.append(f"{count} {words}")
    result = with_value_info(_within_interface(editor.finish(), model))
    check_structure(result)
    # Again, for what stood in Constant nodes and functions.
    check_values(result)
    return Canonical(result, tuple(notes), slimmed.changed)


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise ModelError(f"local functions cannot be inlined: {one_line(error)}") from error


def _unslimmed(model: onnx.ModelProto) -> Slimmed:
    return Slimmed(skeleton(model), False, "")


def _drop_identities(editor: Editor) -> int:
    """Remove Identity nodes; one that makes a graph output keeps the output's name alive."""
    count = 0
    for node in editor.nodes:
        if node.op != "Identity" or node.domain not in {None, "", "ai.onnx"}:
            continue
        if editor.is_output(node.outputs[0]):
            continue
        editor.bypass(node, node.inputs[0])
        count += 1
    return count


def _untie(editor: Editor) -> int:
    """Give every reader of a shared initializer after the first its own copy.

    Scalars stay shared: no pass slices them, and exporters share a Clip bound by the dozen.
    """
    # What a subgraph reads counts as read already, so that the main graph gets its own copy.
    seen: Counter[str] = Counter(editor.captured)
    count = 0
    for node in editor.nodes:
        for index, tensor in enumerate(node.inputs):
            if not isinstance(tensor, gs.Constant) or prod(tensor.shape) == 1:
                continue
            seen[tensor.name] += 1
            if seen[tensor.name] > 1:
                editor.set_input(node, index, editor.copy_constant(tensor))
                count += 1
    return count


def _within_interface(result: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Raise the IR version so that initializers need not be inputs, and keep the rest."""
    result.ir_version = max(original.ir_version, 4)
    return result
