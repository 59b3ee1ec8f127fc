"""The report's row per layer with weights: its cost, what was done to it, or why nothing was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.graph.cost import COUNTED_OPERATORS, Cost, node_cost
from onnxcompress.graph.view import GraphView, subgraphs
from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.gate import Key, candidate_key
from onnxcompress.plan.plan import Plan


def _costs(result: onnx.ModelProto, facts: Facts) -> dict[str, Cost]:
    """Cost of the layers that kept their names."""
    view, shapes = GraphView(result), shapes_for(result, facts.sizes)
    return {
        node.name: node_cost(node, shapes, view)
        for node in result.graph.node
        if node.op_type in COUNTED_OPERATORS
    }


def layer_table(
    facts: Facts,
    plan: Plan,
    timings: Mapping[Key, LayerTiming],
    result: onnx.ModelProto | None = None,
) -> list[dict[str, Any]]:
    """One row per layer with weights: its cost, what was done to it, or why nothing was."""
    chosen = {name: c for c in reversed(plan.chosen) for name in c.touches}
    # Where several candidates change a layer, its own comes first.
    chosen |= {c.site.node: c for c in plan.chosen}
    changed: dict[str, list[Candidate[Any]]] = defaultdict(list)
    for c in plan.chosen:
        for name in c.touches:
            changed[name].append(c)
    left = _costs(result, facts) if result is not None else {}
    reasons: dict[str, list[str]] = defaultdict(list)
    for refusal in plan.refusals:
        reasons[refusal.node].append(f"{refusal.pass_name}: {refusal.reason}")
    untouched = "no rewrite that was chosen changes it"
    if plan.notes and not plan.chosen:
        # Where passes were not even asked, the plan says why.
        untouched = plan.notes[0]
    rows: list[dict[str, Any]] = []
    for node in facts.model.graph.node:
        if node.op_type not in COUNTED_OPERATORS:
            continue
        cost = facts.cost(node.name)
        row: dict[str, Any] = {
            "node": node.name,
            "op": node.op_type,
            "macs": cost.macs,
            "params": cost.params,
        }
        candidate = chosen.get(node.name)
        if candidate is not None:
            values = candidate.to_dict()
            # A layer that is still there is counted as it is; one that went with others is free.
            own = candidate.site.node == node.name or result is None
            after = left.get(node.name, candidate.after if own else Cost())
            timing = timings.get(candidate_key(candidate))
            row |= {
                "pass": candidate.site.pass_name,
                "setting": values["setting"],
                "macs_after": after.macs,
                "params_after": after.params,
                "also": [c.site.pass_name for c in changed[node.name] if c is not candidate],
                "damage": candidate.damage,
                "latency_ratio": timing.ratio if timing is not None else None,
            }
        else:
            row |= {
                "pass": None,
                "reason": "; ".join(reasons[node.name]) or untouched,
            }
        rows.append(row)
    rows.extend(
        {
            "node": inner.name,
            "op": inner.op_type,
            "macs": None,
            "params": None,
            "pass": None,
            "reason": f"inside a subgraph of node '{node.name}'",
        }
        for node in facts.model.graph.node
        for inner in _nested(node)
        if inner.op_type in COUNTED_OPERATORS
    )
    return rows


def _nested(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    for graph in subgraphs(node):
        for inner in graph.node:
            yield inner
            yield from _nested(inner)
