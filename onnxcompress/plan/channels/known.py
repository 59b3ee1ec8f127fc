"""The coupling of the model that an editor was opened on."""

from __future__ import annotations

from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.analyse.facts import Facts, Need, analyse
from onnxcompress.analyse.sizes import representative_sizes
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.memo import Memo

_KEY = "coupling"


def remember_coupling(facts: Facts, memo: Memo) -> None:
    """Hand a job's coupling on to its editors."""
    memo.recall(_KEY, facts.coupling, _no_bytes)


def coupling_of(edit: Editor) -> Coupling:
    """The coupling of the editor's model: the job's, or found afresh for an editor without one."""
    return edit.memo.recall(_KEY, lambda: _afresh(edit), _no_bytes)


def _afresh(edit: Editor) -> Coupling:
    facts = analyse(edit.model, representative_sizes(edit.model, {}))
    return facts.restricted(frozenset({Need.COUPLING, Need.SHAPES})).coupling()


def _no_bytes(_: Coupling) -> int:
    return 0
