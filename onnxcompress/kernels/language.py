"""The language: programs that evaluate to square kernels of weights.

A program says nothing about the size of its kernel; the same `edge-filter` makes sense for 3x3 and
5x5 where it has as many values as the kernel is wide. Atoms are those of the poster; combinators
make programs of programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onnxcompress.errors import UsageError
from onnxcompress.kernels.tetrominoes import SHAPES

VERTICAL, HORIZONTAL = "vertical", "horizontal"


@dataclass(frozen=True)
class OriginalKernel:
    """Every weight by itself.

    Attributes:
        rows: the weights, row by row.
    """

    rows: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class EdgeFilter:
    """All rows alike (a vertical edge), or all columns alike (a horizontal one).

    Attributes:
        values: across the edge, as many as the kernel is wide.
        orientation: how the edge lies, vertical or horizontal.
    """

    values: tuple[float, ...]
    orientation: str = VERTICAL

    def __post_init__(self) -> None:
        if self.orientation not in {VERTICAL, HORIZONTAL}:
            raise UsageError(f"edge-filter: orientation {self.orientation!r} is unknown")


@dataclass(frozen=True)
class Tetromino:
    """Four cells with one weight, all others zero.

    Attributes:
        shape: square, L, T or S.
        x: column of its leftmost cell.
        y: row of its topmost cell.
        fill: the weight.
        turns: quarter turns, counter-clockwise.
        mirrored: whether it is mirrored left to right before it is turned.
    """

    shape: str
    x: int
    y: int
    fill: float
    turns: int = 0
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise UsageError(f"tetromino {self.shape!r} is none of {', '.join(SHAPES)}")


@dataclass(frozen=True)
class Entry:
    """A kernel of a learned dictionary.

    Attributes:
        name: which one.
    """

    name: str


@dataclass(frozen=True)
class Sum:
    """Programs added up; of none, zero everywhere."""

    terms: tuple[Program, ...]


@dataclass(frozen=True)
class Scale:
    """A program times a number."""

    factor: float
    of: Program


@dataclass(frozen=True)
class Transpose:
    """Rows and columns exchanged."""

    of: Program


@dataclass(frozen=True)
class Rotate:
    """Turned counter-clockwise by quarter turns."""

    of: Program
    turns: int = 1


@dataclass(frozen=True)
class Outer:
    """A separable kernel: column [k] times row [k]."""

    column: tuple[float, ...]
    row: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.column) != len(self.row):
            raise UsageError("outer: column and row differ in length")


Atom = OriginalKernel | EdgeFilter | Tetromino | Entry | Outer
Program = Atom | Sum | Scale | Transpose | Rotate


def parts(program: Program) -> tuple[Program, ...]:
    """The programs that a program is directly made of."""
    match program:
        case Sum(terms):
            return terms
        case Scale(_, of) | Transpose(of) | Rotate(of, _):
            return (of,)
        case _:
            return ()


def walk(program: Program) -> Iterator[Program]:
    """A program and everything in it, outermost first."""
    yield program
    for part in parts(program):
        yield from walk(part)


def numbers(program: Program) -> int:
    """How many free weights a program holds itself, entries of dictionaries not counted."""
    count: Callable[[Program], int] = _own_numbers
    return sum(map(count, walk(program)))


def _own_numbers(program: Program) -> int:
    match program:
        case OriginalKernel(rows):
            return sum(map(len, rows))
        case EdgeFilter(values, _):
            return len(values)
        case Outer(column, row):
            return len(column) + len(row)
        case Tetromino() | Scale():
            return 1
        case _:
            return 0
