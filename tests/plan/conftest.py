"""Candidates and passes that exist only here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts, Need, analyse
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.infer import with_value_info
from onnxcompress.plan.contract import Candidate, Pass, Refusal, Site


@dataclass(frozen=True)
class Width:
    """What a made-up candidate sets."""

    width: int


@pytest.fixture(scope="session")
def offer() -> Callable[..., Candidate[Any]]:
    """A candidate that saves so many MACs (parameters, bytes) at such damage."""

    def make(
        node: str,
        width: int,
        saved: tuple[int, int, int],
        damage: float,
        *,
        recommended: bool = False,
        name: str = "made_up",
    ) -> Candidate[Any]:
        before = Cost(1000, 500, 2000)
        return Candidate(
            Site(name, node),
            Width(width),
            (node,),
            before,
            before - Cost(*saved),
            damage,
            recommended,
        )

    return make


@pytest.fixture(scope="session")
def facts() -> Facts:
    """Three 1x1 convolutions in a row, the first and third of equal structure."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    row (float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y)
    {
      [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
      [two] b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a, w2)
      [three] y = Conv <kernel_shape = [1, 1]> (b, w3)
    }
    """
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(4)
    for name, shape in {"w1": (4, 4, 1, 1), "w2": (4, 4, 3, 3), "w3": (4, 4, 1, 1)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return analyse(with_value_info(model), {"x": (1, 4, 5, 5)})


@dataclass(frozen=True)
class Scripted(Pass[Width]):
    """Yields what it is told to; anything callable is called."""

    found: tuple[Any, ...] = ()
    offers: Any = ()

    name: ClassVar[str] = "scripted"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SHAPES})
    setting_type: ClassVar[type] = Width

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        for entry in self.found:
            yield entry(facts) if callable(entry) else entry

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[Width]]:
        result = self.offers(site, facts)
        return list(result)

    def rewrite(self, candidate: Candidate[Width], edit: Any) -> None:
        """Nothing: what is timed is decided by the test."""


@pytest.fixture(scope="session")
def scripted() -> Callable[..., Pass[Any]]:
    """A pass that does as it is told, under any name."""

    def make(name: str, found: Sequence[Any], offers: Callable[..., Any]) -> Pass[Any]:
        kind = type(name, (Scripted,), {"name": name})
        made = kind(tuple(found), offers)
        assert isinstance(made, Pass)
        return made

    return make
