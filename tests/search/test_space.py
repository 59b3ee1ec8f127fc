"""Combinations of ratios, counted and constrained."""

from __future__ import annotations

from itertools import pairwise, product
from math import comb
from pathlib import Path

import numpy as np
import pytest

from onnxcompress.errors import UsageError
from onnxcompress.search.constraints import parse_constraint
from onnxcompress.search.space import Space

RATIOS = (1.0, 0.75, 0.5, 0.25)


def space(constraint: str = "none", superblocks: int = 4) -> Space:
    names = [str(number) for number in range(1, superblocks + 1)]
    return Space((RATIOS,) * superblocks, parse_constraint(constraint, names))


def test_the_papers_counts() -> None:
    assert space().size == len(list(space().vectors())) == 256
    falling = list(space("non-increasing").vectors())
    assert len(falling) == comb(4 + 4 - 1, 4) == 35
    assert all(tuple(sorted(vector)) == vector for vector in falling)


def test_expressions_over_ratios() -> None:
    found = [space().values(v) for v in space("c1 >= c2 and c3 + c4 <= 0.75").vectors()]
    expected = [c for c in product(RATIOS, repeat=4) if c[0] >= c[1] and c[2] + c[3] <= 0.75]
    assert found == expected


def test_names_of_the_users_own() -> None:
    constraint = parse_constraint("early == 1 and not (late > 0.5)", ["early", "late"])
    assert constraint.allows((1.0, 0.5))
    assert not constraint.allows((0.75, 0.5))
    assert not constraint.allows((1.0, 0.75))
    assert parse_constraint("c2 == 0.5", ["early", "late"]).allows((1.0, 0.5))


def test_a_name_that_means_another_superblock() -> None:
    with pytest.raises(UsageError, match="superblock 'c2' has a name"):
        parse_constraint("none", ["c2", "late"])


def test_a_file_of_constraints(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("- non-increasing\n- c4 == 0.5\n")
    found = [space().values(v) for v in space(str(path)).vectors()]
    expected = [
        c for c in product(RATIOS, repeat=4) if c[3] == 0.5 and all(b <= a for a, b in pairwise(c))
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("c1 >=", "is no expression"),
        ("c5 == 1", "there is no 'c5'"),
        ("__import__('os')", "only ratios"),
        ("c1.real == 1", "only ratios"),
        ("[c for c in ()]", "only ratios"),
        ("c1 == 'a'", "is no number"),
        ("none.yaml", "cannot be read"),
    ],
)
def test_constraints_that_are_none(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        space(text)


def test_a_constraint_that_divides_by_zero() -> None:
    with pytest.raises(UsageError, match="division by zero"):
        list(space("c1 / (c2 - c2) > 1").vectors())


def test_random_combinations_are_allowed_ones() -> None:
    generator = np.random.default_rng(0)
    # 816 of 10^9 combinations fall, and still they are found at once, all alike.
    large = space("non-increasing", 15)
    assert large.size == 4**15 > 10**9
    drawn = {large.draw(generator) for _ in range(100)}
    assert len(drawn) > 90
    assert all(large.allows(vector) for vector in drawn)
    with pytest.raises(UsageError, match="holds for none of 200 random combinations"):
        space("c1 > 1").draw(generator)
