"""Networks to prune, and what the pass offers, refuses and makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.plan.contract import Candidate, NoCandidate, Refusal, Site
from onnxcompress.rewrite.manager import rewrite
from onnxcompress_passes.prune import Prune
from onnxcompress_passes.prune_setting import KeptChannels

Array = np.ndarray

CHAIN = """net (float[N, 3, 6, 7] x) => (float[N, 5] y) {
    [one] a = Conv <kernel_shape = [3, 3]> (x, w1, b1)
    [r1] b = Relu (a)
    [two] c = Conv <kernel_shape = [1, 1]> (b, w2)
    [r2] d = Relu (c)
    [pool] e = GlobalAveragePool (d)
    [flat] f = Flatten (e)
    [fc] y = Gemm <transB = 1> (f, w3, b3) }"""


RESIDUAL = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [stem] a = Conv <kernel_shape = [1, 1]> (x, w0, b0)
    [r0] b = Relu (a)
    [c1] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w1, b1)
    [bend] d = Sigmoid (c)
    [c2] e = Conv <kernel_shape = [1, 1]> (d, w2)
    [sum] f = Add (b, e)
    [r1] g = Relu (f)
    [last] y = Conv <kernel_shape = [1, 1]> (g, w3) }"""


CONCAT = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w0)
    [two] b = Conv <kernel_shape = [1, 1]> (x, w1)
    [r1] c = Sigmoid (b)
    [join] d = Concat <axis = 1> (a, c)
    [last] y = Conv <kernel_shape = [1, 1]> (d, w2, b2) }"""


DEPTHWISE = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w0, b0)
    [r1] b = Clip (a, low, high)
    [dw] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 12> (b, w1, b1)
    [r2] d = Clip (c, low, high)
    [last] y = Conv <kernel_shape = [1, 1]> (d, w2) }"""


SHARED = """net (float[N, 3, 6, 7] x, float[N, 3, 3, 2] z)
        => (float[N, 5, 6, 7] y, float[N, 5, 3, 2] u) {
    [near] a = Conv <kernel_shape = [1, 1]> (x, w, b)
    [r1] c = Sigmoid (a)
    [near_last] y = Conv <kernel_shape = [1, 1]> (c, v)
    [far] d = Conv <kernel_shape = [1, 1]> (z, w, b)
    [r2] e = Sigmoid (d)
    [far_last] u = Conv <kernel_shape = [1, 1]> (e, v) }"""


DEQUANTISED = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [dq0] v0 = DequantizeLinear <axis = 0> (q0, s0, z0)
    [one] a = Conv <kernel_shape = [1, 1]> (x, v0, b0)
    [r1] b = Sigmoid (a)
    [dq1] v1 = DequantizeLinear (q1, s1)
    [last] y = Conv <kernel_shape = [1, 1]> (b, v1) }"""


MATMUL = """net (float[N, 6] x) => (float[N, 4] y) {
    [one] a = MatMul (x, w0)
    [plus] b = Add (b0, a)
    [bend] c = Sigmoid (b)
    [two] y = MatMul (c, w1) }"""


@dataclass(frozen=True)
class Pruning:
    """`pruning.graph("residual")`, `pruning.offers(Prune(), facts)`."""

    nets: Any

    def chain(self, one: int = 12, two: int = 20, seed: int = 1) -> onnx.ModelProto:
        """Two convolutions and a dense layer, of these widths."""
        return self.nets.build(
            CHAIN, seed, w1=(one, 3, 3, 3), b1=(one,), w2=(two, one, 1, 1), w3=(5, two), b3=(5,)
        )

    def graph(self, name: str) -> onnx.ModelProto:
        """One of the networks of this file."""
        generator = np.random.default_rng(9)

        def whole(*shape: int) -> Array:
            return generator.integers(-127, 128, shape).astype(np.int8)

        match name:
            case "chain":
                return self.chain()
            case "residual":
                return self.nets.build(
                    RESIDUAL,
                    w0=(12, 3, 1, 1),
                    b0=(12,),
                    w1=(10, 12, 3, 3),
                    b1=(10,),
                    w2=(12, 10, 1, 1),
                    w3=(5, 12, 1, 1),
                )
            case "residual, equal":
                return self.nets.build(
                    RESIDUAL.replace("[N, 5", "[N, 12"),
                    w0=(12, 3, 1, 1),
                    b0=(12,),
                    w1=(12, 12, 3, 3),
                    b1=(12,),
                    w2=(12, 12, 1, 1),
                    w3=(12, 12, 1, 1),
                )
            case "concat":
                return self.nets.build(
                    CONCAT, w0=(8, 3, 1, 1), w1=(6, 3, 1, 1), w2=(5, 14, 1, 1), b2=(5,)
                )
            case "depthwise":
                return self.nets.build(
                    DEPTHWISE,
                    w0=(12, 3, 1, 1),
                    b0=(12,),
                    w1=(12, 1, 3, 3),
                    b1=(12,),
                    w2=(5, 12, 1, 1),
                    low=np.float32(0),
                    high=np.float32(6),
                )
            case "shared":
                return self.nets.build(SHARED, w=(8, 3, 1, 1), b=(8,), v=(5, 8, 1, 1))
            case "dequantised":
                return self.nets.build(
                    DEQUANTISED,
                    q0=whole(10, 3, 1, 1),
                    z0=whole(10),
                    b0=(10,),
                    s0=np.linspace(0.001, 0.02, 10).astype(np.float32),
                    q1=whole(5, 10, 1, 1),
                    s1=np.float32(0.01),
                )
            case _:
                return self.nets.build(MATMUL, w0=(6, 9), b0=(9,), w1=(9, 4))

    @staticmethod
    def offers(owner: Prune, facts: Facts) -> dict[str, Sequence[Candidate[KeptChannels]]]:
        """Candidates of every site, through facts that allow only what the pass declares."""
        view, found = facts.restricted(owner.needs), {}
        for site in list(owner.sites(view)):
            if isinstance(site, Site):
                try:
                    found[site.node] = owner.candidates(site, view)
                except NoCandidate:
                    found[site.node] = []
        return found

    @staticmethod
    def refused(owner: Prune, facts: Facts) -> dict[str, str]:
        """Why layers stay as they are."""
        found = owner.sites(facts.restricted(owner.needs))
        return {one.node: one.reason for one in found if isinstance(one, Refusal)}

    @staticmethod
    def applied(model: onnx.ModelProto, *candidates: Candidate[KeptChannels]) -> onnx.ModelProto:
        """The model with these candidates carried out."""
        return rewrite(model, candidates, {"prune": Prune()}, strict=True).model

    @staticmethod
    def widths(candidates: Sequence[Candidate[KeptChannels]]) -> list[int]:
        """How many channels stay, by candidate."""
        return [len(candidate.setting.kept) for candidate in candidates]


@pytest.fixture(scope="session")
def pruning(nets: Any) -> Pruning:
    """Networks to prune, and what the pass makes of them."""
    return Pruning(nets)
