"""Moments of layers, for weighing candidates and for carrying them out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.linear import linear_layer
from onnxcompress.analyse.moments import Moments
from onnxcompress.errors import ModelError, PassError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.memo import Memo
from onnxcompress.plan.contract import Candidate

MOST_FEATURES = 8192
"""Of layers that read more numbers no moments are taken to plan with: they would take gigabytes."""

_KEY = "moments"


def layer_moments(facts: Facts, layers: Sequence[str]) -> Mapping[str, Moments]:
    """Moments of these layers, collected in one go; none without calibration inputs.

    Args:
        facts: facts that may be asked for moments.
        layers: all layers that the caller will ask about, in order.
    """
    collect = facts.moments()
    if collect is None:
        return {}
    known: dict[str, Moments] = facts.recall(_KEY, dict)
    missing = [name for name in layers if name not in known]
    if missing:
        known.update(collect(missing))
    return known


def linear_among(facts: Facts, candidates: Sequence[Candidate[Any]]) -> list[str]:
    """Layers that candidates touch and of which moments are taken, each once."""
    found = []
    for name in dict.fromkeys(name for c in candidates for name in c.touches):
        with contextlib.suppress(ModelError):
            layer = linear_layer(facts.view.nodes[name], facts.view)
            if layer.features <= MOST_FEATURES:
                found.append(name)
    return found


def remember_facts(facts: Facts, memo: Memo) -> None:
    """Hand what a job knows on to its editors, for rewrites that are worked out from data."""
    if facts.moments() is not None:
        memo.recall(_KEY, lambda: facts, lambda _: 0)


def facts_of(edit: Editor, why: str) -> Facts:
    """What is known about the editor's model.

    Raises:
        PassError: the job has no calibration inputs; the message names what needs them.
    """
    facts: Facts | None = edit.memo.recall(_KEY, lambda: None, lambda _: 0)
    if facts is None:
        raise PassError(
            f"'{why}' is worked out from calibration inputs, and there are none: give --data"
        )
    return facts


def moments_of(edit: Editor, layer: str) -> Moments:
    """Moments of a layer of the editor's model.

    Raises:
        PassError: the job has no calibration inputs.
    """
    return layer_moments(facts_of(edit, layer), [layer])[layer]
