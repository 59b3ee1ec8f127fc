"""Two networks on the same inputs, batch by batch: agreement, task metric, numeric fidelity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod

import onnx

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.samples import sample_sizes
from onnxcompress.errors import DataError
from onnxcompress.runtime import Array, Execution, open_session
from onnxcompress.verify.comparison import Comparison, Evaluation
from onnxcompress.verify.metrics import Metric
from onnxcompress.verify.results import MetricResult

_BATCH_ELEMENTS = 2**21
_MAX_BATCH = 128


def batch_size(data: Dataset) -> int:
    """A batch that keeps the inputs near 8 MB, so that activations stay affordable."""
    elements = max(1, sum(prod(shape[1:]) for shape in sample_sizes(data).values()))
    return max(1, min(_MAX_BATCH, _BATCH_ELEMENTS // elements))


@contextmanager
def _told_of(data: Dataset) -> Iterator[None]:
    """Have errors about samples or labels name the data that they come from."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{data.purpose} {data.source}: {error}") from error


@dataclass(frozen=True)
class Answers:
    """What a network answers to some data, to compare many candidates with.

    Attributes:
        names: of its outputs.
        batches: outputs in graph order, batch by batch.
    """

    names: tuple[str, ...]
    batches: Sequence[Sequence[Array]]

    def in_turn(self) -> Callable[[Mapping[str, Array]], Sequence[Array]]:
        """What stands for the network while the same data goes by: one batch after the other."""
        rest = iter(self.batches)
        return lambda _feeds: next(rest)


def answers_of(
    model: onnx.ModelProto, data: Dataset, execution: Execution, *, most_bytes: int
) -> Answers | None:
    """Run a network over `data` and keep what it answers; None where that is more than allowed.

    Raises:
        DataError: the data does not fit.
        ModelError: the network fails while running.
    """
    found: list[list[Array]] = []
    held = 0
    with open_session(model, execution) as session:
        for feeds, _ in data.batches(batch_size(data)):
            found.append(session.run(feeds))
            held += sum(output.nbytes for output in found[-1])
            if held > most_bytes:
                return None
        return Answers(session.output_names, found)


def compare(
    original: onnx.ModelProto | Answers,
    candidate: onnx.ModelProto,
    data: Dataset,
    metric: Metric,
    execution: Execution,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Run both networks over `data` and accumulate their comparison.

    Args:
        original: the network, or what it answers to the same data.
        candidate: the network held against it.
        data: inputs, with labels where the metric needs them.
        metric: what is scored.
        execution: provider and threads.
        seed: the bootstrap's.
        progress: told how many samples are done.

    Raises:
        DataError: the data does not fit, or the metric needs labels that are missing.
        ModelError: a network fails while running, or their outputs differ in shape or type.
    """
    # Two sessions live side by side here; their spinning threads would fight over the cores.
    shared = Execution(execution.providers, execution.threads, execution.optimise, spinning=False)
    with ExitStack() as stack:
        expected: Callable[[Mapping[str, Array]], Sequence[Array]]
        if isinstance(original, Answers):
            names, expected = original.names, original.in_turn()
        else:
            reference = stack.enter_context(open_session(original, shared))
            names, expected = reference.output_names, reference.run
        session = stack.enter_context(open_session(candidate, shared))
        comparison = Comparison(metric, names, seed=seed)
        done = 0
        for feeds, labels in data.batches(batch_size(data)):
            count = len(next(iter(feeds.values())))
            with _told_of(data):
                comparison.accumulate(expected(feeds), session.run(feeds), labels, samples=count)
            done += count
            if progress is not None:
                progress(done, len(data))
    return comparison


def evaluate(
    model: onnx.ModelProto,
    data: Dataset,
    metric: Metric,
    execution: Execution,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> MetricResult:
    """The task metric of one network over `data`.

    Raises:
        DataError: the data does not fit, or labels are missing.
        UsageError: the metric compares two networks.
    """
    with open_session(model, execution) as session:
        evaluation = Evaluation(metric, session.output_names, seed=seed)
        done = 0
        for feeds, labels in data.batches(batch_size(data)):
            with _told_of(data):
                evaluation.accumulate(session.run(feeds), labels)
            done += len(next(iter(feeds.values())))
            if progress is not None:
                progress(done, len(data))
    return evaluation.result()
