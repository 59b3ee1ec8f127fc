"""Passes that break their word when they rewrite; each is Tucker-2 but for one fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

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
class Coarse(Botched):
    """Rounds through float32 on the way."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        for node in made:
            put(node, values(node).astype(np.float32).astype(values(node).dtype))


@dataclass(frozen=True)
class Narrow(Botched):
    """Writes float32 weights into any network."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        for node in made:
            put(node, values(node).astype(np.float32))


@dataclass(frozen=True)
class Normalised(Botched):
    """Moves the norm of every slice of the core into the next factor, dead slices included."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        if core is not made[-1] and group == 1:
            weight = values(core).astype(np.float64)
            norms = np.sqrt((weight**2).reshape(len(weight), -1).sum(axis=1))
            # Rounding hides what is dead; here it counts as dead.
            norms[norms < 1e-6 * norms.max()] = 0.0
            with np.errstate(invalid="ignore", divide="ignore"):
                scaled = weight / norms.reshape(-1, *([1] * (weight.ndim - 1)))
            last = values(made[-1]) * norms.reshape(1, -1, *([1] * (weight.ndim - 2)))
            put(core, scaled.astype(values(core).dtype))
            put(made[-1], last.astype(values(made[-1]).dtype))


@dataclass(frozen=True)
class Noisy(Botched):
    """Adds noise that no seed governs."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        noise = np.random.default_rng().standard_normal(values(core).shape)
        put(core, (values(core) + 1e-6 * noise).astype(values(core).dtype))


@dataclass(frozen=True)
class Muddled(Tucker2):
    """Remembers a decomposition without remembering its ranks."""

    def rewrite(self, candidate: Ranks, edit: Editor) -> None:
        setting = edit.memo.recall(candidate.site, lambda: candidate.setting, lambda _: 1)
        altered = Candidate(
            candidate.site, setting, candidate.touches, candidate.before, candidate.after, 0.0
        )
        super().rewrite(altered, edit)


@dataclass(frozen=True)
class Meddling(Botched):
    """Gives the next node an attribute."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        for reader in made[-1].outputs[0].outputs:
            edit.set_attributes(reader, {"meddled": 1})


@dataclass(frozen=True)
class Leaning(Botched):
    """Changes the weight of another layer where it lies; no node shows it."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        for node in edit.nodes:
            if node.op == "Conv" and not any(node is own for own in made):
                put(node, 1.001 * values(node))


@dataclass(frozen=True)
class Reaching(Tucker2):
    """Reaches through the editor into the weight of the model that it was given."""

    def rewrite(self, candidate: Ranks, edit: Editor) -> None:
        edit.node(candidate.site.node).inputs[1]._values.tensor.doc_string = "reached"
        super().rewrite(candidate, edit)


@dataclass(frozen=True)
class Presumptuous(Botched):
    """Invents the names of its constants instead of asking for them."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        for node in made:
            node.inputs[1].name = node.inputs[1].name.removesuffix("_1")


@dataclass(frozen=True)
class Jealous(Botched):
    """Does its work by halves where it sees that other layers were rewritten before."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        others = sum("_tucker_" in node.name for node in edit.nodes) - len(made)
        put(core, values(core) * np.float32(1.0 - 0.01 * others))


@dataclass(frozen=True)
class Staining(Tucker2):
    """Counts its rewrites in what all rewrites of a job share, and shows the count."""

    def rewrite(self, candidate: Ranks, edit: Editor) -> None:
        number = next(edit.memo.recall("count", count, lambda _: 1))
        hint = edit.tensor_name(f"rewrite {number}")
        super().rewrite(candidate, edit)
        last = [n for n in edit.nodes if n.name.startswith(f"{candidate.site.node}_tucker")][-1]
        last.inputs[1].name = hint


@dataclass(frozen=True)
class Signing(Tucker2):
    """Leaves its signature in the metadata of the model."""

    def rewrite(self, candidate: Ranks, edit: Editor) -> None:
        super().rewrite(candidate, edit)
        edit._keep.frame.metadata_props.add(key="compressed", value="yes")


@dataclass(frozen=True)
class Widening(Tucker2):
    """Gives the first dimension of an output a name."""

    def rewrite(self, candidate: Ranks, edit: Editor) -> None:
        super().rewrite(candidate, edit)
        edit._keep.frame.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"


@dataclass(frozen=True)
class Untidy(Botched):
    """Overflows: the result is not finite."""

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        put(core, np.full_like(values(core), np.finfo(np.float32).max))


@dataclass(frozen=True)
class Fixed(Botched):
    """Writes the representative batch into the graph."""

    baked: ClassVar[int] = 2

    def spoil(self, made: list[gs.Node], core: gs.Node, group: int, edit: Editor) -> None:
        last = made[-1]
        shape = (self.baked, *([1] * (values(core).ndim - 1)))
        zeros = edit.constant("zeros", np.zeros(shape, values(core).dtype))
        between = edit.variable("between", last.outputs[0])
        outputs, last.outputs = list(last.outputs), [between]
        add = gs.Node("Add", inputs=[between, zeros], outputs=outputs)
        edit.insert_before(last, add)
        at = [node is add for node in edit.nodes].index(True)
        nodes = edit._graph.nodes
        nodes[at], nodes[at + 1] = nodes[at + 1], nodes[at]


FAULTS: Mapping[str, tuple[tuple[Tucker2, str], ...]] = {
    "check_loosest_setting_is_exact": ((Coarse(), "fp64-.* off by"),),
    "check_dtypes_are_kept": ((Narrow(), "is FLOAT$"),),
    "check_rank_deficient_weights": ((Normalised(), "did inf"),),
    "check_deterministic": ((Noisy(), "two models"), (Muddled(), "two models")),
    "check_rewrite_is_local": (
        (Meddling(), "node '.*' changed"),
        (Leaning(), "constant '.*' of node '.*' changed"),
        (Reaching(), "the input model was changed"),
    ),
    "check_names_are_fresh": ((Presumptuous(), "clash"),),
    "check_commutes": ((Jealous(), "the order changes the (graph|outputs)"),),
    "check_rollback": ((Staining(), "a trace is left"),),
    "check_result_is_valid": (
        (Signing(), "metadata changed"),
        (Widening(), "type or shape of output 'y' changed"),
        (Untidy(), "output not finite"),
    ),
    "check_dynamic_batch": ((Fixed(), "a batch of 3|fails while running|differs by"),),
}
