"""The oracle, against a float64 network in which one channel after the other is set to zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import UsageError
from onnxcompress.plan.saliency.criteria import CRITERIA

CLASSIFIERS = ["chain", "chain, equal extents", "residual", "dense", "swish"]
# Where there are no classes there are no labels.
HELD = [
    *((name, labelled) for name in CLASSIFIERS for labelled in (True, False)),
    ("number", False),
    ("picture", False),
]
# Losses are of order one and computed from float32 outputs: 1e-6 of the largest and then some.
ROUNDED = 1e-5


@pytest.mark.parametrize("gone", [False, True], ids=["whole", "some gone"])
@pytest.mark.parametrize(("name", "labelled"), HELD)
def test_oracle(case: Any, ask: Any, name: str, gone: bool, labelled: bool) -> None:
    """Labels and own answers stay those of the network before anything was gone.

    The loss is cross-entropy, or for no classes half the relative squared distance.
    """
    known = case(name, labelled=labelled)
    slow = known.left if gone else known.gated
    question = ask(known.facts, known.removed if gone else None)
    signed, absolute = (CRITERIA[f"oracle-{kind}"].score(question) for kind in ("loss", "abs"))
    assert set(signed) == set(absolute) == set(slow.taps)
    for layer, scores in signed.items():
        expected = slow.ablated(layer)
        atol = ROUNDED * max(map(abs, expected))
        np.testing.assert_allclose(scores, expected, rtol=0, atol=atol)
        np.testing.assert_array_equal(absolute[layer], np.abs(scores))
    if labelled:
        assert min(scores.min() for scores in signed.values()) < 0.0
    for layer, channels in known.removed.items() if gone else ():
        assert (signed[layer][list(channels)] == 0.0).all()


def test_left_out_layers_change_nothing(case: Any, ask: Any) -> None:
    """Each layer's scores stay with that layer."""
    facts = case("residual", labelled=True).facts
    whole = CRITERIA["oracle-loss"].score(ask(facts))
    part = CRITERIA["oracle-loss"].score(ask(facts, skipped={"stem"}))
    assert list(part) == ["one", "two"]
    for layer, scores in part.items():
        np.testing.assert_allclose(scores, whole[layer], rtol=0, atol=1e-6)


@pytest.mark.parametrize("criterion", ["oracle-abs", "oracle-loss"])
def test_data_is_needed(nets: Any, case: Any, ask: Any, criterion: str) -> None:
    model = case("chain", labelled=False).gated.model
    with pytest.raises(UsageError, match="--data"):
        CRITERIA[criterion].score(ask(nets.facts(model)))
