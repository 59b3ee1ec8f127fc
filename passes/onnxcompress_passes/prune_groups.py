"""Why a group of channels is left as it is although its channels could go."""

from __future__ import annotations

import numpy as np

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.weights import constant_values
from onnxcompress.plan.channels.cost import toll
from onnxcompress.plan.channels.plan_cuts import plan_cuts


def reason_to_keep(group: Group, coupling: Coupling, facts: Facts) -> str:
    """Why a group stays as it is, or an empty string."""
    edits = plan_cuts(facts.view, coupling, {group.name: (0,)})
    excluded = [name for name in toll(facts, edits).touches if name in facts.excluded]
    if set(group.producers) & facts.excluded or excluded:
        return "excluded by the user" + (f" with '{excluded[0]}'" if excluded else "")
    for name in dict.fromkeys((*group.producers, *group.consumers)):
        node = facts.view.nodes[name]
        weight = node.input[1] if len(node.input) > 1 else ""
        if not _finite(facts, weight):
            return f"the weight of '{name}' contains NaN or infinite values"
    return ""


def _finite(facts: Facts, tensor: str) -> bool:
    def find() -> bool:
        return bool(np.isfinite(constant_values(facts.view, tensor)).all())

    return facts.recall(("finite", tensor), find)
