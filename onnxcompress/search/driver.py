"""A search from end to end: superblocks, estimates, a selection, networks, latencies, a table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from onnxcompress.calibrate.collectors import with_collectors
from onnxcompress.config import Config
from onnxcompress.errors import BoundError, UsageError
from onnxcompress.graph.digest import model_digest
from onnxcompress.journal import Journal, choice_name
from onnxcompress.load.source import ModelSource
from onnxcompress.numerics.blas_threads import one_blas_pool
from onnxcompress.plan.options import Options, collect
from onnxcompress.plan.reasons import most_frequent
from onnxcompress.plan.stored import read_options, stored_options
from onnxcompress.preparation import prepare, verdict_metric
from onnxcompress.progress import Progress, Silent
from onnxcompress.report.build import environment
from onnxcompress.report.write import model_bytes
from onnxcompress.retraining import Retraining
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.search.constraints import parse_constraint
from onnxcompress.search.estimates import Estimates, by_superblock, count, in_proportion, singles
from onnxcompress.search.executors import Executor, Serial
from onnxcompress.search.explore import candidates, selected
from onnxcompress.search.ledger import Ledger
from onnxcompress.search.results import Family, Row
from onnxcompress.search.space import Space, Vector, chosen_by, labelled
from onnxcompress.search.store import Store
from onnxcompress.search.timings import BRIEF, LONG
from onnxcompress.search.workshop import Found, Shared, Task
from onnxcompress.workbench import Workbench

OWNER = "scbp"
_HELD = 2**31
"""Bytes of samples that are sent along to other machines; more are read there."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a search, besides the job's options.

    Attributes:
        folder: where models, tables and the store go.
        constraint: on combinations of ratios, as text.
        count: how many networks are built and measured, at most.
        also: ratios per superblock of networks that are built in any case.
        executor: where they are built.
        force: begin again where the folder holds another search.
    """

    folder: Path
    constraint: str = "none"
    count: int = 12
    also: tuple[tuple[float, ...], ...] = ()
    executor: Executor = field(default_factory=Serial)
    force: bool = False


@one_blas_pool()
def search(
    source: ModelSource, config: Config, request: Request, progress: Progress | None = None
) -> Family:
    """Derive a family of networks from one.

    Args:
        source: the seed network.
        config: of the job; among its passes is `scbp`. Its run folder is that of the search.
        request: what is asked of the search.
        progress: told what happens.

    Raises:
        UsageError: there are no calibration inputs, an option makes no sense, or the folder holds
            another search.
        BoundError: no superblock can be narrowed.
        OnnxCompressError: whatever else is wrong, with its exit code.
    """
    if config.data is None:
        raise UsageError("a search ranks networks by what they lose: give --data")
    if request.executor.elsewhere and config.execution.device == "cuda":
        raise UsageError("--executor ray goes with --providers cpu: its tasks get no GPU")
    found = Search(source, config, request, progress or Silent())
    try:
        return found.run()
    finally:
        found.ledger.store.close()


class Search:
    """One search, with all that it knows.

    Args:
        source: the seed network.
        config: of the job.
        request: what is asked of the search.
        progress: told what happens.

    Attributes:
        space: all combinations of ratios.
        ledger: builds and times combinations, and remembers them.
    """

    def __init__(
        self, source: ModelSource, config: Config, request: Request, progress: Progress
    ) -> None:
        self._request, self._progress = request, progress
        config = replace(config, run=request.folder / "run")
        stores: list[Store] = []

        def open_journal(folder: Path | None, context: str) -> Journal:
            # A search that is refused leaves the journal of the one before as it is.
            stores.append(Store(request.folder, context, force=request.force))
            return Journal(folder, context)

        self._prepared = prepare(source, config, progress, open_journal=open_journal)
        if config.finetune is not None:
            # What it lacks is said before the work, not after it.
            Retraining(self._prepared, config.finetune, progress)
        progress.stage("superblocks")
        self._owner = next(owner for owner in self._prepared.passes if owner.name == OWNER)
        options = self._collected()
        if not options.sites:
            raise BoundError(f"nothing could be gained: {most_frequent(options.refusals)}")
        self._sites = options.sites
        self._names = tuple(str(offers[0].setting.superblock) for offers in self._sites)
        ratios = tuple(tuple(float(c.setting.ratio) for c in offers) for offers in self._sites)
        self.space = Space(ratios, parse_constraint(request.constraint, self._names))
        self._check_structure(stores[0])
        self._bench = Workbench.of(self._prepared, progress)
        self._seen: dict[str, tuple[float, float]] = {}
        self.ledger = Ledger(
            request.folder, stores[0], request.executor, self._packed(), self.space, progress
        )

    def run(self) -> Family:
        """Estimate, select, build and measure."""
        estimates = self.estimates()
        self._progress.stage("select")
        config = self._prepared.config
        every = candidates(self.space, estimates, config.seed)
        some = selected(every, estimates, self._request.count, config.seed)
        chosen = list(dict.fromkeys([*map(self.space.vector, self._request.also), *some]))
        self._progress.stage("build networks")
        found = self.ledger.done([Task(v, briefly=False) for v in chosen], self._told)
        self._progress.stage("measure latency")
        latencies = self.ledger.timed("latency", chosen, self.ledger.model, LONG)
        expected = estimates.objectives(np.array(chosen, dtype=np.intp))
        rows = [
            Row(
                ratios=self.space.values(vector),
                name=self.ledger.file(vector),
                figures=found[vector]["figures"],
                error=found[vector]["error"],
                latency=latencies[vector],
                expected=(float(one[0]), float(one[1]), float(one[2])),
                seconds=found[vector]["seconds"],
            )
            for vector, one in zip(chosen, expected, strict=True)
        ]
        prepared = self._prepared
        total = prepared.original.total()
        return Family(
            rows=tuple(sorted(rows, key=lambda row: -float(row.figures["file_bytes"]))),
            superblocks=tuple(
                {
                    "name": name,
                    "layers": [layer for layer, _ in offers[0].setting.kept],
                    "ratios": [candidate.setting.ratio for candidate in offers],
                }
                for name, offers in zip(self._names, self._sites, strict=True)
            ),
            allowed={"combinations": self.space.size, "looked_at": len(every)},
            original={
                "model": prepared.source.label,
                "params": total.params,
                "macs": total.macs,
                "file_bytes": prepared.source.file_bytes,
            },
            environment=environment(prepared.config.execution, prepared.config.seed),
        )

    def estimates(self) -> Estimates:
        """What combinations are expected to be like, from every superblock at every ratio."""
        vectors = singles(self._sites)
        self._progress.stage("try superblocks")
        tried = self.ledger.done([Task(vector, briefly=True) for vector in vectors])
        counted = count(self._sites, self._owner, self._prepared.facts)
        self._progress.stage("time superblocks")
        whole = tuple(0 for _ in self._sites)
        times = self.ledger.timed("time", [whole, *vectors], self._unrepaired, BRIEF)
        first = {vector: next(iter(kinds.values())) for vector, kinds in times.items()}
        # Ratios were taken side by side; the original's milliseconds at different times.
        original_ms = float(np.median([one["original_ms"] for one in first.values()]))
        all_of_it = first[whole]["ratio"]
        saved = by_superblock(self._sites, lambda v: (all_of_it - first[v]["ratio"]) * original_ms)
        return Estimates(
            by_superblock(self._sites, lambda v: float(tried[v]["error"])),
            counted,
            in_proportion(saved, counted["macs"]),
            self._prepared.facts.model.ByteSize(),
            all_of_it * original_ms,
        )

    def _collected(self) -> Options:
        """What the pass offers; found once, because ranking channels takes its time."""
        prepared = self._prepared
        found = prepared.journal.recall(
            "options", lambda: stored_options(collect(prepared.facts, [self._owner]), {})
        )
        return read_options(found, {self._owner.name: self._owner})[0]

    def _check_structure(self, store: Store) -> None:
        """Refuse findings about other superblocks than these.

        Which exact rewrites were worth it was timed, and is in the journal. Without that file other
        superblocks may come out, and findings that are kept by numbers mean something else.

        Raises:
            UsageError: the store has some.
        """
        rounds = [candidate for one in self._prepared.groundwork.rounds for candidate in one]
        present = choice_name([*rounds, *(c for offers in self._sites for c in offers)])
        known = store.get("superblocks")
        if known is not None and known != present:
            raise UsageError(
                f"'{self._request.folder}' holds a search of other superblocks, and what it knew "
                "of the network (run/journal.jsonl) is gone: choose another folder"
            )
        store.put("superblocks", present)

    def _packed(self) -> Shared:
        """What workers need; where they may be on other machines, with the samples in it."""
        prepared, config = self._prepared, self._prepared.config
        inputs = prepared.inputs
        if inputs.calibration is None:
            raise UsageError("a search ranks networks by what they lose: give --data")
        if self._request.executor.elsewhere:
            verdict = inputs.verdict.held(_HELD) if inputs.verdict is not None else None
            inputs = replace(inputs, calibration=inputs.calibration.held(_HELD), verdict=verdict)
        metric = verdict_metric(prepared)
        if metric is None or inputs.calibration is None:
            raise UsageError("a search judges networks on inputs of their own: give --eval")
        # Channels are ranked by now: what workers collect is of the networks that they build.
        facts = with_collectors(
            prepared.facts,
            inputs.calibration,
            config.execution,
            config.seed,
            patched=config.samples,
        )
        # The samples are in `inputs`, and nothing is kept by workers.
        finetune = config.finetune
        config = replace(config, data=None, eval_data=None, run=None, finetune=None)
        alone = replace(
            prepared, inputs=inputs, facts=facts, config=config, journal=Journal(None, "")
        )
        digest = model_digest(prepared.original.model)
        return Shared(alone, self._sites, metric, digest, finetune)

    def _unrepaired(self, vector: Vector) -> bytes:
        """A combination as quick as it will be, and not fitted."""
        chosen = chosen_by(vector, self._sites)
        model = self._prepared.facts.model
        if chosen:
            model = rewrite(model, chosen, self._bench.passes, memo=self._bench.memo).model
        return model_bytes(self._bench.mender.unfitted(model, chosen))

    def _told(self, found: Found) -> str:
        """A network as it comes in, and the best of those that came in so far."""
        drop, octets = found.figures["drop"], found.figures["file_bytes"]
        lost, unit = (found.error, "error") if drop is None else (drop["points"], "points lost")
        name = labelled(self.space.values(found.task.vector))
        self._seen[name] = float(lost), octets / self._prepared.source.file_bytes
        told = {key: f"{loss:.3g} {unit} at {size:.3f}" for key, (loss, size) in self._seen.items()}
        least = min(self._seen, key=lambda one: self._seen[one][0])
        smallest = min(self._seen, key=lambda one: self._seen[one][1])
        return (
            f"{name} {told[name]} of the file; so far the least is lost by {least} ({told[least]}),"
            f" the smallest is {smallest} ({told[smallest]})"
        )
