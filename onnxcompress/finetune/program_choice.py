"""Programs of kernels chosen by what they do to the network's answers, not to their layer's.

The Gumbel-Softmax of `kernels.gumbel` with the task in place of a layer's error: all layers hold
mixtures of what the forms on offer come closest with; the distance of the network's answers from
those of the original (or from true labels) and the price of the bits are differentiated through
the relaxed choice, straight through (Jang et al. 2017, arXiv 1611.01144; Sehgal 2022 trained this
way, layer by layer).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.func import functional_call
from torch.nn import functional

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.errors import DataError, ModelError
from onnxcompress.finetune.network import Network, Values
from onnxcompress.finetune.objective import Mixture, Objective, objective
from onnxcompress.graph.view import GraphView
from onnxcompress.kernels.gumbel import Schedule, nearest_kernels
from onnxcompress.kernels.induction import LayerPrograms, fitted
from onnxcompress.kernels.search import Vocabulary

Array = NDArray[np.float64]

_BATCH = 64
_FIRM = 0.9
"""How probable the forms are that a descent begins with."""
_JUDGED = 4
"""Batches that a choice is judged on, the same ones every time,"""
_EVERY = 25
"""after so many steps."""


@dataclass(frozen=True)
class Chooser:
    """A layer whose kernels are chosen.

    Attributes:
        parameter: the constant that holds the kernels.
        weight: [outputs, channels, k * k].
        shape: of the constant.
        words: the programs on offer.
        metric: covariance of what the layer reads, [channels * k * k] squared; None weighs weights.
    """

    parameter: str
    weight: Array
    shape: tuple[int, ...]
    words: Vocabulary
    metric: Array | None


def chooser(
    model: onnx.ModelProto, node: str, words: Vocabulary, metric: Array | None = None
) -> Chooser:
    """A layer by its name.

    Raises:
        ModelError: it is no convolution of square kernels of the vocabulary's size.
    """
    view = GraphView(model)
    made = view.nodes.get(node)
    if made is None or made.op_type != "Conv" or not view.is_constant(made.input[1]):
        raise ModelError(f"'{node}' is no convolution with kernels of its own")
    stored = view.array64(made.input[1])
    if stored.shape[2:] != (words.size, words.size):
        raise ModelError(f"the kernels of '{node}' are not {words.size}x{words.size}")
    kernels = stored.reshape(*stored.shape[:2], -1)
    return Chooser(made.input[1], kernels, stored.shape, words, metric)


def choose_programs(
    model: onnx.ModelProto,
    layers: Mapping[str, Chooser],
    data: Dataset,
    price: float,
    *,
    start: Mapping[str, NDArray[np.intp]] | None = None,
    labels: float = 0.0,
    schedule: Schedule | None = None,
) -> dict[str, LayerPrograms]:
    """Find programs for the kernels of several layers at once.

    Args:
        model: the network; its own answers are what is aimed at.
        layers: by node, what is chosen.
        data: inputs of the network; labels where they are given a share.
        price: how much farther from the original the answers may be for all bits that the layers
            take as original kernels.
        start: by node, the forms [outputs, channels] that the descent begins with, as an exact
            search found them; None begins with the original kernels.
        labels: share of the cross entropy to the labels of `data`.
        schedule: how the descent goes.

    Returns:
        By node its programs, fitted to the layer's answers. On the inputs that choices are judged
        on, none is dearer than the one that it began with.

    Raises:
        ModelError: the network cannot be run in PyTorch; an operator is not known; or two layers
            hold the same kernels.
        DataError: labels are to have a share, and there are none.
    """
    if labels and data.labels is None:
        raise DataError(f"{data.purpose} {data.source} has no labels to choose by")
    held = [layer.parameter for layer in layers.values()]
    if len(set(held)) < len(held):
        raise ModelError("two of the layers share their kernels")
    begin = start or {
        node: np.full(layer.weight.shape[:2], len(layer.words.forms) - 1)
        for node, layer in layers.items()
    }
    descent = _Descent(model, layers, data, price, begin, labels, schedule or Schedule())
    choices = descent.run()
    return {
        node: fitted(layer.weight, layer.words, choices[node], layer.metric)
        for node, layer in layers.items()
    }


class _Descent:
    """The descent over the choices of all layers."""

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Mapping[str, Chooser],
        data: Dataset,
        price: float,
        start: Mapping[str, NDArray[np.intp]],
        labels: float,
        schedule: Schedule,
    ) -> None:
        self._layers, self._data, self._schedule = layers, data, schedule
        self._aim = _aim(model, data, labels)
        total = sum(
            float(layer.words.bits[-1]) * layer.weight[..., 0].size for layer in layers.values()
        )
        self._nearest = {n: _tensor(_nearest(layer)) for n, layer in layers.items()}
        self._costs = {n: _tensor(price * one.words.bits / total) for n, one in layers.items()}
        self._logits = {}
        for node, near in self._nearest.items():
            count = near.shape[2]
            first = functional.one_hot(torch.from_numpy(start[node]).long(), count)
            self._logits[node] = (_lead(count) * first).float().requires_grad_()
        self._chance = np.random.default_rng(schedule.seed)

    def run(self) -> dict[str, NDArray[np.intp]]:
        """By node the index of the form of every kernel."""
        how = self._schedule
        optimiser = torch.optim.Adam(self._logits.values(), lr=how.rate)
        falling = (how.end / how.start) ** (1.0 / max(1, how.steps - 1))
        best, least = self._hard(), self._judged()
        batches = self._endless()
        for step in range(how.steps):
            temperature = how.start * falling**step
            feeds, truth = next(batches)
            optimiser.zero_grad()
            shares = self._sampled(temperature)
            mixed = {
                node: torch.einsum("ocf,ocfi->oci", share, self._nearest[node])
                for node, share in shares.items()
            }
            loss = self._loss(shares, mixed, feeds, truth)
            torch.autograd.backward(loss)
            optimiser.step()
            if (step + 1) % _EVERY == 0 or step + 1 == how.steps:
                found = self._judged()
                if found < least:
                    best, least = self._hard(), found
        return best

    def _loss(
        self,
        shares: Values,
        kernels: Values,
        feeds: Mapping[str, torch.Tensor],
        truth: torch.Tensor | None,
    ) -> torch.Tensor:
        """Distance of the answers with these kernels, and the price of their bits."""
        student = self._aim.student
        weights = {
            student.slot(layer.parameter): kernels[node].reshape(layer.shape)
            for node, layer in self._layers.items()
        }
        names = (self._aim.scores[0],) if self._aim.scores else ()
        answered = functional_call(student, weights, (feeds, names))
        far = self._aim.aimed(answered, self._aim.taught(feeds, features=False), truth)
        paid = [(shares[node] * self._costs[node]).sum() for node in self._layers]
        return far + torch.stack(paid).sum()

    def _sampled(self, temperature: float) -> Values:
        """The hard choice of a relaxed sample forwards, the sample itself backwards."""
        found = {}
        for node, logits in self._logits.items():
            noise = _tensor(self._chance.gumbel(size=tuple(logits.shape)))
            soft = functional.softmax((logits + noise) / temperature, dim=-1)
            hard = functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
            found[node] = hard + soft - soft.detach()
        return found

    def _hard(self) -> dict[str, NDArray[np.intp]]:
        return {
            n: one.detach().argmax(-1).numpy().astype(np.intp) for n, one in self._logits.items()
        }

    def _judged(self) -> float:
        """The loss of the choice as it stands, with numbers fitted as they will be."""
        kernels = {
            node: _tensor(fitted(layer.weight, layer.words, choice, layer.metric).weights)
            for (node, layer), choice in zip(
                self._layers.items(), self._hard().values(), strict=True
            )
        }
        shares = {
            n: functional.one_hot(one.argmax(-1), one.shape[-1]).to(one.dtype)
            for n, one in self._logits.items()
        }
        with torch.no_grad():
            seen = [self._loss(shares, kernels, *batch) for batch in self._batches(_JUDGED, seed=0)]
        return float(torch.stack(seen).mean())

    def _batches(self, count: int, seed: int) -> Iterator[tuple[Values, torch.Tensor | None]]:
        order = np.random.default_rng(seed).permutation(len(self._data))[: count * _BATCH]
        for feeds, labels in self._data.take(order).batches(_BATCH):
            truth = None if labels is None else torch.from_numpy(labels)
            yield self._aim.student.given(feeds), truth

    def _endless(self) -> Iterator[tuple[Values, torch.Tensor | None]]:
        turn = 0
        while True:
            turn += 1
            yield from self._batches(len(self._data), seed=self._schedule.seed + turn)


def _lead(count: int) -> float:
    """How far ahead of others a form is that samples take with the probability `_FIRM`."""
    return math.log(_FIRM / (1.0 - _FIRM) * max(1, count - 1))


def _aim(model: onnx.ModelProto, data: Dataset, labels: float) -> Objective:
    student, teacher = Network(model).eval(), Network(model).eval()
    for network in (student, teacher):
        network.requires_grad_(False)
    feeds = [student.given(each) for each, _ in data.take(range(min(len(data), 256))).batches(64)]
    shapes = student.shapes(feeds[0])
    aim = objective(student, teacher, (model, model), (shapes, shapes), Mixture(labels=labels))
    aim.measure(feeds)
    return replace(aim, taps=())


def _nearest(layer: Chooser) -> Array:
    _, channels, cells = layer.weight.shape
    metric = np.eye(channels * cells) if layer.metric is None else layer.metric
    return nearest_kernels(layer.weight, layer.words, metric)


def _tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
