"""Tetrominoes on a grid: shapes of four cells, turned, mirrored and moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

Cells = frozenset[tuple[int, int]]

SHAPES: dict[str, Cells] = {
    "square": frozenset({(0, 0), (0, 1), (1, 0), (1, 1)}),
    "L": frozenset({(0, 0), (1, 0), (2, 0), (2, 1)}),
    "T": frozenset({(0, 0), (0, 1), (0, 2), (1, 1)}),
    "S": frozenset({(0, 1), (0, 2), (1, 0), (1, 1)}),
}
"""Cells (row, column). A bar of four fits no kernel of three."""


@dataclass(frozen=True)
class Placement:
    """One way of laying a shape on a grid.

    Attributes:
        shape: a key of `SHAPES`.
        x: column of the leftmost cell.
        y: row of the topmost cell.
        turns: quarter turns, counter-clockwise.
        mirrored: whether it was mirrored before it was turned.
    """

    shape: str
    x: int
    y: int
    turns: int
    mirrored: bool


def cells(placement: Placement) -> Cells:
    """The cells (row, column) that a placement covers."""
    shape = oriented(placement.shape, placement.turns, placement.mirrored)
    return frozenset((row + placement.y, column + placement.x) for row, column in shape)


@cache
def oriented(shape: str, turns: int, mirrored: bool) -> Cells:
    """A shape turned and mirrored, moved into the corner."""
    found = SHAPES[shape]
    if mirrored:
        found = _cornered(frozenset((row, -column) for row, column in found))
    for _ in range(turns % 4):
        # Counter-clockwise with rows counted downwards.
        found = _cornered(frozenset((-column, row) for row, column in found))
    return found


def placements(size: int) -> Iterator[Placement]:
    """Every way of laying every shape on a grid of `size` x `size`, each set of cells once."""
    seen: set[Cells] = set()
    for shape in SHAPES:
        for mirrored in (False, True):
            for turns in range(4):
                found = oriented(shape, turns, mirrored)
                height = 1 + max(row for row, _ in found)
                width = 1 + max(column for _, column in found)
                for y in range(size - height + 1):
                    for x in range(size - width + 1):
                        placement = Placement(shape, x, y, turns, mirrored)
                        covered = cells(placement)
                        if covered not in seen:
                            seen.add(covered)
                            yield placement


def _cornered(found: Cells) -> Cells:
    top = min(row for row, _ in found)
    left = min(column for _, column in found)
    return frozenset((row - top, column - left) for row, column in found)
