"""Atoms that a whole layer mixes: one grouped convolution by all of them, and one of 1x1."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.graph.editor import Editor
from onnxcompress.kernels.atoms import learn_atoms
from onnxcompress.plan.contract import Candidate
from onnxcompress_passes.dsl.layers import Opened, Planned
from onnxcompress_passes.dsl.setting import Sharing
from onnxcompress_passes.low_rank_pass import WEIGHTS

_GEOMETRY = ("strides", "pads", "dilations", "auto_pad", "kernel_shape")


def atom_candidates(plan: Planned, asked: int) -> list[Candidate[Sharing]]:
    """An atom per cell (lossless) first, then fewer; or as many as were asked for.

    Args:
        plan: the layer.
        asked: how many atoms; 0 offers a ladder.
    """
    weight, layer = plan.weight, plan.layer
    cells = weight.shape[2]
    found: list[Candidate[Sharing]] = []
    for count in (min(asked, cells),) if asked else range(cells, 0, -1):
        lossless = count == cells
        learned = plan.solved(("atoms", count), partial(learn_atoms, weight, count))
        numbers = count * layer.in_channels * (cells + layer.out_channels)
        found.append(
            plan.offer(
                Sharing(atoms=count, metric=WEIGHTS if lossless else plan.metric),
                plan.numbers(numbers),
                None if lossless else learned.weights,
                macs=numbers * plan.positions,
                least=found[-1].damage if found else 0.0,
                recommended=bool(asked),
            )
        )
    return found


def mix_atoms(candidate: Candidate[Sharing], edit: Editor) -> None:
    """Filter every channel by all atoms, and mix what comes out."""
    work, count = Opened(candidate, edit), candidate.setting.atoms
    found = work.solved(("atoms", count), partial(learn_atoms, work.weight, count))
    node, shape, dtype = work.node, work.stored.shape, work.stored.dtype
    ones = (1,) * (len(shape) - 2)
    kernels = np.tile(found.atoms.reshape(-1, 1, *shape[2:]), (shape[1], 1, *ones))
    mixture = found.numbers.reshape(shape[0], -1, *ones)
    geometry = {key: node.attrs[key] for key in _GEOMETRY if key in node.attrs}
    middle = edit.variable(f"{work.name}_filtered", node.inputs[0])
    first = gs.Node(
        "Conv",
        f"{work.name}_atoms",
        geometry | {"group": shape[1]},
        inputs=[node.inputs[0], edit.constant(f"{work.name}_atoms", kernels.astype(dtype))],
        outputs=[middle],
    )
    second = gs.Node(
        "Conv",
        f"{work.name}_mixture",
        {"kernel_shape": list(ones)},
        inputs=[
            middle,
            edit.constant(f"{work.name}_mixture", mixture.astype(dtype)),
            *work.bias(found.weights),
        ],
    )
    edit.replace(node, [first, second])
