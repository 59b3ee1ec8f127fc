"""The first stages of a job: load the model and the data, analyse, and do what changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from onnxcompress.analyse.answers import declared_answers, is_classifier
from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.analyse.sizes import random_feeds, representative_sizes
from onnxcompress.calibrate.collectors import with_collectors
from onnxcompress.calibrate.inputs import Inputs, open_inputs
from onnxcompress.config import Config
from onnxcompress.errors import DataError
from onnxcompress.graph.digest import model_digest
from onnxcompress.groundwork import Groundwork, lay_groundwork, replay_groundwork
from onnxcompress.journal import Journal
from onnxcompress.load.canonical import Canonical, canonicalise
from onnxcompress.load.source import ModelSource, Source, read_source
from onnxcompress.load.trust import trusted
from onnxcompress.plan.contract import Pass
from onnxcompress.plan.plan import Plan, described, read_plan
from onnxcompress.progress import Progress
from onnxcompress.runtime import Array, device_name, open_session
from onnxcompress.verify.metrics import Metric, parse_metric

_PROOF_SAMPLES = 8


@dataclass(frozen=True)
class Prepared:
    """A job after its first stages: everything known, nothing lossy decided.

    Attributes:
        source: the model as it was given.
        canonical: its canonical form.
        inputs: calibration inputs and those of the verdict.
        reference: facts about the canonical form of the model as it was given.
        original: facts about the canonical model that rewriting begins with.
        groundwork: the exact rewrites that were made of it.
        facts: facts about the model that these left, with statistics of the calibration inputs.
        passes: the passes of the job, or of the plan that is replayed.
        replay: the plan that is replayed, if one is.
        config: what was asked.
        journal: what a run before has found, and this one finds.
    """

    source: Source
    canonical: Canonical
    inputs: Inputs
    reference: Facts
    original: Facts
    groundwork: Groundwork
    facts: Facts
    passes: tuple[Pass[Any], ...]
    replay: Plan | None
    config: Config
    journal: Journal

    @property
    def changed(self) -> bool:
        """Whether the network that candidates are weighed on is not the one that was given.

        The canonical form alone may be quicker: ONNX Runtime optimises next to nothing of weights
        that are inputs with a default, as old exports list them.
        """
        return bool(self.canonical.notes or self.groundwork.rounds) or self.begun

    @property
    def begun(self) -> bool:
        """Whether an earlier stage has rewritten the model already."""
        return self.original is not self.reference


def prepare(
    source: ModelSource,
    config: Config,
    progress: Progress,
    *,
    start: onnx.ModelProto | None = None,
    open_journal: Callable[[Path | None, str], Journal] = Journal,
) -> Prepared:
    """Load the model and the data, analyse, and carry out exact rewrites.

    Args:
        source: the model.
        config: of the job.
        progress: told what happens.
        start: what rewriting begins with, where an earlier stage has rewritten the model already.
        open_journal: opens what a run before has found, given its folder and everything that
            findings depend on; may refuse to.
    """
    if config.metric is not None:
        parse_metric(config.metric)
    progress.stage("load")
    given = read_source(source)
    canonical = canonicalise(given.model)
    # The session says at once, before any work, whether the provider is there and takes the model.
    with open_session(given.model, config.execution):
        pass
    inputs = open_inputs(
        given.model,
        config.data,
        config.eval_data,
        preprocess=config.preprocess,
        seed=config.seed,
        shapes=config.shapes,
    )
    if inputs.synthetic:
        progress.note("calibrated on synthetic inputs: choices are guesses, real ones are better")
    sizes = representative_sizes(
        canonical.model, config.shapes, batch=config.batch, seen=inputs.sizes
    )
    feeds = random_feeds(given.model, sizes, seed=config.seed)
    canonical = trusted(given.model, canonical, feeds, config.execution)
    begun = canonical
    if start is not None:
        begun = trusted(start, canonicalise(start), feeds, config.execution)
    replay: Plan | None = None
    passes: Sequence[Pass[Any]] = config.passes
    if config.plan is not None:
        replay, passes = read_plan(config.plan)
    progress.stage("analyse")
    names = [node.name for node in begun.model.graph.node]
    original = analyse(begun.model, sizes, excluded=config.excluded(names))
    reference = original if start is None else analyse(canonical.model, sizes)
    for note in canonical.notes:
        progress.note(note)
    samples = proof_feeds(original, inputs, config)
    known = (reference, original) if start is not None else (original,)
    journal = open_journal(config.run, _context(known, inputs, passes, config))
    if journal.known:
        progress.note(f"going on in '{config.run}': {journal.known} findings are there already")
    if replay is not None:
        groundwork = replay_groundwork(original, replay.first, passes, config, samples)
    else:
        groundwork = lay_groundwork(original, passes, config, samples, journal, progress)
    facts = original
    if groundwork.rounds:
        facts = analyse(groundwork.model, sizes, excluded=original.excluded)
    if inputs.calibration is not None:
        facts = with_collectors(
            facts,
            inputs.calibration,
            config.execution,
            config.seed,
            patched=config.samples,
            cache=config.run / "moments" if config.run is not None else None,
            progress=progress,
        )
    return Prepared(
        given,
        canonical,
        inputs,
        reference,
        original,
        groundwork,
        facts,
        tuple(passes),
        replay,
        config,
        journal,
    )


def _context(
    known: Sequence[Facts], inputs: Inputs, passes: Sequence[Pass[Any]], config: Config
) -> str:
    """Everything that findings depend on; nothing is kept without a folder to keep it in."""
    if config.run is None:
        return ""
    names = (
        "targets",
        "max_drop",
        "min_snr",
        "confidence",
        "metric",
        "gated",
        "repair",
        "samples",
        "finetune",
        "then",
    )
    both = (inputs.calibration, inputs.verdict)
    return repr(
        [
            version("onnxcompress"),
            onnxruntime.__version__,
            device_name(config.execution),
            config.execution,
            *[model_digest(facts.model) for facts in known],
            sorted(known[-1].sizes.items()),
            sorted(known[-1].excluded),
            described(passes),
            config.plan.read_text(encoding="utf-8") if config.plan is not None else None,
            [(name, getattr(config, name)) for name in names],
            config.seed,
            [data.fingerprint() if data is not None else None for data in both],
        ]
    )


def proof_feeds(facts: Facts, inputs: Inputs, config: Config) -> list[dict[str, Array]]:
    """Inputs to prove rewrites on: some of the user's own; random ones where there are none."""
    data = inputs.calibration or inputs.verdict
    if data is None:
        return [random_feeds(facts.model, facts.sizes, seed=config.seed)]
    count = min(len(data), max(_PROOF_SAMPLES, data.fixed_batch or 1))
    return [feeds for feeds, _ in data.take(range(count)).batches(_PROOF_SAMPLES)]


def verdict_metric(prepared: Prepared) -> Metric | None:
    """The metric of the verdict; None without data."""
    if prepared.inputs.verdict is None:
        return None
    return chosen_metric(prepared.source.model, prepared.inputs, prepared.config.metric)


def chosen_metric(model: onnx.ModelProto, inputs: Inputs, asked: str | None) -> Metric:
    """The metric that is asked for; else top1 where there are labels, else agreement.

    Raises:
        DataError: it needs labels, and there are none.
    """
    data = inputs.verdict
    given = data is not None and data.labels is not None
    labelled = given and not inputs.held_out and is_classifier(declared_answers(model))
    metric = parse_metric(asked or ("top1" if labelled else "agreement"))
    if data is not None and metric.needs_labels and not given:
        raise DataError(
            f"metric {metric.name} needs labels, and {data.source} has none: add them as 'y', or "
            "use --metric agreement"
        )
    return metric
