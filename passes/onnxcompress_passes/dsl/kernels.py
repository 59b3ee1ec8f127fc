"""Kernels that layers share: dictionaries of a few kernels, each use times a number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.linear import linear_layer
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec
from onnxcompress.kernels.dictionary import learn, whole
from onnxcompress.kernels.emission import DOMAIN, SHARED_KERNELS, operands, shared_kernels
from onnxcompress.kernels.induction import relative_error
from onnxcompress.plan.contract import Candidate, Site
from onnxcompress.plan.known_moments import MOST_FEATURES, facts_of, layer_moments
from onnxcompress_passes.dsl.setting import Sharing
from onnxcompress_passes.eligibility import reason_to_leave
from onnxcompress_passes.low_rank_pass import DATA, WEIGHTS
from onnxcompress_passes.recentred import metric_in, metric_of, recentred_bias

Array = NDArray[np.float64]

LADDER = (256, 128, 64, 32, 16, 8, 4)
"""Entries on offer, up to one for two kernels: with more a scale for each saves nothing."""


def unfit(layer: ConvSpec, facts: Facts) -> str:
    """Why a layer's kernels are left alone, or an empty string."""
    if layer.pointwise:
        return "1x1 kernels: a number has no shape to share"
    if layer.group > 1:
        return "grouped: its few kernels have little to share"
    return reason_to_leave(facts, layer)


def kernel_candidates(
    site: Site, layer: ConvSpec, asked: int, facts: Facts
) -> list[Candidate[Sharing]]:
    """A dictionary of every kernel (lossless) first, then smaller ones; or the one asked for.

    Args:
        site: of the layer.
        layer: the layer.
        asked: how many entries; 0 offers a ladder.
        facts: about the model.
    """
    weight = facts.view.array64(layer.weight).reshape(layer.out_channels, layer.in_channels, -1)
    kernels = layer.out_channels * layer.in_channels
    metric = metric_for(site.node, facts)
    kind = WEIGHTS if metric is None else DATA
    before = facts.cost(site.node)
    found: list[Candidate[Sharing]] = []
    for count in (asked,) if asked else (kernels, *(n for n in LADDER if 2 * n <= kernels)):
        lossless = count >= kernels
        setting = Sharing(entries=min(count, kernels), metric=WEIGHTS if lossless else kind)
        damage = 0.0
        if not lossless:
            key = ("dictionary", site.node, count, kind)
            learned = facts.recall(key, partial(learn, weight, count, metric))
            damage = damage_of(layer, weight, learned.weights, metric, facts)
            # A smaller dictionary is never called better: the descent may end in a worse one.
            damage = max(damage, found[-1].damage if found else 0.0)
        after = _cost(layer, setting, before, facts)
        found.append(
            Candidate(site, setting, (site.node,), before, after, damage, bool(asked), stored=True)
        )
    return found


def frontier(offers: Sequence[Candidate[Sharing]]) -> list[Candidate[Sharing]]:
    """Of candidates of one layer those that err least for their bytes, the largest first."""
    kept: list[Candidate[Sharing]] = []
    for one in sorted(offers, key=lambda c: (c.after.weight_bytes, c.damage)):
        last = kept[-1] if kept else None
        # What takes fewer bytes and more numbers has no place on a ladder.
        if last is None or (one.damage < last.damage and one.after.params >= last.after.params):
            kept.append(one)
    return kept[::-1]


def store(candidate: Candidate[Sharing], edit: Editor) -> None:
    """Let a function make the layer's weight of a dictionary."""
    node = edit.node(candidate.site.node)
    weight = np.asarray(node.inputs[1].values)
    setting = candidate.setting
    rows = weight.astype(np.float64).reshape(*weight.shape[:2], -1)
    bias = [*node.inputs[2:]]
    if setting.entries >= rows.shape[0] * rows.shape[1]:
        found = whole(rows)
    elif setting.metric == DATA:
        (metric,) = metric_in(edit, node.name)
        key = ("dictionary", node.name, setting.entries, DATA)
        known = facts_of(edit, node.name)
        found = known.recall(key, partial(learn, rows, setting.entries, metric))
        recentred = recentred_bias(edit, node, found.weights.reshape(1, len(rows), -1))
        bias = [] if recentred is None else [recentred]
    else:
        found = learn(rows, setting.entries)
    edit.define(shared_kernels(edit.opset))
    made = edit.variable(f"{node.name}_weight", node.inputs[1])
    values = operands(found, weight.shape, weight.dtype)
    call = gs.Node(
        SHARED_KERNELS,
        f"{node.name}_kernels",
        inputs=[edit.constant(f"{node.name}_{name}", array) for name, array in values.items()],
        outputs=[made],
        domain=DOMAIN,
    )
    layer = gs.Node(
        "Conv", f"{node.name}_stored", dict(node.attrs), inputs=[node.inputs[0], made, *bias]
    )
    edit.replace(node, [call, layer])


def metric_for(node: str, facts: Facts) -> Array | None:
    """Covariance of what the layer reads; None without calibration inputs."""
    if facts.moments() is None:
        return None
    every = [spec.node for spec in facts.convs() if isinstance(spec, ConvSpec)]
    layers = {name: linear_layer(facts.view.nodes[name], facts.view) for name in every}
    fitting = [n for n, one in layers.items() if one.features <= MOST_FEATURES and one.groups == 1]
    if node not in fitting:
        return None
    found = metric_of(layers[node], layer_moments(facts, fitting)[node], facts.view)
    return np.asarray(found[0])


def damage_of(
    layer: ConvSpec, weight: Array, other: Array, metric: Array | None, facts: Facts
) -> float:
    """Relative squared error of a layer's answers with other kernels.

    Args:
        layer: the layer.
        weight: its kernels, [outputs, channels, cells].
        other: what takes their place.
        metric: of what the layer reads; None for white noise.
        facts: about the model.
    """
    if metric is not None:
        return relative_error(weight, other, metric)
    seen = np.sqrt(_coverage(layer, facts))
    return relative_error(weight * seen, other * seen)


def _coverage(layer: ConvSpec, facts: Facts) -> Array:
    """How many positions of the output read the input, and no padding, through each cell."""
    found = np.ones(1)
    extents, answers = facts.shape(layer.input)[2:], facts.shape(layer.output)[2:]
    for axis, (extent, answer) in enumerate(zip(extents, answers, strict=True)):
        start = np.arange(answer) * layer.strides[axis] - layer.pads[axis]
        reach = start[:, np.newaxis] + np.arange(layer.kernel[axis]) * layer.dilations[axis]
        found = np.multiply.outer(found, ((reach >= 0) & (reach < extent)).sum(axis=0))
    return np.asarray(found.ravel(), dtype=np.float64)


def _cost(layer: ConvSpec, setting: Sharing, before: Cost, facts: Facts) -> Cost:
    """Entries, scales, and (as bytes, which count as weights of eight bits) indices."""
    weight = facts.view.array(layer.weight)
    kernels = layer.out_channels * layer.in_channels
    numbers = setting.entries * (weight.size // kernels) + kernels
    index = kernels if setting.entries <= 256 else 0
    params = before.params - weight.size + numbers + index
    octets = before.weight_bytes - weight.nbytes + numbers * weight.dtype.itemsize + index
    if layer.bias is None and setting.metric == DATA:
        params, octets = (
            params + layer.out_channels,
            octets + (layer.out_channels * weight.dtype.itemsize),
        )
    return Cost(before.macs, params, octets)
