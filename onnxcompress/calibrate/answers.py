"""Running the network once over the samples, for what its answers are held to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.sample_batches import Batch
from onnxcompress.calibrate.targets import Targets, are_probabilities, log_probabilities
from onnxcompress.errors import DataError, ModelError
from onnxcompress.gradients.answer import Answer, demand_batch_axis, find_answer
from onnxcompress.gradients.known import Known
from onnxcompress.runtime import Array, Execution, open_session


def tapped(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model whose outputs are these tensors, in this order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    declared = {output.name: output for output in model.graph.output}
    del copy.graph.output[:]
    copy.graph.output.extend(declared.get(n, onnx.ValueInfoProto(name=n)) for n in names)
    return copy


def collect_targets(
    known: Known,
    samples: Dataset,
    parts: Iterable[Batch],
    execution: Execution,
    seed: int,
) -> Targets:
    """Answers of the network, and the labels of the samples where there are any.

    Args:
        known: the network in canonical form.
        samples: the samples.
        parts: the same in batches.
        execution: provider and threads.
        seed: of random classes and signs.

    Raises:
        GradientError: no output is a floating-point tensor.
        DataError: a label is no class of the network.
        ModelError: the network answers with NaN or infinite values.
    """
    answer = find_answer(known)
    names = [answer.logits] if answer.classes else list(answer.outputs)
    rows: list[Array] = []
    energies: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    with open_session(tapped(known.view.model, names), execution) as session:
        for part in parts:
            found = dict(zip(names, session.run(part.feeds), strict=True))
            for name, value in found.items():
                if not np.isfinite(value).all():
                    raise ModelError(
                        f"'{name}' has NaN or infinite values on {samples.purpose} "
                        f"{samples.source}: no loss can be computed"
                    )
            if answer.classes:
                rows.append(found[answer.logits][: part.count])
                continue
            for name, value in found.items():
                demand_batch_axis(name, value.shape, len(part.rows))
                flat = value.astype(np.float64).reshape(len(part.rows), -1)
                energies[name].append(np.square(flat).sum(axis=1)[: part.count])
    if not answer.classes:
        totals = {name: np.concatenate(lines) for name, lines in energies.items()}
        return Targets(answer, np.zeros(0, np.int64), np.zeros((0, 0)), totals, seed)
    logits = np.concatenate(rows)
    if answer.logits in answer.outputs:
        answer = replace(answer, probabilities=are_probabilities(logits))
    scores = log_probabilities(logits, answer)
    classes = samples.labels
    if classes is None:
        classes = scores.argmax(axis=1)
    _check(classes, answer, samples)
    return Targets(answer, classes.astype(np.int64), scores, {}, seed)


def _check(classes: NDArray[np.int64], answer: Answer, samples: Dataset) -> None:
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= answer.classes:
        raise DataError(
            f"{samples.purpose} {samples.source}: label {low if low < 0 else high} is no class of "
            f"the network, which has {answer.classes}; --preprocess label_offset=N moves them"
        )
