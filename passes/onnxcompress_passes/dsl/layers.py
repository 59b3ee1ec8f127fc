"""Layers of k x k kernels: what planning other kernels for them, and putting those in, share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from math import prod
from typing import TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.linear import linear_layer
from onnxcompress.graph.cost import Cost, tensor_cost
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec, conv_spec
from onnxcompress.kernels.induction import relative_error
from onnxcompress.plan.contract import Candidate, Site
from onnxcompress.plan.known_moments import MOST_FEATURES, facts_of, layer_moments
from onnxcompress_passes.dsl.setting import Sharing
from onnxcompress_passes.eligibility import reason_to_leave
from onnxcompress_passes.low_rank_pass import DATA, WEIGHTS
from onnxcompress_passes.recentred import metric_in, metric_of, recentred_bias

Array = NDArray[np.float64]
T = TypeVar("T")


def unfit(layer: ConvSpec, facts: Facts) -> str:
    """Why a layer's kernels are left alone, or an empty string."""
    if layer.pointwise:
        return "1x1 kernels: a number has no shape to share"
    if layer.group > 1:
        return "grouped: its few kernels have little to share"
    return reason_to_leave(facts, layer)


def unfit_for_squares(layer: ConvSpec, facts: Facts) -> str:
    """The same where only square kernels will do."""
    if len(layer.kernel) != 2 or layer.kernel[0] != layer.kernel[1]:
        return "kernels that are not square: the language has none"
    return unfit(layer, facts)


class Planned:
    """A layer that other kernels are looked for.

    Args:
        site: of the layer.
        facts: about the model.
    """

    def __init__(self, site: Site, facts: Facts) -> None:
        self.site, self._facts = site, facts
        self.layer = conv_spec(facts.view.nodes[site.node], facts.view)
        self._stored = facts.view.array(self.layer.weight)
        self._metric = _metric(site.node, facts)
        self._before = facts.cost(site.node)

    @property
    def weight(self) -> Array:
        """[outputs, channels, cells]."""
        return self._stored.astype(np.float64).reshape(*self._stored.shape[:2], -1)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type of the weight."""
        return self._stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self._stored.shape

    @property
    def kernels(self) -> int:
        """How many there are."""
        return self.layer.out_channels * self.layer.in_channels

    @property
    def metric(self) -> str:
        """What errors count by: "data" where there is some, else "weights"."""
        return WEIGHTS if self._metric is None else DATA

    @property
    def positions(self) -> int:
        """How many answers each output makes."""
        return prod(self._facts.shape(self.layer.output)) // self.layer.out_channels

    def extents(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Spatial extents of what it reads and of what it makes."""
        shape = self._facts.shape
        return shape(self.layer.input)[2:], shape(self.layer.output)[2:]

    def solved(self, key: Hashable, fit: Callable[[Array | None], T]) -> T:
        """What `fit` makes of the metric; the rewrite finds it again by the same key."""
        whole = _key(self.site.node, key, self.metric)
        return self._facts.recall(whole, lambda: fit(self._metric))

    def numbers(self, count: int) -> Cost:
        """What so many numbers of the weight's type cost."""
        return Cost(params=count, weight_bytes=count * self.dtype.itemsize)

    def offer(
        self,
        setting: Sharing,
        held: Cost,
        weights: Array | None = None,
        *,
        macs: int | None = None,
        least: float = 0.0,
        recommended: bool = False,
    ) -> Candidate[Sharing]:
        """A candidate.

        Args:
            setting: what is done.
            held: what the constants that make the weight cost, in place of it.
            weights: the kernels that come of it, [outputs, channels, cells]; None if the same.
            macs: multiplications afterwards; None if only the file changes.
            least: damage of a gentler candidate: a descent that ends better is not believed.
            recommended: whether it was asked for.
        """
        before = self._before
        gone = self.numbers(self._stored.size)
        bias = Cost()
        if self.layer.bias is None and setting.metric == DATA:
            bias = self.numbers(self.layer.out_channels)
        rest = Cost(before.macs if macs is None else macs, before.params, before.weight_bytes)
        damage = 0.0 if weights is None else max(self.damage(weights), least)
        return Candidate(
            self.site,
            setting,
            (self.site.node,),
            before,
            rest - gone + held + bias,
            damage,
            recommended,
            stored=macs is None,
        )

    def damage(self, weights: Array) -> float:
        """Relative squared error of the layer's answers with other kernels."""
        if self._metric is not None:
            return relative_error(self.weight, weights, self._metric)
        # White noise, where padding hides some cells from some positions.
        seen = np.sqrt(self._coverage())
        return relative_error(self.weight * seen, weights * seen)

    def _coverage(self) -> Array:
        """How many positions of the output read the input, and no padding, through each cell."""
        layer, found = self.layer, np.ones(1)
        for axis, (extent, answer) in enumerate(zip(*self.extents(), strict=True)):
            start = np.arange(answer) * layer.strides[axis] - layer.pads[axis]
            reach = start[:, np.newaxis] + np.arange(layer.kernel[axis]) * layer.dilations[axis]
            found = np.multiply.outer(found, ((reach >= 0) & (reach < extent)).sum(axis=0))
        return np.asarray(found.ravel(), dtype=np.float64)


class Opened:
    """A layer in an editor, about to get other kernels.

    Args:
        candidate: what is carried out.
        edit: the editor.
    """

    def __init__(self, candidate: Candidate[Sharing], edit: Editor) -> None:
        self.node: gs.Node = edit.node(candidate.site.node)
        self.name = self.node.name
        self.stored = np.asarray(self.node.inputs[1].values)
        self._edit, self._by_data = edit, candidate.setting.metric == DATA

    @property
    def weight(self) -> Array:
        """[outputs, channels, cells]."""
        return self.stored.astype(np.float64).reshape(*self.stored.shape[:2], -1)

    def solved(self, key: Hashable, fit: Callable[[Array | None], T]) -> T:
        """What `fit` makes of the metric; as found when it was planned, if it was."""
        if not self._by_data:
            return fit(None)
        (metric,) = metric_in(self._edit, self.name)
        whole = _key(self.name, key, DATA)
        return facts_of(self._edit, self.name).recall(whole, lambda: fit(metric))

    def bias(self, weights: Array) -> list[gs.Tensor]:
        """The bias as further inputs: by data, one that keeps the layer's mean answers."""
        if not self._by_data:
            return [*self.node.inputs[2:]]
        matrices = weights.reshape(1, len(weights), -1)
        found = recentred_bias(self._edit, self.node, matrices)
        return [] if found is None else [found]


def held(arrays: Iterable[NDArray[np.generic]]) -> Cost:
    """What constants cost."""
    tensors = map(onnx.numpy_helper.from_array, arrays)
    return sum(map(tensor_cost, tensors), Cost())


def _key(node: str, key: Hashable, metric: str) -> Hashable:
    return "kernels", node, key, metric


def _metric(node: str, facts: Facts) -> Array | None:
    """Covariance of what the layer reads; None without calibration inputs."""
    if facts.moments() is None:
        return None
    every = [spec.node for spec in facts.convs() if isinstance(spec, ConvSpec)]
    layers = {name: linear_layer(facts.view.nodes[name], facts.view) for name in every}
    fitting = [n for n, one in layers.items() if one.features <= MOST_FEATURES and one.groups == 1]
    if node not in fitting:
        return None
    found = metric_of(layers[node], layer_moments(facts, fitting)[node], facts.view)
    return np.asarray(found[0])
