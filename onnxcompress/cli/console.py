"""What a person sees while a job runs: stages, bars and notes, all on standard error."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from onnxcompress import progress as protocol

errors = Console(stderr=True, highlight=False, soft_wrap=True)
output = Console(highlight=False, soft_wrap=True)


class Bars(AbstractContextManager["Bars"]):
    """Draws the stages of a job; only notes where standard error is not a terminal."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
        )
        self._task = self._bars.add_task("", total=None, visible=False)

    def __enter__(self) -> Bars:
        if errors.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Stopping bars that were never started prints an empty line.
        if errors.is_terminal:
            self._bars.stop()

    def stage(self, name: str) -> None:
        """Show the stage that begins."""
        if errors.is_terminal:
            self._bars.reset(self._task, description=name, total=None, visible=True)

    def step(self, done: int, total: int) -> None:
        """Advance the bar of the present stage."""
        self._bars.update(self._task, completed=done, total=total)

    def note(self, words: str) -> None:
        """Print a note above the bars."""
        errors.print(f"note: {words}", style="dim", markup=False)


class Quiet(AbstractContextManager["Quiet"], protocol.Silent):
    """Draws nothing."""

    def __exit__(self, *exception: object) -> None:
        """Nothing to stop."""


def progress_for(*, quiet: bool) -> Bars | Quiet:
    """Bars, or nothing."""
    return Quiet() if quiet else Bars()
