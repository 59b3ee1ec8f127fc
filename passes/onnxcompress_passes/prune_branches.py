"""Width zero: a residual branch goes as a whole and becomes its mean on the calibration inputs.

On processors whose kernels work in blocks of channels this buys more time than narrow layers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.branches import Branch, residual_branches
from onnxcompress.analyse.coupling.grouping import LAYERS
from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import PassError
from onnxcompress.graph.branch_removal import remove_branch
from onnxcompress.graph.cost import Cost, tensor_cost
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.extract import extract_nodes
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.contract import Candidate
from onnxcompress_passes.prune_setting import KeptChannels

Array = NDArray[np.float64]


def branches(facts: Facts) -> dict[str, Branch]:
    """The residual branches that may go, by their Add; none without calibration inputs."""

    def find() -> dict[str, Branch]:
        found = residual_branches(facts.view, facts.shapes())
        # Where both operands could be the branch, the one with more layers is.
        best: dict[str, Branch] = {}
        for branch in found:
            if branch.add not in best or len(branch.nodes) > len(best[branch.add].nodes):
                best[branch.add] = branch
        return best

    return facts.recall("residual branches", find) if facts.activations() is not None else {}


def branch_mean(facts: Facts, branch: Branch) -> Array:
    """The mean of every channel of a branch's end, over inputs and positions."""
    return _statistics(facts, branch)[0]


def branch_damage(facts: Facts, branch: Branch) -> float:
    """Variance of the branch relative to the mean square of the sum that it enters."""
    return _statistics(facts, branch)[1]


@dataclass(frozen=True)
class BranchToll:
    """What the removal of a branch touches and costs.

    Attributes:
        touches: nodes that change or vanish.
        shifts: those of them of which only the bias changes.
        before: cost of these nodes.
        after: cost of what is left of them.
    """

    touches: tuple[str, ...]
    shifts: tuple[str, ...]
    before: Cost
    after: Cost


def branch_cost(facts: Facts, branch: Branch, mean: Array) -> BranchToll:
    """Counted on a real rewrite."""
    editor = Editor(facts.model)
    remove_branch(editor, branch.add, branch.index, mean)
    result = editor.finish()
    new = {node.name: node for node in result.graph.node}
    # The mean passes a ReLU as a threshold. One that it leaves as it is may still have to change
    # once the mean of a branch behind joins it.
    maker = facts.view.producers.get(branch.shortcut)
    relu = maker is not None and maker.op_type == "Relu" and branch.add not in new
    passed = maker.name if maker is not None and relu else ""
    touched = tuple(
        node.name
        for node in facts.model.graph.node
        if node.name not in new or new[node.name] != node or node.name == passed
    )
    left = sum(facts.macs(name) for name in facts.view.nodes if name in new)
    after = sum((tensor_cost(tensor) for tensor in result.graph.initializer), Cost(left))
    constants = {
        name
        for node in touched
        for name in facts.view.nodes[node].input
        if facts.view.is_constant(name)
    }
    own = sum((tensor_cost(facts.view.initializers[n]) for n in sorted(constants)), Cost())
    own += Cost(sum(facts.macs(name) for name in touched))
    shifts = tuple(
        name for name in touched if name in new and _shifted(facts.view.nodes[name], new[name])
    )
    return BranchToll(touched, shifts, own, own - (facts.total() - after))


def _shifted(old: onnx.NodeProto, new: onnx.NodeProto) -> bool:
    """Whether two nodes differ in nothing but the bias that they read."""
    same = onnx.NodeProto()
    same.CopyFrom(new)
    same.input[:] = [*new.input[:2], *old.input[2:]]
    return old.op_type in LAYERS and len(old.input) <= len(new.input) and same == old


