"""What a channel costs, for regularisation (Molchanov et al. 2017, section 2.2)."""

from __future__ import annotations

from math import prod

from onnxcompress.plan.saliency.question import Question

_DENSE = frozenset({"Gemm", "MatMul"})


def mflops_per_channel(question: Question, layer: str) -> float:
    """Millions of floating-point operations of one output channel of a layer.

    A convolution costs 2 H W (Cin K^2 + 1) with H W positions of its output (Cin is that of a
    group), a dense layer 2 I - 1 per output; per sample.
    """
    facts = question.facts
    shape = facts.shapes()[question.coupling.producers[layer]]
    width = len(question.lane(layer).classes)
    samples = shape[0]
    products = facts.macs(layer) / (width * samples)
    positions = prod(shape) / (width * samples)
    if facts.view.nodes[layer].op_type in _DENSE:
        return (2.0 * products - positions) / 1e6
    return 2.0 * (products + positions) / 1e6
