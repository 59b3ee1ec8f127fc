"""How far below its targets a plan is to end, by what verdicts found of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping

from onnxcompress.verify.verdict import Verdict

_NOISE = 0.01
"""Fraction of the original's latency by which a plan ends below a target, because times vary."""

_MOST_NOISE = 0.15
"""The same at most: what is missed by more than that, times alone do not explain."""


class Margins:
    """Fractions of the original that are kept below targets, per kind; they grow with misses."""

    def __init__(self, targets: Mapping[str, float]) -> None:
        self._targets = targets
        self._kept: dict[str, float] = {"latency": _NOISE}
        self._misses = 0

    @property
    def kept(self) -> Mapping[str, float]:
        """By kind of target; none where it is not named."""
        return self._kept

    @property
    def limits(self) -> dict[str, float]:
        """What fraction of the original may remain, by kind of target."""
        return {k: fraction - self._kept.get(k, 0.0) for k, fraction in self._targets.items()}

    def missed(self, verdict: Verdict) -> dict[str, float]:
        """By how much the targets were missed that were."""
        excess = {k: verdict.remaining(k) - fraction for k, fraction in self._targets.items()}
        return {kind: more for kind, more in excess.items() if more > 0.0}

    def widen(self, missed: Mapping[str, float], step: int) -> None:
        """Keep farther below.

        Args:
            missed: by how much, per kind of target.
            step: how often this was asked for the same verdict.
        """
        self._misses += not step
        # At first new times alone may do; what is missed again is missed by more than chance.
        share = 0.5 * 1.5**step if step else float(self._misses > 1)
        for kind, excess in missed.items():
            margin = self._kept.get(kind, 0.0) + share * excess
            self._kept[kind] = min(margin, _MOST_NOISE) if kind == "latency" else margin
