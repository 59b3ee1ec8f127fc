"""Plans that were written to a file, held against the model that they shall be carried out on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import UsageError
from onnxcompress.plan.contract import Candidate, Pass
from onnxcompress.plan.plan import Plan


def needing_data(plan: Plan, passes: Mapping[str, Pass[Any]]) -> list[Candidate[Any]]:
    """What of a plan is worked out from calibration inputs."""
    return [c for c in plan.chosen if passes[c.site.pass_name].needs_data(c.setting)]


def check_fits(
    plan: Plan, facts: Facts, passes: Mapping[str, Pass[Any]], *, has_data: bool
) -> None:
    """Refuse a plan for another model; one that has its nodes will do: retrained checkpoints, too.

    Raises:
        UsageError: a node is missing or excluded, or calibration inputs are needed and missing.
    """
    missing = [n for c in plan.chosen for n in c.touches if n not in facts.view.nodes]
    if missing:
        raise UsageError(
            f"the plan rewrites node '{missing[0]}', which this model does not have: it was "
            "made for another architecture"
        )
    excluded = [n for c in plan.chosen for n in c.touches if n in facts.excluded]
    if excluded:
        raise UsageError(f"the plan rewrites node '{excluded[0]}', which --exclude keeps")
    needy = needing_data(plan, passes)
    if needy and not has_data:
        raise UsageError(
            f"the plan rewrites '{needy[0].site.node}' by what calibration inputs say: give "
            "--data, the same as for the plan"
        )
