"""Batch normalisation that was folded into convolutions, taken out again for training.

A network that was trained with BatchNormalization trains badly without it. Each convolution with a
bias gets a normalisation whose gain and shift are the deviation and the mean that its outputs
have: together they are the identity. Training changes all of them; afterwards they are folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch.nn import functional

from onnxcompress.finetune.network import Network, Values

_EPSILON = 1e-5
_THROUGH = frozenset(
    {
        *("Add", "Clip", "Concat", "Flatten", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"),
        *("Mul", "PRelu", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split"),
        *("Squeeze", "Tanh", "Transpose", "Unsqueeze", "Upsample", "DepthToSpace", "Pad", "Exp"),
    }
)
"""Operators behind which an output of a convolution is still an answer of the network."""


class ChannelNorm(torch.nn.Module):
    """Normalisation of channels: by the batch in training, by running statistics otherwise.

    Args:
        mean: of every channel.
        variance: of every channel.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    momentum = Network.momentum

    def __init__(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("variance", variance.clone())
        self.gain = torch.nn.Parameter((variance + _EPSILON).sqrt())
        self.shift = torch.nn.Parameter(mean.clone())

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Normalise [N, C, ...]."""
        return functional.batch_norm(
            y,
            self.mean,
            self.variance,
            self.gain,
            self.shift,
            training=self.training,
            momentum=self.momentum,
            eps=_EPSILON,
        )

    def folded(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight and bias of a convolution with this normalisation in it, in float64."""
        scale = self.gain.double() / (self.variance.double() + _EPSILON).sqrt()
        rows = scale.reshape(-1, *[1] * (weight.dim() - 1))
        centred = (bias.double() - self.mean.double()) * scale
        return weight.double() * rows, centred + self.shift.double()


def normalise(network: Network, batches: Iterable[Mapping[str, torch.Tensor]]) -> int:
    """Give every convolution that allows it a normalisation; the function stays the same.

    Left out are convolutions without a bias or with shared weights, those that are normalised
    already, those that make an answer, and those of a single position.

    Args:
        network: changed in place.
        batches: inputs to take means and deviations on.

    Returns:
        How many convolutions were given one.
    """
    places = _places(network)
    if not places:
        return 0
    sums: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    network.eval()
    with torch.no_grad():
        for feeds in batches:
            seen = network(feeds, also=places)
            for name in list(places):
                y = seen[name].double().transpose(0, 1).flatten(1)
                if seen[name][0, 0].numel() == 1:
                    del places[name]
                    continue
                sums[name] = sums.get(name, torch.zeros(())) + y.sum(1)
                squares[name] = squares.get(name, torch.zeros(())) + y.square().sum(1)
                counts[name] = counts.get(name, 0) + y.shape[1]
    for name, (weight, bias) in places.items():
        mean = sums[name] / counts[name]
        variance = (squares[name] / counts[name] - mean.square()).clamp(min=0)
        kind = network.value(bias).dtype
        network.insert(name, ChannelNorm(mean.to(kind), variance.to(kind)), weight, bias)
    return len(places)


def _places(network: Network) -> dict[str, tuple[str, str]]:
    """Outputs of convolutions that can be normalised, with the names of weight and bias."""
    readers: dict[str, list[str]] = {}
    uses: dict[str, int] = {}
    answers = set(network.outputs)
    for step in reversed(network.steps):
        node = step.node
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
            uses[name] = uses.get(name, 0) + 1
        if node.op_type in _THROUGH and answers & set(node.output):
            answers.update(node.input)
    found = {}
    for step in network.steps:
        node = step.node
        own = tuple(node.input[1:3])
        if (
            node.op_type == "Conv"
            and len(own) == 2
            and all(name in network.trained and uses[name] == 1 for name in own)
            and node.output[0] not in answers
            and "BatchNormalization" not in readers.get(node.output[0], [])
        ):
            found[node.output[0]] = (own[0], own[1])
    return found


def folded_values(network: Network) -> Values:
    """What training has changed, with normalisations folded in: constants by name, in float64."""
    with torch.no_grad():
        changed = (*network.trained, *network.running)
        values = {name: network.value(name).double().clone() for name in changed}
        for norm, weight, bias in network.inserted:
            values[weight], values[bias] = norm.folded(values[weight], values[bias])
    return values
