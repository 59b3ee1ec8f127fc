"""Low-rank layers are repaired whole: fitted as the one layer they were, and factored again.

E|y - M x|^2 falls apart into what the best full weight B leaves, and E|(B - M) x|^2: factoring B in
the metric of the data is the best that factors of these ranks can do (reduced-rank regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.linear import LinearLayer, linear_layer
from onnxcompress.errors import ModelError
from onnxcompress.graph.spec import ConvSpec, DenseSpec
from onnxcompress.graph.view import GraphView
from onnxcompress.numerics.data_low_rank import data_tucker2

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Factored:
    """Two or three layers in a row that stand for one.

    Attributes:
        whole: the layer that they multiply out to; its spec names the core's weight.
        into: pointwise layer that mixes input channels, or None.
        core: the layer with the kernel.
        out: pointwise layer that mixes output channels, or None.
    """

    whole: LinearLayer
    into: LinearLayer | None
    core: LinearLayer
    out: LinearLayer | None

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes, in order."""
        return tuple(part.node for part in (self.into, self.core, self.out) if part is not None)

    @property
    def last(self) -> LinearLayer:
        """The layer that makes the answer, and holds the bias."""
        return self.out or self.core

    def product(self, view: GraphView) -> Array:
        """What the weights multiply out to, [1, T, S * K]."""
        core = self.core.matrices(view.array(self.core.spec.weight))[0]
        if self.into is not None:
            mixture = self.into.matrices(view.array(self.into.spec.weight))[0]
            taken = core.reshape(len(core), len(mixture), -1)
            core = np.einsum("oak,as->osk", taken, mixture).reshape(len(core), -1)
        if self.out is not None:
            core = self.out.matrices(view.array(self.out.spec.weight))[0] @ core
        return np.asarray(core[np.newaxis])

    def factors(self, matrix: Array, covariance: Array, *, sweeps: int) -> list[Array]:
        """New matrices of the parts, in their order, [1, h, d] each.

        Args:
            matrix: the weight to factor, [T, S * K].
            covariance: of what the whole layer reads.
            sweeps: of the alternating fit.
        """
        channels = self.whole.features // self.core.taps
        rank_in = self.into.outputs if self.into is not None else channels
        rank_out = self.out.features if self.out is not None else len(matrix)
        weight = matrix.reshape(len(matrix), channels, self.core.taps)
        found = data_tucker2(weight, covariance, rank_out, rank_in, sweeps=sweeps)
        parts = [found.core.reshape(len(found.core), -1)]
        if self.into is not None:
            parts.insert(0, found.factor_in.T)
        if self.out is not None:
            parts.append(found.factor_out)
        return [part[np.newaxis] for part in parts]

    def multiplied(self, parts: Sequence[Array]) -> Array:
        """What matrices of the parts multiply out to, [1, T, S * K]."""
        rest = [part[0] for part in parts]
        mixture = rest.pop(0) if self.into is not None else None
        core = rest.pop(0)
        if mixture is not None:
            taken = core.reshape(len(core), len(mixture), -1)
            core = np.einsum("oak,as->osk", taken, mixture).reshape(len(core), -1)
        return np.asarray((rest[0] @ core if rest else core)[np.newaxis])


def factored_layers(before: GraphView, after: GraphView) -> dict[str, Factored]:
    """Rows of layers that took the place of one, by the name of the first node."""
    found: dict[str, Factored] = {}
    taken: set[str] = set()
    for node in after.model.graph.node:
        if node.name in taken:
            continue
        row = _row(node, before, after)
        one = _assembled(row, after) if len(row) > 1 else None
        if one is not None:
            found[node.name] = one
            taken.update(one.nodes)
    return found


def _row(node: onnx.NodeProto, before: GraphView, after: GraphView) -> list[LinearLayer]:
    """The layers from `node` on that follow each other directly, through new tensors only."""
    row: list[LinearLayer] = []
    while True:
        try:
            layer = linear_layer(node, after)
        except ModelError:
            return row
        row.append(layer)
        use = after.sole_use(layer.output)
        if use is None or use.index != 0 or layer.output in before.producers or len(row) == 3:
            return row
        node = use.node


def _assembled(row: Sequence[LinearLayer], view: GraphView) -> Factored | None:
    """The row as factors of one layer; None where it is none."""
    if any(layer.groups != 1 for layer in row) or len({layer.convolves for layer in row}) > 1:
        return None
    if any(layer.spec.bias for layer in row[:-1]) or row[-1].bias(view) is None:
        return None
    plain = [_is_plain(layer) for layer in row]
    match plain:
        case [True, False, True]:
            into, core, out = row[0], row[1], row[2]
            return Factored(_whole(into, core, out), into, core, out)
        case [True, False]:
            return Factored(_whole(row[0], row[1], row[1]), row[0], row[1], None)
        case [_, True]:
            return Factored(_whole(row[0], row[0], row[1]), None, row[0], row[1])
        case _:
            return None


def _is_plain(layer: LinearLayer) -> bool:
    """Whether a layer only mixes channels where they are."""
    spec = layer.spec
    if not isinstance(spec, ConvSpec):
        return True
    plain = spec.pointwise and set(spec.strides) == {1} and not any(spec.pads)
    return plain and spec.auto_pad in {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"}


def _whole(first: LinearLayer, core: LinearLayer, last: LinearLayer) -> LinearLayer:
    spec = core.spec
    if isinstance(spec, ConvSpec) and isinstance(first.spec, ConvSpec):
        channels = first.spec.in_channels
        whole: ConvSpec | DenseSpec = replace(
            spec,
            node=first.node,
            input=first.input,
            output=last.output,
            in_channels=channels,
            out_channels=last.outputs,
            bias=last.spec.bias,
        )
        return LinearLayer(whole, 1, last.outputs, channels * core.taps)
    whole = replace(spec, node=first.node, input=first.input, output=last.output)
    return LinearLayer(whole, 1, last.outputs, first.features)
