"""The coupling of the model that an editor was opened on."""

from __future__ import annotations

from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.errors import ModelError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.memo import Memo

_KEY = "coupling"
_EXTENTS = (64, 224, 320)
"""Sizes to try for dimensions that the model leaves open."""


def remember_coupling(facts: Facts, memo: Memo) -> None:
    """Hand a job's coupling on to its editors."""
    memo.recall(_KEY, facts.coupling, _no_bytes)


def coupling_of(edit: Editor) -> Coupling:
    """The coupling of the editor's model: the job's, or found afresh for an editor without one."""
    return edit.memo.recall(_KEY, lambda: _afresh(edit), _no_bytes)


def _afresh(edit: Editor) -> Coupling:
    """Any size at which the model runs will do: what goes together does not depend on it."""
    specs = input_specs(edit.model)
    problem: ModelError | None = None
    for extent in _EXTENTS:
        sizes = {
            s.name: tuple(s.fixed(a) or (extent if a else 1) for a in range(len(s.shape)))
            for s in specs
        }
        try:
            return analyse(edit.model, sizes).coupling()
        except ModelError as error:
            problem = error
    raise ModelError(f"the model's coupling cannot be found: {problem}")


def _no_bytes(_: Coupling) -> int:
    return 0
