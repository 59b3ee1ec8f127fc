"""Kernels that layers share: dictionaries of a few kernels, each use times a number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx_graphsurgeon as gs

from onnxcompress.graph.editor import Editor
from onnxcompress.kernels.dictionary import learn
from onnxcompress.kernels.emission import DOMAIN, SHARED_KERNELS, operands, shared_kernels
from onnxcompress.plan.contract import Candidate
from onnxcompress_passes.dsl.layers import Opened, Planned, held
from onnxcompress_passes.dsl.setting import Sharing
from onnxcompress_passes.low_rank_pass import WEIGHTS

LADDER = (256, 128, 64, 32, 16, 8, 4)
"""Entries on offer, up to one for two kernels: with more a scale for each saves nothing."""


def kernel_candidates(plan: Planned, asked: int) -> list[Candidate[Sharing]]:
    """A dictionary of every kernel (lossless) first, then smaller ones; or the one asked for.

    Args:
        plan: the layer.
        asked: how many entries; 0 offers a ladder.
    """
    weight, kernels = plan.weight, plan.kernels
    found: list[Candidate[Sharing]] = []
    for count in (asked,) if asked else (kernels, *(n for n in LADDER if 2 * n <= kernels)):
        lossless = count >= kernels
        learned = plan.solved(("dictionary", count), partial(learn, weight, count))
        constants = operands(learned, plan.shape, plan.dtype).values()
        found.append(
            plan.offer(
                Sharing(entries=min(count, kernels), metric=WEIGHTS if lossless else plan.metric),
                held(constants),
                None if lossless else learned.weights,
                least=found[-1].damage if found else 0.0,
                recommended=bool(asked),
            )
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
    work, count = Opened(candidate, edit), candidate.setting.entries
    found = work.solved(("dictionary", count), partial(learn, work.weight, count))
    edit.define(shared_kernels(edit.opset, work.stored.dtype))
    made = edit.variable(f"{work.name}_weight", work.node.inputs[1])
    values = operands(found, work.stored.shape, work.stored.dtype)
    call = gs.Node(
        SHARED_KERNELS,
        f"{work.name}_kernels",
        inputs=[edit.constant(f"{work.name}_{name}", array) for name, array in values.items()],
        outputs=[made],
        domain=DOMAIN,
    )
    layer = gs.Node(
        "Conv",
        f"{work.name}_stored",
        dict(work.node.attrs),
        inputs=[work.node.inputs[0], made, *work.bias(found.weights)],
    )
    edit.replace(work.node, [call, layer])
