"""What a network answers, and the loss that its answers are held to.

A classifier is held to classes: cross-entropy, on the logits in front of a final Softmax. Any
other network is held to its own outputs: half the squared distance, relative to each output's
energy. That loss and its gradient vanish at the network itself, so a random cotangent takes the
place of the gradient: for signs v, E[(v' J z)^2] = |J z|^2, which is what removing z costs to
second order (Gauss-Newton).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxcompress.analyse.answers import is_class_shape
from onnxcompress.errors import GradientError, ModelError
from onnxcompress.gradients.emitter import Emitter
from onnxcompress.gradients.known import Known, Shape
from onnxcompress.graph.view import FLOATING_TYPES, attributes
from onnxcompress.runtime import Array

FLOAT = 1
_LAYOUT = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_SMALLEST = 1e-30


@dataclass(frozen=True)
class Answer:
    """What the loss is computed from.

    Attributes:
        outputs: the floating-point outputs.
        classes: how many classes there are; 0 where the answer is not a class.
        logits: the tensor that holds one score per class.
        probabilities: whether those scores are probabilities already.
    """

    outputs: tuple[str, ...]
    classes: int = 0
    logits: str = ""
    probabilities: bool = False


def find_answer(known: Known) -> Answer:
    """Read off the graph what kind of answer it gives.

    Raises:
        GradientError: no output is a floating-point tensor.
    """
    view, shapes = known.view, known.shapes
    outputs = tuple(name for name in view.outputs if known.types[name] in FLOATING_TYPES)
    if not outputs:
        raise ModelError(
            "no output of the network is a floating-point tensor, so that there is no loss: let it "
            "give its scores, or use a criterion that needs none, such as weight or activation-std"
        )
    batch = next((shapes[name][0] for name in view.inputs if shapes[name]), 1)
    shape = shapes[outputs[0]]
    if len(outputs) > 1 or not is_class_shape(shape) or shape[0] != batch:
        return Answer(outputs)
    tensor = outputs[0]
    while (node := view.producers.get(tensor)) is not None and node.op_type in _LAYOUT:
        tensor = node.input[0]
    if node is not None and node.op_type in {"Softmax", "LogSoftmax"} and not node.domain:
        before = shapes[node.input[0]]
        axis = int(str(attributes(node).get("axis", -1))) % len(before)
        # Nothing else may lie along the axis of the classes, in whatever layout they stand.
        if before[axis] == shape[1] and before[0] == shape[0] and axis > 0:
            return Answer(outputs, shape[1], node.input[0])
    return Answer(outputs, shape[1], outputs[0])


def demand_batch_axis(tensor: str, shape: Shape, batch: int) -> None:
    """Refuse a tensor in which samples cannot be told apart.

    Raises:
        GradientError: its first axis does not count samples.
    """
    if batch > 1 and shape[:1] != (batch,):
        raise GradientError(f"tensor '{tensor}' has no batch axis: samples cannot be told apart")


@dataclass(frozen=True)
class Loss:
    """The loss inside a graph.

    Attributes:
        seeds: its gradient in the tensors that it is computed from.
        target: input [N, K] with the class of every sample as a distribution; empty where the
            answer is not a class.
        cotangents: by output, the input that takes its gradient; empty for a classifier.
    """

    seeds: Mapping[str, str]
    target: str
    cotangents: Mapping[str, str]


def emit_loss(known: Known, emit: Emitter, answer: Answer, batch: int) -> Loss:
    """Emit the loss of every sample's answer, and the gradient of their sum.

    Raises:
        GradientError: an output has no batch axis.
    """
    for name in answer.outputs:
        demand_batch_axis(name, known.shapes[name], batch)
    if not answer.classes:
        inputs = {
            name: emit.input("cotangent", known.types[name], known.shapes[name])
            for name in answer.outputs
        }
        return Loss(inputs, "", inputs)
    kind, shape = known.types[answer.logits], known.shapes[answer.logits]
    target = emit.input("target", FLOAT, [batch, answer.classes])
    rows = emit.sizes([batch, answer.classes])
    logits = emit.op("Reshape", emit.op("Cast", answer.logits, to=FLOAT), rows)
    probability = smallest = logits_given = ""
    if answer.probabilities:
        smallest = emit.constant(_float32(_SMALLEST))
        logits_given, probability = logits, emit.op("Max", logits, smallest)
        logits = emit.op("Log", probability)
    seed = emit.op("Sub", emit.op("Softmax", logits, axis=1), target)
    if probability:
        # Below the floor nothing moves, and the quotient would be out of all proportion.
        alive = emit.op("Greater", logits_given, smallest)
        slope = emit.op("Div", seed, probability)
        seed = emit.op("Where", alive, slope, emit.constant(_float32(0.0)))
    shaped = emit.op("Reshape", seed, emit.sizes(shape))
    return Loss({answer.logits: emit.op("Cast", shaped, to=kind)}, target, {})


def _float32(value: float) -> Array:
    return np.asarray(value, dtype=np.float32)
