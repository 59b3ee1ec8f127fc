"""Why layers stay as they are, in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from onnxcompress.errors import BoundError
from onnxcompress.plan.contract import Candidate, Refusal
from onnxcompress.plan.options import Options
from onnxcompress.plan.plan import Plan


def left_alone(options: Options, chosen: Iterable[Candidate[Any]], why: str) -> list[Refusal]:
    """Every site on offer without a chosen candidate, with the reason for it."""
    taken = {candidate.site for candidate in chosen}
    sites = [offers[0].site for offers in options.sites]
    return [Refusal(site.pass_name, site.node, why) for site in sites if site not in taken]


def most_frequent(refusals: Iterable[Refusal]) -> str:
    """The most frequent reasons; what failed comes before everything."""
    reasons = [refusal.reason for refusal in refusals]
    failed = [reason for reason in reasons if reason.startswith("rolled back")]
    if failed:
        return failed[0]
    counts = Counter(_general(reason) for reason in reasons)
    if not counts:
        return "the model has no layer that the passes know"
    return "; ".join(f"{reason} ({n} layers)" for reason, n in counts.most_common(3))


def demand_gain(plan: Plan) -> None:
    """Refuse an empty plan.

    Raises:
        BoundError: no layer would be rewritten; names the most frequent reasons.
    """
    if not plan.empty:
        return
    raise BoundError(f"nothing could be gained: {most_frequent(plan.refusals)}")


def _general(reason: str) -> str:
    """A reason without its figures, so that equal ones count together."""
    return re.sub(r" \([\dx]+\)", "", reason.split(": best of")[0])
