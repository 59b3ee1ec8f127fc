"""How the engine tells what it is doing; the command line draws it, everyone else may ignore it."""

from __future__ import annotations

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
