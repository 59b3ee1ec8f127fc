"""What is known of combinations, and what is found where nothing is known; every finding kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcompress.analyse.sizes import random_feeds
from onnxcompress.latency.interleave import Budget
from onnxcompress.progress import Progress
from onnxcompress.report.write import commit, model_bytes
from onnxcompress.search.executors import Executor
from onnxcompress.search.results import plan_name
from onnxcompress.search.space import Space, Vector, labelled
from onnxcompress.search.store import Store
from onnxcompress.search.timings import AT_ONCE, Timed
from onnxcompress.search.workshop import Found, Shared, Task

_LONGEST = 120
"""Characters of a file's name."""


@dataclass(frozen=True)
class Ledger:
    """Findings about combinations.

    Attributes:
        folder: of the search; models go there.
        store: keeps findings.
        executor: finds what is missing.
        shared: what that takes.
        space: says what combinations are called.
        progress: told what comes in.
    """

    folder: Path
    store: Store
    executor: Executor
    shared: Shared
    space: Space
    progress: Progress

    def done(
        self, tasks: Sequence[Task], tell: Callable[[Found], str] | None = None
    ) -> dict[Vector, dict[str, Any]]:
        """What tasks found, now or in an earlier run.

        Args:
            tasks: what is to be known.
            tell: a finding in words, as soon as it is in.
        """
        known = {task.vector: self._known(task) for task in tasks}
        missing = [task for task in tasks if known[task.vector] is None]
        before, started = len(tasks) - len(missing), time.perf_counter()
        self.progress.step(before, len(tasks))
        coming = self.executor.run(self.shared, missing) if missing else iter(())
        for number, found in enumerate(coming, 1):
            known[found.task.vector] = self._keep(found)
            self.progress.step(before + number, len(tasks))
            if tell is not None:
                rest = len(missing) - number
                minutes = rest * (time.perf_counter() - started) / number / 60
                left = f", about {minutes:.0f} min left" if rest else ""
                self.progress.note(f"{before + number} of {len(tasks)}{left}: {tell(found)}")
        return {vector: value for vector, value in known.items() if value is not None}

    def timed(
        self,
        what: str,
        vectors: Sequence[Vector],
        model: Callable[[Vector], bytes],
        budget: Budget,
    ) -> dict[Vector, dict[str, Any]]:
        """Latencies by kind of machine, measured where they are not known.

        Args:
            what: names the kind of measurement.
            vectors: of which combinations.
            model: a combination's model, serialised.
            budget: how long to measure.
        """
        names = {vector: f"{what} " + "-".join(map(str, vector)) for vector in vectors}
        missing = [vector for vector in vectors if self.store.get(names[vector]) is None]
        prepared = self.shared.prepared
        config, original = prepared.config, prepared.source.model
        feeds = random_feeds(original, prepared.facts.sizes, seed=config.seed)
        for at in range(0, len(missing), AT_ONCE):
            some = missing[at : at + AT_ONCE]
            models = [model(vector) for vector in some]
            call = Timed(
                model_bytes(original), models, feeds, config.execution, config.seed, budget
            )
            kinds = self.executor.alone(call, config.execution)
            for place, vector in enumerate(some):
                found = {kind: each[place] for kind, each in kinds.items()}
                self.store.put(names[vector], found)
            self.progress.step(min(at + AT_ONCE, len(missing)), len(missing))
        return {vector: dict(self.store.get(name) or {}) for vector, name in names.items()}

    def model(self, vector: Vector) -> bytes:
        """A combination's model as it was written."""
        return (self.folder / self.file(vector)).read_bytes()

    def file(self, vector: Vector) -> str:
        """What a combination's model is called."""
        name = f"c{labelled(self.space.values(vector))}"
        if len(name) > _LONGEST:
            name = "c" + hashlib.sha256(name.encode()).hexdigest()[:16]
        return f"{name}.onnx"

    def _known(self, task: Task) -> dict[str, Any] | None:
        value: dict[str, Any] | None = self.store.get(task.key)
        if value is None or task.briefly:
            return value
        try:
            held = hashlib.sha256(self.model(task.vector)).hexdigest()
        except OSError:
            return None
        # A file that somebody has changed since is made again.
        return value if held == value["digest"] else None

    def _keep(self, found: Found) -> dict[str, Any]:
        """A network's files first, then the finding: what the store knows is there."""
        value: dict[str, Any] = {"error": found.error}
        if not found.task.briefly:
            value |= {
                "figures": dict(found.figures),
                "seconds": found.seconds,
                "digest": hashlib.sha256(found.model).hexdigest(),
            }
            name = self.file(found.task.vector)
            commit(
                [
                    (self.folder / name, lambda file: file.write(found.model)),
                    (self.folder / plan_name(name), lambda file: file.write(found.plan.encode())),
                ]
            )
        self.store.put(found.task.key, value)
        return value
