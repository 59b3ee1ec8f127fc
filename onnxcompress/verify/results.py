"""What a comparison yields: a metric with its interval, a drop, a judgement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxcompress.verify.intervals import Interval, json_number


@dataclass(frozen=True)
class MetricResult:
    """A metric's value over ``n`` samples: the mean score, or dB for a signal-to-noise ratio."""

    name: str
    value: float
    interval: Interval
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The result as the report holds it."""
        ends = self.interval.bounds()
        return {"name": self.name, "value": json_number(self.value), "ci95": ends, "n": self.n}


@dataclass(frozen=True)
class Drop:
    """What was lost, in points: 100·(mean score before - mean score after); positive is a loss.

    The disagreement counts exist only where every score is right or wrong.
    """

    points: float
    interval: Interval
    method: str
    n: int
    only_before_right: int | None = None
    only_after_right: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The drop as the report holds it."""
        return {
            "points": json_number(self.points),
            "ci95": self.interval.bounds(),
            "method": self.method,
            "n": self.n,
            "only_before_right": self.only_before_right,
            "only_after_right": self.only_after_right,
        }


@dataclass(frozen=True)
class Judgement:
    """Whether the bound is met, and the one sentence that says why."""

    ok: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The judgement as JSON-serialisable values."""
        return {"ok": self.ok, "reason": self.reason}
