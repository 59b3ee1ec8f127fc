"""The damage that `prune` predicts, by its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxcompress_passes.prune import Prune

Array = np.ndarray


@pytest.mark.parametrize("data", [False, True], ids=["weights alone", "with data"])
def test_damage(pruning: Any, nets: Any, tap: Callable[..., Array], *, data: bool) -> None:
    """sum over c of |W[:, c]|^2 E[(x_c - v_c)^2] relative to all, added up over consumers.

    The residual's channels end in 'c1' (behind ReLU: v = 0) and 'last'; those of 'c1' in 'c2',
    behind Sigmoid: v = 1/2.
    """
    model = pruning.graph("residual")
    feeds = nets.samples(model, 20)
    facts = nets.facts(model, feeds if data else None)

    def shares(weight: str, tensor: str, left: float) -> list[float]:
        values = facts.view.array64(weight)
        inputs = tap(model, tensor, feeds)
        found = []
        for c in range(values.shape[1]):
            energy = sum(float(w) ** 2 for w in values[:, c].ravel())
            moment = float(((inputs[:, c] - left) ** 2).mean()) if data else 1.0
            found.append(energy * moment)
        return [one / sum(found) for one in found]

    behind = {
        "stem": [shares("w1", "b", 0.0), shares("w3", "g", 0.0)],
        "c1": [shares("w2", "d", 0.5)],
    }
    for group, consumers in behind.items():
        for candidate in pruning.offers(Prune(round_to=1, branches=False), facts)[group]:
            width = len(consumers[0])
            gone = set(range(width)) - set(candidate.setting.kept)
            expected = sum(share[c] for share in consumers for c in gone)
            # Moments are sums over float32 activations of other batches.
            assert candidate.damage == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_depthwise_layers_have_no_damage_of_their_own(pruning: Any, nets: Any) -> None:
    """Their inputs and outputs go together: only 'last' loses a part of its response."""
    facts = nets.facts(pruning.graph("depthwise"))
    energy = np.square(facts.view.array64("w2")).sum(axis=(0, 2, 3))
    for candidate in pruning.offers(Prune(round_to=1), facts)["one"]:
        gone = sorted(set(range(12)) - set(candidate.setting.kept))
        expected = energy[gone].sum() / energy.sum()
        assert candidate.damage == pytest.approx(expected, rel=1e-12, abs=1e-15)