def branch_excerpt(
    facts: Facts, branch: Branch, mean: Array
) -> Sequence[tuple[onnx.ModelProto, onnx.ModelProto]]:
    """The whole block, and the one element-wise node that may be left of it."""
    view = facts.view
    add = view.nodes[branch.add]
    names = [*branch.nodes, branch.add]
    use = view.sole_use(add.output[0])
    if use is not None and use.node.op_type == "Relu":
        names.append(use.node.name)
    before = extract_nodes(view, [view.nodes[name] for name in names], facts.shapes())
    rank = len(facts.shape(branch.tensor))
    constant = onnx.numpy_helper.from_array(
        mean.reshape(1, -1, *([1] * (rank - 2))).astype(_dtype(view, branch)), "mean"
    )
    after = onnx.ModelProto()
    after.CopyFrom(before)
    last = before.graph.output[0].name
    kind = "Max" if view.opset() >= 8 else "Add"
    entry = [value for value in before.graph.input if value.name == branch.shortcut]
    del after.graph.node[:], after.graph.initializer[:], after.graph.input[:]
    after.graph.input.extend(entry)
    after.graph.initializer.append(constant)
    after.graph.node.append(onnx.helper.make_node(kind, [branch.shortcut, "mean"], [last]))
    return [(before, after)]


def replace_by_means(
    edit: Editor,
    means: Sequence[tuple[Branch, Array]],
) -> None:
    """Remove branches one after the other, in order of execution."""
    order = {node.name: at for at, node in enumerate(edit.model.graph.node)}
    for branch, mean in sorted(means, key=lambda pair: order[pair[0].add]):
        remove_branch(edit, branch.add, branch.index, mean)


def force_to_means(edit: Editor, means: Sequence[tuple[Branch, Array]]) -> None:
    """The reference: every branch's end reads as its mean."""
    for branch, mean in means:
        node = edit.node(branch.add)
        like = node.inputs[branch.index]
        rank = len(like.shape) if like.shape is not None else 4
        dtype = like.dtype if like.dtype is not None else np.float32
        lined = mean.reshape(1, -1, *([1] * (rank - 2))).astype(dtype)
        edit.set_input(node, branch.index, edit.constant(f"{branch.add}_forced", lined))


def _statistics(facts: Facts, branch: Branch) -> tuple[Array, float]:
    collect = facts.activations()
    if collect is None:
        return np.zeros(facts.shape(branch.tensor)[branch.axis]), 1.0
    every = {b.tensor: b.axis for b in branches(facts).values()}
    sums = {facts.view.nodes[b.add].output[0]: b.axis for b in branches(facts).values()}
    found = facts.recall("branch statistics", lambda: collect({**every, **sums}))
    end, total = found[branch.tensor], found[facts.view.nodes[branch.add].output[0]]
    scale = float(total.square.sum())
    return end.mean, float(np.square(end.deviation).sum()) / scale if scale else 1.0


def _dtype(view: GraphView, branch: Branch) -> np.dtype[np.generic]:
    for value in view.model.graph.value_info:
        if value.name == branch.tensor:
            kind = value.type.tensor_type.elem_type
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    return np.dtype(np.float32)


def chosen_means(
    candidates: Sequence[Candidate[KeptChannels]], view: GraphView, coupling: Coupling
) -> list[tuple[Branch, Array]]:
    """The branches that go, with what they become."""
    chosen = {c.site.node: np.array(c.setting.mean) for c in candidates if c.setting.mean}
    found = []
    for branch in residual_branches(view, coupling.shapes) if chosen else ():
        mean = chosen.get(branch.add)
        if mean is not None and len(mean) == coupling.shapes[branch.tensor][branch.axis]:
            found.append((branch, mean))
    best = {b.add: (b, m) for b, m in sorted(found, key=lambda pair: len(pair[0].nodes))}
    missing = [add for add in chosen if add not in best]
    if missing:
        raise PassError(f"there is no residual branch of this width at '{missing[0]}'")
    return list(best.values())


def staying_channels(
    branch: Branch, mean: Array, coupling: Coupling, gone: frozenset[int]
) -> NDArray[np.bool_]:
    """Which channels of a branch's end stay."""
    lane = coupling.lanes.get(branch.tensor)
    staying = np.ones(len(mean), dtype=bool)
    if lane is not None and lane.axis == branch.axis:
        staying = ~np.isin(lane.classes, list(gone))
    return staying


def forced(branch: Branch, mean: Array, coupling: Coupling, gone: frozenset[int]) -> Array:
    """The mean, and where channels go what is left of them when they are zero."""
    lane = coupling.lanes.get(branch.tensor)
    if lane is None or lane.axis != branch.axis:
        return mean
    staying = staying_channels(branch, mean, coupling, gone)
    return np.where(staying, mean, np.nan_to_num(lane.values))
