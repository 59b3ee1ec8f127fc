"""Networks of every kind, to the engine and to the slow oracle at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest

from onnxcompress.analyse.facts import Facts

Channels = tuple[int, ...]

# By name: the graph, its constants, the taps by layer and what every layer makes itself, and
# channels to remove. Every network comes with distinct and with equal extents.
NETWORKS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, str], str, Channels]] = {
    "chain": (
        """net (float[N, 3, 5, 3] x) => (float[N, 3] y) {
            [one] a = Conv <kernel_shape = [3, 2], pads = [1, 1, 1, 0]> (x, w1, b1)
            [r1] b = Relu (a)
            [pool] c = MaxPool <kernel_shape = [2, 2], strides = [2, 1]> (b)
            [two] d = Conv <kernel_shape = [1, 2]> (c, w2, b2)
            [r2] e = Relu (d)
            [flat] f = Flatten (e)
            [last] y = Gemm <transB = 1> (f, w3, b3) }""",
        {"w1": (5, 3, 3, 2), "b1": (5,), "w2": (4, 5, 1, 2), "b2": (4,), "w3": (3, 8), "b3": (3,)},
        {"one": ("b", 1), "two": ("e", 1)}, {"one": "a", "two": "d"}, "one", (1, 4),
    ),
    "chain, equal extents": (
        """net (float[N, 4, 4, 4] x) => (float[N, 4] y) {
            [one] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
            [r1] b = Relu (a)
            [two] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w2, b2)
            [r2] d = Relu (c)
            [flat] e = Flatten (d)
            [last] y = Gemm <transB = 1> (e, w3) }""",
        {"w1": (4, 4, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (4, 64)},
        {"one": ("b", 1), "two": ("d", 1)}, {"one": "a", "two": "c"}, "two", (0, 3),
    ),
    "residual": (
        """net (float[N, 3, 4, 5] x) => (float[N, 3] y) {
            [stem] a = Conv <kernel_shape = [1, 1]> (x, w1, b1)
            [r1] s = Relu (a)
            [one] b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s, w2, b2)
            [r2] t = Relu (b)
            [two] u = Conv <kernel_shape = [1, 1]> (t, w3)
            [sum] v = Add (s, u)
            [r3] d = Relu (v)
            [mean] e = GlobalAveragePool (d)
            [flat] f = Flatten (e)
            [last] y = Gemm <transB = 1> (f, w4) }""",
        {"w1": (4, 3, 1, 1), "b1": (4,), "w2": (5, 4, 3, 3), "b2": (5,), "w3": (4, 5, 1, 1),
         "w4": (3, 4)},
        {"stem": ("s", 1), "one": ("t", 1), "two": ("u", 1)},
        {"stem": "a", "one": "b", "two": "u"}, "one", (2,),
    ),
    "dense": (
        """net (float[N, 7] x) => (float[N, 3] y) {
            [one] a = MatMul (x, w1)
            [bias] b = Add (a, b1)
            [r1] c = Relu (b)
            [two] d = Gemm <transB = 1> (c, w2, b2)
            [r2] e = Tanh (d)
            [last] y = Gemm (e, w3) }""",
        {"w1": (7, 5), "b1": (5,), "w2": (4, 5), "b2": (4,), "w3": (4, 3)},
        {"one": ("c", 1), "two": ("e", 1)}, {"one": "a", "two": "d"}, "two", (1,),
    ),
    "swish": (
        """net (float[N, 2, 4, 3] x) => (float[N, 3] y) {
            [one] a = Conv <kernel_shape = [2, 2]> (x, w1, b1)
            [gate] g = Sigmoid (a)
            [swish] b = Mul (a, g)
            [two] c = Conv <kernel_shape = [1, 2]> (b, w2, b2)
            [bend] d = Tanh (c)
            [flat] e = Flatten (d)
            [prior] p = Gemm <transB = 1> (e, w3)
            [last] y = Softmax <axis = 1> (p) }""",
        {"w1": (5, 2, 2, 2), "b1": (5,), "w2": (4, 5, 1, 2), "b2": (4,), "w3": (3, 12)},
        {"one": ("b", 1), "two": ("d", 1)}, {"one": "a", "two": "c"}, "one", (0, 2),
    ),
    "number": (
        """net (float[N, 3, 4, 5] x) => (float[N, 1] y) {
            [one] a = Conv <kernel_shape = [2, 3]> (x, w1, b1)
            [r1] b = Relu (a)
            [two] c = Conv <kernel_shape = [1, 2]> (b, w2, b2)
            [r2] d = Relu (c)
            [flat] e = Flatten (d)
            [last] y = Gemm (e, w3, b3) }""",
        {"w1": (4, 3, 2, 3), "b1": (4,), "w2": (6, 4, 1, 2), "b2": (6,), "w3": (36, 1),
         "b3": np.float32([3.0])},
        {"one": ("b", 1), "two": ("d", 1)}, {"one": "a", "two": "c"}, "two", (0, 5),
    ),
    "picture": (
        """net (float[N, 3, 4, 5] x) => (float[N, 2, 3, 5] y) {
            [one] a = Conv <kernel_shape = [2, 1]> (x, w1, b1)
            [r1] b = Relu (a)
            [last] y = Conv <kernel_shape = [1, 1]> (b, w2, b2) }""",
        {"w1": (4, 3, 2, 1), "b1": (4,), "w2": (2, 4, 1, 1), "b2": (2,)},
        {"one": ("b", 1)}, {"one": "a"}, "one", (3,),
    ),
}  # fmt: skip


GATES = {"dense": {"one": ("a", 1)}}
"""Where a channel is zero when it is gone, if that is not where its activation is looked at: in
front of a bias that is added by itself, which stays."""


@dataclass(frozen=True)
class Case:
    """A network with inputs, to the engine and to the slow oracle.

    Attributes:
        facts: what the engine knows.
        slow: the slow oracle, at the activations.
        gated: the slow oracle, where channels are scaled or set to zero.
        removed: channels that may be removed, by group (and layer) that makes them.
    """

    facts: Facts
    slow: Any
    gated: Any
    removed: Mapping[str, tuple[int, ...]]

    @cached_property
    def active(self) -> Any:
        """The activations once these channels are gone."""
        return replace(self.slow, gone=self.removed)

    @cached_property
    def left(self) -> Any:
        """The oracle once these channels are gone."""
        return replace(self.gated, gone=self.removed)


@pytest.fixture(scope="session")
def case(nets: Any, slow_net: Any) -> Callable[..., Case]:
    """`case("chain", labelled=True, count=7)`; the same arguments give the same object."""

    @cache
    def make(name: str, *, labelled: bool, count: int = 7) -> Case:
        text, constants, taps, made, layer, removed = NETWORKS[name]
        model = nets.build(text, seed=24, **constants)
        feeds = nets.samples(model, count)
        classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        labels = None
        if labelled:
            labels = np.random.default_rng(4).integers(0, classes, count)
        facts = nets.facts(model, feeds if labels is None else {**feeds, "y": labels})
        slow = slow_net(model, feeds, taps, made, None if labels is None else labels.tolist())
        gated = replace(slow, taps={**taps, **GATES.get(name, {})})
        return Case(facts, slow, gated, {layer: removed})

    return make
