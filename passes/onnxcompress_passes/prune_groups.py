"""Groups of channels as sites: one per group; and why others are left as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from onnxcompress.analyse.coupling.grouping import LAYERS
from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import ModelError
from onnxcompress.graph.weights import constant_values
from onnxcompress.plan.channels.cost import toll
from onnxcompress.plan.channels.plan_cuts import plan_cuts
from onnxcompress.plan.contract import Refusal, Site
from onnxcompress_passes.eligibility import QUANTISED, quantised_layers


def group_sites(
    name: str, facts: Facts, objection: Callable[[Group, Coupling], str]
) -> Iterator[Site | Refusal]:
    """The first layer of every group; other layers with the group they go with, or why not.

    Args:
        name: of the pass.
        facts: about the model.
        objection: why a pass leaves a group alone that could be cut, or an empty string.
    """
    layers = [n for n in facts.model.graph.node if n.op_type in LAYERS]
    try:
        coupling = facts.coupling()
    except ModelError as error:
        for node in layers:
            yield Refusal(name, node.name, f"coupling cannot be found: {error}")
        return
    for node in layers:
        if node.domain not in {"", "ai.onnx"}:
            continue
        group = coupling.group_of(node.name)
        if group is None:
            reason = coupling.refusals.get(node.name, "it makes no channels that can be cut")
            yield Refusal(name, node.name, reason)
        elif group.name != node.name:
            yield Refusal(name, node.name, f"goes with '{group.name}'", see=name)
        else:
            reason = reason_to_keep(group, coupling, facts) or objection(group, coupling)
            yield Refusal(name, node.name, reason) if reason else Site(name, node.name)
    for node_name, reason in quantised_layers(facts, QUANTISED):
        yield Refusal(name, node_name, reason)


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
