"""What a student is trained towards: its teacher's outputs, features on the way, labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx
import torch
from torch.nn import functional

from onnxcompress.analyse.answers import declared_answers, is_classifier
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.finetune.network import Network, Values
from onnxcompress.finetune.teacher import Teacher
from onnxcompress.graph.view import FLOATING_TYPES

MOST_TAPS = 8
"""Places on the way at which features are compared, at most."""
_SHAPING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How much of what counts.

    Attributes:
        labels: share of the cross entropy to true labels, the rest is the teacher's.
        features: weight of the differences on the way.
        temperature: that class scores are softened by.
        losses: of outputs by name, in place of what their kind suggests: `error` or `cosine`; the
            empty name stands for all others.
    """

    labels: float = 0.0
    features: float = 0.0
    temperature: float = 4.0
    losses: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Objective:
    """The loss of a student on a batch.

    Class scores are compared by the Kullback-Leibler divergence of their softened
    probabilities (Hinton et al. 2015, times the square of the temperature); other outputs and
    features by their squared error, relative to how much the teacher's vary; where that is asked
    for, outputs by the cosine of the angle between them (channels, [N, C, ...]).

    Attributes:
        student: the network that is trained.
        teacher: answers for the network that it is held to.
        mixture: how much of what counts.
        scores: for a classifier, the tensors that hold its class scores: the student's and the
            teacher's. None for other networks.
        taps: tensors on the way that both have.
        scales: variance of the teacher's outputs and features, by name.
    """

    student: Network
    teacher: Teacher
    mixture: Mixture
    scores: tuple[str, str] | None
    taps: tuple[str, ...]
    scales: dict[str, float] = field(default_factory=dict)

    @property
    def asked(self) -> tuple[str, ...]:
        """Tensors of the teacher that are compared, besides its outputs."""
        return (*self.taps, *([self.scores[1]] if self.scores else []))

    def measure(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Find how much the teacher's outputs and features vary from sample to sample."""
        sums: Values = {}
        squares: dict[str, float] = {}
        sizes: dict[str, int] = {}
        samples = 0
        for feeds in batches:
            taught = self.taught(feeds)
            samples += len(next(iter(taught.values())))
            for name, value in taught.items():
                wide = value.double()
                total = wide.sum(0)
                sums[name] = sums[name] + total if name in sums else total
                squares[name] = squares.get(name, 0.0) + float(wide.square().sum())
                sizes[name] = sizes.get(name, 0) + value.numel()
        for name, total in sums.items():
            common = float(total.square().sum()) / samples
            self.scales[name] = max(_LEAST, (squares[name] - common) / sizes[name])

    def taught(self, feeds: Mapping[str, torch.Tensor], *, features: bool = True) -> Values:
        """What the teacher says of a batch."""
        names = self.asked if features else self.asked[len(self.taps) :]
        with torch.no_grad():
            made = self.teacher(feeds, also=tuple(dict.fromkeys(names)))
        if self.scores:
            return {name: made[name] for name in names}
        return {name: value for name, value in made.items() if value.is_floating_point()}

    def answered(self, feeds: Mapping[str, torch.Tensor], *, features: bool = True) -> Values:
        """What the student says of a batch."""
        names = [*self.taps] if features else []
        if self.scores:
            names.append(self.scores[0])
        made: Values = self.student(feeds, also=tuple(dict.fromkeys(names)))
        return made

    def distance(self, answered: Values, taught: Values) -> torch.Tensor:
        """How far the student's outputs are from the teacher's."""
        if self.scores is not None:
            heat = self.mixture.temperature
            own = functional.log_softmax(answered[self.scores[0]].flatten(1) / heat, 1)
            wanted = functional.log_softmax(taught[self.scores[1]].flatten(1) / heat, 1)
            divergence = functional.kl_div(own, wanted, log_target=True, reduction="batchmean")
            return divergence * heat**2
        names = [name for name in self.student.outputs if name in taught]
        return torch.stack([self._apart(name, answered, taught) for name in names]).mean()

    def aimed(
        self, answered: Values, taught: Values, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What counts of the outputs: how far they are from the teacher's, and from the labels."""
        far = self.distance(answered, taught)
        if labels is None or self.scores is None or not self.mixture.labels:
            return far
        share = self.mixture.labels
        truth = functional.cross_entropy(answered[self.scores[0]].flatten(1), labels)
        return (1 - share) * far + share * truth

    def loss(
        self, answered: Values, taught: Values, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What training minimises: the same, and the differences on the way."""
        total = self.aimed(answered, taught, labels)
        if self.taps and self.mixture.features:
            errors = [self._error(name, answered, taught) for name in self.taps]
            total = total + self.mixture.features * torch.stack(errors).mean()
        return total

    def agreement(self, answered: Values, taught: Values) -> tuple[float, int]:
        """What can be added up over batches: (equal classes or squared error, of how many)."""
        if self.scores is not None:
            own = answered[self.scores[0]].flatten(1).argmax(1)
            other = taught[self.scores[1]].flatten(1).argmax(1)
            return float((own == other).sum()), len(own)
        count = len(next(iter(answered.values())))
        return float(self.distance(answered, taught)) * count, count

    def _apart(self, name: str, answered: Values, taught: Values) -> torch.Tensor:
        losses = self.mixture.losses
        if losses.get(name, losses.get("")) != "cosine":
            return self._error(name, answered, taught)
        if taught[name].dim() < 2:
            raise UsageError(f"output '{name}' has no channels to take a cosine of")
        return 1 - functional.cosine_similarity(answered[name], taught[name], dim=1).mean()

    def _error(self, name: str, answered: Values, taught: Values) -> torch.Tensor:
        return (answered[name] - taught[name]).square().mean() / self.scales[name]


def objective(
    student: Network,
    teacher: Teacher,
    models: tuple[onnx.ModelProto, onnx.ModelProto],
    shapes: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]],
    mixture: Mixture,
) -> Objective:
    """The objective that fits two networks.

    Args:
        student: of the first model.
        teacher: of the second model.
        models: student and teacher.
        shapes: of every tensor of either on the same batch.
        mixture: how much of what counts.

    Raises:
        ModelError: no output is a floating-point tensor.
        UsageError: a loss is of an output that is not there, or labels of no class scores.
    """
    if not declared_answers(models[0]):
        raise ModelError("the network has no floating-point output to learn from")
    for name in mixture.losses:
        if name and name not in student.outputs:
            raise UsageError(f"--loss: no output '{name}' among {', '.join(student.outputs)}")
    both = tuple(class_scores(model) for model in models)
    scores = (both[0], both[1]) if both[0] is not None and both[1] is not None else None
    if mixture.losses:
        scores = None
    if mixture.labels and scores is None:
        raise UsageError("labels can have no share: no output is compared as class scores")
    taps = shared_taps(models[0], shapes) if mixture.features else ()
    return Objective(student, teacher, mixture, scores, taps)


def class_scores(model: onnx.ModelProto) -> str | None:
    """The tensor that holds a classifier's scores: in front of the Softmax, if there is one.

    None where the network makes no class decision, or answers for every class by itself (Sigmoid).
    """
    if not is_classifier(declared_answers(model)):
        return None
    output = next(
        o.name for o in model.graph.output if o.type.tensor_type.elem_type in FLOATING_TYPES
    )
    maker = last_maker(model, output)
    kind = maker.op_type if maker is not None else ""
    if maker is not None and kind in {"LogSoftmax", "Softmax"}:
        return str(maker.input[0])
    return None if kind in {"HardSigmoid", "Sigmoid"} else str(output)


def last_maker(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto | None:
    """The node that computes a tensor's values, whatever shape they are brought into."""
    producers = {name: node for node in model.graph.node for name in node.output}
    while tensor in producers and producers[tensor].op_type in _SHAPING:
        tensor = producers[tensor].input[0]
    return producers.get(tensor)


def shared_taps(
    student: onnx.ModelProto,
    shapes: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]],
) -> tuple[str, ...]:
    """Tensors on the way that both networks have: sums of branches, else outputs of layers."""
    own, other = shapes
    for kinds in ({"Add"}, {"Conv", "Relu", "Clip", "HardSwish"}):
        found = [
            node.output[0]
            for node in student.graph.node
            if node.op_type in kinds
            and node.output[0] in own
            and len(own[node.output[0]]) == 4
            and own[node.output[0]] == other.get(node.output[0])
        ]
        if found:
            count = min(MOST_TAPS, len(found))
            return tuple(found[(at + 1) * len(found) // count - 1] for at in range(count))
    return ()
