"""What removal touches and saves, against the rewritten graph: nodes compared, costs counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import onnxcompress.plan.channels.cost as module
from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.graph.cost import Cost, model_cost
from onnxcompress.plan.channels.cost import toll
from onnxcompress.plan.channels.plan_cuts import plan_cuts
from onnxcompress.plan.channels.remove import remove_channels

X = "net (float[N, 3, 6, 7] x) => (float[N, 5, H, W] y) { "
ONE = "[one] a = Conv <kernel_shape = [1, 1]> (x, w0) "
LAST = "[last] y = Conv <kernel_shape = [1, 1]> "
SIZE = (2, 3, 6, 7)


def quantised(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(-127, 128, shape).astype(np.int8)


CONV: dict[str, Any] = {"w0": (8, 3, 1, 1)}
CASES: dict[str, Callable[[Any], Facts]] = {
    "bias appears": lambda facts_of: facts_of(
        X + ONE + "[r] b = Sigmoid (a) " + LAST + "(b, w1) }", SIZE, **CONV, w1=(5, 8, 1, 1)
    ),
    "bias is there": lambda facts_of: facts_of(
        X + ONE + "[r] b = Sigmoid (a) " + LAST + "(b, w1, b1) }",
        SIZE,
        **CONV,
        w1=(5, 8, 1, 1),
        b1=(5,),
    ),
    "normalised": lambda facts_of: facts_of(
        X + ONE + "[bn] b = BatchNormalization (a, s, t, m, q) " + LAST + "(b, w1) }",
        SIZE,
        **CONV,
        w1=(5, 8, 1, 1),
        s=(8,),
        t=(8,),
        m=(8,),
        q=np.ones(8, np.float32),
    ),
    "constants along channels": lambda facts_of: facts_of(
        X + ONE + "[m] b = Mul (a, k) [p] c = PRelu (b, s) " + LAST + "(c, w1) }",
        SIZE,
        **CONV,
        w1=(5, 8, 1, 1),
        k=(1, 8, 1, 1),
        s=(8, 1, 1),
    ),
    "grouped": lambda facts_of: facts_of(
        X + ONE + "[g] b = Conv <kernel_shape = [3, 3], group = 2> (a, wg) " + LAST + "(b, w1) }",
        SIZE,
        **CONV,
        wg=(6, 4, 3, 3),
        w1=(5, 6, 1, 1),
    ),
    "shuffled": lambda facts_of: facts_of(
        X
        + ONE
        + """[s1] b = Reshape (a, five) [s2] c = Transpose <perm = [0, 2, 1, 3, 4]> (b)
            [s3] d = Reshape (c, four) """
        + LAST
        + "(d, w1) }",
        SIZE,
        **CONV,
        w1=(5, 8, 1, 1),
        five=np.array([-1, 2, 4, 6, 7]),
        four=np.array([-1, 8, 6, 7]),
    ),
    "split": lambda facts_of: facts_of(
        X + ONE + "[s] b, c = Split <axis = 1> (a, sizes) [r] d = Sigmoid (b)"
        "[join] e = Concat <axis = 1> (d, c) " + LAST + "(e, w1) }",
        SIZE,
        **CONV,
        w1=(5, 8, 1, 1),
        sizes=np.array([5, 3]),
    ),
    "transposed": lambda facts_of: facts_of(
        X
        + ONE
        + "[up] b = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (a, wt, bt) "
        + LAST
        + "(b, w1) }",
        SIZE,
        **CONV,
        wt=(8, 4, 2, 2),
        bt=(4,),
        w1=(5, 4, 1, 1),
    ),
    "dequantised": lambda facts_of: facts_of(
        X + "[d0] v0 = DequantizeLinear <axis = 0> (q0, s0, z0) [one] a = Conv (x, v0)"
        "[r] b = Sigmoid (a) [d1] v1 = DequantizeLinear <axis = 1> (q1, s1) " + LAST + "(b, v1) }",
        SIZE,
        q0=quantised(8, 3, 1, 1),
        s0=np.linspace(0.01, 0.02, 8).astype(np.float32),
        z0=quantised(8),
        q1=quantised(5, 8, 1, 1),
        s1=np.linspace(0.01, 0.02, 8).astype(np.float32),
    ),
    "half-precision weights behind a Cast": lambda facts_of: facts_of(
        X
        + "[c0] v0 = Cast <to = 1> (h0) [one] a = Conv (x, v0) [r] b = Sigmoid (a) "
        + LAST
        + "(b, w1) }",
        SIZE,
        h0=np.random.default_rng(1).standard_normal((8, 3, 1, 1)).astype(np.float16),
        w1=(5, 8, 1, 1),
    ),
    "half-precision weights behind a Cast, read again": lambda facts_of: facts_of(
        X + ONE + "[r] b = Sigmoid (a) [c1] v1 = Cast <to = 1> (h1) " + LAST + "(b, v1) }",
        SIZE,
        **CONV,
        h1=np.random.default_rng(1).standard_normal((5, 8, 1, 1)).astype(np.float16),
    ),
    "weights and biases shared by two towers": lambda facts_of: facts_of(
        """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y, float[N, 5, 6, 7] z) {
            [one] a = Conv <kernel_shape = [1, 1]> (x, w, b0) [r] b = Sigmoid (a)
            [last] y = Conv <kernel_shape = [1, 1]> (b, v)
            [flip] f = Neg (x) [two] c = Conv <kernel_shape = [1, 1]> (f, w, b0) [s] d = Tanh (c)
            [side] z = Conv <kernel_shape = [1, 1]> (d, v) }""",
        (1, 3, 6, 7),
        w=(8, 3, 1, 1),
        b0=(8,),
        v=(5, 8, 1, 1),
    ),
    "a bias shared by two layers, one of which absorbs": lambda facts_of: facts_of(
        X.replace("y) {", "y, float[N, 5, H, W] u) {")
        + ONE
        + "[r] b = Sigmoid (a) [last] y = Conv (b, w1, c) "
        "[side] z = Conv (x, w2, c) [more] u = Relu (z) }",
        SIZE,
        **CONV,
        w1=(5, 8, 1, 1),
        w2=(5, 3, 1, 1),
        c=(5,),
    ),
    "Gemm with a number as bias": lambda facts_of: facts_of(
        """net (float[N, 4] x) => (float[N, 5] y) {
            [one] a = Gemm (x, w0, c) [r] b = Sigmoid (a) [last] y = Gemm (b, w1, d) }""",
        (3, 4),
        w0=(4, 6),
        w1=(6, 5),
        c=np.float32([0.5]),
        d=np.float32(0.25),
    ),
    "MatMul": lambda facts_of: facts_of(
        """net (float[N, 4] x) => (float[N, 5] y) {
            [one] a = MatMul (x, w0) [r] b = Sigmoid (a) [last] y = MatMul (b, w1) }""",
        (3, 4),
        w0=(4, 6),
        w1=(6, 5),
    ),
    "an old Gemm in rows": lambda facts_of: facts_of(
        """net (float[N, 4] x) => (float[N, 5] y) {
            [one] a = Gemm <transB = 1> (x, w0, c) [r] b = Sigmoid (a)
            [last] y = Gemm <alpha = 0.5, beta = 2.0> (b, w1, d) }""",
        (3, 4),
        opset=9,
        w0=(6, 4),
        c=(6,),
        w1=(6, 5),
        d=(1, 5),
    ),
}


def removals(facts: Facts) -> Iterator[dict[str, list[int]]]:
    """One channel of each group, half of it, and half of all groups."""
    half = {}
    for group in facts.coupling().groups:
        spare = [c for c in range(group.width) if all(len(v) > 1 for v in group.covers if c in v)]
        yield {group.name: spare[:1]}
        half[group.name] = spare[: max(1, group.width // 2)]
        yield {group.name: half[group.name]}
    if len(half) > 1:
        yield half


def check(facts: Facts) -> None:
    coupling = facts.coupling()
    assert coupling.groups, dict(coupling.refusals)
    for removed in removals(facts):
        found = toll(facts, plan_cuts(facts.view, coupling, removed))
        result = remove_channels(facts.model, coupling, removed)
        counted = model_cost(result, shapes_for(result, facts.sizes))
        assert found.before - found.after == facts.total() - counted, (removed, found)
        old_constants = {t.name: t for t in facts.model.graph.initializer}
        new_constants = {t.name: t for t in result.graph.initializer}
        new = {node.name: node for node in result.graph.node}
        changed = {
            node.name
            for node in facts.model.graph.node
            if new.get(node.name) != node
            or any(old_constants.get(i) != new_constants.get(i) for i in node.input)
        }
        assert set(found.touches) == changed
        assert len(found.touches) == len(set(found.touches))


@pytest.mark.parametrize("name", CASES)
def test_counted_on_the_result(facts_of: Any, name: str) -> None:
    check(CASES[name](facts_of))


def test_nothing_costs_nothing(facts_of: Any) -> None:
    facts = CASES["grouped"](facts_of)
    found = toll(facts, plan_cuts(facts.view, facts.coupling(), {}))
    assert (found.touches, found.before, found.after) == ((), Cost(), Cost())


FAULTS = {
    "MACs as before": ("_macs", lambda facts, name, _: facts.macs(name), "grouped"),
    "no new biases": ("_new_biases", lambda *_: Cost(), "bias appears"),
    "no vanishing nodes": (
        "_with_vanishing",
        lambda _, edits: module.touched(list(edits)),
        "dequantised",
    ),
}


@pytest.mark.parametrize(("part", "fault", "name"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_are_seen(
    monkeypatch: pytest.MonkeyPatch, facts_of: Any, part: str, fault: Any, name: str
) -> None:
    facts = CASES[name](facts_of)
    monkeypatch.setattr(module, part, fault)
    with pytest.raises(AssertionError):
        check(facts)
