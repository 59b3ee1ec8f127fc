"""The pass manager: clone, apply, judge, then keep or roll back.

The canonical model is never changed. A candidate whose rewrite raises, or that touches nodes it
did not name, is rolled back by starting over without it, and reported as a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnxcompress.errors import OnnxCompressError, PassError
from onnxcompress.graph.editor import Editor, JournalEntry
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.memo import Memo
from onnxcompress.load.checks import check_structure
from onnxcompress.plan.contract import Candidate, Pass, Refusal


@dataclass(frozen=True)
class Rewritten:
    """The rewritten model, what was applied, what was rolled back, and every edit."""

    model: onnx.ModelProto
    applied: tuple[Candidate[Any], ...]
    rolled_back: tuple[Refusal, ...]
    journal: tuple[JournalEntry, ...]


def rewrite(
    model: onnx.ModelProto,
    chosen: Sequence[Candidate[Any]],
    passes: Mapping[str, Pass[Any]],
    *,
    strict: bool = False,
    memo: Memo | None = None,
) -> Rewritten:
    """Apply the chosen candidates to a copy of `model`.

    Args:
        model: the canonical model; not changed.
        chosen: candidates, at most one per node.
        passes: the passes by name.
        strict: raise instead of rolling back.
        memo: decompositions shared with other rewrites of the same model.

    Raises:
        PassError: a pass broke its contract and `strict` is set, or the result is not a valid
            model for reasons that no single candidate explains.
    """
    remaining = list(chosen)
    rolled_back: list[Refusal] = []
    while True:
        editor = Editor(model, memo=memo)
        failed: tuple[Candidate[Any], str] | None = None
        for candidate in remaining:
            failed = _apply(candidate, passes, editor)
            if failed:
                break
        if failed is None:
            finished = _finished(editor)
            failed = _at_fault(model, finished, remaining, passes, memo)
        if failed is None:
            break
        candidate, reason = failed
        if strict:
            raise PassError(
                f"pass '{candidate.site.pass_name}' at node '{candidate.site.node}': {reason}"
            )
        remaining.remove(candidate)
        rolled_back.append(Refusal(candidate.site.pass_name, candidate.site.node, reason))
    result, reason = finished
    if result is None:
        raise PassError(f"the canonical model is invalid without any rewrite: {reason}")
    return Rewritten(result, tuple(remaining), tuple(rolled_back), tuple(editor.journal))


def _apply(
    candidate: Candidate[Any], passes: Mapping[str, Pass[Any]], editor: Editor
) -> tuple[Candidate[Any], str] | None:
    owner = passes[candidate.site.pass_name]
    editor.sign(owner.name)
    try:
        owner.rewrite(candidate, editor)
    except Exception as error:  # noqa: BLE001  (whatever a pass raises, the model is not at risk)
        return candidate, f"rolled back: the rewrite failed with {error!r}"
    return None


def _finished(editor: Editor) -> tuple[onnx.ModelProto | None, str]:
    """The edited model with its shapes, or why it is no valid model."""
    try:
        result = with_value_info(editor.finish())
        check_structure(result)
    except OnnxCompressError as error:
        return None, f"rolled back: the result is invalid: {error}"
    return result, ""


def _at_fault(
    before: onnx.ModelProto,
    finished: tuple[onnx.ModelProto | None, str],
    applied: Sequence[Candidate[Any]],
    passes: Mapping[str, Pass[Any]],
    memo: Memo | None,
) -> tuple[Candidate[Any], str] | None:
    """The candidate to blame for an invalid result, or for a change it did not announce."""
    reason = _objection(before, finished, applied)
    if not reason or not applied:
        return None
    # Which one did it shows when each is applied by itself.
    for candidate in applied:
        alone = Editor(before, memo=memo)
        if _apply(candidate, passes, alone) is None:
            own = _objection(before, _finished(alone), [candidate])
            if own:
                return candidate, own
    return applied[-1], reason


def _objection(
    before: onnx.ModelProto,
    finished: tuple[onnx.ModelProto | None, str],
    applied: Sequence[Candidate[Any]],
) -> str:
    result, reason = finished
    if result is None:
        return reason
    stray = stray_node(before, result, applied)
    return f"rolled back: it changed node '{stray}' without announcing it" if stray else ""


def stray_node(
    before: onnx.ModelProto, after: onnx.ModelProto, applied: Sequence[Candidate[Any]]
) -> str | None:
    """A node that changed or vanished although no candidate in `applied` names it.

    A node has changed, too, when a constant that it reads has.
    """
    touched = {name for candidate in applied for name in candidate.touches}
    new = {node.name: node for node in after.graph.node}
    old_constants = {tensor.name: tensor for tensor in before.graph.initializer}
    new_constants = {tensor.name: tensor for tensor in after.graph.initializer}
    for node in before.graph.node:
        if node.name in touched:
            continue
        other = new.get(node.name)
        if other is None or _bytes(other) != _bytes(node):
            return str(node.name)
        for name in node.input:
            if old_constants.get(name) != new_constants.get(name):
                return str(node.name)
    return None


def _bytes(node: onnx.NodeProto) -> bytes:
    return bytes(node.SerializeToString(deterministic=True))
