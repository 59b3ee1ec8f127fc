"""The self-check: what a pass did equals its own reference, on the user's model and data.

Removed channels must equal channels forced to zero. A pass that knows such a reference builds it on
a second copy of the original, by other means than the rewrite; both are run on the same inputs.
A candidate that does not hold is rolled back, and nothing of it is ever written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnxcompress.errors import OnnxCompressError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.memo import Memo
from onnxcompress.plan.contract import Candidate, Pass, Refusal
from onnxcompress.rewrite.manager import Proof, Rewritten, rewrite
from onnxcompress.runtime import Array, Execution, open_session

Feeds = Sequence[Mapping[str, Array]]

_EXACT = 1e-5
"""Relative L2 distance that adding up in another order may cause."""

_COARSE = 1e-2
"""The same where weights of half precision round what is absorbed into them, or a last digit
decides between two steps of a quantised activation."""

_FLOOR = 1e-2
"""Outputs that are smaller than this in the root mean square are compared absolutely."""


@dataclass(frozen=True)
class Bench:
    """Where rewrites are proved.

    Attributes:
        model: the canonical model.
        feeds: inputs, batch by batch.
        threads: of the CPU provider, on which both models run: a GPU's convolutions may round to
            ten bits, which would hide what is looked for. Graph optimisations are off.
        memo: results shared with other editors of the job.
    """

    model: onnx.ModelProto
    feeds: Feeds
    threads: int
    memo: Memo | None = None

    @property
    def allowed(self) -> float:
        """The distance from the reference that rounding explains."""
        half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
        stored = any(tensor.data_type in half for tensor in self.model.graph.initializer)
        stepped = any(node.op_type == "QuantizeLinear" for node in self.model.graph.node)
        return _COARSE if stored or stepped else _EXACT

    def error(self, candidates: Sequence[Candidate[Any]], owner: Pass[Any]) -> float | None:
        """Distance from the reference, of the worst output; None where there is no reference."""
        editor = Editor(self.model, memo=self.memo)
        if not owner.reference(candidates, editor):
            return None
        try:
            reference = with_value_info(editor.finish())
            passes = {owner.name: owner}
            result = rewrite(self.model, candidates, passes, strict=True, memo=self.memo).model
            expected, found = self._run(reference), self._run(result)
            return max(_distance(e, f) for e, f in zip(expected, found, strict=True))
        except OnnxCompressError:
            return float("inf")

    def _run(self, model: onnx.ModelProto) -> list[list[Array]]:
        """Output by output, its values for every batch."""
        with open_session(model, Execution(threads=self.threads, optimise=False)) as session:
            batches = [session.run(one) for one in self.feeds]
        return [list(values) for values in zip(*batches, strict=True)]


def prove(rewritten: Rewritten, passes: Mapping[str, Pass[Any]], bench: Bench) -> Rewritten:
    """Compare every pass's rewrites with their reference; roll back what does not hold.

    Returns:
        The result with its proofs; where candidates were rolled back, the result without them.
    """
    samples = sum(
        max((v.shape[0] for v in feeds.values() if v.ndim), default=1) for feeds in bench.feeds
    )
    while True:
        proofs: list[Proof] = []
        refusal: Refusal | None = None
        for name in dict.fromkeys(c.site.pass_name for c in rewritten.applied):
            mine = [c for c in rewritten.applied if c.site.pass_name == name]
            error = bench.error(mine, passes[name])
            if error is None:
                continue
            proofs.append(Proof(name, error, samples))
            if not error <= bench.allowed:
                guilty = _guilty(mine, passes[name], bench)
                reason = f"rolled back: it differs from its reference by {error:.2g}"
                refusal = Refusal(name, guilty.site.node, reason)
                break
        if refusal is None:
            return replace(rewritten, proofs=tuple(proofs))
        left = [c for c in rewritten.applied if c is not guilty]
        rest = rewrite(bench.model, left, passes, memo=bench.memo)
        rolled_back = (*rewritten.rolled_back, refusal, *rest.rolled_back)
        rewritten = replace(rest, rolled_back=rolled_back)


def _guilty(candidates: Sequence[Candidate[Any]], owner: Pass[Any], bench: Bench) -> Candidate[Any]:
    """The first candidate that does not hold by itself; else the last."""
    for candidate in candidates:
        error = bench.error([candidate], owner)
        if error is not None and not error <= bench.allowed:
            return candidate
    return candidates[-1]


def _distance(expected: Sequence[Array], found: Sequence[Array]) -> float:
    squares, norm, count = 0.0, 0.0, 0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if one.dtype.kind not in "fiub":
            if not np.array_equal(one, other):
                return float("inf")
            continue
        wide, narrow = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
        finite = np.isfinite(wide)
        if not np.array_equal(wide[~finite], narrow[~finite], equal_nan=True):
            return float("inf")
        squares += float(np.square(wide[finite] - narrow[finite]).sum())
        norm += float(np.square(wide[finite]).sum())
        count += int(finite.sum())
    return float(np.sqrt(squares / max(norm, _FLOOR**2 * count))) if count else 0.0
