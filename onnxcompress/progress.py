"""How the engine tells what it is doing; the command line draws it, everyone else may ignore it."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Protocol


class Progress(Protocol):
    """Receives the stages of a job as they begin and advance."""

    def stage(self, name: str) -> None:
        """A stage begins; the one before it has ended."""

    def step(self, done: int, total: int) -> None:
        """The present stage has advanced to `done` of `total`."""

    def note(self, words: str) -> None:
        """Something worth telling, in one line."""


class Silent:
    """A Progress that tells nobody."""

    def stage(self, name: str) -> None:
        """Ignore it."""

    def step(self, done: int, total: int) -> None:
        """Ignore it."""

    def note(self, words: str) -> None:
        """Ignore it."""


class Timekeeper:
    """Hands everything on, and adds up how long each stage took.

    Args:
        inner: who is told.
    """

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._seconds: dict[str, float] = defaultdict(float)
        self._stage, self._since = "", time.perf_counter()

    def stage(self, name: str) -> None:
        """A stage begins; the one before it has ended."""
        self._close()
        self._stage = name
        self._inner.stage(name)

    def step(self, done: int, total: int) -> None:
        """The present stage has advanced."""
        self._inner.step(done, total)

    def note(self, words: str) -> None:
        """Something worth telling."""
        self._inner.note(words)

    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds per stage so far, in the order in which stages first began."""
        self._close()
        return dict(self._seconds)

    def _close(self) -> None:
        now = time.perf_counter()
        if self._stage:
            self._seconds[self._stage] += now - self._since
        self._since = now
