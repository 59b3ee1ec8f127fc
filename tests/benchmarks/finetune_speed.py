"""A training step through the interpreter against the same network written in PyTorch.

    python tests/benchmarks/finetune_speed.py [--batch 64] [--rounds 9]

ResNet-56 for CIFAR-10 (He et al. 2016, shortcuts by 1 x 1 convolutions), written as PyTorch
modules, and its export, run by the interpreter with the folded normalisations taken out again:
forward, backward, and a step of AdamW, in turns in one process. Printed is the median of the paired
ratios.
"""

from __future__ import annotations

import argparse
import io
import time
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import torch
from torch import nn

from onnxcompress.finetune.network import Network
from onnxcompress.finetune.normalisation import normalise

THREADS = 2


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet56() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inside = 16
    for width in (16, 32, 64):
        for number in range(9):
            stride = 2 if width != 16 and number == 0 else 1
            layers.append(Block(inside, width, stride))
            inside = width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in network.modules():
        # Of equal biases the export would keep one.
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    return network


def exported(network: nn.Module, batch: int) -> onnx.ModelProto:
    buffer = io.BytesIO()
    example = torch.zeros(batch, 3, 32, 32)
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.onnx.export(network.eval(), (example,), buffer, dynamo=False, input_names=["x"])
    return onnx.load_from_string(buffer.getvalue())


def step_of(
    run: Callable[[torch.Tensor], torch.Tensor], parameters: list[nn.Parameter]
) -> Callable[[torch.Tensor], float]:
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)

    def step(x: torch.Tensor) -> float:
        started = time.perf_counter()
        loss = run(x).square().mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        return time.perf_counter() - started

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--channels-last", action="store_true", help="the module's weights, too")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    native = resnet56()
    model = exported(native, arguments.batch)
    if arguments.channels_last:
        native = native.to(memory_format=torch.channels_last)
    network = Network(model)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(arguments.batch, 3, 32, 32, generator=generator)
    (name,) = network.inputs
    count = normalise(network, [{name: x}])
    native.train()
    network.train()
    ours = step_of(lambda x: network({name: x})[network.outputs[0]], [*network.parameters()])
    theirs = step_of(native, [*native.parameters()])
    both = np.array([(ours(x), theirs(x)) for _ in range(arguments.rounds + 2)][2:])
    ratio = np.median(both[:, 0] / both[:, 1])
    print(
        f"batch {arguments.batch}, {THREADS} threads, torch {torch.__version__}: {count} "
        f"normalisations; a step takes {1e3 * np.median(both[:, 0]):.0f} ms here, "
        f"{1e3 * np.median(both[:, 1]):.0f} ms in PyTorch; median of ratios {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
