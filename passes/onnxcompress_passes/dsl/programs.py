"""Kernels that are programs of the predefined language, at a price per bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec
from onnxcompress.kernels.emission import DOMAIN, FIRST_OPSET, program_calls
from onnxcompress.kernels.induction import Induction, LayerPrograms, induce
from onnxcompress.kernels.search import vocabulary
from onnxcompress.plan.contract import Candidate, Site
from onnxcompress.plan.known_moments import facts_of
from onnxcompress_passes.dsl.kernels import damage_of, metric_for, unfit
from onnxcompress_passes.dsl.setting import Sharing
from onnxcompress_passes.low_rank_pass import DATA, WEIGHTS
from onnxcompress_passes.recentred import metric_in, recentred_bias

TERMS = 2
"""Atoms that a program adds up, at most."""

LADDER = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Prices on offer: part of a layer's squared answer that its original kernels would cost."""


def unfit_for_programs(layer: ConvSpec, facts: Facts) -> str:
    """Why a layer's kernels cannot be programs, or an empty string."""
    opset = next((int(o.version) for o in facts.model.opset_import if not o.domain), 1)
    if len(layer.kernel) != 2 or layer.kernel[0] != layer.kernel[1]:
        return "kernels that are not square: the language has none"
    if layer.kernel[0] not in {3, 5}:
        return f"{layer.kernel[0]}x{layer.kernel[0]} kernels: the language is for 3x3 and 5x5"
    if opset < FIRST_OPSET:
        return f"opset {opset}: programs are written with operators of opset {FIRST_OPSET}"
    return unfit(layer, facts)


def program_candidates(
    site: Site, layer: ConvSpec, asked: float, facts: Facts
) -> list[Candidate[Sharing]]:
    """Original kernels (lossless) first, then programs at rising prices; or the price asked for.

    Args:
        site: of the layer.
        layer: the layer.
        asked: the price, as in `LADDER`; 0 offers a ladder.
        facts: about the model.
    """
    weight = facts.view.array64(layer.weight).reshape(layer.out_channels, layer.in_channels, -1)
    metric = metric_for(site.node, facts)
    words = vocabulary(layer.kernel[0], TERMS)
    find = facts.recall(("programs", site.node), lambda: Induction(weight, words, metric))
    before = facts.cost(site.node)
    found: list[Candidate[Sharing]] = []
    for level in (asked,) if asked else (0.0, *LADDER):
        price = level / float(words.bits[-1] * weight.shape[0] * weight.shape[1])
        programs = facts.recall(("programs", site.node, price), partial(find, price))
        lossless = level == 0.0
        setting = Sharing(price=price, metric=WEIGHTS if lossless or metric is None else DATA)
        damage = 0.0 if lossless else damage_of(layer, weight, programs.weights, metric, facts)
        damage = max(damage, found[-1].damage if found else 0.0)
        after = _cost(layer, programs, setting, before, facts)
        if found and (after.weight_bytes > found[-1].after.weight_bytes):
            continue
        found.append(
            Candidate(site, setting, (site.node,), before, after, damage, bool(asked), stored=True)
        )
    return found


def write_programs(candidate: Candidate[Sharing], edit: Editor) -> None:
    """Let functions make the layer's weight of its programs."""
    node = edit.node(candidate.site.node)
    weight = np.asarray(node.inputs[1].values)
    rows = weight.astype(np.float64).reshape(*weight.shape[:2], -1)
    words = vocabulary(weight.shape[2], TERMS)
    price, bias = candidate.setting.price, [*node.inputs[2:]]
    if candidate.setting.metric == DATA:
        (metric,) = metric_in(edit, node.name)
        known = facts_of(edit, node.name)
        find = known.recall(("programs", node.name), lambda: Induction(rows, words, metric))
        found = known.recall(("programs", node.name, price), partial(find, price))
        recentred = recentred_bias(edit, node, found.weights.reshape(1, len(rows), -1))
        bias = [] if recentred is None else [recentred]
    else:
        found = induce(rows, words, price)
    name, like = node.name, node.inputs[1]
    bank = edit.variable(f"{name}_bank", like)
    zero = edit.constant(f"{name}_zero", np.zeros(1, dtype=weight.dtype))
    size = edit.constant(f"{name}_bank_shape", np.array([rows[..., 0].size, rows.shape[2]]))
    nodes = [
        gs.Node("ConstantOfShape", f"{name}_bank", {"value": zero}, inputs=[size], outputs=[bank])
    ]
    for number, call in enumerate(program_calls(found, weight.dtype, edit.opset)):
        edit.define(call.function)
        filled = edit.variable(f"{name}_bank", like)
        given = [call.operands[operand] for operand in call.function.input[1:]]
        constants = [
            edit.constant(f"{name}_{call.function.name}_{number}_{operand}", values)
            for operand, values in zip(call.function.input[1:], given, strict=True)
        ]
        nodes.append(
            gs.Node(
                call.function.name,
                f"{name}_{call.function.name}",
                inputs=[bank, *constants],
                outputs=[filled],
                domain=DOMAIN,
            )
        )
        bank = filled
    made = edit.variable(f"{name}_weight", like)
    shape = edit.constant(f"{name}_shape", np.array(weight.shape, dtype=np.int64))
    nodes += [
        gs.Node("Reshape", f"{name}_weight", inputs=[bank, shape], outputs=[made]),
        gs.Node("Conv", f"{name}_stored", dict(node.attrs), inputs=[node.inputs[0], made, *bias]),
    ]
    edit.replace(node, nodes)


def _cost(
    layer: ConvSpec, programs: LayerPrograms, setting: Sharing, before: Cost, facts: Facts
) -> Cost:
    """Numbers, and what is kept in bytes, which count as weights of eight bits."""
    weight = facts.view.array(layer.weight)
    params = before.params - weight.size
    octets = before.weight_bytes - weight.nbytes
    for call in program_calls(programs, weight.dtype, FIRST_OPSET):
        for values in call.operands.values():
            if values.dtype == weight.dtype or values.dtype == np.uint8:
                params, octets = params + values.size, octets + values.nbytes
    if layer.bias is None and setting.metric == DATA:
        params += layer.out_channels
        octets += layer.out_channels * weight.dtype.itemsize
    return Cost(before.macs, params, octets)
