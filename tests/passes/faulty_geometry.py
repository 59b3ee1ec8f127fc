"""Passes that get the geometry wrong; each is Tucker-2 but for one fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.graph.editor import Editor
from onnxcompress.plan.contract import Candidate
from onnxcompress_passes.tucker2 import Tucker2, Tucker2Ranks

Ranks = Candidate[Tucker2Ranks]


@dataclass(frozen=True)
class Botched(Tucker2):
    """Rewrites as it should, and then spoils the nodes it has made."""

    def rewrite(self, candidate: Ranks, edit: Editor) -> None:
        before = list(edit.nodes)
        old = edit.node(candidate.site.node)
        group = int(old.attrs.get("group", 1))
        super().rewrite(candidate, edit)
        made = [node for node in edit.nodes if not any(node is other for other in before)]
        core = max(made, key=lambda node: int(np.prod(node.attrs["kernel_shape"])))
        self.spoil(made, core, group, edit)

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        raise NotImplementedError


def values(node: gs.Node) -> Any:
    return np.asarray(node.inputs[1].values)


def put(node: gs.Node, array: Any) -> None:
    node.inputs[1].values = np.ascontiguousarray(array)


@dataclass(frozen=True)
class MixesGroups(Botched):
    """Puts the groups of the core in another order."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        put(core, np.concatenate(np.split(values(core), group)[::-1]))


@dataclass(frozen=True)
class WrongSide(Botched):
    """Pads at the end what belongs to the beginning."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        pads = list(core.attrs.get("pads", []))
        core.attrs |= {"pads": pads[len(pads) // 2 :] + pads[: len(pads) // 2]} if pads else {}


@dataclass(frozen=True)
class WrongSame(Botched):
    """Takes one kind of automatic padding for the other."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        other = {"SAME_UPPER": "SAME_LOWER", "SAME_LOWER": "SAME_UPPER"}
        if core.attrs.get("auto_pad") in other:
            core.attrs["auto_pad"] = other[core.attrs["auto_pad"]]


@dataclass(frozen=True)
class Undilated(Botched):
    """Loses the dilation, and pads less, so that sizes stay."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        dilations, pads = core.attrs.get("dilations", []), list(core.attrs.get("pads", []))
        half = len(pads) // 2
        for axis, dilation in enumerate(dilations[:half]):
            side = axis if pads[axis] > pads[half + axis] else half + axis
            pads[side] -= (core.attrs["kernel_shape"][axis] - 1) * (dilation - 1)
        if dilations and pads and min(pads) >= 0:
            core.attrs |= {"dilations": [1] * half, "pads": pads}


@dataclass(frozen=True)
class Transposed(Botched):
    """Takes input for output channels wherever that raises no error."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        if core.inputs[1].shape[0] == core.inputs[1].shape[1]:
            put(core, np.swapaxes(values(core), 0, 1))


@dataclass(frozen=True)
class Turned(Botched):
    """Takes rows for columns of the kernel wherever that raises no error."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        if values(core).ndim == 4 and core.inputs[1].shape[2] == core.inputs[1].shape[3]:
            put(core, np.swapaxes(values(core), 2, 3))


@dataclass(frozen=True)
class Unbiased(Botched):
    """Drops the bias."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        if len(made[-1].inputs) > 2:
            made[-1].inputs.pop()


FAULTS: Mapping[str, tuple[tuple[Tucker2, str], ...]] = {
    "check_loosest_setting_is_exact": (
        (MixesGroups(), "grouped-.* off by"),
        (WrongSide(), "strided-.* off by"),
        (WrongSame(), "same_upper_dynamic-.* off by"),
        (Undilated(), "strided_confusable-.* off by"),
        (Transposed(), "confusable-.* off by"),
        (Turned(), "confusable-.* off by"),
        (Unbiased(), "plain-.* off by"),
    ),
}

# Where a fault of geometry goes unnoticed: why the zoo has more than one convolution.
BLIND = {
    MixesGroups: "plain",
    WrongSide: "plain",
    WrongSame: "plain",
    Undilated: "plain",
    Turned: "plain",
    Unbiased: "no_bias",
}
