"""Two networks on the same inputs, batch by batch: agreement, task metric, numeric fidelity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import onnx

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.samples import sample_sizes
from onnxcompress.errors import DataError
from onnxcompress.runtime import Execution, open_session
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


def compare(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    data: Dataset,
    metric: Metric,
    execution: Execution,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Run both networks over `data` and accumulate their comparison.

    Raises:
        DataError: the data does not fit, or the metric needs labels that are missing.
        ModelError: a network fails while running, or their outputs differ in shape or type.
    """
    # Two sessions live side by side here; their spinning threads would fight over the cores.
    shared = Execution(execution.providers, execution.threads, execution.optimise, spinning=False)
    with open_session(original, shared) as a, open_session(candidate, shared) as b:
        comparison = Comparison(metric, a.output_names, seed=seed)
        done = 0
        for feeds, labels in data.batches(batch_size(data)):
            count = len(next(iter(feeds.values())))
            with _told_of(data):
                comparison.accumulate(a.run(feeds), b.run(feeds), labels, samples=count)
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
