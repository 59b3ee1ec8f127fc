"""Atoms that a whole layer mixes: one grouped convolution by all of them, and one of 1x1."""

from __future__ import annotations

from functools import partial
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec
from onnxcompress.kernels.atoms import learn_atoms
from onnxcompress.plan.contract import Candidate, Site
from onnxcompress.plan.known_moments import facts_of
from onnxcompress_passes.dsl.kernels import damage_of, metric_for
from onnxcompress_passes.dsl.setting import Sharing
from onnxcompress_passes.low_rank_pass import DATA, WEIGHTS
from onnxcompress_passes.recentred import metric_in, recentred_bias

_GEOMETRY = ("strides", "pads", "dilations", "auto_pad", "kernel_shape")


def atom_candidates(
    site: Site, layer: ConvSpec, asked: int, facts: Facts
) -> list[Candidate[Sharing]]:
    """An atom per cell (lossless) first, then fewer; or as many as were asked for.

    Args:
        site: of the layer.
        layer: the layer.
        asked: how many atoms; 0 offers a ladder.
        facts: about the model.
    """
    cells = prod(layer.kernel)
    weight = facts.view.array64(layer.weight).reshape(layer.out_channels, layer.in_channels, cells)
    metric = metric_for(site.node, facts)
    before = facts.cost(site.node)
    found: list[Candidate[Sharing]] = []
    for count in (min(asked, cells),) if asked else range(cells, 0, -1):
        lossless = count == cells
        setting = Sharing(atoms=count, metric=WEIGHTS if lossless or metric is None else DATA)
        damage = 0.0
        if not lossless:
            key = ("atoms", site.node, count, setting.metric)
            learned = facts.recall(key, partial(learn_atoms, weight, count, metric))
            damage = damage_of(layer, weight, learned.weights, metric, facts)
            damage = max(damage, found[-1].damage if found else 0.0)
        after = _cost(layer, setting, before, facts)
        found.append(Candidate(site, setting, (site.node,), before, after, damage, bool(asked)))
    return found


def mix_atoms(candidate: Candidate[Sharing], edit: Editor) -> None:
    """Filter every channel by all atoms, and mix what comes out."""
    node = edit.node(candidate.site.node)
    weight = np.asarray(node.inputs[1].values)
    setting, name = candidate.setting, node.name
    rows = weight.astype(np.float64).reshape(*weight.shape[:2], -1)
    bias = [*node.inputs[2:]]
    if setting.metric == DATA:
        (metric,) = metric_in(edit, name)
        key = ("atoms", name, setting.atoms, DATA)
        known = facts_of(edit, name)
        found = known.recall(key, partial(learn_atoms, rows, setting.atoms, metric))
        recentred = recentred_bias(edit, node, found.weights.reshape(1, len(rows), -1))
        bias = [] if recentred is None else [recentred]
    else:
        found = learn_atoms(rows, setting.atoms)
    outputs, channels = weight.shape[:2]
    kernels = np.tile(
        found.atoms.reshape(-1, *weight.shape[2:]), (channels,) + (1,) * (weight.ndim - 2)
    )
    filters = kernels[:, np.newaxis].astype(weight.dtype)
    mixture = found.numbers.reshape(outputs, -1, *(1,) * (weight.ndim - 2)).astype(weight.dtype)
    geometry = {key: node.attrs[key] for key in _GEOMETRY if key in node.attrs}
    middle = edit.variable(f"{name}_filtered", node.inputs[0])
    first = gs.Node(
        "Conv",
        f"{name}_atoms",
        geometry | {"group": channels},
        inputs=[node.inputs[0], edit.constant(f"{name}_atoms", filters)],
        outputs=[middle],
    )
    second = gs.Node(
        "Conv",
        f"{name}_mixture",
        {"kernel_shape": [1] * (weight.ndim - 2)},
        inputs=[middle, edit.constant(f"{name}_mixture", mixture), *bias],
    )
    edit.replace(node, [first, second])


def _cost(layer: ConvSpec, setting: Sharing, before: Cost, facts: Facts) -> Cost:
    weight = facts.view.array(layer.weight)
    positions = prod(facts.shape(layer.output)) // layer.out_channels
    filtered = setting.atoms * layer.in_channels
    numbers = filtered * (prod(layer.kernel) + layer.out_channels)
    bias = before.params - weight.size
    if layer.bias is None and setting.metric == DATA:
        bias += layer.out_channels
    itemsize = weight.dtype.itemsize
    octets = before.weight_bytes - weight.nbytes + (bias - before.params + weight.size) * itemsize
    return Cost(numbers * positions, numbers + bias, octets + numbers * itemsize)
