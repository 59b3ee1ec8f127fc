"""Union-find over channel ids, with the reason why a class of channels cannot be removed."""

from __future__ import annotations

import numpy as np

from onnxcompress.analyse.coupling.flow import FIXED, Ids


class Channels:
    """Hands out ids, unites them into classes, and remembers which classes are blocked and why."""

    def __init__(self) -> None:
        self._parents = [FIXED]
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Ids:
        """Ids that nobody has yet."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def unite(self, one: Ids, other: Ids, fixed: str) -> None:
        """Unite element by element.

        Args:
            one: ids.
            other: ids, of the same shape.
            fixed: why a channel is blocked that meets an element which belongs to none.
        """
        # Each pair as one number: many elements, few pairs.
        base = len(self._parents)
        first, second = np.divmod(np.unique(np.ravel(one) * base + np.ravel(other)), base)
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            if a == b:
                continue
            if FIXED in (a, b):
                self._reasons.setdefault(self._find(max(a, b)), fixed)
            else:
                self._join(a, b)

    def block(self, ids: Ids, reason: str) -> None:
        """Say that the channels behind these ids cannot be removed; the first reason counts."""
        for channel in np.unique(ids).tolist():
            if channel != FIXED:
                self._reasons.setdefault(self._find(channel), reason)

    def roots(self, ids: Ids) -> Ids:
        """The representative of every id's class."""
        flat = np.unique(ids)
        found = np.array([self._find(channel) for channel in flat.tolist()], dtype=np.int64)
        return found[np.searchsorted(flat, ids)] if flat.size else ids

    def reason(self, channel: int) -> str | None:
        """Why the class of `channel` cannot be removed, or None if it can."""
        return self._reasons.get(self._find(channel))

    def _find(self, channel: int) -> int:
        parents = self._parents
        root = channel
        while parents[root] != root:
            root = parents[root]
        while parents[channel] != root:
            parents[channel], channel = root, parents[channel]
        return root

    def _join(self, one: int, other: int) -> None:
        a, b = self._find(one), self._find(other)
        if a == b:
            return
        # The smaller id leads, so that results do not depend on the order of unions.
        low, high = min(a, b), max(a, b)
        self._parents[high] = low
        reason = self._reasons.pop(high, None)
        if reason is not None:
            self._reasons.setdefault(low, reason)
