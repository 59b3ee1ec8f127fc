"""Chainings: layer after layer, what is rebuilt from what (SEEDS: Robin 2019).

parallel: every layer's answers from the original's activations. top-down: the original's answers
from what the compressed network delivers so far. bottom-up, from the last layer to the first: only
those answers that the next layer keeps, from the original's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.linear import LinearLayer
from onnxcompress.analyse.moments import Moments
from onnxcompress.errors import PassError
from onnxcompress.graph.editor import Editor
from onnxcompress.numerics.group_lasso import GroupLasso
from onnxcompress.numerics.quadratic import FREE, Quadratic, debias
from onnxcompress.plan.channels.consumers import Consumer, consumers, problems_of, readers
from onnxcompress.plan.known_moments import layer_moments
from onnxcompress_passes.lnr_selection import RIDGE, Selection

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """New weights of a layer that reads a group, full size, with zeros for what goes.

    Attributes:
        layer: the layer.
        matrices: [groups, h, d].
        bias: [groups, h], or None to leave it as it is.
    """

    layer: LinearLayer
    matrices: Array
    bias: Array | None


@dataclass(frozen=True, eq=False)
class Chain:
    """What a chain of reconstructions arrives at.

    Attributes:
        kept: channels that stay, by group.
        rebuilt: new weights of every layer that reads a group, by group.
    """

    kept: Mapping[str, tuple[int, ...]]
    rebuilt: Mapping[str, tuple[Rebuilt, ...]]

    def written(self, groups: Sequence[str], edit: Editor) -> onnx.ModelProto:
        """Put the weights of some groups' readers into an editor's graph.

        Returns:
            The original model with these weights.
        """
        for part in (r for name in groups for r in self.rebuilt.get(name, ())):
            node = edit.node(part.layer.node)
            old = np.asarray(node.inputs[1].values)
            weight = part.layer.stored(part.matrices, old)
            edit.set_input(node, 1, edit.constant(f"{node.name}_rebuilt", weight))
            if part.bias is not None:
                bias = part.layer.stored_bias(part.bias, old.dtype)
                edit.set_input(node, 2, edit.constant(f"{node.name}_rebuilt_bias", bias))
        return edit.finish()


def solve_chain(
    facts: Facts,
    coupling: Coupling,
    groups: Sequence[Group],
    selection: Selection,
    width: Callable[[Group], int] | None,
    *,
    chaining: str,
    debiased: bool,
    centre: bool,
) -> Chain:
    """Choose and rebuild, group after group.

    Args:
        facts: about the model, moments included.
        coupling: of the model.
        groups: in order of execution.
        selection: how channels are chosen.
        width: how many channels of a group stay; None lets the penalty decide.
        chaining: parallel, top-down or bottom-up.
        debiased: refit the weights by least squares; else they are the group lasso's.
        centre: let biases make up for means.

    Raises:
        PassError: there are no moments.
    """
    collect = facts.moments()
    if collect is None:
        raise PassError("lnr needs calibration inputs: give --data")
    kept: dict[str, tuple[int, ...]] = {}
    found: dict[str, tuple[Rebuilt, ...]] = {}
    gone: set[int] = set()
    for group in reversed(groups) if chaining == "bottom-up" else groups:
        members = tuple(
            replace(m, centre=centre and m.centre) for m in consumers(facts, coupling, group)
        )
        moments = layer_moments(facts, readers(facts, coupling))
        if chaining == "top-down" and kept:
            so_far = Chain(kept, found).written(list(kept), Editor(facts.model))
            moments = collect([member.layer.node for member in members], so_far)
        rows = {m.layer.node: _wanted(m, coupling, gone) for m in members}
        problems = problems_of(members, moments, rows if chaining == "bottom-up" else None)
        staying = selection.kept(problems, group.width, width(group) if width else None)
        whole = problems_of(members, moments)
        solved = [debias(problem, staying, RIDGE) for problem in whole]
        if not debiased:
            # Of answers that the next layer does not keep, lambda knows nothing.
            shrunk = _shrunk(problems, staying, selection)
            masks = [
                mask for m in members for mask in rows[m.layer.node].reshape(m.layer.groups, -1)
            ]
            for matrix, own, mask in zip(solved, shrunk, masks, strict=True):
                matrix[mask if chaining == "bottom-up" else slice(None)] = own
        kept[group.name] = tuple(staying)
        found[group.name] = tuple(_assembled(members, solved, moments))
        left = set(staying)
        gone |= {channel for at, channel in enumerate(group.channels) if at not in left}
    return Chain(kept, found)


def _wanted(member: Consumer, coupling: Coupling, gone: set[int]) -> NDArray[np.bool_]:
    """Which answers of a layer the next layers keep."""
    lane = coupling.lanes.get(member.layer.output)
    count = member.layer.groups * member.layer.outputs
    if lane is None or len(lane.classes) != count:
        return np.ones(count, dtype=bool)
    return ~np.isin(lane.classes, list(gone))


def _shrunk(
    problems: Sequence[Quadratic], kept: Sequence[int], selection: Selection
) -> list[Array]:
    """M of every problem as the group lasso leaves it."""
    lasso = GroupLasso(problems, scale_invariant=selection.scale_invariant)
    strength = selection.strength or _reaching(lasso, len(kept))
    solution = lasso.solve(strength * lasso.lambda_max)
    mask = set(kept) | {FREE}
    return [
        matrix * np.isin(problem.groups, list(mask))
        for problem, matrix in zip(problems, solution.matrices, strict=True)
    ]


def _reaching(lasso: GroupLasso, count: int) -> float:
    """The largest fraction of lambda_max, of a fine ladder, at which so many groups are active."""
    for fraction in np.geomspace(0.97, 1e-4, 60):
        if len(lasso.solve(float(fraction) * lasso.lambda_max).active) >= count:
            return float(fraction)
    return 1e-4


def _assembled(
    members: Sequence[Consumer], solved: Sequence[Array], moments: Mapping[str, Moments]
) -> Iterator[Rebuilt]:
    """Matrices of the groups of each layer put together, and the biases that go with them."""
    rest = iter(solved)
    for member in members:
        layer, seen = member.layer, moments[member.layer.node]
        matrices = np.stack([next(rest) for _ in range(layer.groups)])
        bias = None
        if member.centre:
            bias = seen.answer - np.einsum("ghd,gd->gh", matrices, seen.mean)
        yield Rebuilt(layer, matrices, bias)
