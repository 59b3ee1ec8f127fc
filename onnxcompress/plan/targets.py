"""Targets: which fraction of the original may remain, of latency, MACs, parameters or size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnxcompress.errors import UsageError

KINDS = ("latency", "macs", "params", "size")
PRECISIONS = ("fp16", "int8")
"""What the result may be converted to."""
NEEDS_INPUTS = "--then int8 takes the ranges of activations from inputs: give --data"


def parse_target(text: str) -> tuple[str, float]:
    """Parse `KIND=FRACTION`, for example `macs=0.6`.

    Raises:
        UsageError: unknown kind, or a fraction outside (0, 1).
    """
    kind, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--target '{text}' is not understood: give KIND=FRACTION, like macs=0.6")
    try:
        fraction = float(value)
    except ValueError as error:
        raise UsageError(f"--target '{text}': '{value}' is not a number") from error
    return check_target(kind.strip(), fraction)


def check_target(kind: str, fraction: float) -> tuple[str, float]:
    """Check one target.

    Raises:
        UsageError: unknown kind, or a fraction outside (0, 1).
    """
    if kind not in KINDS:
        raise UsageError(f"target '{kind}' is unknown: the kinds are {', '.join(KINDS)}")
    if not 0.0 < fraction < 1.0:
        raise UsageError(
            f"target {kind}={fraction:g}: the fraction of the original that may remain lies "
            "between 0 and 1"
        )
    return kind, fraction


def check_targets(targets: Mapping[str, float] | Iterable[tuple[str, float]]) -> dict[str, float]:
    """Check several targets; each kind may be given once.

    Raises:
        UsageError: a target makes no sense or is given twice.
    """
    pairs = targets.items() if isinstance(targets, Mapping) else targets
    checked: dict[str, float] = {}
    for kind, fraction in pairs:
        kind, fraction = check_target(kind, fraction)
        if kind in checked:
            raise UsageError(f"target '{kind}' is given twice")
        checked[kind] = fraction
    return checked
