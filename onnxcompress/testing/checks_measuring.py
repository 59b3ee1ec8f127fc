"""What the checks measure with: proposals, rewriting, running, and how exact exact is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from onnxcompress.graph.editor import Editor
from onnxcompress.plan.contract import Candidate, Pass
from onnxcompress.plan.options import Options, collect
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.runtime import Array, Execution, open_session
from onnxcompress.testing.zoo import Entry

Offers = Sequence[Candidate[Any]]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def demand(condition: object, message: str) -> None:
    """Fail a check.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not condition:
        raise AssertionError(message)


def proposals(owner: Pass[Any], entry: Entry) -> Options:
    """What a pass offers on the canonical model of an entry, and what it refuses.

    Remembered between checks, because asking is what takes the time; `check_deterministic` and
    `check_proposing_does_not_mutate` ask afresh.
    """
    try:
        return _remembered(owner, entry)
    except TypeError:  # the pass cannot be hashed, which `check_declared` objects to
        return collect(entry.facts(), [owner])


@lru_cache(maxsize=128)
def _remembered(owner: Pass[Any], entry: Entry) -> Options:
    return collect(entry.facts(), [owner])


def representatives(offers: Offers) -> tuple[Candidate[Any], ...]:
    """The loosest candidate of a site, the recommended one, and the tightest."""
    recommended = [candidate for candidate in offers if candidate.recommended]
    chosen = [offers[0], *recommended, offers[-1]]
    return tuple(c for at, c in enumerate(chosen) if c not in chosen[:at])


def combinations(options: Options) -> tuple[tuple[Candidate[Any], ...], ...]:
    """Choices for all sites at once: all loosest, and all tightest."""
    loosest = tuple(offers[0] for offers in options.sites)
    tightest = tuple(offers[-1] for offers in options.sites)
    return tuple(dict.fromkeys(choice for choice in (loosest, tightest) if choice))


def words(candidate: Candidate[Any]) -> str:
    """A candidate as messages call it."""
    return f"node '{candidate.site.node}' with {candidate.setting}"


def rewritten(owner: Pass[Any], model: onnx.ModelProto, chosen: Offers) -> onnx.ModelProto:
    """The model after a choice, through the manager; what breaks its word raises."""
    return rewrite(model, chosen, {owner.name: owner}, strict=True).model


def edited(owner: Pass[Any], model: onnx.ModelProto, candidate: Candidate[Any]) -> onnx.ModelProto:
    """The model after one rewrite, straight from the editor: nothing judged, nothing inferred."""
    editor = Editor(model)
    editor.sign(owner.name)
    owner.rewrite(candidate, editor)
    return editor.finish()


def octets(message: Any) -> bytes:
    """A protobuf message as bytes, equal for equal contents."""
    return bytes(message.SerializeToString(deterministic=True))


class Machine:
    """A loaded model that can be run many times; optimisations off, so that numbers are plain."""

    def __init__(self, entry: Entry, model: onnx.ModelProto) -> None:
        self._entry, self._model = entry, model

    def run(self, *feeds: Mapping[str, Array]) -> list[list[Array]]:
        """The outputs for each of the feeds, in graph order.

        Raises:
            ModelError: ONNX Runtime refuses the model, or fails while running it.
        """
        if not self._entry.in_onnxruntime:
            evaluator = ReferenceEvaluator(self._model)
            return [[np.asarray(y) for y in evaluator.run(None, dict(f))] for f in feeds]
        execution = Execution(threads=1, optimise=False, spinning=False)
        with open_session(self._model, execution) as session:
            return [session.run(f) for f in feeds]


def run(entry: Entry, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs of one run."""
    return Machine(entry, model).run(feeds)[0]


def squared_norm(values: Array) -> float:
    """Sum of squares, in float64."""
    wide = np.asarray(values, dtype=np.float64).ravel()
    return float(wide @ wide)


def relative_error(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """||found - expected|| / ||expected||, of the worst output; infinite if NaN or misshapen."""
    worst = 0.0
    for want, have in zip(expected, found, strict=True):
        if want.shape != have.shape:
            return float("inf")
        difference = np.asarray(have, np.float64) - np.asarray(want, np.float64)
        error, scale = squared_norm(difference), squared_norm(want)
        if not np.isfinite(error):
            return float("inf")
        worst = max(worst, float(np.sqrt(error / scale)) if scale else float(error > 0))
    return worst


def tolerance(model: onnx.ModelProto) -> float:
    """The relative error that rounding alone may cause when a layer is replaced by up to three.

    With eps the unit of the model's least exact floating type, at most six arrays are rounded anew
    (three weights, three activations), eps / 2 each; and three sums of n terms are added up in
    another order, sqrt(n) eps / 2 each in the mean square. Half types are added up in float32.
    Errors of successive layers add.
    """
    weights = [t for t in model.graph.initializer if len(t.dims) >= 2]
    stored = max((_eps(t.data_type) for t in weights), default=_eps(onnx.TensorProto.FLOAT))
    summed = min(stored, _eps(onnx.TensorProto.FLOAT))
    terms = max((_terms(t) for t in weights), default=1)
    depth = max(1, sum(node.op_type in _LAYERS for node in model.graph.node))
    return float(depth * (3.0 * stored + 1.5 * np.sqrt(terms) * summed))


def _eps(data_type: int) -> float:
    # numpy.finfo does not know bfloat16: the next number after 1 says the same.
    one = np.ones((), dtype=onnx.helper.tensor_dtype_to_np_dtype(data_type))
    return float(np.nextafter(one, one + one) - one)


def _terms(tensor: onnx.TensorProto) -> int:
    """The longest sum that a product with the tensor may need, along whichever axis."""
    shape = [int(extent) for extent in tensor.dims]
    return max(prod(shape) // shape[0], prod(shape) // shape[1])
