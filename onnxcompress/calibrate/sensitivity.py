"""Sensitivities on calibration inputs: the backward graph run batch by batch, sums in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.sensitivity import Ablation, Measured, Responses
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.ablation import Oracle
from onnxcompress.calibrate.answers import collect_targets
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.responses import with_means
from onnxcompress.calibrate.sample_batches import Batch, DrawnSamples
from onnxcompress.calibrate.targets import Targets
from onnxcompress.errors import GradientError, UsageError
from onnxcompress.gradients.answer import demand_batch_axis
from onnxcompress.gradients.build import GradientModel, gradient_model
from onnxcompress.gradients.known import Known, know
from onnxcompress.gradients.opset import LOWEST, raised
from onnxcompress.load.trust import computes_the_same
from onnxcompress.progress import Progress, Silent
from onnxcompress.runtime import Array, Execution, Session, open_session

_STEP = 0.2
"""Of gates, to either side, in the difference of gradients.

Between its kinks a ReLU network bends little: a small step sees next to none of the curvature that
a channel meets on its way from one to zero. Measured in docs/saliency.md.
"""

_PROBES = 4
Array64 = NDArray[np.float64]
Taps = Mapping[str, int]


@dataclass(frozen=True)
class CollectedSensitivity:
    """Sensitivities of one network on a random part of the calibration inputs.

    Attributes:
        model: the canonical model.
        shapes: shape of every tensor at the representative sizes, to plan memory by.
        data: the calibration inputs; with labels, or held to the network's own answers.
        execution: provider and threads.
        seed: which samples are taken, and every random choice.
        samples: how many samples gradients are taken of, at most.
        ablated: how many samples channels are ablated on, at most.
        progress: told how far the ablation is.
    """

    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    data: Dataset
    execution: Execution
    seed: int
    samples: int = 1024
    ablated: int = 256
    progress: Progress = field(default_factory=Silent)

    def measured(self) -> Measured:
        """How many samples there are, and what the loss is held to.

        Raises:
            ModelError: the network gives nothing that a loss could be computed from.
            DataError: a label is no class.
        """
        labels = self.data.labels is not None
        own = "the network's own classes" if self._targets.answer.classes else "its own outputs"
        loss = "labels" if labels and self._targets.answer.classes else own
        return Measured(len(self.drawn), self._ablated, loss)

    def gate_gradients(
        self, taps: Taps, model: onnx.ModelProto | None = None
    ) -> dict[str, Array64]:
        """The gradient of every sample's loss in a gate behind every channel.

        Returns:
            By tap, [samples, channels]; zeros where the loss does not depend on the tap.

        Raises:
            GradientError: an operator has no adjoint.
            DataError: the samples differ in size, or a label is no class.
        """
        built = self._built(model, taps=taps)
        found: dict[str, list[Array64]] = {tap: [] for tap in taps}
        if not built.products:
            return {
                tap: np.zeros((len(self.drawn), self._width(tap, a))) for tap, a in taps.items()
            }
        with open_session(built.model, self.execution) as session:
            for part in self.drawn.batches():
                outputs = _outputs(session, self._held_to_targets(built, part))
                for tap, name in built.products.items():
                    found[tap].append(_wide(outputs[name])[: part.count])
        return {
            tap: np.concatenate(rows) if rows else np.zeros((len(self.drawn), self._width(tap, a)))
            for (tap, a), rows in zip(taps.items(), found.values(), strict=True)
        }

    def curvature(self, taps: Taps, model: onnx.ModelProto | None = None) -> dict[str, Array64]:
        """The diagonal of the Hessian of the mean loss in the gates.

        Hutchinson's estimate, v H v for random signs v, with H v as a central difference of
        gradients; every sample has signs of its own. Without classes the Hessian is that of
        Gauss and Newton (the residual is zero), of which one gradient along random signs is an
        unbiased estimate.

        Returns:
            By tap, [channels].

        Raises:
            GradientError: an operator has no adjoint.
        """
        if not self._targets.answer.classes:
            rows = self.gate_gradients(taps, model)
            return {tap: np.square(values).mean(axis=0) for tap, values in rows.items()}
        built = self._built(model, taps=taps, gated=True)
        total = {tap: np.zeros(self._width(tap, axis)) for tap, axis in taps.items()}
        if not built.products:
            return total
        generator = np.random.default_rng([self.seed, 3])
        with open_session(built.model, self.execution) as session:
            for part in chain.from_iterable(self.drawn.batches() for _ in range(_PROBES)):
                feeds = self._held_to_targets(built, part)
                signs = {
                    tap: generator.choice([-1.0, 1.0], built.shape(name))
                    for tap, name in built.gates.items()
                }
                ahead, behind = (
                    _outputs(session, feeds | _moved(built, signs, step))
                    for step in (_STEP, -_STEP)
                )
                for tap, name in built.products.items():
                    slope = (_wide(ahead[name]) - _wide(behind[name])) / (2.0 * _STEP)
                    product = slope * signs[tap].reshape(slope.shape)
                    total[tap] += product[: part.count].sum(axis=0)
        return {tap: values / (_PROBES * len(self.drawn)) for tap, values in total.items()}

    def responses(self, taps: Taps, model: onnx.ModelProto | None = None) -> Responses:
        """The mean over positions of every sample and channel, and the sample's class.

        Raises:
            UsageError: the network's answer is not a class.
            DataError: a label is no class.
        """
        targets = self._targets
        if not targets.answer.classes:
            raise UsageError(
                "mutual-information needs a class for every sample, and this network does not "
                "answer with one: use another criterion"
            )
        self._demand_raising()
        built, names = with_means(model or self.model, self._known.shapes, taps)
        found: dict[str, list[Array64]] = {tap: [] for tap in taps}
        with open_session(built, self.execution) as session:
            for part in self.drawn.batches():
                outputs = _outputs(session, part.feeds)
                for tap, name in names.items():
                    demand_batch_axis(tap, outputs[name].shape, len(part.rows))
                    found[tap].append(_wide(outputs[name])[: part.count])
        means = {tap: np.concatenate(rows) for tap, rows in found.items()}
        return Responses(means, targets.classes)

    def ablate(
        self,
        taps: Taps,
        ablations: Sequence[Ablation],
        model: onnx.ModelProto | None = None,
    ) -> Array64:
        """How much the mean loss grows when channels are set to zero, on the first samples.

        Raises:
            DataError: a label is no class.
            ModelError: the model fails on the data.
        """
        known = self._known if model is None else know(model, self._sizes)
        targets, execution = self._targets, self.execution
        oracle = Oracle(known, self.model, taps, targets, execution, self.progress)
        return oracle.changes(ablations, self.drawn.dataset.take(range(self._ablated)))

    def fisher(
        self, tensors: Mapping[str, int], model: onnx.ModelProto | None = None
    ) -> dict[str, Array64]:
        """Fisher information in the channels of tensors: the mean over samples of sum g g'.

        Raises:
            GradientError: an operator has no adjoint.
        """
        built = self._built(model, taps={}, tensors=tuple(tensors))
        total = {n: np.zeros((self._width(n, a),) * 2) for n, a in tensors.items()}
        if not built.gradients:
            return total
        with open_session(built.model, self.execution) as session:
            for part in self.drawn.batches():
                outputs = _outputs(session, self._held_to_draws(built, part))
                for name, output in built.gradients.items():
                    demand_batch_axis(name, outputs[output].shape, len(part.rows))
                    values = _wide(outputs[output])
                    values = values[: part.count] if len(part.rows) > 1 else values
                    rows = np.moveaxis(values, tensors[name], 0)
                    flat = rows.reshape(len(rows), -1)
                    total[name] += flat @ flat.T
        return {name: value / len(self.drawn) for name, value in total.items()}

    @property
    def _ablated(self) -> int:
        unit = self.data.fixed_batch or 1
        return max(min(self.ablated, len(self.drawn)) // unit, 1) * unit

    @property
    def _sizes(self) -> dict[str, tuple[int, ...]]:
        return {spec.name: self.shapes[spec.name] for spec in input_specs(self.model)}

    @cached_property
    def _known(self) -> Known:
        """Every tensor at the representative sizes; shape inference alone misses some."""
        return know(self.model, self._sizes)

    @cached_property
    def drawn(self) -> DrawnSamples:
        """The samples that gradients are taken of."""
        return DrawnSamples(self.model, self.shapes, self.data, self.seed, self.samples)

    @cached_property
    def _targets(self) -> Targets:
        targets = collect_targets(
            self._known, self.drawn.dataset, self.drawn.batches(), self.execution, self.seed
        )
        unused = self.data.labels is not None and not targets.answer.classes
        if unused:
            self.progress.note(
                "labels are not used: the network does not answer with one [N, K] tensor of scores"
            )
        return targets

    @cached_property
    def _raises_well(self) -> bool:
        """Whether the model computes the same at the opset that backward graphs need.

        onnx's converter is trusted no more than any other third party.
        """
        if self._known.view.opset() >= LOWEST:
            return True
        feeds = next(self.drawn.batches()).feeds
        return computes_the_same(self.model, raised(self.model), feeds, self.execution)

    def _demand_raising(self) -> None:
        if not self._raises_well:
            raise GradientError(f"raising the model to opset {LOWEST} changes what it computes")

    def _built(
        self,
        model: onnx.ModelProto | None,
        *,
        taps: Taps,
        tensors: tuple[str, ...] = (),
        gated: bool = False,
    ) -> GradientModel:
        self._demand_raising()
        return gradient_model(
            model or self.model,
            self.drawn.sizes,
            taps=taps,
            tensors=tensors,
            gated=gated,
            probabilities=self._targets.answer.probabilities,
        )

    def _held_to_targets(self, built: GradientModel, part: Batch) -> dict[str, Array]:
        """Inputs of one batch, with the classes or random cotangents that its loss needs."""
        if built.loss.target:
            return {**part.feeds, built.loss.target: self._targets.given(part.rows)}
        return self._held_to_draws(built, part)

    def _held_to_draws(self, built: GradientModel, part: Batch) -> dict[str, Array]:
        """The same, with classes drawn at random."""
        feeds = dict(part.feeds)
        if built.loss.target:
            return feeds | {built.loss.target: self._targets.drawn(part.rows)}
        for output, name in built.loss.cotangents.items():
            signs = self._targets.signs(output, part.rows, built.shape(name))
            feeds[name] = signs.astype(built.dtype(name))
        return feeds

    def _width(self, tensor: str, axis: int) -> int:
        return self._known.shapes[tensor][axis]


def _outputs(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    return dict(zip(session.output_names, session.run(feeds), strict=True))


def _wide(values: Array) -> Array64:
    return values.astype(np.float64)


def _moved(built: GradientModel, signs: Mapping[str, Array64], step: float) -> dict[str, Array]:
    """Gates a step away from one."""
    return {
        name: (1.0 + step * signs[tap]).astype(built.dtype(name))
        for tap, name in built.gates.items()
    }
