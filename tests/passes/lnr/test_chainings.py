"""Chainings of `lnr`: what is rebuilt from what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress_passes.lnr import Lnr


@pytest.mark.parametrize("chaining", ["parallel", "top-down", "bottom-up"])
@pytest.mark.parametrize("name", ["convs", "mlp", "residual"])
def test_chainings(lnr: Any, nets: Any, kit: Any, name: str, chaining: str) -> None:
    """Least squares undo the shrinkage of the group lasso; with biases they come closer still."""
    model = lnr.plain(nets, name)
    feeds = nets.samples(model, 150)
    facts = nets.facts(model, feeds)
    fixed: dict[str, Any] = {"channels": 0.7, "selector": "lasso", "chaining": chaining}
    found = {
        (weights, bias): lnr.reconstruct(Lnr(**fixed, weights=weights, bias=bias), facts)
        for weights, bias in (("refit", True), ("lasso", True), ("refit", False))
    }
    widths = {g: len(k) for g, k in found["refit", True].kept.items()}
    assert widths == {g.name: round(0.7 * g.width) for g in facts.coupling().groups}
    if chaining != "top-down":
        assert found["refit", True].kept == found["lasso", True].kept
    refit, lasso, bare = (lnr.relative(kit, model, f.model, feeds) for f in found.values())
    assert refit < lasso
    assert refit < bare
    assert refit < 1.0


def test_top_down_makes_up_for_what_was_lost_in_front(lnr: Any, nets: Any, kit: Any) -> None:
    """The second layer is rebuilt from what the compressed network delivers."""
    model = lnr.plain(nets, "convs")
    feeds = nets.samples(model, 200)
    facts = nets.facts(model, feeds)
    errors = {
        chaining: lnr.relative(
            kit,
            model,
            lnr.reconstruct(Lnr(channels=0.5, weights="refit", chaining=chaining), facts).model,
            feeds,
        )
        for chaining in ("parallel", "top-down")
    }
    assert errors["top-down"] < errors["parallel"]


def test_bottom_up_rebuilds_only_what_the_next_layer_keeps(lnr: Any, nets: Any) -> None:
    """'two' computes 0 to 2 from large weights, which 'fc' hardly reads; 3 to 5 from small ones."""
    model = lnr.plain(nets, "convs")
    values = lnr.initializers(model)
    values["w2"][:3, 4:] = 0.0
    values["w2"][:3, :4] *= 5.0
    values["w2"][3:, :4] = 0.0
    values["b2"] += np.float32(1)
    values["w3"][:, :3] *= 1e-3
    facts = nets.facts(lnr.with_values(model, **values), nets.samples(model, 100))
    found = {
        chaining: lnr.reconstruct(Lnr(channels=0.5, chaining=chaining), facts).kept
        for chaining in ("parallel", "bottom-up")
    }
    assert found["parallel"]["two"] == found["bottom-up"]["two"] == (3, 4, 5)
    assert found["bottom-up"]["one"] == (4, 5, 6, 7)
    assert found["parallel"]["one"] != (4, 5, 6, 7)


def test_the_same_data_gives_the_same_bytes(lnr: Any, nets: Any) -> None:
    model = lnr.plain(nets, "mlp")
    feeds = nets.samples(model, 60)
    owner = Lnr(channels=0.5, weights="refit", chaining="top-down")
    one, two = (lnr.reconstruct(owner, nets.facts(model, feeds)).model for _ in range(2))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)
