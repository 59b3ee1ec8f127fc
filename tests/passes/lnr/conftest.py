"""Small networks for Linear Neural Reconstruction, and what an owner makes of them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.memo import Memo
from onnxcompress.plan.contract import NoCandidate, Site
from onnxcompress.plan.known_moments import remember_facts
from onnxcompress.rewrite.manager import rewrite
from onnxcompress_passes.lnr import Lnr

Array = np.ndarray

CONVS = """net (float[N, 3, 6, 7] x) => (float[N, 5] y) {
    [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) [r1] b = Relu (a)
    [two] c = Conv <strides = [2, 1]> (b, w2, b2) [r2] d = Relu (c)
    [pool] e = GlobalAveragePool (d) [flat] f = Flatten (e)
    [fc] y = Gemm <transB = 1> (f, w3, b3) }"""


MLP = """net (float[N, 3, 3, 4] x) => (float[N, 5] y) {
    [one] a = Conv (x, w1, b1) [r1] b = Relu (a) [flat] c = Flatten (b)
    [two] d = Gemm (c, w2, b2) [r2] e = Relu (d)
    [fc] y = Gemm <transB = 1> (e, w3, b3) }"""


RESIDUAL = """net (float[N, 3, 4, 5] x) => (float[N, 5, 4, 5] y) {
    [stem] a = Conv (x, w0, b0) [r0] b = Relu (a)
    [c1] c = Conv <pads = [1, 1, 1, 1]> (b, w1, b1) [bend] d = Sigmoid (c) [c2] e = Conv (d, w2)
    [sum] f = Add (b, e) [r1] g = Relu (f)
    [last] y = Conv (g, w3, b3) }"""


@dataclass(frozen=True)
class Reconstruction:
    """What the pass keeps of a network, and what it makes of it."""

    kept: dict[str, tuple[int, ...]]
    model: onnx.ModelProto


def reconstruct(owner: Lnr, facts: Facts) -> Reconstruction:
    """Carry out the recommended candidate of every site."""
    view, chosen = facts.restricted(owner.needs), []
    for site in owner.sites(view):
        if isinstance(site, Site):
            with suppress(NoCandidate):
                chosen.append(owner.candidates(site, view)[-1])
    memo = Memo()
    remember_facts(facts, memo)
    result = rewrite(facts.model, chosen, {"lnr": owner}, strict=True, memo=memo)
    return Reconstruction({c.site.node: c.setting.kept for c in chosen}, result.model)


def relative(
    kit: Any, one: onnx.ModelProto, two: onnx.ModelProto, feeds: dict[str, Array]
) -> float:
    (was,), (now) = kit.run(one, feeds)[:1], kit.run(two, feeds)[0]
    return float(np.linalg.norm(now - was) / np.linalg.norm(was))


def initializers(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: onnx.numpy_helper.to_array(t).copy() for t in model.graph.initializer}


def with_values(model: onnx.ModelProto, **values: Array) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            array = values[tensor.name].astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return copy


def plain(nets: Any, name: str) -> onnx.ModelProto:
    made: onnx.ModelProto
    if name == "convs":
        made = nets.build(
            CONVS, w1=(8, 3, 3, 3), b1=(8,), w2=(6, 8, 3, 2), b2=(6,), w3=(5, 6), b3=(5,)
        )
    elif name == "mlp":
        made = nets.build(MLP, w1=(8, 3, 1, 1), b1=(8,), w2=(96, 6), b2=(6,), w3=(5, 6), b3=(5,))
    else:
        made = nets.build(
            RESIDUAL,
            w0=(6, 3, 1, 1),
            b0=(6,),
            w1=(4, 6, 3, 3),
            b1=(4,),
            w2=(6, 4, 1, 1),
            w3=(5, 6, 1, 1),
            b3=(5,),
        )
    return made


def redundant(
    nets: Any, name: str, *, twins: bool = True
) -> tuple[onnx.ModelProto, dict[str, list[set[int]]]]:
    """Half of the channels dead (or twins); and the sets of which one channel each is needed."""
    model = plain(nets, name)
    values = initializers(model)
    outward = 1 if name == "mlp" else 0
    for weight, bias, axis, dead, pairs in (
        ("w1", "b1", 0, (2, 5), ((0, 7, 0.5), (4, 1, 3.0))),
        ("w2", "b2", outward, (3,), ((0, 5, 2.0), (1, 2, 0.25))),
    ):
        rows = np.moveaxis(values[weight], axis, 0)
        for source, twin, factor in pairs:
            values[bias][source] += np.float32(0.3)
            rows[twin], values[bias][twin] = factor * rows[source], factor * values[bias][source]
        for channel in dead if twins else (*dead, *(twin for _, twin, _ in pairs)):
            rows[channel] = 0.0
            values[bias][channel] = -1.0
    classes = {"one": [{0, 7}, {4, 1}, {3}, {6}], "two": [{0, 5}, {1, 2}, {4}]}
    if not twins:
        classes = {"one": [{0}, {4}, {3}, {6}], "two": [{0}, {1}, {4}]}
    return with_values(model, **values), classes


@pytest.fixture(scope="session")
def lnr() -> SimpleNamespace:
    """The networks, and functions on them."""
    return SimpleNamespace(
        CONVS=CONVS,
        MLP=MLP,
        RESIDUAL=RESIDUAL,
        Reconstruction=Reconstruction,
        reconstruct=reconstruct,
        relative=relative,
        initializers=initializers,
        with_values=with_values,
        plain=plain,
        redundant=redundant,
    )
