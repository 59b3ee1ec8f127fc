"""What the pass finds in a network, and the network it makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.plan.contract import Candidate, Refusal, Site
from onnxcompress.plan.options import Options, collect
from onnxcompress.rewrite.manager import rewrite
from onnxcompress_passes.exact.rewrites import Exact


@dataclass(frozen=True)
class Bench:
    """Finds and rewrites; compares bit for bit, on whole numbers."""

    nets: Any
    kit: Any

    def options(self, model: onnx.ModelProto, **given: Any) -> Options:
        return collect(self.nets.facts(model, **given), [Exact()])

    def offers(self, model: onnx.ModelProto, **given: Any) -> list[Candidate[Any]]:
        """The last (most thorough) candidate of every site."""
        return [offers[-1] for offers in self.options(model, **given).sites]

    def kinds(self, model: onnx.ModelProto, **given: Any) -> list[str]:
        return [candidate.setting.kind for candidate in self.offers(model, **given)]

    def rewritten(self, model: onnx.ModelProto, *chosen: Candidate[Any]) -> onnx.ModelProto:
        taken = list(chosen) or self.offers(model)
        return rewrite(model, taken, {"exact": Exact()}, strict=True).model

    def checked(
        self, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray] | None = None
    ) -> onnx.ModelProto:
        """The rewritten network, after it was found to answer the same, bit for bit."""
        result = self.rewritten(model)
        given = feeds or {
            value.name: self.kit.whole(
                [d.dim_value or 3 for d in value.type.tensor_type.shape.dim], seed=9
            )
            for value in model.graph.input
        }
        self.kit.assert_same(model, result, given)
        return result

    def found(self, model: onnx.ModelProto) -> list[Site | Refusal]:
        return list(Exact().sites(self.nets.facts(model)))


@pytest.fixture
def bench(nets: Any, kit: Any) -> Bench:
    return Bench(nets, kit)
