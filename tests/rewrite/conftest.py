"""A pass that does as it is told, over four convolutions in a row; and a bench for repair."""

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
from onnxcompress.graph.view import GraphView
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.contract import Candidate, Pass, Refusal, Site
from onnxcompress.rewrite import mending
from onnxcompress.rewrite.manager import Rewritten, rewrite
from onnxcompress.rewrite.mended import Mended
from onnxcompress.rewrite.repair import Repair, Repaired
from onnxcompress.runtime import Execution

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


CHAIN = """net (float[{batch}, 3, 6, 7] x) => (float[{batch}, 5] y) {{
    [one] a = Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (x, w1, b1) [r1] b = Relu (a)
    [two] c = Conv <pads = [0, 1, 1, 0]> (b, w2) [r2] d = Relu (c)
    [pool] e = GlobalAveragePool (d) [flat] f = Flatten (e)
    [fc] y = Gemm <transB = 1> (f, w3, b3) }}"""


class Bench:
    """Originals, variants of them, and what repair makes of the variants."""

    @staticmethod
    def chain(nets: Any, one: int = 6, two: int = 4, *, batch: Any = "N") -> onnx.ModelProto:
        """Two convolutions of so many filters, and a dense layer: one, two, fc."""
        made: onnx.ModelProto = nets.build(
            CHAIN.format(batch=batch),
            w1=(one, 3, 3, 3),
            b1=(one,),
            w2=(two, one, 2, 2),
            w3=(5, two),
            b3=(5,),
        )
        return made

    @staticmethod
    def relative(
        kit: Any, model: onnx.ModelProto, other: onnx.ModelProto, feeds: dict[str, np.ndarray]
    ) -> float:
        """How far the first outputs of two models are apart, relative L2."""
        one, two = (kit.run(m, feeds)[0].astype(np.float64) for m in (model, other))
        return float(np.linalg.norm(two - one) / np.linalg.norm(one))

    @staticmethod
    def by_node(found: Repaired) -> dict[str, Mended]:
        """What was done to every layer."""
        return {one.node: one for one in found.mended}

    @staticmethod
    def variant(model: onnx.ModelProto, **values: np.ndarray) -> onnx.ModelProto:
        """A copy with other values of these constants."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for tensor in copy.graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values[tensor.name], tensor.name))
        return copy

    @staticmethod
    def constant(model: onnx.ModelProto, node: str, index: int) -> np.ndarray:
        """What a node reads as its input `index`, in float64."""
        view = GraphView(model)
        return view.array64(view.nodes[node].input[index])

    @staticmethod
    def batched(feeds: dict[str, np.ndarray], size: int = 64) -> list[dict[str, np.ndarray]]:
        """The same samples, batch by batch; the last batch may be short."""
        count = len(next(iter(feeds.values())))
        return [
            {name: values[at : at + size] for name, values in feeds.items()}
            for at in range(0, count, size)
        ]

    def repaired(
        self,
        original: onnx.ModelProto,
        result: onnx.ModelProto,
        feeds: dict[str, np.ndarray],
        kept: Any = None,
        **options: Any,
    ) -> Repaired:
        """The variant, repaired on these samples; neither model changes."""
        models = (original, result)
        before = [m.SerializeToString(deterministic=True) for m in models]
        repair = Repair(original, self.batched(feeds), Execution(threads=1), **options)
        found = repair(result, kept or {})
        assert [m.SerializeToString(deterministic=True) for m in models] == before
        onnx.checker.check_model(found.model, full_check=True)
        return found

    @staticmethod
    def ridge(
        x: np.ndarray, y: np.ndarray, prior: np.ndarray, shrinkage: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """(A, b) of lstsq on the rows [rows, d] -> [rows, h] themselves, drawn to a prior [h, d].

        The bias is free: it is a column of ones that nothing draws anywhere.
        """
        features, rows = x.shape[1], len(x)
        centred = x - x.mean(axis=0)
        weight = np.sqrt(shrinkage * np.square(centred).sum() / features)
        left = np.block(
            [[x, np.ones((rows, 1))], [weight * np.eye(features), np.zeros((features, 1))]]
        )
        right = np.concatenate([y, weight * prior.T])
        found = np.linalg.lstsq(left, right, rcond=None)[0]
        return found[:-1].T, found[-1]

    @staticmethod
    def rows(values: np.ndarray) -> np.ndarray:
        """[N, C, *spatial] as [positions, C]."""
        return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])


@pytest.fixture(scope="session")
def bench() -> Bench:
    """`bench.repaired(original, bench.variant(original, w=...), feeds)`."""
    return Bench()


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gain is given up for weights closer to those that are there."""
    monkeypatch.setattr(mending, "TOLERATED", 0.0)
