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
from onnxcompress.graph.view import GraphView
from onnxcompress.load.checks import check_structure
from onnxcompress.plan.contract import Candidate, Pass, Refusal


@dataclass(frozen=True)
class Rewritten:
    """The rewritten model, what was applied, what was rolled back, and every edit."""

    model: onnx.ModelProto
    applied: tuple[Candidate[Any], ...]
    rolled_back: tuple[Refusal, ...]
    journal: tuple[JournalEntry, ...]
    proofs: tuple[Proof, ...] = ()


@dataclass(frozen=True)
class Proof:
    """What a pass's rewrites were compared with, and how close they came.

    Attributes:
        pass_name: the pass.
        error: relative L2 distance from the reference, of the worst output.
        samples: inputs that were run.
    """

    pass_name: str
    error: float
    samples: int


def rewrite(
    model: onnx.ModelProto,
    chosen: Sequence[Candidate[Any]],
    passes: Mapping[str, Pass[Any]],
    *,
    strict: bool = False,
    memo: Memo | None = None,
    brief: bool = False,
) -> Rewritten:
    """Apply the chosen candidates to a copy of `model`.

    Args:
        model: the canonical model; not changed.
        chosen: candidates, at most one per node.
        passes: the passes by name.
        strict: raise instead of rolling back.
        memo: decompositions shared with other rewrites of the same model.
        brief: for a look only: the result has no shapes, and is not checked.

    Raises:
        PassError: a pass broke its contract and `strict` is set, or the result is not a valid
            model for reasons that no single candidate explains.
    """
    remaining = list(chosen)
    rolled_back: list[Refusal] = []
    while True:
        editor = Editor(model, memo=memo)
        failed = _apply_all(model, remaining, passes, editor)
        if failed is None and brief:
            return Rewritten(editor.finish(), tuple(remaining), tuple(rolled_back), ())
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


def _apply_all(
    model: onnx.ModelProto,
    candidates: Sequence[Candidate[Any]],
    passes: Mapping[str, Pass[Any]],
    editor: Editor,
) -> tuple[Candidate[Any], str] | None:
    """Carry out everything; those first that work out their edits on the whole original graph."""
    names = dict.fromkeys(candidate.site.pass_name for candidate in candidates)
    for name in sorted(names, key=lambda n: not passes[n].works_together):
        mine = [c for c in candidates if c.site.pass_name == name]
        if passes[name].works_together:
            editor.sign(name)
            try:
                passes[name].rewrite_together(mine, editor)
            except Exception as error:  # noqa: BLE001  (as for a single rewrite)
                return _to_blame(model, mine, passes, error)
            continue
        for candidate in mine:
            failed = _apply(candidate, passes, editor)
            if failed:
                return failed
    return None


def _to_blame(
    model: onnx.ModelProto,
    candidates: Sequence[Candidate[Any]],
    passes: Mapping[str, Pass[Any]],
    error: Exception,
) -> tuple[Candidate[Any], str]:
    """Of candidates that failed together, the first that fails alone; else the last."""
    for candidate in candidates:
        failed = _apply(candidate, passes, Editor(model))
        if failed:
            return failed
    return candidates[-1], f"rolled back: the rewrite failed with {error!r}"


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
    view = GraphView(before)
    new = {node.name: node for node in after.graph.node}
    old_constants = {tensor.name: tensor for tensor in before.graph.initializer}
    new_constants = {tensor.name: tensor for tensor in after.graph.initializer}
    for node in before.graph.node:
        if node.name in touched:
            continue
        other = new.get(node.name)
        if other is None and _died_of_several(node, view, applied, new):
            continue
        if other is None or _bytes(other) != _bytes(node):
            return str(node.name)
        for name in node.input:
            if old_constants.get(name) != new_constants.get(name):
                return str(node.name)
    return None


def _died_of_several(
    node: onnx.NodeProto,
    view: GraphView,
    applied: Sequence[Candidate[Any]],
    left: Mapping[str, onnx.NodeProto],
) -> bool:
    """Whether a node went because several candidates together changed or removed all its readers.

    None of them could announce that: each alone would have left the node a reader.
    """
    if set(node.output) & (view.captured | set(view.outputs)):
        return False
    readers = {use.node.name for name in node.output for use in view.uses(name)}
    touched = {name for candidate in applied for name in candidate.touches}
    alone = any(readers <= set(candidate.touches) for candidate in applied)
    return bool(readers) and not alone and all(r in touched or r not in left for r in readers)


def _bytes(node: onnx.NodeProto) -> bytes:
    return bytes(node.SerializeToString(deterministic=True))
