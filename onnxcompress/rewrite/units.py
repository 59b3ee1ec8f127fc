"""What is fitted at once: a layer, or the factors that took the place of one.

Low-rank layers are repaired whole: fitted as the one layer they were, and factored again.
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
from onnxcompress.graph.spec import ConvSpec
from onnxcompress.graph.view import GraphView
from onnxcompress.numerics.data_low_rank import data_tucker2

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Unit:
    """A layer; or two or three in a row that stand for one.

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
    def parts(self) -> tuple[LinearLayer, ...]:
        """The layers, in order."""
        return tuple(part for part in (self.into, self.core, self.out) if part is not None)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes, in order."""
        return tuple(part.node for part in self.parts)

    @property
    def last(self) -> LinearLayer:
        """The layer that makes the answer, and holds the bias."""
        return self.out or self.core

    def product(self, view: GraphView) -> Array:
        """What the weights multiply out to, [groups, h, d]."""
        return self.multiplied([p.matrices(view.array(p.spec.weight)) for p in self.parts])

    def multiplied(self, parts: Sequence[Array]) -> Array:
        """What matrices of the parts multiply out to, [groups, h, d]."""
        rest = list(parts)
        mixture = rest.pop(0) if self.into is not None else None
        product = rest.pop(0)
        if mixture is not None:
            taken = product.reshape(*product.shape[:2], mixture.shape[1], -1)
            product = np.einsum("goak,gas->gosk", taken, mixture, optimize=True)
            product = product.reshape(*product.shape[:2], -1)
        return np.asarray(rest[0] @ product if rest else product)

    def factors(self, matrices: Array, metric: Array, *, sweeps: int) -> list[Array]:
        """New matrices of the parts, in their order.

        Args:
            matrices: the weight to factor, [groups, h, d].
            metric: of what the whole layer reads, [groups, d, d].
            sweeps: of the alternating fit.
        """
        if len(self.parts) == 1:
            return [matrices]
        channels = self.whole.features // self.core.taps
        rank_in = self.into.outputs if self.into is not None else channels
        rank_out = self.out.features if self.out is not None else self.whole.outputs
        found = [
            data_tucker2(
                weight.reshape(-1, channels, self.core.taps),
                covariance,
                rank_out,
                rank_in,
                sweeps=sweeps,
            )
            for weight, covariance in zip(matrices, metric, strict=True)
        ]
        parts = [np.stack([one.core.reshape(len(one.core), -1) for one in found])]
        if self.into is not None:
            parts.insert(0, np.stack([one.factor_in.T for one in found]))
        if self.out is not None:
            parts.append(np.stack([one.factor_out for one in found]))
        return parts


def factored_layers(before: GraphView, after: GraphView) -> dict[str, Unit]:
    """Rows of layers that took the place of one, by the name of the first node."""
    found: dict[str, Unit] = {}
    taken: set[str] = set()
    for node in after.model.graph.node:
        if node.name in taken:
            continue
        row = _row(node, before, after)
        one = _assembled(row) if len(row) > 1 else None
        if one is not None:
            found[node.name] = one
            taken.update(one.nodes)
    return found


def single(layer: LinearLayer) -> Unit:
    """A layer that stands for itself."""
    return Unit(layer, None, layer, None)


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


def _assembled(row: Sequence[LinearLayer]) -> Unit | None:
    """The row as factors of one layer; None where it is none."""
    if len({layer.groups for layer in row}) > 1 or len({layer.convolves for layer in row}) > 1:
        return None
    if any(layer.spec.bias for layer in row[:-1]):
        return None
    match [_is_plain(layer) for layer in row]:
        case [True, False, True]:
            into, core, out = row[0], row[1], row[2]
            return Unit(_whole(into, core, out), into, core, out)
        case [True, False]:
            return Unit(_whole(row[0], row[1], row[1]), row[0], row[1], None)
        case [_, True]:
            return Unit(_whole(row[0], row[0], row[1]), None, row[0], row[1])
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
    features = first.features * core.taps if first is not core else core.features
    spec = replace(core.spec, node=first.node, input=first.input, output=last.output)
    if isinstance(spec, ConvSpec):
        spec = replace(
            spec,
            in_channels=first.groups * features // core.taps,
            out_channels=last.groups * last.outputs,
            bias=last.spec.bias,
        )
    return LinearLayer(spec, core.groups, last.outputs, features)
