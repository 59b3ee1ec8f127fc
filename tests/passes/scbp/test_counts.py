"""The counts of the paper's reading: sizes and MACs of ResNets whose stages shrink."""

from __future__ import annotations

from functools import cache

import onnx
import pytest

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.graph.cost import model_cost
from onnxcompress.plan.options import collect
from onnxcompress.plan.registry import make_pass
from onnxcompress.rewrite.manager import rewrite
from tests.passes.scbp.resnets import parameters_before_folding, resnet

# From torchvision: parameters with BatchNormalization, and 10^9 multiplications.
BASE = {18: (11_689_512, 1.814), 34: (21_797_672, 3.664), 50: (25_557_032, 4.089)}
TABLE = {
    (0.75, 0.75, 0.75, 0.75): {18: (0.571, 0.575), 34: (0.567, 0.569), 50: (0.578, 0.568)},
    (0.7, 0.7, 0.7, 0.7): {18: (0.499, 0.520), 34: (0.492, 0.503), 50: (0.504, 0.501)},
    (0.5, 0.5, 0.5, 0.5): {18: (0.261, 0.266), 34: (0.256, 0.258), 50: (0.271, 0.257)},
    (1.0, 1.0, 1.0, 0.5): {18: (0.468, 0.839), 34: (0.552, 0.873), 50: (0.547, 0.864)},
    (1.0, 1.0, 0.75, 0.5): {18: (0.380, 0.742), 34: (0.411, 0.714), 50: (0.417, 0.710)},
    (1.0, 0.75, 0.5, 0.5): {18: (0.290, 0.572), 34: (0.283, 0.496), 50: (0.296, 0.489)},
    (0.5, 1.0, 1.0, 1.0): {18: (0.987, 0.759), 34: (0.990, 0.833), 50: (0.990, 0.838)},
}
RATIOS = (1.0, 0.75, 0.5, 0.25)


@cache
def network(depth: int) -> tuple[onnx.ModelProto, Facts]:
    model = resnet(depth)
    return model, analyse(model, {"x": (1, 3, 224, 224)})


@pytest.mark.parametrize("depth", BASE)
def test_the_seed_networks_are_torchvisions(depth: int) -> None:
    model, facts = network(depth)
    params, macs = BASE[depth]
    assert parameters_before_folding(model) == params
    assert round(facts.total().macs / 1e9, 3) == macs
    sites = collect(facts, [make_pass("scbp", ranking="weight", within="even")]).sites
    assert [tuple(c.setting.ratio for c in offers) for offers in sites] == [RATIOS] * 4


@pytest.mark.parametrize("depth", BASE)
@pytest.mark.parametrize("ratios", TABLE)
def test_sizes_and_macs_of_the_table(depth: int, ratios: tuple[float, ...]) -> None:
    model, facts = network(depth)
    owner = make_pass("scbp", ranking="weight", within="even", widths="+".join(map(str, ratios)))
    chosen = [offers[0] for offers in collect(facts, [owner]).sites]
    assert [c.setting.ratio for c in chosen] == [c for c in ratios if c < 1.0]
    small = rewrite(model, chosen, {"scbp": owner}, strict=True).model
    cost = model_cost(small, shapes_for(small, facts.sizes))
    size, macs = TABLE[ratios][depth]
    whole = parameters_before_folding(model)
    assert round(parameters_before_folding(small) / whole, 3) == size
    assert round(cost.macs / facts.total().macs, 3) == macs
    # What is counted without building anything is what is built.
    saving = owner.saving_together(chosen, facts.restricted(owner.needs))
    assert saving.macs == facts.total().macs - cost.macs
    assert saving.params == facts.total().params - cost.params
