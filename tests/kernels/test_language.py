from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.errors import UsageError
from onnxcompress.kernels.cost import bits, count_placements, multiplications, words
from onnxcompress.kernels.language import (
    HORIZONTAL,
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
    numbers,
)
from onnxcompress.kernels.semantics import evaluate
from onnxcompress.kernels.tetrominoes import cells, placements
from onnxcompress.kernels.text import read, written

EDGE = EdgeFilter((1.0, 0.0, -1.0))
PROGRAMS: list[Program] = [
    EDGE,
    EdgeFilter((0.1, 2.0, -1e-7), HORIZONTAL),
    OriginalKernel(((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (7.0, 8.0, 9.0))),
    Tetromino("square", 1, 0, 0.5),
    Tetromino("L", 0, 1, -0.25, 3, True),
    Outer((1.0, 2.0, 1.0), (1.0, 0.0, -1.0)),
    Sum(()),
    Sum((EDGE, Scale(2.0, Transpose(EDGE)), Rotate(Tetromino("T", 0, 0, 1.0), 2))),
]


@pytest.mark.parametrize(
    ("program", "kernel"),
    [
        (EDGE, [[1, 0, -1]] * 3),
        (EdgeFilter((1.0, 0.0, -1.0), HORIZONTAL), [[1] * 3, [0] * 3, [-1] * 3]),
        (Tetromino("square", 1, 0, 2.0), [[0, 2, 2], [0, 2, 2], [0, 0, 0]]),
        (Tetromino("L", 0, 0, 1.0), [[1, 0, 0], [1, 0, 0], [1, 1, 0]]),
        (Tetromino("L", 0, 0, 1.0, 0, True), [[0, 1, 0], [0, 1, 0], [1, 1, 0]]),
        (Tetromino("T", 0, 1, 1.0), [[0, 0, 0], [1, 1, 1], [0, 1, 0]]),
        (Tetromino("T", 1, 0, 1.0, 1), [[0, 1, 0], [0, 1, 1], [0, 1, 0]]),
        (Tetromino("S", 0, 0, 1.0), [[0, 1, 1], [1, 1, 0], [0, 0, 0]]),
        (Transpose(EDGE), [[1] * 3, [0] * 3, [-1] * 3]),
        (Rotate(EDGE), [[-1] * 3, [0] * 3, [1] * 3]),
        (Rotate(EDGE, 2), [[-1, 0, 1]] * 3),
        (Scale(3.0, EDGE), [[3, 0, -3]] * 3),
        (Outer((1.0, 2.0, 1.0), (1.0, 0.0, -1.0)), [[1, 0, -1], [2, 0, -2], [1, 0, -1]]),
        (Sum((EDGE, Transpose(EDGE))), [[2, 1, 0], [1, 0, -1], [0, -1, -2]]),
    ],
)
def test_programs_mean_what_they_say(program: Program, kernel: list[list[float]]) -> None:
    np.testing.assert_array_equal(evaluate(program, 3), np.array(kernel, dtype=float))


def test_rotation_turns_as_numpy_does() -> None:
    kernel = evaluate(PROGRAMS[2], 3)
    for turns in range(5):
        np.testing.assert_array_equal(
            evaluate(Rotate(PROGRAMS[2], turns), 3), np.rot90(kernel, turns)
        )


def test_turned_tetromino_is_the_turned_kernel() -> None:
    base = evaluate(Tetromino("L", 0, 0, 1.0), 3)
    turned = {np.rot90(base, turns).tobytes() for turns in range(4)}
    drawn = {
        evaluate(Tetromino("L", x, y, 1.0, turns), 3).tobytes()
        for turns, x, y in [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 0, 0)]
    }
    assert drawn == turned


@pytest.mark.parametrize(
    ("shape", "mirrored", "count"),
    [("square", False, 4), ("T", False, 8), ("L", False, 8), ("S", False, 4)],
)
def test_placements_on_three_by_three(shape: str, mirrored: bool, count: int) -> None:
    """SEEDS 5(d): square 4, T 8, L 8 (16 with its mirror image), S 4 (8)."""
    mine = [p for p in placements(3) if p.shape == shape]
    assert len([p for p in mine if p.mirrored == mirrored]) == count
    assert len(mine) == (2 * count if shape in {"L", "S"} else count)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_placements_are_all_sets_of_four_cells_of_these_shapes(size: int) -> None:
    """Against growing every connected set of four cells, without bars."""
    grown = {frozenset({(r, c)}) for r in range(size) for c in range(size)}
    for _ in range(3):
        grown = {
            figure | {cell}
            for figure in grown
            for r, c in figure
            for cell in [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
            if cell not in figure and all(0 <= v < size for v in cell)
        }
    bars = {f for f in grown if len({r for r, _ in f}) == 1 or len({c for _, c in f}) == 1}
    found = [cells(placement) for placement in placements(size)]
    assert len(found) == len(set(found)) == count_placements(size)
    assert set(found) == grown - bars


@pytest.mark.parametrize("program", PROGRAMS)
def test_text_reads_back(program: Program) -> None:
    assert read(written(program)) == program


@pytest.mark.parametrize(
    "text",
    [
        "",
        "edge(1)",
        "edge-filter(1, 2, 3)",
        "sum(1)",
        "scale(x, y)",
        "__import__('os')",
        "square-tetromino(1)",
        "bar-tetromino(0, 0, 1)",
        'edge-filter([1, 2, 3], "diagonal")',
        "outer([1, 2], [1])",
    ],
)
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read(text)


@pytest.mark.parametrize(
    "program",
    [
        EdgeFilter((1.0, 2.0)),
        OriginalKernel(((1.0,),)),
        Tetromino("T", 1, 0, 1.0),
        Tetromino("square", -1, 0, 1.0),
        Entry("unknown"),
        Outer((1.0,), (1.0,)),
    ],
)
def test_programs_that_do_not_fit_are_refused(program: Program) -> None:
    with pytest.raises(UsageError):
        evaluate(program, 3)


def test_entries_are_looked_up() -> None:
    kernel = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(
        evaluate(Scale(-2.0, Entry("a")), 3, {"a": kernel}), -2.0 * kernel
    )


def test_costs() -> None:
    assert words(3) == 2 + 1 + 1 + 5 + 36
    word = np.log2(45)
    assert bits(EDGE, 3) == pytest.approx(word + 3 * 32)
    assert bits(Tetromino("T", 0, 0, 1.0), 3, value_bits=8) == pytest.approx(word + 8)
    pair = Sum((EDGE, Tetromino("T", 0, 0, 1.0)))
    assert bits(pair, 3) == pytest.approx(3 * word + 4 * 32 + 3)
    assert numbers(pair) == 4
    assert multiplications(pair, 3) == 4
    assert multiplications(Scale(2.0, Outer((1.0,) * 5, (1.0,) * 5)), 5) == 10
    assert bits(Entry("a"), 3, entries=19) == pytest.approx(6.0)
