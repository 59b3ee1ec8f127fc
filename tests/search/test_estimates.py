"""What is counted of combinations without building them is what they turn out to have."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from onnxcompress.analyse.facts import analyse
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.graph.cost import model_cost
from onnxcompress.plan.options import collect
from onnxcompress.plan.registry import make_pass
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.search.estimates import Sums, by_superblock, count, in_proportion, singles
from onnxcompress.search.space import chosen_by
from tests.passes.scbp.resnets import resnet


@pytest.mark.parametrize("segments", ["widths", 5])
def test_counts_of_every_combination(segments: Any) -> None:
    model = resnet(18, size=32, width=8)
    facts = analyse(model, {"x": (1, 3, 32, 32)})
    owner = make_pass(
        "scbp", ranking="weight", ratios="0.5+0.25", within="even", round_to=1, segments=segments
    )
    sites = collect(facts, [owner]).sites
    counted = count(sites, owner, facts)
    vectors = list(product(*(range(len(offers)) for offers in sites)))
    generator = np.random.default_rng(0)
    drawn = [vectors[at] for at in generator.choice(len(vectors), 12, replace=False)]
    total = facts.total()
    for vector in [*drawn, vectors[0], vectors[-1]]:
        chosen = chosen_by(vector, sites)
        small = rewrite(model, chosen, {"scbp": owner}, strict=True).model
        cost = model_cost(small, shapes_for(small, facts.sizes))
        row = np.array([vector])
        assert counted["macs"].of(row)[0] == total.macs - cost.macs
        assert counted["params"].of(row)[0] == total.params - cost.params
    # Layers between superblocks exist, so that some pairs must differ from the sum.
    assert counted["macs"].pairs


def test_single_combinations_and_their_tables() -> None:
    sites: Any = [["whole", "half", "quarter"], ["whole", "half"]]
    assert singles(sites) == [(1, 0), (2, 0), (0, 1)]
    tables = by_superblock(sites, lambda vector: float(10 * vector[0] + vector[1]))
    assert [table.tolist() for table in tables] == [[0.0, 10.0, 20.0], [0.0, 1.0]]


def test_milliseconds_of_pairs_follow_their_macs() -> None:
    macs = Sums(
        (np.array([0.0, 10.0]), np.array([0.0, 30.0])),
        {(0, 1): np.array([[0.0, 0.0], [0.0, -4.0]])},
    )
    ms = in_proportion([np.array([0.0, 1.0]), np.array([0.0, 7.0])], macs)
    # Both save 40 MACs in 8 ms; 4 MACs that are saved twice count 0.8 ms.
    assert ms.of(np.array([[1, 1]]))[0] == pytest.approx(8.0 - 0.8)
    assert ms.of(np.array([[1, 0]]))[0] == 1.0
