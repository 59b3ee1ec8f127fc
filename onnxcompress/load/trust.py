"""Whether a canonicalised model still computes the same; asked when a third party changed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx

from onnxcompress.errors import OnnxCompressError
from onnxcompress.load.canonical import Canonical, canonicalise
from onnxcompress.runtime import Array, Execution, open_session

NOTE = "constant folding skipped: onnxslim changed the outputs"
_TOLERANCE = 1e-3
"""Relative L2 in float32 or float16 after folding and fusing; a wrong graph is off by far more."""


def computes_the_same(
    original: onnx.ModelProto,
    canonical: onnx.ModelProto,
    feeds: Mapping[str, Array],
    execution: Execution,
) -> bool:
    """Run both on the same inputs and compare every output."""
    with open_session(original, execution) as session:
        expected = session.run(feeds)
    try:
        with open_session(canonical, execution) as session:
            found = session.run(feeds)
    except OnnxCompressError:
        return False
    return all(_close(a, b) for a, b in zip(expected, found, strict=True))


def trusted(
    original: onnx.ModelProto,
    canonical: Canonical,
    feeds: Mapping[str, Array],
    execution: Execution,
) -> Canonical:
    """The canonical form, made again without the third party if that changed the outputs."""
    if not canonical.slimmed or computes_the_same(original, canonical.model, feeds, execution):
        return canonical
    again = canonicalise(original, fold_constants=False)
    return replace(again, notes=(*again.notes, NOTE))


def _close(expected: Array, found: Array) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not np.issubdtype(expected.dtype, np.floating):
        return bool(np.array_equal(expected, found))
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    if not np.isfinite(b[finite]).all():
        return False
    # The floor keeps outputs that are nearly zero everywhere from being compared digit by digit.
    scale = max(float(np.linalg.norm(a[finite])), 1e-2 * float(np.sqrt(finite.sum())))
    return bool(np.linalg.norm(a[finite] - b[finite]) <= _TOLERANCE * scale)
