"""What stays of a group or a branch, as the plan file says it; and which widths are on offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.errors import PassError, UsageError
from onnxcompress.graph.cost import Cost
from onnxcompress.plan.contract import Candidate

_RUNGS = 12
"""Least number of widths on offer in a group that has as many channels; at most twice that."""


@dataclass(frozen=True)
class KeptChannels:
    """What stays of a group of channels, or of a residual branch.

    Attributes:
        kept: numbers of the channels that stay within the group, ascending; none at width zero.
        mean: at width zero, what the branch becomes: one number per channel of its end.
    """

    kept: tuple[int, ...]
    mean: tuple[float, ...] = ()


def read_setting(values: Any) -> KeptChannels:
    """A setting from the plan file: `{"kept": [0, 2, 3], "mean": []}`.

    Raises:
        UsageError: the values do not fit.
    """
    known = isinstance(values, dict) and {"kept"} <= set(values) <= {"kept", "mean"}
    kept, mean = (values["kept"], values.get("mean", [])) if known else (None, None)
    if not (
        isinstance(kept, list)
        and isinstance(mean, list)
        and all(type(channel) is int for channel in kept)
        and all(type(value) in {int, float} and isfinite(value) for value in mean)
        and bool(kept) != bool(mean)
    ):
        raise UsageError(f"setting {str(values)[:200]} does not fit pass 'prune'")
    return KeptChannels(tuple(sorted(set(kept))), tuple(float(value) for value in mean))


def removed_channels(
    candidates: Sequence[Candidate[KeptChannels]], coupling: Coupling
) -> dict[str, tuple[int, ...]]:
    """What goes, by group; candidates at width zero are left out.

    Raises:
        PassError: a group does not have these channels.
    """
    removed = {}
    for candidate in candidates:
        if candidate.setting.mean:
            continue
        group = coupling.group(candidate.site.node)
        wrong = [c for c in candidate.setting.kept if not 0 <= c < group.width]
        if wrong:
            raise PassError(f"group '{group.name}' has {group.width} channels, not {wrong[0]}")
        removed[group.name] = tuple(sorted(set(range(group.width)) - set(candidate.setting.kept)))
    return removed


def dearer(one: Cost, other: Cost) -> bool:
    """Whether one costs more in any respect: a new bias can outweigh the loss of a channel."""
    more = (one.macs > other.macs, one.params > other.params)
    return any(more) or one.weight_bytes > other.weight_bytes


def widths(full: int, least: int, round_to: int) -> list[int]:
    """Widths on offer below `full`, falling.

    Args:
        full: the width as it is.
        least: how many channels have to stay.
        round_to: offer multiples of this; 0 offers about a dozen widths, even or multiples of a
            power of two, of which the latency gate keeps the steps that it measures.
    """
    if round_to:
        return [w for w in range(full - 1, max(1, least) - 1, -1) if w % round_to == 0]
    step = 1
    while full // (2 * step) >= _RUNGS:
        step *= 2
    return [w for w in range(full - 1, max(1, least) - 1, -1) if w % step == 0]
