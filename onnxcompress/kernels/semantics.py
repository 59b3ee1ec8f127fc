"""What programs mean: kernels of weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxcompress.errors import UsageError
from onnxcompress.kernels.language import (
    VERTICAL,
    EdgeFilter,
    Entry,
    OriginalKernel,
    Outer,
    Program,
    Rotate,
    Scale,
    Sum,
    Tetromino,
    Transpose,
)
from onnxcompress.kernels.tetrominoes import Placement, cells

Array = NDArray[np.float64]


def evaluate(program: Program, size: int, entries: Mapping[str, Array] | None = None) -> Array:
    """The kernel that a program makes.

    Args:
        program: the program.
        size: k of the kernel k x k.
        entries: the learned dictionary that `Entry` looks up.

    Returns:
        [k, k].

    Raises:
        UsageError: the program does not fit this size, or names an entry that is not there.
    """
    match program:
        case OriginalKernel(rows):
            return _square(np.array(rows, dtype=np.float64), size)
        case EdgeFilter(values, orientation):
            if len(values) != size:
                raise UsageError(f"edge-filter of {len(values)} values for a kernel of {size}")
            lines = np.tile(np.array(values, dtype=np.float64), (size, 1))
            return lines if orientation == VERTICAL else lines.T.copy()
        case Tetromino(shape, x, y, fill, turns, mirrored):
            found = cells(Placement(shape, x, y, turns, mirrored))
            if any(not (0 <= r < size and 0 <= c < size) for r, c in found):
                raise UsageError(f"{shape}-tetromino at ({x}, {y}) leaves a kernel of {size}")
            kernel = np.zeros((size, size))
            kernel[tuple(zip(*found, strict=True))] = fill
            return kernel
        case Entry(name):
            if entries is None or name not in entries:
                raise UsageError(f"there is no kernel '{name}' in the dictionary")
            return _square(np.asarray(entries[name], dtype=np.float64), size)
        case Outer(column, row):
            return _square(np.outer(column, row), size)
        case Sum(terms):
            total = np.zeros((size, size))
            for term in terms:
                total += evaluate(term, size, entries)
            return total
        case Scale(factor, of):
            return factor * evaluate(of, size, entries)
        case Transpose(of):
            return evaluate(of, size, entries).T.copy()
        case Rotate(of, turns):
            return np.rot90(evaluate(of, size, entries), turns).copy()


def _square(values: Array, size: int) -> Array:
    if values.shape != (size, size):
        raise UsageError(f"a kernel of shape {values.shape} where {size} x {size} is needed")
    return values
