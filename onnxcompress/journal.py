"""What a job has found so far, on disk: a run that was killed goes on from there.

One line per finding, appended and flushed as soon as it is known; a line that was cut off by the
end of the process is dropped. Findings of another job (other model, data, options or versions) are
not believed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnxcompress.errors import OutputError
from onnxcompress.latency.interleave import PATIENCE, QuietHours, Timing
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.gate import candidate_key

_FILE = "journal.jsonl"


class Journal:
    """Findings of one job, by name, as plain values.

    Args:
        folder: where they are kept; None keeps them in memory only.
        context: everything that findings depend on, as text.
    """

    def __init__(self, folder: Path | None, context: str) -> None:
        self.folder = folder
        self.context = hashlib.sha256(context.encode()).hexdigest()
        """Names the job: the same for the same model, data, options and versions."""
        self._findings: dict[str, Any] = {}
        self._path = folder / _FILE if folder is not None else None
        if self._path is not None and not self._read(self._path):
            self._begin(self._path)
        self.known = len(self._findings)
        """How many findings were there already."""

    def recall(self, name: str, find: Callable[[], Any]) -> Any:
        """A finding; found, and written down at once, where it is not known.

        Args:
            name: what it is called; must name everything that it depends on within the job.
            find: finds it, as values that JSON can hold.
        """
        if name not in self._findings:
            # What was just found and what is read later are the very same values.
            self._findings[name] = json.loads(json.dumps(find()))
            self._append({"name": name, "value": self._findings[name]})
        return self._findings[name]

    def knows(self, name: str) -> bool:
        """Whether a finding is there."""
        return name in self._findings

    def file(self, name: str) -> Path | None:
        """Where this job keeps a model; None without a folder."""
        if self.folder is None:
            return None
        return self.folder / "models" / f"{self.context[:16]}-{name}"

    def _read(self, path: Path) -> bool:
        """Take over what a run before has written; False where that was another job."""
        try:
            text = path.read_text(encoding="utf-8")
            lines = text.splitlines()
            if not lines or json.loads(lines[0]).get("context") != self.context:
                return False
        except (OSError, ValueError, AttributeError):
            return False
        whole = [lines[0]]
        for line in lines[1:]:
            try:
                entry = json.loads(line)
                self._findings[entry["name"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                break
            whole.append(line)
        if len(whole) < len(lines) or not text.endswith("\n"):
            _write(path, "".join(f"{line}\n" for line in whole), "w")
        return True

    def _begin(self, path: Path) -> None:
        _write(path, json.dumps({"context": self.context}) + "\n", "w")

    def _append(self, entry: dict[str, Any]) -> None:
        if self._path is not None:
            _write(self._path, json.dumps(entry) + "\n", "a")


class RecordedHours(QuietHours):
    """Measurements that are taken once in a job: what is decided by them is decided alike again.

    Args:
        hours: when to measure.
        journal: keeps the times.
        name: of the measurement.
    """

    def __init__(self, hours: QuietHours, journal: Journal, name: str) -> None:
        super().__init__()
        self._hours, self._journal, self._name = hours, journal, name

    def measure(
        self,
        take: Callable[[], list[Timing]],
        doubt: Callable[[list[Timing]], bool] | None = None,
        *,
        patience: int = PATIENCE,
    ) -> list[Timing]:
        """The measurement as it was taken, or taken now."""

        def now() -> list[tuple[tuple[float, ...], ...]]:
            return [timing.rounds for timing in self._hours.measure(take, doubt, patience=patience)]

        found = self._journal.recall(self._name, now)
        return [Timing(tuple(tuple(samples) for samples in rounds)) for rounds in found]


def choice_name(chosen: Sequence[Candidate[Any]]) -> str:
    """A short name for a choice, the same in every run."""
    keys = json.dumps([candidate_key(candidate) for candidate in chosen])
    return hashlib.sha256(keys.encode()).hexdigest()[:24]


def _write(path: Path, text: str, mode: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"journal '{path}' cannot be written: {error.strerror}") from error
