"""Results that a job computes once: a bounded memory for expensive decompositions.

Planning rewrites the same layer many times (timing, probes, trials, the result). A memo belongs
to one job on one model, so a node's name stands for its weight.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

T = TypeVar("T")

DEFAULT_BYTES = 2**29


class Memo:
    """Keeps the most recently used results within a bound of bytes."""

    def __init__(self, limit_bytes: int = DEFAULT_BYTES) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._entries: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()

    def recall(self, key: Hashable, compute: Callable[[], T], size: Callable[[T], int]) -> T:
        """The result for `key`, computed if it is not (or no longer) held.

        Args:
            key: what identifies the result within the job.
            compute: makes the result; must not depend on anything but the key.
            size: bytes of a result.
        """
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key][0]  # type: ignore[return-value]
        value = compute()
        octets = size(value)
        self._entries[key] = (value, octets)
        self._held += octets
        for old in [k for k, (_, size_of) in self._entries.items() if size_of and k != key]:
            if self._held <= self._limit:
                break
            self._held -= self._entries.pop(old)[1]
        return value
