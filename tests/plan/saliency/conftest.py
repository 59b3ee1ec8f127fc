"""Criteria the slow way: loops over samples, channels and positions of a network in float64.

The network runs in onnx's reference evaluator; dC/dz is the central difference of the loss in
every single element of z, one after the other. Nothing of the engine takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from math import exp, log, prod
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcompress.analyse.facts import Facts
from onnxcompress.plan.saliency.question import Question

Array = np.ndarray
Slices = tuple[Any, ...]
# Rounding of a loss is about 1e-16, over the step 1e-10; steps that cross a kink are rarer still.
STEP = 1e-6
# Second differences: rounding over the squared step 1e-16 / 1e-8, truncation of the same order.
WIDE_STEP = 1e-4


@dataclass(frozen=True)
class Slow:
    """A network in float64 that can be disturbed in the middle.

    Attributes:
        model: the network, whose batch is free.
        feeds: its inputs.
        taps: by layer, the tensor in which its channels are looked at, and their axis.
        made: by layer, its own output.
        labels: the classes of the samples; None holds the loss to the network's own answers.
        gone: by layer, channels that are zero right behind it.
    """

    model: onnx.ModelProto
    feeds: Mapping[str, Array]
    taps: Mapping[str, tuple[str, int]]
    made: Mapping[str, str]
    labels: Sequence[int] | None = None
    gone: Mapping[str, Sequence[int]] = field(default_factory=dict)
    _known: dict[str, list[list[float]]] = field(default_factory=dict, init=False)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.feeds.values())))

    @cached_property
    def values(self) -> dict[str, Array]:
        """Every tap, and the outputs."""
        return self._run(self._tiled(1), {})

    def z(self, layer: str) -> Array:
        """The activations of a layer, channels first: [channels, samples, positions]."""
        tap, axis = self.taps[layer]
        return _channels_first(self.values[tap], axis)

    @cached_property
    def answers(self) -> list[Array]:
        """The outputs of the network itself, with nothing gone."""
        whole = replace(self, gone={})
        return [whole.values[output.name] for output in self.model.graph.output]

    def losses(self, outputs: Sequence[Array], times: int = 1) -> list[float]:
        """The loss of every sample, the samples being there so many times."""
        found: list[float] = []
        if self.classifies:
            for at, scores in enumerate(outputs[0].reshape(len(outputs[0]), -1).tolist()):
                target = self.targets[at % self.count]
                if self.model.graph.node[-1].op_type == "Softmax":
                    found.append(-log(scores[target]))
                    continue
                largest = max(scores)
                total = sum(exp(score - largest) for score in scores)
                found.append(log(total) + largest - scores[target])
            return found
        for at in range(self.count * times):
            loss = 0.0
            for output, own in zip(outputs, self.answers, strict=True):
                mine, its = output[at].ravel().tolist(), own[at % self.count].ravel().tolist()
                energy = sum(v * v for v in its)
                loss += 0.5 * sum((a - b) ** 2 for a, b in zip(mine, its, strict=True)) / energy
            found.append(loss)
        return found

    @property
    def classifies(self) -> bool:
        """Whether the only output is one score for each of several classes."""
        outputs = self.model.graph.output
        dims = outputs[0].type.tensor_type.shape.dim
        return len(outputs) == 1 and len(dims) == 2 and dims[1].dim_value > 1

    @cached_property
    def targets(self) -> list[int]:
        """The class that every sample is held to."""
        if self.labels is not None:
            return list(self.labels)
        return [scores.index(max(scores)) for scores in self.answers[0].tolist()]

    def slopes(self, layer: str) -> Array:
        """dC/dz of every sample, channels first: [channels, samples, positions]."""
        tap, axis = self.taps[layer]
        shape = self.values[tap].shape[1:]
        places = list(product(*map(range, shape)))
        moved = np.zeros((2, len(places), self.count, *shape))
        for number, place in enumerate(places):
            moved[(0, number, slice(None), *place)] = STEP
            moved[(1, number, slice(None), *place)] = -STEP
        outputs = self._outputs({f"{tap}/added": moved.reshape(-1, *shape)})
        losses = np.array(self.losses(outputs, 2 * len(places)))
        ahead, behind = losses.reshape(2, len(places), self.count)
        slopes = (ahead - behind).T / (2 * STEP)
        return _channels_first(slopes.reshape(self.count, *shape), axis)

    def gate_gradients(self, layer: str) -> list[list[float]]:
        """sum over positions of z dC/dz, by channel and sample."""
        if layer not in self._known:
            self._known[layer] = [
                [
                    sum(a * b for a, b in zip(value, slope, strict=True))
                    for value, slope in zip(values, slopes, strict=True)
                ]
                for values, slopes in zip(
                    self.z(layer).tolist(), self.slopes(layer).tolist(), strict=True
                )
            ]
        return self._known[layer]

    def moved_gates(self, layer: str, step: float) -> list[list[float]]:
        """The answer, one number, with a channel times 1 + step: by channel and sample."""
        tap, axis = self.taps[layer]
        values = self.values[tap]
        found = []
        for channel in range(values.shape[axis]):
            factor = np.ones(values.shape)
            factor[_at(axis, channel)] += step
            found.append(self._outputs({f"{tap}/factor": factor})[0].ravel().tolist())
        return found

    def ablated(self, layer: str) -> list[float]:
        """By channel, what the mean loss grows by when it is set to zero."""
        tap, axis = self.taps[layer]
        base = self.losses([self.values[o.name] for o in self.model.graph.output])
        shape = self.values[tap].shape[1:]
        found = []
        for channel in range(self.values[tap].shape[axis]):
            factor = np.ones((self.count, *shape))
            factor[_at(axis, channel)] = 0.0
            losses = self.losses(self._outputs({f"{tap}/factor": factor}))
            changes = [after - before for after, before in zip(losses, base, strict=True)]
            found.append(sum(changes) / self.count)
        return found

    def hessians(self) -> tuple[list[tuple[str, int]], Array]:
        """Second derivatives of every sample's loss in all gates: [samples, gates, gates].

        The gates are the channels of all layers, one layer after the other.
        """
        gates = [
            (layer, channel)
            for layer, (tap, axis) in self.taps.items()
            for channel in range(self.values[tap].shape[axis])
        ]
        pairs = list(product(range(len(gates)), repeat=2))
        moves = list(product((1, -1), repeat=2))
        factors = {
            tap: np.ones((len(moves), len(pairs), self.count, *self.values[tap].shape[1:]))
            for tap, _ in self.taps.values()
        }
        for (at, signs), (number, pair) in product(enumerate(moves), enumerate(pairs)):
            for sign, gate in zip(signs, pair, strict=True):
                layer, channel = gates[gate]
                tap, axis = self.taps[layer]
                factors[tap][(at, number, *_at(axis, channel))] += sign * WIDE_STEP
        outputs = self._outputs(
            {f"{tap}/factor": f.reshape(-1, *f.shape[3:]) for tap, f in factors.items()}
        )
        losses = np.array(self.losses(outputs, len(moves) * len(pairs)))
        four = losses.reshape(len(moves), len(pairs), self.count)
        second = (four[0] - four[1] - four[2] + four[3]) / (4 * WIDE_STEP**2)
        return gates, second.T.reshape(self.count, len(gates), len(gates))

    def _outputs(self, moved: Mapping[str, Array]) -> list[Array]:
        times = len(next(iter(moved.values()))) // self.count
        found = self._run(self._tiled(times), moved)
        return [found[output.name] for output in self.model.graph.output]

    def _tiled(self, times: int) -> dict[str, Array]:
        return {
            name: np.tile(value.astype(np.float64), (times, *[1] * (value.ndim - 1)))
            for name, value in self.feeds.items()
        }

    @cached_property
    def _evaluator(self) -> ReferenceEvaluator:
        taps = [tap for tap, _ in self.taps.values()]
        return ReferenceEvaluator(disturbable(self.model, taps, list(self.made.values())))

    def _run(self, feeds: Mapping[str, Array], moved: Mapping[str, Array]) -> dict[str, Array]:
        still = {name: np.full((), float(not name.endswith("/added"))) for name in self._names}
        read = {**still, **feeds, **self._masks(), **moved}
        return dict(zip(self._evaluator.output_names, self._evaluator.run(None, read), strict=True))

    @property
    def _names(self) -> list[str]:
        return list(self._evaluator.input_names)

    def _masks(self) -> dict[str, Array]:
        """What makes zero what is gone, right behind the layers that make it."""
        known = {v.name: v for v in (*self.model.graph.value_info, *self.model.graph.output)}
        masks = {}
        for layer, channels in self.gone.items():
            dims = known[self.made[layer]].type.tensor_type.shape.dim
            axis = self.taps[layer][1]
            mask = np.ones([d.dim_value if a == axis else 1 for a, d in enumerate(dims)])
            mask[_at(axis, list(channels))] = 0.0
            masks[f"{self.made[layer]}/mask"] = mask
        return masks


def disturbable(
    model: onnx.ModelProto, taps: Sequence[str], made: Sequence[str]
) -> onnx.ModelProto:
    """The model in float64: what layers make times a mask; taps times a factor plus a term."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            wide = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for at, name in enumerate(node.output):
            steps = [("Mul", "mask")] if name in made else []
            steps += [("Mul", "factor"), ("Add", "added")] if name in taps else []
            if not steps:
                continue
            current = f"{name}/raw"
            node.output[at] = current
            for number, (kind, operand) in enumerate(steps):
                result = name if number == len(steps) - 1 else f"{name}/{number}"
                nodes.append(helper.make_node(kind, [current, f"{name}/{operand}"], [result]))
                graph.input.append(
                    helper.make_tensor_value_info(f"{name}/{operand}", TensorProto.DOUBLE, None)
                )
                current = result
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    shown = {output.name for output in graph.output}
    for name in dict.fromkeys(taps):
        if name not in shown:
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, None))
    return copy


def _at(axis: int, channel: int | list[int]) -> Slices:
    return (*[slice(None)] * axis, channel)


def _channels_first(values: Array, axis: int) -> Array:
    """[samples, ...] with channels somewhere, as [channels, samples, positions]."""
    moved = np.moveaxis(values, axis, 0)
    return moved.reshape(*moved.shape[:2], prod(moved.shape[2:]))


@pytest.fixture(scope="session")
def ask() -> Callable[..., Question]:
    """`ask(facts, {"one": (0, 2)}, norm="l1", seed=3, skipped={"two"})`."""

    def make(
        facts: Facts,
        removed: Mapping[str, tuple[int, ...]] | None = None,
        *,
        norm: str = "l2",
        seed: int = 0,
        skipped: Sequence[str] = (),
    ) -> Question:
        return Question(facts, facts.coupling(), removed or {}, norm, seed, frozenset(skipped))

    return make


@pytest.fixture(scope="session")
def slow_net() -> Callable[..., Slow]:
    """`slow_net(model, feeds, {"one": ("b", 1)}, {"one": "a"}, labels)`."""
    return Slow
