"""A training step through the interpreter against the same network written in PyTorch.

    python tests/benchmarks/finetune_speed.py [--batch 64] [--rounds 20] [--channels-last]
    python tests/benchmarks/finetune_speed.py --recompute [--batch 64] [--rounds 20]

ResNet-56 for CIFAR-10 (He et al. 2016, shortcuts by 1 x 1 convolutions), written as PyTorch
modules, with AdamW, and its export, run by the interpreter with the folded normalisations taken out
again, with the optimiser of fine-tuning: forward, backward, and a step, in turns in one process.
Printed is the median of the paired ratios. With --recompute the interpreter that computes results
again on the way back is set against the one that keeps them; memory is how much a process of its
own grows by two steps, at most.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import torch
from torch import nn

from onnxcompress.finetune.network import Network
from onnxcompress.finetune.normalisation import normalise
from onnxcompress.finetune.optimiser import Optimiser

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
    run: Callable[[torch.Tensor], torch.Tensor], move: Callable[[torch.Tensor], None]
) -> Callable[[torch.Tensor], float]:
    """Seconds that a step takes, of a network and of what moves its parameters down a loss."""

    def step(x: torch.Tensor) -> float:
        started = time.perf_counter()
        move(run(x).square().mean())
        return time.perf_counter() - started

    return step


def by_adam(parameters: list[nn.Parameter]) -> Callable[[torch.Tensor], None]:
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)

    def move(loss: torch.Tensor) -> None:
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()

    return move


def as_in_training(parameters: list[nn.Parameter]) -> Callable[[torch.Tensor], None]:
    moved = [one for one in parameters if one.requires_grad]
    optimiser = Optimiser(moved, 1e-4)

    def move(loss: torch.Tensor) -> None:
        optimiser.add(torch.autograd.grad(loss, moved), 1.0)
        optimiser.step(1e-4)

    return move


def trained(batch: int, *, recompute: bool) -> tuple[Callable[[torch.Tensor], float], torch.Tensor]:
    """A step of the interpreter, and a batch."""
    network = Network(exported(resnet56(), 8))
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    (name,) = network.inputs
    # Few samples: memory that statistics take must not hide what steps take.
    normalise(network, [{name: x[:8]}])
    network.train()
    network.recompute = recompute
    move = as_in_training([*network.parameters()])
    return step_of(lambda x: network({name: x})[network.outputs[0]], move), x


def growth(batch: int, recompute: bool) -> float:
    """MiB that two steps make a process grow by."""
    torch.set_num_threads(THREADS)
    step, x = trained(batch, recompute=recompute)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        step(x)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def compare_memory(batch: int, rounds: int) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        sizes = [pool.apply(growth, (batch, again)) for again in (True, False)]
    (again, x), (keep, _) = (trained(batch, recompute=one) for one in (True, False))
    both = np.array([(again(x), keep(x)) for _ in range(rounds + 2)][2:])
    print(
        f"batch {batch}, {THREADS} threads, torch {torch.__version__}: computed again "
        f"{1e3 * np.median(both[:, 0]):.0f} ms and {sizes[0]:.0f} MiB, kept "
        f"{1e3 * np.median(both[:, 1]):.0f} ms and {sizes[1]:.0f} MiB; median of ratios "
        f"{np.median(both[:, 0] / both[:, 1]):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--channels-last", action="store_true", help="the module's weights, too")
    parser.add_argument("--recompute", action="store_true", help="against keeping results")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.recompute:
        compare_memory(arguments.batch, arguments.rounds)
        return
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
    move = as_in_training([*network.parameters()])
    ours = step_of(lambda x: network({name: x})[network.outputs[0]], move)
    theirs = step_of(native, by_adam([*native.parameters()]))
    both = np.array([(ours(x), theirs(x)) for _ in range(arguments.rounds + 2)][2:])
    ratio = np.median(both[:, 0] / both[:, 1])
    print(
        f"batch {arguments.batch}, {THREADS} threads, torch {torch.__version__}: {count} "
        f"normalisations; a step takes {1e3 * np.median(both[:, 0]):.0f} ms here, "
        f"{1e3 * np.median(both[:, 1]):.0f} ms in PyTorch; median of ratios {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
