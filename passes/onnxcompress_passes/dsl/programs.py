"""Kernels that are programs of the predefined language, at a price per bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec
from onnxcompress.kernels.emission import DOMAIN, FIRST_OPSET, program_calls
from onnxcompress.kernels.induction import Array, Induction, LayerPrograms, induce
from onnxcompress.kernels.search import vocabulary
from onnxcompress.plan.contract import Candidate
from onnxcompress_passes.dsl.layers import Opened, Planned, held, unfit_for_squares
from onnxcompress_passes.dsl.setting import Sharing
from onnxcompress_passes.low_rank_pass import WEIGHTS

TERMS = 2
"""Atoms that a program adds up, at most."""

LADDER = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Prices on offer: part of a layer's squared answer that its original kernels would cost."""


def unfit_for_programs(layer: ConvSpec, facts: Facts) -> str:
    """Why a layer's kernels cannot be programs, or an empty string."""
    reason = unfit_for_squares(layer, facts)
    if not reason and layer.kernel[0] not in {3, 5}:
        return f"{layer.kernel[0]}x{layer.kernel[0]} kernels: the language is for 3x3 and 5x5"
    opset = next((int(o.version) for o in facts.model.opset_import if not o.domain), 1)
    if not reason and opset < FIRST_OPSET:
        return f"opset {opset}: programs are written with operators of opset {FIRST_OPSET}"
    return reason


def program_candidates(plan: Planned, asked: float) -> list[Candidate[Sharing]]:
    """Original kernels (lossless) first, then programs at rising prices; or the price asked for.

    Args:
        plan: the layer.
        asked: the price, as in `LADDER`; 0 offers a ladder.
    """
    words = vocabulary(plan.layer.kernel[0], TERMS)
    finder: list[Induction] = []

    def find(price: float, metric: Array | None) -> LayerPrograms:
        # One for all prices: what depends on the metric alone is worked out once, and not kept.
        if not finder:
            finder.append(Induction(plan.weight, words, metric))
        return finder[0](price)

    found: list[Candidate[Sharing]] = []
    for level in (asked,) if asked else (0.0, *LADDER):
        price = level / float(words.bits[-1] * plan.kernels)
        programs = plan.solved(("programs", price), partial(find, price))
        calls = program_calls(programs, plan.dtype, FIRST_OPSET)
        offer = plan.offer(
            Sharing(price=price, metric=plan.metric if level else WEIGHTS),
            held(values for call in calls for values in call.operands.values()),
            programs.weights if level else None,
            least=found[-1].damage if found else 0.0,
            recommended=bool(asked),
        )
        if not found or offer.after.weight_bytes <= found[-1].after.weight_bytes:
            found.append(offer)
    return found


def write_programs(candidate: Candidate[Sharing], edit: Editor) -> None:
    """Let functions make the layer's weight of its programs."""
    work, price = Opened(candidate, edit), candidate.setting.price
    shape, dtype = work.stored.shape, work.stored.dtype
    words = vocabulary(shape[2], TERMS)
    found = work.solved(("programs", price), partial(induce, work.weight, words, price))
    name, like = work.name, work.node.inputs[1]
    bank = edit.variable(f"{name}_bank", like)
    zero = edit.constant(f"{name}_zero", np.zeros(1, dtype=dtype))
    extent = edit.constant(f"{name}_bank_shape", np.array(work.weight.shape, dtype=np.int64))
    nodes = [
        gs.Node("ConstantOfShape", f"{name}_bank", {"value": zero}, inputs=[extent], outputs=[bank])
    ]
    for number, call in enumerate(program_calls(found, dtype, edit.opset)):
        edit.define(call.function)
        filled = edit.variable(f"{name}_bank", like)
        constants = [
            edit.constant(f"{name}_{call.function.name}_{number}_{operand}", call.operands[operand])
            for operand in call.function.input[1:]
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
    whole = edit.constant(f"{name}_shape", np.array(shape, dtype=np.int64))
    inputs = [work.node.inputs[0], made, *work.bias(found.weights)]
    nodes += [
        gs.Node("Reshape", f"{name}_weight", inputs=[bank, whole], outputs=[made]),
        gs.Node("Conv", f"{name}_stored", dict(work.node.attrs), inputs=inputs),
    ]
    edit.replace(work.node, nodes)
