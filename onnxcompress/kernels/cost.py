"""What programs cost: numbers, bits by minimum description length, multiplications."""

from __future__ import annotations

from functools import cache
from math import log2

from onnxcompress.kernels.language import (
    EdgeFilter,
    Entry,
    OriginalKernel,
    Outer,
    Program,
    Rotate,
    Sum,
    Tetromino,
    numbers,
    parts,
    walk,
)
from onnxcompress.kernels.tetrominoes import placements

VALUE_BITS = 32
"""Bits of one number, where nothing else is said: a float32."""

_COMBINATORS = 5
_EDGES, _ORIGINAL, _OUTER = 2, 1, 1


def words(size: int, entries: int = 0) -> int:
    """How many words the language has for kernels of `size`: atoms with placements, combinators."""
    return _EDGES + _ORIGINAL + _OUTER + _COMBINATORS + count_placements(size) + entries


@cache
def count_placements(size: int) -> int:
    """How many tetrominoes lie on a grid of `size` x `size`."""
    return sum(1 for _ in placements(size))


def bits(program: Program, size: int, *, entries: int = 0, value_bits: int = VALUE_BITS) -> float:
    """Description length: which word, for every node of the program, and its numbers.

    Words are coded uniformly, how many terms a sum has by Elias' gamma code.

    Args:
        program: the program.
        size: k of the kernel k x k.
        entries: how many kernels the learned dictionary has.
        value_bits: bits of one number.
    """
    total = float(value_bits * numbers(program))
    for node in walk(program):
        total += log2(words(size, entries))
        if isinstance(node, Sum):
            total += gamma_bits(len(node.terms) + 1)
        if isinstance(node, Rotate):
            total += 2.0
    return total


def gamma_bits(number: int) -> float:
    """Length of Elias' gamma code of a number >= 1."""
    return 2.0 * (number.bit_length() - 1) + 1.0


def multiplications(program: Program, size: int) -> int:
    """Multiplications per position of the output when the program is carried out by itself.

    Cells with one weight are added first, and lines that are alike are filtered once.
    """
    match program:
        case OriginalKernel() | Entry():
            return size * size
        case EdgeFilter():
            return size
        case Outer():
            return 2 * size
        case Tetromino():
            return 1
        case _:
            return sum(multiplications(part, size) for part in parts(program))
