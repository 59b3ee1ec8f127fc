"""Where combinations are built: the same code in this process, in another, and on another machine.

What all of them share (the model, the data, candidates) is sent once. Whatever is built
depends on that and on the combination alone, so that it does not matter where it was built, or how
often: numbers are added up by one thread, whatever a machine has.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx
from threadpoolctl import threadpool_limits

from onnxcompress.analyse.facts import analyse
from onnxcompress.errors import PassError
from onnxcompress.load.checks import check_structure, check_values
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.plan import Plan, described
from onnxcompress.preparation import Prepared, proof_feeds
from onnxcompress.progress import Silent
from onnxcompress.report.write import model_bytes
from onnxcompress.retraining import Retraining
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.rewrite.proof import Bench, prove
from onnxcompress.search.space import Vector, chosen_by
from onnxcompress.verify.compare import compare
from onnxcompress.verify.interface import interface_differences
from onnxcompress.verify.metrics import Metric
from onnxcompress.workbench import Workbench


@dataclass(frozen=True)
class Shared:
    """All that building takes besides the combination.

    Attributes:
        prepared: the job, with its inputs.
        sites: candidates per superblock, the first of which takes nothing.
        metric: what is judged by.
        digest: of the canonical model, for plans.
        finetune: how long networks are trained, as text; None leaves them as repair does.
    """

    prepared: Prepared
    sites: tuple[tuple[Candidate[Any], ...], ...]
    metric: Metric
    digest: str
    finetune: str | None = None


@dataclass(frozen=True)
class Task:
    """One combination.

    Attributes:
        vector: per superblock, which of its candidates.
        briefly: look at the calibration inputs only, after a brief repair; else repair thoroughly,
            judge, and hand the model over.
    """

    vector: Vector
    briefly: bool

    @property
    def key(self) -> str:
        """What it is called in the store."""
        return ("trial " if self.briefly else "network ") + "-".join(map(str, self.vector))


@dataclass(frozen=True)
class Found:
    """What became of a combination.

    Attributes:
        task: the combination.
        error: relative squared error of the outputs: on calibration inputs where it was tried
            briefly, else on the inputs of the verdict.
        figures: numbers, words and intervals as they are reported; none of a brief trial.
        seconds: that it took.
        model: serialised; empty after a brief trial.
        plan: the plan file that makes the same model again; empty after a brief trial.
    """

    task: Task
    error: float
    figures: Mapping[str, Any]
    seconds: float
    model: bytes = b""
    plan: str = ""


class Workshop:
    """Builds combinations; made once per process.

    Args:
        shared: all that building takes.
    """

    def __init__(self, shared: Shared) -> None:
        execution = replace(shared.prepared.config.execution, threads=1)
        config = replace(shared.prepared.config, execution=execution)
        self._shared = shared
        self._prepared = replace(shared.prepared, config=config)
        self._bench = Workbench.of(self._prepared, Silent())

    def __call__(self, task: Task) -> Found:
        """Build one combination.

        Raises:
            OnnxCompressError: a rewrite fails, or what comes out does not run, has values that are
                no numbers, or another interface than the seed network.
        """
        started = time.perf_counter()
        chosen = chosen_by(task.vector, self._shared.sites)
        with threadpool_limits(limits=1, user_api="blas"):
            found = self._tried(task, chosen) if task.briefly else self._built(task, chosen)
        return replace(found, seconds=time.perf_counter() - started)

    def _tried(self, task: Task, chosen: tuple[Candidate[Any], ...]) -> Found:
        return Found(task, self._bench.trial(chosen).error, {}, 0.0)

    def _built(self, task: Task, chosen: tuple[Candidate[Any], ...]) -> Found:
        prepared, bench = self._prepared, self._bench
        facts, inputs, config = prepared.facts, prepared.inputs, prepared.config
        rewritten = prove(
            rewrite(facts.model, chosen, bench.passes, strict=True, memo=bench.memo),
            bench.passes,
            Bench(facts.model, proof_feeds(facts, inputs, config), 1, bench.memo),
        )
        repaired = bench.repairs()(rewritten)
        model = repaired.model if repaired is not None else rewritten.model
        trained = {}
        if self._shared.finetune is not None:
            result = Retraining(prepared, self._shared.finetune, Silent())(model)
            model, trained = result.model, {"finetune": result.to_dict()}
        check_structure(model)
        check_values(model)
        differences = interface_differences(prepared.source.model, model)
        if differences:
            raise PassError(f"{task.key}: {differences[0]}")
        plan = Plan(
            model_digest=self._shared.digest,
            passes=described(prepared.passes),
            chosen=rewritten.applied,
            first=prepared.groundwork.rounds,
            refusals=rewritten.rolled_back,
            targets={},
            gate=False,
        )
        error, figures = self._judged(model)
        return Found(task, error, figures | trained, 0.0, model_bytes(model), plan.to_json())

    def _judged(self, model: onnx.ModelProto) -> tuple[float, dict[str, Any]]:
        """What the inputs of the verdict say, and what is counted."""
        prepared = self._prepared
        assert prepared.inputs.verdict is not None  # noqa: S101  (a search is refused without)
        comparison = compare(
            prepared.source.model,
            model,
            prepared.inputs.verdict,
            self._shared.metric,
            prepared.config.execution,
            seed=prepared.config.seed,
        )
        drop, cost = comparison.drop, analyse(model, prepared.facts.sizes).total()
        return float(comparison.error), {
            "metric": comparison.after.to_dict(),
            "before": comparison.before.to_dict(),
            "drop": drop.to_dict() if drop is not None else None,
            "params": cost.params,
            "macs": cost.macs,
            "file_bytes": model.ByteSize(),
        }
