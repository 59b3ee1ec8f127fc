"""A pass that does as it is told, over four convolutions in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.contract import Candidate, Pass, Refusal, Site
from onnxcompress.rewrite.manager import Rewritten, rewrite

Act = Callable[[str, Editor], None]


@dataclass(frozen=True)
class Nothing:
    """A setting without choices."""


@dataclass(frozen=True)
class Acting(Pass[Nothing]):
    """Does what the test says to the site's node."""

    acts: Any = None

    name: ClassVar[str] = "acting"
    needs: ClassVar[frozenset[Need]] = frozenset()
    setting_type: ClassVar[type] = Nothing

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        yield from ()

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[Nothing]]:
        return []

    def rewrite(self, candidate: Candidate[Nothing], edit: Editor) -> None:
        self.acts[candidate.site.node](candidate.site.node, edit)


@pytest.fixture
def model() -> onnx.ModelProto:
    """Four 1x1 convolutions in a row, by name and weight: a wa, b wb, c wc, d wd."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    row (float[1, 4, 2, 3] x) => (float[1, 4, 2, 3] y)
    {
      [a] ta = Conv <kernel_shape = [1, 1]> (x, wa)
      [b] tb = Conv <kernel_shape = [1, 1]> (ta, wb)
      [c] tc = Conv <kernel_shape = [1, 1]> (tb, wc)
      [d] y = Conv <kernel_shape = [1, 1]> (tc, wd)
    }
    """
    made = onnx.parser.parse_model(text)
    generator = np.random.default_rng(6)
    for name in ("wa", "wb", "wc", "wd"):
        values = generator.standard_normal((4, 4, 1, 1)).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return canonicalise(made).model


@pytest.fixture(scope="session")
def acting() -> type[Acting]:
    """`acting({"a": act})` is that pass."""
    return Acting


@pytest.fixture
def candidate() -> Callable[..., Candidate[Nothing]]:
    """A candidate of that pass; it touches its own node unless told otherwise."""

    def make(node: str, touches: tuple[str, ...] = ()) -> Candidate[Nothing]:
        return Candidate(Site("acting", node), Nothing(), touches or (node,), Cost(), Cost(), 0.0)

    return make


@pytest.fixture
def carry_out(candidate: Callable[..., Candidate[Nothing]]) -> Callable[..., Rewritten]:
    """Rewrite a model by acts, one per node; whatever happens, the model stays as it was."""

    def call(
        model: onnx.ModelProto, acts: dict[str, Act], *, strict: bool = False, **touches: Any
    ) -> Rewritten:
        chosen = [candidate(node, touches.get(node, ())) for node in acts]
        before = model.SerializeToString(deterministic=True)
        try:
            return rewrite(model, chosen, {"acting": Acting(acts)}, strict=strict)
        finally:
            assert model.SerializeToString(deterministic=True) == before

    return call


@pytest.fixture
def halve() -> Act:
    """What a good pass does: a Conv of half the weight, then a Mul by two."""

    def act(node: str, edit: Editor) -> None:
        old = edit.node(node)
        weight = edit.constant(f"{node}_half", np.asarray(old.inputs[1].values) / np.float32(2))
        two = edit.constant(f"{node}_two", np.float32([2]))
        middle = edit.variable(f"{node}_middle", old.inputs[0])
        attributes = {"kernel_shape": [1, 1]}
        first = gs.Node("Conv", f"{node}_half", attributes, [old.inputs[0], weight], [middle])
        edit.replace(old, [first, gs.Node("Mul", f"{node}_twice", {}, [middle, two])])

    return act
