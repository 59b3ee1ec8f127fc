"""From scores of layers to scores of groups, position by position."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.plan.saliency.normalise import normalised
from onnxcompress_passes.channel_ranking import channel_scores

TIED = """net (float[N, 3, 4, 5] x) => (float[N, 2, 4, 5] y) {
    [stem] a = Conv <kernel_shape = [1, 1]> (x, u)
    [one] b = Conv <kernel_shape = [1, 1]> (a, w)
    [sum] c = Add (a, b)
    [wide] d = Conv <kernel_shape = [1, 1]> (c, z)
    [halves] e, f = Split <axis = 1> (d, sizes)
    [both] g = Mul (e, f)
    [last] y = Conv <kernel_shape = [1, 1]> (g, v) }"""


@pytest.fixture
def tied(nets: Any) -> Facts:
    """'stem' and 'one' share channels; channel i of 'wide' goes with channel i + 3."""
    made = nets.facts(
        nets.build(
            TIED,
            u=(4, 3, 1, 1),
            w=(4, 4, 1, 1),
            z=(6, 4, 1, 1),
            v=(2, 3, 1, 1),
            sizes=np.array([3, 3]),
        )
    )
    assert {g.name: g.producers for g in made.coupling().groups} == {
        "stem": ("stem", "one"),
        "wide": ("wide",),
    }
    assert [g.width for g in made.coupling().groups] == [4, 3]
    return made


@pytest.mark.parametrize("normalise", ["none", "l1", "l2", "minmax"])
@pytest.mark.parametrize("combine", ["mean", "sum", "max"])
def test_combined(tied: Facts, ask: Any, normalise: str, combine: str) -> None:
    """Layer by layer normalised; then over layers, in which several positions count once."""
    raw = {
        "stem": np.array([1.0, 5.0, -2.0, 3.0]),
        "one": np.array([40.0, 10.0, 20.0, 90.0]),
        "wide": np.array([1.0, 2.0, 8.0, 7.0, 5.0, 4.0]),
    }
    found = channel_scores(ask(tied), lambda _: raw, normalise, combine)
    line = {layer: normalised(scores, normalise) for layer, scores in raw.items()}
    voices = {
        "stem": [[line["stem"][i], line["one"][i]] for i in range(4)],
        "wide": [[(line["wide"][i] + line["wide"][i + 3]) / 2] for i in range(3)],
    }
    together = {"mean": lambda v: sum(v) / len(v), "sum": sum, "max": max}[combine]
    assert set(found) == {"stem", "wide"}
    for group, each in voices.items():
        np.testing.assert_allclose(found[group], [together(v) for v in each], rtol=1e-14)


def test_which_layer_weighs_more_is_settled_by_the_normalisation(tied: Facts, ask: Any) -> None:
    raw = {
        "stem": np.array([1.0, 2.0, 3.0, 4.0]),
        "one": 1e6 * np.array([4.0, 3.0, 2.0, 1.0]),
        "wide": np.ones(6),
    }
    plain = channel_scores(ask(tied), lambda _: raw, "none", "mean")["stem"]
    assert all(a > b for a, b in pairwise(plain.tolist()))
    even = channel_scores(ask(tied), lambda _: raw, "l1", "sum")["stem"]
    np.testing.assert_allclose(even, [0.5] * 4, rtol=1e-14)
