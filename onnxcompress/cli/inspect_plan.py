"""`onnxcompress inspect --plan`: what a plan file would do to a model, and whether it fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def plan_summary(facts: Any, path: Path) -> dict[str, Any]:
    """A plan held against a model, as plain values.

    Args:
        facts: about the model's canonical form.
        path: the plan file.

    Raises:
        UsageError: the file is no plan, or the plan is for another architecture.
    """
    from onnxcompress.analyse.facts import analyse
    from onnxcompress.analyse.sizes import random_feeds
    from onnxcompress.config import Config
    from onnxcompress.graph.digest import model_digest
    from onnxcompress.groundwork import replay_groundwork
    from onnxcompress.plan.plan import read_plan
    from onnxcompress.plan.replay import check_fits, needing_data

    plan, passes = read_plan(path)
    owners = {owner.name: owner for owner in passes}
    feeds = [random_feeds(facts.model, facts.sizes, seed=0)]
    config = Config(passes=(), plan=path)
    left = replay_groundwork(facts, plan.first, passes, config, feeds).model
    check_fits(plan, analyse(left, facts.sizes), owners, has_data=True)
    needy = {candidate.site.node for candidate in needing_data(plan, owners)}
    return {
        "plan": str(path),
        "same_weights": plan.model_digest == model_digest(facts.model),
        "targets": dict(plan.targets),
        "gate": plan.gate,
        "then": plan.then,
        "notes": list(plan.notes),
        "rewrites": [
            {
                "node": candidate.site.node,
                "pass": candidate.site.pass_name,
                "round": number,
                "what": owners[candidate.site.pass_name].describe(candidate.setting),
                "setting": candidate.to_dict()["setting"],
                "touches": list(candidate.touches),
                "macs": [candidate.before.macs, candidate.after.macs],
                "params": [candidate.before.params, candidate.after.params],
                "damage": candidate.damage,
                "needs_data": candidate.site.node in needy,
            }
            for number, one in enumerate((*plan.first, plan.chosen), 1)
            for candidate in one
        ],
        "refusals": [
            {"pass": r.pass_name, "node": r.node, "reason": r.reason} for r in plan.refusals
        ],
    }


def show_plan(summary: dict[str, Any], console: Console) -> None:
    """The same as a table that a person reads."""
    from onnxcompress.cli.tables import number

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("layer", "pass", "becomes", "MACs", "params", "predicted error"):
        right = heading in {"MACs", "params", "predicted error"}
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in summary["rewrites"]:
        table.add_row(
            Text(row["node"]),
            row["pass"],
            Text(row["what"]),
            *(" -> ".join(map(number, row[kind])) for kind in ("macs", "params")),
            f"{row['damage']:.2g}" if row["damage"] else "exact",
        )
    console.print(table, soft_wrap=False)
    whose = "this very model" if summary["same_weights"] else "other weights of this architecture"
    asked = ", ".join(f"{kind} <= {value:g}" for kind, value in summary["targets"].items())
    then = f"; then {summary['then']}" if summary["then"] else ""
    console.print(
        Text(f"made for {whose}; asked: {asked or 'no target'}; gate {_on(summary['gate'])}{then}")
    )
    for note in summary["notes"]:
        console.print(Text(note))
    if any(row["needs_data"] for row in summary["rewrites"]):
        console.print("carrying it out takes calibration inputs: --data")
    console.print(
        f"{len(summary['rewrites'])} rewrites; {len(summary['refusals'])} refusals, with reasons "
        "in the plan file; costs of layers that several rewrites share do not add up"
    )


def _on(gate: bool) -> str:
    return "on" if gate else "off"
