"""Options of pass `lnr`, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

import onnxcompress as oc
from onnxcompress.errors import BoundError, UsageError
from onnxcompress.plan.contract import Refusal, Site
from onnxcompress_passes.lnr import Lnr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selector": "best"}, "selector='best' is none of obs, lasso"),
        ({"chaining": "sideways"}, "chaining='sideways'"),
        ({"weights": "none"}, "weights='none'"),
        ({"strength": "much", "selector": "lasso"}, "strength='much' is not a number"),
        ({"strength": True, "selector": "lasso"}, "strength=True is not a number"),
        ({"strength": 1.0, "selector": "lasso"}, "strength=1.0 must lie between 0 and 1"),
        ({"strength": -0.1, "selector": "lasso"}, "strength=-0.1 must lie"),
        ({"strength": 0.1}, "strength goes with selector=lasso"),
        ({"strength": 0.1, "selector": "lasso", "channels": 0.5}, "without channels"),
        ({"weights": "refit"}, "weights=refit goes with channels=F or strength=F"),
        ({"weights": "lasso", "channels": 0.5}, "weights=lasso goes with selector=lasso"),
        ({"reweighted": -1}, "reweighted=-1 must be a whole number"),
        ({"reweighted": 1.5}, "reweighted=1.5"),
        ({"bias": 1}, "bias=1 must be true or false"),
        ({"scale_invariant": "no"}, "scale_invariant='no'"),
        ({"channels": 1.5}, "channels=1.5 must lie between 0 and 1"),
        ({"round_to": -1}, "round_to=-1"),
    ],
)
def test_options_are_validated(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Lnr(**options)


def test_without_data_it_says_so(lnr: Any, nets: Any, pruning: Any) -> None:
    model = lnr.plain(nets, "convs")
    refused = pruning.refused(Lnr(), nets.facts(model))
    assert refused["one"] == refused["two"] == "lnr decides on calibration inputs: give --data"
    with pytest.raises(BoundError, match="give --data"):
        oc.compress(model, passes=["lnr:channels=0.5"], gate=False, threads=1)


def test_a_group_that_a_transposed_convolution_reads_is_left_to_prune(nets: Any) -> None:
    """And the other groups are not."""
    model = nets.build(
        """net (float[N, 3, 5, 6] x) => (float[N, 4, 5, 6] y) {
        [one] a = Conv (x, w1) [r1] b = Relu (a) [up] c = ConvTranspose (b, w2)
        [r2] d = Relu (c) [two] e = Conv (d, w3) [r3] f = Relu (e) [three] y = Conv (f, w4) }""",
        w1=(8, 3, 1, 1),
        w2=(8, 6, 1, 1),
        w3=(8, 6, 1, 1),
        w4=(4, 8, 1, 1),
    )
    facts = nets.facts(model, nets.samples(model, 60))
    found = list(Lnr().sites(facts.restricted(Lnr.needs)))
    sites = [one.node for one in found if isinstance(one, Site)]
    assert sites == ["up", "two"]
    (refusal,) = (one for one in found if isinstance(one, Refusal) and one.node == "one")
    assert "ConvTranspose" in refusal.reason
    assert "prune" in refusal.reason
    for site in (one for one in found if isinstance(one, Site)):
        assert len(Lnr(round_to=1).candidates(site, facts)) > 1
